//! Cameras and features with a rate of their own, through the spool and a power cut.

use zunft_protocol::chunk::{SampleChunk, Schema};
use zunft_protocol::embodiment::Encoding;
use zunft_protocol::episode::{ChunkRef, STEPS_STREAM};
use zunft_protocol::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_TARGET, MANIFEST_BYTES_MAX, SAMPLE_BYTES_MAX};

use super::super::recorder::{CutChunk, Recorder, STEPS, StreamNumber};
use super::*;

const TOP: StreamNumber = 1;
const VIDEO: StreamNumber = 2;
const FORCE: StreamNumber = 3;

/// A stream's rows: times and bytes.
type Rows = Vec<(i64, Vec<u8>)>;

fn body() -> Embodiment {
    let force = Feature { rate_hz: Some(1000.0), ..Feature::vector("observation.force", 3) };
    let mut body = embodiment();
    body.features.insert(0, Feature::camera("top", 480, 640, 30.0, Encoding::Jpeg));
    body.features.push(Feature::camera("side", 480, 640, 30.0, Encoding::H264));
    body.features.push(force);
    body
}

fn opening(embodiment: Embodiment) -> Opening {
    Opening { recording: recording(1), task: "push".parse().unwrap(), embodiment, actor: Actor::Script, clock: clock() }
}

/// The bytes of an image, all different from those of any other.
fn image(stream: StreamNumber, time: u64, bytes: usize) -> Vec<u8> {
    let seed = time * 31 + u64::from(stream);
    (0..bytes as u64).map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i * i * 97) >> 7) as u8).collect()
}

fn sample_row(time: u64, bytes: &[u8]) -> Vec<u8> {
    [&time.to_le_bytes()[..], bytes].concat()
}

impl Bench {
    fn begin_with(&mut self, embodiment: Embodiment) -> Arc<Tracker> {
        let tracker = Arc::new(Tracker::default());
        let opening = Box::new(opening(embodiment));
        self.worker.apply(Command::Begin { opening, tracker: Arc::clone(&tracker) }, self.now);
        tracker
    }

    fn sample(&mut self, stream: StreamNumber, time: u64, key_frame: bool, bytes: &[u8]) {
        let row = sample_row(time, bytes);
        self.worker.apply(Command::Sample { recording: recording(1), stream, key_frame, row }, self.now);
    }

    /// Steps with all three other streams between them; returns what was given.
    fn live(&mut self, times: std::ops::Range<u64>, image_bytes: usize) -> BTreeMap<StreamNumber, Rows> {
        let mut given: BTreeMap<StreamNumber, Rows> = BTreeMap::new();
        for time in times {
            let mut give = |bench: &mut Self, stream, key_frame, bytes: Vec<u8>| {
                bench.sample(stream, time, key_frame, &bytes);
                given.entry(stream).or_default().push((time as i64, bytes));
            };
            give(self, TOP, false, image(TOP, time, image_bytes));
            give(self, VIDEO, time % 10 == 0, image(VIDEO, time, image_bytes / 2));
            give(self, FORCE, true, image(FORCE, time, 12));
            self.steps(1, time..time + 1);
            given.entry(STEPS).or_default().push((time as i64, row(time)[8..].to_vec()));
        }
        given
    }

    /// The only episode, with what its chunks hold of every stream, by name.
    fn streams(&self) -> Option<(Manifest, BTreeMap<StreamNumber, Rows>)> {
        let read = |location: Location| self.read(location);
        let index = self.shared.index.lock().unwrap();
        let episode = index.sealed().values().next()?;
        let manifest = Manifest::decode(&read(episode.manifest)).unwrap();
        let mut stored = episode.chunks.iter();
        let mut found = BTreeMap::new();
        for (number, stream) in (STEPS..).zip(&manifest.streams) {
            let rows: &mut Rows = found.entry(number).or_default();
            for reference in &stream.chunks {
                let (chunk, location) = stored.next().unwrap();
                assert_eq!(chunk, reference, "the spool lists the chunks in the manifest's order");
                let bytes = read(*location);
                assert_eq!(ChunkId::of(&bytes), reference.id);
                rows.extend(chunk_rows(&bytes, &stream.schema, reference.steps));
            }
        }
        assert!(stored.next().is_none());
        Some((manifest, found))
    }
}

