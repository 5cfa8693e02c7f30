//! Messages to bytes and back: a fixed header, then a small validated body, or bulk bytes as they are.
//!
//! ```text
//! 0   type    u16 little-endian
//! 2   schema  u16: version of the body's layout
//! 4   flags   u32: 0
//! 8   len     u32: bytes of body that follow
//! 12  crc     u32: CRC-32 of the twelve bytes before and of the body; of a chunk's, without the chunk's bytes
//! ```
//! A chunk's bytes are hashed to its id, so they need no second sum.
//!
//! Archived types never leave this file.

use rkyv::{Archive, Deserialize, Serialize};

use super::{
    Beside, ChunkBytes, ChunkRest, EvictionReason, Fetch, Found, Later, Message, Receipt, Reject, RejectReason,
    ReleaseReport, ReleaseState, Report, Resume, SignedObject, Tombstone, Want,
};
use crate::episode::Outcome;
use crate::ids::{
    BootId, ChunkId, Digest, EmbodimentId, EpisodeId, IdError, KeyId, RecordingId, ReleaseId, SkillVersion,
};
use crate::limits::{
    ASSIGNED_RELEASES_MAX, CHUNK_BYTES_MAX, EVICTIONS_PER_MESSAGE_MAX, MANIFEST_BYTES_MAX, MESSAGE_BYTES_MAX,
    RECEIPT_PATH_MAX, RESUMES_MAX, WANTED_PER_MESSAGE_MAX,
};
use crate::upload_policy::{HubPolicy, PushedPolicy, UploadMode, Window};

/// Size of a message's header.
pub const HEADER_BYTES: usize = 16;

/// Layout of the bodies that this program writes and reads.
const SCHEMA: u16 = 1;

/// Longest reason of a failed release, in bytes: one line for people.
const REASON_BYTES_MAX: usize = 512;

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $bytes_max:expr;)*) => {
        /// What a message is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum MessageType { $($(#[$doc])* $name = $value,)* }

        impl MessageType {
            fn from_u16(value: u16) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }

            /// Most bytes of its body.
            pub const fn body_bytes_max(self) -> usize {
                match self { $(Self::$name => $bytes_max,)* }
            }
        }
    };
}

message_types! {
    /// How a robot is.
    Report = 1, MESSAGE_BYTES_MAX;
    /// A signed assignment.
    Assign = 2, MESSAGE_BYTES_MAX;
    /// A signed root.
    Root = 3, MESSAGE_BYTES_MAX;
    /// Are you there?
    Ping = 4, 8;
    /// Yes.
    Pong = 5, 8;
    /// What may be uploaded.
    UploadPolicy = 6, MESSAGE_BYTES_MAX;
    /// A manifest.
    Offer = 16, MANIFEST_BYTES_MAX;
    /// Chunks wanted.
    Want = 17, MESSAGE_BYTES_MAX;
    /// Not now.
    Later = 18, 16;
    /// Never.
    Reject = 19, 16;
    /// A chunk.
    Chunk = 20, 32 + CHUNK_BYTES_MAX;
    /// Safe.
    Durable = 21, 256 + 32 * RECEIPT_PATH_MAX;
    /// The end of a chunk.
    ChunkRest = 22, 36 + CHUNK_BYTES_MAX;
    /// A manifest, and no more.
    Describe = 23, MANIFEST_BYTES_MAX;
    /// Known.
    Noted = 24, 0;
    /// A blob, please.
    Fetch = 32, 64;
    /// Here it is.
    Found = 33, 64;
    /// There is none.
    Missing = 34, 0;
    /// Given up.
    Evicted = 48, MESSAGE_BYTES_MAX;
    /// May be forgotten.
    EvictionsStored = 49, MESSAGE_BYTES_MAX;
    /// Send all of these.
    Wanted = 50, MESSAGE_BYTES_MAX;
}

