//! Runs a skill on a robot: raw observation in, raw actions out.
//!
//! Everything that a network must never see or say is refused here: other dimensions, unknown tasks,
//! values that are not numbers. Actions are clipped to the embodiment's limits. It allocates but never
//! waits: no disk, no clock, no other thread after [`SkillRuntime::load`].

mod action_queue;

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use zunft_protocol::embodiment::{Embodiment, Feature};
use zunft_protocol::ids::{ReleaseId, TaskName};

use crate::normalizer::{Normalizer, StatsError};
use crate::package::{BodyError, Golden, GoldenError, Package, PackageError, Skill, policy_shape};
use crate::policy::{Network, Parameters, PolicyConfig, PolicyConfigError, PolicyShape};
use crate::weights::{Weights, WeightsError};

pub use action_queue::ActionQueue;

/// A skill that is ready to act.
#[derive(Debug)]
pub struct SkillRuntime {
    release: ReleaseId,
    policy: PolicyConfig,
    embodiment: Embodiment,
    tasks: Vec<TaskName>,
    shape: PolicyShape,
    network: Network,
    observation_normalizer: Normalizer,
    action_normalizer: Normalizer,
    /// Standard deviation of each action dimension: the unit of the golden tolerance.
    action_scale: Vec<f32>,
    /// Least and greatest command of each action dimension.
    limits: Vec<(f32, f32)>,
    golden: Option<Golden>,
    device: Device,
}

