//! The one place of the hub that reads the clocks; everything that decides is given its answer.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, or 0 where the clock reads before that.
#[expect(clippy::disallowed_methods, reason = "this is the shell that reads the clock for the others")]
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Seconds since 1970, or 0 where the clock reads before that.
pub fn unix_secs() -> u64 {
    unix_millis() / 1000
}

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the shell that reads the clock for the others")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
