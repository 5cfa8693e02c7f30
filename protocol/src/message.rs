//! Everything that robot and hub say to each other after the hello.
//!
//! | stream | opened by | first | then |
//! |---|---|---|---|
//! | control (one, bidirectional) | robot | hello, answer | robot: `Report`, `Ping`, `Evicted`; hub: `UploadPolicy` first, `Root`, `Assign`, `Pong`, `EvictionsStored`, `Wanted` |
//! | upload (one an episode, bidirectional) | robot | `Offer` | hub: `Want`, `Later`, `Reject` or `Durable`; robot: `Chunk`s and `ChunkRest`s; hub: `Durable`, `Later` or `Reject` |
//! | description (one an episode, bidirectional) | robot | `Describe` | hub: `Noted`, `Later`, `Reject` or, if it holds all of it, `Durable` |
//! | fetch (one a blob, bidirectional) | robot | `Fetch` | hub: `Found` and the blob's bytes from the offset on, or `Missing` |
//!
//! The streams but control tell themselves apart by their first message. Manifests and chunks travel as
//! they are; only small bodies are encoded, in [`codec`].

pub mod codec;
mod eviction;
mod receipt;

use crate::ids::{BootId, ChunkId, Digest, EmbodimentId, EpisodeId, ReleaseId};
use crate::upload_policy::PushedPolicy;

pub use codec::{DecodeError, HEADER_BYTES, Header, MessageType, chunk_head};
pub use eviction::{EvictionReason, Tombstone};
pub use receipt::{Beside, Receipt, ReceiptVerifier};

/// Priority of the control stream: reports and assignments overtake everything.
pub const PRIORITY_CONTROL: i32 = 100;
/// Priority of release downloads.
pub const PRIORITY_FETCH: i32 = 50;
/// Priority of failures and interventions.
pub const PRIORITY_URGENT: i32 = 20;
/// Priority of fresh episodes with a known outcome.
pub const PRIORITY_LABELLED: i32 = 10;
/// Priority of everything else.
pub const PRIORITY_BULK: i32 = 0;

/// Application error codes of `CONNECTION_CLOSE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// The peer stops in good order.
    Stopping = 1,
    /// The peer broke the protocol.
    Protocol = 2,
    /// The certificate names no robot of this hub.
    UnknownRobot = 3,
    /// Another live connection has this identity.
    DuplicateIdentity = 4,
    /// No version in common.
    Version = 5,
    /// The hub has no room for another connection now.
    Overloaded = 6,
}

impl CloseCode {
    /// What the peer's code means, where this program knows it.
    pub fn from_code(code: u64) -> Option<Self> {
        [Self::Stopping, Self::Protocol, Self::UnknownRobot, Self::DuplicateIdentity, Self::Version, Self::Overloaded]
            .into_iter()
            .find(|&known| known as u64 == code)
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Robot, control: how it is.
    Report(Report),
    /// Hub, control: the signed assignment for this robot.
    Assign(SignedObject),
    /// Hub, control: the next signed root.
    Root(SignedObject),
    /// Robot, control: are you there? Any number, which comes back.
    Ping(u64),
    /// Hub, control: the number of a `Ping`.
    Pong(u64),
    /// Hub, control: what the operator allows. The first that a hub says on every connection, and again on every change:
    /// until then a robot offers nothing.
    UploadPolicy(PushedPolicy),
    /// Robot, upload: an episode's encoded manifest.
    Offer(Vec<u8>),
    /// Robot, description: an episode's encoded manifest; the rest of it is not on offer, unless it is asked for.
    Describe(Vec<u8>),
    /// Hub, description: it knows of the episode.
    Noted,
    /// Hub, control: episodes of which the robot shall send all; at most [`crate::limits::WANTED_PER_MESSAGE_MAX`].
    Wanted(Vec<EpisodeId>),
    /// Hub, upload: which chunks it lacks.
    Want(Want),
    /// Hub, upload: not now.
    Later(Later),
    /// Hub, upload: never in this form.
    Reject(Reject),
    /// Robot, upload: a chunk that was wanted.
    Chunk(ChunkBytes),
    /// Robot, upload: the part of a wanted chunk that the hub does not hold.
    ChunkRest(ChunkRest),
    /// Hub, upload: the episode survives a power cut of the hub.
    Durable(Receipt),
    /// Robot, fetch: a blob from an offset on.
    Fetch(Fetch),
    /// Hub, fetch: the blob follows.
    Found(Found),
    /// Hub, fetch: there is no such blob for this robot.
    Missing,
    /// Robot, control: what it gave up; at most [`crate::limits::EVICTIONS_PER_MESSAGE_MAX`]. One such message is on
    /// its way at a time.
    Evicted(Vec<Tombstone>),
    /// Hub, control: the robot may forget the tombstones of these ordinals.
    EvictionsStored(Vec<u64>),
}

/// How a robot is; sent at connect, on every change and as a sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Version of the agent.
    pub agent_version: String,
    /// This power-up.
    pub boot: BootId,
    /// The robot's body, once it is known.
    pub embodiment: Option<EmbodimentId>,
    /// Episodes that wait for upload.
    pub episodes_waiting: u64,
    /// Bytes on disk for them.
    pub spool_bytes: u64,
    /// Recordings begun since the agent was installed.
    pub recordings: u64,
    /// The last assignment accepted.
    pub assignment_sequence: u64,
    /// The revision of the hub's upload policy that the robot keeps to.
    pub upload_policy_revision: u64,
    /// The releases it has, and how they do.
    pub releases: Vec<ReleaseReport>,
}

