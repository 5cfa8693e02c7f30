//! What a loader draws, in what order, out of how much memory; and what it says about bad snapshots.

use std::collections::BTreeSet;

use proptest::prelude::*;
use zunft_protocol::chunk::{Sample, SampleChunkBuilder, Schema};
use zunft_protocol::embodiment::{Embodiment, Feature};
use zunft_protocol::episode::{ChunkRef, Manifest, Stream};
use zunft_protocol::ids::ChunkId;

use super::*;
use crate::data::fixture::{Memory, embodiment, episode, episode_of};

const TOP: &str = "observation.images.top";

type Episode = (Manifest, Vec<Vec<u8>>);

/// Episodes of these lengths; the state of a step is its number in the snapshot and its number in the episode.
fn episodes(lens: &[usize]) -> Vec<Episode> {
    let mut first = 0;
    let states = lens.iter().map(|&len| {
        let states: Vec<[f32; 2]> = (0..len).map(|step| [(first + step) as f32, step as f32]).collect();
        first += len;
        states
    });
    states.enumerate().map(|(ordinal, states)| episode(ordinal as u64, "reach", &states)).collect()
}

fn open(episodes: Vec<Episode>, config: LoaderConfig) -> Result<Loader, LoaderError> {
    Loader::open(Box::new(Memory::of(episodes)), &Selection::default(), config)
}

fn config() -> LoaderConfig {
    LoaderConfig { batch_size: 4, observation_steps: -1..2, action_steps: 0..3, ..LoaderConfig::default() }
}

/// Steps of the robot's clock are nanoseconds in the fixture: step `i` is at `i`.
fn with_camera(mut body: Embodiment, encoding: Encoding) -> Embodiment {
    body.features.push(Feature::camera("top", 8, 16, 30.0, encoding));
    body
}

fn jpeg(width: u16, height: u16, grey: u8) -> Vec<u8> {
    let mut file = Vec::new();
    let pixels = vec![grey; usize::from(width) * usize::from(height) * 3];
    jpeg_encoder::Encoder::new(&mut file, 95).encode(&pixels, width, height, jpeg_encoder::ColorType::Rgb).unwrap();
    file
}

/// An episode of so many steps with images at these times, two a chunk.
fn filmed(ordinal: u64, steps: usize, images: &[(i64, Vec<u8>)]) -> Episode {
    let body = with_camera(embodiment(), Encoding::Jpeg);
    let states: Vec<[f32; 2]> = (0..steps).map(|step| [step as f32, ordinal as f32]).collect();
    let (mut manifest, mut chunks) = episode_of(body.clone(), ordinal, "reach", &states);
    let mut refs = Vec::new();
    for pair in images.chunks(2) {
        let mut builder = SampleChunkBuilder::new(Encoding::Jpeg);
        for (monotonic_ns, bytes) in pair {
            builder.push(&Sample { monotonic_ns: *monotonic_ns, key_frame: true, bytes });
        }
        let (stored, steps) = builder.finish().unwrap();
        refs.push(ChunkRef { id: ChunkId::of(&stored), bytes: stored.len() as u32, steps });
        chunks.push(stored);
    }
    let schema = Schema::stream(body.features.last().unwrap());
    manifest.streams.push(Stream { name: TOP.to_owned(), schema, chunks: refs });
    (manifest, chunks)
}

fn camera_config() -> LoaderConfig {
    LoaderConfig { batch_size: 3, cameras: vec![TOP.to_owned()], image_steps: 0..2, ..LoaderConfig::default() }
}

/// Five images, the first after the first step, the last before the last step; each as grey as its time is late.
fn film() -> Vec<(i64, Vec<u8>)> {
    [1, 2, 4, 4, 7].map(|time: i64| (time, jpeg(16, 8, 20 * time as u8))).to_vec()
}

