//! The one integration-test binary, so that linking happens once.

#[path = "all/fleet.rs"]
mod fleet;
#[path = "all/kill.rs"]
mod kill;
#[path = "all/tidy.rs"]
mod tidy;
