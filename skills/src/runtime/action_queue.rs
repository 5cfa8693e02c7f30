//! Carries out the first actions of each chunk before the policy looks again.
//!
//! It does not know where chunks come from.

use std::collections::VecDeque;

use zunft_protocol::ids::TaskName;

use super::{ActError, SkillRuntime};

/// The actions that are left of the chunk in progress.
///
/// One queue belongs to one episode: begin each episode with a new queue or [`reset`](Self::reset) it,
/// or its first actions answer the observations of the episode before.
#[derive(Debug, Clone, Default)]
pub struct ActionQueue {
    task: Option<TaskName>,
    waiting: VecDeque<Vec<f32>>,
}

impl ActionQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the chunk in progress.
    pub fn reset(&mut self) {
        self.task = None;
        self.waiting.clear();
    }

    /// The next action: of the chunk in progress, or of a new one once `n_action_steps` were carried out.
    ///
    /// Another task than before begins a new chunk.
    pub fn next_action(
        &mut self,
        runtime: &SkillRuntime,
        task: &TaskName,
        observation: &[f32],
    ) -> Result<Vec<f32>, ActError> {
        if self.task.as_ref() != Some(task) {
            self.waiting.clear();
            self.task = Some(task.clone());
        }
        if let Some(action) = self.waiting.pop_front() {
            return Ok(action);
        }
        let chunk = runtime.act(task, observation)?;
        let mut actions = chunk.actions().take(runtime.policy().n_action_steps()).map(<[f32]>::to_vec);
        let first = actions.next().expect("a chunk has at least one action");
        self.waiting.extend(actions);
        Ok(first)
    }
}
