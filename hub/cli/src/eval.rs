//! `zunft eval`: a skill package acts in simulated cells, without agent and hub.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use zunft_protocol::ids::TaskName;
use zunft_sim::Task;
use zunft_sim::rollout::held_out_starts;
use zunft_skills::eval::Score;
use zunft_skills::runtime::SkillRuntime;

use crate::args::JsonArgs;
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::{Output, table};
use crate::{interrupt, progress, rollout};

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The skill package: a folder with `manifest.json`.
    package: PathBuf,
    /// Which task; all that the skill knows and a cell can pose, when left out.
    #[arg(long = "task", value_name = "TASK", value_parser = clap::value_parser!(Task))]
    tasks: Vec<Task>,
    /// Held-out starts of each task, over its whole range.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    starts: u32,
    /// Which held-out starts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    json: JsonArgs,
}

/// How a skill did, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Report {
    release: String,
    seed: u64,
    tasks: Vec<TaskScore>,
}

/// How it did in one task.
#[derive(Debug, Serialize)]
struct TaskScore {
    task: &'static str,
    starts: u64,
    successes: u64,
    success: f64,
    /// Wilson's interval at 95 %.
    interval: (f64, f64),
    /// What the scripted expert reaches from the same starts.
    success_expert: f64,
}

pub(crate) fn run(args: &EvalArgs) -> Result<(), Failure> {
    interrupt::listen();
    if !args.package.exists() {
        let error = format!("there is no package at {}; make one with `zunft train start`", args.package.display());
        return Err(Failure::new(ExitCode::DataAbsent, error));
    }
    let skill = SkillRuntime::load(&args.package).or_input()?;
    rollout::fits_cell(&skill).or_input()?;
    let tasks = tasks(&skill, &args.tasks)?;
    let bar = progress::bar(u64::from(args.starts) * tasks.len() as u64, "evaluating");
    let mut report = Report { release: skill.release().to_string(), seed: args.seed, tasks: Vec::new() };
    for task in tasks {
        let (mut score, mut expert) = (Score::default(), Score::default());
        for start in held_out_starts(task, args.seed, args.starts) {
            interrupt::check()?;
            score.episodes += 1;
            score.successes += u64::from(rollout::skill_succeeds(&skill, &start).or_input()?);
            expert.episodes += 1;
            expert.successes += u64::from(rollout::expert_succeeds(&start));
            bar.inc(1);
        }
        report.tasks.push(TaskScore {
            task: task.name(),
            starts: score.episodes,
            successes: score.successes,
            success: score.rate(),
            interval: score.interval(),
            success_expert: expert.rate(),
        });
    }
    bar.finish_and_clear();
    Output::new(args.json.json).show(&report, report_text)
}

/// The tasks asked for; else those that both the skill and the cell know.
fn tasks(skill: &SkillRuntime, asked: &[Task]) -> Result<Vec<Task>, Failure> {
    let known = |task: &Task| skill.tasks().iter().any(|name: &TaskName| name.as_str() == task.name());
    let tasks: Vec<Task> =
        if asked.is_empty() { Task::ALL.into_iter().filter(known).collect() } else { asked.to_vec() };
    let names: Vec<&str> = skill.tasks().iter().map(TaskName::as_str).collect();
    match tasks.iter().find(|task| !known(task)) {
        Some(task) => {
            let error = format!("{} does not know task {task}; it knows {}", skill.release(), names.join(", "));
            Err(Failure::new(ExitCode::Input, error))
        }
        None if tasks.is_empty() => {
            let error = format!(
                "simulated cells pose push, pick-place and weld-seam; {} knows only {}",
                skill.release(),
                names.join(", ")
            );
            Err(Failure::new(ExitCode::Input, error))
        }
        None => Ok(tasks),
    }
}

fn report_text(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .tasks
        .iter()
        .map(|score| {
            vec![
                score.task.to_owned(),
                format!("{:.1} %", 100.0 * score.success),
                format!("{:.0} to {:.0} %", 100.0 * score.interval.0, 100.0 * score.interval.1),
                format!("{:.1} %", 100.0 * score.success_expert),
                score.starts.to_string(),
            ]
        })
        .collect();
    let titles = ["task", "success", "at 95 %", "expert", "starts"];
    format!("{} on held-out starts of seed {}\n\n{}", report.release, report.seed, table(&titles, 1, &rows))
}