/// One release on a robot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseReport {
    /// Which.
    pub release: ReleaseId,
    /// How far it is.
    pub state: ReleaseState,
    /// Why it failed, for people; at most 512 bytes.
    pub reason: String,
}

/// How far a release is on a robot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseState {
    /// On its way.
    Fetching,
    /// Verified, waiting for its trial.
    Staged,
    /// It answers.
    Active,
    /// The one before, kept to go back to.
    Previous,
    /// Refused or reverted.
    Failed,
}

/// A DSSE envelope as received and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedObject {
    /// The envelope's JSON, at most [`crate::limits::ENVELOPE_BYTES_MAX`].
    pub envelope: Vec<u8>,
}

/// Which chunks of an offered episode the hub lacks: bit `i % 8` of byte `i / 8` stands for chunk `i` of
/// [`crate::Manifest::chunks`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The bits; spare ones are 0.
    pub bitmap: Vec<u8>,
    /// Wanted chunks of which the hub holds the beginning, from an upload that broke off; at most
    /// [`crate::limits::RESUMES_MAX`].
    pub resume: Vec<Resume>,
}

/// From where on a wanted chunk is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Its number, as in the bitmap.
    pub chunk: u32,
    /// Bytes that the hub holds.
    pub from: u32,
}

impl Want {
    /// Wants the chunks for which `wanted` says so.
    pub fn new(wanted: impl Iterator<Item = bool>) -> Self {
        let mut bitmap = Vec::new();
        for (i, wanted) in wanted.enumerate() {
            if i % 8 == 0 {
                bitmap.push(0);
            }
            bitmap[i / 8] |= u8::from(wanted) << (i % 8);
        }
        Self { bitmap, resume: Vec::new() }
    }

    /// Where to begin chunk `index`: 0, or the bytes that the hub holds.
    pub fn begins_at(&self, index: usize) -> usize {
        self.resume.iter().find(|resume| resume.chunk as usize == index).map_or(0, |resume| resume.from as usize)
    }

    /// Whether chunk `index` is wanted.
    pub fn contains(&self, index: usize) -> bool {
        self.bitmap.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
    }

    /// Chunks wanted.
    pub fn count(&self) -> usize {
        self.bitmap.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Later {
    /// When to offer again.
    pub retry_after_ms: u32,
}

/// Never in this form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reject {
    /// Why.
    pub reason: RejectReason,
}

/// Why a hub rejects an episode; the cause stays in the hub's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// The manifest cannot be read or contradicts itself.
    #[error("the manifest is malformed")]
    Malformed,
    /// The manifest names another tenant, site or robot than the certificate.
    #[error("the manifest contradicts the certificate")]
    WrongIdentity,
    /// There is another episode for this recording.
    #[error("the recording has another episode already")]
    Conflict,
    /// A chunk that was not wanted, or whose bytes do not match its id or size.
    #[error("a chunk does not match the manifest")]
    WrongChunk,
    /// Over a bound of the hub.
    #[error("the episode is too large")]
    TooLarge,
}

/// One chunk's stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkBytes {
    /// What they should hash to.
    pub id: ChunkId,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A chunk's stored bytes from some byte on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRest {
    /// What the whole chunk should hash to.
    pub id: ChunkId,
    /// Bytes before these.
    pub from: u32,
    /// The bytes up to the chunk's end.
    pub bytes: Vec<u8>,
}

/// A blob from an offset on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// BLAKE3 of the whole blob.
    pub digest: Digest,
    /// Bytes that the robot has already.
    pub offset: u64,
}

/// The blob follows on the same stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Size of the whole blob.
    pub bytes_total: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_marks_chunks_by_bit() {
        let want = Want::new([true, false, false, false, false, false, false, false, false, true].into_iter());
        assert_eq!(want.bitmap, [0b0000_0001, 0b0000_0010]);
        assert!(want.contains(0) && !want.contains(1) && want.contains(9) && !want.contains(1000));
        assert_eq!(want.count(), 2);
        let want = Want { resume: vec![Resume { chunk: 9, from: 70 }], ..want };
        assert_eq!((want.begins_at(0), want.begins_at(9)), (0, 70));
    }
}
