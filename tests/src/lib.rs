//! Tests above all packages: the house rules, and the loop with real processes.
//!
//! The library holds what tests and measuring programs share: a [`peer`] that speaks the protocol by hand, and the
//! [`episode`]s that it sends; [`link`]s that are slow and lossy, a [`relay`] that puts one between robot and hub, a
//! [`world`] with both, and a [`plain`] copy over the same link.

pub mod episode;
pub mod link;
pub mod peer;
pub mod plain;
pub mod relay;
pub mod world;