fn chunk_rows(stored: &[u8], schema: &Schema, steps: u32) -> Rows {
    if let Some(encoding) = schema.encoding {
        let chunk = SampleChunk::decode(stored, encoding).unwrap();
        assert_eq!(chunk.samples().len(), steps as usize);
        return chunk.samples().iter().map(|sample| (sample.monotonic_ns, sample.bytes.to_vec())).collect();
    }
    let chunk = Chunk::decode(stored, schema).unwrap();
    assert_eq!(chunk.steps(), steps);
    let row = |step: usize| {
        let mut columns = schema.columns.iter().map(|column| {
            let bytes = column.step_bytes();
            chunk.column(&column.name).unwrap()[step * bytes..(step + 1) * bytes].to_vec()
        });
        let time = i64::from_le_bytes(columns.next().unwrap().try_into().unwrap());
        (time, columns.collect::<Vec<_>>().concat())
    };
    (0..steps as usize).map(row).collect()
}

#[test]
fn every_stream_comes_back_byte_for_byte_and_a_crash_changes_nothing_but_the_end() {
    let mut bench = Bench::sized(SimDisk::new(0), 1 << 24, 100);
    bench.begin_with(body());
    // 9 MB of JPEG and half of it of video: several chunks each.
    let given = bench.live(0..200, 45_000);
    bench.commit();
    let crashed = bench.disk.synced();
    bench.end(1);
    bench.commit();
    let (whole, found) = bench.streams().unwrap();
    assert_eq!(found, given);
    let chunks: Vec<usize> = whole.streams.iter().map(|stream| stream.chunks.len()).collect();
    assert!(chunks[1] >= 9 && chunks[2] >= 5, "{chunks:?}");
    let (cut, found) = Bench::sized(SimDisk::of(crashed), 1 << 24, 100).streams().unwrap();
    assert_eq!(found, given);
    assert_eq!(cut.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped });
    assert_eq!(cut.streams, whole.streams, "the same code makes the same chunks of what the log holds");
}

#[test]
fn video_chunks_begin_at_key_frames() {
    let mut bench = Bench::sized(SimDisk::new(0), 1 << 24, 100);
    bench.begin_with(body());
    bench.live(0..100, 60_000);
    bench.end(1);
    bench.commit();
    let (manifest, found) = bench.streams().unwrap();
    let mut begin = 0;
    for chunk in &manifest.streams[usize::from(VIDEO)].chunks {
        assert_eq!(found[&VIDEO][begin].0 % 10, 0, "every tenth image is a key frame");
        begin += chunk.steps as usize;
    }
    assert_eq!(begin, 100);
    assert!(manifest.streams[usize::from(VIDEO)].chunks.len() >= 3);
}

#[test]
fn a_log_with_images_cut_at_any_byte_keeps_what_was_before_in_every_stream() {
    let mut bench = Bench::sized(SimDisk::new(0), 1 << 16, 100);
    bench.begin_with(body());
    let given = bench.live(0..12, 200);
    bench.commit();
    bench.end(1);
    bench.commit();
    let last = bench.disk.synced();
    let (&segment, bytes) = last.iter().next().unwrap();
    let written = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    let mut kept = 0;
    for cut in (0..=written).step_by(3) {
        let mut torn = last.clone();
        torn.get_mut(&segment).unwrap()[cut..].fill(0);
        let after = Bench::sized(SimDisk::of(torn), 1 << 16, 100);
        assert_eq!(after.shared.index.lock().unwrap().damaged_count(), 0);
        let Some((_, found)) = after.streams() else { continue };
        for (stream, rows) in found {
            assert!(given[&stream].starts_with(&rows), "cut at {cut}: stream {stream} has what was not given");
            kept = kept.max(rows.len());
        }
    }
    assert_eq!(kept, 12);
}