#[test]
fn windows_are_cut_at_the_ends_of_their_episode_and_say_so() {
    let loader = open(episodes(&[3, 2]), LoaderConfig { batch_size: 5, ..config() }).unwrap();
    let batch = loader.batch(0).unwrap();
    for (row, window) in batch.windows.iter().enumerate() {
        let (first, len) = [(0, 3), (3, 2)][window.episode];
        let (values, pads) = (&batch.observations.values[row * 6..][..6], &batch.observations.is_pad[row * 3..][..3]);
        for (index, offset) in (-1..2_i64).enumerate() {
            let step = window.step as i64 + offset;
            let nearest = step.clamp(0, len - 1);
            assert_eq!(values[index * 2..][..2], [(first + nearest) as f32, nearest as f32], "{window:?} {offset}");
            assert_eq!(pads[index], step != nearest, "{window:?} {offset}");
        }
        for offset in 0..3 {
            let step = window.step as i64 + offset;
            let nearest = step.min(len - 1);
            // The action of the fixture is the sum of the state.
            assert_eq!(batch.actions.values[row * 3 + offset as usize], (first + 2 * nearest) as f32);
            assert_eq!(batch.actions.is_pad[row * 3 + offset as usize], step != nearest);
        }
    }
    assert_eq!((batch.observations.steps, batch.observations.dim), (3, 2));
    assert_eq!(batch.windows.iter().collect::<BTreeSet<_>>().len(), 5, "a pass draws every step once");
}

#[test]
fn windows_wholly_outside_their_episode_are_padding_alone() {
    let far = LoaderConfig { observation_steps: -9..-7, action_steps: 5..9, batch_size: 3, ..config() };
    let batch = open(episodes(&[3]), far).unwrap().batch(0).unwrap();
    assert_eq!(batch.observations.values, [0.0; 12]);
    assert_eq!(batch.actions.values, [4.0; 12]);
    assert!(batch.observations.is_pad.iter().chain(&batch.actions.is_pad).all(|&pad| pad));
}

#[test]
fn every_step_of_every_episode_is_drawn_once_a_pass_and_each_pass_in_its_own_order() {
    let loader = open(episodes(&[7, 1, 12]), config()).unwrap();
    assert_eq!((loader.windows(), loader.episodes().count()), (20, 3));
    let pass = |first: u64| -> Vec<Window> {
        (first..first + 5).flat_map(|number| loader.batch(number).unwrap().windows).collect()
    };
    let all: BTreeSet<Window> = [(0, 7), (1, 1), (2, 12)]
        .into_iter()
        .flat_map(|(episode, len)| (0..len).map(move |step| Window { episode, step }))
        .collect();
    let (first, second) = (pass(0), pass(5));
    assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), all);
    assert_eq!(second.iter().copied().collect::<BTreeSet<_>>(), all);
    assert_ne!(first, second);
}

#[test]
fn the_same_seed_gives_the_same_batches_whatever_the_threads_and_the_memory() {
    let lens = [30, 4, 17, 50];
    let take = |config: LoaderConfig, first: u64| -> Vec<WindowBatch> {
        let batches = open(episodes(&lens), config).unwrap().batches(first).unwrap();
        batches.take(40).map(Result::unwrap).collect()
    };
    let expected = take(LoaderConfig { threads: 1, ..config() }, 0);
    for (threads, prefetch_batches, cache_bytes) in [(2, 1, 1 << 20), (3, 7, 600), (8, 2, 0)] {
        let config = LoaderConfig { threads, prefetch_batches, cache_bytes, ..config() };
        assert!(take(config, 0) == expected, "{threads} threads");
    }
    assert!(take(config(), 11)[..29] == expected[11..], "a run that goes on sees what it would have seen");
    assert!(take(LoaderConfig { seed: 1, ..config() }, 0) != expected);
}

#[test]
fn the_cache_stays_within_its_bytes() {
    let cache_bytes = 2000;
    let loader = open(episodes(&[40, 40]), LoaderConfig { cache_bytes, ..config() }).unwrap();
    let mut most = 0;
    for number in 0..40 {
        loader.batch(number).unwrap();
        assert!(loader.cached_bytes() <= cache_bytes);
        most = most.max(loader.cached_bytes());
    }
    assert!(most > cache_bytes / 2, "only {most} bytes were used");
}

#[test]
fn no_more_batches_are_made_than_asked_for_ahead() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let loader = open(episodes(&[9]), config()).unwrap();
    let made = Arc::new(AtomicU64::new(0));
    let (shared, counter) = (Arc::clone(&loader.shared), Arc::clone(&made));
    let make = move |number| {
        counter.fetch_add(1, Ordering::SeqCst);
        shared.batch(number)
    };
    let mut batches = Batches::start(0, 4, 3, make).unwrap();
    for taken in 1..50 {
        batches.next().unwrap().unwrap();
        // Three are ahead of those taken, and threads may only be faster than that by mistake.
        assert!(made.load(Ordering::SeqCst) <= taken + 3);
    }
}

