//! Training: one loop, from a dataset to a skill.
//!
//! A run is a function of (dataset, [`TrainConfig`]): stopped or killed at any step and started again with
//! the same checkpoint folder, it ends in the same bits, on the same binary and kind of CPU. This is a shell:
//! it reads the clock for its reports and writes checkpoints, on the thread of its caller.

mod adamw;
mod checkpoint;
mod config;
mod gradients;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use rand::seq::SliceRandom as _;
use tracing::{debug, info};
use zunft_protocol::ids::Digest;
use zunft_protocol::release::Lineage;

use crate::data::Dataset;
use crate::normalizer::{Normalizer, Stats, StatsError};
use crate::package::{BodyError, Skill, policy_shape};
use crate::policy::{Network, Parameters};
use crate::seeded;
use crate::window::{Sampler, Windows};
use adamw::{AdamWStep, Optimized};
use checkpoint::{RunIdentity, RunState};

pub use checkpoint::CheckpointError;
pub use config::{TrainConfig, TrainConfigError, TrainDevice};

/// Most samples that a validation looks at: enough for three digits of a loss.
const VALIDATION_SAMPLES_MAX: usize = 4096;

/// Most golden inputs of a skill.
const GOLDEN_INPUTS_MAX: usize = 64;

/// How a run is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Steps made.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Mean training loss since the last report: absolute error in standard deviations of the actions.
    pub loss: f64,
    /// The same on the episodes kept for validation, where there are any.
    pub validation_loss: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Length of the last gradient, before it was shortened.
    pub gradient_norm: f64,
    /// Steps a second since the last report.
    pub steps_per_sec: f64,
}

/// How a run ended without an error.
#[derive(Debug)]
pub enum TrainEnd {
    /// All steps were made.
    Finished(Box<Trained>),
    /// It was asked to stop, and can be taken up again if it has a checkpoint.
    Interrupted {
        /// Steps made.
        step: u64,
        /// Where it was stored.
        checkpoint: Option<PathBuf>,
    },
}

/// What a finished run made.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The skill.
    pub skill: Skill,
    /// Where it comes from, with `train_loss` and, where measured, `validation_loss` as metrics.
    pub lineage: Lineage,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration.
    #[error("the training configuration is not acceptable")]
    Config(#[from] TrainConfigError),
    /// The body.
    #[error("the dataset's embodiment cannot be trained for")]
    Body(#[from] BodyError),
    /// A device that this program was built without.
    #[error("this program was built without device {device:?}; use \"cpu\" or build with --features {device}")]
    Device {
        /// Which.
        device: &'static str,
    },
    /// Data that are not numbers, or none.
    #[error("the {what} of the dataset cannot be trained on")]
    Data {
        /// `observations` or `actions`.
        what: &'static str,
        /// Why.
        #[source]
        source: StatsError,
    },
    /// Everything was kept for validation.
    #[error("{episodes} episodes leave none to train on; lower validation_fraction")]
    NoTrainingEpisodes {
        /// Episodes of the dataset.
        episodes: usize,
    },
    /// More samples than can be indexed.
    #[error("the dataset has {samples} samples; at most 4294967295 can be trained on: select fewer episodes")]
    TooManySamples {
        /// How many.
        samples: usize,
    },
    /// The loss or its gradient is no longer a number.
    #[error(
        "{what} became {value} at step {step}; lower optimizer_lr or raise std_min. {}",
        kept(.checkpoint.as_deref())
    )]
    NotFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// Its value.
        value: f64,
        /// At which step.
        step: u64,
        /// The last checkpoint before.
        checkpoint: Option<PathBuf>,
    },
    /// A checkpoint.
    #[error("the run's checkpoint failed")]
    Checkpoint(#[from] CheckpointError),
}

fn kept(checkpoint: Option<&Path>) -> String {
    match checkpoint {
        Some(path) => format!("The last good checkpoint is kept: {}", path.display()),
        None => "There was no checkpoint yet".to_owned(),
    }
}

