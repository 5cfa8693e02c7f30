//! Training state on disk, so that a run that was killed goes on to the same bits.
//!
//! A checkpoint is a folder `step-<step>`: it appears complete or not at all, and the last
//! [`CHECKPOINTS_KEPT`] are kept. It never leaves the machine that trains; what does is a package.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zunft_protocol::ids::{Digest, SnapshotId};

use super::adamw::Optimized;
use super::config::TrainConfig;
use crate::package::{sync_folder, write_synced};
use crate::weights::{WeightDtype, Weights, WeightsError};

/// The checkpoint format written by this version.
const CHECKPOINT_VERSION: u32 = 1;

/// Checkpoints kept: the last one, and the one before in case that is damaged.
const CHECKPOINTS_KEPT: usize = 2;

/// What a run is of. A checkpoint continues this run and no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RunIdentity {
    /// Where the episodes come from.
    pub(super) snapshot: SnapshotId,
    /// Digest over the ids of the episodes that were selected of it.
    pub(super) episodes: Digest,
    /// How the run is made.
    pub(super) config: TrainConfig,
}

/// A run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RunState {
    /// Steps made.
    pub(super) step: u64,
    /// Seconds spent on them.
    pub(super) train_secs: f64,
    /// Parameters and what the optimiser remembers.
    pub(super) optimized: Optimized,
}

/// Why training state cannot be stored or taken up again.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk.
    #[error("could not access checkpoint {path}; earlier checkpoints are untouched")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Files that do not say what they must.
    #[error("checkpoint {path} is damaged: {reason}; remove it to go on from the one before")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Tensors that do not say what they must.
    #[error("checkpoint {path} is damaged; remove it to go on from the one before")]
    Tensors {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: WeightsError,
    },
    /// The folder belongs to another run.
    #[error(
        "checkpoint {path} is of another run: its {what} is {found}, now it is {expected}; choose another checkpoint folder or remove this one"
    )]
    OtherRun {
        /// Which.
        path: PathBuf,
        /// Which part of the run.
        what: String,
        /// In the checkpoint.
        found: String,
        /// In this run.
        expected: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    step: u64,
    train_secs: f64,
    run: RunIdentity,
    state_digest: Digest,
}

const HEADER_FILE: &str = "checkpoint.json";
const STATE_FILE: &str = "training_state.safetensors";

/// Stores `state` under `folder` and removes checkpoints that are no longer kept.
pub(super) fn save(folder: &Path, run: &RunIdentity, state: &RunState) -> Result<PathBuf, CheckpointError> {
    let path = folder.join(format!("step-{:09}", state.step));
    let staging = folder.join(format!(".step-{:09}.part", state.step));
    let tensors = to_tensors(&state.optimized).to_safetensors(WeightDtype::F32);
    let header = Header {
        version: CHECKPOINT_VERSION,
        step: state.step,
        train_secs: state.train_secs,
        run: run.clone(),
        state_digest: Digest::of(&tensors),
    };
    let header = serde_json::to_vec_pretty(&header).expect("a checkpoint's header has a JSON form");
    let stored = fresh_folder(&staging)
        .and_then(|()| write_synced(&staging.join(STATE_FILE), &tensors))
        .and_then(|()| write_synced(&staging.join(HEADER_FILE), &header))
        .and_then(|()| sync_folder(&staging))
        .and_then(|()| if path.exists() { fs::remove_dir_all(&path) } else { Ok(()) })
        .and_then(|()| fs::rename(&staging, &path))
        .and_then(|()| sync_folder(folder));
    stored.map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
    for old in list(folder)?.iter().rev().skip(CHECKPOINTS_KEPT) {
        fs::remove_dir_all(old).map_err(|source| CheckpointError::Io { path: old.clone(), source })?;
    }
    Ok(path)
}

