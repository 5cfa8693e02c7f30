//! Random windows of a snapshot, batch by batch, in memory that does not grow with the snapshot.
//!
//! A window is a step of an episode with the observations, actions and images around it: at the offsets that the
//! configuration names, LeRobot's `delta_timestamps` counted in steps. Every step of every selected episode is drawn
//! once a pass, in an order of its own each pass. What lies before the episode's begin or after its end repeats its
//! first or last step and is marked as padding, as in LeRobot's `*_is_pad`.
//!
//! A batch is a function of (snapshot, selection, seed, number): threads change only when it is ready.
//!
//! Memory: [`LoaderConfig::cache_bytes`] for chunks that were read; [`LoaderConfig::prefetch_batches`] batches beside
//! the one that the caller has; a thread also holds the chunks of its window and one that it reads (at most 9 MiB).
//! On top come 64 bytes a chunk and some 400 an episode of lists. A snapshot larger than the cache works, but then
//! nearly every window reads its chunk again.
//!
//! It knows no policies and no normalisation.

mod blocks;
mod cache;
mod error;
mod images;
mod order;
mod prefetch;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use zunft_protocol::embodiment::{Embodiment, Encoding, IMAGES_PREFIX};
use zunft_protocol::ids::{EpisodeId, TaskName};

use super::selected::{Layout, select};
use super::selection::Selection;
use super::source::EpisodeSource;
use blocks::{Blocks, StepSpan};
use images::{Camera, ImageSize};
use order::Order;

pub use error::LoaderError;
pub use prefetch::Batches;

/// Largest batch, with its images: what a batch of 256 windows of two 640x480 f32 images takes, and twice that.
pub const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024 * 1024;

/// Most threads of one loader: more than any machine has for it, and no accident.
pub const LOADER_THREADS_MAX: usize = 256;

/// What a window holds, how many make a batch, and how much memory and how many threads that may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Decides the order of windows.
    pub seed: u64,
    /// Windows a batch.
    pub batch_size: usize,
    /// Observations of a window, in steps from the one that was drawn: `-1..1` is the one before and itself.
    pub observation_steps: Range<i32>,
    /// Its actions.
    pub action_steps: Range<i32>,
    /// Cameras to decode, by feature: `observation.images.<camera>`. JPEG only.
    pub cameras: Vec<String>,
    /// Steps that have an image of each camera: the last one taken at or before the step.
    pub image_steps: Range<i32>,
    /// How pixels come out.
    pub pixels: PixelType,
    /// Threads that read, decompress and decode.
    pub threads: usize,
    /// Batches that are made before anyone asks for them, those under way included.
    pub prefetch_batches: usize,
    /// Bytes of chunks, decompressed (images: as stored), kept for later windows; those used longest ago go first.
    pub cache_bytes: usize,
}

impl Default for LoaderConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            batch_size: 64,
            observation_steps: 0..1,
            action_steps: 0..1,
            cameras: Vec::new(),
            image_steps: 0..1,
            pixels: PixelType::U8,
            threads: 2,
            prefetch_batches: 4,
            cache_bytes: 512 * 1024 * 1024,
        }
    }
}

/// Type of an image's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelType {
    /// 0 to 255.
    U8,
    /// 0 to 1, as LeRobot has them. Four times the memory.
    F32,
}

/// Where a window was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    /// Index into the loader's episodes.
    pub episode: usize,
    /// Its step, counted from 0 in the episode.
    pub step: u64,
}

/// Some windows, row-major, ready to become tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct WindowBatch {
    /// Which batch, counted from 0 at the begin of the first pass.
    pub number: u64,
    /// Where each window was drawn. `[batch]`
    pub windows: Vec<Window>,
    /// Index of each window's task in [`Loader::tasks`]. `[batch]`
    pub tasks: Vec<usize>,
    /// All f32 observation features, flattened, in the embodiment's order and units.
    pub observations: StepWindows,
    /// The action, in the embodiment's units.
    pub actions: StepWindows,
    /// Images of each camera, in the order of [`LoaderConfig::cameras`].
    pub images: Vec<ImageWindows>,
}

