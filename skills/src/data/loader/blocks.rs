//! Chunks, read, verified and decompressed, and kept while there is room.
//!
//! The source is asked by one thread at a time; hashing and decompressing go on beside it.

use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zunft_protocol::chunk::{Chunk, MONOTONIC_NS, SampleChunk};
use zunft_protocol::embodiment::{Dtype, Encoding};
use zunft_protocol::episode::ChunkRef;
use zunft_protocol::ids::EpisodeId;

use super::cache::{Cache, Key, Weigh};
use super::{LoaderError, Window};
use crate::data::dataset::DatasetError;
use crate::data::selected::{Layout, Selected, decode_steps, read_stored};
use crate::data::source::EpisodeSource;

/// A chunk's first time before anyone has read it. A chunk that really begins then is read again each time.
const UNKNOWN_NS: i64 = i64::MIN;

/// Every chunk of the selected episodes.
pub(super) struct Blocks {
    source: Mutex<Box<dyn EpisodeSource + Send>>,
    cache: Mutex<Cache<Block>>,
    episodes: Vec<Episode>,
    layout: Layout,
    cameras: Vec<String>,
    with_times: bool,
}

struct Episode {
    selected: Selected,
    /// First step of each chunk of the steps.
    first_steps: Vec<u64>,
    /// In the order of the loader's cameras.
    cameras: Vec<CameraStream>,
}

struct CameraStream {
    chunks: Vec<ChunkRef>,
    /// Time of each chunk's first image, once read.
    first_times: Vec<AtomicI64>,
}

/// A chunk as it is kept.
#[derive(Debug, Clone)]
enum Block {
    Steps(Arc<StepBlock>),
    Images(Arc<ImageBlock>),
}

/// Consecutive steps, row by row.
#[derive(Debug)]
pub(super) struct StepBlock {
    first_step: u64,
    steps: u64,
    /// `[steps, observation_dim]`
    pub(super) observations: Vec<f32>,
    /// `[steps, action_dim]`
    pub(super) actions: Vec<f32>,
    /// Monotonic nanoseconds, where there are cameras. `[steps]`
    times: Vec<i64>,
}

/// Consecutive images, as stored.
#[derive(Debug)]
pub(super) struct ImageBlock {
    stored: Vec<u8>,
    /// Monotonic nanoseconds, never falling. `[images]`
    times: Vec<i64>,
    /// Where each image lies in `stored`. `[images]`
    places: Vec<Range<u32>>,
}

/// The steps around a window, as far as they are inside the episode.
pub(super) struct StepSpan {
    pub(super) episode_steps: u64,
    blocks: Vec<Arc<StepBlock>>,
}

/// The image that belongs to a time.
pub(super) struct Found {
    block: Arc<ImageBlock>,
    index: usize,
    /// Whether it was taken after that time, being the first.
    pub(super) early: bool,
}

impl Blocks {
    /// Refuses episodes without images of one of the `cameras`, or without times where they need them.
    pub(super) fn new(
        source: Box<dyn EpisodeSource + Send>,
        episodes: Vec<Selected>,
        layout: Layout,
        cameras: &[String],
        with_times: bool,
        cache_bytes: usize,
    ) -> Result<Self, LoaderError> {
        let episodes = episodes.into_iter().map(|episode| Episode::new(episode, cameras, with_times));
        Ok(Self {
            source: Mutex::new(source),
            cache: Mutex::new(Cache::new(cache_bytes)),
            episodes: episodes.collect::<Result<_, _>>()?,
            layout,
            cameras: cameras.to_vec(),
            with_times,
        })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn episode_id(&self, episode: usize) -> EpisodeId {
        self.episodes[episode].selected.id
    }

    pub(super) fn episode_ids(&self) -> impl Iterator<Item = EpisodeId> {
        self.episodes.iter().map(|episode| episode.selected.id)
    }

    pub(super) fn cached_bytes(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).bytes()
    }

    /// The steps at these offsets from a window's, and the nearest inside the episode where they are outside.
    pub(super) fn span(&self, window: Window, offsets: &Range<i32>) -> Result<StepSpan, LoaderError> {
        let episode = &self.episodes[window.episode];
        let episode_steps = episode.selected.steps;
        let chunk_at = |offset: i32| {
            let step = nearest(window.step, offset, episode_steps);
            episode.first_steps.partition_point(|&first| first <= step) - 1
        };
        let chunks = chunk_at(offsets.start)..=chunk_at(offsets.end - 1);
        let blocks = chunks.map(|chunk| self.steps(window.episode, chunk)).collect::<Result<_, _>>()?;
        Ok(StepSpan { episode_steps, blocks })
    }

