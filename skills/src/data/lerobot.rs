//! Reads a LeRobotDataset v3: state and action, step by step, with reward and outcome.
//!
//! - Floats, and images that lie in the tables. float64 is rounded to float32, in which policies compute; PNG becomes
//!   JPEG of quality 95. Video and integers are refused, or left out when asked to.
//! - The outcome is `next.success` of the last step: whoever succeeds and spoils it has not succeeded. Without that
//!   column the outcome is unknown.
//! - An episode was truncated if `next.truncated` says so at the last step, or `next.done` is there and says no.
//! - Time is `frame_index / fps` where `timestamp` agrees within LeRobot's own tolerance (it is a float32 of just
//!   that), and `timestamp` where it does not: those are real capture times.
//!
//! Episodes are read one at a time, in the order of the dataset, each checked whole before it is handed out.

mod columns;
mod error;
mod images;
mod info;
mod meta;
mod rows;
mod task_names;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use zunft_protocol::embodiment::{Embodiment, Feature};
use zunft_protocol::episode::{EpisodeEnd, Outcome, Truncation};
use zunft_protocol::ids::TaskName;

pub use error::LeRobotError;
pub use images::ImageFileError;
pub use meta::LeRobotTask;

use columns::Batch;
use info::{DONE, Info, REWARD, SUCCESS, TRUNCATED};
use meta::EpisodeMeta;
use rows::Rows;

/// Most values in one episode over all features: 1 GiB as f32, three hours of 100 values at 250 Hz.
///
/// An episode is checked whole before any of it is used, so it must fit in memory.
pub const LEROBOT_EPISODE_VALUES_MAX: u64 = 256 * 1024 * 1024;

/// Most bytes of the images of one episode, as JPEG: an hour of one 640x480 camera at 10 Hz and more.
pub const LEROBOT_EPISODE_IMAGE_BYTES_MAX: usize = 2 * 1024 * 1024 * 1024;

/// How far `timestamp` may be from `frame_index / fps` and still mean it, in seconds: LeRobot's own tolerance.
const TIMESTAMP_TOLERANCE_SECS: f64 = 1e-4;

/// Spacing of float32 relative to a timestamp's size: late frames of long episodes cannot be exact.
const TIMESTAMP_TOLERANCE_RELATIVE: f64 = 1.2e-7;

/// How to read a dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeRobotOptions {
    /// Leave out observation features that cannot be carried (video, integers) instead of refusing.
    pub skip_unsupported: bool,
}

/// A dataset, its description read and checked.
#[derive(Debug)]
pub struct LeRobotDataset {
    root: PathBuf,
    info: Info,
    tasks: Vec<LeRobotTask>,
    episodes: Vec<EpisodeMeta>,
}

/// One episode, whole.
#[derive(Debug, Clone, PartialEq)]
pub struct LeRobotEpisode {
    /// Its `episode_index`.
    pub index: u64,
    /// What it is about.
    pub task: TaskName,
    /// How it went.
    pub outcome: Outcome,
    /// How it ended.
    pub end: EpisodeEnd,
    /// Number of steps, at least 1.
    pub steps: usize,
    /// For each feature of a step, in the embodiment's order: `[steps, values]`.
    pub features: Vec<Vec<f32>>,
    /// For each camera, in the embodiment's order, the JPEG file of each step. `[cameras, steps]`
    pub images: Vec<Vec<Vec<u8>>>,
    /// Reward that followed each step's action; NaN where the dataset has none. `[steps]`
    pub rewards: Vec<f32>,
    /// Time of each step since the beginning. `[steps]`
    pub monotonic_ns: Vec<i64>,
}

impl LeRobotDataset {
    /// Reads the description of the dataset at `root`: version, features, tasks, and where the episodes lie.
    pub fn open(root: &Path, options: LeRobotOptions) -> Result<Self, LeRobotError> {
        let info = Info::read(root, options.skip_unsupported)?;
        let tasks = meta::read_tasks(root)?;
        let episodes = meta::read_episodes(root, &info)?;
        Ok(Self { root: root.to_owned(), info, tasks, episodes })
    }

    /// The body: the dataset's float observations by name, then the action.
    pub fn embodiment(&self) -> &Embodiment {
        &self.info.embodiment
    }

    /// Tasks by their number in the dataset.
    pub fn tasks(&self) -> &[LeRobotTask] {
        &self.tasks
    }

