//! The command line: commands, and flags that several of them share.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};
use rustix::process::{Signal, getpid, kill_process};

use crate::agent::AgentCommand;
use crate::api::HubApi;
use crate::data::DataCommand;
use crate::demo::DemoArgs;
use crate::eval::EvalArgs;
use crate::exit::{EXIT_CODES_HELP, Failure};
use crate::fleet::FleetCommand;
use crate::fsck::FsckArgs;
use crate::hub::HubCommand;
use crate::robot::RobotCommand;
use crate::skill::SkillCommand;
use crate::train::TrainCommand;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// One apprentice for a fleet of robots: what one of them lives through, every one can do tomorrow.
///
/// Robots record episodes, their agents carry them to a hub, the hub trains skills and hands them back as signed
/// releases. To see all of it in a few minutes: `zunft demo`.
#[derive(Debug, Parser)]
#[command(name = "zunft", version, styles = STYLES, after_help = EXIT_CODES_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "a command line is parsed once")]
pub(crate) enum Command {
    /// Watch the whole loop in a few minutes: a hub, robots in simulated cells, two releases of a skill.
    ///
    /// A hub and one agent for each robot run as processes of their own, with real certificates over real QUIC on
    /// loopback, in a temporary folder. Experts demonstrate; each robot sees only its own part of the range. The hub
    /// trains on all of it, signs and releases; robots act on starts that nobody demonstrated; what they do comes back
    /// and trains a second release, which takes over while they work. A process that you kill comes back.
    Demo(DemoArgs),
    /// Set up and run a hub: it takes in episodes, trains skills and hands out releases.
    #[command(subcommand)]
    Hub(HubCommand),
    /// Check a stopped hub's experience: every hash, and packs against metadata. Exits with 1 where it is not sound.
    Fsck(FsckArgs),
    /// Add robots to a hub, and say what they may upload.
    #[command(subcommand)]
    Robot(RobotCommand),
    /// Look at a hub's robots.
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Import recorded data, look at it, or replay it through agents.
    #[command(subcommand)]
    Data(DataCommand),
    /// Train a skill, here or on a hub.
    #[command(subcommand)]
    Train(TrainCommand),
    /// Let a skill act in simulated cells, on starts that nobody demonstrated.
    Eval(EvalArgs),
    /// Look at skill packages, check them, publish them and assign them to robots.
    #[command(subcommand)]
    Skill(SkillCommand),
    /// Run a robot's agent.
    #[command(subcommand)]
    Agent(AgentCommand),
}

impl Command {
    /// Whether it runs until it is stopped.
    pub(crate) fn is_daemon(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::Hub(HubCommand::Serve(_)))
    }
}

/// For commands that report.
#[derive(Debug, Clone, Args)]
pub(crate) struct JsonArgs {
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// For commands that ask a hub.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which hub")]
pub(crate) struct HubArgs {
    /// The hub's HTTP address.
    #[arg(long = "hub", value_name = "URL", env = "ZUNFT_HUB_URL", default_value = "http://127.0.0.1:8480")]
    url: String,
    /// File with the hub's token. Without it ZUNFT_TOKEN, and then pki/admin.token below --data-dir.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The hub's data directory, where it is on this machine.
    #[arg(long, value_name = "DIR", default_value = "hub-data")]
    data_dir: PathBuf,
}

/// Where commands find a token without a file.
const TOKEN_VARIABLE: &str = "ZUNFT_TOKEN";

impl HubArgs {
    /// The hub, with its token.
    pub(crate) fn connect(&self) -> Result<HubApi, Failure> {
        if let Some(path) = &self.token_file {
            return Ok(HubApi::with_token_file(&self.url, path)?);
        }
        if let Ok(token) = std::env::var(TOKEN_VARIABLE) {
            return Ok(HubApi::new(&self.url, &token));
        }
        Ok(HubApi::with_token_file(&self.url, &self.data_dir.join("pki").join("admin.token"))?)
    }
}

/// For daemons that another process starts: ends this one when standard input closes, that is when the other ends.
#[derive(Debug, Clone, Args)]
pub(crate) struct LeashArgs {
    /// Stop when standard input closes.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

impl LeashArgs {
    /// Begins to watch, where that was asked.
    pub(crate) fn watch(&self) {
        if !self.until_stdin_closes {
            return;
        }
        std::thread::spawn(|| {
            // Whatever ends the reading, nobody holds the other end any more.
            std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).ok();
            tracing::info!("standard input closed");
            // As if by hand: the daemon stops in its own order.
            kill_process(getpid(), Signal::TERM).ok();
        });
    }
}
