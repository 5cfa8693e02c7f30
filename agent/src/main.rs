//! `zunft-agent`: reads the command line and the configuration, and runs the agent.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use zunft_agent::config::Config;
use zunft_agent::telemetry::Telemetry;
use zunft_agent::{agent, status};
use zunft_protocol::local;

/// The agent of one robot: records what it lives through and runs what the fleet has learned.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs until SIGTERM or SIGINT.
    Run {
        /// The configuration; docs/agent.toml shows every key.
        #[arg(long)]
        config: PathBuf,
        /// Prints the configuration in force and exits.
        #[arg(long)]
        print_config: bool,
    },
    /// Asks the running agent how it is.
    Status {
        /// The configuration of the running agent.
        #[arg(long)]
        config: PathBuf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match act(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last resort is stderr itself.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run { config, print_config } => {
            let config = Config::load(&config)?;
            if print_config {
                return print(config.to_toml().trim_end());
            }
            let telemetry = Telemetry::begin("zunft-agent", "info", config.telemetry.otlp_endpoint.as_deref())?;
            let ran = agent::run_until_signal(&config);
            telemetry.stop();
            Ok(ran?)
        }
        Command::Status { config, json } => {
            let status = ask(&Config::load(&config)?)?;
            print(&if json { serde_json::to_string_pretty(&status)? } else { status::describe(&status) })
        }
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("stdout")
}

/// Asks over the local socket, as any program may.
fn ask(config: &Config) -> anyhow::Result<serde_json::Value> {
    let socket = config.socket.display();
    let mut stream =
        UnixStream::connect(&config.socket).with_context(|| format!("no agent answers at {socket}; is it running?"))?;
    stream.write_all(&local::client_greeting())?;
    let mut greeting = [0; local::GREETING_BYTES];
    stream.read_exact(&mut greeting)?;
    if local::read_agent_greeting(greeting).is_none() {
        bail!("what listens at {socket} is no agent of this version");
    }
    let mut frame = Vec::new();
    local::write_frame(&mut frame, local::FrameType::Status, 1, &[]);
    stream.write_all(&frame)?;
    let mut header = [0; local::HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let header = local::Header::decode(header)?;
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body)?;
    if header.frame_type != local::FrameType::StatusIs {
        bail!("the agent refused: {}", String::from_utf8_lossy(&body));
    }
    Ok(serde_json::from_slice(&body)?)
}