#[test]
fn an_image_is_the_last_one_taken_by_its_step() {
    for pixels in [PixelType::U8, PixelType::F32] {
        let loader =
            open(vec![filmed(0, 9, &film())], LoaderConfig { pixels, batch_size: 9, ..camera_config() }).unwrap();
        let batch = loader.batch(0).unwrap();
        let images = &batch.images[0];
        assert_eq!((images.camera.as_str(), images.shape), (TOP, [2, 3, 8, 16]));
        let greys: Vec<f32> = match &images.pixels {
            Pixels::U8(values) => values.iter().map(|&value| f32::from(value)).collect(),
            Pixels::F32(values) => values.iter().map(|&value| value * 255.0).collect(),
        };
        assert_eq!(greys.len(), 9 * 2 * 3 * 8 * 16);
        for (index, image) in greys.chunks_exact(3 * 8 * 16).enumerate() {
            let (window, offset) = (batch.windows[index / 2], index % 2);
            let step = window.step + offset as u64;
            // Step 0 comes before the first image; step 9 is none.
            let time = [1, 1, 2, 2, 4, 4, 4, 7, 7, 7][step as usize];
            assert!(image.iter().all(|value| (value - 20.0 * time as f32).abs() <= 2.0), "step {step}: {}", image[0]);
            assert_eq!(images.is_pad[index], step == 0 || step == 9, "step {step}");
        }
    }
}

#[test]
fn pixels_come_channel_by_channel() {
    let mut file = Vec::new();
    let rgb: Vec<u8> = (0..8 * 16).flat_map(|at| if at % 16 < 8 { [250, 5, 60] } else { [5, 250, 60] }).collect();
    let mut encoder = jpeg_encoder::Encoder::new(&mut file, 100);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_1_1);
    encoder.encode(&rgb, 16, 8, jpeg_encoder::ColorType::Rgb).unwrap();
    let batch = open(vec![filmed(0, 3, &[(0, file)])], camera_config()).unwrap().batch(0).unwrap();
    let Pixels::U8(values) = &batch.images[0].pixels else { panic!("u8 was asked for") };
    for (channel, expected) in [(0, [250, 5]), (1, [5, 250]), (2, [60, 60])] {
        for row in 0..8 {
            for column in 0..16 {
                let value = values[(channel * 8 + row) * 16 + column];
                assert!(value.abs_diff(expected[column / 8]) <= 4, "{channel} {row} {column}: {value}");
            }
        }
    }
}

/// The first error of a loader over these episodes must name every part.
fn refused(episodes: Vec<Episode>, config: LoaderConfig, parts: &[&str]) {
    refused_memory(Memory::of(episodes), config, parts);
}

fn refused_memory(memory: Memory, config: LoaderConfig, parts: &[&str]) {
    let first_error = |memory: Memory| {
        let loader = Loader::open(Box::new(memory), &Selection::default(), config)?;
        let mut batches = loader.batches(0)?;
        let error = (0..100).find_map(|_| batches.next().and_then(Result::err)).expect("something was wrong");
        assert!(batches.next().is_none(), "after an error there is nothing more");
        Err::<(), LoaderError>(error)
    };
    let error = first_error(memory).unwrap_err();
    let message = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
    parts.iter().for_each(|part| assert!(message.contains(part), "{message} lacks {part}"));
}

#[test]
fn damaged_episodes_are_named() {
    let all = || episodes(&[4, 4]);
    let id = all()[1].0.id().to_string();
    let mut memory = Memory::of(all());
    *memory.chunks.get_mut(&ChunkId::of(&all()[1].1[1])).unwrap().last_mut().unwrap() ^= 1;
    refused_memory(memory, config(), &["chunk", "damaged", &id]);
    let mut memory = Memory::of(all());
    memory.chunks.remove(&ChunkId::of(&all()[1].1[0])).unwrap();
    refused_memory(memory, config(), &["chunk", "missing"]);
    let mut wrong = all();
    wrong[1].0.streams[0].chunks[1].steps += 1;
    wrong[1].0.steps += 1;
    let id = wrong[1].0.id().to_string();
    refused(wrong, config(), &["holds 2 steps; the manifest says 3", &id]);
    let bad = vec![episode(0, "reach", &[[1.0, 1.0], [1.0, 1.0], [1.0, f32::NAN]])];
    refused(bad, config(), &["NaN in \"observation.state\"[1] at step 2"]);
    refused(Vec::new(), config(), &["leaves no episode"]);
}

