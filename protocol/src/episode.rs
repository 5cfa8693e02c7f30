//! What a robot lived through from one start to one end: the manifest that commits an episode.
//!
//! A manifest is immutable, and its hash is the episode's id. It lists the chunks of every stream; the
//! chunks hold the steps. What is learned later about an episode never changes it.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::cbor::{self, CborError};
use crate::chunk::{ColumnError, Schema};
use crate::embodiment::{Embodiment, EmbodimentError};
use crate::ids::{BootId, ChunkId, Digest, EpisodeId, RecordingId, ReleaseId, RobotId, SiteId, TaskName, TenantId};
use crate::limits::{CHUNK_BYTES_MAX, EPISODE_CHUNKS_MAX, EPISODE_STEPS_MAX, INTERVENTIONS_MAX, MANIFEST_BYTES_MAX};

/// Name of the stream that carries every step's numbers.
pub const STEPS_STREAM: &str = "steps";

/// The manifest format written by this version.
pub const MANIFEST_VERSION: u16 = 1;

/// Who chose the actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Actor {
    /// A person, by teleoperation or by hand.
    Human,
    /// A scripted program.
    Script,
    /// A release of a skill.
    Release {
        /// Which one.
        release: ReleaseId,
        /// Digest of its signed manifest.
        manifest: Digest,
    },
}

/// Whether the task was done, as far as was known when the recording ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The task was done.
    Success,
    /// It was not.
    Failure,
    /// Nobody said.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Unknown => "unknown",
        })
    }
}

/// How an episode ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EpisodeEnd {
    /// The task reached an end of its own: done, or failed for good.
    Terminated,
    /// The recording was cut off while the task went on.
    Truncated {
        /// What cut it off.
        limit: Truncation,
    },
    /// Someone gave up.
    Aborted {
        /// Why.
        reason: AbortReason,
    },
}

/// What cut a recording off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Truncation {
    /// The control program's limit of steps or time.
    StepLimit,
    /// The agent stopped or lost power while recording.
    AgentStopped,
    /// The control program went away without an end.
    ClientGone,
    /// There was no more room for steps.
    SpoolFull,
}

/// Why a recording was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AbortReason {
    /// A person decided so.
    Operator,
    /// A guard or emergency stop.
    Safety,
    /// The robot's hardware or software failed.
    Fault,
}

/// How much an estimate of wall time is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WallQuality {
    /// The clock reads before the agent was built: robots boot in 1970.
    Implausible,
    /// A plausible clock that nobody vouches for.
    Unsynchronised,
    /// The operating system says that the clock is synchronised.
    Synchronised,
}

/// When an episode happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// The power-up that the monotonic times belong to.
    pub boot: BootId,
    /// Monotonic time of the beginning.
    pub begin_monotonic_ns: u64,
    /// Estimate of the wall time of the beginning, nanoseconds since 1970.
    pub begin_wall_ns: i64,
    /// What that estimate is worth.
    pub wall_quality: WallQuality,
}

/// One chunk of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRef {
    /// Hash of the stored bytes.
    pub id: ChunkId,
    /// Stored bytes.
    pub bytes: u32,
    /// Steps inside.
    pub steps: u32,
}

/// One stream of an episode: consecutive steps, cut into chunks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// [`STEPS_STREAM`], or the name of the feature that is a stream of its own.
    pub name: String,
    /// What each step holds.
    pub schema: Schema,
    /// In the order of their steps.
    pub chunks: Vec<ChunkRef>,
}

/// Steps `begin..end` during which a person had taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRange {
    /// First step.
    pub begin: u64,
    /// One past the last.
    pub end: u64,
}

impl From<Range<u64>> for StepRange {
    fn from(range: Range<u64>) -> Self {
        Self { begin: range.start, end: range.end }
    }
}

