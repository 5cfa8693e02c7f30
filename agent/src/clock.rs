//! The robot's clocks, read in one place.
//!
//! Robots boot in 1970 and lose their time: the time that certificates and assignments are judged by never
//! runs behind the build of this program, nor behind what the hub last signed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use zunft_protocol::episode::{Clock, WallQuality};
use zunft_protocol::ids::BootId;

/// When this program was built, in Unix seconds; 0 where the build did not say.
const BUILD_UNIX_SECS: &str = env!("ZUNFT_BUILD_UNIX_SECS");

/// Where Linux says which power-up this is.
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";

/// The robot's clocks.
#[derive(Debug)]
pub struct RobotClock {
    boot: BootId,
    build_unix_secs: u64,
    hub_unix_secs: AtomicU64,
}

impl RobotClock {
    /// Reads which power-up this is.
    pub fn new() -> Self {
        Self {
            boot: read_boot_id(),
            build_unix_secs: BUILD_UNIX_SECS.parse().unwrap_or(0),
            hub_unix_secs: AtomicU64::new(0),
        }
    }

    /// This power-up.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// Remembers a time that the hub has signed.
    pub fn hub_signed(&self, unix_secs: u64) {
        self.hub_unix_secs.fetch_max(unix_secs, Ordering::Relaxed);
    }

    /// The time by which certificates and assignments are judged.
    pub fn trusted_unix_secs(&self) -> u64 {
        let wall = wall().as_secs();
        wall.max(self.build_unix_secs).max(self.hub_unix_secs.load(Ordering::Relaxed))
    }

    /// What the wall clock is worth now.
    pub fn wall_quality(&self) -> WallQuality {
        if wall().as_secs() < self.build_unix_secs {
            WallQuality::Implausible
        } else if kernel_says_synchronised() {
            WallQuality::Synchronised
        } else {
            WallQuality::Unsynchronised
        }
    }

    /// Seconds since midnight by the robot's local time, if it knows the time.
    pub fn local_secs_of_day(&self) -> Option<u32> {
        if self.wall_quality() == WallQuality::Implausible {
            return None;
        }
        let unix_secs = libc::time_t::try_from(wall().as_secs()).ok()?;
        #[expect(unsafe_code, reason = "the standard library knows no time zones")]
        // SAFETY: an all-zero tm is valid, both pointers live through the call, and it writes into the second only.
        let local = unsafe {
            let mut local: libc::tm = std::mem::zeroed();
            (!libc::localtime_r(&raw const unix_secs, &raw mut local).is_null()).then_some(local)?
        };
        u32::try_from(local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec).ok()
    }

    /// The beginning of an episode whose first step was taken at `monotonic_ns` and has arrived just now.
    pub fn episode_begins(&self, monotonic_ns: u64) -> Clock {
        Clock {
            boot: self.boot,
            begin_monotonic_ns: monotonic_ns,
            begin_wall_ns: i64::try_from(wall().as_nanos()).unwrap_or(i64::MAX),
            wall_quality: self.wall_quality(),
        }
    }
}

impl Default for RobotClock {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::disallowed_methods, reason = "this file is where the agent reads the wall clock")]
fn wall() -> Duration {
    // A clock before 1970 reads as 1970: both are implausible.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn read_boot_id() -> BootId {
    let text = std::fs::read_to_string(BOOT_ID_PATH).unwrap_or_default().replace('-', "");
    text.trim().parse().unwrap_or_else(|_| {
        // Without the kernel's word, the boot time itself tells power-ups apart, to the second.
        let since_boot = clock_gettime(ClockId::Boottime).tv_sec.unsigned_abs();
        let booted_at = wall().as_secs().saturating_sub(since_boot);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&booted_at.to_le_bytes());
        BootId::from_bytes(bytes)
    })
}

/// Whether the kernel's clock discipline has a source that it trusts.
fn kernel_says_synchronised() -> bool {
    #[expect(unsafe_code, reason = "no safe wrapper reads the kernel's clock state")]
    // SAFETY: an all-zero timex is valid, and with `modes` 0 the call only writes into it.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut timex)
    };
    state >= 0 && state != libc::TIME_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_time_never_runs_behind_the_hub_or_the_build() {
        let clock =
            RobotClock { boot: read_boot_id(), build_unix_secs: u64::MAX / 4, hub_unix_secs: AtomicU64::new(0) };
        assert_eq!(clock.trusted_unix_secs(), u64::MAX / 4);
        assert_eq!(clock.wall_quality(), WallQuality::Implausible);
        assert_eq!(clock.local_secs_of_day(), None);
        clock.hub_signed(u64::MAX / 2);
        clock.hub_signed(5);
        assert_eq!(clock.trusted_unix_secs(), u64::MAX / 2);
    }

    #[test]
    fn boot_is_the_same_all_the_time() {
        assert_eq!(RobotClock::new().boot(), RobotClock::new().boot());
        let begin = RobotClock::new().episode_begins(7);
        assert_eq!(begin.begin_monotonic_ns, 7);
        assert!(begin.begin_wall_ns > 0);
        let known = RobotClock { build_unix_secs: 0, ..RobotClock::new() };
        // A leap second is the 61st.
        assert!(known.local_secs_of_day().is_some_and(|secs| secs <= 86_400));
    }
}
