//! The local socket's frames, as docs/local-socket.md has them: used by the agent and by clients.
//!
//! Encoding and decoding only; who waits on the socket is the caller's affair.

use serde::{Deserialize, Serialize};

use crate::embodiment::Embodiment;
use crate::episode::{EpisodeEnd, Outcome};
use crate::ids::{Digest, EpisodeId, RecordingId, ReleaseId, SkillName, SkillVersion, TaskName};
use crate::limits::{LOCAL_FRAME_BYTES_MAX, NAME_BYTES_MAX};

/// First bytes in either direction.
pub const GREETING_MAGIC: [u8; 4] = *b"ZLCL";
/// The version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;
/// Size of the greeting in either direction.
pub const GREETING_BYTES: usize = 8;
/// Size of a frame's header.
pub const HEADER_BYTES: usize = 16;
/// Size of a STEP before its features.
pub const STEP_PREFIX_BYTES: usize = 16;

/// STEP flag: a person had taken over.
pub const STEP_INTERVENTION: u32 = 1;
/// SAMPLE flag: the image can be decoded without those before it.
pub const SAMPLE_KEY_FRAME: u32 = 1;
/// SAMPLE flag: the bytes are raw pixels, which the agent encodes.
pub const SAMPLE_RAW: u32 = 2;
/// ACT flag: the first step of an episode.
pub const ACT_FIRST: u32 = 1;

/// The client's half of the greeting.
pub fn client_greeting() -> [u8; GREETING_BYTES] {
    let [a, b, c, d] = GREETING_MAGIC;
    let [low, high] = VERSION.to_le_bytes();
    [a, b, c, d, low, high, low, high]
}

/// The agent's answer to the client's greeting, and whether the two can talk.
pub fn answer_greeting(client: [u8; GREETING_BYTES]) -> ([u8; GREETING_BYTES], bool) {
    let low = u16::from_le_bytes([client[4], client[5]]);
    let high = u16::from_le_bytes([client[6], client[7]]);
    let fits = client[..4] == GREETING_MAGIC && (low..=high).contains(&VERSION);
    let version = if fits { VERSION } else { 0 };
    let [a, b, c, d] = GREETING_MAGIC;
    let [v0, v1] = version.to_le_bytes();
    ([a, b, c, d, v0, v1, 0, 0], fits)
}

/// The version that the agent chose; `None` when it refused or is no agent.
pub fn read_agent_greeting(agent: [u8; GREETING_BYTES]) -> Option<u16> {
    let version = u16::from_le_bytes([agent[4], agent[5]]);
    (agent[..4] == GREETING_MAGIC && version == VERSION).then_some(version)
}

macro_rules! frame_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a frame is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum FrameType { $($(#[$doc])* $name = $value,)* }

        impl FrameType {
            fn from_u16(value: u16) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

frame_types! {
    /// Opens a recording.
    Begin = 1,
    /// Records a step.
    Step = 2,
    /// Ends the recording.
    End = 3,
    /// Asks how much is on disk.
    Progress = 4,
    /// Asks for an action.
    Act = 5,
    /// Asks for the agent's state.
    Status = 6,
    /// Asks for events.
    Subscribe = 7,
    /// Asks for the same bytes.
    Echo = 8,
    /// Records a sample of a stream of its own.
    Sample = 9,
    /// Answers BEGIN.
    Begun = 129,
    /// Answers END.
    Ended = 131,
    /// Answers PROGRESS.
    ProgressIs = 132,
    /// Answers ACT.
    Action = 133,
    /// Answers STATUS.
    StatusIs = 134,
    /// Answers SUBSCRIBE.
    Subscribed = 135,
    /// Answers ECHO.
    Echoed = 136,
    /// Something happened.
    Event = 192,
    /// A request was refused.
    Error = 255,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub frame_type: FrameType,
    /// Which request it is, or answers.
    pub request: u32,
    /// Bytes of body that follow.
    pub body_bytes: u32,
}

/// Why a frame cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type that version 1 does not have.
    #[error("unknown frame type {frame_type}")]
    Type {
        /// The type found.
        frame_type: u16,
    },
    /// Over the bound.
    #[error("frame body has {bytes} bytes; at most {LOCAL_FRAME_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u32,
    },
    /// Flags or reserved bits that version 1 does not have.
    #[error("frame has flags or reserved bits that are not zero")]
    Reserved,
    /// A body that ends too early, too late, or holds text that is not text.
    #[error("body of {frame} cannot be read: {reason}")]
    Body {
        /// Which frame.
        frame: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&(self.frame_type as u16).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.request.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let value = u16::from_le_bytes([bytes[0], bytes[1]]);
        let frame_type = FrameType::from_u16(value).ok_or(FrameError::Type { frame_type: value })?;
        if bytes[2..4] != [0, 0] || word(12) != 0 {
            return Err(FrameError::Reserved);
        }
        let body_bytes = word(8);
        if body_bytes as usize > LOCAL_FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge { bytes: body_bytes });
        }
        Ok(Self { frame_type, request: word(4), body_bytes })
    }
}

