//! `zunft demo`: the whole loop on one machine, every part real.
//!
//! A hub and one agent for each robot run as processes of their own and talk over QUIC on loopback. The robots'
//! control programs are threads here; they reach their agents through sockets and the hub not at all. This module
//! tells the story in its order; what a stage does is in the modules below.

mod figures;
mod fleet;
mod process;
mod robots;
mod round;
mod story;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use tempfile::TempDir;
use zunft_sim::start::ROBOTS_MAX;

use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::{interrupt, output};

use figures::Figures;
use fleet::Fleet;
use round::Round;
use story::Story;

/// The skill that the fleet learns: one policy for all tasks.
const SKILL: &str = "handling";

/// Most robots of a demo: each is a process, and they share one machine.
const DEMO_ROBOTS_MAX: i64 = 32;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// How many robots, each with its own agent process.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=DEMO_ROBOTS_MAX))]
    robots: u16,
    /// Seed of the starts and of training: the same seed gives the same success figures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Held-out starts of each task in an evaluation.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    starts: u32,
    /// Episodes that an expert demonstrates on each robot for each task.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    demonstrations: u32,
    /// Training steps of the fleet's skill; a single robot's gets its share of them, as of the data.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(3..=1_000_000))]
    train_steps: u64,
    /// Also write the figures as JSON into a file; `-` is standard output, instead of the table.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep everything that hub and agents stored, in this new folder.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    const { assert!(DEMO_ROBOTS_MAX <= ROBOTS_MAX as i64) };
    interrupt::listen();
    let folder = Folder::new(args.keep.as_deref())?;
    let mut story = Story::begin(args.robots, args.seed);
    let told = tell(args, folder.path(), &mut story);
    let figures = told.map_err(|failure| if interrupt::asked() { Failure::interrupted() } else { failure })?;
    write_json(args, &figures)?;
    if args.json.as_deref() != Some(Path::new("-")) {
        output::print(&figures.text(args.keep.as_deref()))?;
    }
    figures.verdict()
}

fn tell(args: &DemoArgs, folder: &Path, story: &mut Story) -> Result<Figures, Failure> {
    let fleet = story.stage("starting a hub and agents", |_| Fleet::start(folder, args.robots))?;
    story.tell(&format!("a hub and {} agents are up, each with a certificate of its own", args.robots));
    let mut robots = robots::connect(&fleet)?;
    let mut figures = Figures::new(args.seed, args.robots, args.starts);
    let mut round = Round::new(&fleet, &mut robots, &mut figures, story, args);

    round.demonstrate()?;
    round.upload()?;
    round.train_fleet_and_each_alone()?;
    round.evaluate_alone_and_experts()?;
    round.act_with_first_release()?;
    round.upload()?;
    round.release_again_while_robots_work()?;
    round.act_with_second_release()?;
    round.upload()?;
    round.take_stock()?;
    drop(robots);
    story.stage("stopping hub and agents", |_| fleet.stop())?;
    figures.sum_up(story.seconds());
    Ok(figures)
}

fn write_json(args: &DemoArgs, figures: &Figures) -> Result<(), Failure> {
    let Some(path) = &args.json else {
        return Ok(());
    };
    let text = output::to_json(figures);
    if path == Path::new("-") {
        return output::print(&text);
    }
    fs::write(path, text)
        .map_err(|error| Failure::new(ExitCode::Internal, format!("could not write {}: {error}", path.display())))
}

/// Where hub and agents keep their files: gone afterwards, unless asked for.
enum Folder {
    Temporary(TempDir),
    Kept(PathBuf),
}

impl Folder {
    fn new(keep: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = keep else {
            return Ok(Self::Temporary(tempfile::Builder::new().prefix("zunft-demo-").tempdir().or_internal()?));
        };
        fs::create_dir(path).map_err(|error| {
            let text = format!("could not make the folder {}: {error}; give a new one with --keep", path.display());
            Failure::new(ExitCode::Input, text)
        })?;
        // Children have the same working directory, but sockets want a path that is whole.
        Ok(Self::Kept(path.canonicalize().or_internal()?))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }
}
