//! When a control program last asked for an action: then the robot moves, and its link and processor are needed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long after its last action a robot still counts as acting: episodes pause between two steps, and begin again.
const ACTING: Duration = Duration::from_secs(3);

/// See the module. Telling it costs one store: the control loop does.
#[derive(Debug)]
pub(crate) struct Activity {
    begin: Instant,
    /// Milliseconds since `begin`, and one more; 0: never.
    acted: AtomicU64,
}

impl Activity {
    pub(crate) fn new(now: Instant) -> Self {
        Self { begin: now, acted: AtomicU64::new(0) }
    }

    /// A program got an action.
    pub(crate) fn acted(&self, now: Instant) {
        self.acted.store(self.millis(now) + 1, Ordering::Relaxed);
    }

    /// Whether the robot acts.
    pub(crate) fn is_acting(&self, now: Instant) -> bool {
        let acted = self.acted.load(Ordering::Relaxed);
        acted > 0 && self.millis(now).saturating_sub(acted - 1) < ACTING.as_millis() as u64
    }

    fn millis(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begin).as_millis() as u64
    }
}

#[expect(clippy::disallowed_methods, reason = "when something happens is what this file is for")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_robot_acts_until_some_seconds_after_its_last_action() {
        let begin = now();
        let activity = Activity::new(begin);
        assert!(!activity.is_acting(begin), "never acted");
        activity.acted(begin);
        assert!(activity.is_acting(begin + Duration::from_millis(2999)));
        assert!(!activity.is_acting(begin + ACTING));
    }
}