/// Trains a policy on `dataset` by behaviour cloning.
///
/// With a folder for `checkpoints` the run stores its state there and, when there is one of the same run
/// already, goes on from it. `stop` is looked at once a step.
pub fn train(
    dataset: &Dataset,
    config: &TrainConfig,
    checkpoints: Option<&Path>,
    stop: &AtomicBool,
    mut report: impl FnMut(Progress),
) -> Result<TrainEnd, TrainError> {
    config.check()?;
    let device = device_of(config.device)?;
    let (shape, _action) = policy_shape(&dataset.embodiment, dataset.tasks.len())?;
    let statistics = Statistics::of(dataset, config.std_min)?;
    let (training, validation) = split_episodes(dataset, config)?;
    let windows = |episodes: &[usize]| {
        let Statistics { observations, actions, .. } = &statistics;
        Windows::new(dataset, episodes, config.policy.chunk_size(), observations, actions)
    };
    let (samples, validation) = (windows(&training), Validation::of(windows(&validation), config.seed));
    if u32::try_from(samples.len()).is_err() {
        return Err(TrainError::TooManySamples { samples: samples.len() });
    }
    let mut sampler = Sampler::new(config.seed, samples.len(), config.batch_size);

    let run = identity(dataset, config);
    let fresh = Network::build(&config.policy, shape, Parameters::Seed(config.seed), &device)
        .expect("a seed gives every parameter its shape");
    let mut state = begin_or_resume(&fresh, config, checkpoints, &run)?;
    let mut saved = checkpoints.map(checkpoint::list).transpose()?.and_then(|mut all| all.pop());
    let mut meter = Meter::new(&state);
    info!(samples = samples.len(), step = state.step, steps = config.steps, "training begins");

    while state.step < config.steps {
        if stop.load(Ordering::Relaxed) {
            meter.stop(&mut state);
            let checkpoint = checkpoints.map(|folder| checkpoint::save(folder, &run, &state)).transpose()?;
            return Ok(TrainEnd::Interrupted { step: state.step, checkpoint });
        }
        let mut batch = samples.batch(&sampler.indices(state.step));
        if config.observation_noise > 0.0 {
            batch.add_observation_noise(config.observation_noise, config.seed, state.step);
        }
        let network = gradients::with_values(fresh.clone(), &state.optimized.values, &device);
        let step = gradients::differentiate(&network, batch, shares(config), &device);
        let gradient_norm = adamw::norm(&step.gradients);
        for (what, value) in [("loss", step.loss), ("gradient", gradient_norm)] {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { what, value, step: state.step, checkpoint: saved });
            }
        }
        let how = AdamWStep {
            step: state.step,
            lr: config.lr_at(state.step),
            weight_decay: config.optimizer_weight_decay,
            ema_decay: config.ema_decay,
        };
        state.optimized.apply(&how, &step.gradients, clip(config, gradient_norm), config.threads);
        state.step += 1;
        meter.count(step.loss);

        let last = state.step == config.steps;
        if last || state.step.is_multiple_of(config.log_every) {
            let network = gradients::with_values(fresh.clone(), state.optimized.released(), &device);
            let validation_loss = validation.loss(&network, &device);
            report(meter.report(&mut state, config.steps, how.lr, gradient_norm, validation_loss));
        }
        if let Some(folder) = checkpoints.filter(|_| last || state.step.is_multiple_of(config.checkpoint_every)) {
            meter.stop(&mut state);
            saved = Some(checkpoint::save(folder, &run, &state)?);
            debug!(step = state.step, "checkpoint stored");
        }
    }
    meter.stop(&mut state);
    let network = gradients::with_values(fresh, state.optimized.released(), &device);
    let metrics = metrics_of(&network, &samples, &validation, &device);
    Ok(TrainEnd::Finished(Box::new(finish(dataset, config, statistics, &network, metrics, state.train_secs))))
}