#[test]
fn bad_images_are_named_with_their_episode_and_camera() {
    let mut images = film();
    images[3].1 = jpeg(8, 16, 0);
    let id = filmed(0, 9, &images).0.id().to_string();
    refused(vec![filmed(0, 9, &images)], camera_config(), &[TOP, &id, "image of 8x16 at 4 ns", "says 16x8"]);
    for broken in [vec![0xff, 0xd8, 1, 2, 3], jpeg(16, 8, 3)[..300].to_vec(), b"png".to_vec()] {
        images[3].1 = broken;
        let id = filmed(0, 9, &images).0.id().to_string();
        refused(vec![filmed(0, 9, &images)], camera_config(), &[TOP, &id, "at 4 ns, cannot be decoded"]);
    }
    let mut unordered = film();
    unordered.swap(0, 1);
    refused(vec![filmed(0, 9, &unordered)], camera_config(), &[TOP, "goes back in time"]);
    refused(vec![filmed(0, 9, &film()), filmed(1, 9, &[])], camera_config(), &[TOP, "has no image of camera"]);
    let mut fewer = filmed(0, 9, &film());
    fewer.0.streams[1].chunks[0].steps = 3;
    refused(vec![fewer], camera_config(), &["holds 2 steps; the manifest says 3"]);
    let mut damaged = filmed(0, 9, &film());
    let chunk = damaged.1.last_mut().unwrap();
    chunk[16 + 8] ^= 0xff;
    damaged.0.streams[1].chunks.last_mut().unwrap().id = ChunkId::of(chunk);
    refused(vec![damaged], camera_config(), &["cannot be decoded", "lengths"]);
}

#[test]
fn cameras_that_cannot_be_loaded_are_refused_before_anything_is_read() {
    refused(episodes(&[3]), camera_config(), &["no camera", TOP, "it has []"]);
    let body = with_camera(embodiment(), Encoding::H264);
    let (mut manifest, chunks) = episode_of(body.clone(), 0, "reach", &[[0.0; 2]; 3]);
    let schema = Schema::stream(body.features.last().unwrap());
    manifest.streams.push(Stream { name: TOP.to_owned(), schema, chunks: Vec::new() });
    refused(vec![(manifest, chunks)], camera_config(), &[TOP, "does not record JPEG"]);
    let mut timeless = filmed(0, 2, &film());
    timeless.0.streams[0].schema.columns[0].name = "observation.clock".into();
    refused(vec![timeless], camera_config(), &["have no times"]);
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let check = |change: fn(&mut LoaderConfig), parts: &[&str]| {
        let mut config = config();
        change(&mut config);
        refused(episodes(&[3]), config, parts);
    };
    check(|c| c.batch_size = 0, &["batch_size is 0"]);
    check(|c| c.threads = 0, &["threads is 0"]);
    check(|c| c.threads = 257, &["threads is 257"]);
    check(|c| c.prefetch_batches = 0, &["prefetch_batches"]);
    check(|c| c.observation_steps = 2..2, &["observation_steps is 2..2"]);
    check(|c| c.action_steps.end = -1, &["action_steps is 0..-1"]);
    check(|c| c.batch_size = usize::MAX, &["lower batch_size"]);
    check(|c| c.observation_steps = i32::MIN..i32::MAX, &["lower batch_size"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn windows_hold_the_steps_around_them_wherever_chunks_are_cut(
        lens in proptest::collection::vec(1_usize..9, 1..4),
        begin in -6_i32..6,
        steps in 1_i32..9,
        number in 0_u64..9,
    ) {
        let loader = open(episodes(&lens), LoaderConfig { observation_steps: begin..begin + steps, ..config() }).unwrap();
        let batch = loader.batch(number).unwrap();
        let mut values = batch.observations.values.chunks_exact(2);
        for window in &batch.windows {
            let first: usize = lens[..window.episode].iter().sum();
            for offset in begin..begin + steps {
                let step = (window.step as i64 + i64::from(offset)).clamp(0, lens[window.episode] as i64 - 1);
                prop_assert_eq!(values.next().unwrap(), [(first as i64 + step) as f32, step as f32]);
            }
        }
        prop_assert!(values.next().is_none());
    }
}
