//! `zunft agent run`: the same daemon as `zunft-agent run`, for machines that have only this program.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use zunft_agent::agent;
use zunft_agent::config::Config;

use crate::args::LeashArgs;
use crate::exit::{Failure, OrFail as _};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent of one robot until SIGTERM or SIGINT; the same as `zunft-agent run`.
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The agent's configuration; docs/agent.toml shows every key.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Print the configuration in force and exit.
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    leash: LeashArgs,
}

pub(crate) fn run(command: AgentCommand) -> Result<(), Failure> {
    let AgentCommand::Run(args) = command;
    let config = Config::load(&args.config).or_input()?;
    if args.print_config {
        return output::print(&config.to_toml());
    }
    args.leash.watch();
    agent::run_until_signal(&config).or_input()
}
