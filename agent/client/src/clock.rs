//! The two clocks that a control program's side of the socket needs. It knows nothing of frames.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// The robot's monotonic clock, in nanoseconds since it was powered up.
///
/// It is the operating system's, the same for every process, as the agent and Python's `time.monotonic_ns` read it.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // A monotonic clock counts up from the power-up: neither part is negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Now, for the deadline of a call.
#[expect(clippy::disallowed_methods, reason = "this is the shell: a blocking call must know when it has waited enough")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