/// A message's header, bounds checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub message_type: MessageType,
    /// Bytes of body that follow.
    pub body_bytes: usize,
    prefix: [u8; 12],
    crc: u32,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A type that this version does not know.
    #[error("unknown message type {message_type}")]
    Type {
        /// The type found.
        message_type: u16,
    },
    /// A body layout that this version does not know.
    #[error("message {message_type:?} has schema {schema}; this program knows {SCHEMA}")]
    Schema {
        /// Which message.
        message_type: MessageType,
        /// The schema found.
        schema: u16,
    },
    /// Flags that this version does not know.
    #[error("message {message_type:?} has unknown flags")]
    Flags {
        /// Which message.
        message_type: MessageType,
    },
    /// Over the bound.
    #[error("message {message_type:?} has a body of {bytes} bytes; at most {} are allowed", .message_type.body_bytes_max())]
    TooLarge {
        /// Which message.
        message_type: MessageType,
        /// Its size.
        bytes: usize,
    },
    /// Damaged on the way.
    #[error("checksum of message {message_type:?} does not match")]
    Checksum {
        /// Which message.
        message_type: MessageType,
    },
    /// The body is not what the type says.
    #[error("body of message {message_type:?} is malformed")]
    Body {
        /// Which message.
        message_type: MessageType,
    },
    /// A name inside is not one.
    #[error("message {message_type:?} holds a bad name")]
    Name {
        /// Which message.
        message_type: MessageType,
        /// Why.
        #[source]
        source: IdError,
    },
}

impl Header {
    /// Reads a header and checks its bounds, before memory is taken for the body.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let message_type = MessageType::from_u16(half(0)).ok_or(DecodeError::Type { message_type: half(0) })?;
        let body_bytes = word(8) as usize;
        if half(2) != SCHEMA {
            return Err(DecodeError::Schema { message_type, schema: half(2) });
        }
        if word(4) != 0 {
            return Err(DecodeError::Flags { message_type });
        }
        if body_bytes > message_type.body_bytes_max() {
            return Err(DecodeError::TooLarge { message_type, bytes: body_bytes });
        }
        let mut prefix = [0; 12];
        prefix.copy_from_slice(&bytes[..12]);
        Ok(Self { message_type, body_bytes, prefix, crc: word(12) })
    }

    /// Reads the body that belongs to this header.
    pub fn decode_body(&self, body: Vec<u8>) -> Result<Message, DecodeError> {
        let message_type = self.message_type;
        if body.len() != self.body_bytes {
            return Err(DecodeError::Body { message_type });
        }
        if checksum(&self.prefix, summed(message_type, &body)) != self.crc {
            return Err(DecodeError::Checksum { message_type });
        }
        decode_body(message_type, body)
    }

    /// What the beginning of a chunk's body holds, where the rest never came. No checksum covers it: the chunk's hash
    /// must, once it is whole. `None` for other messages and before the first byte of the chunk.
    pub fn broken_off_chunk(&self, body: &[u8]) -> Option<ChunkRest> {
        let (id, from, bytes) = match self.message_type {
            MessageType::Chunk => {
                let (id, bytes) = body.split_first_chunk::<32>()?;
                (id, 0, bytes)
            }
            MessageType::ChunkRest => {
                let (id, rest) = body.split_first_chunk::<32>()?;
                let (from, bytes) = rest.split_first_chunk::<4>()?;
                (id, u32::from_le_bytes(*from), bytes)
            }
            MessageType::Report
            | MessageType::Assign
            | MessageType::Root
            | MessageType::Ping
            | MessageType::Pong
            | MessageType::UploadPolicy
            | MessageType::Describe
            | MessageType::Noted
            | MessageType::Wanted
            | MessageType::Offer
            | MessageType::Want
            | MessageType::Later
            | MessageType::Reject
            | MessageType::Durable
            | MessageType::Fetch
            | MessageType::Found
            | MessageType::Missing
            | MessageType::Evicted
            | MessageType::EvictionsStored => return None,
        };
        (!bytes.is_empty()).then(|| ChunkRest { id: ChunkId::from_bytes(*id), from, bytes: bytes.to_vec() })
    }
}

fn checksum(prefix: &[u8], summed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(prefix);
    hasher.update(summed);
    hasher.finalize()
}

