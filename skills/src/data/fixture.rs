//! Small episodes for tests: a robot with two values of state, a camera-free body and one action.

use std::collections::HashMap;

use zunft_protocol::chunk::{ChunkBuilder, Schema};
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, Stream, WallQuality,
};
use zunft_protocol::ids::{BootId, ChunkId, EpisodeId, RecordingId};
use zunft_protocol::snapshot::{Snapshot, SnapshotEpisode};

use super::{Dataset, DatasetError, EpisodeSource, Selection, SourceError};

/// Episodes in memory.
pub(crate) struct Memory {
    pub(crate) snapshot: Snapshot,
    pub(crate) manifests: HashMap<EpisodeId, Vec<u8>>,
    pub(crate) chunks: HashMap<ChunkId, Vec<u8>>,
}

impl Memory {
    pub(crate) fn of(episodes: Vec<(Manifest, Vec<Vec<u8>>)>) -> Self {
        let mut memory = Self {
            snapshot: Snapshot::new("acme".parse().unwrap(), "test".into(), Vec::new()),
            manifests: HashMap::new(),
            chunks: HashMap::new(),
        };
        for (manifest, chunks) in episodes {
            memory.chunks.extend(chunks.into_iter().map(|bytes| (ChunkId::of(&bytes), bytes)));
            let (id, robot) = (manifest.id(), manifest.robot.clone());
            memory.snapshot.episodes.push(SnapshotEpisode { robot, ordinal: manifest.ordinal, id });
            memory.manifests.insert(id, manifest.encode());
        }
        memory.snapshot.episodes.sort();
        memory
    }

    pub(crate) fn load(&mut self, selection: &Selection) -> Result<Dataset, DatasetError> {
        Dataset::load(self, selection)
    }
}

impl EpisodeSource for Memory {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn manifest(&mut self, id: EpisodeId) -> Result<Vec<u8>, SourceError> {
        let missing = SourceError::Missing { what: "episode", id: id.to_string() };
        self.manifests.get(&id).cloned().ok_or(missing)
    }

    fn chunk(&mut self, id: ChunkId) -> Result<Vec<u8>, SourceError> {
        let missing = SourceError::Missing { what: "chunk", id: id.to_string() };
        self.chunks.get(&id).cloned().ok_or(missing)
    }
}

pub(crate) fn embodiment() -> Embodiment {
    Embodiment {
        name: "arm".into(),
        rate_hz: 10.0,
        features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
    }
}

/// A successful episode of robot `arm-1`; the action of a step is the sum of its state.
pub(crate) fn episode(ordinal: u64, task: &str, states: &[[f32; 2]]) -> (Manifest, Vec<Vec<u8>>) {
    episode_of(embodiment(), ordinal, task, states)
}

/// As [`episode`], two steps a chunk, for a body whose steps begin with two values of state and an action.
pub(crate) fn episode_of(
    embodiment: Embodiment,
    ordinal: u64,
    task: &str,
    states: &[[f32; 2]],
) -> (Manifest, Vec<Vec<u8>>) {
    let schema = Schema::steps(&embodiment);
    let mut builder = ChunkBuilder::new(schema.clone());
    let mut finished = Vec::new();
    for (step, state) in (0_i64..).zip(states) {
        let mut row = step.to_le_bytes().to_vec();
        for value in [state[0], state[1], state[0] + state[1]] {
            row.extend_from_slice(&value.to_le_bytes());
        }
        row.resize(schema.step_bytes(), 0);
        builder.push(&row);
        if builder.steps() == 2 {
            finished.extend(builder.finish());
        }
    }
    finished.extend(builder.finish());
    let chunks = finished
        .iter()
        .map(|(stored, steps)| ChunkRef { id: ChunkId::of(stored), bytes: stored.len() as u32, steps: *steps })
        .collect();
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        tenant: "acme".parse().unwrap(),
        site: "lab".parse().unwrap(),
        robot: "arm-1".parse().unwrap(),
        recording: RecordingId::from_bytes([ordinal as u8; 16]),
        ordinal,
        task: task.parse().unwrap(),
        embodiment,
        actor: Actor::Script,
        outcome: Outcome::Success,
        end: EpisodeEnd::Terminated,
        interventions: Vec::new(),
        steps: states.len() as u64,
        clock: Clock {
            boot: BootId::from_bytes([1; 16]),
            begin_monotonic_ns: 0,
            begin_wall_ns: 0,
            wall_quality: WallQuality::Implausible,
        },
        streams: vec![Stream { name: STEPS_STREAM.to_owned(), schema, chunks }],
    };
    (manifest, finished.into_iter().map(|(stored, _)| stored).collect())
}
