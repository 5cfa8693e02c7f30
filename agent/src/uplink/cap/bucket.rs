//! A token bucket without a clock: told what was sent when, it says when more may be sent.
//!
//! It keeps one instant, the one at which all that was sent is paid for. Sending is allowed while that instant is at
//! most [`BURST`] ahead, so any window of length `w` sees at most `rate * (w + BURST)` bytes and one datagram group.

use std::time::{Duration, Instant};

/// How far sending may run ahead of the rate.
///
/// Long enough to catch up after a late timer, and 0.5 % of the ten seconds in which the cap is judged.
pub(super) const BURST: Duration = Duration::from_millis(50);

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes a second; `None`: no bound.
    rate: Option<u64>,
    /// When everything that was sent is paid for.
    paid_at: Instant,
}

impl Bucket {
    /// A bucket from which nothing was taken before `now`.
    pub(super) fn new(rate: Option<u64>, now: Instant) -> Self {
        Self { rate, paid_at: now }
    }

    /// Another rate from now on. What was sent before is paid for at the old one.
    pub(super) fn set_rate(&mut self, rate: Option<u64>, now: Instant) {
        if self.rate.is_none() {
            self.paid_at = now;
        }
        self.rate = rate;
    }

    /// When something may be sent; `None`: at any time.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let rate = self.rate?;
        // A rate of nothing stops everything until another one is set; a day is as good as for ever.
        if rate == 0 {
            return Some(self.paid_at + Duration::from_secs(86_400));
        }
        // Before the process began, everything is ready.
        self.paid_at.checked_sub(BURST)
    }

    /// Takes what was sent.
    pub(super) fn sent(&mut self, bytes: u64, now: Instant) {
        if let Some(rate) = self.rate {
            let nanos = u128::from(bytes) * NANOS_PER_SEC / u128::from(rate.max(1));
            let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.paid_at = self.paid_at.max(now) + cost;
        }
    }

    /// Bytes of one burst; `None`: no bound.
    pub(super) fn burst_bytes(&self) -> Option<u64> {
        self.rate.map(|rate| (u128::from(rate) * BURST.as_nanos() / NANOS_PER_SEC) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 100_000;

    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant can only be had from the clock; tests move it themselves"
    )]
    fn begin() -> Instant {
        Instant::now()
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Sends `bytes` at a time as early as allowed, looking every `glance`; returns when each left.
    fn greedy(bucket: &mut Bucket, from: Instant, until: Instant, glance: Duration, bytes: u64) -> Vec<Instant> {
        let (mut now, mut sent) = (from, Vec::new());
        while now < until {
            while bucket.ready_at().is_none_or(|at| at <= now) {
                bucket.sent(bytes, now);
                sent.push(now);
            }
            now += glance;
        }
        sent
    }

    /// Most and least bytes in any window of ten seconds between `from` and `until`.
    fn windows(sent: &[Instant], bytes: u64, from: Instant, until: Instant) -> (u64, u64) {
        let mut seen = Vec::new();
        let mut begin = from;
        while begin + Duration::from_secs(10) <= until {
            let inside = sent.iter().filter(|at| (begin..begin + Duration::from_secs(10)).contains(*at)).count();
            seen.push(inside as u64 * bytes);
            begin += ms(100);
        }
        (*seen.iter().max().unwrap(), *seen.iter().min().unwrap())
    }

    #[test]
    fn a_backlog_gets_its_rate_within_a_percent_over_any_ten_seconds() {
        // Timers that come late by up to most of a burst change nothing.
        for glance in [1, 7, 40] {
            let start = begin();
            let until = start + Duration::from_secs(30);
            let sent = greedy(&mut Bucket::new(Some(RATE), start), start, until, ms(glance), 1452);
            let (most, least) = windows(&sent, 1452, start, until);
            assert!(most <= RATE * 101 / 10, "{most} bytes in ten seconds, timers {glance} ms late");
            assert!(least >= RATE * 99 / 10, "{least} bytes in ten seconds, timers {glance} ms late");
        }
    }

    #[test]
    fn silence_is_not_saved_up_beyond_one_burst() {
        let start = begin();
        let mut bucket = Bucket::new(Some(RATE), start);
        let later = start + Duration::from_secs(3600);
        let sent = greedy(&mut bucket, later, later + ms(1), ms(1), 1000);
        assert_eq!(sent.len(), 6, "5000 bytes of burst, and the datagram that crosses its end");
    }

    #[test]
    fn a_large_group_is_waited_for_before_the_next_one() {
        let start = begin();
        let mut bucket = Bucket::new(Some(RATE), start);
        bucket.sent(100_000, start);
        assert_eq!(bucket.ready_at(), Some(start + Duration::from_secs(1) - BURST));
    }

    #[test]
    fn another_rate_holds_at_once_and_no_rate_bounds_nothing() {
        let start = begin();
        let mut bucket = Bucket::new(None, start);
        bucket.sent(u64::MAX, start);
        assert_eq!((bucket.ready_at(), bucket.burst_bytes()), (None, None));
        bucket.set_rate(Some(RATE), start + ms(10));
        bucket.sent(10_000, start + ms(10));
        assert_eq!(bucket.ready_at(), Some(start + ms(10) + ms(100) - BURST));
        bucket.set_rate(Some(RATE / 10), start + ms(10));
        bucket.sent(1_000, start + ms(10));
        assert_eq!(bucket.ready_at(), Some(start + ms(10) + ms(200) - BURST), "the old debt at the old rate");
        bucket.set_rate(Some(0), start);
        assert!(bucket.ready_at() > Some(start + Duration::from_secs(3600)), "a rate of 0 stops everything");
    }
}