/// The statistics of a dataset, and the normalisers made of them.
struct Statistics {
    observation_stats: Stats,
    action_stats: Stats,
    observations: Normalizer,
    actions: Normalizer,
}

impl Statistics {
    fn of(dataset: &Dataset, std_min: f64) -> Result<Self, TrainError> {
        let data = |what| move |source| TrainError::Data { what, source };
        let stats = |values: &[f32], dim| Ok(Stats::of(values, dim)?.with_std_min(std_min));
        let observation_stats = stats(&dataset.observations, dataset.observation_dim).map_err(data("observations"))?;
        let action_stats = stats(&dataset.actions, dataset.action_dim).map_err(data("actions"))?;
        let observations = Normalizer::of(&observation_stats).map_err(data("observations"))?;
        let actions = Normalizer::of(&action_stats).map_err(data("actions"))?;
        Ok(Self { observation_stats, action_stats, observations, actions })
    }
}

/// Samples to validate on, the same every time.
struct Validation<'a> {
    windows: Windows<'a>,
    indices: Vec<u32>,
}

impl<'a> Validation<'a> {
    fn of(windows: Windows<'a>, seed: u64) -> Self {
        let len = windows.len().min(VALIDATION_SAMPLES_MAX);
        let indices = if len == 0 { Vec::new() } else { Sampler::new(seed, windows.len(), len).indices(0) };
        Self { windows, indices }
    }

    fn loss(&self, network: &Network, device: &Device) -> Option<f64> {
        if self.indices.is_empty() {
            return None;
        }
        Some(gradients::loss_of(network, &self.windows.batch(&self.indices), device))
    }
}

/// Measures loss and speed between two reports.
struct Meter {
    begun: Instant,
    /// Seconds of `train_secs` when this began.
    secs_before: f64,
    reported_secs: f64,
    reported_step: u64,
    loss_sum: f64,
    losses: u64,
}

#[expect(clippy::disallowed_methods, reason = "the training loop is a shell: it reports its speed")]
impl Meter {
    fn new(state: &RunState) -> Self {
        Self {
            begun: Instant::now(),
            secs_before: state.train_secs,
            reported_secs: state.train_secs,
            reported_step: state.step,
            loss_sum: 0.0,
            losses: 0,
        }
    }

    fn count(&mut self, loss: f64) {
        self.loss_sum += loss;
        self.losses += 1;
    }

    fn stop(&self, state: &mut RunState) {
        state.train_secs = self.secs_before + self.begun.elapsed().as_secs_f64();
    }

    fn report(
        &mut self,
        state: &mut RunState,
        steps: u64,
        lr: f64,
        gradient_norm: f64,
        validation_loss: Option<f64>,
    ) -> Progress {
        self.stop(state);
        let secs = (state.train_secs - self.reported_secs).max(f64::MIN_POSITIVE);
        let progress = Progress {
            step: state.step,
            steps,
            loss: self.loss_sum / self.losses.max(1) as f64,
            validation_loss,
            lr,
            gradient_norm,
            steps_per_sec: (state.step - self.reported_step) as f64 / secs,
        };
        (self.reported_secs, self.reported_step) = (state.train_secs, state.step);
        (self.loss_sum, self.losses) = (0.0, 0);
        progress
    }
}

fn begin_or_resume(
    fresh: &Network,
    config: &TrainConfig,
    checkpoints: Option<&Path>,
    run: &RunIdentity,
) -> Result<RunState, TrainError> {
    let optimized = Optimized::new(gradients::values_of(fresh), config.ema_decay > 0.0);
    let resumed = checkpoints.map(|folder| checkpoint::load_last(folder, run, &optimized)).transpose()?.flatten();
    Ok(resumed.unwrap_or(RunState { step: 0, train_secs: 0.0, optimized }))
}

fn identity(dataset: &Dataset, config: &TrainConfig) -> RunIdentity {
    let ids: Vec<u8> = dataset.episodes.iter().flat_map(|episode| *episode.id.as_bytes()).collect();
    RunIdentity { snapshot: dataset.snapshot, episodes: Digest::of(&ids), config: config.clone() }
}

