//! The one integration-test binary, so that linking happens once.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its own lines do")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test fails on whatever it does not expect, and shows it")]

#[path = "all/fleet.rs"]
mod fleet;
#[path = "all/hostile.rs"]
mod hostile;
#[path = "all/kill.rs"]
mod kill;
#[path = "all/large.rs"]
mod large;
#[path = "all/links.rs"]
mod links;
#[path = "all/policy.rs"]
mod policy;
#[path = "all/simulation.rs"]
mod simulation;
#[path = "all/streams.rs"]
mod streams;
#[path = "all/tidy.rs"]
mod tidy;
