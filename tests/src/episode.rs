//! Episodes as a robot would upload them, made without an agent.

use zunft_hub::identity::RobotIdentity;
use zunft_protocol::chunk::ChunkBuilder;
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, Stream, WallQuality,
};
use zunft_protocol::ids::{BootId, ChunkId, Digest, RecordingId};
use zunft_protocol::message::ChunkBytes;
use zunft_protocol::{Embodiment as Body, Schema};

/// A manifest and the chunks that it lists.
#[derive(Debug, Clone)]
pub struct Episode {
    /// What is offered.
    pub manifest: Manifest,
    /// Stored bytes, in the manifest's order.
    pub chunks: Vec<ChunkBytes>,
}

/// Steps of one chunk.
const CHUNK_STEPS: u64 = 5;

/// The body that made the episodes.
pub fn body() -> Body {
    Embodiment {
        name: "arm".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
    }
}

impl Episode {
    /// The robot's recording number `ordinal`: chunks of five steps whose numbers no other recording has.
    pub fn new(identity: &RobotIdentity, ordinal: u64, chunks: usize) -> Self {
        let schema = Schema::steps(&body());
        let seed = *Digest::of(format!("{identity}/{ordinal}").as_bytes()).as_bytes();
        let mut stored_chunks = Vec::new();
        for number in 0..chunks as u64 {
            let mut builder = ChunkBuilder::new(schema.clone());
            for step in number * CHUNK_STEPS..(number + 1) * CHUNK_STEPS {
                let mut row = step.to_le_bytes().to_vec();
                for value in &seed[..4] {
                    row.extend_from_slice(&(f32::from(*value) + step as f32).to_le_bytes());
                }
                builder.push(&row);
            }
            let (bytes, _) = builder.finish().expect("steps were pushed");
            stored_chunks.push(ChunkBytes { id: ChunkId::of(&bytes), bytes });
        }
        let mut recording = [0; 16];
        recording.copy_from_slice(&seed[16..]);
        let listed = stored_chunks.iter();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            tenant: identity.tenant.clone(),
            site: identity.site.clone(),
            robot: identity.robot.clone(),
            recording: RecordingId::from_bytes(recording),
            ordinal,
            task: "push".parse().expect("push is a task's name"),
            embodiment: body(),
            actor: Actor::Script,
            outcome: Outcome::Success,
            end: EpisodeEnd::Terminated,
            interventions: Vec::new(),
            steps: chunks as u64 * CHUNK_STEPS,
            clock: Clock {
                boot: BootId::from_bytes([2; 16]),
                begin_monotonic_ns: 7,
                begin_wall_ns: 1_700_000_000_000_000_000,
                wall_quality: WallQuality::Unsynchronised,
            },
            streams: vec![Stream {
                name: STEPS_STREAM.into(),
                schema,
                chunks: listed
                    .map(|chunk| ChunkRef { id: chunk.id, bytes: chunk.bytes.len() as u32, steps: CHUNK_STEPS as u32 })
                    .collect(),
            }],
        };
        Self { manifest, chunks: stored_chunks }
    }
}