/// Writes a whole frame into `out`.
pub fn write_frame(out: &mut Vec<u8>, frame_type: FrameType, request: u32, body: &[u8]) {
    let header = Header { frame_type, request, body_bytes: body.len() as u32 };
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(body);
}

/// Who will act in a recording, as BEGIN says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BeginActor {
    /// A person.
    Human,
    /// A program.
    Script,
    /// The active release of this skill.
    #[serde(untagged)]
    Skill {
        /// Its name.
        skill: SkillName,
    },
}

/// Body of BEGIN.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// What the episode is about.
    pub task: TaskName,
    /// With what body.
    pub embodiment: Embodiment,
    /// Who acts.
    pub actor: BeginActor,
}

/// Body of BEGUN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The recording.
    pub recording: RecordingId,
    /// Bytes of features in every STEP.
    pub step_bytes: u32,
    /// The release that will act, where a skill does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
}

/// Body of END.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Whether the task was done.
    pub outcome: Outcome,
    /// How it ended.
    pub end: EpisodeEnd,
}

/// Body of ENDED.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The recording.
    pub recording: RecordingId,
    /// The episode that it became.
    pub episode: EpisodeId,
    /// Its steps.
    pub steps: u64,
    /// Raw images that were not encoded in time and are not in it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub images_dropped: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Body of ERROR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// For programs; see docs/local-socket.md.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Body of EVENT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Another release of a skill is active.
    ReleaseChanged {
        /// The skill.
        skill: SkillName,
        /// The version now active; `None` when the skill was withdrawn.
        version: Option<SkillVersion>,
        /// The version before.
        previous: Option<SkillVersion>,
    },
}

/// Body of STEP.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<'a> {
    /// When the observation was taken.
    pub monotonic_ns: u64,
    /// What followed; NaN where there is none.
    pub reward: f32,
    /// Whether a person had taken over.
    pub intervention: bool,
    /// The features' bytes.
    pub features: &'a [u8],
}

impl<'a> Step<'a> {
    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.monotonic_ns.to_le_bytes());
        out.extend_from_slice(&self.reward.to_le_bytes());
        out.extend_from_slice(&(if self.intervention { STEP_INTERVENTION } else { 0 }).to_le_bytes());
        out.extend_from_slice(self.features);
    }

    /// Reads a body; the caller checks the size of the features.
    pub fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { frame: "STEP", rest: body };
        let monotonic_ns = reader.u64()?;
        let reward = f32::from_bits(reader.u32()?);
        let flags = reader.u32()?;
        if flags & !STEP_INTERVENTION != 0 {
            return Err(reader.error("unknown flags"));
        }
        Ok(Self { monotonic_ns, reward, intervention: flags == STEP_INTERVENTION, features: reader.rest })
    }
}

/// Body of SAMPLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample<'a> {
    /// When it was taken.
    pub monotonic_ns: u64,
    /// Which feature of the embodiment, by its place in the list, from 0.
    pub feature: u32,
    /// Whether an image can be decoded without those before it; without a meaning for numbers.
    pub key_frame: bool,
    /// Whether an image is raw pixels, `[height, width, channels]` in row-major order.
    pub raw: bool,
    /// The encoded image, the pixels or the values.
    pub bytes: &'a [u8],
}