/// The unit of commit: everything about an episode but its steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u16,
    /// Whose robot. The hub refuses a manifest that contradicts the certificate.
    pub tenant: TenantId,
    /// Where.
    pub site: SiteId,
    /// Which robot.
    pub robot: RobotId,
    /// Minted at the beginning: there is one episode for it.
    pub recording: RecordingId,
    /// Counts the robot's recordings from 0: with the robot's name, the canonical order of episodes.
    pub ordinal: u64,
    /// What it was about.
    pub task: TaskName,
    /// With what body.
    pub embodiment: Embodiment,
    /// Who acted.
    pub actor: Actor,
    /// Whether it went well.
    pub outcome: Outcome,
    /// How it ended.
    pub end: EpisodeEnd,
    /// Steps under human control, in order, apart from each other.
    pub interventions: Vec<StepRange>,
    /// Steps in the `steps` stream.
    pub steps: u64,
    /// When it happened.
    pub clock: Clock,
    /// The streams: `steps`, then the features that are streams of their own, in the embodiment's order.
    pub streams: Vec<Stream>,
}

/// Why a manifest does not describe an episode.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not deterministic CBOR of the right fields.
    #[error("episode manifest cannot be read")]
    Encoding(#[from] CborError),
    /// Written by a newer program.
    #[error("episode manifest has version {found}; this program reads up to {MANIFEST_VERSION}: upgrade it")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The body is impossible.
    #[error("episode manifest has an impossible embodiment")]
    Embodiment(#[from] EmbodimentError),
    /// A stream's columns are impossible.
    #[error("stream {stream:?} has an impossible schema")]
    Schema {
        /// The stream.
        stream: String,
        /// Why.
        #[source]
        source: ColumnError,
    },
    /// No steps were recorded.
    #[error("episode has no steps; record at least one before ending it")]
    NoSteps,
    /// More of something than allowed.
    #[error("episode has {count} {what}; at most {count_max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// The bound.
        count_max: u64,
    },
    /// Streams missing, doubled or out of order.
    #[error("episode streams are {found:?}; its embodiment has {expected:?}, in this order")]
    Streams {
        /// The names found.
        found: Vec<String>,
        /// The names that belong there.
        expected: Vec<String>,
    },
    /// A stream that is not what its feature promises.
    #[error("the columns of stream {stream:?} are not those of its feature in the embodiment")]
    StreamSchema {
        /// The stream.
        stream: String,
    },
    /// A chunk that cannot be.
    #[error(
        "chunk {index} of stream {stream:?} claims {steps} steps in {bytes} bytes; each must be at least 1 and bytes at most {CHUNK_BYTES_MAX}"
    )]
    Chunk {
        /// The stream.
        stream: String,
        /// Which chunk.
        index: usize,
        /// Steps claimed.
        steps: u32,
        /// Bytes claimed.
        bytes: u32,
    },
    /// The chunks' steps do not add up.
    #[error("the chunks of {STEPS_STREAM:?} hold {found} steps; the manifest says {expected}")]
    StepCount {
        /// Steps in the chunks.
        found: u64,
        /// Steps in the manifest.
        expected: u64,
    },
    /// Interventions outside the episode, empty or out of order.
    #[error("interventions must be non-empty step ranges in order inside 0..{steps}")]
    Interventions {
        /// Steps of the episode.
        steps: u64,
    },
}

impl Manifest {
    /// Encodes the manifest; [`EpisodeId::of`] these bytes names the episode.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads and checks a manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = cbor::decode(bytes, MANIFEST_BYTES_MAX)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The episode's id.
    pub fn id(&self) -> EpisodeId {
        EpisodeId::of(&self.encode())
    }

    /// Every chunk of every stream, in the order of the WANT bitmap.
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkRef> {
        self.streams.iter().flat_map(|stream| &stream.chunks)
    }

