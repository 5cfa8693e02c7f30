//! `zunft-sim`: runs one simulated robot by hand against a running agent.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use zunft_client::SkillName;
use zunft_sim::{Pilot, Purpose, Range, SimRobot, Task};

/// Lets a simulated robot work and record through its agent.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The agent's socket: `socket` in its agent.toml.
    #[arg(long)]
    socket: PathBuf,
    /// What to do: push, pick-place or weld-seam.
    #[arg(long)]
    task: Task,
    /// Who decides what the robot does.
    #[arg(long, value_enum, default_value_t = PilotKind::Expert)]
    pilot: PilotKind,
    /// The skill that decides, with `--pilot policy`.
    #[arg(long, required_if_eq("pilot", "policy"))]
    skill: Option<SkillName>,
    /// How many episodes.
    #[arg(long, default_value_t = 1)]
    episodes: u32,
    /// Which starts: the same seed gives the same ones.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which robot this is, from 0: its cell covers that part of the task.
    #[arg(long, default_value_t = 0)]
    robot: u16,
    /// Among how many robots the task is divided.
    #[arg(long, default_value_t = 1)]
    robots: u16,
    /// Use held-out starts of the whole task, for evaluation, instead of the robot's own.
    #[arg(long)]
    held_out: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PilotKind {
    /// The scripted expert demonstrates, in a cell that bumps it a little.
    Expert,
    /// The active release of a skill.
    Policy,
}

#[expect(clippy::print_stdout, reason = "the program reports to a person")]
fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let sector = Range::sector(arguments.task, arguments.robot, arguments.robots)?;
    let robot = arguments.robot;
    let (pilot, own) = match (arguments.pilot, arguments.skill) {
        (PilotKind::Policy, Some(skill)) => (Pilot::Skill(skill), Purpose::Practice { robot }),
        (PilotKind::Policy, None) => anyhow::bail!("a policy needs a skill: give --skill NAME"),
        (PilotKind::Expert, _) => (Pilot::Demonstration, Purpose::Demonstration { robot }),
    };
    let (range, purpose) =
        if arguments.held_out { (Range::whole(arguments.task), Purpose::HeldOut) } else { (sector, own) };
    let mut robot = SimRobot::connect(&arguments.socket)?;
    let mut successes = 0_u32;
    for index in 0..arguments.episodes {
        let start = range.start(arguments.seed, purpose, index);
        let report = robot.run_episode(&start, &pilot).with_context(|| format!("episode {index} was given up"))?;
        successes += u32::from(report.end.success());
        let actor = report.release.map_or_else(|| "expert".to_owned(), |release| release.to_string());
        println!("{} {}: {} after {} steps by {actor}", arguments.task, report.episode, report.end, report.steps);
    }
    println!("{successes} of {} succeeded", arguments.episodes);
    Ok(())
}
