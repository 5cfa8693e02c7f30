//! The spool on a disk that loses power: what was synced survives, and nothing passes for what it is not.

mod degradation;
mod encryption;
mod eviction;
mod model;
mod sim_disk;
mod streams;

use std::collections::BTreeMap;

use zunft_protocol::chunk::Chunk;
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{Manifest, Truncation, WallQuality};
use zunft_protocol::ids::{BootId, ChunkId};

use self::sim_disk::{Fault, SimDisk};
use super::disk::{Disk, SECTOR_BYTES, SegmentNumber};
use super::index::Location;
use super::*;

const SEGMENT_BYTES: u64 = 4096;
const POLICY: CommitPolicy =
    CommitPolicy { interval: Duration::from_millis(100), bytes: 1 << 20, chunk_bytes: CHUNK_BYTES_TARGET };

/// A spool without its thread.
struct Bench {
    disk: SimDisk,
    keyring: Keyring,
    shared: Arc<Shared>,
    worker: Worker<SimDisk>,
    now: Instant,
}

fn embodiment() -> Embodiment {
    Embodiment {
        name: "arm".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
    }
}

fn row(step: u64) -> Vec<u8> {
    let mut row = (step as i64).to_le_bytes().to_vec();
    for value in [step as f32, 0.5, -1.0, f32::NAN] {
        row.extend_from_slice(&value.to_le_bytes());
    }
    row
}

fn clock() -> Clock {
    Clock {
        boot: BootId::from_bytes([2; 16]),
        begin_monotonic_ns: 0,
        begin_wall_ns: 1,
        wall_quality: WallQuality::Unsynchronised,
    }
}

fn recording(number: u8) -> RecordingId {
    RecordingId::from_bytes([number; 16])
}

fn identity() -> Identity {
    Identity { tenant: "acme".parse().unwrap(), site: "hall".parse().unwrap(), robot: "r1".parse().unwrap() }
}

/// No encryption.
fn clear() -> Keyring {
    Keyring::new(None, Vec::new(), || unreachable!("nothing is encrypted"))
}

impl Bench {
    fn on(disk: SimDisk, segments_max: u64) -> Self {
        Self::sized(disk, SEGMENT_BYTES, segments_max)
    }

    fn sized(disk: SimDisk, segment_bytes: u64, segments_max: u64) -> Self {
        Self::opened(disk, segment_bytes, segments_max, POLICY, EvictionPolicy::default()).unwrap()
    }

    fn opened(
        disk: SimDisk,
        segment_bytes: u64,
        segments_max: u64,
        policy: CommitPolicy,
        eviction: EvictionPolicy,
    ) -> Result<Self, OpenError> {
        Self::keyed(disk, segment_bytes, segments_max, policy, eviction, clear())
    }