impl<'a> Sample<'a> {
    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.monotonic_ns.to_le_bytes());
        out.extend_from_slice(&self.feature.to_le_bytes());
        let flags = if self.key_frame { SAMPLE_KEY_FRAME } else { 0 } | if self.raw { SAMPLE_RAW } else { 0 };
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(self.bytes);
    }

    /// Reads a body; the caller checks what the bytes must be.
    pub fn decode(body: &'a [u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { frame: "SAMPLE", rest: body };
        let monotonic_ns = reader.u64()?;
        let feature = reader.u32()?;
        let flags = reader.u32()?;
        if flags & !(SAMPLE_KEY_FRAME | SAMPLE_RAW) != 0 {
            return Err(reader.error("unknown flags"));
        }
        let (key_frame, raw) = (flags & SAMPLE_KEY_FRAME != 0, flags & SAMPLE_RAW != 0);
        Ok(Self { monotonic_ns, feature, key_frame, raw, bytes: reader.rest })
    }
}

/// Body of ACT.
#[derive(Debug, Clone, PartialEq)]
pub struct Act {
    /// Which skill.
    pub skill: SkillName,
    /// For which task.
    pub task: TaskName,
    /// Whether an episode begins here.
    pub first: bool,
    /// The observation features, concatenated.
    pub observation: Vec<f32>,
}

impl Act {
    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, self.skill.as_str());
        put_text(out, self.task.as_str());
        out.extend_from_slice(&(if self.first { ACT_FIRST } else { 0 }).to_le_bytes());
        put_values(out, &self.observation);
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { frame: "ACT", rest: body };
        let skill = reader.text()?;
        let skill = skill.parse().map_err(|error| reader.error(error))?;
        let task = reader.text()?;
        let task = task.parse().map_err(|error| reader.error(error))?;
        let flags = reader.u32()?;
        if flags & !ACT_FIRST != 0 {
            return Err(reader.error("unknown flags"));
        }
        let observation = reader.values()?;
        reader.end()?;
        Ok(Self { skill, task, first: flags == ACT_FIRST, observation })
    }
}

/// Body of ACTION.
#[derive(Debug, Clone, PartialEq)]
pub struct Action {
    /// Version of the release that answered.
    pub version: SkillVersion,
    /// Digest of its signed envelope.
    pub manifest: Digest,
    /// The action.
    pub values: Vec<f32>,
}

impl Action {
    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version.0.to_le_bytes());
        out.extend_from_slice(self.manifest.as_bytes());
        put_values(out, &self.values);
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { frame: "ACTION", rest: body };
        let version = SkillVersion(reader.u32()?);
        let manifest = Digest::from_bytes(reader.array()?);
        let values = reader.values()?;
        reader.end()?;
        Ok(Self { version, manifest, values })
    }
}

/// Body of PROGRESS_IS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Steps that the agent has taken.
    pub steps_recorded: u64,
    /// Steps that survive a power cut.
    pub steps_on_disk: u64,
}

