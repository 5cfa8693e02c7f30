//! When a robot may upload, and what: decided from configuration and the time of day, without a clock.

use std::time::{Duration, Instant};

use super::agent::UploadClass;
use crate::upload_policy::{UploadMode, Window};

const SECS_OF_DAY: u32 = 86_400;

/// Whether a second of the day is in a window.
fn contains(window: Window, secs_of_day: u32) -> bool {
    let (from, to) = edges(window);
    if from < to { (from..to).contains(&secs_of_day) } else { secs_of_day >= from || secs_of_day < to }
}

/// A window's first second, and the first after it.
fn edges(window: Window) -> (u32, u32) {
    let (from, to) = window.minutes();
    (u32::from(from) * 60, u32::from(to) * 60)
}

/// What the operator allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadPolicy {
    /// When; none: at any time.
    pub windows: Vec<Window>,
    /// Whether every byte costs: then only episodes whose outcome is known are sent.
    pub metered: bool,
    /// What is sent without being asked for.
    pub mode: UploadMode,
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

    /// Whether nothing but the manifest is sent of an episode that nobody asked for.
    pub(super) fn describes(&self) -> bool {
        self.policy.mode == UploadMode::MetadataFirst
    }

    pub(super) fn set_time(&mut self, secs_of_day: u32, now: Instant) {
        self.told = Some((secs_of_day % SECS_OF_DAY, now));
    }

    /// Whether uploads are allowed now. A robot that does not know the time uploads: late data is worse than a busy link.
    pub(super) fn open(&self, now: Instant) -> bool {
        match self.secs_of_day(now) {
            Some(secs) if !self.policy.windows.is_empty() => {
                self.policy.windows.iter().any(|&window| contains(window, secs))
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
        let edges = self.policy.windows.iter().flat_map(|&window| <[u32; 2]>::from(edges(window)));
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
        Rules { policy: UploadPolicy { windows, ..UploadPolicy::default() }, told: None }
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
}