    /// The last image of a camera that was taken at or before `time_ns`, or the first where there is none.
    pub(super) fn image_at(&self, episode: usize, camera: usize, time_ns: i64) -> Result<Found, LoaderError> {
        let stream = &self.episodes[episode].cameras[camera];
        let (mut begin, mut end) = (0, stream.chunks.len());
        while end - begin > 1 {
            let middle = begin.midpoint(end);
            if self.first_time(episode, camera, middle)? <= time_ns {
                begin = middle;
            } else {
                end = middle;
            }
        }
        let block = self.images(episode, camera, begin)?;
        let taken = block.times.partition_point(|&taken_ns| taken_ns <= time_ns);
        Ok(Found { index: taken.saturating_sub(1), early: taken == 0, block })
    }

    fn first_time(&self, episode: usize, camera: usize, chunk: usize) -> Result<i64, LoaderError> {
        // Relaxed: every thread would find the same.
        match self.episodes[episode].cameras[camera].first_times[chunk].load(Ordering::Relaxed) {
            UNKNOWN_NS => Ok(self.images(episode, camera, chunk)?.times[0]),
            known => Ok(known),
        }
    }

    fn steps(&self, episode: usize, chunk: usize) -> Result<Arc<StepBlock>, LoaderError> {
        let read = || {
            let Episode { selected, first_steps, .. } = &self.episodes[episode];
            let chunk_ref = &selected.chunks[chunk];
            let stored = self.stored(selected.id, chunk_ref)?;
            let decoded = decode_steps(&stored, selected, chunk_ref)?;
            let block = StepBlock::of(&decoded, first_steps[chunk], selected, &self.layout, self.with_times)?;
            Ok(Block::Steps(Arc::new(block)))
        };
        match self.kept((episode as u32, 0, chunk as u32), read)? {
            Block::Steps(block) => Ok(block),
            Block::Images(_) => unreachable!("stream 0 is the steps"),
        }
    }

    fn images(&self, episode: usize, camera: usize, chunk: usize) -> Result<Arc<ImageBlock>, LoaderError> {
        let read = || {
            let Episode { selected, cameras, .. } = &self.episodes[episode];
            let stream = &cameras[camera];
            let chunk_ref = &stream.chunks[chunk];
            let stored = self.stored(selected.id, chunk_ref)?;
            let block = ImageBlock::of(stored, selected.id, &self.cameras[camera], chunk_ref)?;
            stream.first_times[chunk].store(block.times[0], Ordering::Relaxed);
            Ok(Block::Images(Arc::new(block)))
        };
        match self.kept((episode as u32, camera as u32 + 1, chunk as u32), read)? {
            Block::Images(block) => Ok(block),
            Block::Steps(_) => unreachable!("streams from 1 on are cameras"),
        }
    }

    fn kept(&self, key: Key, read: impl FnOnce() -> Result<Block, LoaderError>) -> Result<Block, LoaderError> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(block) = cache().get(key) {
            return Ok(block);
        }
        let block = read()?;
        cache().put(key, block.clone());
        Ok(block)
    }

    fn stored(&self, episode: EpisodeId, chunk_ref: &ChunkRef) -> Result<Vec<u8>, LoaderError> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(read_stored(source.as_mut(), episode, chunk_ref)?)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blocks").field("episodes", &self.episodes.len()).finish_non_exhaustive()
    }
}

/// The step of the episode that is nearest to the one at this offset from `step`.
fn nearest(step: u64, offset: i32, episode_steps: u64) -> u64 {
    // An episode has at most a billion steps.
    (step as i64 + i64::from(offset)).clamp(0, episode_steps as i64 - 1) as u64
}

impl Episode {
    fn new(mut selected: Selected, cameras: &[String], with_times: bool) -> Result<Self, LoaderError> {
        let id = selected.id;
        let is_time = |name: &str, dtype, values| name == MONOTONIC_NS && dtype == Dtype::I64 && values == 1;
        if with_times && !selected.schema.columns.iter().any(|it| is_time(&it.name, it.dtype, it.values)) {
            return Err(LoaderError::NoTimes { episode: id });
        }
        let mut others = std::mem::take(&mut selected.others);
        let cameras = cameras.iter().map(|camera| {
            let stream = others.iter_mut().find(|stream| stream.name == *camera);
            let chunks = stream.map(|stream| std::mem::take(&mut stream.chunks)).unwrap_or_default();
            if chunks.is_empty() {
                return Err(LoaderError::NoImages { episode: id, camera: camera.clone() });
            }
            let first_times = chunks.iter().map(|_| AtomicI64::new(UNKNOWN_NS)).collect();
            Ok(CameraStream { chunks, first_times })
        });
        let cameras = cameras.collect::<Result<_, _>>()?;
        let mut steps = 0;
        let first_steps = selected.chunks.iter().map(|chunk| {
            let first = steps;
            steps += u64::from(chunk.steps);
            first
        });
        let first_steps = first_steps.collect();
        Ok(Self { selected, first_steps, cameras })
    }
}

