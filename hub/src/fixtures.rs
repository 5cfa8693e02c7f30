//! Episodes, packages and a hub in a temporary directory, for the tests of several modules.

pub(crate) mod servers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zunft_protocol::Schema;
use zunft_protocol::chunk::ChunkBuilder;
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, Stream, WallQuality,
};
use zunft_protocol::ids::{BootId, ChunkId, RecordingId, TenantId};
use zunft_protocol::message::ChunkBytes;
use zunft_protocol::release::Lineage;
use zunft_skills::normalizer::Stats;
use zunft_skills::package::{self, ReleaseInfo, Skill};
use zunft_skills::policy::PolicyConfig;
use zunft_skills::policy::mlp::MlpConfig;
use zunft_skills::weights::{WeightDtype, Weights};

use crate::config::HubConfig;
use crate::identity::RobotIdentity;

/// An episode as a robot would upload it.
#[derive(Debug, Clone)]
pub(crate) struct Episode {
    pub(crate) manifest: Manifest,
    pub(crate) chunks: Vec<Vec<u8>>,
}

impl Episode {
    pub(crate) fn chunk(&self, index: usize) -> ChunkBytes {
        ChunkBytes { id: ChunkId::of(&self.chunks[index]), bytes: self.chunks[index].clone() }
    }

    pub(crate) fn chunk_bytes(&self) -> Vec<ChunkBytes> {
        (0..self.chunks.len()).map(|index| self.chunk(index)).collect()
    }
}

pub(crate) fn tenant() -> TenantId {
    "default".parse().unwrap()
}

pub(crate) fn identity(robot: &str) -> RobotIdentity {
    RobotIdentity { tenant: tenant(), site: "bonn".parse().unwrap(), robot: robot.parse().unwrap() }
}

pub(crate) fn body() -> Embodiment {
    Embodiment {
        name: "arm".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
    }
}

/// A recording of 10 steps in two chunks, whose numbers depend on robot and ordinal.
pub(crate) fn episode(robot: &str, ordinal: u64) -> Episode {
    let identity = identity(robot);
    let schema = Schema::steps(&body());
    let seed = *blake3::hash(format!("{robot}/{ordinal}").as_bytes()).as_bytes();
    let mut chunks = Vec::new();
    let mut refs = Vec::new();
    for half in 0..2_u8 {
        let mut builder = ChunkBuilder::new(schema.clone());
        for step in 0..5_u8 {
            let mut row = i64::from(half * 5 + step).to_le_bytes().to_vec();
            for value in &seed[..4] {
                row.extend_from_slice(&(f32::from(*value) + f32::from(step)).to_le_bytes());
            }
            builder.push(&row);
        }
        let (stored, steps) = builder.finish().unwrap();
        refs.push(ChunkRef { id: ChunkId::of(&stored), bytes: stored.len() as u32, steps });
        chunks.push(stored);
    }
    let mut recording = [0; 16];
    recording.copy_from_slice(&seed[16..]);
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        tenant: identity.tenant,
        site: identity.site,
        robot: identity.robot,
        recording: RecordingId::from_bytes(recording),
        ordinal,
        task: "push".parse().unwrap(),
        embodiment: body(),
        actor: Actor::Script,
        outcome: Outcome::Success,
        end: EpisodeEnd::Terminated,
        interventions: Vec::new(),
        steps: 10,
        clock: Clock {
            boot: BootId::from_bytes([2; 16]),
            begin_monotonic_ns: 7,
            begin_wall_ns: 1_700_000_000_000_000_000,
            wall_quality: WallQuality::Unsynchronised,
        },
        streams: vec![Stream { name: STEPS_STREAM.into(), schema, chunks: refs }],
    };
    Episode { manifest, chunks }
}

/// A hub on loopback that keeps everything in `folder`.
pub(crate) fn config(folder: &Path) -> HubConfig {
    let mut config = HubConfig { data_dir: folder.join("hub"), ..HubConfig::default() };
    config.quic.listen = "127.0.0.1:0".parse().unwrap();
    config.store.commit_interval_millis = 2;
    config
}

/// Writes a small skill package, `push@version`.
pub(crate) fn write_package(folder: &Path, version: u32) -> PathBuf {
    let mut weights = Weights::new();
    weights.insert("model.hidden.0.weight", &[2, 3], vec![0.5, -0.5, 1.0, 0.25, 0.5, -1.0]);
    weights.insert("model.hidden.0.bias", &[2], vec![0.5, 0.25 * version as f32]);
    weights.insert("model.head.weight", &[1, 2], vec![1.0, -0.5]);
    weights.insert("model.head.bias", &[1], vec![0.125]);
    let skill = Skill {
        policy: PolicyConfig::Mlp(MlpConfig { hidden_dims: vec![2], ..MlpConfig::default() }),
        embodiment: body(),
        tasks: vec!["push".parse().unwrap()],
        weights,
        observation_stats: Stats::of(&[0.0, 1.0, 5.0, 2.0], 2).unwrap(),
        action_stats: Stats::of(&[-0.5, 0.5], 1).unwrap(),
        golden_inputs: vec![(0, vec![0.5, 1.5])],
    };
    let info = ReleaseInfo {
        tenant: tenant(),
        release: format!("push@{version}").parse().unwrap(),
        dtype: WeightDtype::Bf16,
        lineage: Lineage {
            snapshot: None,
            config: serde_json::Value::Null,
            seed: 0,
            code_version: "0".into(),
            metrics: BTreeMap::new(),
            train_secs: 0.0,
        },
        licence: "MIT".into(),
    };
    let path = folder.join(format!("push-{version}"));
    package::write(&path, &skill, &info).unwrap();
    path
}
