//! The one integration-test binary, so that linking happens once.

#[path = "all/tidy.rs"]
mod tidy;