/// The part of a body that the checksum covers.
fn summed(message_type: MessageType, body: &[u8]) -> &[u8] {
    let bytes = match message_type {
        MessageType::Chunk => 32,
        MessageType::ChunkRest => 36,
        MessageType::Report
        | MessageType::Assign
        | MessageType::Root
        | MessageType::Ping
        | MessageType::Pong
        | MessageType::UploadPolicy
        | MessageType::Describe
        | MessageType::Noted
        | MessageType::Wanted
        | MessageType::Offer
        | MessageType::Want
        | MessageType::Later
        | MessageType::Reject
        | MessageType::Durable
        | MessageType::Fetch
        | MessageType::Found
        | MessageType::Missing
        | MessageType::Evicted
        | MessageType::EvictionsStored => body.len(),
    };
    &body[..bytes.min(body.len())]
}

/// A header, for a body of so many bytes that begins with `summed`.
fn encode_header(message_type: MessageType, body_bytes: usize, summed: &[u8]) -> [u8; HEADER_BYTES] {
    assert!(body_bytes <= message_type.body_bytes_max(), "{message_type:?} of {body_bytes} bytes is over its bound");
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&(message_type as u16).to_le_bytes());
    header[2..4].copy_from_slice(&SCHEMA.to_le_bytes());
    header[8..12].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    let crc = checksum(&header[..12], summed);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// All of a chunk's message but its bytes, which follow it as they are: a chunk sent from its beginning, or the end of
/// one from byte `from` on.
///
/// # Panics
/// When the bytes are over the bound of a chunk.
pub fn chunk_head(id: ChunkId, from: u32, bytes: &[u8]) -> Vec<u8> {
    let offset = from.to_le_bytes();
    let (message_type, offset) =
        if from == 0 { (MessageType::Chunk, &offset[..0]) } else { (MessageType::ChunkRest, &offset[..]) };
    let body = [id.as_bytes(), offset].concat();
    let header = encode_header(message_type, body.len() + bytes.len(), &body);
    [&header[..], &body].concat()
}

impl Message {
    /// The message's bytes, header and body.
    ///
    /// # Panics
    /// When the body is over its bound: what we say ourselves is checked where it is made.
    pub fn encode(&self) -> Vec<u8> {
        let (message_type, body) = encode_body(self);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(&encode_header(message_type, body.len(), summed(message_type, &body)));
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads one whole message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(DecodeError::Type { message_type: 0 })?;
        Header::decode(*header)?.decode_body(body.to_vec())
    }
}

#[derive(Archive, Serialize, Deserialize)]
struct ReportV1 {
    agent_version: String,
    boot: [u8; 16],
    embodiment: Option<[u8; 32]>,
    episodes_waiting: u64,
    spool_bytes: u64,
    recordings: u64,
    assignment_sequence: u64,
    upload_policy_revision: u64,
    releases: Vec<ReleaseReportV1>,
}

#[derive(Archive, Serialize, Deserialize)]
struct ReleaseReportV1 {
    skill: String,
    version: u32,
    state: u8,
    reason: String,
}

#[derive(Archive, Serialize, Deserialize)]
struct BytesV1 {
    bytes: Vec<u8>,
}

#[derive(Archive, Serialize, Deserialize)]
struct UploadPolicyV1 {
    revision: u64,
    policy: Option<HubPolicyV1>,
}

#[derive(Archive, Serialize, Deserialize)]
struct HubPolicyV1 {
    metadata_first: bool,
    bytes_per_second_max: Option<u64>,
    bytes_per_second_max_acting: Option<u64>,
    metered: bool,
    /// First minute of the day, first minute after.
    windows: Vec<(u16, u16)>,
    keep_on_site_tasks: Vec<String>,
}

#[derive(Archive, Serialize, Deserialize)]
struct WantV1 {
    bitmap: Vec<u8>,
    /// Number of the chunk, bytes held.
    resume: Vec<(u32, u32)>,
}

#[derive(Archive, Serialize, Deserialize)]
struct LaterV1 {
    retry_after_ms: u32,
}

#[derive(Archive, Serialize, Deserialize)]
struct RejectV1 {
    reason: u8,
}

#[derive(Archive, Serialize, Deserialize)]
struct DurableV1 {
    episode: [u8; 32],
    stored_unix_secs: u64,
    path: Vec<[u8; 32]>,
    /// One bit for each of the path, the lowest first: set where it stands on the left.
    on_the_left: u32,
    key: [u8; 16],
    signature: [u8; 64],
}

