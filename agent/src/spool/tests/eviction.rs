//! A full spool gives up the least valuable episodes, says so, and goes on recording.

use zunft_protocol::message::{EvictionReason, Tombstone};

use super::*;
use crate::spool::eviction::EvictionPolicy;

/// Room for three episodes and a bit, and for four tombstones in a segment.
const SEGMENTS_MAX: u64 = 16;

fn evicting(pinned: &[&str]) -> EvictionPolicy {
    EvictionPolicy { evicts: true, pinned_tasks: pinned.iter().map(|task| task.parse().unwrap()).collect() }
}

fn opened(disk: SimDisk, segments_max: u64, policy: EvictionPolicy) -> Bench {
    Bench::opened(disk, SEGMENT_BYTES, segments_max, POLICY, policy).unwrap()
}

fn full(policy: EvictionPolicy) -> Bench {
    opened(SimDisk::new(0), SEGMENTS_MAX, policy)
}

/// What an episode is, for the order in which it goes.
#[derive(Clone, Copy)]
struct Kind {
    task: &'static str,
    outcome: Outcome,
    intervention: bool,
}

const EPISODE_STEPS: u64 = 160;

const PLAIN: Kind = Kind { task: "push", outcome: Outcome::Success, intervention: false };

impl Bench {
    /// Records an episode that has a segment for itself, so that it can go alone.
    fn episode(&mut self, number: u8, kind: Kind) -> Option<Refusal> {
        self.episode_with(number, kind, |_| {})
    }

    fn episode_with(&mut self, number: u8, kind: Kind, mut committed: impl FnMut(&Self)) -> Option<Refusal> {
        let tracker = self.begin_task(number, kind.task);
        for step in 0..EPISODE_STEPS {
            let intervention = kind.intervention && step == 5;
            self.worker.apply(Command::Step { recording: recording(number), intervention, row: row(step) }, self.now);
            if step % 20 == 0 {
                self.commit();
                committed(self);
            }
        }
        let end = EpisodeEnd::Terminated;
        let command = Command::End { recording: recording(number), outcome: kind.outcome, end, reply: None };
        self.worker.apply(command, self.now);
        self.commit();
        committed(self);
        tracker.refusal.get().cloned()
    }

    fn ordinals(&self) -> Vec<u64> {
        self.episodes().iter().map(|(episode, _)| episode.ordinal).collect()
    }

    fn tombstones(&self) -> Vec<Tombstone> {
        self.shared.index().tombstones(usize::MAX).cloned().collect()
    }

    /// The hub has stored everything that it was told.
    fn tell(&self) {
        let told: Vec<u64> = self.tombstones().iter().map(|tombstone| tombstone.ordinal).collect();
        self.shared.index().forget_tombstones(&told);
    }
}

#[test]
fn the_least_valuable_goes_first_and_the_oldest_among_equals() {
    let kinds = [
        Kind { intervention: true, outcome: Outcome::Unknown, ..PLAIN },
        Kind { outcome: Outcome::Failure, ..PLAIN },
        PLAIN,
        Kind { outcome: Outcome::Unknown, ..PLAIN },
        PLAIN,
        Kind { outcome: Outcome::Unknown, ..PLAIN },
    ];
    let mut bench = opened(SimDisk::new(0), 1000, evicting(&[]));
    for (number, kind) in (0..).zip(kinds) {
        bench.episode(number, kind);
    }
    // From here on the spool is full, and each recording takes the place of another one.
    bench.worker.room_mut().spool_bytes_max = bench.shared.disk_bytes.load(Ordering::Relaxed);
    let mut went = Vec::new();
    for number in 10..30 {
        let refused = bench.episode_with(number, Kind { intervention: true, ..PLAIN }, |bench| {
            went.extend(bench.tombstones().iter().map(|tombstone| tombstone.ordinal));
            bench.tell();
        });
        assert_eq!(refused, None, "the spool goes on recording");
    }
    assert_eq!(went[..6], [3, 5, 2, 4, 1, 0]);
    let newer: Vec<u64> = went[6..].to_vec();
    assert!(newer.is_sorted() && !newer.is_empty(), "{newer:?}");
    let held: Vec<u64> = bench.ordinals();
    assert_eq!(went.len() + held.len(), 26, "every recording is held or told of");
}

