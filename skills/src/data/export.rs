//! Writes the episodes of a snapshot as a LeRobotDataset v3 that LeRobot and `datasets` open.
//!
//! - The dataset appears complete or not at all: it is written beside its place, synced, and renamed.
//! - Times become what LeRobot wants, `frame_index / fps`. The measured ones stay in the snapshot.
//! - `next.success` of the last step is the outcome; `next.done` and `next.truncated` say how the episode ended.
//! - Statistics are exact: Welford in f64, and quantiles of all values by linear interpolation, where LeRobot's own
//!   recorder writes bounds of quantiles.
//!
//! Only vectors of floats and integers have a place in it; a camera's stream is named in the summary and left out.

mod stats;
mod tables;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use zunft_protocol::chunk::{Chunk, ChunkError, REWARD};
use zunft_protocol::embodiment::{Dtype, Embodiment, Feature};
use zunft_protocol::episode::{EpisodeEnd, Manifest, ManifestError, Outcome, STEPS_STREAM};
use zunft_protocol::ids::{ChunkId, EpisodeId, TaskName};

use super::source::{EpisodeSource, SourceError};
use tables::{Column, EpisodeRow, Rows, TableWriter, Values};

/// LeRobot's own bound on a data file before the next one is begun.
const DATA_FILE_BYTES: usize = 100 * 1024 * 1024;

/// Files in one `chunk-NNN` folder, as LeRobot has it.
const FILES_PER_CHUNK: u64 = 1000;

/// What becomes of episodes whose outcome nobody said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownOutcomes {
    /// The export is refused: LeRobot has no third value.
    Refuse,
    /// They are left out.
    Skip,
    /// They are written as failures.
    Failure,
}

/// How to export.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportOptions {
    /// Steps a second; the embodiment's rate where absent.
    pub fps: Option<u32>,
    /// See there. Where no episode has an outcome, the column is left out and this does not matter.
    pub unknown_outcomes: UnknownOutcomes,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExportSummary {
    /// Episodes written.
    pub episodes: u64,
    /// Episodes left out, for want of an outcome.
    pub episodes_skipped: u64,
    /// Steps written.
    pub steps: u64,
    /// Columns and streams that have no place in the dataset.
    pub left_out: Vec<String>,
}

/// Why there is no dataset.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The snapshot's bytes.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A manifest that cannot be used.
    #[error("episode {episode} has a manifest that cannot be used")]
    Manifest {
        /// Which.
        episode: EpisodeId,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// A chunk that cannot be read.
    #[error("chunk {chunk} of episode {episode} cannot be decoded; run `zunft data verify` on the snapshot")]
    Chunk {
        /// Which.
        chunk: ChunkId,
        /// Of which episode.
        episode: EpisodeId,
        /// Why.
        #[source]
        source: ChunkError,
    },
    /// A column that the schema promises and the chunk lacks, or of another size.
    #[error(
        "chunk {chunk} of episode {episode} has no whole column {column:?}; run `zunft data verify` on the snapshot"
    )]
    Column {
        /// Which.
        chunk: ChunkId,
        /// Of which episode.
        episode: EpisodeId,
        /// The column.
        column: String,
    },
    /// Two bodies.
    #[error(
        "episode {episode} has embodiment {found:?}, the first one {expected:?}: a LeRobot dataset has one; make a snapshot of one embodiment"
    )]
    MixedEmbodiments {
        /// The first that differs.
        episode: EpisodeId,
        /// Its body.
        found: String,
        /// The body before.
        expected: String,
    },
    /// A shape that has no place.
    #[error("feature {feature:?} has shape {shape:?}; only vectors can be exported")]
    Shape {
        /// The feature.
        feature: String,
        /// Its shape.
        shape: Vec<u32>,
    },
    /// LeRobot counts whole frames.
    #[error(
        "embodiment {embodiment:?} has {rate_hz} steps a second; LeRobot needs a whole number: give one with --fps"
    )]
    Rate {
        /// The embodiment.
        embodiment: String,
        /// Its rate.
        rate_hz: f64,
    },
    /// Neither success nor failure.
    #[error(
        "{unknown} of {episodes} episodes have no outcome, which LeRobot cannot say: leave them out with --unknown skip, or write them as failures with --unknown failure"
    )]
    UnknownOutcome {
        /// How many.
        unknown: u64,
        /// Of how many.
        episodes: u64,
    },
    /// Nothing to write.
    #[error("the snapshot leaves no episode to export")]
    Empty,
    /// Something is there already.
    #[error("{} exists already; remove it or choose another place", path.display())]
    Exists {
        /// What.
        path: PathBuf,
    },
    /// The disk.
    #[error("could not write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Arrow or parquet.
    #[error("could not write the table {}", path.display())]
    Table {
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// The caller asked to stop.
    #[error("export stopped after {episodes} episodes; nothing was left behind")]
    Stopped {
        /// Written by then.
        episodes: u64,
    },
}