fn durable_body(receipt: &Receipt) -> DurableV1 {
    let (mut path, mut on_the_left) = (Vec::with_capacity(receipt.path.len()), 0);
    for (step, beside) in receipt.path.iter().enumerate() {
        let (Beside::Left(digest) | Beside::Right(digest)) = beside;
        path.push(*digest.as_bytes());
        on_the_left |= u32::from(matches!(beside, Beside::Left(_))) << step;
    }
    DurableV1 {
        episode: *receipt.episode.as_bytes(),
        stored_unix_secs: receipt.stored_unix_secs,
        path,
        on_the_left,
        key: *receipt.key.as_bytes(),
        signature: receipt.signature,
    }
}

/// None where the path is too long, or has sides beyond its end: a receipt is written in one way.
fn receipt(body: DurableV1) -> Option<Receipt> {
    let path = at_most(RECEIPT_PATH_MAX, body.path)?;
    if body.on_the_left >> path.len() != 0 {
        return None;
    }
    let beside = |(step, digest)| {
        let digest = Digest::from_bytes(digest);
        if body.on_the_left >> step & 1 == 1 { Beside::Left(digest) } else { Beside::Right(digest) }
    };
    Some(Receipt {
        episode: EpisodeId::from_bytes(body.episode),
        stored_unix_secs: body.stored_unix_secs,
        path: path.into_iter().enumerate().map(beside).collect(),
        key: KeyId::from_bytes(body.key),
        signature: body.signature,
    })
}

