//! What a fleet learns: policies, their statistics, training, evaluation and the package that a robot runs.
//!
//! ```text
//! Dataset -> window -> train -> package -> (signed release) -> runtime
//! ```
//!
//! Without the feature `train` only what a robot needs is compiled: [`package`], [`runtime`], [`policy`],
//! [`normalizer`], [`signing`], [`eval`]. This crate knows no network, no database and no async runtime.

pub mod eval;
pub mod normalizer;
pub mod package;
pub mod policy;
pub mod runtime;
mod seeded;
pub mod signing;
pub mod weights;

#[cfg(feature = "train")]
pub mod data;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "train")]
pub mod window;