impl StepBlock {
    fn of(
        chunk: &Chunk,
        first_step: u64,
        episode: &Selected,
        layout: &Layout,
        with_times: bool,
    ) -> Result<Self, LoaderError> {
        let steps = chunk.steps() as usize;
        let mut observations = vec![0.0; steps * layout.observation_dim];
        let mut actions = vec![0.0; steps * layout.action_dim];
        layout.copy(episode, chunk, first_step as usize, &mut observations, &mut actions)?;
        let times = chunk.column(MONOTONIC_NS).filter(|_| with_times).map(<[u8]>::as_chunks::<8>);
        let times = times.map(|(times, _)| times.iter().map(|&time| i64::from_le_bytes(time)).collect());
        Ok(Self { first_step, steps: steps as u64, observations, actions, times: times.unwrap_or_default() })
    }
}

impl ImageBlock {
    fn of(stored: Vec<u8>, episode: EpisodeId, camera: &str, chunk_ref: &ChunkRef) -> Result<Self, LoaderError> {
        let chunk = chunk_ref.id;
        let read = SampleChunk::decode(&stored, Encoding::Jpeg).map_err(|source| DatasetError::Chunk {
            chunk,
            episode,
            source,
        })?;
        let (found, expected) = (read.samples().len() as u32, chunk_ref.steps);
        if found != expected {
            return Err(DatasetError::ChunkSteps { chunk, episode, found, expected }.into());
        }
        let times: Vec<i64> = read.samples().iter().map(|sample| sample.monotonic_ns).collect();
        if !times.is_sorted() {
            return Err(LoaderError::ImageTimes { episode, camera: camera.to_owned(), chunk });
        }
        // The images are the end of the chunk, one after another.
        let image_bytes: usize = read.samples().iter().map(|sample| sample.bytes.len()).sum();
        let mut end = (stored.len() - image_bytes) as u32;
        let places = read.samples().iter().map(|sample| {
            let begin = end;
            end += sample.bytes.len() as u32;
            begin..end
        });
        let places = places.collect();
        Ok(Self { stored, times, places })
    }
}

impl Weigh for Block {
    fn memory_bytes(&self) -> usize {
        // What the maps of the cache take for each chunk, about.
        const OVERHEAD_BYTES: usize = 256;
        OVERHEAD_BYTES
            + match self {
                Self::Steps(block) => {
                    4 * (block.observations.capacity() + block.actions.capacity()) + 8 * block.times.capacity()
                }
                Self::Images(block) => block.stored.capacity() + 8 * (block.times.capacity() + block.places.capacity()),
            }
    }
}

impl StepSpan {
    /// The step nearest to this offset from the window's, and whether that one lies outside the episode.
    pub(super) fn nearest(&self, window: Window, offset: i32) -> (u64, bool) {
        let step = nearest(window.step, offset, self.episode_steps);
        (step, step as i64 != window.step as i64 + i64::from(offset))
    }

    /// Monotonic nanoseconds of a step of the span.
    pub(super) fn time(&self, step: u64) -> i64 {
        let block = self.blocks.iter().rfind(|block| block.first_step <= step).expect("the span holds the step");
        block.times[(step - block.first_step) as usize]
    }

    /// Appends the rows of these steps of the span; `values` says which of a block's arrays, and how wide it is.
    pub(super) fn copy(&self, steps: Range<u64>, values: impl Fn(&StepBlock) -> (&[f32], usize), to: &mut Vec<f32>) {
        for block in &self.blocks {
            let begin = steps.start.max(block.first_step);
            let end = steps.end.min(block.first_step + block.steps);
            if begin < end {
                let (rows, dim) = values(block);
                let row = |step: u64| (step - block.first_step) as usize * dim;
                to.extend_from_slice(&rows[row(begin)..row(end)]);
            }
        }
    }
}

impl Found {
    /// The image's file.
    pub(super) fn bytes(&self) -> &[u8] {
        let place = &self.block.places[self.index];
        &self.block.stored[place.start as usize..place.end as usize]
    }

    /// When it was taken.
    pub(super) fn time_ns(&self) -> i64 {
        self.block.times[self.index]
    }
}
