//! `zunft`: one command line for people who run robots, hubs and training.
//!
//! Reads the command line, runs one command, and turns its result into an exit code. What commands do is in their
//! modules; what a fleet is, is in the libraries.

mod agent;
mod api;
mod args;
mod data;
mod demo;
mod eval;
mod exit;
mod fleet;
mod fsck;
mod hub;
mod interrupt;
mod logging;
mod output;
mod package_transfer;
mod progress;
mod robot;
mod rollout;
mod skill;
mod train;

use std::process;

use clap::Parser as _;

use args::{Cli, Command};

fn main() -> process::ExitCode {
    let cli = Cli::parse();
    let telemetry = match logging::begin(&cli.command) {
        Ok(telemetry) => telemetry,
        Err(failure) => return failure.report(),
    };
    let result = match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Hub(command) => hub::run(command),
        Command::Fsck(args) => fsck::run(&args),
        Command::Robot(command) => robot::run(command),
        Command::Fleet(command) => fleet::run(command),
        Command::Data(command) => data::run(command),
        Command::Train(command) => train::run(command),
        Command::Eval(args) => eval::run(&args),
        Command::Skill(command) => skill::run(command),
        Command::Agent(command) => agent::run(command),
    };
    telemetry.stop();
    match result {
        Ok(()) => process::ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