    fn keyed(
        disk: SimDisk,
        segment_bytes: u64,
        segments_max: u64,
        policy: CommitPolicy,
        eviction: EvictionPolicy,
        keyring: Keyring,
    ) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::new(0, keyring.encrypts()));
        let room = Room { segment_bytes, spool_bytes_max: segments_max * segment_bytes, free_bytes_min: 0 };
        let for_worker = Arc::clone(&shared);
        let mut worker = Worker::open(disk.clone(), room, keyring.clone(), policy, eviction, identity(), for_worker)?;
        let now = now();
        worker.commit(now);
        Ok(Self { disk, keyring, shared, worker, now })
    }

    fn begin(&mut self, number: u8) -> Arc<Tracker> {
        self.begin_task(number, "push")
    }

    fn begin_task(&mut self, number: u8, task: &str) -> Arc<Tracker> {
        let tracker = Arc::new(Tracker::default());
        let opening = Opening {
            recording: recording(number),
            task: task.parse().unwrap(),
            embodiment: embodiment(),
            actor: Actor::Script,
            clock: clock(),
        };
        self.worker.apply(Command::Begin { opening: Box::new(opening), tracker: Arc::clone(&tracker) }, self.now);
        tracker
    }

    fn steps(&mut self, number: u8, steps: std::ops::Range<u64>) {
        for step in steps {
            let command = Command::Step { recording: recording(number), intervention: step % 10 == 3, row: row(step) };
            self.worker.apply(command, self.now);
        }
    }

    fn end(&mut self, number: u8) {
        self.end_for(number, None);
    }

    fn end_for(&mut self, number: u8, reply: Option<worker::Reply>) {
        let (outcome, end) = (Outcome::Success, EpisodeEnd::Terminated);
        self.worker.apply(Command::End { recording: recording(number), outcome, end, reply }, self.now);
    }

    fn commit(&mut self) {
        self.worker.commit(self.now);
    }

    fn free(&mut self, ordinal: u64) {
        self.worker.apply(Command::Free { ordinal, receipt: vec![7; 64] }, self.now);
    }

    fn read(&self, location: Location) -> Vec<u8> {
        log::read_body(&self.disk, &self.keyring, location).unwrap().expect("a record opens")
    }

    /// Reads an episode's steps and checks that they are the first ones of their recording.
    fn steps_of(&self, episode: &StoredEpisode, manifest: &Manifest) -> u64 {
        let mut step = 0;
        for (chunk, location) in &episode.chunks {
            let stored = self.read(*location);
            assert_eq!(ChunkId::of(&stored), chunk.id);
            let read = Chunk::decode(&stored, &manifest.streams[0].schema).unwrap();
            for state in read.column_f32(OBSERVATION_STATE).unwrap().chunks_exact(2) {
                assert_eq!(state[0], step as f32, "every step is there, once and in order");
                step += 1;
            }
            assert_eq!(read.steps(), chunk.steps);
        }
        assert_eq!(step, manifest.steps);
        step
    }

    fn episodes(&self) -> Vec<(StoredEpisode, Manifest)> {
        let index = self.shared.index();
        let episodes = index.sealed().values().map(|episode| {
            let manifest = Manifest::decode(&self.read(episode.manifest)).unwrap();
            self.steps_of(episode, &manifest);
            (episode.clone(), manifest)
        });
        episodes.collect()
    }
}

#[test]
fn an_ended_episode_is_whole_after_a_power_cut() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    let tracker = bench.begin(1);
    bench.steps(1, 0..200);
    assert_eq!(tracker.on_disk.load(Ordering::Relaxed), 0);
    bench.end(1);
    bench.commit();
    assert_eq!(tracker.on_disk.load(Ordering::Relaxed), 200);
    let before = bench.episodes();
    let after = Bench::on(SimDisk::of(bench.disk.synced()), 100).episodes();
    assert_eq!(before, after);
    let (stored, manifest) = &after[0];
    assert_eq!((manifest.steps, manifest.end, manifest.outcome), (200, EpisodeEnd::Terminated, Outcome::Success));
    assert_eq!(manifest.interventions.len(), 20);
    assert_eq!(stored.episode, manifest.id());
}

#[test]
fn steps_are_due_after_the_interval_and_an_end_at_once() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    assert_eq!(bench.worker.due(), None);
    bench.begin(1);
    bench.steps(1, 0..1);
    assert_eq!(bench.worker.due(), Some(bench.now + POLICY.interval));
    bench.end(1);
    assert_eq!(bench.worker.due(), Some(bench.now));
}

