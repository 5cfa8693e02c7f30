//! How a run is made: every choice that its result depends on, one TOML table or one flag each.

use serde::{Deserialize, Serialize};

use crate::policy::{PolicyConfig, PolicyConfigError};

/// Most samples of one step.
const BATCH_SIZE_MAX: usize = 1024 * 1024;

/// Most threads of one run.
const THREADS_MAX: usize = 256;

/// Where the network is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainDevice {
    /// The processor.
    #[default]
    Cpu,
    /// A GPU through Vulkan; needs the build feature `vulkan`.
    Vulkan,
    /// Whatever wgpu finds; needs the build feature `wgpu`.
    Wgpu,
    /// An NVIDIA GPU; needs the build feature `cuda`.
    Cuda,
}

impl TrainDevice {
    /// The name that configurations use, which is also the build feature's.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
            Self::Cuda => "cuda",
        }
    }
}

/// Everything that decides how a run goes, apart from its data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Seed of the initial weights, the order of samples and the noise.
    pub seed: u64,
    /// Optimiser steps.
    pub steps: u64,
    /// Samples a step.
    pub batch_size: usize,
    /// Learning rate after the warm-up; it falls to zero along a cosine.
    pub optimizer_lr: f64,
    /// AdamW's decoupled weight decay.
    pub optimizer_weight_decay: f64,
    /// Longest gradient (L2 norm over all parameters); longer ones are shortened to it. 0: no bound.
    pub optimizer_grad_clip_norm: f64,
    /// Steps over which the learning rate rises from zero.
    pub scheduler_warmup_steps: u64,
    /// Standard deviation of the noise added to normalised observations. 0: none.
    pub observation_noise: f32,
    /// Decay of the moving average of the weights that becomes the skill. 0: the last weights do.
    pub ema_decay: f64,
    /// Least standard deviation that a dimension is normalised by, in the feature's own unit.
    pub std_min: f64,
    /// Share of the episodes that is kept for validation.
    pub validation_fraction: f64,
    /// Steps between two reports of progress.
    pub log_every: u64,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Threads that share each step on the CPU. The result depends on their number, so it is not the machine's.
    pub threads: usize,
    /// Where the network is computed.
    pub device: TrainDevice,
    /// Which network.
    pub policy: PolicyConfig,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 12_000,
            batch_size: 256,
            optimizer_lr: 1e-3,
            optimizer_weight_decay: 1e-4,
            optimizer_grad_clip_norm: 10.0,
            scheduler_warmup_steps: 0,
            observation_noise: 0.0,
            ema_decay: 0.0,
            std_min: 1e-3,
            validation_fraction: 0.0,
            log_every: 100,
            checkpoint_every: 2_000,
            threads: 2,
            device: TrainDevice::Cpu,
            policy: PolicyConfig::default(),
        }
    }
}

/// A configuration that no run can have.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainConfigError {
    /// A number out of its range.
    #[error("training option {option:?} is {found}; use {allowed}")]
    OutOfRange {
        /// Which option.
        option: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        allowed: &'static str,
    },
    /// The policy's part.
    #[error(transparent)]
    Policy(#[from] PolicyConfigError),
}

impl TrainConfig {
    /// Refuses values that no run can have.
    pub fn check(&self) -> Result<(), TrainConfigError> {
        let within = |option, found: f64, fits: bool, allowed| {
            if fits {
                return Ok(());
            }
            Err(TrainConfigError::OutOfRange { option, found: found.to_string(), allowed })
        };
        let positive = "a positive number";
        let not_negative = "0 or a positive number";
        let fraction = "at least 0 and below 1";
        let not_negative_option =
            |option, value: f64| within(option, value, value >= 0.0 && value.is_finite(), not_negative);
        let fraction_option = |option, value: f64| within(option, value, (0.0..1.0).contains(&value), fraction);
        within("steps", self.steps as f64, self.steps > 0, positive)?;
        let batch_fits = (1..=BATCH_SIZE_MAX).contains(&self.batch_size);
        within("batch_size", self.batch_size as f64, batch_fits, "1 to 1048576")?;
        let lr = self.optimizer_lr;
        within("optimizer_lr", lr, lr > 0.0 && lr.is_finite(), positive)?;
        not_negative_option("optimizer_weight_decay", self.optimizer_weight_decay)?;
        not_negative_option("optimizer_grad_clip_norm", self.optimizer_grad_clip_norm)?;
        not_negative_option("observation_noise", self.observation_noise.into())?;
        not_negative_option("std_min", self.std_min)?;
        fraction_option("ema_decay", self.ema_decay)?;
        fraction_option("validation_fraction", self.validation_fraction)?;
        within("log_every", self.log_every as f64, self.log_every > 0, positive)?;
        within("checkpoint_every", self.checkpoint_every as f64, self.checkpoint_every > 0, positive)?;
        let threads_fit = (1..=THREADS_MAX).contains(&self.threads);
        within("threads", self.threads as f64, threads_fit, "1 to 256")?;
        Ok(self.policy.check()?)
    }

    /// Learning rate of `step`: a linear warm-up, then a cosine to zero.
    pub fn lr_at(&self, step: u64) -> f64 {
        let warmup = self.scheduler_warmup_steps;
        if step < warmup {
            return self.optimizer_lr * (step + 1) as f64 / warmup as f64;
        }
        let decay_steps = self.steps.saturating_sub(warmup).max(1);
        let progress = (step - warmup) as f64 / decay_steps as f64;
        self.optimizer_lr * 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_rises_then_falls_to_zero() {
        let config = TrainConfig { steps: 110, scheduler_warmup_steps: 10, optimizer_lr: 1.0, ..Default::default() };
        let rates: Vec<f64> = [0, 9, 10, 60, 110].map(|step| config.lr_at(step)).into();
        for (rate, expected) in rates.iter().zip([0.1, 1.0, 1.0, 0.5, 0.0]) {
            assert!((rate - expected).abs() < 1e-9, "{rates:?}");
        }
    }

    #[test]
    fn configuration_reads_from_toml_and_refuses_unknown_keys() {
        let config: TrainConfig = toml::from_str("steps = 7\n[policy]\ntype = \"mlp\"\nchunk_size = 3\n").unwrap();
        assert_eq!((config.steps, config.policy.chunk_size()), (7, 3));
        for unknown in ["step = 7", "[policy]\ntype = \"mlp\"\nchunksize = 3", "[policy]\ntype = \"mpl\""] {
            assert!(toml::from_str::<TrainConfig>(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let refused = |text: &str, option: &str| {
            let config: TrainConfig = toml::from_str(text).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        };
        assert_eq!(TrainConfig::default().check(), Ok(()));
        refused("batch_size = 0", "batch_size");
        refused("optimizer_lr = nan", "optimizer_lr");
        refused("ema_decay = 1.0", "ema_decay");
        refused("threads = 0", "threads");
        refused("[policy]\ntype = \"mlp\"\nchunk_size = 0", "chunk_size");
        refused("[policy]\ntype = \"mlp\"\nchunk_size = 2\nn_action_steps = 3", "n_action_steps");
    }
}
