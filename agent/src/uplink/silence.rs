//! When a hub that says nothing any more is looked for from another port.
//!
//! Pure. A router on the way may have forgotten the robot's old address, or a network has gone that the old socket was
//! bound to; QUIC connections survive a change of address, so trying another one costs nothing.

use std::time::{Duration, Instant};

/// Longest silence of a hub that was spoken to: several round trips over the worst link, and a burst of losses.
const SILENCE_MAX: Duration = Duration::from_secs(8);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Silence {
    heard: u64,
    sent: u64,
    since: Option<Instant>,
}

impl Silence {
    /// Takes the datagrams heard and sent so far; says whether to try another port now.
    pub(super) fn look(&mut self, heard: u64, sent: u64, now: Instant) -> bool {
        if heard != self.heard {
            *self = Self { heard, sent, since: None };
            return false;
        }
        if sent == self.sent {
            return false;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < SILENCE_MAX {
            return false;
        }
        *self = Self { heard, sent, since: None };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::now;

    #[test]
    fn another_port_is_tried_when_what_was_said_is_not_answered_for_long() {
        let (mut silence, begin) = (Silence::default(), now());
        let at = |secs: u64| begin + Duration::from_secs(secs);
        assert!(!silence.look(1, 1, at(0)));
        assert!(!silence.look(1, 1, at(60)), "nobody said anything");
        assert!(!silence.look(1, 2, at(61)));
        assert!(!silence.look(1, 5, at(68)));
        assert!(silence.look(1, 6, at(69)), "eight seconds after something was said");
        assert!(!silence.look(1, 7, at(70)));
        assert!(silence.look(1, 8, at(78)), "and again");
        assert!(!silence.look(1, 9, at(79)));
        assert!(!silence.look(2, 9, at(86)), "heard");
        assert!(!silence.look(2, 10, at(87)), "counted anew");
    }
}
