//! Ctrl-C: the first asks the command to stop at its next safe point, the second ends the process at once.
//!
//! SIGTERM and SIGHUP count as Ctrl-C.

use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::{ExitCode, Failure};

static ASKED: AtomicBool = AtomicBool::new(false);
static LISTENING: OnceLock<()> = OnceLock::new();

/// Begins to listen. Commands that run a daemon do their own listening instead.
pub(crate) fn listen() {
    LISTENING.get_or_init(|| {
        let listening = ctrlc::set_handler(|| {
            if ASKED.swap(true, Ordering::SeqCst) {
                process::exit(ExitCode::Interrupted as i32);
            }
        });
        if let Err(error) = listening {
            tracing::warn!(%error, "Ctrl-C will end this command at once");
        }
    });
}

/// Whether the command was asked to stop.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// For loops that look by themselves.
pub(crate) fn flag() -> &'static AtomicBool {
    &ASKED
}

/// Fails when the command was asked to stop.
pub(crate) fn check() -> Result<(), Failure> {
    if asked() { Err(Failure::interrupted()) } else { Ok(()) }
}
