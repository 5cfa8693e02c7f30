//! Why a request is refused, with the code that programs see. The list is in docs/local-socket.md.

use zunft_protocol::local::{ErrorBody, FrameError};
use zunft_skills::runtime::ActError;

use crate::embodiment::BodyError;
use crate::spool::Refusal;

/// A refused request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("{frame} comes from the agent, not from a client")]
    Direction { frame: &'static str },
    #[error("the body of {frame} is not as docs/local-socket.md has it: {reason}")]
    Json { frame: &'static str, reason: String },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("no recording is open; send BEGIN first")]
    NotRecording,
    #[error("a recording is open; send END first")]
    AlreadyRecording,
    #[error("the step has {found} bytes of features; this embodiment needs {expected}")]
    WrongSize { found: usize, expected: usize },
    #[error("feature {feature} of this embodiment is no stream of its own; send it with each STEP")]
    NoStream { feature: u32 },
    #[error("the sample of {feature} has {found} bytes; {expected} are needed")]
    WrongSampleSize { feature: String, found: usize, expected: String },
    #[error("the sample of {feature} cannot be kept: {reason}")]
    BadImage { feature: String, reason: &'static str },
    #[error("value {index} of {feature} is not a number")]
    NotANumber { feature: String, index: usize },
    #[error("the time {found} ns is not after {before} ns, that of the one before")]
    TimeNotIncreasing { found: u64, before: u64 },
    #[error("the recording has no steps and is dropped")]
    NoSteps,
    #[error(transparent)]
    Spool(#[from] Refusal),
    #[error("no release of {skill} is active on this robot")]
    NoRelease { skill: String },
    #[error("{release} does not know task {task}; it knows {known}")]
    UnknownTask { release: String, task: String, known: String },
    #[error(transparent)]
    Act(#[from] ActError),
    #[error("the release's thread is gone; see the agent's log")]
    PolicyGone,
    #[error("too many control programs are connected; close one")]
    Busy,
}

impl RequestError {
    /// The code for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Frame(_) | Self::Direction { .. } => "bad-frame",
            Self::Json { .. } => "bad-request",
            Self::Body(BodyError::File { .. }) | Self::Spool(Refusal::Disk(_)) => "disk-error",
            Self::Body(_) => "bad-embodiment",
            Self::NotRecording | Self::Spool(Refusal::Gone) => "not-recording",
            Self::AlreadyRecording => "already-recording",
            Self::NoStream { .. } => "no-stream",
            Self::WrongSize { .. } | Self::WrongSampleSize { .. } => "wrong-size",
            Self::BadImage { .. } => "bad-image",
            Self::NotANumber { .. } => "not-a-number",
            Self::TimeNotIncreasing { .. } => "time-not-increasing",
            Self::NoSteps => "no-steps",
            Self::Spool(Refusal::SpoolFull(_) | Refusal::TooLong) => "spool-full",
            Self::Spool(Refusal::Stopping) => "stopping",
            Self::NoRelease { .. } => "no-release",
            Self::UnknownTask { .. } | Self::Act(ActError::UnknownTask { .. }) => "unknown-task",
            Self::Act(ActError::ObservationDim { .. } | ActError::ObservationNotFinite { .. }) => "wrong-observation",
            Self::Act(ActError::ActionNotFinite { .. }) | Self::PolicyGone => "act-failed",
            Self::Busy => "busy",
        }
    }

    /// Whether the connection is of no more use: what follows cannot be told apart.
    pub(crate) fn closes(&self) -> bool {
        self.code() == "bad-frame"
    }

    /// Whether an open recording was sealed by the spool itself.
    pub(crate) fn ends_recording(&self) -> bool {
        matches!(self, Self::Spool(_))
    }

    /// The ERROR frame's body.
    pub(crate) fn body(&self) -> Vec<u8> {
        let body = ErrorBody { code: self.code().to_owned(), message: crate::text::chain(self) };
        serde_json::to_vec(&body).expect("two strings are JSON")
    }
}