/// Values of the steps of some windows.
#[derive(Debug, Clone, PartialEq)]
pub struct StepWindows {
    /// Steps a window.
    pub steps: usize,
    /// Values a step.
    pub dim: usize,
    /// `[batch, steps, dim]`
    pub values: Vec<f32>,
    /// Whether a step lies outside the episode: its values are those of the nearest inside. `[batch, steps]`
    pub is_pad: Vec<bool>,
}

/// One camera's images of some windows.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageWindows {
    /// The camera's feature.
    pub camera: String,
    /// Images a window, and channels (3 are RGB), height and width of each.
    pub shape: [usize; 4],
    /// `[batch, steps, channels, height, width]`
    pub pixels: Pixels,
    /// Whether the step lies outside the episode, or before the camera's first image: the image is then the nearest
    /// that there is. `[batch, steps]`
    pub is_pad: Vec<bool>,
}

/// Values of images.
#[derive(Debug, Clone, PartialEq)]
pub enum Pixels {
    /// 0 to 255.
    U8(Vec<u8>),
    /// 0 to 1.
    F32(Vec<f32>),
}

/// Draws windows from the selected episodes of one snapshot.
#[derive(Debug, Clone)]
pub struct Loader {
    shared: Arc<Shared>,
}

/// What the threads of a loader have in common.
#[derive(Debug)]
struct Shared {
    config: LoaderConfig,
    tasks: Vec<TaskName>,
    /// Index of each episode's task.
    episode_tasks: Vec<usize>,
    /// Steps before each episode: where its windows begin.
    first_windows: Vec<u64>,
    windows: u64,
    embodiment: Embodiment,
    cameras: Vec<Camera>,
    blocks: Blocks,
}

