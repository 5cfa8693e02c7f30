//! Placeholder.

#[cfg(feature = "train")]
pub mod data;
