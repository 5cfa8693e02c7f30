//! What travels between robots and hub, and what is stored: types, encodings and the sessions' decisions.
//!
//! No I/O, no runtime, no clock: everything here is a function of its arguments, and time is one of them.
//! It knows nothing of sockets, files, databases or neural networks.

pub mod cbor;
pub mod chunk;
pub mod dsse;
pub mod embodiment;
pub mod episode;
pub mod hello;
pub mod ids;
pub mod limits;
pub mod local;
pub mod message;
pub mod release;
pub mod session;
pub mod snapshot;
pub mod upload_policy;

pub use chunk::{Chunk, ChunkBuilder, Schema};
pub use embodiment::{Dtype, Embodiment, Feature};
pub use episode::{Actor, EpisodeEnd, Manifest, Outcome};
pub use ids::{
    BootId, ChunkId, Digest, EmbodimentId, EpisodeId, KeyId, RecordingId, ReleaseId, RobotId, SiteId, SkillName,
    SkillVersion, SnapshotId, TaskName, TenantId,
};
