//! The skill package: a folder that holds everything of one release.
//!
//! ```text
//! config.json                   kind of policy, hyper-parameters, features, tasks   (as LeRobot writes it)
//! model.safetensors             weights, bf16 for our releases
//! policy_preprocessor.json      how observations are normalised                     (as LeRobot writes it)
//! policy_preprocessor_step_3_normalizer_processor.safetensors       their statistics, f32
//! policy_postprocessor.json     how actions are un-normalised                       (as LeRobot writes it)
//! policy_postprocessor_step_0_unnormalizer_processor.safetensors    their statistics, f32
//! golden.safetensors            inputs, and what the released weights answer to them
//! manifest.json                 the exact bytes that a publisher signs
//! release.dsse.json             those bytes signed; absent until then
//! ```
//!
//! Writing is atomic, and reading trusts nothing: every file must have the size and digest that the
//! manifest says, and no other file may be there. It does not know who may sign; that is `zunft-protocol`.

mod files;
mod golden;
mod lerobot;

use std::io;
use std::path::{Path, PathBuf};

use zunft_protocol::embodiment::{Dtype, Embodiment, EmbodimentError, Feature};
use zunft_protocol::ids::{Digest, ReleaseId, TaskName, TenantId};
use zunft_protocol::release::{Lineage, ReleaseFile, ReleaseManifest, ReleaseManifestError};

use crate::normalizer::{Normalizer, Stats, StatsError};
use crate::policy::{PolicyConfig, PolicyConfigError, PolicyShape};
use crate::runtime::{ActError, LoadError, SkillRuntime};
use crate::weights::{WeightDtype, Weights, WeightsError};

pub(crate) use files::{sync_folder, write_synced};
pub use golden::{GOLDEN_TOLERANCE, Golden, GoldenError};

/// Kind of policy, hyper-parameters, features and tasks.
pub const CONFIG_FILE: &str = "config.json";
/// The weights.
pub const MODEL_FILE: &str = "model.safetensors";
/// How observations are normalised.
pub const PREPROCESSOR_FILE: &str = "policy_preprocessor.json";
/// Statistics of the observations.
pub const PREPROCESSOR_STATS_FILE: &str = "policy_preprocessor_step_3_normalizer_processor.safetensors";
/// How actions are un-normalised.
pub const POSTPROCESSOR_FILE: &str = "policy_postprocessor.json";
/// Statistics of the actions.
pub const POSTPROCESSOR_STATS_FILE: &str = "policy_postprocessor_step_0_unnormalizer_processor.safetensors";
/// Inputs and the answers to them.
pub const GOLDEN_FILE: &str = "golden.safetensors";
/// The bytes that a publisher signs.
pub const MANIFEST_FILE: &str = "manifest.json";
/// The signed manifest. It is the one file that the manifest does not list, and it may be absent.
pub const ENVELOPE_FILE: &str = "release.dsse.json";

/// Everything that training makes of a skill, before it has a name and a version.
#[derive(Debug, Clone, PartialEq)]
pub struct Skill {
    /// Kind of policy and hyper-parameters.
    pub policy: PolicyConfig,
    /// The body that it fits.
    pub embodiment: Embodiment,
    /// The tasks that it knows, in the order of the one-hot code.
    pub tasks: Vec<TaskName>,
    /// Parameters as trained.
    pub weights: Weights,
    /// Statistics of the flattened observation.
    pub observation_stats: Stats,
    /// Statistics of the action.
    pub action_stats: Stats,
    /// A few real inputs, a task (by index) with an observation each: the golden vectors' questions.
    pub golden_inputs: Vec<(usize, Vec<f32>)>,
}

/// What a release says about itself beside the skill.
#[derive(Debug, Clone, PartialEq)]
pub struct ReleaseInfo {
    /// Whose.
    pub tenant: TenantId,
    /// Its name and version.
    pub release: ReleaseId,
    /// How the weights are stored.
    pub dtype: WeightDtype,
    /// Where it comes from.
    pub lineage: Lineage,
    /// SPDX expression of its licence.
    pub licence: String,
}

/// A package that was read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Package {
    /// What it is.
    pub manifest: ReleaseManifest,
    /// The exact bytes of the manifest.
    pub manifest_bytes: Vec<u8>,
    /// Kind of policy and hyper-parameters.
    pub policy: PolicyConfig,
    /// The weights, as f32.
    pub weights: Weights,
    /// Normalises observations.
    pub observation_normalizer: Normalizer,
    /// Normalises actions.
    pub action_normalizer: Normalizer,
    /// Inputs and answers.
    pub golden: Golden,
}

