//! Tests above all packages: the house rules, and the loop with real processes.
//!
//! The library holds what tests and measuring programs share: a [`peer`] that speaks the protocol by hand, and the
//! [`episode`]s that it sends.

pub mod episode;
pub mod peer;