#[test]
fn a_log_cut_at_any_byte_keeps_every_synced_step() {
    let mut bench = Bench::sized(SimDisk::new(0), 2 * SEGMENT_BYTES, 100);
    let tracker = bench.begin(1);
    let mut synced = Vec::new();
    for group in 0..4 {
        bench.steps(1, group * 10..group * 10 + 10);
        bench.commit();
        synced.push((bench.disk.synced(), tracker.on_disk.load(Ordering::Relaxed)));
    }
    bench.end(1);
    bench.commit();
    let last = bench.disk.synced();
    let (&segment, bytes) = last.iter().next().unwrap();
    let written = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    for cut in 0..=written {
        let mut torn = last.clone();
        torn.get_mut(&segment).unwrap()[cut..].fill(0);
        // What a commit had made durable before the cut must be there after it.
        let durable = |(image, steps): &(BTreeMap<SegmentNumber, Vec<u8>>, u64)| {
            (image[&segment][..]
                == torn[&segment][..]
                    .iter()
                    .enumerate()
                    .map(|(i, &byte)| if image[&segment][i] == 0 { 0 } else { byte })
                    .collect::<Vec<u8>>()[..])
                .then_some(*steps)
        };
        let promised = synced.iter().filter_map(durable).max().unwrap_or(0);
        let after = Bench::sized(SimDisk::of(torn), 2 * SEGMENT_BYTES, 100);
        let episodes = after.episodes();
        let steps = episodes.first().map_or(0, |(_, manifest)| manifest.steps);
        assert!(steps >= promised, "cut at {cut}: {steps} steps of {promised}");
        assert!(episodes.len() <= 1 && after.shared.index.lock().unwrap().damaged_count() == 0);
        if let Some((_, manifest)) = episodes.first().filter(|_| cut < written) {
            assert_eq!(manifest.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped }, "cut at {cut}");
            assert_eq!(manifest.recording, recording(1));
        }
    }
}

#[test]
fn what_was_cut_off_never_comes_back_after_later_records() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    bench.begin(1);
    bench.steps(1, 0..5);
    bench.commit();
    let mut torn = bench.disk.synced();
    bench.steps(1, 5..40);
    bench.commit();
    // The power cut loses the first sector of the second commit but leaves those after it.
    let later = bench.disk.synced();
    let segment = *later.keys().next().unwrap();
    let from = torn[&segment].iter().rposition(|&byte| byte != 0).unwrap().next_multiple_of(SECTOR_BYTES);
    let mut image = later[&segment].clone();
    image[from..from + SECTOR_BYTES].fill(0);
    assert!(image[from..].iter().any(|&byte| byte != 0));
    torn.insert(segment, image);
    let mut after = Bench::on(SimDisk::of(torn), 100);
    assert_eq!(after.episodes()[0].1.steps, 5);
    after.begin(2);
    after.steps(2, 0..3);
    after.end(2);
    after.commit();
    let again = Bench::on(SimDisk::of(after.disk.synced()), 100);
    let steps: Vec<u64> = again.episodes().iter().map(|(_, manifest)| manifest.steps).collect();
    assert_eq!(steps, [5, 3]);
}

#[test]
fn ordinals_are_never_used_twice_even_when_everything_was_freed() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    for number in 0..30 {
        bench.begin(number);
        bench.steps(number, 0..20);
        bench.end(number);
        bench.commit();
        bench.free(u64::from(number));
        bench.commit();
    }
    assert!(bench.episodes().is_empty());
    assert!(bench.disk.segments() <= 3, "freed segments are removed");
    let mut after = Bench::on(SimDisk::of(bench.disk.synced()), 100);
    assert!(after.episodes().is_empty());
    after.begin(99);
    after.steps(99, 0..1);
    after.end(99);
    after.commit();
    assert_eq!(after.episodes()[0].0.ordinal, 30);
}

#[test]
fn chunks_are_cut_at_their_target_and_a_crash_in_between_changes_nothing_but_the_end() {
    let steps = (CHUNK_BYTES_TARGET / 24 * 2 + 100) as u64;
    let mut bench = Bench::sized(SimDisk::new(0), 1 << 22, 100);
    bench.begin(1);
    bench.steps(1, 0..steps);
    bench.commit();
    let crashed = bench.disk.synced();
    bench.end(1);
    bench.commit();
    let whole = bench.episodes();
    assert_eq!(whole[0].0.chunks.len(), 3);
    let cut = Bench::sized(SimDisk::of(crashed), 1 << 22, 100).episodes();
    let ids = |episodes: &[(StoredEpisode, Manifest)]| -> Vec<ChunkId> {
        episodes[0].0.chunks().map(|chunk| chunk.id).collect()
    };
    assert_eq!(ids(&whole), ids(&cut));
    assert_eq!(cut[0].1.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped });
}

