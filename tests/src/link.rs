//! A link that is slow, far and lossy, as numbers: told what is sent when, it says what arrives when.
//!
//! Pure and seeded. A packet waits in the bottleneck's buffer (or is dropped where that is full), takes its turn at the
//! link's rate, may be lost on the way, and arrives after the delay; it may arrive twice, or behind later ones.
//! Losses come in bursts by a Gilbert-Elliott process that runs in time, not in packets: two transfers over the same
//! seed lose at the same moments, so that they can be compared.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Bytes of the packet that a burst of losses is counted in.
const PACKET_BYTES: u64 = 1200;

/// Smallest buffer before a bottleneck: some twenty packets.
const BUFFER_BYTES_MIN: u64 = 24 * 1024;

/// A link, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkConfig {
    /// What it is called.
    pub name: &'static str,
    /// Bits a second, each way.
    pub bits_per_sec: u64,
    /// Delay there and back, without any waiting; half of it each way.
    pub round_trip: Duration,
    /// Part of the packets that is lost, each way.
    pub loss: f64,
    /// Packets at the link's rate that one burst of losses lasts, on average.
    pub burst_packets: f64,
    /// Part of the packets that arrives twice.
    pub duplicate: f64,
    /// Part of the packets that arrives three packets late.
    pub reorder: f64,
}

impl LinkConfig {
    /// The bottleneck's buffer: what the link carries in one round trip, or some twenty packets.
    pub fn buffer_bytes(&self) -> u64 {
        (self.bytes_in(self.round_trip)).max(BUFFER_BYTES_MIN)
    }

    /// How long a full buffer makes a packet wait.
    pub fn buffer_time(&self) -> Duration {
        self.time_of(self.buffer_bytes())
    }

    /// Bytes that the link carries in `time`.
    pub fn bytes_in(&self, time: Duration) -> u64 {
        (self.bits_per_sec as f64 / 8.0 * time.as_secs_f64()) as u64
    }

    fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 * 8.0 / self.bits_per_sec as f64)
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    rng: ChaCha8Rng,
    /// Decides about losses alone, so that they do not depend on what is sent.
    loss_rng: ChaCha8Rng,
    busy_until: Instant,
    losing: bool,
    loses_or_not_until: Instant,
}

/// When a packet's copies arrive: none, one or two.
pub type Arrivals = Vec<Instant>;

impl Link {
    /// A link that nothing is on before `now`.
    pub fn new(config: LinkConfig, seed: u64, now: Instant) -> Self {
        let mut loss_rng = ChaCha8Rng::seed_from_u64(seed);
        let rng = ChaCha8Rng::seed_from_u64(loss_rng.random());
        let mut link = Self { config, rng, loss_rng, busy_until: now, losing: true, loses_or_not_until: now };
        link.turn();
        link
    }

    /// Takes a packet.
    pub fn send(&mut self, bytes: usize, now: Instant) -> Arrivals {
        let begin = self.busy_until.max(now);
        if self.config.bytes_in(begin - now) + bytes as u64 > self.config.buffer_bytes() {
            return Vec::new();
        }
        let departs = begin + self.config.time_of(bytes as u64);
        self.busy_until = departs;
        while self.loses_or_not_until <= departs {
            self.turn();
        }
        let (reordered, duplicated) =
            (self.rng.random_bool(self.config.reorder), self.rng.random_bool(self.config.duplicate));
        if self.losing {
            return Vec::new();
        }
        let packet = self.config.time_of(PACKET_BYTES);
        let arrives = departs + self.config.round_trip / 2 + if reordered { packet * 3 } else { Duration::ZERO };
        let mut arrivals = vec![arrives];
        if duplicated {
            arrivals.push(arrives + packet);
        }
        arrivals
    }

    /// Begins the next run of losses, or of none.
    fn turn(&mut self) {
        let LinkConfig { loss, burst_packets, .. } = self.config;
        self.losing = !self.losing && loss > 0.0;
        let packets_mean = match (self.losing, loss > 0.0) {
            (true, _) => burst_packets,
            (false, true) => burst_packets * (1.0 - loss) / loss,
            (false, false) => 1e9,
        };
        // Exponential: whether a burst goes on does not depend on how long it has lasted.
        let packets = -packets_mean * self.loss_rng.random_range(f64::MIN_POSITIVE..1.0).ln();
        self.loses_or_not_until += self.config.time_of(PACKET_BYTES).mul_f64(packets);
    }
}