impl Loader {
    /// Reads the manifests of `source` and keeps it for the chunks.
    pub fn open(
        mut source: Box<dyn EpisodeSource + Send>,
        selection: &Selection,
        config: LoaderConfig,
    ) -> Result<Self, LoaderError> {
        check(&config)?;
        let (episodes, embodiment) = select(source.as_mut(), selection)?;
        let layout = Layout::of(&embodiment)?;
        let cameras = cameras(&embodiment, &config)?;
        let batch_bytes = batch_bytes(&config, &layout, &cameras);
        if batch_bytes.is_none_or(|bytes| bytes > BATCH_BYTES_MAX) {
            return Err(LoaderError::BatchTooLarge { batch_size: config.batch_size });
        }
        let tasks: BTreeSet<TaskName> = episodes.iter().map(|episode| episode.task.clone()).collect();
        let tasks: Vec<TaskName> = tasks.into_iter().collect();
        let task_of = |task| tasks.binary_search(task).expect("collected from these episodes");
        let episode_tasks = episodes.iter().map(|episode| task_of(&episode.task)).collect();
        let mut windows = 0_u64;
        let mut first_windows = Vec::with_capacity(episodes.len());
        for episode in &episodes {
            first_windows.push(windows);
            // A snapshot has fewer episodes than u32 counts, each of at most a billion steps.
            windows = windows.saturating_add(episode.steps);
        }
        let with_times = !cameras.is_empty();
        let blocks = Blocks::new(source, episodes, layout, &config.cameras, with_times, config.cache_bytes)?;
        let shared = Shared { config, tasks, episode_tasks, first_windows, windows, embodiment, cameras, blocks };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Windows a pass: the steps of all selected episodes.
    pub fn windows(&self) -> u64 {
        self.shared.windows
    }

    /// Tasks of the selected episodes, sorted: the one-hot order.
    pub fn tasks(&self) -> &[TaskName] {
        &self.shared.tasks
    }

    /// The body that all episodes share.
    pub fn embodiment(&self) -> &Embodiment {
        &self.shared.embodiment
    }

    /// The selected episodes, in canonical order, which [`Window::episode`] counts.
    pub fn episodes(&self) -> impl Iterator<Item = EpisodeId> {
        self.shared.blocks.episode_ids()
    }

    /// Bytes that the cache holds now, at most [`LoaderConfig::cache_bytes`].
    pub fn cached_bytes(&self) -> usize {
        self.shared.blocks.cached_bytes()
    }

    /// Makes one batch on the caller's thread: the same one that [`Loader::batches`] yields at this number.
    pub fn batch(&self, number: u64) -> Result<WindowBatch, LoaderError> {
        self.shared.batch(number)
    }

    /// All batches from `first` on, pass after pass without end, made by the loader's threads ahead of the caller.
    ///
    /// A run that goes on after its step `n` begins at batch `n`.
    pub fn batches(&self, first: u64) -> Result<Batches, LoaderError> {
        let shared = Arc::clone(&self.shared);
        let LoaderConfig { threads, prefetch_batches, .. } = shared.config;
        Batches::start(first, threads, prefetch_batches, move |number| shared.batch(number))
    }
}

fn check(config: &LoaderConfig) -> Result<(), LoaderError> {
    let refuse = |field, found: String, expected| Err(LoaderError::Config { field, found, expected });
    if config.batch_size == 0 {
        return refuse("batch_size", "0".into(), "at least 1");
    }
    if !(1..=LOADER_THREADS_MAX).contains(&config.threads) {
        return refuse("threads", config.threads.to_string(), "1 to 256");
    }
    if config.prefetch_batches == 0 {
        return refuse("prefetch_batches", "0".into(), "at least 1");
    }
    let ranges = [
        ("observation_steps", &config.observation_steps),
        ("action_steps", &config.action_steps),
        ("image_steps", &config.image_steps),
    ];
    for (field, range) in ranges {
        if range.is_empty() {
            return refuse(field, format!("{range:?}"), "at least one step, such as 0..1");
        }
    }
    Ok(())
}

fn cameras(embodiment: &Embodiment, config: &LoaderConfig) -> Result<Vec<Camera>, LoaderError> {
    let one = |name: &String| {
        let known = || embodiment.streams().filter(|feature| feature.name.starts_with(IMAGES_PREFIX));
        match known().find(|feature| feature.name == *name).map(|feature| (feature.encoding, &feature.shape[..])) {
            Some((Some(Encoding::Jpeg), &[height, width, channels])) => {
                let [channels, height, width] = [channels, height, width].map(|dim| dim as usize);
                Ok(Camera { name: name.clone(), size: ImageSize { channels, height, width } })
            }
            Some(_) => Err(LoaderError::Encoding { camera: name.clone() }),
            None => {
                let known = known().map(|feature| feature.name.clone()).collect();
                Err(LoaderError::NoCamera { camera: name.clone(), known })
            }
        }
    };
    config.cameras.iter().map(one).collect()
}

/// Bytes of the values of one batch; `None` where they cannot be counted.
fn batch_bytes(config: &LoaderConfig, layout: &Layout, cameras: &[Camera]) -> Option<usize> {
    let pixel_bytes = match config.pixels {
        PixelType::U8 => 1,
        PixelType::F32 => 4,
    };
    let steps = |range: &Range<i32>, step_bytes: usize| len(range).checked_mul(step_bytes + 1);
    let mut window = steps(&config.observation_steps, 4 * layout.observation_dim)?;
    window = window.checked_add(steps(&config.action_steps, 4 * layout.action_dim)?)?;
    for camera in cameras {
        window = window.checked_add(steps(&config.image_steps, pixel_bytes * camera.size.values())?)?;
    }
    window.checked_mul(config.batch_size)
}

/// Steps of a range that is not empty.
fn len(range: &Range<i32>) -> usize {
    (i64::from(range.end) - i64::from(range.start)) as usize
}

impl Shared {
    fn batch(&self, number: u64) -> Result<WindowBatch, LoaderError> {
        let windows = self.draw(number);
        let (size, layout) = (windows.len(), self.blocks.layout());
        let mut batch = WindowBatch {
            number,
            tasks: windows.iter().map(|window| self.episode_tasks[window.episode]).collect(),
            observations: StepWindows::with_capacity(size, &self.config.observation_steps, layout.observation_dim),
            actions: StepWindows::with_capacity(size, &self.config.action_steps, layout.action_dim),
            images: self.cameras.iter().map(|camera| self.empty_images(size, camera)).collect(),
            windows,
        };
        let mut pixels = Vec::new();
        for index in 0..size {
            self.fill(&mut batch, index, &mut pixels)?;
        }
        Ok(batch)
    }