/// Episodes to train on and to validate on, each in the dataset's order.
fn split_episodes(dataset: &Dataset, config: &TrainConfig) -> Result<(Vec<usize>, Vec<usize>), TrainError> {
    let episodes = dataset.episodes.len();
    let mut order: Vec<usize> = (0..episodes).collect();
    order.shuffle(&mut seeded::rng(config.seed, "validation episodes", 0));
    let kept = (episodes as f64 * config.validation_fraction).round() as usize;
    let mut training = order.split_off(kept);
    if training.is_empty() {
        return Err(TrainError::NoTrainingEpisodes { episodes });
    }
    training.sort_unstable();
    order.sort_unstable();
    Ok((training, order))
}

/// How many threads share a step: a GPU has its own.
fn shares(config: &TrainConfig) -> usize {
    if config.device == TrainDevice::Cpu { config.threads } else { 1 }
}

fn clip(config: &TrainConfig, norm: f64) -> f32 {
    let bound = config.optimizer_grad_clip_norm;
    if bound > 0.0 && norm > bound { (bound / norm) as f32 } else { 1.0 }
}

fn device_of(device: TrainDevice) -> Result<Device, TrainError> {
    match device {
        TrainDevice::Cpu => Ok(Device::flex()),
        #[cfg(feature = "vulkan")]
        TrainDevice::Vulkan => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "wgpu")]
        TrainDevice::Wgpu => Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        TrainDevice::Cuda => Ok(Device::cuda(0)),
        #[cfg(not(all(feature = "vulkan", feature = "wgpu", feature = "cuda")))]
        absent => Err(TrainError::Device { device: absent.as_str() }),
    }
}

fn metrics_of(
    network: &Network,
    samples: &Windows<'_>,
    validation: &Validation<'_>,
    device: &Device,
) -> BTreeMap<String, f64> {
    let len = samples.len().min(VALIDATION_SAMPLES_MAX);
    let indices = Sampler::new(0, samples.len(), len).indices(0);
    let train_loss = gradients::loss_of(network, &samples.batch(&indices), device);
    let mut metrics = BTreeMap::from([("train_loss".to_owned(), train_loss)]);
    if let Some(loss) = validation.loss(network, device) {
        metrics.insert("validation_loss".to_owned(), loss);
    }
    metrics
}

fn finish(
    dataset: &Dataset,
    config: &TrainConfig,
    statistics: Statistics,
    network: &Network,
    metrics: BTreeMap<String, f64>,
    train_secs: f64,
) -> Trained {
    let skill = Skill {
        policy: config.policy.clone(),
        embodiment: dataset.embodiment.clone(),
        tasks: dataset.tasks.clone(),
        weights: network.weights(),
        observation_stats: statistics.observation_stats,
        action_stats: statistics.action_stats,
        golden_inputs: golden_inputs(dataset),
    };
    let lineage = Lineage {
        snapshot: Some(dataset.snapshot),
        config: serde_json::to_value(config).expect("a configuration has a JSON form"),
        seed: config.seed,
        code_version: env!("CARGO_PKG_VERSION").to_owned(),
        metrics,
        train_secs,
    };
    info!(train_secs, "training ends");
    Trained { skill, lineage }
}

/// The first and the middle observation of each task's first episode.
fn golden_inputs(dataset: &Dataset) -> Vec<(usize, Vec<f32>)> {
    let first_of = |task| dataset.episodes.iter().find(|episode| episode.task == task);
    let inputs = (0..dataset.tasks.len()).filter_map(first_of).flat_map(|episode| {
        let middle = episode.steps.start + episode.steps.len() / 2;
        [episode.steps.start, middle].map(|step| {
            let begin = step * dataset.observation_dim;
            (episode.task, dataset.observations[begin..begin + dataset.observation_dim].to_vec())
        })
    });
    inputs.take(GOLDEN_INPUTS_MAX).collect()
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
