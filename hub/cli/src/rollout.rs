//! A skill or an expert in a simulated cell, without an agent between.

use zunft_protocol::ids::TaskName;
use zunft_sim::observation::{ACTION_DIM, Action, OBSERVATION_DIM};
use zunft_sim::{Cell, Start, expert};
use zunft_skills::runtime::{ActError, ActionQueue, SkillRuntime};

/// Why a skill cannot act in a cell.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RolloutError {
    /// Trained for another body.
    #[error(
        "{release} is for {name:?}, which observes {observations} values and commands {actions}; a simulated cell has {OBSERVATION_DIM} and {ACTION_DIM}"
    )]
    Body { release: String, name: String, observations: usize, actions: usize },
    /// The skill gave no action.
    #[error("the skill gave no action")]
    Act(#[from] ActError),
    /// The cell refused the action.
    #[error("the cell refused the skill's action")]
    Step(#[from] zunft_sim::StepError),
}

/// Refuses a skill that was trained for another body than a cell's.
pub(crate) fn fits_cell(skill: &SkillRuntime) -> Result<(), RolloutError> {
    let embodiment = skill.embodiment();
    let observations = zunft_skills::package::observation_features(embodiment).map(|feature| feature.values()).sum();
    let actions = embodiment.action().map_or(0, |feature| feature.values());
    if (observations, actions) == (OBSERVATION_DIM, ACTION_DIM) {
        return Ok(());
    }
    let (release, name) = (skill.release().to_string(), embodiment.name.clone());
    Err(RolloutError::Body { release, name, observations, actions })
}

/// Lets `skill` act from `start` to the episode's end.
pub(crate) fn skill_succeeds(skill: &SkillRuntime, start: &Start) -> Result<bool, RolloutError> {
    let task: TaskName = start.task().name().parse().expect("the cell's tasks have valid names");
    let mut cell = Cell::new(start);
    let mut queue = ActionQueue::new();
    loop {
        let action = queue.next_action(skill, &task, cell.observation())?;
        if let Some(end) = cell.step(&action)?.end {
            return Ok(end.success());
        }
    }
}

/// Lets the expert act from `start`, undisturbed.
pub(crate) fn expert_succeeds(start: &Start) -> bool {
    let mut cell = Cell::new(start);
    loop {
        let action: Action = expert::act(start.task(), cell.observation());
        let result = cell.step(&action).expect("an expert's actions are finite and end with the episode");
        if let Some(end) = result.end {
            return end.success();
        }
    }
}