    /// The windows of a batch, in their order.
    fn draw(&self, number: u64) -> Vec<Window> {
        let batch_size = self.config.batch_size as u64;
        // Wraps after 2^64 windows: a million a second for half a million years.
        let first = number.wrapping_mul(batch_size);
        let mut order: Option<(u64, Order)> = None;
        let mut draw = |draw: u64| {
            let (pass, position) = (draw / self.windows, draw % self.windows);
            if order.as_ref().is_none_or(|(of, _)| *of != pass) {
                order = Some((pass, Order::of(self.config.seed, pass, self.windows)));
            }
            let (_, order) = order.as_ref().expect("filled above");
            self.window(order.at(position))
        };
        (0..batch_size).map(|index| draw(first.wrapping_add(index))).collect()
    }

    fn window(&self, window: u64) -> Window {
        let episode = self.first_windows.partition_point(|&first| first <= window) - 1;
        Window { episode, step: window - self.first_windows[episode] }
    }

    fn empty_images(&self, size: usize, camera: &Camera) -> ImageWindows {
        let steps = len(&self.config.image_steps);
        let values = size * steps * camera.size.values();
        ImageWindows {
            camera: camera.name.clone(),
            shape: [steps, camera.size.channels, camera.size.height, camera.size.width],
            pixels: match self.config.pixels {
                PixelType::U8 => Pixels::U8(Vec::with_capacity(values)),
                PixelType::F32 => Pixels::F32(Vec::with_capacity(values)),
            },
            is_pad: Vec::with_capacity(size * steps),
        }
    }

    /// Appends the values of one window to a batch; `pixels` is room for an image.
    fn fill(&self, batch: &mut WindowBatch, index: usize, pixels: &mut Vec<u8>) -> Result<(), LoaderError> {
        let window = batch.windows[index];
        let LoaderConfig { observation_steps, action_steps, image_steps, .. } = &self.config;
        let mut begin = observation_steps.start.min(action_steps.start);
        let mut end = observation_steps.end.max(action_steps.end);
        if !self.cameras.is_empty() {
            (begin, end) = (begin.min(image_steps.start), end.max(image_steps.end));
        }
        let span = self.blocks.span(window, &(begin..end))?;
        let layout = self.blocks.layout();
        batch
            .observations
            .push(&span, window, observation_steps, |block| (&block.observations, layout.observation_dim));
        batch.actions.push(&span, window, action_steps, |block| (&block.actions, layout.action_dim));
        for (camera, images) in self.cameras.iter().zip(&mut batch.images).enumerate() {
            let (of, images) = images;
            for offset in image_steps.clone() {
                let (step, is_pad) = span.nearest(window, offset);
                let found = self.blocks.image_at(window.episode, camera, span.time(step))?;
                of.decode(self.blocks.episode_id(window.episode), &found, pixels)?;
                images.push(&of.size, pixels);
                images.is_pad.push(is_pad || found.early);
            }
        }
        Ok(())
    }
}

impl StepWindows {
    fn with_capacity(size: usize, range: &Range<i32>, dim: usize) -> Self {
        let steps = len(range);
        let rows = size * steps;
        Self { steps, dim, values: Vec::with_capacity(rows * dim), is_pad: Vec::with_capacity(rows) }
    }

    /// Appends the steps `range` around a window.
    fn push(
        &mut self,
        span: &StepSpan,
        window: Window,
        range: &Range<i32>,
        values: impl Fn(&blocks::StepBlock) -> (&[f32], usize),
    ) {
        let steps = self.steps;
        let begin = window.step as i64 + i64::from(range.start);
        let end = begin + steps as i64;
        let before = (-begin).clamp(0, steps as i64) as usize;
        let after = (end - span.episode_steps as i64).clamp(0, (steps - before) as i64) as usize;
        let inside = steps - before - after;
        let first = begin.max(0) as u64;
        for _ in 0..before {
            span.copy(0..1, &values, &mut self.values);
        }
        if inside > 0 {
            span.copy(first..first + inside as u64, &values, &mut self.values);
        }
        for _ in 0..after {
            span.copy(span.episode_steps - 1..span.episode_steps, &values, &mut self.values);
        }
        self.is_pad.resize(self.is_pad.len() + before, true);
        self.is_pad.resize(self.is_pad.len() + inside, false);
        self.is_pad.resize(self.is_pad.len() + after, true);
    }
}
