//! `zunft train start --on-hub`: the hub trains on its own episodes; this asks, watches and reports.

use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use zunft_protocol::ids::{RobotId, SkillName, SnapshotId};
use zunft_skills::data::Selection;
use zunft_skills::train::TrainConfig;

use crate::api::{HubApi, RunView};
use crate::args::HubArgs;
use crate::exit::{ExitCode, Failure};
use crate::output::Output;
use crate::{interrupt, progress};

/// Pause between two looks at the run.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// How the hub trains and what becomes of the result.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Training on a hub")]
pub(crate) struct OnHubArgs {
    /// Let the hub train on its episodes, instead of this command on --data.
    #[arg(long, conflicts_with_all = ["data", "out", "checkpoints", "dtype", "tenant", "licence"])]
    pub(super) on_hub: bool,
    /// Train on this snapshot of the hub instead of everything that it has now.
    #[arg(long, value_name = "ID", requires = "on_hub")]
    snapshot: Option<SnapshotId>,
    /// Publish the result as the skill's next release.
    #[arg(long, requires = "on_hub")]
    publish: bool,
    /// Publish it and assign it to these robots, or to `all`.
    #[arg(long, value_name = "ROBOT,...", value_delimiter = ',', requires = "on_hub")]
    assign: Vec<RobotId>,
    /// Return at once; `zunft train start` waits otherwise. Ctrl-C while waiting leaves the run to the hub.
    #[arg(long, requires = "on_hub")]
    detach: bool,
    #[command(flatten)]
    hub: HubArgs,
}

pub(super) fn start(
    args: &OnHubArgs,
    skill: &SkillName,
    config: &TrainConfig,
    selection: &Selection,
    output: Output,
) -> Result<(), Failure> {
    let api = args.hub.connect()?;
    let assign = match args.assign.as_slice() {
        [] => json!(null),
        [all] if all.as_str() == "all" => json!("all"),
        robots => json!(robots),
    };
    let mut request = json!({
        "skill": skill,
        "selection": selection,
        "config": config,
        "publish": args.publish || !args.assign.is_empty(),
        "assign": assign,
    });
    match &args.snapshot {
        Some(snapshot) => request["snapshot"] = json!(snapshot),
        None => request["query"] = json!({}),
    }
    let mut run: RunView = api.post("/v1/runs", &request)?;
    if !args.detach {
        run = wait(&api, run)?;
    }
    output.show(&run, run_text)
}

fn wait(api: &HubApi, mut run: RunView) -> Result<RunView, Failure> {
    let bar = progress::bar(run.progress.steps.max(1), "training on the hub");
    while !run.ended() {
        if interrupt::asked() {
            let text = format!("run {} goes on at the hub; see it there under /v1/runs/{}", run.id, run.id);
            return Err(Failure::new(ExitCode::Interrupted, text));
        }
        thread::sleep(LOOK_INTERVAL);
        run = api.get(&format!("/v1/runs/{}", run.id))?;
        bar.set_length(run.progress.steps.max(1));
        bar.set_position(run.progress.step);
        if let Some(loss) = run.progress.loss {
            bar.set_message(format!("training, loss {loss:.4}"));
        }
    }
    bar.finish_and_clear();
    if run.state == "succeeded" {
        return Ok(run);
    }
    let why = run.error.map(|error| format!(": {error}")).unwrap_or_default();
    Err(Failure::new(ExitCode::Failed, format!("run {} {}{why}", run.id, run.state)))
}

fn run_text(run: &RunView) -> String {
    let mut text = format!("run {} {}\n", run.id, run.state);
    if let Some(release) = &run.release {
        text.push_str(&format!("{release}\n\nSee where it runs: zunft fleet ls\n"));
    }
    text
}
