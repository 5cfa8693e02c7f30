//! The recording of one connection: what a step must be, and the row that it becomes.

use zunft_protocol::embodiment::{Dtype, Embodiment};
use zunft_protocol::episode::EpisodeEnd;
use zunft_protocol::ids::SkillName;
use zunft_protocol::local::{End, Ended, Progress, STEP_PREFIX_BYTES, Step};

use super::refusal::RequestError;
use crate::clock::RobotClock;
use crate::policy::LoadedRelease;
use crate::spool::Recording;
use std::sync::Arc;

/// An open recording with what its steps are checked against.
pub(crate) struct OpenRecording {
    recording: Recording,
    embodiment: Embodiment,
    step_bytes: usize,
    last_monotonic_ns: Option<u64>,
    /// The release that acts until END, where a skill does.
    pinned: Option<Arc<LoadedRelease>>,
}

impl OpenRecording {
    pub(crate) fn new(recording: Recording, embodiment: Embodiment, pinned: Option<Arc<LoadedRelease>>) -> Self {
        let step_bytes = embodiment.step_bytes();
        Self { recording, embodiment, step_bytes, last_monotonic_ns: None, pinned }
    }

    /// The pinned release, if it is of this skill.
    pub(crate) fn pinned(&self, skill: &SkillName) -> Option<&Arc<LoadedRelease>> {
        self.pinned.as_ref().filter(|release| release.release().skill == *skill)
    }

    /// Reads a STEP's body. One that is too short is a wrong size like any other.
    pub(crate) fn read<'b>(&self, body: &'b [u8]) -> Result<Step<'b>, RequestError> {
        let features = body.len().saturating_sub(STEP_PREFIX_BYTES);
        if body.len() < STEP_PREFIX_BYTES || features != self.step_bytes {
            return Err(RequestError::WrongSize { found: features, expected: self.step_bytes });
        }
        Ok(Step::decode(body)?)
    }

    /// Checks a step and hands it to the spool.
    pub(crate) fn step(&mut self, step: &Step<'_>, clock: &RobotClock) -> Result<(), RequestError> {
        let in_order = self.last_monotonic_ns.is_none_or(|before| step.monotonic_ns > before);
        let Some(time) = i64::try_from(step.monotonic_ns).ok().filter(|_| in_order) else {
            let before = self.last_monotonic_ns.unwrap_or(0);
            return Err(RequestError::TimeNotIncreasing { found: step.monotonic_ns, before });
        };
        self.check_numbers(step.features)?;
        if step.reward.is_infinite() {
            return Err(RequestError::NotANumber { feature: "the reward".into(), index: 0 });
        }
        // The row of the steps stream: time, features, reward.
        let mut row = Vec::with_capacity(self.step_bytes + 12);
        row.extend_from_slice(&time.to_le_bytes());
        row.extend_from_slice(step.features);
        row.extend_from_slice(&step.reward.to_le_bytes());
        self.recording.step(row, step.intervention, || clock.episode_begins(step.monotonic_ns))?;
        self.last_monotonic_ns = Some(step.monotonic_ns);
        Ok(())
    }

    fn check_numbers(&self, features: &[u8]) -> Result<(), RequestError> {
        let mut rest = features;
        for feature in &self.embodiment.features {
            let (bytes, tail) = rest.split_at(feature.bytes());
            let odd = match feature.dtype {
                Dtype::F32 => {
                    bytes.chunks_exact(4).position(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite())
                }
                Dtype::F64 => bytes
                    .chunks_exact(8)
                    .position(|b| !f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]).is_finite()),
                Dtype::I64 | Dtype::U8 => None,
            };
            if let Some(index) = odd {
                return Err(RequestError::NotANumber { feature: feature.name.clone(), index });
            }
            rest = tail;
        }
        Ok(())
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        self.recording.progress()
    }

    /// Ends it; returns when the episode is on disk.
    pub(crate) fn end(self, end: &End) -> Result<Ended, RequestError> {
        if self.recording.is_empty() {
            return Err(RequestError::NoSteps);
        }
        Ok(self.recording.end(end.outcome, end.end)?)
    }

    /// Cuts it off without waiting.
    pub(crate) fn cut_off(self, end: EpisodeEnd) {
        self.recording.cut_off(end);
    }
}