    /// Episodes in the dataset.
    pub fn episode_count(&self) -> usize {
        self.episodes.len()
    }

    /// Steps over all episodes.
    pub fn step_count(&self) -> u64 {
        self.info.frames
    }

    /// Columns that are left out: unsupported observations (when asked for) and columns that have no meaning here.
    pub fn skipped(&self) -> &[String] {
        &self.info.skipped
    }

    /// The episodes, in order. After an error there is nothing more.
    pub fn episodes(&self) -> LeRobotEpisodes<'_> {
        LeRobotEpisodes { dataset: self, next: 0, rows: Rows::new(&self.root, &self.info) }
    }
}

/// Iterator over the episodes of a [`LeRobotDataset`].
pub struct LeRobotEpisodes<'a> {
    dataset: &'a LeRobotDataset,
    next: usize,
    rows: Rows<'a>,
}

impl Iterator for LeRobotEpisodes<'_> {
    type Item = Result<LeRobotEpisode, LeRobotError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = match self.dataset.episodes.get(self.next) {
            Some(meta) => Some(read_episode(self.dataset, &mut self.rows, meta)),
            None => self.rows.finish().err().map(Err),
        };
        self.next = self.next.saturating_add(1);
        if result.as_ref().is_none_or(Result::is_err) {
            self.next = usize::MAX;
            self.rows.stop();
        }
        result
    }
}

fn read_episode(
    dataset: &LeRobotDataset,
    rows: &mut Rows<'_>,
    meta: &EpisodeMeta,
) -> Result<LeRobotEpisode, LeRobotError> {
    let features: Vec<&Feature> = dataset.info.embodiment.step_features().collect();
    let mut parts = EpisodeParts {
        features: vec![Vec::new(); features.len()],
        images: vec![Vec::new(); dataset.info.embodiment.streams().count()],
        ..EpisodeParts::default()
    };
    let mut path = PathBuf::new();
    let mut steps = 0;
    while let Some(batch) = rows.next(meta, steps as u64)? {
        batch.path().clone_into(&mut path);
        parts.append(dataset, &batch)?;
        parts.append_images(dataset, &batch, meta.index)?;
        for (feature, values) in features.iter().zip(&parts.features) {
            let dim = feature.values();
            check_finite(&path, &feature.name, dim, &values[steps * dim..], (meta.index, steps))?;
        }
        if dataset.info.outcome_columns.contains(&REWARD) {
            check_finite(&path, REWARD, 1, &parts.rewards[steps..], (meta.index, steps))?;
        }
        steps += batch.rows();
    }
    let task = episode_task(dataset, &path, meta.index, &parts.task_indices)?;
    let succeeded = parts.success.map(|last| if last { Outcome::Success } else { Outcome::Failure });
    let truncated = parts.truncated == Some(true) || parts.done == Some(false);
    let end = if truncated { EpisodeEnd::Truncated { limit: Truncation::StepLimit } } else { EpisodeEnd::Terminated };
    let monotonic_ns = step_times(&path, meta.index, dataset.info.fps, &parts.timestamps)?;
    Ok(LeRobotEpisode {
        index: meta.index,
        task,
        outcome: succeeded.unwrap_or(Outcome::Unknown),
        end,
        steps,
        features: parts.features,
        images: parts.images,
        rewards: parts.rewards,
        monotonic_ns,
    })
}

/// Columns of an episode as they come in; truth values only of the last step so far.
#[derive(Default)]
struct EpisodeParts {
    features: Vec<Vec<f32>>,
    images: Vec<Vec<Vec<u8>>>,
    image_bytes: usize,
    rewards: Vec<f32>,
    timestamps: Vec<f64>,
    task_indices: Vec<i64>,
    success: Option<bool>,
    done: Option<bool>,
    truncated: Option<bool>,
}

impl EpisodeParts {
    fn append(&mut self, dataset: &LeRobotDataset, batch: &Batch) -> Result<(), LeRobotError> {
        for (feature, values) in dataset.info.embodiment.step_features().zip(&mut self.features) {
            batch.floats(&feature.name, &feature.shape, values)?;
        }
        self.timestamps.extend(batch.numbers("timestamp")?);
        self.task_indices.extend(batch.integers("task_index")?);
        if dataset.info.outcome_columns.contains(&REWARD) {
            batch.floats(REWARD, &[1], &mut self.rewards)?;
        } else {
            self.rewards.resize(self.rewards.len() + batch.rows(), f32::NAN);
        }
        for (name, last) in [(SUCCESS, &mut self.success), (DONE, &mut self.done), (TRUNCATED, &mut self.truncated)] {
            if dataset.info.outcome_columns.contains(&name) {
                *last = batch.booleans(name)?.last().copied().or(*last);
            }
        }
        Ok(())
    }
}