#[derive(Archive, Serialize, Deserialize)]
struct FetchV1 {
    digest: [u8; 32],
    offset: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct FoundV1 {
    bytes_total: u64,
}

#[derive(Archive, Serialize, Deserialize)]
struct EvictedV1 {
    tombstones: Vec<TombstoneV1>,
}

#[derive(Archive, Serialize, Deserialize)]
struct TombstoneV1 {
    recording: [u8; 16],
    ordinal: u64,
    task: String,
    outcome: u8,
    interventions: bool,
    steps: u64,
    bytes: u64,
    reason: u8,
}

#[derive(Archive, Serialize, Deserialize)]
struct WantedV1 {
    episodes: Vec<[u8; 32]>,
}

#[derive(Archive, Serialize, Deserialize)]
struct EvictionsStoredV1 {
    ordinals: Vec<u64>,
}

/// Archives a small body.
macro_rules! archive {
    ($value:expr) => {
        rkyv::to_bytes::<rkyv::rancor::Error>(&$value).expect("our bodies fit in memory").into_vec()
    };
}

/// Validates and reads a small body.
macro_rules! unarchive {
    ($type:ty, $message_type:expr, $body:expr) => {
        rkyv::from_bytes::<$type, rkyv::rancor::Error>($body)
            .map_err(|_| DecodeError::Body { message_type: $message_type })?
    };
}

fn encode_body(message: &Message) -> (MessageType, Vec<u8>) {
    match message {
        Message::Report(report) => (MessageType::Report, archive!(report_v1(report))),
        Message::Assign(object) => (MessageType::Assign, archive!(BytesV1 { bytes: object.envelope.clone() })),
        Message::Root(object) => (MessageType::Root, archive!(BytesV1 { bytes: object.envelope.clone() })),
        Message::UploadPolicy(pushed) => (MessageType::UploadPolicy, archive!(upload_policy_v1(pushed))),
        Message::Offer(manifest) => (MessageType::Offer, manifest.clone()),
        Message::Ping(number) => (MessageType::Ping, number.to_le_bytes().to_vec()),
        Message::Pong(number) => (MessageType::Pong, number.to_le_bytes().to_vec()),
        Message::Want(want) => (MessageType::Want, archive!(want_v1(want))),
        Message::Later(later) => (MessageType::Later, archive!(LaterV1 { retry_after_ms: later.retry_after_ms })),
        Message::Reject(reject) => (MessageType::Reject, archive!(RejectV1 { reason: reject_code(reject.reason) })),
        Message::Chunk(chunk) => {
            let mut body = Vec::with_capacity(32 + chunk.bytes.len());
            body.extend_from_slice(chunk.id.as_bytes());
            body.extend_from_slice(&chunk.bytes);
            (MessageType::Chunk, body)
        }
        Message::ChunkRest(rest) => {
            let mut body = Vec::with_capacity(36 + rest.bytes.len());
            body.extend_from_slice(rest.id.as_bytes());
            body.extend_from_slice(&rest.from.to_le_bytes());
            body.extend_from_slice(&rest.bytes);
            (MessageType::ChunkRest, body)
        }
        Message::Durable(receipt) => (MessageType::Durable, archive!(durable_body(receipt))),
        Message::Fetch(fetch) => {
            (MessageType::Fetch, archive!(FetchV1 { digest: *fetch.digest.as_bytes(), offset: fetch.offset }))
        }
        Message::Found(found) => (MessageType::Found, archive!(FoundV1 { bytes_total: found.bytes_total })),
        Message::Missing => (MessageType::Missing, Vec::new()),
        Message::Describe(manifest) => (MessageType::Describe, manifest.clone()),
        Message::Noted => (MessageType::Noted, Vec::new()),
        Message::Wanted(episodes) => {
            let episodes = episodes.iter().map(|episode| *episode.as_bytes()).collect();
            (MessageType::Wanted, archive!(WantedV1 { episodes }))
        }
        Message::Evicted(tombstones) => {
            let tombstones = tombstones.iter().map(tombstone_v1).collect();
            (MessageType::Evicted, archive!(EvictedV1 { tombstones }))
        }
        Message::EvictionsStored(ordinals) => {
            (MessageType::EvictionsStored, archive!(EvictionsStoredV1 { ordinals: ordinals.clone() }))
        }
    }
}

fn decode_body(message_type: MessageType, body: Vec<u8>) -> Result<Message, DecodeError> {
    let malformed = || DecodeError::Body { message_type };
    Ok(match message_type {
        MessageType::Report => Message::Report(report(unarchive!(ReportV1, message_type, &body))?),
        MessageType::Assign => {
            Message::Assign(SignedObject { envelope: unarchive!(BytesV1, message_type, &body).bytes })
        }
        MessageType::Root => Message::Root(SignedObject { envelope: unarchive!(BytesV1, message_type, &body).bytes }),
        MessageType::UploadPolicy => {
            Message::UploadPolicy(upload_policy(unarchive!(UploadPolicyV1, message_type, &body))?)
        }
        MessageType::Offer => Message::Offer(body),
        MessageType::Ping => Message::Ping(u64::from_le_bytes(body.try_into().map_err(|_| malformed())?)),
        MessageType::Pong => Message::Pong(u64::from_le_bytes(body.try_into().map_err(|_| malformed())?)),
        MessageType::Want => Message::Want(want(unarchive!(WantV1, message_type, &body)).ok_or_else(malformed)?),
        MessageType::Later => {
            Message::Later(Later { retry_after_ms: unarchive!(LaterV1, message_type, &body).retry_after_ms })
        }
        MessageType::Reject => {
            let code = unarchive!(RejectV1, message_type, &body).reason;
            Message::Reject(Reject { reason: reject_reason(code).ok_or_else(malformed)? })
        }
        MessageType::Chunk => {
            let id = *body.first_chunk::<32>().ok_or_else(malformed)?;
            let mut bytes = body;
            // In place: a second allocation for every chunk shows at the speed of a disk.
            bytes.drain(..32);
            Message::Chunk(ChunkBytes { id: ChunkId::from_bytes(id), bytes })
        }
        MessageType::ChunkRest => {
            let (id, rest) = body.split_first_chunk::<32>().ok_or_else(malformed)?;
            let (from, bytes) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
            let (id, from) = (ChunkId::from_bytes(*id), u32::from_le_bytes(*from));
            Message::ChunkRest(ChunkRest { id, from, bytes: bytes.to_vec() })
        }
        MessageType::Durable => {
            let body = unarchive!(DurableV1, message_type, &body);
            Message::Durable(receipt(body).ok_or_else(malformed)?)
        }
        MessageType::Fetch => {
            let body = unarchive!(FetchV1, message_type, &body);
            Message::Fetch(Fetch { digest: Digest::from_bytes(body.digest), offset: body.offset })
        }
        MessageType::Found => {
            Message::Found(Found { bytes_total: unarchive!(FoundV1, message_type, &body).bytes_total })
        }
        MessageType::Missing => Message::Missing,
        MessageType::Describe => Message::Describe(body),
        MessageType::Noted => Message::Noted,
        MessageType::Wanted => {
            let episodes = unarchive!(WantedV1, message_type, &body).episodes;
            let episodes = at_most(WANTED_PER_MESSAGE_MAX, episodes).ok_or_else(malformed)?;
            Message::Wanted(episodes.into_iter().map(EpisodeId::from_bytes).collect())
        }
        MessageType::Evicted => {
            let tombstones = unarchive!(EvictedV1, message_type, &body).tombstones;
            let tombstones = at_most(EVICTIONS_PER_MESSAGE_MAX, tombstones).ok_or_else(malformed)?;
            Message::Evicted(tombstones.into_iter().map(tombstone).collect::<Result<_, _>>()?)
        }
        MessageType::EvictionsStored => {
            let ordinals = unarchive!(EvictionsStoredV1, message_type, &body).ordinals;
            Message::EvictionsStored(at_most(EVICTIONS_PER_MESSAGE_MAX, ordinals).ok_or_else(malformed)?)
        }
    })
}

/// The items, unless there are more than allowed.
fn at_most<T>(count_max: usize, items: Vec<T>) -> Option<Vec<T>> {
    (items.len() <= count_max).then_some(items)
}

fn upload_policy_v1(pushed: &PushedPolicy) -> UploadPolicyV1 {
    let policy = pushed.policy.as_ref().map(|policy| HubPolicyV1 {
        metadata_first: policy.mode == UploadMode::MetadataFirst,
        bytes_per_second_max: policy.bytes_per_second_max,
        bytes_per_second_max_acting: policy.bytes_per_second_max_acting,
        metered: policy.metered,
        windows: policy.windows.iter().map(|window| window.minutes()).collect(),
        keep_on_site_tasks: policy.keep_on_site_tasks.iter().map(|task| task.as_str().to_owned()).collect(),
    });
    UploadPolicyV1 { revision: pushed.revision, policy }
}

fn upload_policy(body: UploadPolicyV1) -> Result<PushedPolicy, DecodeError> {
    let message_type = MessageType::UploadPolicy;
    let malformed = || DecodeError::Body { message_type };
    let policy = |body: HubPolicyV1| {
        let windows = body.windows.iter().map(|&(from, to)| Window::new(from, to).map_err(|_| malformed()));
        let tasks = body.keep_on_site_tasks.iter().map(|task| task.parse());
        let policy = HubPolicy {
            mode: if body.metadata_first { UploadMode::MetadataFirst } else { UploadMode::All },
            bytes_per_second_max: body.bytes_per_second_max,
            bytes_per_second_max_acting: body.bytes_per_second_max_acting,
            metered: body.metered,
            windows: windows.collect::<Result<_, _>>()?,
            keep_on_site_tasks: tasks
                .collect::<Result<_, _>>()
                .map_err(|source| DecodeError::Name { message_type, source })?,
        };
        policy.check().map_err(|_| malformed())?;
        Ok(policy)
    };
    Ok(PushedPolicy { revision: body.revision, policy: body.policy.map(policy).transpose()? })
}

fn want_v1(want: &Want) -> WantV1 {
    let resume = want.resume.iter().take(RESUMES_MAX).map(|resume| (resume.chunk, resume.from));
    WantV1 { bitmap: want.bitmap.clone(), resume: resume.collect() }
}

fn want(body: WantV1) -> Option<Want> {
    let resume = body.resume.iter().map(|&(chunk, from)| Resume { chunk, from }).collect();
    (body.resume.len() <= RESUMES_MAX).then_some(Want { bitmap: body.bitmap, resume })
}

fn report_v1(report: &Report) -> ReportV1 {
    let releases = report.releases.iter().take(ASSIGNED_RELEASES_MAX).map(|release| ReleaseReportV1 {
        skill: release.release.skill.as_str().to_owned(),
        version: release.release.version.0,
        state: state_code(release.state),
        reason: release.reason[..release.reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned(),
    });
    ReportV1 {
        agent_version: report.agent_version.clone(),
        boot: *report.boot.as_bytes(),
        embodiment: report.embodiment.map(|id| *id.as_bytes()),
        episodes_waiting: report.episodes_waiting,
        spool_bytes: report.spool_bytes,
        recordings: report.recordings,
        assignment_sequence: report.assignment_sequence,
        upload_policy_revision: report.upload_policy_revision,
        releases: releases.collect(),
    }
}

fn report(body: ReportV1) -> Result<Report, DecodeError> {
    let message_type = MessageType::Report;
    let malformed = || DecodeError::Body { message_type };
    if body.releases.len() > ASSIGNED_RELEASES_MAX || body.agent_version.len() > REASON_BYTES_MAX {
        return Err(malformed());
    }
    let mut releases = Vec::with_capacity(body.releases.len());
    for release in body.releases {
        let skill = release.skill.parse().map_err(|source| DecodeError::Name { message_type, source })?;
        if release.reason.len() > REASON_BYTES_MAX {
            return Err(malformed());
        }
        releases.push(ReleaseReport {
            release: ReleaseId { skill, version: SkillVersion(release.version) },
            state: state(release.state).ok_or_else(malformed)?,
            reason: release.reason,
        });
    }
    Ok(Report {
        agent_version: body.agent_version,
        boot: BootId::from_bytes(body.boot),
        embodiment: body.embodiment.map(EmbodimentId::from_bytes),
        episodes_waiting: body.episodes_waiting,
        spool_bytes: body.spool_bytes,
        recordings: body.recordings,
        assignment_sequence: body.assignment_sequence,
        upload_policy_revision: body.upload_policy_revision,
        releases,
    })
}

fn tombstone_v1(tombstone: &Tombstone) -> TombstoneV1 {
    TombstoneV1 {
        recording: *tombstone.recording.as_bytes(),
        ordinal: tombstone.ordinal,
        task: tombstone.task.as_str().to_owned(),
        outcome: OUTCOMES.iter().position(|&known| known == tombstone.outcome).expect("every outcome is listed") as u8,
        interventions: tombstone.interventions,
        steps: tombstone.steps,
        bytes: tombstone.bytes,
        reason: EVICTIONS.iter().position(|&known| known == tombstone.reason).expect("every reason is listed") as u8,
    }
}

fn tombstone(body: TombstoneV1) -> Result<Tombstone, DecodeError> {
    let message_type = MessageType::Evicted;
    let malformed = || DecodeError::Body { message_type };
    Ok(Tombstone {
        recording: RecordingId::from_bytes(body.recording),
        // What counts is stored as a signed number.
        ordinal: i64::try_from(body.ordinal).map_err(|_| malformed())? as u64,
        task: body.task.parse().map_err(|source| DecodeError::Name { message_type, source })?,
        outcome: OUTCOMES.get(usize::from(body.outcome)).copied().ok_or_else(malformed)?,
        interventions: body.interventions,
        steps: i64::try_from(body.steps).map_err(|_| malformed())? as u64,
        bytes: i64::try_from(body.bytes).map_err(|_| malformed())? as u64,
        reason: EVICTIONS.get(usize::from(body.reason)).copied().ok_or_else(malformed)?,
    })
}

const OUTCOMES: [Outcome; 3] = [Outcome::Success, Outcome::Failure, Outcome::Unknown];

const EVICTIONS: [EvictionReason; 2] = [EvictionReason::Quota, EvictionReason::DiskFull];

const STATES: [ReleaseState; 5] =
    [ReleaseState::Fetching, ReleaseState::Staged, ReleaseState::Active, ReleaseState::Previous, ReleaseState::Failed];

fn state_code(state: ReleaseState) -> u8 {
    STATES.iter().position(|&known| known == state).expect("every state is listed") as u8
}

fn state(code: u8) -> Option<ReleaseState> {
    STATES.get(usize::from(code)).copied()
}

const REASONS: [RejectReason; 5] = [
    RejectReason::Malformed,
    RejectReason::WrongIdentity,
    RejectReason::Conflict,
    RejectReason::WrongChunk,
    RejectReason::TooLarge,
];

fn reject_code(reason: RejectReason) -> u8 {
    REASONS.iter().position(|&known| known == reason).expect("every reason is listed") as u8
}

fn reject_reason(code: u8) -> Option<RejectReason> {
    REASONS.get(usize::from(code)).copied()
}

#[cfg(test)]
mod tests;
