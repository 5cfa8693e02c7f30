//! Closed-loop evaluation: a skill acts in an environment, and successes are counted with their uncertainty.
//!
//! It does not know which environment; simulated cells and real ones implement [`Environment`].

use zunft_protocol::ids::TaskName;

use crate::runtime::{ActError, ActionQueue, SkillRuntime};

/// What an environment answers to an action.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// What the robot sees now.
    pub observation: Vec<f32>,
    /// Whether the task is done.
    pub success: bool,
    /// Whether the episode is over, done or not.
    pub done: bool,
}

/// One task's world.
pub trait Environment {
    /// Why it can fail.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Begins an episode from the start with this number; the same number is the same start.
    fn reset(&mut self, start: u64) -> Result<Vec<f32>, Self::Error>;

    /// Carries out one action.
    fn step(&mut self, action: &[f32]) -> Result<Transition, Self::Error>;
}

/// Why an evaluation stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError<E: std::error::Error + 'static> {
    /// The skill gave no action.
    #[error("the skill gave no action at step {step} of start {start}")]
    Act {
        /// Which start.
        start: u64,
        /// Which step.
        step: usize,
        /// Why.
        #[source]
        source: ActError,
    },
    /// The environment failed.
    #[error("the environment failed at step {step} of start {start}")]
    Environment {
        /// Which start.
        start: u64,
        /// Which step; 0 is the reset.
        step: usize,
        /// Why.
        #[source]
        source: E,
    },
}

/// How often a task was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Score {
    /// Episodes in which it was done.
    pub successes: u64,
    /// All episodes.
    pub episodes: u64,
}

impl Score {
    /// Share of successes; 0 without episodes.
    pub fn rate(self) -> f64 {
        if self.episodes == 0 { 0.0 } else { self.successes as f64 / self.episodes as f64 }
    }

    /// Wilson's interval of the success rate at 95 %: sound also for few episodes and near 0 and 1.
    pub fn interval(self) -> (f64, f64) {
        /// Quantile of the normal distribution for 95 %, two-sided.
        const Z: f64 = 1.959_963_984_540_054;
        if self.episodes == 0 {
            return (0.0, 1.0);
        }
        let (n, rate) = (self.episodes as f64, self.rate());
        let denominator = 1.0 + Z * Z / n;
        let centre = (rate + Z * Z / (2.0 * n)) / denominator;
        let half = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt() / denominator;
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }
}

/// Lets `skill` do `task` once from each start, for at most `steps_max` steps.
///
/// An episode counts as done when the environment says so at any step.
pub fn evaluate<E: Environment>(
    skill: &SkillRuntime,
    task: &TaskName,
    environment: &mut E,
    starts: impl IntoIterator<Item = u64>,
    steps_max: usize,
) -> Result<Score, EvalError<E::Error>> {
    let mut score = Score::default();
    for start in starts {
        let succeeded = run_episode(skill, task, environment, start, steps_max)?;
        score.episodes += 1;
        score.successes += u64::from(succeeded);
    }
    Ok(score)
}

fn run_episode<E: Environment>(
    skill: &SkillRuntime,
    task: &TaskName,
    environment: &mut E,
    start: u64,
    steps_max: usize,
) -> Result<bool, EvalError<E::Error>> {
    let mut queue = ActionQueue::new();
    let mut observation =
        environment.reset(start).map_err(|source| EvalError::Environment { start, step: 0, source })?;
    for step in 1..=steps_max {
        let action =
            queue.next_action(skill, task, &observation).map_err(|source| EvalError::Act { start, step, source })?;
        let transition = environment.step(&action).map_err(|source| EvalError::Environment { start, step, source })?;
        if transition.success {
            return Ok(true);
        }
        if transition.done {
            return Ok(false);
        }
        observation = transition.observation;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval_is_the_published_one() {
        // Newcombe (1998), table I: 81 of 263, and 0 of 20.
        let check = |successes, episodes, expect: (f64, f64)| {
            let (low, high) = Score { successes, episodes }.interval();
            assert!((low - expect.0).abs() < 5e-5 && (high - expect.1).abs() < 5e-5, "{low} {high}");
        };
        check(81, 263, (0.2553, 0.3662));
        check(0, 20, (0.0, 0.1611));
    }

    #[test]
    fn nothing_evaluated_says_nothing() {
        assert_eq!(Score::default().interval(), (0.0, 1.0));
    }
}
