//! What uploads that broke off have left, until their robots come back: bounded in bytes and in time.
//!
//! Pure. It is a cache: what is dropped is sent again, and a hub that was killed has forgotten everything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use zunft_protocol::ids::EpisodeId;
use zunft_protocol::session::hub::Kept;

use crate::services::{BudgetShare, RobotKey};

/// How long a robot may stay away: a lift, a tunnel, a reboot.
const KEEP_FOR: Duration = Duration::from_secs(600);

/// Left-overs of one robot: as many as it may have uploads open, and of the next ones while it comes and goes.
const PER_ROBOT_MAX: usize = 8;

#[derive(Debug)]
struct Part {
    kept: Kept,
    since: Instant,
    /// Its part of the memory for experience that is not committed yet.
    _share: BudgetShare,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Broken {
    bytes_max: u64,
    parts: BTreeMap<(RobotKey, EpisodeId), Part>,
}

impl Broken {
    /// Holds at most `bytes_max`; beyond, the oldest go first.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, parts: BTreeMap::new() }
    }

    /// Keeps what the upload of `episode` left; `share` is its memory.
    pub(crate) fn keep(&mut self, robot: &RobotKey, episode: EpisodeId, kept: Kept, share: BudgetShare, now: Instant) {
        self.parts.insert((robot.clone(), episode), Part { kept, since: now, _share: share });
        while self.parts.keys().filter(|(of, _)| of == robot).count() > PER_ROBOT_MAX {
            self.drop_oldest(|of| of == robot);
        }
        while self.bytes() > self.bytes_max {
            self.drop_oldest(|_| true);
        }
        self.forget_old(now);
    }

    /// What is left of the upload of `episode`, if anything; then it is the caller's.
    pub(crate) fn take(&mut self, robot: &RobotKey, episode: EpisodeId, now: Instant) -> Option<Kept> {
        self.forget_old(now);
        self.parts.remove(&(robot.clone(), episode)).map(|part| part.kept)
    }

    /// Drops everything: uploads under way need the memory.
    pub(crate) fn clear(&mut self) {
        self.parts.clear();
    }

    fn bytes(&self) -> u64 {
        self.parts.values().map(|part| part.kept.bytes()).sum()
    }

    fn forget_old(&mut self, now: Instant) {
        self.parts.retain(|_, part| now.saturating_duration_since(part.since) < KEEP_FOR);
    }

    fn drop_oldest(&mut self, of: impl Fn(&RobotKey) -> bool) {
        let among = self.parts.iter().filter(|((robot, _), _)| of(robot));
        let oldest = among.min_by_key(|(_, part)| part.since).map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.parts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::services::Budget;
    use zunft_protocol::ids::ChunkId;
    use zunft_protocol::message::ChunkBytes;

    const MIB: usize = 1 << 20;

    struct World {
        broken: Broken,
        budget: Budget,
        now: Instant,
    }

    fn world() -> World {
        World { broken: Broken::new(4 << 20), budget: Budget::new(8 << 20), now: clock::now() }
    }

    fn robot(name: &str) -> RobotKey {
        ("acme".parse().unwrap(), name.parse().unwrap())
    }

    fn episode(n: u8) -> EpisodeId {
        EpisodeId::of(&[n])
    }

    impl World {
        fn keep(&mut self, of: &str, n: u8, bytes: usize) {
            let chunks = vec![ChunkBytes { id: ChunkId::of(&[n]), bytes: vec![n; bytes] }];
            let kept = Kept { chunks, prefixes: BTreeMap::new() };
            let share = self.budget.reserve(kept.bytes()).unwrap();
            self.now += Duration::from_secs(1);
            self.broken.keep(&robot(of), episode(n), kept, share, self.now);
        }

        fn take(&mut self, of: &str, n: u8) -> Option<u64> {
            self.broken.take(&robot(of), episode(n), self.now).map(|kept| kept.bytes())
        }
    }

    #[test]
    fn a_robot_gets_back_what_its_own_upload_left_and_once() {
        let mut world = world();
        world.keep("r1", 1, 10);
        assert_eq!(world.take("r2", 1), None, "another robot's");
        assert_eq!(world.take("r1", 2), None, "another episode's");
        assert_eq!((world.take("r1", 1), world.take("r1", 1)), (Some(10), None));
    }

    #[test]
    fn the_oldest_make_room_and_give_their_memory_back() {
        let mut world = world();
        for n in 0..6 {
            world.keep("r1", n, MIB);
        }
        assert_eq!((world.take("r1", 0), world.take("r1", 1)), (None, None));
        assert_eq!(world.take("r1", 2), Some(MIB as u64));
        world.broken.clear();
        assert!(world.budget.reserve(8 << 20).is_some(), "all memory is free again");
    }

    #[test]
    fn one_robot_cannot_crowd_out_the_others_by_number() {
        let mut world = world();
        world.keep("r2", 200, 10);
        for n in 0..20 {
            world.keep("r1", n, 10);
        }
        assert_eq!(world.broken.parts.len(), PER_ROBOT_MAX + 1);
        assert_eq!(world.take("r2", 200), Some(10));
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut world = world();
        world.keep("r1", 1, 10);
        world.now += KEEP_FOR;
        assert_eq!(world.take("r1", 1), None);
        assert!(world.budget.reserve(8 << 20).is_some());
    }
}
