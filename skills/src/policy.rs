//! Networks that map an observation and a task to a chunk of actions.
//!
//! A [`PolicyConfig`] names the kind and its hyper-parameters, by LeRobot's names; a [`Network`] is its
//! burn module. Each kind is one file with its shapes and its paper. Here inputs and outputs are
//! normalised: raw units are [`crate::runtime`]'s. It does not know how a network is trained or stored.

pub mod mlp;
mod parameters;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::weights::{Weights, WeightsError};
use mlp::{Mlp, MlpConfig};
pub use parameters::Parameters;

/// Most actions in one chunk: ten seconds at 100 Hz.
pub const CHUNK_SIZE_MAX: usize = 1000;

/// Widest layer: 16 thousand units are more than any state-based policy has needed.
pub const LAYER_WIDTH_MAX: usize = 16 * 1024;

/// Which network, with its hyper-parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PolicyConfig {
    /// A multi-layer perceptron.
    Mlp(MlpConfig),
}

/// A configuration that no network can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy option {option:?} is {found}; {remedy}")]
pub struct PolicyConfigError {
    /// Which option.
    pub option: &'static str,
    /// Its value.
    pub found: String,
    /// What it can be.
    pub remedy: String,
}

/// What the data decides about a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyShape {
    /// Values of the flattened observation.
    pub observation_dim: usize,
    /// Values of one action.
    pub action_dim: usize,
    /// Length of the one-hot code of the task.
    pub task_count: usize,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self::Mlp(MlpConfig::default())
    }
}

impl PolicyConfig {
    /// The kind's name, as in `config.json`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "mlp",
        }
    }

    /// Actions predicted at once.
    pub fn chunk_size(&self) -> usize {
        match self {
            Self::Mlp(config) => config.chunk_size,
        }
    }

    /// Actions of a chunk that are carried out before the policy looks again.
    pub fn n_action_steps(&self) -> usize {
        match self {
            Self::Mlp(config) => config.n_action_steps,
        }
    }

    /// Refuses hyper-parameters that no network can have.
    pub fn check(&self) -> Result<(), PolicyConfigError> {
        match self {
            Self::Mlp(config) => config.check(),
        }
    }
}

/// One of the networks.
#[derive(Module, Debug)]
pub enum Network {
    /// A multi-layer perceptron.
    Mlp(Mlp),
}

impl Network {
    /// Builds the network that `config` and `shape` describe, with values from `parameters`.
    pub fn build(
        config: &PolicyConfig,
        shape: PolicyShape,
        parameters: Parameters<'_>,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let mut parameters = parameters;
        let network = match config {
            PolicyConfig::Mlp(config) => Self::Mlp(Mlp::build(config, shape, &mut parameters, device)?),
        };
        parameters.finish()?;
        Ok(network)
    }

    /// Predicts chunks of normalised actions.
    ///
    /// # Shapes
    /// - observation: `[batch, observation_dim]`, normalised
    /// - task: `[batch, task_count]`, one-hot
    /// - returns: `[batch, chunk_size, action_dim]`, normalised
    pub fn forward(&self, observation: Tensor<2>, task: Tensor<2>) -> Tensor<3> {
        match self {
            Self::Mlp(mlp) => mlp.forward(observation, task),
        }
    }

    /// The parameters in PyTorch's names and layout.
    pub fn weights(&self) -> Weights {
        match self {
            Self::Mlp(mlp) => mlp.weights(),
        }
    }
}
