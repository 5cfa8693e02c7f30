//! What can go wrong between a control program and its agent. It knows nothing of how frames travel.

use std::io;
use std::path::PathBuf;

use zunft_protocol::embodiment::{Dtype, EmbodimentError};
use zunft_protocol::limits::LOCAL_FRAME_BYTES_MAX;
use zunft_protocol::local::{Ended, FrameError, VERSION};

/// Why there is no connection to the agent.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error(
        "no agent listens at {path}; start it with `zunft-agent run --config agent.toml`, or give the `socket` of its configuration"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The socket's permissions do not admit this program.
    #[error("not allowed to open {path}; run this program as a user that may write to the agent's socket")]
    Denied {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Connecting or greeting failed.
    #[error("could not greet the agent at {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Something else listens there.
    #[error("what listens at {path} is not a Zunft agent; give the `socket` of its configuration")]
    NotAnAgent {
        /// The socket.
        path: PathBuf,
    },
    /// The agent does not speak this client's version.
    #[error(
        "the agent at {path} refuses version {VERSION} of the local protocol; upgrade the older one, agent or program"
    )]
    VersionRefused {
        /// The socket.
        path: PathBuf,
    },
}

/// A step or sample that the agent did not keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {step} was refused: {message} ({code})", .stream.as_deref().unwrap_or("step"))]
pub struct Refusal {
    /// Which one, counting the recording's steps, or the stream's samples, from 0 as they were sent.
    ///
    /// Samples are counted modulo 2^22.
    pub step: u64,
    /// The stream, for a sample of one.
    pub stream: Option<String>,
    /// For programs; see docs/local-socket.md.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Why a step or sample was not sent.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// No recording is open.
    #[error("no recording is open; begin one before its first step")]
    NotRecording,
    /// Too few or too many features.
    #[error("the step has {found} features; the embodiment has {expected}: give one array each, in its order")]
    FeatureCount {
        /// Arrays given.
        found: usize,
        /// Features of the embodiment.
        expected: usize,
    },
    /// An array of the wrong type or length.
    #[error("feature {feature:?} takes {expected} values of {dtype:?}; the step gives {found} of {found_dtype:?}")]
    Feature {
        /// Which feature.
        feature: String,
        /// Its values.
        expected: usize,
        /// Its type.
        dtype: Dtype,
        /// Values given.
        found: usize,
        /// Type given.
        found_dtype: Dtype,
    },
    /// A sample for what is no stream of its own.
    #[error("feature {stream:?} is no stream of its own in this embodiment; it has {known}")]
    NoStream {
        /// The name given.
        stream: String,
        /// The streams that there are.
        known: String,
    },
    /// A sample of another kind than its stream.
    #[error("a sample of {stream:?} is to be {expected}")]
    Sample {
        /// The stream.
        stream: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// The connection failed.
    #[error("could not send it")]
    Connection(#[from] CallError),
}

/// Why a call has no answer, or one that refuses.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The agent said no.
    #[error("{call} was refused: {message} ({code})")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// For programs; see docs/local-socket.md.
        code: String,
        /// For people.
        message: String,
    },
    /// The recording lacks steps that were sent. It goes on, or ended as `ended` says.
    #[error("{count} steps or samples of the recording were refused")]
    StepsRefused {
        /// How many.
        count: u64,
        /// The first of them.
        #[source]
        first: Refusal,
        /// The episode, where this answers the end of the recording.
        ended: Option<Box<Ended>>,
    },
    /// The embodiment contradicts itself.
    #[error("the recording's embodiment cannot be used")]
    Embodiment(#[from] EmbodimentError),
    /// More bytes than a frame may carry.
    #[error("{call} has {bytes} bytes; at most {LOCAL_FRAME_BYTES_MAX} are allowed")]
    TooLarge {
        /// What was asked.
        call: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// No answer in time. After BEGIN or END the connection is of no more use: connect again.
    #[error("the agent did not answer {call} in time")]
    TimedOut {
        /// What was asked.
        call: &'static str,
    },
    /// The agent closed the connection.
    #[error("the agent closed the connection; its log says why, and an open recording is kept as truncated")]
    Closed,
    /// An earlier failure left the connection useless.
    #[error("the connection failed before; connect again")]
    Failed,
    /// The socket failed.
    #[error("the agent's socket failed")]
    Io(#[from] io::Error),
    /// The agent sent a frame that cannot be read.
    #[error("the agent sent a frame that cannot be read")]
    Frame(#[from] FrameError),
    /// The agent sent JSON that cannot be read.
    #[error("the agent's {frame} cannot be read")]
    Json {
        /// Which frame.
        frame: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The agent answered something else.
    #[error("the agent answered {call} with something else: {found}")]
    Unexpected {
        /// What was asked.
        call: &'static str,
        /// What came.
        found: String,
    },
}
