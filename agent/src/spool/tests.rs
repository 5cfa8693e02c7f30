//! The spool on a disk that loses power: what was synced survives, and nothing passes for what it is not.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};

use zunft_protocol::chunk::Chunk;
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{Manifest, Truncation, WallQuality};
use zunft_protocol::ids::BootId;

mod streams;

use super::disk::{Disk, SegmentNumber};
use super::index::Location;
use super::*;

const SEGMENT_BYTES: u64 = 4096;
const POLICY: CommitPolicy = CommitPolicy { interval: Duration::from_millis(100), bytes: 1 << 20 };

/// A disk in memory that knows what was synced.
#[derive(Debug, Default, Clone)]
struct MemoryDisk {
    state: Arc<Mutex<MemoryState>>,
    failing: Arc<AtomicBool>,
    /// What the file system says is left.
    free: Arc<AtomicU64>,
}

#[derive(Debug, Default, Clone)]
struct MemoryState {
    /// Synced bytes of each segment.
    synced: BTreeMap<SegmentNumber, Vec<u8>>,
    /// Bytes as a reader sees them now.
    seen: BTreeMap<SegmentNumber, Vec<u8>>,
}

impl MemoryDisk {
    fn new() -> Self {
        let disk = Self::default();
        disk.free.store(u64::MAX / 2, Ordering::Relaxed);
        disk
    }

    fn of(segments: BTreeMap<SegmentNumber, Vec<u8>>) -> Self {
        let disk = Self::new();
        *disk.state.lock().unwrap() = MemoryState { synced: segments.clone(), seen: segments };
        disk
    }

    fn synced(&self) -> BTreeMap<SegmentNumber, Vec<u8>> {
        self.state.lock().unwrap().synced.clone()
    }

