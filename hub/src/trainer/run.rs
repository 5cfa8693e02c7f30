//! What a training run is, and how its state may change.
//!
//! Pure: the table keeps runs, the worker carries them out.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::{IdError, ReleaseId, RobotId, SkillName, SnapshotId};
use zunft_skills::data::Selection;
use zunft_skills::train::TrainConfig;

pub use crate::metadata::RunState;

/// Number of a run: 1, 2, 3, … on one hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u32);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Which robots get something: `"all"`, or a list of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "robots are \"all\" or a list of names")]
pub enum RobotSet {
    /// `"all"`: every robot that the hub knows, now.
    All(AllRobots),
    /// These.
    Named(Vec<RobotId>),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AllRobots {
    /// Every robot.
    All,
}

impl RobotSet {
    /// Every robot.
    pub const ALL: Self = Self::All(AllRobots::All);
}

impl FromStr for RobotSet {
    type Err = IdError;

    /// Reads `all` or names between commas.
    fn from_str(text: &str) -> Result<Self, IdError> {
        if text == "all" {
            return Ok(Self::ALL);
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self::Named)
    }
}

/// Everything that decides what a run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// The skill to train.
    #[schema(value_type = String, example = "pick-place")]
    pub skill: SkillName,
    /// The frozen episodes to train on.
    #[schema(value_type = String)]
    pub snapshot: SnapshotId,
    /// Which of them.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub selection: Selection,
    /// Hyper-parameters, as `zunft train` takes them; absent keys have their defaults.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: TrainConfig,
    /// Whether the result becomes the skill's next release.
    #[serde(default)]
    pub publish: bool,
    /// Which robots that release is assigned to; it implies `publish`.
    ///
    /// `"all"`, or a list of names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub assign: Option<RobotSet>,
}

impl RunPlan {
    /// Whether the result becomes a release.
    pub fn publishes(&self) -> bool {
        self.publish || self.assign.is_some()
    }
}

/// The state after a request to stop; `None` where there is nothing to stop.
pub(super) fn after_stop(state: RunState) -> Option<RunState> {
    match state {
        RunState::Queued => Some(RunState::Stopped),
        RunState::Running | RunState::Stopping => Some(RunState::Stopping),
        RunState::Succeeded | RunState::Failed | RunState::Stopped => None,
    }
}

/// Whether a request to resume puts a run into the queue again.
pub(super) fn resumable(state: RunState) -> bool {
    matches!(state, RunState::Failed | RunState::Stopped)
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunProgress {
    /// Optimiser steps made.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Loss of the training batches since the report before.
    pub loss: Option<f64>,
    /// Loss of the validation episodes, where some are kept apart.
    pub validation_loss: Option<f64>,
    /// Steps a second, lately.
    pub steps_per_sec: Option<f64>,
}

/// One training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Run {
    /// Its number.
    #[schema(value_type = u32)]
    pub id: RunId,
    /// What it does.
    #[serde(flatten)]
    pub plan: RunPlan,
    /// Where it is.
    pub state: RunState,
    /// How far it is.
    pub progress: RunProgress,
    /// Numbers measured at its end, for example `train_loss`.
    pub metrics: BTreeMap<String, f64>,
    /// When it was asked for, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// When it began to train.
    pub started_unix_ms: Option<u64>,
    /// When it ended.
    pub ended_unix_ms: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// The release it became.
    #[schema(value_type = Option<String>)]
    pub release: Option<ReleaseId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_reads_with_defaults_and_refuses_unknown_keys() {
        let snapshot = "00".repeat(32);
        let text = format!(r#"{{"skill":"push","snapshot":"{snapshot}","config":{{"steps":7}},"assign":"all"}}"#);
        let plan: RunPlan = serde_json::from_str(&text).unwrap();
        assert_eq!((plan.config.steps, plan.assign), (7, Some(RobotSet::ALL)));
        let unknown = text.replace("\"assign\"", "\"asign\"");
        assert!(serde_json::from_str::<RunPlan>(&unknown).unwrap_err().to_string().contains("asign"));
        let wrong = text.replace("\"all\"", "\"some\"");
        assert!(serde_json::from_str::<RunPlan>(&wrong).unwrap_err().to_string().contains("list of names"));
    }

    #[test]
    fn only_runs_that_have_not_ended_can_be_stopped() {
        use RunState::*;
        let all = [Queued, Running, Stopping, Succeeded, Failed, Stopped];
        assert_eq!(all.map(after_stop), [Some(Stopped), Some(Stopping), Some(Stopping), None, None, None]);
        assert!(all.iter().all(|&state| !(resumable(state) && after_stop(state).is_some())));
    }
}
