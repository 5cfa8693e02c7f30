//! Releases made for tests: small real packages, really signed, and a hub that holds their blobs in memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use zunft_protocol::dsse::SigningKey;
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::ids::{Digest, ReleaseId, SkillVersion};
use zunft_protocol::release::{AssignedRelease, Assignment, Lineage, Publisher, Root};
use zunft_skills::normalizer::Stats;
use zunft_skills::package::{self, MANIFEST_FILE, ReleaseInfo, Skill};
use zunft_skills::policy::PolicyConfig;
use zunft_skills::policy::mlp::MlpConfig;
use zunft_skills::signing::sign_package;
use zunft_skills::weights::{WeightDtype, Weights};

use super::fetch::{Download, Fetch, FetchError};

/// Tests live long before this.
pub(crate) const EXPIRES: u64 = 4_000_000_000;

pub(crate) fn embodiment() -> Embodiment {
    Embodiment {
        name: "cell".into(),
        rate_hz: 20.0,
        features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
    }
}

/// A tenant with its keys and the blobs of its hub.
pub(crate) struct Made {
    root_key: SigningKey,
    publisher: SigningKey,
    pub(crate) assigner: SigningKey,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
}

impl Made {
    pub(crate) fn new() -> Self {
        let key = |seed| SigningKey::from_seed(&[seed; 32]);
        Self { root_key: key(1), publisher: key(2), assigner: key(3), blobs: BTreeMap::new() }
    }

    /// The tenant's root, as a file's bytes.
    pub(crate) fn root(&self, version: u32) -> Vec<u8> {
        let root = Root {
            tenant: "acme".parse().unwrap(),
            version,
            expires_unix_secs: EXPIRES,
            root_keys: vec![self.root_key.public()],
            root_threshold: 1,
            publishers: vec![Publisher { key: self.publisher.public(), skills: Vec::new() }],
            assigners: vec![self.assigner.public()],
        };
        root.sign(&[&self.root_key]).to_json()
    }

    /// Publishes `push@version`, whose action is `bias` whatever it sees, in chunks of two.
    pub(crate) fn publish(&mut self, version: u32, bias: f32) -> AssignedRelease {
        self.publish_for(version, bias, embodiment())
    }

    pub(crate) fn publish_for(&mut self, version: u32, bias: f32, embodiment: Embodiment) -> AssignedRelease {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("package");
        let release = ReleaseId { skill: "push".parse().unwrap(), version: SkillVersion(version) };
        let observations: usize = embodiment.observations().map(Feature::values).sum();
        let mut weights = Weights::new();
        weights.insert("model.hidden.0.weight", &[4, observations + 1], vec![0.0; 4 * (observations + 1)]);
        weights.insert("model.hidden.0.bias", &[4], vec![0.0; 4]);
        weights.insert("model.head.weight", &[2, 4], vec![0.25; 8]);
        weights.insert("model.head.bias", &[2], vec![bias, bias + 1.0]);
        let stats = |dimensions: usize| Stats {
            mean: vec![0.0; dimensions],
            std: vec![1.0; dimensions],
            min: vec![-1.0; dimensions],
            max: vec![1.0; dimensions],
            count: 10,
        };
        let config = MlpConfig { chunk_size: 2, n_action_steps: 2, hidden_dims: vec![4], ..MlpConfig::default() };
        let skill = Skill {
            policy: PolicyConfig::Mlp(config),
            tasks: vec!["push".parse().unwrap()],
            weights,
            observation_stats: stats(observations),
            action_stats: stats(1),
            golden_inputs: vec![(0, vec![0.5; observations])],
            embodiment,
        };
        let lineage = Lineage {
            snapshot: None,
            config: serde_json::json!({}),
            seed: 0,
            code_version: "test".into(),
            metrics: BTreeMap::new(),
            train_secs: 0.0,
        };
        let info = ReleaseInfo {
            tenant: "acme".parse().unwrap(),
            release: release.clone(),
            dtype: WeightDtype::F32,
            lineage,
            licence: "MIT".into(),
        };
        package::write(&path, &skill, &info).unwrap();
        let envelope = sign_package(&path, &self.publisher).unwrap();
        self.keep_all(&path);
        AssignedRelease { release, envelope: Digest::of(&envelope) }
    }

    /// Publishes a package with one file changed after its golden vectors were made: signed as it is.
    pub(crate) fn publish_spoiled(
        &mut self,
        version: u32,
        file: &str,
        spoil: impl Fn(&mut Vec<u8>),
    ) -> AssignedRelease {
        use zunft_protocol::dsse::Envelope;
        use zunft_protocol::release::{RELEASE_TYPE, verify_release};
        let good = self.publish(version, 0.5);
        let root: zunft_protocol::release::Trust = zunft_protocol::release::Trust::pin(
            &zunft_protocol::release::parse_envelope("root", &self.root(1)).unwrap(),
            "r1".parse().unwrap(),
            0,
        )
        .unwrap();
        let mut manifest = verify_release(&self.blobs[&good.envelope], root.root()).unwrap();
        let listed = manifest.files.iter_mut().find(|listed| listed.name == file).unwrap();
        let mut bytes = self.blobs[&listed.digest].clone();
        spoil(&mut bytes);
        listed.digest = Digest::of(&bytes);
        listed.bytes = bytes.len() as u64;
        self.keep(bytes);
        let envelope = Envelope::sign(RELEASE_TYPE, &manifest.encode(), &[&self.publisher]).to_json();
        AssignedRelease { release: good.release, envelope: self.keep(envelope) }
    }

    fn keep_all(&mut self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() != MANIFEST_FILE {
                self.keep(fs::read(path).unwrap());
            }
        }
    }

    fn keep(&mut self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.blobs.insert(digest, bytes);
        digest
    }

    /// Assigns exactly these releases to robot r1.
    pub(crate) fn assign(&self, sequence: u64, releases: &[&AssignedRelease]) -> Vec<u8> {
        let assignment = Assignment {
            tenant: "acme".parse().unwrap(),
            robot: "r1".parse().unwrap(),
            sequence,
            root_version: 1,
            issued_unix_secs: 1,
            expires_unix_secs: EXPIRES,
            releases: releases.iter().map(|&release| release.clone()).collect(),
            floors: Vec::new(),
        };
        assignment.sign(&self.assigner).to_json()
    }

    /// A way to fetch what was published so far.
    pub(crate) fn fetch(&self) -> MemoryFetch {
        MemoryFetch { blobs: self.blobs.clone(), bytes_left: usize::MAX, bytes_sent: 0 }
    }
}

/// A hub in memory whose connection breaks after so many bytes.
pub(crate) struct MemoryFetch {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) bytes_left: usize,
    pub(crate) bytes_sent: usize,
}

impl Fetch for MemoryFetch {
    fn open(&mut self, digest: Digest, offset: u64) -> Result<Download, FetchError> {
        let blob = self.blobs.get(&digest).ok_or(FetchError::Missing { digest })?;
        let rest = &blob[offset as usize..];
        let sent = rest.len().min(self.bytes_left);
        self.bytes_left -= sent;
        self.bytes_sent += sent;
        let mut parts: Vec<Result<Vec<u8>, FetchError>> =
            rest[..sent].chunks(100).map(|part| Ok(part.to_vec())).collect();
        if sent < rest.len() {
            parts.push(Err(FetchError::Broken { digest, reason: "cut".into() }));
        }
        Ok(Download { bytes_total: blob.len() as u64, parts: Box::new(parts.into_iter()) })
    }
}