    /// Stored bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        self.chunks().map(|chunk| u64::from(chunk.bytes)).sum()
    }

    /// Checks everything that later code relies on.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.version != MANIFEST_VERSION {
            return Err(ManifestError::Version { found: self.version });
        }
        self.embodiment.check()?;
        if self.steps == 0 {
            return Err(ManifestError::NoSteps);
        }
        at_most("steps", self.steps, EPISODE_STEPS_MAX)?;
        at_most("chunks", self.chunks().count() as u64, EPISODE_CHUNKS_MAX as u64)?;
        at_most("interventions", self.interventions.len() as u64, INTERVENTIONS_MAX as u64)?;
        self.check_streams()?;
        let mut free_from = 0;
        for range in &self.interventions {
            if range.begin < free_from || range.end <= range.begin || range.end > self.steps {
                return Err(ManifestError::Interventions { steps: self.steps });
            }
            free_from = range.end;
        }
        Ok(())
    }

    fn check_streams(&self) -> Result<(), ManifestError> {
        let features = || self.embodiment.streams();
        let expected = || std::iter::once(STEPS_STREAM).chain(features().map(|feature| feature.name.as_str()));
        if !self.streams.iter().map(|stream| stream.name.as_str()).eq(expected()) {
            let found = self.streams.iter().map(|stream| stream.name.clone()).collect();
            return Err(ManifestError::Streams { found, expected: expected().map(str::to_owned).collect() });
        }
        for (stream, feature) in self.streams[1..].iter().zip(features()) {
            if stream.schema != Schema::stream(feature) {
                return Err(ManifestError::StreamSchema { stream: stream.name.clone() });
            }
        }
        for stream in &self.streams {
            stream.schema.check().map_err(|source| ManifestError::Schema { stream: stream.name.clone(), source })?;
            for (index, chunk) in stream.chunks.iter().enumerate() {
                if chunk.steps == 0 || chunk.bytes == 0 || chunk.bytes as usize > CHUNK_BYTES_MAX {
                    return Err(ManifestError::Chunk {
                        stream: stream.name.clone(),
                        index,
                        steps: chunk.steps,
                        bytes: chunk.bytes,
                    });
                }
            }
        }
        let found = self.streams[0].chunks.iter().map(|chunk| u64::from(chunk.steps)).sum();
        if found != self.steps {
            return Err(ManifestError::StepCount { found, expected: self.steps });
        }
        Ok(())
    }
}