/// The newest checkpoint under `folder`, if there is one; it must be of this run.
pub(super) fn load_last(
    folder: &Path,
    run: &RunIdentity,
    fresh: &Optimized,
) -> Result<Option<RunState>, CheckpointError> {
    let Some(path) = list(folder)?.pop() else { return Ok(None) };
    let read = |file: &str| {
        let path = path.join(file);
        fs::read(&path).map_err(|source| CheckpointError::Io { path, source })
    };
    let damaged = |reason: String| CheckpointError::Damaged { path: path.clone(), reason };
    let header: Header = serde_json::from_slice(&read(HEADER_FILE)?).map_err(|error| damaged(error.to_string()))?;
    if header.version != CHECKPOINT_VERSION {
        return Err(damaged(format!("it has version {}, this program reads {CHECKPOINT_VERSION}", header.version)));
    }
    same_run(&path, &header.run, run)?;
    let tensors = read(STATE_FILE)?;
    if Digest::of(&tensors) != header.state_digest {
        return Err(damaged(format!("{STATE_FILE} has another digest than {HEADER_FILE} says")));
    }
    let optimized = Weights::from_safetensors(&tensors)
        .and_then(|tensors| of_tensors(&tensors, fresh))
        .map_err(|source| CheckpointError::Tensors { path: path.clone(), source })?;
    Ok(Some(RunState { step: header.step, train_secs: header.train_secs, optimized }))
}

/// Complete checkpoints under `folder`, oldest first.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = |source| CheckpointError::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.strip_prefix("step-").is_some_and(|step| step.parse::<u64>().is_ok()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn fresh_folder(path: &Path) -> io::Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    fs::create_dir_all(path)
}

fn same_run(path: &Path, found: &RunIdentity, expected: &RunIdentity) -> Result<(), CheckpointError> {
    let differs = |what: &str, found: String, expected: String| {
        Err(CheckpointError::OtherRun { path: path.to_owned(), what: what.to_owned(), found, expected })
    };
    if found.snapshot != expected.snapshot {
        return differs("snapshot", found.snapshot.to_string(), expected.snapshot.to_string());
    }
    if found.episodes != expected.episodes {
        return differs("selection of episodes", found.episodes.to_string(), expected.episodes.to_string());
    }
    // How often a run is logged or stored changes nothing in its result.
    let comparable = |config: &TrainConfig| {
        let config = TrainConfig { log_every: 1, checkpoint_every: 1, ..config.clone() };
        serde_json::to_value(config).expect("a configuration has a JSON form")
    };
    let (found, expected) = (comparable(&found.config), comparable(&expected.config));
    let options = expected.as_object().into_iter().flatten();
    for (option, expected) in options {
        if found[option] != *expected {
            return differs(option, found[option].to_string(), expected.to_string());
        }
    }
    Ok(())
}

const PARTS: [&str; 4] = ["value", "exp_avg", "exp_avg_sq", "ema"];

fn to_tensors(optimized: &Optimized) -> Weights {
    let Optimized { values, exp_avg, exp_avg_sq, ema } = optimized;
    let mut tensors = Weights::new();
    for (part, arrays) in PARTS.iter().zip([values, exp_avg, exp_avg_sq, ema]) {
        for (i, array) in arrays.iter().enumerate() {
            tensors.insert(format!("{part}.{i}"), &[array.len()], array.clone());
        }
    }
    tensors
}

fn of_tensors(tensors: &Weights, fresh: &Optimized) -> Result<Optimized, WeightsError> {
    let read = |part: &str, like: &[Vec<f32>]| {
        let arrays = like.iter().enumerate();
        let arrays = arrays.map(|(i, like)| Ok(tensors.tensor(&format!("{part}.{i}"), &[like.len()])?.to_vec()));
        arrays.collect::<Result<Vec<_>, WeightsError>>()
    };
    Ok(Optimized {
        values: read(PARTS[0], &fresh.values)?,
        exp_avg: read(PARTS[1], &fresh.exp_avg)?,
        exp_avg_sq: read(PARTS[2], &fresh.exp_avg_sq)?,
        ema: read(PARTS[3], &fresh.ema)?,
    })
}