impl EpisodeParts {
    fn append_images(&mut self, dataset: &LeRobotDataset, batch: &Batch, episode: u64) -> Result<(), LeRobotError> {
        for (camera, images) in dataset.info.embodiment.streams().zip(&mut self.images) {
            let shape = [0, 1, 2].map(|dim: usize| camera.shape[dim]);
            for file in batch.files(&camera.name)? {
                let jpeg = images::jpeg_of(file, shape).map_err(|source| LeRobotError::Image {
                    path: batch.path().to_owned(),
                    column: camera.name.clone(),
                    episode,
                    frame: images.len(),
                    source,
                })?;
                self.image_bytes += jpeg.len();
                if self.image_bytes > LEROBOT_EPISODE_IMAGE_BYTES_MAX {
                    return Err(LeRobotError::ImagesTooLarge { path: batch.path().to_owned(), episode });
                }
                images.push(jpeg);
            }
        }
        Ok(())
    }
}

/// Refuses values that are not finite; `begin` is the episode and the frame of the first value.
fn check_finite(
    path: &Path,
    column: &str,
    dim: usize,
    values: &[f32],
    begin: (u64, usize),
) -> Result<(), LeRobotError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(LeRobotError::NotFinite {
            path: path.to_owned(),
            column: column.to_owned(),
            index: at % dim,
            episode: begin.0,
            frame: begin.1 + at / dim,
            value: values[at],
        }),
    }
}

fn episode_task(
    dataset: &LeRobotDataset,
    path: &Path,
    episode: u64,
    task_indices: &[i64],
) -> Result<TaskName, LeRobotError> {
    let first = task_indices.first().copied().unwrap_or(-1);
    if let Some(frame) = task_indices.iter().position(|&task_index| task_index != first) {
        return Err(LeRobotError::TaskChanges { path: path.to_owned(), episode, frame });
    }
    match usize::try_from(first).ok().and_then(|index| dataset.tasks.get(index)) {
        Some(task) => Ok(task.name.clone()),
        None => {
            let tasks = dataset.tasks.len();
            Err(LeRobotError::TaskIndex { path: path.to_owned(), episode, found: first, tasks })
        }
    }
}

fn step_times(path: &Path, episode: u64, fps: f64, timestamps: &[f64]) -> Result<Vec<i64>, LeRobotError> {
    // i64 nanoseconds end after 292 years.
    const SECS_MAX: f64 = 9e9;
    let mut least = 0.0;
    for (frame, &found) in timestamps.iter().enumerate() {
        if !(found >= least && found <= SECS_MAX) {
            return Err(LeRobotError::Timestamp { path: path.to_owned(), episode, frame, found });
        }
        least = found.next_up();
    }
    let nominal = |frame: usize| frame as f64 / fps;
    let synthetic = timestamps.iter().enumerate().all(|(frame, &found)| {
        (found - nominal(frame)).abs() <= TIMESTAMP_TOLERANCE_SECS + found * TIMESTAMP_TOLERANCE_RELATIVE
    });
    let secs = |(frame, &found): (usize, &f64)| if synthetic { nominal(frame) } else { found };
    Ok(timestamps.iter().enumerate().map(secs).map(|secs| (secs * 1e9).round() as i64).collect())
}

impl LeRobotEpisode {
    /// One step as a row of [`Schema::steps`](zunft_protocol::chunk::Schema::steps): time, every feature of a step, reward; little-endian.
    pub fn row(&self, step: usize, row: &mut Vec<u8>) {
        row.clear();
        row.extend_from_slice(&self.monotonic_ns[step].to_le_bytes());
        for values in &self.features {
            let dim = values.len() / self.steps;
            row.extend(values[step * dim..(step + 1) * dim].iter().flat_map(|value| value.to_le_bytes()));
        }
        row.extend_from_slice(&self.rewards[step].to_le_bytes());
    }
}
