//! How a command ends: its exit code, and the error that a person reads.
//!
//! Library errors say what went wrong and name the remedy; this module only decides the code and prints the chain.

use std::error::Error;
use std::fmt::Write as _;
use std::process;

/// Exit codes, as `--help` and docs/exit-codes.md list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// It ran, and the answer is no: a check failed, an episode was lost.
    Failed = 1,
    /// A config, a file or another input that cannot be used.
    Input = 64,
    /// The hub or an agent is not there, or refused.
    Unavailable = 69,
    /// The disk, or a fault of this program.
    Internal = 70,
    /// Stopped on request, and can go on from a checkpoint.
    Checkpointed = 75,
    /// Data that the command needs is not there.
    DataAbsent = 77,
    /// Stopped by Ctrl-C.
    Interrupted = 130,
}

/// The table under `zunft --help`.
pub(crate) const EXIT_CODES_HELP: &str = "\
Exit codes:
    0  done
    1  it ran, and the answer is no: a check failed, an episode was lost
    2  the command line is wrong
   64  a config, file or other input cannot be used
   69  the hub or an agent is not there, or refused
   70  the disk failed, or this program has a fault
   75  stopped on request; run it again to go on from the checkpoint
   77  data that the command needs is not there
  130  stopped by Ctrl-C";

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    code: ExitCode,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    pub(crate) fn new(code: ExitCode, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { code, error: error.into() }
    }

    /// The command was stopped by Ctrl-C, and left nothing behind.
    pub(crate) fn interrupted() -> Self {
        Self::new(ExitCode::Interrupted, "stopped by Ctrl-C")
    }

    /// Tells the person, and says what to exit with.
    pub(crate) fn report(&self) -> process::ExitCode {
        match self.code {
            ExitCode::Interrupted | ExitCode::Checkpointed => eprintln!("{}", self.error),
            ExitCode::Failed | ExitCode::Input | ExitCode::Unavailable | ExitCode::Internal | ExitCode::DataAbsent => {
                eprint!("{}", chain_text(self.error.as_ref()))
            }
        }
        process::ExitCode::from(self.code as u8)
    }
}

/// Gives a library's error its exit code.
pub(crate) trait OrFail<T> {
    /// The input is to blame.
    fn or_input(self) -> Result<T, Failure>;
    /// The hub or an agent is to blame.
    fn or_unavailable(self) -> Result<T, Failure>;
    /// The disk or this program is to blame.
    fn or_internal(self) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> OrFail<T> for Result<T, E> {
    fn or_input(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(ExitCode::Input, error))
    }

    fn or_unavailable(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(ExitCode::Unavailable, error))
    }

    fn or_internal(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(ExitCode::Internal, error))
    }
}

/// The error and its causes, one a line; a cause that only repeats the line before is left out.
pub(crate) fn chain_text(error: &(dyn Error + 'static)) -> String {
    let mut last = error.to_string();
    let mut text = format!("error: {last}\n");
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !last.contains(&line) {
            // Further lines of a multi-line message stay under their first.
            writeln!(text, "because: {}", line.trim_end().replace('\n', "\n         "))
                .expect("writing to a String cannot fail");
            last = line;
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no skill in {place}")]
    struct Outer {
        place: &'static str,
        #[source]
        source: Middle,
    }

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Middle(#[from] std::io::Error);

    #[test]
    fn chain_names_each_cause_once() {
        let source = Middle(std::io::Error::other("disk is gone; replace it"));
        let text = chain_text(&Outer { place: "here", source });
        assert_eq!(text, "error: no skill in here\nbecause: disk is gone; replace it\n");
    }

    #[test]
    fn every_exit_code_is_in_the_help_and_in_the_docs() {
        let page = include_str!("../../../docs/exit-codes.md");
        for code in [0, 1, 2, 64, 69, 70, 75, 77, 130] {
            assert!(EXIT_CODES_HELP.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}");
            assert!(page.contains(&format!("| {code} |")), "{code}");
        }
    }
}
