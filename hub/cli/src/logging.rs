//! Logs go to standard error, by `RUST_LOG`; daemons say more by default than commands do, and may export spans.

use zunft_agent::config::Config;
use zunft_agent::telemetry::Telemetry;

use crate::agent::AgentCommand;
use crate::args::Command;
use crate::exit::{Failure, OrFail as _};
use crate::hub::HubCommand;

/// Begins to log; what comes back ends it.
pub(crate) fn begin(command: &Command) -> Result<Telemetry, Failure> {
    // A configuration that cannot be read is the command's to complain about.
    let (service, endpoint) = match command {
        Command::Agent(AgentCommand::Run(args)) => {
            ("zunft-agent", Config::load(&args.config).ok().and_then(|config| config.telemetry.otlp_endpoint))
        }
        Command::Hub(HubCommand::Serve(args)) => {
            ("zunft-hub", args.config.load().ok().map(|config| config.telemetry.otlp_endpoint))
        }
        Command::Hub(HubCommand::Init(_))
        | Command::Demo(_)
        | Command::Fsck(_)
        | Command::Robot(_)
        | Command::Fleet(_)
        | Command::Data(_)
        | Command::Train(_)
        | Command::Eval(_)
        | Command::Skill(_) => ("zunft", None),
    };
    let level = if command.is_daemon() { "info" } else { "warn" };
    Telemetry::begin(service, level, endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())).or_input()
}