#[test]
fn a_full_spool_seals_what_it_has_and_recovers_when_there_is_room() {
    let mut bench = Bench::on(SimDisk::new(0), 6);
    bench.begin(1);
    bench.steps(1, 0..10);
    bench.end(1);
    bench.commit();
    let tracker = bench.begin(2);
    let mut step = 0;
    while tracker.refusal.get().is_none() {
        bench.steps(2, step..step + 10);
        step += 10;
        bench.commit();
        assert!(step < 10_000, "six segments cannot hold this");
    }
    bench.commit();
    assert!(matches!(tracker.refusal.get(), Some(Refusal::SpoolFull(_))));
    assert!(matches!(bench.shared.accepting(), Err(Refusal::SpoolFull(_))));
    let episodes = bench.episodes();
    assert_eq!(episodes.len(), 2);
    assert_eq!(episodes[1].1.steps, step, "every step taken is in the episode");
    assert_eq!(episodes[1].1.end, EpisodeEnd::Truncated { limit: Truncation::SpoolFull });
    bench.free(0);
    bench.free(1);
    bench.commit();
    bench.commit();
    assert_eq!(bench.shared.accepting(), Ok(()));
    let tracker = bench.begin(3);
    bench.steps(3, 0..10);
    bench.end(3);
    bench.commit();
    assert!(tracker.refusal.get().is_none());
    assert_eq!(bench.episodes().len(), 1);
}

#[test]
fn a_failing_disk_refuses_steps_keeps_what_it_has_and_recovers() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    let tracker = bench.begin(1);
    bench.steps(1, 0..10);
    bench.commit();
    bench.steps(1, 10..20);
    bench.disk.set_fault(Fault::Broken);
    bench.commit();
    assert!(matches!(tracker.refusal.get(), Some(Refusal::Disk(_))));
    assert_eq!(tracker.on_disk.load(Ordering::Relaxed), 10);
    assert_eq!(bench.worker.due(), Some(bench.now + Duration::from_secs(1)), "a failed disk is tried once a second");
    assert_eq!(Bench::on(SimDisk::of(bench.disk.synced()), 100).episodes()[0].1.steps, 10);
    bench.disk.set_fault(Fault::None);
    bench.commit();
    assert_eq!(bench.shared.accepting(), Ok(()));
    let expected = bench.episodes();
    assert_eq!(expected[0].1.steps, 20);
    assert_eq!(Bench::on(SimDisk::of(bench.disk.synced()), 100).episodes(), expected);
}

#[test]
fn a_file_system_that_others_fill_takes_no_steps_until_they_make_room() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    bench.disk.set_free_bytes(SEGMENT_BYTES - 1);
    let tracker = bench.begin(1);
    bench.steps(1, 0..70);
    bench.commit();
    bench.commit();
    assert!(matches!(tracker.refusal.get(), Some(Refusal::SpoolFull(_))));
    assert_eq!(bench.episodes()[0].1.steps, 70, "what was taken is kept");
    bench.disk.set_free_bytes(SEGMENT_BYTES);
    bench.commit();
    assert_eq!(bench.shared.accepting(), Ok(()));
}

#[test]
fn a_flipped_bit_in_an_old_segment_is_never_passed_off_as_whole() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    for number in 0..4 {
        bench.begin(number);
        bench.steps(number, 0..70);
        bench.end(number);
        bench.commit();
    }
    let whole = bench.episodes();
    let image = bench.disk.synced();
    for at in (40..SEGMENT_BYTES as usize).step_by(61) {
        let mut damaged = image.clone();
        damaged.first_entry().unwrap().get_mut()[at] ^= 0x10;
        let after = Bench::on(SimDisk::of(damaged), 100);
        for episode in after.episodes() {
            assert!(whole.contains(&episode), "byte {at}");
        }
        assert!(after.episodes().len() >= 2, "byte {at}: later segments are not given up");
    }
}
