//! `zunft data`: LeRobot datasets and local snapshots.

mod export;
mod import;
mod noted;
mod plot;
mod replay;
mod show;
mod source;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use zunft_protocol::ids::{RobotId, SiteId, TenantId};

use crate::args::{HubArgs, JsonArgs};
use crate::exit::Failure;

pub(crate) use source::open;

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Bring a LeRobot v3 dataset into a local snapshot (--out) or into a hub (--hub).
    ///
    /// Each episode is read and checked whole before anything is made of it; a snapshot appears complete or not at all.
    /// The same dataset always gives the same ids, so that an import that was stopped can simply be run again.
    Import(ImportArgs),
    /// Play a LeRobot v3 dataset's episodes into agents, as if their robots recorded them now.
    ///
    /// Episodes are dealt out to the sockets in turn. It returns when every episode is on its agent's disk; the agents
    /// go on to upload them.
    Replay(ReplayArgs),
    /// List what snapshots and datasets hold, task by task.
    Ls(LsArgs),
    /// Show the body, the tasks and the robots of a snapshot or dataset, or one of its episodes.
    Show(ShowArgs),
    /// Write a snapshot as a LeRobot v3 dataset, which LeRobot and `datasets` open.
    ///
    /// State, action, reward and outcome go along; times become frame numbers over the rate. The dataset appears complete
    /// or not at all.
    Export(ExportArgs),
    /// List a hub's episodes that are known and still on their robots alone (upload mode `metadata-first`).
    Noted(NotedArgs),
    /// Ask robots for such episodes: they send them now, or when they connect.
    Request(RequestArgs),
    /// Read every byte of a snapshot or dataset and check it against what it claims to be.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The LeRobot dataset: the folder with `meta/info.json`.
    dataset: PathBuf,
    /// The snapshot to write; it must not exist yet. Without it the episodes go into the hub.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["url", "token_file", "data_dir"])]
    out: Option<PathBuf>,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    origin: OriginArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// What to take from a LeRobot dataset.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ReadingArgs {
    /// Leave out observations that cannot be carried (video, integers) instead of refusing the dataset.
    #[arg(long)]
    skip_unsupported: bool,
}

/// Whose episodes imported ones become.
#[derive(Debug, Clone, Args)]
pub(crate) struct OriginArgs {
    /// The robot that recorded them [default: the dataset folder's name].
    #[arg(long, value_name = "NAME")]
    robot: Option<RobotId>,
    /// Who owns the robot [default: the hub's tenant, or `default`].
    #[arg(long, value_name = "NAME")]
    tenant: Option<TenantId>,
    /// Where the robot is.
    #[arg(long, value_name = "NAME", default_value = "default")]
    site: SiteId,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The LeRobot dataset: the folder with `meta/info.json`.
    dataset: PathBuf,
    /// An agent's socket; give the flag once for each agent.
    #[arg(long = "socket", value_name = "PATH", required = true)]
    sockets: Vec<PathBuf>,
    /// Play at most so many episodes of each task: the first of the dataset.
    #[arg(long, value_name = "N")]
    episodes_per_task: Option<usize>,
    /// Play only episodes that succeeded. The bound a task then counts those.
    #[arg(long)]
    successful: bool,
    /// Play only these tasks.
    #[arg(long, value_name = "TASK,...", value_delimiter = ',')]
    tasks: Vec<zunft_protocol::ids::TaskName>,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Snapshots and LeRobot datasets.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// A snapshot or a LeRobot dataset.
    path: PathBuf,
    /// One of its episodes: the id, its beginning, or the number in the list.
    episode: Option<String>,
    /// Draw the episode's signals, one line of text for each value of a step.
    #[arg(long, requires = "episode", conflicts_with = "json")]
    plot: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// Formats that an export can have.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// LeRobotDataset v3.
    Lerobot,
}

/// What becomes of episodes whose outcome nobody said.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Unknown {
    /// Refuse: LeRobot knows success and failure only.
    Refuse,
    /// Leave them out.
    Skip,
    /// Write them as failures.
    Failure,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A snapshot or a LeRobot dataset.
    data: PathBuf,
    /// The folder to write; it must not exist yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The format to write.
    #[arg(long, value_enum, default_value_t = Format::Lerobot)]
    format: Format,
    /// Steps a second [default: the embodiment's rate, where it is a whole number].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    fps: Option<u32>,
    /// What becomes of episodes whose outcome nobody said.
    #[arg(long, value_enum, default_value_t = Unknown::Refuse)]
    unknown: Unknown,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NotedArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// Ids of episodes, as `zunft data noted` lists them.
    #[arg(required = true)]
    episodes: Vec<zunft_protocol::ids::EpisodeId>,
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A snapshot or a LeRobot dataset.
    path: PathBuf,
    #[command(flatten)]
    reading: ReadingArgs,
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn run(command: DataCommand) -> Result<(), Failure> {
    match command {
        DataCommand::Import(args) => import::run(&args),
        DataCommand::Replay(args) => replay::run(&args),
        DataCommand::Ls(args) => show::ls(&args),
        DataCommand::Show(args) => show::show(&args),
        DataCommand::Export(args) => match args.format {
            Format::Lerobot => export::run(&args),
        },
        DataCommand::Noted(args) => noted::list(&args),
        DataCommand::Request(args) => noted::request(&args),
        DataCommand::Verify(args) => verify::run(&args),
    }
}
