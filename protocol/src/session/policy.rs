//! When a robot may upload, and what: decided from configuration and the time of day, without a clock.

use std::time::{Duration, Instant};

use super::agent::UploadClass;

const SECS_OF_DAY: u32 = 86_400;
const MINUTES_OF_DAY: u16 = 1_440;

/// A time of day in which uploads are allowed: from its first minute on, up to its last, which is not part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from_minute: u16,
    to_minute: u16,
}

/// Why two times of day are no window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Not a time of day.
    #[error("minute {minute} is not in a day of {MINUTES_OF_DAY}")]
    Minute {
        /// Which.
        minute: u16,
    },
    /// Both the same: all day, or never?
    #[error("begins when it ends; leave the window out to upload at any time")]
    Empty,
}

impl Window {
    /// A window between two minutes of the day; over midnight where the second is the earlier one.
    pub fn new(from_minute: u16, to_minute: u16) -> Result<Self, WindowError> {
        for minute in [from_minute, to_minute] {
            if minute >= MINUTES_OF_DAY {
                return Err(WindowError::Minute { minute });
            }
        }
        if from_minute == to_minute {
            return Err(WindowError::Empty);
        }
        Ok(Self { from_minute, to_minute })
    }

    fn contains(self, secs_of_day: u32) -> bool {
        let (from, to) = self.edges();
        if from < to { (from..to).contains(&secs_of_day) } else { secs_of_day >= from || secs_of_day < to }
    }

    /// Its first second, and the first after it.
    fn edges(self) -> (u32, u32) {
        (u32::from(self.from_minute) * 60, u32::from(self.to_minute) * 60)
    }
}

/// What the operator allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadPolicy {
    /// When; none: at any time.
    pub windows: Vec<Window>,
    /// Whether every byte costs: then only episodes whose outcome is known are sent.
    pub metered: bool,
}

/// The policy and the time of day, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Rules {
    policy: UploadPolicy,
    /// Second of the day at some instant.
    told: Option<(u32, Instant)>,
}

impl Rules {
    pub(super) fn set_policy(&mut self, policy: UploadPolicy) {
        self.policy = policy;
    }

    pub(super) fn set_time(&mut self, secs_of_day: u32, now: Instant) {
        self.told = Some((secs_of_day % SECS_OF_DAY, now));
    }

    /// Whether uploads are allowed now. A robot that does not know the time uploads: late data is worse than a busy link.
    pub(super) fn open(&self, now: Instant) -> bool {
        match self.secs_of_day(now) {
            Some(secs) if !self.policy.windows.is_empty() => {
                self.policy.windows.iter().any(|window| window.contains(secs))
            }
            Some(_) | None => true,
        }
    }

    /// Whether episodes of this class are sent at all.
    pub(super) fn sends(&self, class: UploadClass) -> bool {
        !self.policy.metered || class < UploadClass::Bulk
    }

    /// When a window begins or ends next.
    pub(super) fn changes_at(&self, now: Instant) -> Option<Instant> {
        let secs = self.secs_of_day(now)?;
        let edges = self.policy.windows.iter().flat_map(|window| <[u32; 2]>::from(window.edges()));
        let wait = edges.map(|edge| (edge + SECS_OF_DAY - secs - 1) % SECS_OF_DAY + 1).min()?;
        Some(now + Duration::from_secs(u64::from(wait)))
    }

    fn secs_of_day(&self, now: Instant) -> Option<u32> {
        let (secs, at) = self.told?;
        let since = now.saturating_duration_since(at).as_secs() % u64::from(SECS_OF_DAY);
        Some((secs + since as u32) % SECS_OF_DAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u32 = 3600;

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be had from the clock; tests move it themselves"
    )]
    fn begin() -> Instant {
        Instant::now()
    }

    fn rules(windows: &[(u16, u16)]) -> Rules {
        let windows = windows.iter().map(|&(from, to)| Window::new(from * 60, to * 60).unwrap()).collect();
        Rules { policy: UploadPolicy { windows, metered: false }, told: None }
    }

    fn check(windows: &[(u16, u16)], hour: u32, open: bool, hours_to_change: u32) {
        let (mut rules, now) = (rules(windows), begin());
        rules.set_time(hour * HOUR, now);
        assert_eq!(rules.open(now), open, "{windows:?} at {hour}");
        let change = Duration::from_secs(u64::from(hours_to_change * HOUR));
        assert_eq!(rules.changes_at(now), Some(now + change), "{windows:?} at {hour}");
        assert_eq!(rules.open(now + change - Duration::from_secs(1)), open, "nothing changes before");
        assert_ne!(rules.open(now + change), open, "and then it does");
    }

    #[test]
    fn windows_open_and_close_over_midnight_too() {
        check(&[(9, 17)], 8, false, 1);
        check(&[(9, 17)], 9, true, 8);
        check(&[(9, 17)], 17, false, 16);
        check(&[(22, 6)], 23, true, 7);
        check(&[(22, 6)], 3, true, 3);
        check(&[(22, 6)], 12, false, 10);
        check(&[(1, 2), (4, 5)], 3, false, 1);
    }

    #[test]
    fn without_windows_or_without_the_time_uploads_are_allowed() {
        let now = begin();
        let mut none = rules(&[]);
        none.set_time(0, now);
        assert!(none.open(now) && none.changes_at(now).is_none());
        let unknown = rules(&[(9, 17)]);
        assert!(unknown.open(now) && unknown.changes_at(now).is_none());
    }

    #[test]
    fn time_goes_on_between_two_readings() {
        let (mut rules, now) = (rules(&[(9, 17)]), begin());
        rules.set_time(8 * HOUR, now);
        assert!(!rules.open(now + Duration::from_secs(3599)));
        assert!(rules.open(now + Duration::from_secs(3600)));
        assert!(rules.open(now + Duration::from_secs(3600 + 86_400 * 3)), "days later as well");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        assert_eq!(Window::new(0, 1440), Err(WindowError::Minute { minute: 1440 }));
        assert_eq!(Window::new(5, 5), Err(WindowError::Empty));
    }
}
