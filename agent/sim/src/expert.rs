//! Scripted experts: for each task, the action that does it, as a function of the observation alone.
//!
//! They hold no state, so that what they do can be learned from what they see; where a task has phases, the phase is
//! read off the observation and phases blend where they meet. They know nothing of the cell beyond what is observed.

mod pick_place;
mod push;
mod weld_seam;

use crate::{
    observation::{ACTION_LIMITS, Action, Observation, Senses},
    random::{Randomness, Stream},
    task::Task,
};

/// Purpose number of the stream of bumps.
const BUMP_PURPOSE: u8 = 17;

/// Control steps that one bump lasts.
const BUMP_STEPS: u32 = 4;

/// The expert's action for `task` on seeing `observation`.
#[must_use]
pub fn act(task: Task, observation: &Observation) -> Action {
    let senses = Senses::from(observation);
    let action = match task {
        Task::Push => push::act(&senses),
        Task::PickPlace => pick_place::act(&senses),
        Task::WeldSeam => weld_seam::act(&senses),
    };
    std::array::from_fn(|index| {
        let (low, high) = ACTION_LIMITS[index];
        action[index].clamp(low, high)
    })
}

/// Bumps for a demonstration: small random additions to what the expert commands.
///
/// A demonstration that never strays shows no way back. So the drives are bumped while the expert demonstrates
/// ([`crate::Cell::step_disturbed`]); what is recorded is what the expert commands on seeing where it was bumped to,
/// never the bump itself. The bumps are a function of the seed.
#[derive(Debug, Clone)]
pub struct Bumps {
    randomness: Randomness,
    strength: Action,
    steps_left: u32,
    bump: Action,
}

impl Bumps {
    /// Bumps as strong as a demonstration of `task` bears.
    #[must_use]
    pub fn new(task: Task, seed: u64) -> Self {
        let strength = match task {
            Task::Push => [0.06, 0.06, 0.03, 0.0],
            Task::PickPlace => [0.06, 0.06, 0.06, 0.3],
            Task::WeldSeam => [0.018, 0.018, 0.024, 0.0],
        };
        let stream = Stream { purpose: BUMP_PURPOSE, robot: 0, index: 0 };
        Self { randomness: Randomness::new(seed, stream), strength, steps_left: 0, bump: [0.0; 4] }
    }

    /// The bump of the next control step, in the units of an action.
    pub fn next_bump(&mut self) -> Action {
        if self.steps_left == 0 {
            self.steps_left = BUMP_STEPS;
            self.bump = self.strength.map(|strength| self.randomness.within(strength));
        }
        self.steps_left -= 1;
        self.bump
    }
}

/// Zero below `low`, one above `high`, and straight between them; the other way round when `low` is the greater.
fn ramp(value: f32, low: f32, high: f32) -> f32 {
    ((value - low) / (high - low)).clamp(0.0, 1.0)
}
