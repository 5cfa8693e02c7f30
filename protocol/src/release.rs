//! The three signed objects: who may publish, what a release is, which robot runs it.
//!
//! A [`Root`] names the keys of a tenant; a [`ReleaseManifest`] is signed by a publisher; an [`Assignment`]
//! is signed by the hub for one robot. [`Trust`] decides what a robot accepts. It performs no I/O and is
//! given the time, since robots boot in 1970.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dsse::{Envelope, EnvelopeError, PublicKey, SigningKey};
use crate::embodiment::{Embodiment, EmbodimentError};
use crate::ids::{Digest, EmbodimentId, ReleaseId, RobotId, SkillName, SkillVersion, SnapshotId, TaskName, TenantId};
use crate::limits::{
    ASSIGNED_RELEASES_MAX, ENVELOPE_BYTES_MAX, RELEASE_FILE_BYTES_MAX, RELEASE_FILES_MAX, RELEASE_MANIFEST_BYTES_MAX,
};

/// Envelope type of a [`Root`].
pub const ROOT_TYPE: &str = "application/vnd.zunft.root.v1+json";
/// Envelope type of a [`ReleaseManifest`].
pub const RELEASE_TYPE: &str = "application/vnd.zunft.release.v1+json";
/// Envelope type of an [`Assignment`].
pub const ASSIGNMENT_TYPE: &str = "application/vnd.zunft.assignment.v1+json";

/// A publisher's key and what it may publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publisher {
    /// Its key.
    pub key: PublicKey,
    /// The skills it may publish; empty for all.
    pub skills: Vec<SkillName>,
}

/// Which keys a tenant trusts for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Whose.
    pub tenant: TenantId,
    /// 1, 2, 3, …: version n+1 must be signed by the root keys of n and by its own.
    pub version: u32,
    /// Unix time after which a robot warns; it keeps working.
    pub expires_unix_secs: u64,
    /// Keys that sign roots.
    pub root_keys: Vec<PublicKey>,
    /// How many of them are needed.
    pub root_threshold: u32,
    /// Keys that sign releases.
    pub publishers: Vec<Publisher>,
    /// Keys that sign assignments and receipts.
    pub assigners: Vec<PublicKey>,
}

impl Root {
    /// Signs the root.
    pub fn sign(&self, keys: &[&SigningKey]) -> Envelope {
        Envelope::sign(ROOT_TYPE, &json(self), keys)
    }
}

/// One file of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseFile {
    /// A plain file name: releases have no folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its content.
    pub digest: Digest,
}

/// Where a release comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// What it was trained on.
    pub snapshot: Option<SnapshotId>,
    /// The training configuration, as it was run.
    pub config: serde_json::Value,
    /// Seed of the run.
    pub seed: u64,
    /// Version of the program that trained it.
    pub code_version: String,
    /// Measured numbers, for example `train_loss`, `success.push`.
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// Wall time of the training.
    pub train_secs: f64,
}

/// What a release is: the bytes that a publisher signs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseManifest {
    /// Whose.
    pub tenant: TenantId,
    /// Its name and version.
    pub release: ReleaseId,
    /// Kind of policy, for example `mlp`.
    pub policy: String,
    /// What the weights are stored as, for example `bf16`.
    pub dtype: String,
    /// The body that it fits.
    pub embodiment: Embodiment,
    /// The tasks that it knows, in the order of its one-hot code.
    pub tasks: Vec<TaskName>,
    /// Everything that belongs to it, apart from this manifest.
    pub files: Vec<ReleaseFile>,
    /// Where it comes from.
    pub lineage: Lineage,
    /// SPDX expression of its licence.
    pub licence: String,
}

/// Why a manifest is not of a release.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseManifestError {
    /// Over the bound.
    #[error("release manifest has {bytes} bytes; at most {RELEASE_MANIFEST_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not the right JSON.
    #[error("release manifest cannot be read: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// The body is impossible.
    #[error("release manifest has an impossible embodiment")]
    Embodiment(#[from] EmbodimentError),
    /// No tasks, or one twice.
    #[error("release {release} must name its tasks, each once")]
    Tasks {
        /// Which release.
        release: ReleaseId,
    },
    /// A file that could leave the folder, is too large, or is listed twice.
    #[error(
        "release {release} lists file {name:?} ({bytes} bytes): names are plain and unique, sizes at most {RELEASE_FILE_BYTES_MAX}"
    )]
    File {
        /// Which release.
        release: ReleaseId,
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
    },
    /// No files or too many.
    #[error("release {release} lists {count} files; between 1 and {RELEASE_FILES_MAX} are needed")]
    FileCount {
        /// Which release.
        release: ReleaseId,
        /// How many.
        count: usize,
    },
}