#[test]
fn what_is_given_up_is_told_until_the_hub_knows_even_after_a_power_cut() {
    let mut bench = full(evicting(&[]));
    let mut number = 0;
    while bench.tombstones().len() < 2 {
        bench.episode(number, PLAIN);
        number += 1;
    }
    let before = bench.tombstones();
    assert_eq!(
        before[0],
        Tombstone {
            recording: recording(0),
            ordinal: 0,
            task: "push".parse().unwrap(),
            outcome: Outcome::Success,
            interventions: false,
            steps: EPISODE_STEPS,
            bytes: before[0].bytes,
            reason: EvictionReason::Quota,
        }
    );
    assert!(before[0].bytes > 0);
    let restarted = |bench: &Bench| opened(SimDisk::of(bench.disk.synced()), SEGMENTS_MAX, evicting(&[]));
    let mut bench = restarted(&bench);
    assert_eq!(bench.tombstones(), before);
    bench.tell();
    for number in number..number + 20 {
        assert_eq!(bench.episode(number, PLAIN), None);
    }
    let untold = bench.tombstones();
    assert_eq!(untold.len(), 4, "no more are kept than have a place; the oldest are forgotten");
    let again = restarted(&bench).tombstones();
    assert!(untold.iter().all(|tombstone| again.contains(tombstone)), "{again:?}");
    assert!(bench.disk.segments() as u64 <= SEGMENTS_MAX, "tombstones hold no segments for themselves");
}

#[test]
fn pinned_tasks_stay_and_a_spool_full_of_them_stops() {
    let mut bench = full(evicting(&["keep"]));
    let keep = Kind { task: "keep", outcome: Outcome::Unknown, ..PLAIN };
    bench.episode(0, keep);
    for number in 1..20 {
        assert_eq!(bench.episode(number, PLAIN), None);
    }
    assert!(bench.ordinals().contains(&0), "less valuable than any other, but pinned");
    let refusal = (20..60).find_map(|number| bench.episode(number, keep));
    assert!(matches!(refusal, Some(Refusal::SpoolFull(_))), "{refusal:?}");
    assert!(bench.ordinals().contains(&0));
}

#[test]
fn an_open_recording_is_never_given_up() {
    let mut bench = full(evicting(&[]));
    let tracker = bench.begin(0);
    bench.steps(0, 0..200);
    bench.commit();
    for number in 1..20 {
        bench.episode(number, PLAIN);
    }
    assert!(tracker.refusal.get().is_none());
    bench.end(0);
    bench.commit();
    let whole = bench.episodes().into_iter().find(|(episode, _)| episode.ordinal == 0);
    assert_eq!(whole.unwrap().1.steps, 200);
}

#[test]
fn a_spool_that_is_told_to_stop_gives_up_nothing() {
    let mut bench = full(EvictionPolicy::default());
    let refusal = (0..40).find_map(|number| bench.episode(number, PLAIN));
    assert!(matches!(refusal, Some(Refusal::SpoolFull(_))));
    assert!(bench.tombstones().is_empty());
    assert_eq!(bench.ordinals().first(), Some(&0));
}

#[test]
fn a_disk_that_others_fill_costs_no_more_than_it_needs_and_nothing_where_that_would_not_help() {
    let mut bench = opened(SimDisk::new(0), 1000, evicting(&[]));
    for number in 0..8 {
        bench.episode(number, PLAIN);
    }
    bench.disk.set_free_bytes(0);
    for number in 10..12 {
        assert_eq!(bench.episode(number, PLAIN), None);
    }
    let gone: Vec<u64> = bench.tombstones().iter().map(|tombstone| tombstone.ordinal).collect();
    assert!(gone.starts_with(&[0]) && gone.len() <= 4, "{gone:?}");
    assert!(bench.tombstones().iter().all(|tombstone| tombstone.reason == EvictionReason::DiskFull));
    // Now even everything that the spool could give up would not make room.
    bench.worker.room_mut().free_bytes_min = 1000 * SEGMENT_BYTES;
    let before = bench.ordinals().len();
    let refusal = (20..24).find_map(|number| bench.episode(number, PLAIN));
    assert!(matches!(refusal, Some(Refusal::SpoolFull(_))), "{refusal:?}");
    assert!(bench.ordinals().len() >= before);
}