fn at_most(what: &'static str, count: u64, count_max: u64) -> Result<(), ManifestError> {
    if count > count_max {
        return Err(ManifestError::TooMany { what, count, count_max });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::embodiment::{ACTION, Encoding, Feature, OBSERVATION_STATE};
    use crate::limits::{CHUNK_REF_BYTES_MAX, EMBODIMENT_BYTES_MAX, INTERVENTION_BYTES_MAX};

    pub(crate) fn manifest() -> Manifest {
        let embodiment = Embodiment {
            name: "arm".into(),
            rate_hz: 50.0,
            features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
        };
        Manifest {
            version: MANIFEST_VERSION,
            tenant: "acme".parse().unwrap(),
            site: "hall-1".parse().unwrap(),
            robot: "r1".parse().unwrap(),
            recording: RecordingId::from_bytes([1; 16]),
            ordinal: 3,
            task: "push".parse().unwrap(),
            actor: Actor::Script,
            outcome: Outcome::Success,
            end: EpisodeEnd::Truncated { limit: Truncation::StepLimit },
            interventions: vec![(1..2).into()],
            steps: 5,
            clock: Clock {
                boot: BootId::from_bytes([2; 16]),
                begin_monotonic_ns: 7,
                begin_wall_ns: 1_700_000_000_000_000_000,
                wall_quality: WallQuality::Unsynchronised,
            },
            streams: vec![Stream {
                name: STEPS_STREAM.into(),
                schema: Schema::steps(&embodiment),
                chunks: vec![
                    ChunkRef { id: ChunkId::of(b"a"), bytes: 10, steps: 3 },
                    ChunkRef { id: ChunkId::of(b"b"), bytes: 11, steps: 2 },
                ],
            }],
            embodiment,
        }
    }

    #[test]
    fn manifest_survives_its_encoding() {
        let bytes = manifest().encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest());
        assert_eq!(EpisodeId::of(&bytes), manifest().id());
    }

    #[test]
    fn id_is_frozen() {
        assert_eq!(manifest().id().to_string(), "156e191af373b96cbd4f45938e2f7776ec8dd9f442212745a43730eda2e089eb");
    }

    #[test]
    fn another_encoding_of_the_same_manifest_is_refused() {
        let mut bytes = manifest().encode();
        // A map header with the length in a byte of its own says the same, but not in the one allowed form.
        assert_eq!(bytes[0] & 0xe0, 0xa0);
        let len = bytes[0] & 0x1f;
        bytes.splice(0..1, [0xb8, len]);
        assert!(Manifest::decode(&bytes).is_err());
    }

    #[test]
    fn impossible_episodes_are_refused() {
        let refused = |change: fn(&mut Manifest)| {
            let mut changed = manifest();
            change(&mut changed);
            assert!(Manifest::decode(&changed.encode()).is_err(), "{changed:?}");
        };
        refused(|m| m.version = 2);
        refused(|m| m.steps = 0);
        refused(|m| m.steps = 6);
        refused(|m| m.streams.clear());
        refused(|m| m.streams[0].name = "other".into());
        refused(|m| m.streams.push(m.streams[0].clone()));
        refused(|m| m.streams[0].chunks[0].bytes = 0);
        refused(|m| m.streams[0].chunks[0].bytes = CHUNK_BYTES_MAX as u32 + 1);
        refused(|m| m.streams[0].schema.columns.clear());
        refused(|m| m.interventions = vec![(2..2).into()]);
        refused(|m| m.interventions = vec![(1..3).into(), (2..4).into()]);
        refused(|m| m.interventions = vec![(4..6).into()]);
        refused(|m| m.embodiment.features.clear());
        refused(|m| m.streams[0].schema.encoding = Some(Encoding::Jpeg));
    }

    fn manifest_with_camera() -> Manifest {
        let mut manifest = manifest();
        let camera = Feature::camera("top", 480, 640, 30.0, Encoding::Jpeg);
        let chunks = vec![ChunkRef { id: ChunkId::of(b"c"), bytes: 9, steps: 7 }];
        manifest.streams.push(Stream { name: camera.name.clone(), schema: Schema::stream(&camera), chunks });
        manifest.embodiment.features.push(camera);
        manifest
    }

    #[test]
    fn a_camera_is_a_stream_of_its_own_and_the_id_is_frozen() {
        let bytes = manifest_with_camera().encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest_with_camera());
        assert_eq!(
            EpisodeId::of(&bytes).to_string(),
            "c802e2dab636f24e54a9dadb57032985136232ecf26676fd68f7d315ba927f58"
        );
    }

    #[test]
    fn streams_that_the_embodiment_does_not_promise_are_refused() {
        let refused = |change: fn(&mut Manifest)| {
            let mut changed = manifest_with_camera();
            change(&mut changed);
            assert!(Manifest::decode(&changed.encode()).is_err(), "{changed:?}");
        };
        refused(|m| drop(m.streams.pop()));
        refused(|m| m.streams.swap(0, 1));
        refused(|m| m.streams[1].name = "observation.images.side".into());
        refused(|m| m.streams[1].schema.encoding = Some(Encoding::H264));
        refused(|m| m.streams[1].schema = m.streams[0].schema.clone());
        refused(|m| m.embodiment.features[2].encoding = None);
    }

    #[test]
    fn the_largest_manifest_is_within_its_bound() {
        let mut largest = manifest_with_camera();
        let (largest_ref, most) = (
            ChunkRef { id: ChunkId::of(b"x"), bytes: CHUNK_BYTES_MAX as u32, steps: u32::MAX },
            (u64::MAX - 1..u64::MAX).into(),
        );
        assert!(cbor::encode(&largest_ref).len() <= CHUNK_REF_BYTES_MAX);
        assert!(cbor::encode::<StepRange>(&most).len() <= INTERVENTION_BYTES_MAX);
        let encoded = cbor::encode(&largest.embodiment).len();
        largest.embodiment.features[2].name.push_str(&"x".repeat(EMBODIMENT_BYTES_MAX - encoded - 4));
        largest.streams[1].name.clone_from(&largest.embodiment.features[2].name);
        largest.interventions = (0..INTERVENTIONS_MAX as u64).map(|i| (2 * i..2 * i + 1).into()).collect();
        largest.steps = 1 << 20;
        largest.streams[0].chunks = vec![ChunkRef { steps: 1 << 20, ..largest_ref.clone() }];
        largest.streams[1].chunks = vec![largest_ref.clone(); EPISODE_CHUNKS_MAX - 1];
        let bytes = largest.encode();
        assert!(Manifest::decode(&bytes).is_ok(), "{} bytes", bytes.len());
        largest.streams[1].chunks.push(largest_ref);
        assert!(matches!(Manifest::decode(&largest.encode()), Err(ManifestError::TooMany { .. })));
    }
}