impl ReleaseManifest {
    /// The bytes to sign.
    pub fn encode(&self) -> Vec<u8> {
        json(self)
    }

    /// Reads and checks a manifest.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReleaseManifestError> {
        if bytes.len() > RELEASE_MANIFEST_BYTES_MAX {
            return Err(ReleaseManifestError::TooLarge { bytes: bytes.len() });
        }
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| ReleaseManifestError::Malformed { reason: error.to_string() })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks everything that an installer relies on.
    pub fn check(&self) -> Result<(), ReleaseManifestError> {
        self.embodiment.check()?;
        let release = || self.release.clone();
        let repeated = self.tasks.iter().enumerate().any(|(i, task)| self.tasks[..i].contains(task));
        if self.tasks.is_empty() || repeated {
            return Err(ReleaseManifestError::Tasks { release: release() });
        }
        let count = self.files.len();
        if count == 0 || count > RELEASE_FILES_MAX {
            return Err(ReleaseManifestError::FileCount { release: release(), count });
        }
        for (i, file) in self.files.iter().enumerate() {
            let repeated = self.files[..i].iter().any(|other| other.name == file.name);
            if repeated || !plain_file_name(&file.name) || file.bytes > RELEASE_FILE_BYTES_MAX {
                return Err(ReleaseManifestError::File {
                    release: release(),
                    name: file.name.clone(),
                    bytes: file.bytes,
                });
            }
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Letters, digits, '.', '_' and '-', not hidden: nothing that leaves a folder on any system.
fn plain_file_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// One release of an assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedRelease {
    /// Which.
    pub release: ReleaseId,
    /// Digest of its signed envelope, by which it is fetched.
    pub envelope: Digest,
}

/// The least version of a skill that may still be assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionFloor {
    /// The skill.
    pub skill: SkillName,
    /// Its least version.
    pub version: SkillVersion,
}

/// The complete set of releases that one robot shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Whose robot.
    pub tenant: TenantId,
    /// Which robot.
    pub robot: RobotId,
    /// Increases with every assignment to this robot: an older one is never accepted again.
    pub sequence: u64,
    /// Version of the root that the hub acted under.
    pub root_version: u32,
    /// The hub's time when it signed.
    pub issued_unix_secs: u64,
    /// When the robot should worry that it hears nothing; it keeps running what it has.
    pub expires_unix_secs: u64,
    /// At most one release a skill.
    pub releases: Vec<AssignedRelease>,
    /// Least versions.
    pub floors: Vec<VersionFloor>,
}

impl Assignment {
    /// Signs the assignment.
    pub fn sign(&self, key: &SigningKey) -> Envelope {
        Envelope::sign(ASSIGNMENT_TYPE, &json(self), &[key])
    }
}

/// Why a robot does not accept a signed object.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The envelope or its signatures.
    #[error("signature of the {what} is not trusted")]
    Envelope {
        /// Which object.
        what: &'static str,
        /// Why.
        #[source]
        source: EnvelopeError,
    },
    /// The payload is not the object.
    #[error("{what} cannot be read: {reason}")]
    Malformed {
        /// Which object.
        what: &'static str,
        /// What the parser found.
        reason: String,
    },
    /// The release's manifest is impossible.
    #[error("release manifest is not acceptable")]
    Manifest(#[from] ReleaseManifestError),
    /// Another tenant's object.
    #[error("{what} is of tenant {found}; this robot belongs to {expected}")]
    Tenant {
        /// Which object.
        what: &'static str,
        /// Its tenant.
        found: TenantId,
        /// Ours.
        expected: TenantId,
    },
    /// Another robot's assignment.
    #[error("assignment is for robot {found}; this is {expected}")]
    Robot {
        /// Whose it is.
        found: RobotId,
        /// Who we are.
        expected: RobotId,
    },
    /// An assignment that was accepted before, or an older one.
    #[error("assignment has sequence {found}; {accepted} was accepted already")]
    Replayed {
        /// Its sequence.
        found: u64,
        /// The last one accepted.
        accepted: u64,
    },
    /// It had expired when it arrived.
    #[error(
        "assignment expired at {expires_unix_secs} (now {now_unix_secs}, Unix seconds); ask the hub for a fresh one and check both clocks"
    )]
    Expired {
        /// When.
        expires_unix_secs: u64,
        /// Our time.
        now_unix_secs: u64,
    },
    /// A root that does not follow the present one.
    #[error("root has version {found}; {expected} is the next one acceptable")]
    RootVersion {
        /// Its version.
        found: u32,
        /// The next.
        expected: u32,
    },
    /// Contradictions inside.
    #[error("{what} contradicts itself: {reason}")]
    Inconsistent {
        /// Which object.
        what: &'static str,
        /// How.
        reason: &'static str,
    },
    /// A release below the floor.
    #[error("release {release} is below the least allowed version {floor}")]
    BelowFloor {
        /// Which release.
        release: ReleaseId,
        /// The floor.
        floor: SkillVersion,
    },
    /// A release that was not assigned, or other bytes of it.
    #[error("release {release} is not assigned to this robot with these bytes")]
    NotAssigned {
        /// Which release.
        release: ReleaseId,
    },
    /// Made for another body.
    #[error(transparent)]
    WrongEmbodiment(Box<WrongEmbodiment>),
}

