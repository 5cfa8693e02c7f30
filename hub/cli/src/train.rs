//! `zunft train start`: a snapshot or LeRobot dataset becomes a skill package, without a hub.

mod on_hub;
mod options;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use zunft_protocol::ids::{ReleaseId, SkillVersion, SnapshotId, TaskName, TenantId};
use zunft_skills::data::Dataset;
use zunft_skills::package::{self, ReleaseInfo};
use zunft_skills::train::{self, TrainConfig, TrainEnd, Trained};
use zunft_skills::weights::WeightDtype;

use crate::args::JsonArgs;
use crate::data::{self, ReadingArgs};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::{Output, bytes, count};
use crate::{interrupt, progress};

use on_hub::OnHubArgs;
use options::TrainOptions;

#[derive(Debug, Subcommand)]
pub(crate) enum TrainCommand {
    /// Train a skill from a snapshot or a LeRobot v3 dataset, here and now; or let a hub do it (--on-hub).
    ///
    /// The result is a skill package: `zunft skill show` describes it, `zunft eval` lets it act in simulated cells. A run
    /// is a function of the data, the options and the seed. Stopped with Ctrl-C it writes a checkpoint and exits with
    /// 75; the same command goes on from there.
    Start(StartArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The skill to train: `SKILL`, or `SKILL@VERSION` [default version: 1].
    #[arg(value_parser = parse_release)]
    skill: ReleaseId,
    /// A snapshot (from `zunft data import`) or a LeRobot v3 dataset.
    #[arg(long, value_name = "PATH", required_unless_present = "on_hub")]
    data: Option<PathBuf>,
    /// The package to write; it must not exist yet.
    #[arg(long, value_name = "DIR", required_unless_present = "on_hub")]
    out: Option<PathBuf>,
    /// Where checkpoints are kept until the package is written [default: OUT.run].
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Type of the released weights.
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = parse_dtype)]
    dtype: WeightDtype,
    /// Who will own the release.
    #[arg(long, value_name = "NAME", default_value = "default")]
    tenant: TenantId,
    /// The package's licence.
    #[arg(long, value_name = "TEXT", default_value = "proprietary")]
    licence: String,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    options: TrainOptions,
    #[command(flatten)]
    on_hub: OnHubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

fn parse_release(text: &str) -> Result<ReleaseId, String> {
    if text.contains('@') {
        return text.parse().map_err(|error: zunft_protocol::ids::IdError| error.to_string());
    }
    let skill = text.parse().map_err(|error: zunft_protocol::ids::IdError| error.to_string())?;
    Ok(ReleaseId { skill, version: SkillVersion(1) })
}

fn parse_dtype(text: &str) -> Result<WeightDtype, String> {
    match text {
        "bf16" => Ok(WeightDtype::Bf16),
        "f32" => Ok(WeightDtype::F32),
        other => Err(format!("{other:?} is no type of weights: use bf16 or f32")),
    }
}

/// What a run made, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Report {
    release: ReleaseId,
    package: String,
    snapshot: SnapshotId,
    episodes: u64,
    steps_trained: u64,
    tasks: Vec<TaskName>,
    metrics: std::collections::BTreeMap<String, f64>,
    train_seconds: f64,
    package_bytes: u64,
}

pub(crate) fn run(command: TrainCommand) -> Result<(), Failure> {
    match command {
        TrainCommand::Start(args) => start(&args),
    }
}

fn start(args: &StartArgs) -> Result<(), Failure> {
    interrupt::listen();
    let (config, selection) = args.options.resolve()?;
    let output = Output::new(args.json.json);
    let (Some(data), Some(out)) = (&args.data, &args.out) else {
        return on_hub::start(&args.on_hub, &args.skill.skill, &config, &selection, output);
    };
    if out.exists() {
        let error =
            format!("{} exists; a release is never overwritten: choose another folder or version", out.display());
        return Err(Failure::new(ExitCode::Input, error));
    }
    let mut source = data::open(data, &args.reading)?;
    let dataset = Dataset::load(&mut source.snapshot, &selection).or_input()?;
    eprintln!(
        "training {} on {} of {} with {}",
        args.skill,
        count(dataset.episodes.len() as u64, "episode"),
        count(dataset.tasks.len() as u64, "task"),
        count(dataset.steps() as u64, "step"),
    );
    if !dataset.streams_left_out().is_empty() {
        eprintln!("streams beside the steps are left out: {}", dataset.streams_left_out().join(", "));
    }
    let checkpoints = args.checkpoints.clone().unwrap_or_else(|| beside(out));
    let trained = fit(&dataset, &config, &checkpoints)?;
    let info = ReleaseInfo {
        tenant: args.tenant.clone(),
        release: args.skill.clone(),
        dtype: args.dtype,
        lineage: trained.lineage.clone(),
        licence: args.licence.clone(),
    };
    let manifest = package::write(out, &trained.skill, &info).or_internal()?;
    if let Err(error) = std::fs::remove_dir_all(&checkpoints) {
        tracing::warn!(path = %checkpoints.display(), %error, "checkpoints remain; remove them");
    }
    let report = Report {
        release: args.skill.clone(),
        package: out.display().to_string(),
        snapshot: dataset.snapshot,
        episodes: dataset.episodes.len() as u64,
        steps_trained: config.steps,
        tasks: dataset.tasks.clone(),
        metrics: trained.lineage.metrics.clone(),
        train_seconds: trained.lineage.train_secs,
        package_bytes: manifest.bytes(),
    };
    output.show(&report, report_text)
}

fn fit(dataset: &Dataset, config: &TrainConfig, checkpoints: &Path) -> Result<Trained, Failure> {
    let bar = progress::bar(config.steps, "training");
    let end = train::train(dataset, config, Some(checkpoints), interrupt::flag(), |progress| {
        bar.set_position(progress.step);
        bar.set_message(format!("training, loss {:.4}", progress.loss));
    });
    bar.finish_and_clear();
    match end.or_input()? {
        TrainEnd::Finished(trained) => Ok(*trained),
        TrainEnd::Interrupted { step, .. } => {
            let text = format!(
                "stopped at step {step} of {}; the same command goes on from {}",
                config.steps,
                checkpoints.display()
            );
            Err(Failure::new(ExitCode::Checkpointed, text))
        }
    }
}

/// `DIR.run` for `DIR`.
fn beside(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".run");
    out.with_file_name(name)
}

fn report_text(report: &Report) -> String {
    let metrics: Vec<String> = report.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    format!(
        "{} in {} ({})\n{} steps in {:.0} s, {}\n\nLook at it:         zunft skill show {}\n",
        report.release,
        report.package,
        bytes(report.package_bytes),
        report.steps_trained,
        report.train_seconds,
        metrics.join(", "),
        report.package,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_without_a_version_is_the_first() {
        assert_eq!(parse_release("push").unwrap().to_string(), "push@1");
        assert_eq!(parse_release("push@7").unwrap().to_string(), "push@7");
        assert!(parse_release("Push").is_err());
    }

    #[test]
    fn checkpoints_lie_beside_the_package() {
        assert_eq!(beside(Path::new("a/push")), Path::new("a/push.run"));
    }
}