    fn works(&self) -> io::Result<()> {
        if self.failing.load(Ordering::Relaxed) { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<SegmentNumber>> {
        Ok(self.state.lock().unwrap().seen.keys().copied().collect())
    }
    fn create(&self, segment: SegmentNumber, bytes: u64) -> io::Result<()> {
        self.works()?;
        let mut state = self.state.lock().unwrap();
        state.synced.insert(segment, vec![0; bytes as usize]);
        state.seen.insert(segment, vec![0; bytes as usize]);
        Ok(())
    }
    fn read_all(&self, segment: SegmentNumber) -> io::Result<Vec<u8>> {
        Ok(self.state.lock().unwrap().seen[&segment].clone())
    }
    fn read(&self, segment: SegmentNumber, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let bytes = state.seen[&segment].get(offset as usize..offset as usize + buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write(&self, segment: SegmentNumber, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.works()?;
        let mut state = self.state.lock().unwrap();
        let file = state.seen.get_mut(&segment).unwrap();
        file[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self, segment: SegmentNumber) -> io::Result<()> {
        self.works()?;
        let mut state = self.state.lock().unwrap();
        let bytes = state.seen[&segment].clone();
        state.synced.insert(segment, bytes);
        Ok(())
    }
    fn remove(&self, segments: &[SegmentNumber]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        for segment in segments {
            state.synced.remove(segment);
            state.seen.remove(segment);
        }
        Ok(())
    }
    fn quarantine(&self, segment: SegmentNumber) -> io::Result<()> {
        self.remove(&[segment])
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.free.load(Ordering::Relaxed))
    }
}

/// A spool without its thread.
struct Bench {
    disk: MemoryDisk,
    shared: Arc<Shared>,
    worker: Worker<MemoryDisk>,
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

impl Bench {
    fn on(disk: MemoryDisk, segments_max: u64) -> Self {
        Self::sized(disk, SEGMENT_BYTES, segments_max)
    }

    fn sized(disk: MemoryDisk, segment_bytes: u64, segments_max: u64) -> Self {
        let shared = Arc::new(Shared::new(0));
        let room = Room { segment_bytes, spool_bytes_max: segments_max * segment_bytes, free_bytes_min: 0 };
        let mut worker = Worker::open(disk.clone(), room, POLICY, identity(), Arc::clone(&shared)).unwrap();
        let now = now();
        worker.commit(now);
        Self { disk, shared, worker, now }
    }

    fn begin(&mut self, number: u8) -> Arc<Tracker> {
        let tracker = Arc::new(Tracker::default());
        let opening = Opening {
            recording: recording(number),
            task: "push".parse().unwrap(),
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
        let command = Command::End {
            recording: recording(number),
            outcome: Outcome::Success,
            end: EpisodeEnd::Terminated,
            reply: None,
        };
        self.worker.apply(command, self.now);
    }

    fn commit(&mut self) {
        self.worker.commit(self.now);
    }

    fn free(&mut self, ordinal: u64) {
        self.worker.apply(Command::Free { ordinal, receipt: vec![7; 64] }, self.now);
    }

    fn episodes(&self) -> Vec<(StoredEpisode, Manifest)> {
        let read = |location: Location| {
            let mut bytes = vec![0; location.bytes as usize];
            self.disk.read(location.segment, location.offset, &mut bytes).unwrap();
            bytes
        };
        let index = self.shared.index.lock().unwrap();
        index
            .sealed()
            .values()
            .map(|episode| {
                let manifest = Manifest::decode(&read(episode.manifest)).unwrap();
                let mut step = 0;
                for (chunk, location) in &episode.chunks {
                    let chunk_read = Chunk::decode(&read(*location), &manifest.streams[0].schema).unwrap();
                    let states = chunk_read.column_f32(OBSERVATION_STATE).unwrap();
                    for state in states.chunks_exact(2) {
                        assert_eq!(state[0], step as f32, "every step is there, once and in order");
                        step += 1;
                    }
                    assert_eq!(chunk_read.steps(), chunk.steps);
                }
                assert_eq!(step, manifest.steps);
                (episode.clone(), manifest)
            })
            .collect()
    }
}

#[test]
fn an_ended_episode_is_whole_after_a_power_cut() {
    let mut bench = Bench::on(MemoryDisk::new(), 100);
    let tracker = bench.begin(1);
    bench.steps(1, 0..200);
    assert_eq!(tracker.on_disk.load(Ordering::Relaxed), 0);
    bench.end(1);
    bench.commit();
    assert_eq!(tracker.on_disk.load(Ordering::Relaxed), 200);
    let before = bench.episodes();
    let after = Bench::on(MemoryDisk::of(bench.disk.synced()), 100).episodes();
    assert_eq!(before, after);
    let (stored, manifest) = &after[0];
    assert_eq!((manifest.steps, manifest.end, manifest.outcome), (200, EpisodeEnd::Terminated, Outcome::Success));
    assert_eq!(manifest.interventions.len(), 20);
    assert_eq!(stored.episode, manifest.id());
}

#[test]
fn steps_are_due_after_the_interval_and_an_end_at_once() {
    let mut bench = Bench::on(MemoryDisk::new(), 100);
    assert_eq!(bench.worker.due(), None);
    bench.begin(1);
    bench.steps(1, 0..1);
    assert_eq!(bench.worker.due(), Some(bench.now + POLICY.interval));
    bench.end(1);
    assert_eq!(bench.worker.due(), Some(bench.now));
}

#[test]
fn a_log_cut_at_any_byte_keeps_every_synced_step() {
    let mut bench = Bench::on(MemoryDisk::new(), 100);
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
        let after = Bench::on(MemoryDisk::of(torn), 100);
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
    let mut bench = Bench::on(MemoryDisk::new(), 100);
    bench.begin(1);
    bench.steps(1, 0..5);
    bench.commit();
    let mut torn = bench.disk.synced();
    bench.steps(1, 5..10);
    bench.commit();
    // The power cut loses the sixth step but leaves the bytes of those after it.
    let later = bench.disk.synced();
    let segment = *later.keys().next().unwrap();
    let from = torn[&segment].iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let hole = from + 20;
    let mut image = later[&segment].clone();
    image[from..hole].fill(0);
    torn.insert(segment, image);
    let mut after = Bench::on(MemoryDisk::of(torn), 100);
    assert_eq!(after.episodes()[0].1.steps, 5);
    after.begin(2);
    after.steps(2, 0..3);
    after.end(2);
    after.commit();
    let again = Bench::on(MemoryDisk::of(after.disk.synced()), 100);
    let steps: Vec<u64> = again.episodes().iter().map(|(_, manifest)| manifest.steps).collect();
    assert_eq!(steps, [5, 3]);
}

#[test]
fn ordinals_are_never_used_twice_even_when_everything_was_freed() {
    let mut bench = Bench::on(MemoryDisk::new(), 100);
    for number in 0..30 {
        bench.begin(number);
        bench.steps(number, 0..20);
        bench.end(number);
        bench.commit();
        bench.free(u64::from(number));
        bench.commit();
    }
    assert!(bench.episodes().is_empty());
    assert!(bench.worker_segments() <= 3, "freed segments are removed");
    let mut after = Bench::on(MemoryDisk::of(bench.disk.synced()), 100);
    assert!(after.episodes().is_empty());
    after.begin(99);
    after.steps(99, 0..1);
    after.end(99);
    after.commit();
    assert_eq!(after.episodes()[0].0.ordinal, 30);
}

#[test]
fn chunks_are_cut_at_their_target_and_a_crash_in_between_changes_nothing_but_the_end() {
    let steps = (zunft_protocol::limits::CHUNK_BYTES_TARGET / 24 * 2 + 100) as u64;
    let mut bench = Bench::sized(MemoryDisk::new(), 1 << 22, 100);
    bench.begin(1);
    bench.steps(1, 0..steps);
    bench.commit();
    let crashed = bench.disk.synced();
    bench.end(1);
    bench.commit();
    let whole = bench.episodes();
    assert_eq!(whole[0].0.chunks.len(), 3);
    let cut = Bench::sized(MemoryDisk::of(crashed), 1 << 22, 100).episodes();
    let ids = |episodes: &[(StoredEpisode, Manifest)]| -> Vec<ChunkId> {
        episodes[0].0.chunks().map(|chunk| chunk.id).collect()
    };
    assert_eq!(ids(&whole), ids(&cut));
    assert_eq!(cut[0].1.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped });
}

#[test]
fn a_full_spool_seals_what_it_has_and_recovers_when_there_is_room() {
    let mut bench = Bench::on(MemoryDisk::new(), 6);
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
    let mut bench = Bench::on(MemoryDisk::new(), 100);
    let tracker = bench.begin(1);
    bench.steps(1, 0..10);
    bench.commit();
    bench.steps(1, 10..20);
    bench.disk.failing.store(true, Ordering::Relaxed);
    bench.commit();
    assert!(matches!(tracker.refusal.get(), Some(Refusal::Disk(_))));
    assert_eq!(tracker.on_disk.load(Ordering::Relaxed), 10);
    assert_eq!(bench.worker.due(), Some(bench.now + Duration::from_secs(1)), "a failed disk is tried once a second");
    assert_eq!(Bench::on(MemoryDisk::of(bench.disk.synced()), 100).episodes()[0].1.steps, 10);
    bench.disk.failing.store(false, Ordering::Relaxed);
    bench.commit();
    assert_eq!(bench.shared.accepting(), Ok(()));
    let expected = bench.episodes();
    assert_eq!(expected[0].1.steps, 20);
    assert_eq!(Bench::on(MemoryDisk::of(bench.disk.synced()), 100).episodes(), expected);
}

#[test]
fn a_flipped_bit_in_an_old_segment_is_never_passed_off_as_whole() {
    let mut bench = Bench::on(MemoryDisk::new(), 100);
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
        let after = Bench::on(MemoryDisk::of(damaged), 100);
        for episode in after.episodes() {
            assert!(whole.contains(&episode), "byte {at}");
        }
        assert!(after.episodes().len() >= 2, "byte {at}: later segments are not given up");
    }
}

impl Bench {
    fn worker_segments(&self) -> usize {
        self.disk.state.lock().unwrap().seen.len()
    }
}