/// A release made for another body.
#[derive(Debug, thiserror::Error)]
#[error("release {release} needs embodiment {needed} ({needed_id}); this robot is {found} ({found_id})")]
pub struct WrongEmbodiment {
    /// Which release.
    pub release: ReleaseId,
    /// The name it needs.
    pub needed: String,
    /// The id it needs.
    pub needed_id: EmbodimentId,
    /// Our name.
    pub found: String,
    /// Our id.
    pub found_id: EmbodimentId,
}

/// What a robot trusts: its tenant's root, who it is, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    root: Root,
    robot: RobotId,
    accepted_sequence: u64,
}

impl Trust {
    /// Pins `root` as received over an authenticated channel at enrolment, for `robot`, which has accepted
    /// assignments up to `accepted_sequence` (0 for none).
    ///
    /// The root must carry its own threshold of signatures.
    pub fn pin(root: &Envelope, robot: RobotId, accepted_sequence: u64) -> Result<Self, TrustError> {
        let unverified: Root = peek(root, "root")?;
        let root = verify_root(root, &unverified)?;
        Ok(Self { root, robot, accepted_sequence })
    }

    /// The root in force.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The last assignment accepted.
    pub fn accepted_sequence(&self) -> u64 {
        self.accepted_sequence
    }

    /// Moves to the next root, which the present one's keys and its own must have signed.
    pub fn advance_root(&mut self, envelope: &Envelope) -> Result<(), TrustError> {
        let next = verify_root(envelope, &self.root)?;
        self.same_tenant("root", &next.tenant)?;
        // Nothing follows the last version that there is: neither a panic nor a way back to 0.
        let expected = self.root.version.saturating_add(1);
        if next.version != expected || next.version == self.root.version {
            return Err(TrustError::RootVersion { found: next.version, expected });
        }
        self.root = verify_root(envelope, &next)?;
        Ok(())
    }

    /// Accepts an assignment for this robot, newer than any before it.
    ///
    /// The caller stores the sequence before it acts on the assignment.
    pub fn accept_assignment(&mut self, envelope: &Envelope, now_unix_secs: u64) -> Result<Assignment, TrustError> {
        let assignment = self.read_assignment(envelope)?;
        if assignment.sequence <= self.accepted_sequence {
            return Err(TrustError::Replayed { found: assignment.sequence, accepted: self.accepted_sequence });
        }
        if assignment.expires_unix_secs <= now_unix_secs {
            return Err(TrustError::Expired { expires_unix_secs: assignment.expires_unix_secs, now_unix_secs });
        }
        self.accepted_sequence = assignment.sequence;
        Ok(assignment)
    }

    /// Reads back an assignment that was accepted before: expired or not, it says what may run.
    pub fn reread_assignment(&self, envelope: &Envelope) -> Result<Assignment, TrustError> {
        self.read_assignment(envelope)
    }

    fn read_assignment(&self, envelope: &Envelope) -> Result<Assignment, TrustError> {
        let what = "assignment";
        let assignment: Assignment = open(envelope, what, ASSIGNMENT_TYPE, &self.root.assigners, 1)?;
        self.same_tenant(what, &assignment.tenant)?;
        if assignment.robot != self.robot {
            return Err(TrustError::Robot { found: assignment.robot, expected: self.robot.clone() });
        }
        if assignment.releases.len() > ASSIGNED_RELEASES_MAX || assignment.floors.len() > ASSIGNED_RELEASES_MAX {
            return Err(TrustError::Inconsistent { what, reason: "it lists too many releases" });
        }
        for (i, assigned) in assignment.releases.iter().enumerate() {
            if assignment.releases[..i].iter().any(|other| other.release.skill == assigned.release.skill) {
                return Err(TrustError::Inconsistent { what, reason: "it assigns one skill twice" });
            }
            let floor = assignment.floors.iter().find(|floor| floor.skill == assigned.release.skill);
            if let Some(floor) = floor.filter(|floor| assigned.release.version < floor.version) {
                return Err(TrustError::BelowFloor { release: assigned.release.clone(), floor: floor.version });
            }
        }
        Ok(assignment)
    }

