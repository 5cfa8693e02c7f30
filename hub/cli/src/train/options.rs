//! Every choice of a training run: from a file, each key overridden by its flag.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::{RobotId, TaskName};
use zunft_skills::data::{ActorKind, Selection};
use zunft_skills::policy::PolicyConfig;
use zunft_skills::policy::mlp::MlpConfig;
use zunft_skills::train::{TrainConfig, TrainDevice};

use crate::exit::{ExitCode, Failure, OrFail as _};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PolicyKind {
    /// A multi-layer perceptron over the state, with action chunks.
    Mlp,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TrainOptions {
    /// TOML file with any of the options below, by the same names with underscores; the policy's in a table `[policy]`
    /// with `type = "mlp"`, the data's in a table `[selection]`. Flags override it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Training options")]
    training: TrainingFlags,
    #[command(flatten, next_help_heading = "Policy options")]
    policy: PolicyFlags,
    #[command(flatten, next_help_heading = "Which episodes")]
    selection: SelectionFlags,
}

#[derive(Debug, Clone, Default, Args)]
struct TrainingFlags {
    /// Seed of the initial weights, the order of samples and the noise [default: 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Optimiser steps [default: 12000].
    #[arg(long)]
    steps: Option<u64>,
    /// Samples a step [default: 256].
    #[arg(long)]
    batch_size: Option<usize>,
    /// Learning rate after the warm-up; it falls to zero along a cosine [default: 0.001].
    #[arg(long, visible_alias = "lr", value_name = "RATE")]
    optimizer_lr: Option<f64>,
    /// AdamW's decoupled weight decay [default: 0.0001].
    #[arg(long, visible_alias = "weight-decay", value_name = "DECAY")]
    optimizer_weight_decay: Option<f64>,
    /// Longest gradient; longer ones are shortened to it; 0: no bound [default: 10].
    #[arg(long, visible_alias = "grad-clip-norm", value_name = "NORM")]
    optimizer_grad_clip_norm: Option<f64>,
    /// Steps over which the learning rate rises from zero [default: 0].
    #[arg(long, visible_alias = "warmup-steps", value_name = "STEPS")]
    scheduler_warmup_steps: Option<u64>,
    /// Standard deviation of the noise added to normalised observations [default: 0].
    #[arg(long, value_name = "STD")]
    observation_noise: Option<f32>,
    /// Decay of the moving average of the weights that becomes the skill; 0: the last weights do [default: 0].
    #[arg(long, value_name = "DECAY")]
    ema_decay: Option<f64>,
    /// Least standard deviation that a dimension is normalised by, in its own unit [default: 0.001].
    #[arg(long, value_name = "STD")]
    std_min: Option<f64>,
    /// Share of the episodes that is kept for validation [default: 0].
    #[arg(long, value_name = "SHARE")]
    validation_fraction: Option<f64>,
    /// Steps between two reports of progress [default: 100].
    #[arg(long, value_name = "STEPS")]
    log_every: Option<u64>,
    /// Steps between two checkpoints [default: 2000].
    #[arg(long, value_name = "STEPS")]
    checkpoint_every: Option<u64>,
    /// Threads that share each step; the result depends on their number [default: 2].
    #[arg(long)]
    threads: Option<usize>,
    /// Where the network is computed: cpu, or vulkan, wgpu, cuda in builds with that feature [default: cpu].
    #[arg(long, value_parser = parse_device)]
    device: Option<TrainDevice>,
}

#[derive(Debug, Clone, Default, Args)]
struct PolicyFlags {
    /// Kind of policy [default: mlp].
    #[arg(long, value_enum, hide_default_value = true)]
    policy: Option<PolicyKind>,
    /// Observations that the policy sees at once; an mlp sees 1 [default: 1].
    #[arg(long, value_name = "STEPS")]
    n_obs_steps: Option<usize>,
    /// Actions predicted at once [default: 1].
    #[arg(long, value_name = "STEPS")]
    chunk_size: Option<usize>,
    /// Actions of a chunk that are carried out before the policy looks again [default: 1].
    #[arg(long, value_name = "STEPS")]
    n_action_steps: Option<usize>,
    /// Width of each hidden layer [default: 512,512,512].
    #[arg(long, value_name = "WIDTH,...", value_delimiter = ',')]
    hidden_dims: Option<Vec<usize>>,
}

#[derive(Debug, Clone, Default, Args)]
struct SelectionFlags {
    /// Only these tasks.
    #[arg(long, value_name = "TASK,...", value_delimiter = ',')]
    tasks: Option<Vec<TaskName>>,
    /// Only episodes of these robots.
    #[arg(long, value_name = "ROBOT,...", value_delimiter = ',')]
    robots: Option<Vec<RobotId>>,
    /// Only episodes in which these acted: human, script, release.
    #[arg(long, value_name = "ACTOR,...", value_delimiter = ',', value_parser = parse_actor)]
    actors: Option<Vec<ActorKind>>,
    /// Only episodes with these outcomes: success, failure, unknown.
    #[arg(long, value_name = "OUTCOME,...", value_delimiter = ',', value_parser = parse_outcome)]
    outcomes: Option<Vec<Outcome>>,
    /// At most so many episodes of each task: the first that passed the other filters.
    #[arg(long, visible_alias = "episodes-per-task", value_name = "N")]
    episodes_per_task_max: Option<usize>,
}

fn parse_device(text: &str) -> Result<TrainDevice, String> {
    [TrainDevice::Cpu, TrainDevice::Vulkan, TrainDevice::Wgpu, TrainDevice::Cuda]
        .into_iter()
        .find(|device| device.as_str() == text)
        .ok_or_else(|| "use cpu, vulkan, wgpu or cuda".to_owned())
}

fn parse_actor(text: &str) -> Result<ActorKind, String> {
    match text {
        "human" => Ok(ActorKind::Human),
        "script" => Ok(ActorKind::Script),
        "release" => Ok(ActorKind::Release),
        _ => Err("use human, script or release".to_owned()),
    }
}

fn parse_outcome(text: &str) -> Result<Outcome, String> {
    [Outcome::Success, Outcome::Failure, Outcome::Unknown]
        .into_iter()
        .find(|outcome| outcome.to_string() == text)
        .ok_or_else(|| "use success, failure or unknown".to_owned())
}

/// Replaces `place` by a flag that was given.
fn set<T>(place: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *place = value;
    }
}

