//! Small datasets and a toy world for tests.

use std::convert::Infallible;

use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::{EpisodeId, SnapshotId, TaskName};

use crate::data::{Dataset, DatasetEpisode};
use crate::eval::{Environment, Transition};

fn dataset(embodiment: Embodiment, tasks: &[&str], observation_dim: usize, action_dim: usize) -> Dataset {
    Dataset {
        snapshot: SnapshotId::from_bytes([7; 32]),
        embodiment,
        tasks: tasks.iter().map(|task| task.parse().unwrap()).collect(),
        episodes: Vec::new(),
        observation_dim,
        action_dim,
        observations: Vec::new(),
        actions: Vec::new(),
    }
}

fn embodiment(observation_dim: u32, action_dim: u32) -> Embodiment {
    let mut action = Feature::vector(ACTION, action_dim);
    action.min = vec![-1.0; action_dim as usize];
    action.max = vec![1.0; action_dim as usize];
    Embodiment {
        name: "toy".into(),
        rate_hz: 10.0,
        features: vec![Feature::vector(OBSERVATION_STATE, observation_dim), action],
    }
}

fn push_episode(dataset: &mut Dataset, task: usize, steps: &[(Vec<f32>, Vec<f32>)]) {
    let begin = dataset.steps();
    for (observation, action) in steps {
        dataset.observations.extend(observation);
        dataset.actions.extend(action);
    }
    let id = EpisodeId::of(&dataset.episodes.len().to_le_bytes());
    let steps = begin..begin + steps.len();
    dataset.episodes.push(DatasetEpisode { id, task, outcome: Outcome::Success, steps });
}

/// Episodes of these lengths, alternating between two tasks, in which the action at step i is i.
pub(crate) fn counting_dataset(lens: &[usize]) -> Dataset {
    let mut dataset = dataset(embodiment(1, 1), &["even", "odd"], 1, 1);
    for (episode, &len) in lens.iter().enumerate() {
        let begin = dataset.steps();
        let steps: Vec<_> = (begin..begin + len).map(|i| (vec![i as f32], vec![i as f32])).collect();
        push_episode(&mut dataset, episode % 2, &steps);
    }
    dataset
}

/// A point in the plane that is moved by its velocity, to the goal it sees or to the opposite of it.
///
/// Both tasks look the same: only the task's code tells them apart.
#[derive(Debug)]
pub(crate) struct PointWorld {
    target_sign: f32,
    position: [f32; 2],
    goal: [f32; 2],
}

impl PointWorld {
    pub(crate) const TASKS: [&'static str; 2] = ["go-away", "go-to"];

    pub(crate) fn new(task: &TaskName) -> Self {
        let target_sign = if task.as_str() == "go-to" { 1.0 } else { -1.0 };
        Self { target_sign, position: [0.0; 2], goal: [0.0; 2] }
    }

    fn observation(&self) -> Vec<f32> {
        [self.position, self.goal].concat()
    }

    fn error(&self) -> [f32; 2] {
        [0, 1].map(|axis| self.target_sign * self.goal[axis] - self.position[axis])
    }

    /// A P-controller.
    pub(crate) fn expert(&self) -> Vec<f32> {
        self.error().map(|error| (4.0 * error).clamp(-1.0, 1.0)).to_vec()
    }
}

impl Environment for PointWorld {
    type Error = Infallible;

    fn reset(&mut self, start: u64) -> Result<Vec<f32>, Infallible> {
        let angle = start as f32 * 2.4;
        self.position = [0.3 * (start as f32).sin(), 0.3 * (start as f32 * 1.7).cos()];
        self.goal = [0.8 * angle.cos(), 0.8 * angle.sin()];
        Ok(self.observation())
    }

    fn step(&mut self, action: &[f32]) -> Result<Transition, Infallible> {
        for (position, action) in self.position.iter_mut().zip(action) {
            *position += 0.1 * action.clamp(-1.0, 1.0);
        }
        let [x, y] = self.error();
        let success = x.hypot(y) < 0.05;
        Ok(Transition { observation: self.observation(), success, done: success })
    }
}

/// Demonstrations of the expert from starts 0 to `episodes_per_task`.
pub(crate) fn point_demonstrations(episodes_per_task: u64) -> Dataset {
    let mut dataset = dataset(embodiment(4, 2), &PointWorld::TASKS, 4, 2);
    for start in 0..episodes_per_task {
        for (task, name) in dataset.tasks.clone().iter().enumerate() {
            let mut world = PointWorld::new(name);
            let mut observation = world.reset(start).unwrap();
            let mut steps = Vec::new();
            for _ in 0..40 {
                let action = world.expert();
                let transition = world.step(&action).unwrap();
                steps.push((observation, action));
                observation = transition.observation;
                if transition.done {
                    break;
                }
            }
            push_episode(&mut dataset, task, &steps);
        }
    }
    dataset
}