/// Why a skill cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The package.
    #[error("the skill package is not acceptable")]
    Package(#[from] PackageError),
    /// The body.
    #[error("no policy can drive this body")]
    Body(#[from] BodyError),
    /// A hyper-parameter that no network can have.
    #[error("the policy's configuration is not acceptable")]
    Policy(#[from] PolicyConfigError),
    /// No tasks.
    #[error("the skill names no task")]
    NoTasks,
    /// Weights of another network.
    #[error("the weights do not fit the policy's configuration")]
    Weights(#[from] WeightsError),
    /// Statistics that cannot be used.
    #[error("the {what} statistics are not acceptable")]
    Stats {
        /// `observation` or `action`.
        what: &'static str,
        /// Why.
        #[source]
        source: StatsError,
    },
    /// The skill does not compute what it should.
    #[error("the skill failed its golden vectors")]
    Golden(#[from] GoldenError),
}

/// Why there is no action.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ActError {
    /// A task that the skill was not trained on.
    #[error("{release} does not know task {task}; it knows {}", list(.known))]
    UnknownTask {
        /// Which release.
        release: ReleaseId,
        /// The task asked for.
        task: TaskName,
        /// Those that it knows.
        known: Vec<TaskName>,
    },
    /// An observation of another size.
    #[error(
        "observation has {found} values; {release} needs {expected}: the f32 observation features one after the other"
    )]
    ObservationDim {
        /// Which release.
        release: ReleaseId,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// An observation that is not a number.
    #[error("observation value {index} is {value}; check the sensor: no action is given")]
    ObservationNotFinite {
        /// Which value.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An action that is not a number.
    #[error("{release} answered {value} at value {index}; no action is given: go back to an earlier release")]
    ActionNotFinite {
        /// Which release.
        release: ReleaseId,
        /// Which value of the chunk.
        index: usize,
        /// The value.
        value: f32,
    },
}

fn list(tasks: &[TaskName]) -> String {
    tasks.iter().map(TaskName::as_str).collect::<Vec<_>>().join(", ")
}

/// Consecutive actions in raw units, inside the embodiment's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct ActionChunk {
    values: Vec<f32>,
    action_dim: usize,
}

impl ActionChunk {
    /// The actions, soonest first.
    pub fn actions(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.action_dim)
    }

    /// All values, `[chunk_size, action_dim]` row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

impl SkillRuntime {
    /// Loads a package: every byte is checked, and the golden vectors must come out.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        Self::of_package(Package::read(path)?)
    }

    /// Makes a package that was read before ready to act, and verifies its golden vectors.
    pub fn of_package(package: Package) -> Result<Self, LoadError> {
        let mut runtime = Self::build(
            package.manifest.release,
            package.policy,
            package.manifest.embodiment,
            package.manifest.tasks,
            &package.weights,
            package.observation_normalizer,
            package.action_normalizer,
        )?;
        runtime.golden = Some(package.golden);
        runtime.verify_golden()?;
        Ok(runtime)
    }

    /// Makes a skill that was just trained ready to act, without a package.
    pub fn of_skill(release: ReleaseId, skill: &Skill) -> Result<Self, LoadError> {
        let normalizer = |what, stats| Normalizer::of(stats).map_err(|source| LoadError::Stats { what, source });
        Self::build(
            release,
            skill.policy.clone(),
            skill.embodiment.clone(),
            skill.tasks.clone(),
            &skill.weights,
            normalizer("observation", &skill.observation_stats)?,
            normalizer("action", &skill.action_stats)?,
        )
    }

    fn build(
        release: ReleaseId,
        policy: PolicyConfig,
        embodiment: Embodiment,
        tasks: Vec<TaskName>,
        weights: &Weights,
        observation_normalizer: Normalizer,
        action_normalizer: Normalizer,
    ) -> Result<Self, LoadError> {
        policy.check()?;
        if tasks.is_empty() {
            return Err(LoadError::NoTasks);
        }
        let (shape, action) = policy_shape(&embodiment, tasks.len())?;
        let limits = limits_of(action);
        for (what, normalizer, expected) in [
            ("observation", &observation_normalizer, shape.observation_dim),
            ("action", &action_normalizer, shape.action_dim),
        ] {
            let found = normalizer.dimensions();
            if found != expected {
                let source = StatsError::Length { statistic: "mean", found, expected };
                return Err(LoadError::Stats { what, source });
            }
        }
        let device = Device::flex();
        let network = Network::build(&policy, shape, Parameters::stored(weights), &device)?;
        let action_scale = action_normalizer.std().to_vec();
        Ok(Self {
            release,
            policy,
            embodiment,
            tasks,
            shape,
            network,
            observation_normalizer,
            action_normalizer,
            action_scale,
            limits,
            golden: None,
            device,
        })
    }

    /// Which release this is.
    pub fn release(&self) -> &ReleaseId {
        &self.release
    }

    /// Kind of policy and hyper-parameters.
    pub fn policy(&self) -> &PolicyConfig {
        &self.policy
    }

    /// The body that it drives.
    pub fn embodiment(&self) -> &Embodiment {
        &self.embodiment
    }

    /// The tasks that it knows.
    pub fn tasks(&self) -> &[TaskName] {
        &self.tasks
    }

    /// The network's dimensions.
    pub fn shape(&self) -> PolicyShape {
        self.shape
    }

    /// Answers the golden vectors again, for a trial on the robot.
    ///
    /// A skill that does not come from a package has none, and passes.
    pub fn verify_golden(&self) -> Result<(), GoldenError> {
        self.golden.as_ref().map_or(Ok(()), |golden| golden.verify(self))
    }

    /// Decides what to do next for `task`.
    ///
    /// `observation` holds the embodiment's f32 observation features one after the other, in its order.
    pub fn act(&self, task: &TaskName, observation: &[f32]) -> Result<ActionChunk, ActError> {
        let Some(index) = self.tasks.iter().position(|known| known == task) else {
            return Err(ActError::UnknownTask {
                release: self.release.clone(),
                task: task.clone(),
                known: self.tasks.clone(),
            });
        };
        let mut one_hot = vec![0.0; self.tasks.len()];
        one_hot[index] = 1.0;
        let mut values = self.predict(&one_hot, observation)?;
        for action in values.chunks_exact_mut(self.shape.action_dim) {
            for (value, &(min, max)) in action.iter_mut().zip(&self.limits) {
                *value = value.clamp(min, max);
            }
        }
        Ok(ActionChunk { values, action_dim: self.shape.action_dim })
    }

    /// The chunk before it is clipped, `[chunk_size, action_dim]` in raw units.
    pub(crate) fn predict(&self, one_hot: &[f32], observation: &[f32]) -> Result<Vec<f32>, ActError> {
        let PolicyShape { observation_dim, task_count, .. } = self.shape;
        if observation.len() != observation_dim {
            return Err(ActError::ObservationDim {
                release: self.release.clone(),
                found: observation.len(),
                expected: observation_dim,
            });
        }
        if let Some((index, &value)) = observation.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(ActError::ObservationNotFinite { index, value });
        }
        let mut normalized = observation.to_vec();
        self.observation_normalizer.normalize(&mut normalized);
        let observation = Tensor::from_data(TensorData::new(normalized, [1, observation_dim]), &self.device);
        let task = Tensor::from_data(TensorData::new(one_hot.to_vec(), [1, task_count]), &self.device);
        let chunk = self.network.forward(observation, task).into_data();
        let mut values = chunk.as_slice::<f32>().expect("networks compute in f32").to_vec();
        self.action_normalizer.unnormalize(&mut values);
        match values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            Some((index, &value)) => Err(ActError::ActionNotFinite { release: self.release.clone(), index, value }),
            None => Ok(values),
        }
    }

    pub(crate) fn action_scale(&self, dimension: usize) -> f32 {
        self.action_scale[dimension]
    }
}

/// The command limits of each action dimension; unbounded where the embodiment gives none.
fn limits_of(action: &Feature) -> Vec<(f32, f32)> {
    let limit = |limits: &[f64], dimension: usize, unbounded: f32| {
        limits.get(dimension).map_or(unbounded, |&limit| limit as f32)
    };
    (0..action.values())
        .map(|dimension| (limit(&action.min, dimension, f32::MIN), limit(&action.max, dimension, f32::MAX)))
        .collect()
}

#[cfg(test)]
mod tests;