impl TrainOptions {
    /// The file with the flags on top, checked.
    pub(crate) fn resolve(&self) -> Result<(TrainConfig, Selection), Failure> {
        let (mut config, mut selection) = match &self.config {
            Some(path) => read(path)?,
            None => <(TrainConfig, Selection)>::default(),
        };
        self.training.apply(&mut config);
        self.policy.apply(&mut config.policy);
        self.selection.apply(&mut selection);
        config.check().or_input()?;
        Ok((config, selection))
    }
}

impl TrainingFlags {
    fn apply(&self, config: &mut TrainConfig) {
        set(&mut config.seed, self.seed);
        set(&mut config.steps, self.steps);
        set(&mut config.batch_size, self.batch_size);
        set(&mut config.optimizer_lr, self.optimizer_lr);
        set(&mut config.optimizer_weight_decay, self.optimizer_weight_decay);
        set(&mut config.optimizer_grad_clip_norm, self.optimizer_grad_clip_norm);
        set(&mut config.scheduler_warmup_steps, self.scheduler_warmup_steps);
        set(&mut config.observation_noise, self.observation_noise);
        set(&mut config.ema_decay, self.ema_decay);
        set(&mut config.std_min, self.std_min);
        set(&mut config.validation_fraction, self.validation_fraction);
        set(&mut config.log_every, self.log_every);
        set(&mut config.checkpoint_every, self.checkpoint_every);
        set(&mut config.threads, self.threads);
        set(&mut config.device, self.device);
    }
}

impl PolicyFlags {
    fn apply(&self, policy: &mut PolicyConfig) {
        if self.policy == Some(PolicyKind::Mlp) && policy.kind() != "mlp" {
            *policy = PolicyConfig::Mlp(MlpConfig::default());
        }
        match policy {
            PolicyConfig::Mlp(config) => {
                set(&mut config.n_obs_steps, self.n_obs_steps);
                set(&mut config.chunk_size, self.chunk_size);
                set(&mut config.n_action_steps, self.n_action_steps);
                set(&mut config.hidden_dims, self.hidden_dims.clone());
            }
        }
    }
}

impl SelectionFlags {
    fn apply(&self, selection: &mut Selection) {
        set(&mut selection.tasks, self.tasks.clone());
        set(&mut selection.robots, self.robots.clone());
        set(&mut selection.actors, self.actors.clone());
        set(&mut selection.outcomes, self.outcomes.clone());
        if self.episodes_per_task_max.is_some() {
            selection.episodes_per_task_max = self.episodes_per_task_max;
        }
    }
}

/// Why a file with training options cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{} does not hold training options; `zunft train start --help` lists them", path.display())]
struct OptionsError {
    path: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn read(path: &Path) -> Result<(TrainConfig, Selection), Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(ExitCode::Input, format!("could not read {}: {error}", path.display())))?;
    parse(&text)
        .map_err(|source| Failure::new(ExitCode::Input, OptionsError { path: path.to_owned(), source: source.into() }))
}

fn parse(text: &str) -> Result<(TrainConfig, Selection), toml::de::Error> {
    /// The selection beside everything else: serde's flatten would let unknown keys pass.
    #[derive(serde::Deserialize)]
    struct WithSelection {
        #[serde(default)]
        selection: Selection,
    }
    let WithSelection { selection } = toml::from_str(text)?;
    let mut table: toml::Table = toml::from_str(text)?;
    table.remove("selection");
    Ok((table.try_into()?, selection))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_gives_options_and_selection_and_refuses_unknown_keys() {
        let text = "steps = 7\n[policy]\ntype = \"mlp\"\nchunk_size = 3\n[selection]\ntasks = [\"push\"]\n";
        let (config, selection) = parse(text).unwrap();
        assert_eq!((config.steps, config.policy.chunk_size(), selection.tasks.len()), (7, 3, 1));
        for (unknown, culprit) in [("step = 7", "step"), ("[selection]\ntask = []", "task")] {
            let error = parse(unknown).unwrap_err().to_string();
            assert!(error.contains(culprit), "{error}");
        }
    }

    #[test]
    fn flags_override_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("options.toml");
        std::fs::write(&path, "steps = 7\nbatch_size = 8\n").unwrap();
        let mut options = TrainOptions { config: Some(path), ..TrainOptions::default() };
        options.training.steps = Some(9);
        options.policy.chunk_size = Some(2);
        let (config, _) = options.resolve().unwrap_or_else(|_| panic!("the options are sound"));
        assert_eq!((config.steps, config.batch_size, config.policy.chunk_size()), (9, 8, 2));
    }
}