/// Why a package cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is something already.
    #[error("{path} exists; a release is never overwritten: choose another folder or version")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The disk.
    #[error("could not write {path}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The skill cannot be run.
    #[error("the skill cannot be run, so it is not packaged")]
    Skill(#[from] LoadError),
    /// A golden input that the skill cannot answer.
    #[error("golden input {index} cannot be answered")]
    Golden {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: ActError,
    },
    /// No golden inputs.
    #[error("a package needs at least one golden input; give a task and an observation of the data")]
    NoGolden,
    /// The manifest is impossible.
    #[error("the manifest is not acceptable")]
    Manifest(#[from] ReleaseManifestError),
}

/// Why a package is refused.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The disk, or a file that is not there.
    #[error("could not read {path}; the package is not complete: fetch it again")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest is impossible.
    #[error("{path} is not acceptable")]
    Manifest {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReleaseManifestError,
    },
    /// A file that the manifest does not list.
    #[error("{path} is not listed in {MANIFEST_FILE}; remove it or fetch the package again")]
    UnknownFile {
        /// Which file.
        path: PathBuf,
    },
    /// A file that every package has.
    #[error("{MANIFEST_FILE} lists no {file}; every skill package has one")]
    Unlisted {
        /// Which file.
        file: &'static str,
    },
    /// A file of another size.
    #[error("{path} has {found} bytes; {MANIFEST_FILE} says {expected}: fetch the package again")]
    Size {
        /// Which file.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The size listed.
        expected: u64,
    },
    /// A file of other bytes.
    #[error(
        "{path} has digest {found}; {MANIFEST_FILE} says {expected}: it was altered or damaged, fetch the package again"
    )]
    Digest {
        /// Which file.
        path: PathBuf,
        /// Its digest.
        found: Digest,
        /// The digest listed.
        expected: Digest,
    },
    /// JSON that does not say what it must.
    #[error("{file} is not acceptable: {reason}")]
    Config {
        /// Which file.
        file: &'static str,
        /// What is wrong, and what is needed.
        reason: String,
    },
    /// A hyper-parameter that no network can have.
    #[error("{CONFIG_FILE} is not acceptable")]
    Policy(#[from] PolicyConfigError),
    /// An embodiment that no policy can drive.
    #[error("{MANIFEST_FILE} names an embodiment that no policy can drive")]
    Embodiment(#[from] BodyError),
    /// A tensor file that is missing something or holds what is not a number.
    #[error("{file} is not acceptable")]
    Tensors {
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: WeightsError,
    },
    /// Statistics that cannot be used.
    #[error("{file} is not acceptable for {feature}")]
    Stats {
        /// Which file.
        file: &'static str,
        /// Of which feature.
        feature: String,
        /// Why.
        #[source]
        source: StatsError,
    },
}

/// Why no policy can drive a body.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The body itself is impossible.
    #[error("embodiment is not acceptable")]
    Embodiment(#[from] EmbodimentError),
    /// Nothing to read.
    #[error("embodiment {name:?} has no f32 observation feature; record at least observation.state as f32")]
    NoObservation {
        /// The embodiment.
        name: String,
    },
    /// Nothing to command.
    #[error("embodiment {name:?} has no f32 feature \"action\"; a policy needs one to command")]
    NoAction {
        /// The embodiment.
        name: String,
    },
}

/// The features that a policy reads, in their order: the f32 observations.
pub fn observation_features(embodiment: &Embodiment) -> impl Iterator<Item = &Feature> {
    embodiment.observations().filter(|feature| feature.dtype == Dtype::F32)
}

/// The dimensions that a body and its tasks give to a network, and the action's feature.
pub fn policy_shape(embodiment: &Embodiment, task_count: usize) -> Result<(PolicyShape, &Feature), BodyError> {
    embodiment.check()?;
    let observation_dim = observation_features(embodiment).map(Feature::values).sum();
    if observation_dim == 0 {
        return Err(BodyError::NoObservation { name: embodiment.name.clone() });
    }
    let action = embodiment.action().filter(|feature| feature.dtype == Dtype::F32);
    let action = action.ok_or_else(|| BodyError::NoAction { name: embodiment.name.clone() })?;
    Ok((PolicyShape { observation_dim, action_dim: action.values(), task_count }, action))
}

/// Writes `skill` as the release `info` into the new folder `path`, all or nothing.
///
/// The golden answers are those of the released weights, after rounding.
pub fn write(path: &Path, skill: &Skill, info: &ReleaseInfo) -> Result<ReleaseManifest, WriteError> {
    if skill.golden_inputs.is_empty() {
        return Err(WriteError::NoGolden);
    }
    let released = Skill { weights: skill.weights.rounded(info.dtype), ..skill.clone() };
    let runtime = SkillRuntime::of_skill(info.release.clone(), &released)?;
    let golden = Golden::answered(&runtime, &skill.golden_inputs)
        .map_err(|(index, source)| WriteError::Golden { index, source })?;

    let contents = [
        (CONFIG_FILE, lerobot::config_json(skill, &info.licence)),
        (MODEL_FILE, skill.weights.to_safetensors(info.dtype)),
        (PREPROCESSOR_FILE, lerobot::preprocessor_json(&skill.embodiment)),
        (PREPROCESSOR_STATS_FILE, lerobot::observation_stats_file(&skill.embodiment, &skill.observation_stats)),
        (POSTPROCESSOR_FILE, lerobot::postprocessor_json(&skill.embodiment)),
        (POSTPROCESSOR_STATS_FILE, lerobot::action_stats_file(&skill.embodiment, &skill.action_stats)),
        (GOLDEN_FILE, golden.to_safetensors()),
    ];
    let listed = contents.iter().map(|(name, bytes)| ReleaseFile {
        name: (*name).to_owned(),
        bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
    });
    let manifest = ReleaseManifest {
        tenant: info.tenant.clone(),
        release: info.release.clone(),
        policy: skill.policy.kind().to_owned(),
        dtype: info.dtype.as_str().to_owned(),
        embodiment: skill.embodiment.clone(),
        tasks: skill.tasks.clone(),
        files: listed.collect(),
        lineage: info.lineage.clone(),
        licence: info.licence.clone(),
    };
    manifest.check()?;
    let manifest_bytes = manifest.encode();
    let all = contents.iter().map(|(name, bytes)| (*name, bytes.as_slice()));
    files::write_folder(path, all.chain([(MANIFEST_FILE, manifest_bytes.as_slice())]))?;
    Ok(manifest)
}

/// Checks that the folder holds exactly what `manifest` lists, byte for byte.
///
/// For an installer that has verified the signed manifest and fetched the files.
pub fn verify_files(path: &Path, manifest: &ReleaseManifest) -> Result<(), PackageError> {
    files::check_listing(path, manifest)?;
    manifest.files.iter().try_for_each(|file| files::read_verified(path, file).map(drop))
}

impl Package {
    /// Reads a package and checks every byte of it against its manifest.
    ///
    /// Whether the manifest itself can be trusted is decided by its signature, before.
    pub fn read(path: &Path) -> Result<Self, PackageError> {
        let (manifest, manifest_bytes) = files::read_manifest(path)?;
        files::check_listing(path, &manifest)?;
        let read = |file| files::read_listed(path, &manifest, file);

        let policy = lerobot::read_config(&read(CONFIG_FILE)?, &manifest)?;
        let (_shape, action) = policy_shape(&manifest.embodiment, manifest.tasks.len())?;
        let weights = tensors(MODEL_FILE, &read(MODEL_FILE)?)?;
        lerobot::check_preprocessor(&read(PREPROCESSOR_FILE)?)?;
        lerobot::check_postprocessor(&read(POSTPROCESSOR_FILE)?)?;
        let stats = tensors(PREPROCESSOR_STATS_FILE, &read(PREPROCESSOR_STATS_FILE)?)?;
        let observed: Vec<&Feature> = observation_features(&manifest.embodiment).collect();
        let observation_normalizer = lerobot::read_stats(PREPROCESSOR_STATS_FILE, &stats, &observed)?;
        let stats = tensors(POSTPROCESSOR_STATS_FILE, &read(POSTPROCESSOR_STATS_FILE)?)?;
        let action_normalizer = lerobot::read_stats(POSTPROCESSOR_STATS_FILE, &stats, &[action])?;
        let golden = Golden::from_safetensors(&read(GOLDEN_FILE)?)
            .map_err(|source| PackageError::Tensors { file: GOLDEN_FILE, source })?;
        Ok(Self { manifest, manifest_bytes, policy, weights, observation_normalizer, action_normalizer, golden })
    }
}

fn tensors(file: &'static str, bytes: &[u8]) -> Result<Weights, PackageError> {
    Weights::from_safetensors(bytes).map_err(|source| PackageError::Tensors { file, source })
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
