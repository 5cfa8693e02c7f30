//! The recording of one connection: what a step must be, and the row that it becomes.

use zunft_protocol::embodiment::{Dtype, Embodiment, Feature};
use zunft_protocol::episode::EpisodeEnd;
use zunft_protocol::ids::SkillName;
use zunft_protocol::local::{End, Ended, Progress, STEP_PREFIX_BYTES, Sample, Step};

use super::refusal::RequestError;
use super::samples::Samples;
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
    /// What is no part of a step.
    samples: Samples,
    /// The release that acts until END, where a skill does.
    pinned: Option<Arc<LoadedRelease>>,
}

impl OpenRecording {
    pub(crate) fn new(recording: Recording, embodiment: Embodiment, pinned: Option<Arc<LoadedRelease>>) -> Self {
        let (step_bytes, samples) = (embodiment.step_bytes(), Samples::of(&embodiment));
        Self { recording, embodiment, step_bytes, last_monotonic_ns: None, samples, pinned }
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
        let time = time_after(self.last_monotonic_ns, step.monotonic_ns)?;
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

    /// Checks a sample of a stream of its own and hands it to the spool, raw images by way of the encoder.
    pub(crate) fn sample(&mut self, sample: &Sample<'_>, clock: &RobotClock) -> Result<(), RequestError> {
        self.samples.take(sample, &mut self.recording, clock)
    }

    fn check_numbers(&self, features: &[u8]) -> Result<(), RequestError> {
        let mut rest = features;
        for feature in self.embodiment.step_features() {
            let (bytes, tail) = rest.split_at(feature.bytes());
            check_numbers(feature, bytes)?;
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
        let images_dropped = self.samples.finish();
        if self.recording.is_empty() {
            return Err(RequestError::NoSteps);
        }
        let ended = self.recording.end(end.outcome, end.end)?;
        Ok(Ended { images_dropped, ..ended })
    }

    /// Cuts it off without waiting.
    pub(crate) fn cut_off(self, end: EpisodeEnd) {
        self.samples.finish();
        self.recording.cut_off(end);
    }
}

/// A time as the spool keeps it; refused when it is not after the one before.
pub(super) fn time_after(before: Option<u64>, monotonic_ns: u64) -> Result<i64, RequestError> {
    let in_order = before.is_none_or(|before| monotonic_ns > before);
    let time = i64::try_from(monotonic_ns).ok().filter(|_| in_order);
    time.ok_or(RequestError::TimeNotIncreasing { found: monotonic_ns, before: before.unwrap_or(0) })
}

/// Refuses NaN and infinities in a feature's bytes.
pub(super) fn check_numbers(feature: &Feature, bytes: &[u8]) -> Result<(), RequestError> {
    let odd = match feature.dtype {
        Dtype::F32 => bytes.chunks_exact(4).position(|b| !f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        Dtype::F64 => bytes
            .chunks_exact(8)
            .position(|b| !f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]).is_finite()),
        Dtype::I64 | Dtype::U8 => None,
    };
    odd.map_or(Ok(()), |index| Err(RequestError::NotANumber { feature: feature.name.clone(), index }))
}