impl Progress {
    /// The body.
    pub fn encode(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.steps_recorded.to_le_bytes());
        bytes[8..].copy_from_slice(&self.steps_on_disk.to_le_bytes());
        bytes
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader { frame: "PROGRESS_IS", rest: body };
        let progress = Self { steps_recorded: reader.u64()?, steps_on_disk: reader.u64()? };
        reader.end()?;
        Ok(progress)
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_values(out: &mut Vec<u8>, values: &[f32]) {
    out.extend_from_slice(&(values.len() as u32).to_le_bytes());
    out.reserve(values.len() * 4);
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

struct Reader<'a> {
    frame: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn error(&self, reason: impl ToString) -> FrameError {
        FrameError::Body { frame: self.frame, reason: reason.to_string() }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.rest.split_at_checked(bytes).ok_or_else(|| self.error("it ends too early"))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        Ok(self.take(N)?.try_into().expect("take returns as many bytes as asked"))
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, FrameError> {
        let bytes = usize::from(u16::from_le_bytes(self.array()?));
        if bytes > NAME_BYTES_MAX {
            return Err(self.error("a name is too long"));
        }
        std::str::from_utf8(self.take(bytes)?).map_err(|_| self.error("a name is not UTF-8"))
    }

    fn values(&mut self) -> Result<Vec<f32>, FrameError> {
        let count = self.u32()? as usize;
        let bytes = count.checked_mul(4).ok_or_else(|| self.error("too many values"))?;
        let bytes = self.take(bytes)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    fn end(&self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error("bytes are left over")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greeting_is_frozen() {
        assert_eq!(client_greeting(), *b"ZLCL\x01\0\x01\0");
        assert_eq!(answer_greeting(client_greeting()), (*b"ZLCL\x01\0\0\0", true));
        assert_eq!(answer_greeting(*b"ZLCL\x02\0\x09\0"), (*b"ZLCL\0\0\0\0", false));
        assert_eq!(answer_greeting(*b"HTTP\x01\0\x01\0").0, *b"ZLCL\0\0\0\0");
        assert_eq!(read_agent_greeting(*b"ZLCL\x01\0\0\0"), Some(1));
        assert_eq!(read_agent_greeting(*b"ZLCL\0\0\0\0"), None);
    }

    #[test]
    fn act_is_frozen() {
        let act =
            Act { skill: "push".parse().unwrap(), task: "t".parse().unwrap(), first: true, observation: vec![1.0] };
        let mut body = Vec::new();
        act.encode(&mut body);
        let mut frame = Vec::new();
        write_frame(&mut frame, FrameType::Act, 7, &body);
        assert_eq!(
            frame,
            [
                5, 0, 0, 0, // type, flags
                7, 0, 0, 0, // request
                21, 0, 0, 0, // length
                0, 0, 0, 0, // reserved
                4, 0, b'p', b'u', b's', b'h', // skill
                1, 0, b't', // task
                1, 0, 0, 0, // flags: first
                1, 0, 0, 0, // count
                0, 0, 0x80, 0x3f, // 1.0
            ]
        );
        assert_eq!(Act::decode(&body).unwrap(), act);
    }

    #[test]
    fn step_is_frozen() {
        let step = Step { monotonic_ns: 258, reward: 1.0, intervention: true, features: &[9, 8] };
        let mut body = Vec::new();
        step.encode(&mut body);
        assert_eq!(body, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x3f, 1, 0, 0, 0, 9, 8]);
        assert_eq!(Step::decode(&body).unwrap(), step);
        body[12] = 2;
        assert!(Step::decode(&body).is_err());
    }

    #[test]
    fn sample_is_frozen() {
        let sample = Sample { monotonic_ns: 258, feature: 3, key_frame: true, raw: false, bytes: &[0xff, 0xd8] };
        let mut body = Vec::new();
        sample.encode(&mut body);
        assert_eq!(
            body,
            [
                2, 1, 0, 0, 0, 0, 0, 0, // monotonic_ns
                3, 0, 0, 0, // feature
                1, 0, 0, 0, // flags: key frame
                0xff, 0xd8, // bytes
            ]
        );
        assert_eq!(Sample::decode(&body).unwrap(), sample);
        body[12] = 2;
        assert!(Sample::decode(&body).unwrap().raw);
        body[12] = 4;
        assert!(Sample::decode(&body).is_err());
        assert!(Sample::decode(&body[..15]).is_err());
    }

    #[test]
    fn begin_reads_as_documented() {
        let begin: Begin = serde_json::from_str(
            r#"{"task": "pick-place", "actor": "script", "embodiment": {"name": "cell", "rate_hz": 20.0,
                "features": [{"name": "action", "dtype": "f32", "shape": [4]}]}}"#,
        )
        .unwrap();
        assert_eq!(begin.actor, BeginActor::Script);
        let actor: BeginActor = serde_json::from_str(r#"{"skill": "push"}"#).unwrap();
        assert_eq!(actor, BeginActor::Skill { skill: "push".parse().unwrap() });
        assert!(serde_json::from_str::<BeginActor>(r#""robot""#).is_err());
        let end: End =
            serde_json::from_str(r#"{"outcome": "failure", "end": {"truncated": {"limit": "step-limit"}}}"#).unwrap();
        assert_eq!(end.outcome, Outcome::Failure);
        let event = Event::ReleaseChanged {
            skill: "push".parse().unwrap(),
            version: Some(SkillVersion(8)),
            previous: Some(SkillVersion(7)),
        };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"release-changed","skill":"push","version":8,"previous":7}"#
        );
    }

    #[test]
    fn headers_that_version_1_does_not_know_are_refused() {
        let good = Header { frame_type: FrameType::Act, request: 1, body_bytes: 0 }.encode();
        assert!(Header::decode(good).is_ok());
        for (at, value) in [(0, 99), (2, 1), (12, 1), (11, 255)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Header::decode(bad).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _step = Step::decode(&body);
            let _sample = Sample::decode(&body);
            let _act = Act::decode(&body);
            let _action = Action::decode(&body);
            let _progress = Progress::decode(&body);
        }
    }
}
