//! A few tiny episodes for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use zunft_protocol::chunk::{ChunkBuilder, Schema};
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, Stream, WallQuality,
};
use zunft_protocol::ids::{BootId, ChunkId, EpisodeId, RecordingId, TenantId};
use zunft_protocol::snapshot::{Snapshot, SnapshotEpisode};
use zunft_skills::data::{EpisodeSource, SourceError};

pub(crate) fn tenant() -> TenantId {
    "default".parse().unwrap()
}

/// A configuration whose runs take a moment.
pub(crate) fn tiny_config(steps: u64) -> zunft_skills::train::TrainConfig {
    let config = format!(
        "steps = {steps}\nbatch_size = 8\nlog_every = 5\ncheckpoint_every = 10\nthreads = 1\n\
         [policy]\ntype = \"mlp\"\nchunk_size = 2\nn_action_steps = 1\nhidden_dims = [8]\n"
    );
    toml::from_str(&config).unwrap()
}

/// One snapshot in memory.
#[derive(Clone)]
pub(crate) struct Memory {
    pub(crate) snapshot: Snapshot,
    blobs: Arc<BTreeMap<[u8; 32], Vec<u8>>>,
}

impl Memory {
    /// A few episodes in which the action is half the state.
    pub(crate) fn new() -> Self {
        let embodiment = Embodiment {
            name: "toy".into(),
            rate_hz: 10.0,
            features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
        };
        let mut blobs = BTreeMap::new();
        let mut episodes = Vec::new();
        for ordinal in 0..4_u64 {
            let schema = Schema::steps(&embodiment);
            let mut builder = ChunkBuilder::new(schema.clone());
            for step in 0..20_u64 {
                let state = [(step as f32 * 0.3 + ordinal as f32).sin(), ordinal as f32 * 0.1];
                let mut row = (step as i64 * 100).to_le_bytes().to_vec();
                for value in [state[0], state[1], state[0] * 0.5, 0.0] {
                    row.extend_from_slice(&value.to_le_bytes());
                }
                builder.push(&row);
            }
            let (stored, steps) = builder.finish().unwrap();
            let chunk = ChunkRef { id: ChunkId::of(&stored), bytes: stored.len() as u32, steps };
            let manifest = Manifest {
                version: MANIFEST_VERSION,
                tenant: tenant(),
                site: "lab".parse().unwrap(),
                robot: "r1".parse().unwrap(),
                recording: RecordingId::from_bytes([ordinal as u8; 16]),
                ordinal,
                task: "halve".parse().unwrap(),
                embodiment: embodiment.clone(),
                actor: Actor::Script,
                outcome: Outcome::Success,
                end: EpisodeEnd::Terminated,
                interventions: Vec::new(),
                steps: steps.into(),
                clock: Clock {
                    boot: BootId::from_bytes([0; 16]),
                    begin_monotonic_ns: 0,
                    begin_wall_ns: 0,
                    wall_quality: WallQuality::Implausible,
                },
                streams: vec![Stream { name: STEPS_STREAM.to_owned(), schema, chunks: vec![chunk.clone()] }],
            };
            let bytes = manifest.encode();
            let id = EpisodeId::of(&bytes);
            episodes.push(SnapshotEpisode { robot: manifest.robot.clone(), ordinal, id });
            blobs.insert(*id.as_bytes(), bytes);
            blobs.insert(*chunk.id.as_bytes(), stored);
        }
        let snapshot = Snapshot::new(tenant(), "{}".into(), episodes);
        Self { snapshot, blobs: Arc::new(blobs) }
    }
}

impl EpisodeSource for Memory {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn manifest(&mut self, id: EpisodeId) -> Result<Vec<u8>, SourceError> {
        Ok(self.blobs[id.as_bytes()].clone())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<Vec<u8>, SourceError> {
        Ok(self.blobs[id.as_bytes()].clone())
    }
}