/// The ladder of links, from good to bad, as iroh tests with (`degrade.rs`), and a satellite.
pub const RUNGS: [LinkConfig; 8] = [
    rung("good-wifi", 100_000, 16, 0.001, 1.0),
    rung("congested-wifi", 25_000, 40, 0.01, 6.0),
    rung("weak-4g", 8_000, 90, 0.02, 1.0),
    rung("slow-3g", 3_000, 200, 0.03, 1.0),
    rung("congested-cellular", 1_500, 300, 0.05, 1.0),
    rung("very-bad", 800, 450, 0.08, 1.0),
    rung("satellite", 25_000, 600, 0.015, 1.0),
    rung("barely-usable", 500, 450, 0.12, 25.0),
];

const fn rung(name: &'static str, kbits: u64, round_trip_ms: u64, loss: f64, burst_packets: f64) -> LinkConfig {
    LinkConfig {
        name,
        bits_per_sec: kbits * 1000,
        round_trip: Duration::from_millis(round_trip_ms),
        loss,
        burst_packets,
        duplicate: 0.001,
        reorder: 0.001,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: LinkConfig =
        LinkConfig { loss: 0.0, duplicate: 0.0, reorder: 0.0, ..rung("test", 1000, 100, 0.0, 1.0) };

    #[expect(clippy::disallowed_methods, reason = "an Instant can only be had from the clock")]
    fn begin() -> Instant {
        Instant::now()
    }

    #[test]
    fn packets_take_their_turn_at_the_rate_and_a_full_buffer_drops() {
        let now = begin();
        let mut link = Link::new(MBIT, 1, now);
        assert_eq!(MBIT.buffer_bytes(), 24 * 1024);
        let sent: Vec<Arrivals> = (0..30).map(|_| link.send(1250, now)).collect();
        assert_eq!(sent[0], [now + Duration::from_millis(60)], "10 ms of sending, 50 ms of way");
        assert_eq!(sent[3], [now + Duration::from_millis(90)], "behind three others");
        assert_eq!(sent.iter().filter(|arrivals| !arrivals.is_empty()).count(), 19, "24 KiB hold 19 packets");
        assert!(!link.send(1250, now + Duration::from_secs(1)).is_empty(), "the buffer has drained");
    }

    #[test]
    fn losses_are_as_many_and_as_bursty_as_asked_for_and_the_same_for_the_same_seed() {
        let config = LinkConfig { loss: 0.12, burst_packets: 25.0, ..MBIT };
        let lost = |seed, count: u32| {
            let mut now = begin();
            let mut link = Link::new(config, seed, now);
            let mut lost = Vec::new();
            for _ in 0..count {
                lost.push(link.send(1200, now).is_empty());
                now += config.time_of(PACKET_BYTES);
            }
            lost
        };
        let seen = lost(3, 200_000);
        let part = seen.iter().filter(|lost| **lost).count() as f64 / seen.len() as f64;
        assert!((0.10..0.14).contains(&part), "{part} lost");
        let bursts = seen.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        let length = part * seen.len() as f64 / bursts as f64;
        assert!((20.0..30.0).contains(&length), "{length} packets in a burst");
        assert_eq!(lost(3, 2000), seen[..2000]);
        assert_ne!(lost(4, 2000), seen[..2000]);
    }

    #[test]
    fn some_packets_arrive_twice_or_late() {
        let config = LinkConfig { duplicate: 0.5, reorder: 0.5, ..MBIT };
        let mut now = begin();
        let mut link = Link::new(config, 1, now);
        let (mut twice, mut late) = (0, 0);
        for _ in 0..200 {
            let arrivals = link.send(1200, now);
            twice += usize::from(arrivals.len() == 2);
            late += usize::from(arrivals[0] > now + Duration::from_millis(65));
            now += Duration::from_millis(20);
        }
        assert!((60..140).contains(&twice) && (60..140).contains(&late), "{twice} twice, {late} late");
    }
}
