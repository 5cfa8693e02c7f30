//! What a robot's control program links: record and act over the agent's local socket.
//!
//! Cameras, and features with a rate of their own, are streams beside the steps: [`Robot::sample`].
//!
//! Blocking, on one thread, without a runtime. It knows the socket's protocol (docs/local-socket.md) and nothing
//! of networks, hubs or neural networks.
//!
//! ```no_run
//! use zunft_client::{Begin, BeginActor, Embodiment, EpisodeEnd, Feature, Outcome, Robot, Step, monotonic_ns};
//!
//! let embodiment = Embodiment {
//!     name: "cell".into(),
//!     rate_hz: 20.0,
//!     features: vec![Feature::vector("observation.state", 2), Feature::vector("action", 1)],
//! };
//! let mut robot = Robot::connect("/run/zunft/agent.sock")?;
//! robot.begin(&Begin { task: "push".parse()?, embodiment, actor: BeginActor::Script })?;
//! let (observation, action) = ([0.1, 0.2], [0.3]);
//! robot.step(&Step {
//!     monotonic_ns: monotonic_ns(),
//!     reward: Some(0.0),
//!     intervention: false,
//!     values: &[(&observation).into(), (&action).into()],
//! })?;
//! let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated)?;
//! println!("episode {} has {} steps", ended.episode, ended.steps);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod clock;
mod connection;
mod error;
mod robot;
mod samples;
mod values;

pub use clock::monotonic_ns;
pub use error::{CallError, ConnectError, Refusal, StepError};
pub use robot::{Action, Robot, Step};
pub use samples::Data;
pub use values::Values;

pub use zunft_protocol::embodiment::{Dtype, Embodiment, Encoding, Feature};
pub use zunft_protocol::episode::{AbortReason, EpisodeEnd, Outcome, Truncation};
pub use zunft_protocol::ids::{Digest, EpisodeId, RecordingId, ReleaseId, SkillName, SkillVersion, TaskName};
pub use zunft_protocol::local::{Begin, BeginActor, Begun, Ended, Event, Progress};