    /// Accepts a release: published by an allowed key, assigned to this robot, made for its body.
    ///
    /// `envelope` is the bytes as fetched. Returns the manifest; the caller checks the files against it.
    pub fn accept_release(
        &self,
        envelope: &[u8],
        assignment: &Assignment,
        embodiment: &Embodiment,
    ) -> Result<ReleaseManifest, TrustError> {
        let manifest = verify_release(envelope, &self.root)?;
        let digest = Digest::of(envelope);
        let assigned = assignment
            .releases
            .iter()
            .any(|assigned| assigned.release == manifest.release && assigned.envelope == digest);
        if !assigned {
            return Err(TrustError::NotAssigned { release: manifest.release });
        }
        let (needed_id, found_id) = (manifest.embodiment.id(), embodiment.id());
        if needed_id != found_id {
            return Err(TrustError::WrongEmbodiment(Box::new(WrongEmbodiment {
                release: manifest.release,
                needed: manifest.embodiment.name,
                needed_id,
                found: embodiment.name.clone(),
                found_id,
            })));
        }
        Ok(manifest)
    }

    fn same_tenant(&self, what: &'static str, found: &TenantId) -> Result<(), TrustError> {
        if *found != self.root.tenant {
            return Err(TrustError::Tenant { what, found: found.clone(), expected: self.root.tenant.clone() });
        }
        Ok(())
    }
}

/// Reads a release's envelope and checks that `root` lets its signer publish the skill.
pub fn verify_release(envelope: &[u8], root: &Root) -> Result<ReleaseManifest, TrustError> {
    let what = "release";
    let envelope = Envelope::parse(envelope, RELEASE_MANIFEST_BYTES_MAX * 2)
        .map_err(|source| TrustError::Envelope { what, source })?;
    let all: Vec<PublicKey> = root.publishers.iter().map(|publisher| publisher.key).collect();
    let payload = envelope.verify(RELEASE_TYPE, &all, 1).map_err(|source| TrustError::Envelope { what, source })?;
    let manifest = ReleaseManifest::decode(&payload)?;
    let allowed: Vec<PublicKey> = root
        .publishers
        .iter()
        .filter(|publisher| publisher.skills.is_empty() || publisher.skills.contains(&manifest.release.skill))
        .map(|publisher| publisher.key)
        .collect();
    envelope.verify(RELEASE_TYPE, &allowed, 1).map_err(|source| TrustError::Envelope { what, source })?;
    if manifest.tenant != root.tenant {
        return Err(TrustError::Tenant { what, found: manifest.tenant, expected: root.tenant.clone() });
    }
    Ok(manifest)
}

/// Reads an envelope file of a root or an assignment.
pub fn parse_envelope(what: &'static str, bytes: &[u8]) -> Result<Envelope, TrustError> {
    Envelope::parse(bytes, ENVELOPE_BYTES_MAX).map_err(|source| TrustError::Envelope { what, source })
}

fn verify_root(envelope: &Envelope, signers: &Root) -> Result<Root, TrustError> {
    let root: Root = open(envelope, "root", ROOT_TYPE, &signers.root_keys, signers.root_threshold as usize)?;
    let enough = root.root_threshold >= 1 && root.root_threshold as usize <= root.root_keys.len();
    if !enough || root.assigners.is_empty() {
        return Err(TrustError::Inconsistent {
            what: "root",
            reason: "it needs an assigner and at least as many root keys as its threshold",
        });
    }
    Ok(root)
}

fn open<T: DeserializeOwned>(
    envelope: &Envelope,
    what: &'static str,
    payload_type: &str,
    allowed: &[PublicKey],
    threshold: usize,
) -> Result<T, TrustError> {
    let payload =
        envelope.verify(payload_type, allowed, threshold).map_err(|source| TrustError::Envelope { what, source })?;
    serde_json::from_slice(&payload).map_err(|error| TrustError::Malformed { what, reason: error.to_string() })
}

/// Reads a payload that nothing vouches for yet, to learn which keys should.
fn peek<T: DeserializeOwned>(envelope: &Envelope, what: &'static str) -> Result<T, TrustError> {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD
        .decode(&envelope.payload)
        .map_err(|error| TrustError::Malformed { what, reason: error.to_string() })?;
    serde_json::from_slice(&payload).map_err(|error| TrustError::Malformed { what, reason: error.to_string() })
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("signed objects have string keys and finite numbers")
}

#[cfg(test)]
mod tests;