/// What the first look at all manifests says.
struct Plan {
    embodiment: Embodiment,
    fps: u32,
    /// In the order of their first episode, which becomes `task_index`.
    tasks: Vec<TaskName>,
    rewards: bool,
    outcomes: bool,
    left_out: Vec<String>,
    episodes: Vec<(EpisodeId, Manifest)>,
    skipped: u64,
}

/// Exports the snapshot of `source` into the new folder `root`, reporting after each episode; the report may stop it.
pub fn export_lerobot(
    source: &mut dyn EpisodeSource,
    options: &ExportOptions,
    root: &Path,
    report: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ExportSummary, ExportError> {
    let plan = plan(source, options)?;
    if root.symlink_metadata().is_ok() {
        return Err(ExportError::Exists { path: root.to_owned() });
    }
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let partial = root.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let written = write(source, &plan, &partial, report).and_then(|summary| {
        publish(&partial, root).map_err(|source| ExportError::Write { path: root.to_owned(), source })?;
        Ok(summary)
    });
    if written.is_err() {
        // Best effort: the error that matters is the one that is returned.
        drop(fs::remove_dir_all(&partial));
    }
    written
}

fn plan(source: &mut dyn EpisodeSource, options: &ExportOptions) -> Result<Plan, ExportError> {
    let ids: Vec<EpisodeId> = source.snapshot().episodes.iter().map(|episode| episode.id).collect();
    let mut episodes = Vec::new();
    for id in ids {
        let bytes = source.manifest(id)?;
        let manifest = Manifest::decode(&bytes).map_err(|source| ExportError::Manifest { episode: id, source })?;
        episodes.push((id, manifest));
    }
    let total = episodes.len() as u64;
    let unknown = episodes.iter().filter(|(_, manifest)| manifest.outcome == Outcome::Unknown).count() as u64;
    let outcomes = unknown < total;
    let mut skipped = 0;
    if outcomes && unknown > 0 {
        match options.unknown_outcomes {
            UnknownOutcomes::Refuse => return Err(ExportError::UnknownOutcome { unknown, episodes: total }),
            UnknownOutcomes::Failure => {}
            UnknownOutcomes::Skip => {
                skipped = unknown;
                episodes.retain(|(_, manifest)| manifest.outcome != Outcome::Unknown);
            }
        }
    }
    let Some((_, first)) = episodes.first() else { return Err(ExportError::Empty) };
    let embodiment = first.embodiment.clone();
    let mut tasks = Vec::new();
    let mut left_out = Vec::new();
    let mut rewards = true;
    for (id, manifest) in &episodes {
        if manifest.embodiment != embodiment {
            let (found, expected) = (manifest.embodiment.name.clone(), embodiment.name.clone());
            return Err(ExportError::MixedEmbodiments { episode: *id, found, expected });
        }
        if !tasks.contains(&manifest.task) {
            tasks.push(manifest.task.clone());
        }
        for stream in manifest.streams.iter().filter(|stream| stream.name != STEPS_STREAM) {
            if !left_out.contains(&stream.name) {
                left_out.push(stream.name.clone());
            }
        }
        // A recording has a reward at each step or at none.
        rewards &= first_reward(source, *id, manifest)?.is_some_and(f32::is_finite);
    }
    if !rewards {
        left_out.push("next.reward (not every episode has rewards)".to_owned());
    }
    let fps = match options.fps {
        Some(fps) => fps,
        None => whole(embodiment.rate_hz)
            .ok_or(ExportError::Rate { embodiment: embodiment.name.clone(), rate_hz: embodiment.rate_hz })?,
    };
    for feature in embodiment.features.iter().filter(|feature| !left_out.contains(&feature.name)) {
        if feature.shape.len() != 1 {
            return Err(ExportError::Shape { feature: feature.name.clone(), shape: feature.shape.clone() });
        }
    }
    Ok(Plan { embodiment, fps, tasks, rewards, outcomes, left_out, episodes, skipped })
}

fn whole(rate_hz: f64) -> Option<u32> {
    let rounded = rate_hz.round();
    ((rounded - rate_hz).abs() < 1e-9 && (1.0..=f64::from(u32::MAX)).contains(&rounded)).then_some(rounded as u32)
}

fn first_reward(
    source: &mut dyn EpisodeSource,
    id: EpisodeId,
    manifest: &Manifest,
) -> Result<Option<f32>, ExportError> {
    let stream = &manifest.streams[0];
    let Some(listed) = stream.chunks.first() else { return Ok(None) };
    let chunk = decode(source, id, manifest, listed.id)?;
    Ok(chunk.column_f32(REWARD).and_then(|rewards| rewards.first().copied()))
}

fn decode(
    source: &mut dyn EpisodeSource,
    episode: EpisodeId,
    manifest: &Manifest,
    chunk: ChunkId,
) -> Result<Chunk, ExportError> {
    let stored = source.chunk(chunk)?;
    Chunk::decode(&stored, &manifest.streams[0].schema).map_err(|source| ExportError::Chunk { chunk, episode, source })
}

/// The features of the steps stream that the dataset carries.
fn features(plan: &Plan) -> impl Iterator<Item = &Feature> {
    plan.embodiment.features.iter().filter(|feature| !plan.left_out.contains(&feature.name))
}

fn write(
    source: &mut dyn EpisodeSource,
    plan: &Plan,
    root: &Path,
    report: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ExportSummary, ExportError> {
    let mut writer = TableWriter::create(root, plan.fps, &plan.embodiment)?;
    let mut steps = 0;
    for (index, (id, manifest)) in plan.episodes.iter().enumerate() {
        let columns = columns(source, plan, *id, manifest, index as u64, steps)?;
        let row = EpisodeRow { index: index as u64, task: manifest.task.as_str(), begin: steps, steps: manifest.steps };
        writer.append(&row, columns)?;
        steps += manifest.steps;
        if report(index as u64 + 1, plan.episodes.len() as u64).is_break() {
            return Err(ExportError::Stopped { episodes: index as u64 + 1 });
        }
    }
    let tasks: Vec<&str> = plan.tasks.iter().map(TaskName::as_str).collect();
    writer.finish(&tasks)?;
    Ok(ExportSummary {
        episodes: plan.episodes.len() as u64,
        episodes_skipped: plan.skipped,
        steps,
        left_out: plan.left_out.clone(),
    })
}

/// Every column of one episode's rows, in the dataset's order.
fn columns(
    source: &mut dyn EpisodeSource,
    plan: &Plan,
    id: EpisodeId,
    manifest: &Manifest,
    index: u64,
    begin: u64,
) -> Result<Rows, ExportError> {
    let mut raw: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let names: Vec<&str> =
        features(plan).map(|feature| feature.name.as_str()).chain(plan.rewards.then_some(REWARD)).collect();
    for listed in &manifest.streams[0].chunks {
        let chunk = decode(source, id, manifest, listed.id)?;
        for &name in &names {
            let missing = || ExportError::Column { chunk: listed.id, episode: id, column: name.to_owned() };
            let bytes = chunk.column(name).filter(|_| chunk.steps() == listed.steps).ok_or_else(missing)?;
            raw.entry(name.to_owned()).or_default().extend_from_slice(bytes);
        }
    }
    let mut take = |name: &str| raw.remove(name).unwrap_or_default();
    let mut columns = Vec::new();
    for feature in features(plan) {
        let values = typed(feature.dtype, &take(&feature.name));
        columns.push(Column { name: feature.name.clone(), width: feature.values(), vector: true, values });
    }
    let scalar = |name: &str, values| Column { name: name.to_owned(), width: 1, vector: false, values };
    if plan.rewards {
        columns.push(scalar("next.reward", typed(Dtype::F32, &take(REWARD))));
    }
    let steps = manifest.steps;
    let at_end = |flag: bool| Values::Bool((0..steps).map(|step| flag && step + 1 == steps).collect());
    if plan.outcomes {
        columns.push(scalar("next.success", at_end(manifest.outcome == Outcome::Success)));
    }
    columns.push(scalar("next.done", at_end(manifest.end == EpisodeEnd::Terminated)));
    columns.push(scalar("next.truncated", at_end(manifest.end != EpisodeEnd::Terminated)));
    let seconds = (0..steps).map(|step| (step as f64 / f64::from(plan.fps)) as f32).collect();
    let task = plan.tasks.iter().position(|task| *task == manifest.task).unwrap_or_default() as i64;
    columns.push(scalar("timestamp", Values::F32(seconds)));
    columns.push(scalar("frame_index", Values::I64((0..steps as i64).collect())));
    columns.push(scalar("episode_index", Values::I64(vec![index as i64; steps as usize])));
    columns.push(scalar("index", Values::I64((begin as i64..(begin + steps) as i64).collect())));
    columns.push(scalar("task_index", Values::I64(vec![task; steps as usize])));
    Ok(Rows { columns })
}

/// Little-endian bytes as values; bytes widen to integers, since LeRobot has no use for them.
fn typed(dtype: Dtype, bytes: &[u8]) -> Values {
    fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|value| read(*value)).collect()
    }
    match dtype {
        Dtype::F32 => Values::F32(each(bytes, f32::from_le_bytes)),
        Dtype::F64 => Values::F64(each(bytes, f64::from_le_bytes)),
        Dtype::I64 => Values::I64(each(bytes, i64::from_le_bytes)),
        Dtype::U8 => Values::I64(bytes.iter().map(|&byte| i64::from(byte)).collect()),
    }
}

/// Makes everything below `partial` durable and gives it its name.
fn publish(partial: &Path, root: &Path) -> io::Result<()> {
    sync_tree(partial)?;
    fs::rename(partial, root)?;
    let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { sync_tree(&path)? } else { fs::File::open(&path)?.sync_all()? }
    }
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
