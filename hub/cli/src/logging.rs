//! Logs go to standard error, by `RUST_LOG`; daemons say more by default than commands do.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use crate::args::Command;

/// Begins to log.
pub(crate) fn begin(command: &Command) {
    let default = if command.is_daemon() { "info" } else { "warn" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
