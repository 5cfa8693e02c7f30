//! A multi-layer perceptron that predicts a chunk of actions from one observation and a one-hot task.
//!
//! The network is the plain one of behaviour cloning since ALVINN (Pomerleau, 1989); predicting a chunk
//! at once is from "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (Zhao et al.,
//! 2023, arXiv:2304.13705). Parameter names: `model.hidden.<i>` and `model.head`.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, activation};
use serde::{Deserialize, Serialize};

use super::parameters::store_linear;
use super::{CHUNK_SIZE_MAX, LAYER_WIDTH_MAX, Parameters, PolicyConfigError, PolicyShape};
use crate::weights::{Weights, WeightsError};

/// Most hidden layers.
const HIDDEN_LAYERS_MAX: usize = 32;

/// Hyper-parameters of [`Mlp`], by LeRobot's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpConfig {
    /// Observations that the policy sees at once. Only 1 is supported.
    pub n_obs_steps: usize,
    /// Actions predicted at once.
    pub chunk_size: usize,
    /// Actions of a chunk that are carried out before the policy looks again.
    pub n_action_steps: usize,
    /// Width of each hidden layer, first to last.
    pub hidden_dims: Vec<usize>,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self { n_obs_steps: 1, chunk_size: 1, n_action_steps: 1, hidden_dims: vec![512; 3] }
    }
}

impl MlpConfig {
    /// Refuses hyper-parameters that no network can have.
    pub fn check(&self) -> Result<(), PolicyConfigError> {
        let refuse = |option, found: &dyn std::fmt::Debug, remedy: String| {
            Err(PolicyConfigError { option, found: format!("{found:?}"), remedy })
        };
        if self.n_obs_steps != 1 {
            return refuse("n_obs_steps", &self.n_obs_steps, "an mlp sees 1 observation".into());
        }
        if !(1..=CHUNK_SIZE_MAX).contains(&self.chunk_size) {
            return refuse("chunk_size", &self.chunk_size, format!("use 1 to {CHUNK_SIZE_MAX}"));
        }
        if !(1..=self.chunk_size).contains(&self.n_action_steps) {
            return refuse(
                "n_action_steps",
                &self.n_action_steps,
                format!("use 1 to chunk_size ({})", self.chunk_size),
            );
        }
        let widths_fit = self.hidden_dims.iter().all(|width| (1..=LAYER_WIDTH_MAX).contains(width));
        if !widths_fit || !(1..=HIDDEN_LAYERS_MAX).contains(&self.hidden_dims.len()) {
            let remedy = format!("use 1 to {HIDDEN_LAYERS_MAX} layers of 1 to {LAYER_WIDTH_MAX} units");
            return refuse("hidden_dims", &self.hidden_dims, remedy);
        }
        Ok(())
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Mlp {
    hidden: Vec<Linear>,
    head: Linear,
    chunk_size: usize,
}

impl Mlp {
    /// Builds the network with values from `parameters`.
    pub(super) fn build(
        config: &MlpConfig,
        shape: PolicyShape,
        parameters: &mut Parameters<'_>,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let mut width = shape.observation_dim + shape.task_count;
        let mut hidden = Vec::with_capacity(config.hidden_dims.len());
        for (i, &next) in config.hidden_dims.iter().enumerate() {
            hidden.push(parameters.linear(&format!("model.hidden.{i}"), width, next, device)?);
            width = next;
        }
        let head = parameters.linear("model.head", width, config.chunk_size * shape.action_dim, device)?;
        Ok(Self { hidden, head, chunk_size: config.chunk_size })
    }

    /// Predicts chunks of actions.
    ///
    /// # Shapes
    /// - observation: `[batch, observation_dim]`
    /// - task: `[batch, task_count]`
    /// - returns: `[batch, chunk_size, action_dim]`
    pub fn forward(&self, observation: Tensor<2>, task: Tensor<2>) -> Tensor<3> {
        let mut x = Tensor::cat(vec![observation, task], 1);
        for layer in &self.hidden {
            x = activation::relu(layer.forward(x));
        }
        let [batch, _width] = x.dims();
        let actions = self.head.forward(x);
        let [_batch, width] = actions.dims();
        actions.reshape([batch, self.chunk_size, width / self.chunk_size])
    }

    /// The parameters in PyTorch's names and layout.
    pub(super) fn weights(&self) -> Weights {
        let mut weights = Weights::new();
        for (i, layer) in self.hidden.iter().enumerate() {
            store_linear(&mut weights, &format!("model.hidden.{i}"), layer);
        }
        store_linear(&mut weights, "model.head", &self.head);
        weights
    }
}
