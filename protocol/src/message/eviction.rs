//! What a robot gave up for want of room, so that nobody wonders about a gap among its recordings.

use serde::{Deserialize, Serialize};

use crate::episode::Outcome;
use crate::ids::{RecordingId, TaskName};

/// What is left of an episode that a robot gave up. The robot keeps it until the hub has stored it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// Which recording it was.
    pub recording: RecordingId,
    /// Its number among the robot's recordings.
    pub ordinal: u64,
    /// What it was about.
    pub task: TaskName,
    /// Whether the task was done.
    pub outcome: Outcome,
    /// Whether a person took over in it.
    pub interventions: bool,
    /// Its steps.
    pub steps: u64,
    /// Bytes of its chunks.
    pub bytes: u64,
    /// What there was too little of.
    pub reason: EvictionReason,
}

/// Why an episode was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvictionReason {
    /// The spool had as many bytes as it may have.
    Quota,
    /// The file system had too few bytes left.
    DiskFull,
}