#[test]
fn images_without_any_step_are_no_episode_and_hold_no_place() {
    let mut bench = Bench::on(SimDisk::new(0), 100);
    bench.begin_with(body());
    bench.sample(TOP, 1, true, &[0xff, 0xd8]);
    bench.end(1);
    bench.commit();
    assert!(bench.streams().is_none());
    let after = Bench::on(SimDisk::of(bench.disk.synced()), 100);
    assert_eq!(after.shared.index.lock().unwrap().damaged_count(), 0);
    assert!(after.streams().is_none());
}

#[test]
fn samples_of_no_stream_or_of_the_wrong_size_are_refused() {
    let mut recorder = Recorder::new(0, opening(body()), CHUNK_BYTES_TARGET);
    assert!(!recorder.push_sample(4, &sample_row(1, &[1]), true), "there is no fourth");
    assert!(!recorder.push_sample(STEPS, &row(1), true), "steps are no samples");
    assert!(!recorder.push_sample(FORCE, &sample_row(1, &[0; 11]), true));
    assert!(!recorder.push_sample(TOP, &sample_row(1, &[]), true));
    assert!(!recorder.push_sample(TOP, &sample_row(1, &vec![0; SAMPLE_BYTES_MAX + 1024]), true));
    assert!(recorder.push_sample(TOP, &sample_row(1, &vec![0; SAMPLE_BYTES_MAX]), true));
}

/// Ten cameras at 30 Hz, a force at 1 kHz and steps at 50 Hz for an hour, all a two-hundredth of their size: as many
/// chunks as in earnest.
#[test]
fn an_hour_of_ten_cameras_takes_bounded_memory_and_its_manifest_fits() {
    const SHRUNK: usize = 200;
    let mut body = embodiment();
    body.features.extend((0..10).map(|i| Feature::camera(&i.to_string(), 480, 640, 30.0, Encoding::Jpeg)));
    body.features.push(Feature { rate_hz: Some(1000.0), ..Feature::vector("observation.force", 6) });
    let (rows, images) = (CHUNK_BYTES_TARGET / SHRUNK, CHUNK_BYTES_MAX / SHRUNK);
    let mut recorder = Recorder::with_chunk_bytes(0, opening(body), rows, images);
    let picture = image(TOP, 0, 55_000 / SHRUNK);
    // A chunk a camera, with room for the table of its images, and two of rows that may have grown by halves.
    let filling_max = 10 * images * 3 / 2 + 4 * rows;
    let mut cut = 0;
    for tick in 0..3_600_000_u64 {
        let mut take = |recorder: &mut Recorder, stream, row: &[u8]| {
            while let Some(CutChunk { stored, .. }) = recorder.cut_before(stream, row, true) {
                assert!(stored.len() <= images.max(rows));
                cut += 1;
                let lists_max = (12 * 4 + 2 * cut) * size_of::<ChunkRef>();
                assert!(recorder.memory_bytes() <= filling_max + lists_max, "{} bytes", recorder.memory_bytes());
            }
            assert!(!recorder.is_full());
        };
        // A twentieth of the rows of a force sensor, each as good as another.
        if tick % 20 == 0 {
            let force = sample_row(tick, &[1; 24]);
            take(&mut recorder, 11, &force);
            assert!(recorder.push_sample(11, &force, true));
            take(&mut recorder, STEPS, &row(tick));
            assert!(recorder.push(&row(tick), false));
        }
        if tick % 33 == 0 {
            let camera_row = sample_row(tick, &picture);
            for camera in 1..=10 {
                take(&mut recorder, camera, &camera_row);
                assert!(recorder.push_sample(camera, &camera_row, true));
            }
        }
    }
    let (last, manifest) = recorder.seal(&identity(), Outcome::Success, EpisodeEnd::Terminated).unwrap();
    assert_eq!(manifest.chunks().count(), cut + last.len());
    assert!((55_000..80_000).contains(&manifest.chunks().count()), "{} chunks", manifest.chunks().count());
    assert_eq!(manifest.streams[0].name, STEPS_STREAM);
    let encoded = manifest.encode();
    assert!(encoded.len() < MANIFEST_BYTES_MAX / 2, "{} bytes", encoded.len());
    assert_eq!(Manifest::decode(&encoded).unwrap().id(), manifest.id());
}
