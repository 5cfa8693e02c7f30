//! Rollouts without an agent: a pilot in a cell until the episode ends.
//!
//! A pilot is any function of the observation. It does not know where actions come from.

use crate::{
    cell::{Cell, EpisodeEnd, StepError},
    expert::{self, Bumps},
    observation::{Action, Observation},
    start::{Purpose, Range, Start},
    task::Task,
};

/// What one episode came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rollout {
    /// How it ended.
    pub end: EpisodeEnd,
    /// Control steps taken.
    pub steps: u32,
    /// Sum of the rewards.
    pub reward: f32,
}

/// One step of a demonstration: what the expert saw and what it commanded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DemonstratedStep {
    /// What was seen before the step.
    pub observation: Observation,
    /// What was commanded, free of the bump that the cell suffered.
    pub action: Action,
    /// What the step brought.
    pub reward: f32,
}

/// Runs `pilot` from `start` to the episode's end.
///
/// # Errors
/// When the pilot returns an action that is not finite.
pub fn rollout(start: &Start, mut pilot: impl FnMut(&[f32]) -> Action) -> Result<Rollout, StepError> {
    let mut cell = Cell::new(start);
    let (mut steps, mut reward) = (0, 0.0);
    loop {
        let action = pilot(cell.observation());
        let result = cell.step(&action)?;
        steps += 1;
        reward += result.reward;
        if let Some(end) = result.end {
            return Ok(Rollout { end, steps, reward });
        }
    }
}

/// Lets the expert demonstrate from `start`, bumped as [`Bumps`] says, and shows each step to `record`.
///
/// # Errors
/// Never in practice: the expert's actions are finite.
pub fn demonstrate(start: &Start, mut record: impl FnMut(&DemonstratedStep)) -> Result<Rollout, StepError> {
    let mut cell = Cell::new(start);
    let mut bumps = Bumps::new(start.task(), start.noise_seed);
    let (mut steps, mut reward) = (0, 0.0);
    loop {
        let observation = *cell.observation();
        let action = expert::act(start.task(), &observation);
        let result = cell.step_disturbed(&action, bumps.next_bump())?;
        steps += 1;
        reward += result.reward;
        record(&DemonstratedStep { observation, action, reward: result.reward });
        if let Some(end) = result.end {
            return Ok(Rollout { end, steps, reward });
        }
    }
}

/// The first `count` held-out starts of the whole range of `task` under `seed`.
pub fn held_out_starts(task: Task, seed: u64, count: u32) -> impl Iterator<Item = Start> {
    (0..count).map(move |index| Range::whole(task).start(seed, Purpose::HeldOut, index))
}
