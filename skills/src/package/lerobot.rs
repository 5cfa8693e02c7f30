//! The files of a package that follow LeRobot: `config.json`, the processors and their statistics.
//!
//! What LeRobot leaves open is closed here: a statistic that is missing, of another shape or not a number
//! refuses the package. It does not read or write files.

use std::ops::Range;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature};
use zunft_protocol::release::ReleaseManifest;

use super::{
    CONFIG_FILE, POSTPROCESSOR_FILE, POSTPROCESSOR_STATS_FILE, PREPROCESSOR_FILE, PREPROCESSOR_STATS_FILE,
    PackageError, Skill, observation_features,
};
use crate::normalizer::{Normalizer, Stats};
use crate::policy::PolicyConfig;
use crate::weights::{WeightDtype, Weights};

/// LeRobot's `eps` as it stands in processor files; [`crate::normalizer::EPS`] is the same number.
const EPS: f64 = 1e-8;

/// The one way of normalising that our skills use.
const MEAN_STD: &str = "MEAN_STD";

/// LeRobot's environment state: an observation that is not of the robot's own body.
const OBSERVATION_ENVIRONMENT_STATE: &str = "observation.environment_state";

/// LeRobot's kind of a feature.
fn feature_type(feature: &Feature) -> &'static str {
    match feature.name.as_str() {
        ACTION => "ACTION",
        OBSERVATION_ENVIRONMENT_STATE => "ENV",
        _ => "STATE",
    }
}

fn feature_map<'a>(features: impl Iterator<Item = &'a Feature>) -> Map<String, Value> {
    let entry =
        |feature: &Feature| (feature.name.clone(), json!({ "type": feature_type(feature), "shape": feature.shape }));
    features.map(entry).collect()
}

fn norm_map() -> Value {
    json!({ "STATE": MEAN_STD, "ENV": MEAN_STD, "ACTION": MEAN_STD })
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("a JSON value has a text");
    bytes.push(b'\n');
    bytes
}

/// `config.json`.
pub(super) fn config_json(skill: &Skill, licence: &str) -> Vec<u8> {
    let mut config = serde_json::to_value(&skill.policy).expect("a configuration has a JSON form");
    let fields = config.as_object_mut().expect("a configuration is an object");
    let observations = feature_map(observation_features(&skill.embodiment));
    fields.insert("input_features".into(), observations.into());
    fields.insert("output_features".into(), feature_map(skill.embodiment.action().into_iter()).into());
    fields.insert("normalization_mapping".into(), norm_map());
    fields.insert("tasks".into(), json!(skill.tasks));
    fields.insert("device".into(), json!("cpu"));
    fields.insert("license".into(), json!(licence));
    pretty(&config)
}

/// Reads `config.json` and checks it against the manifest.
pub(super) fn read_config(bytes: &[u8], manifest: &ReleaseManifest) -> Result<PolicyConfig, PackageError> {
    let refuse = |reason: String| PackageError::Config { file: CONFIG_FILE, reason };
    let mut fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    let observations = feature_map(observation_features(&manifest.embodiment));
    for (key, expected) in [
        ("input_features", Value::from(observations)),
        ("output_features", feature_map(manifest.embodiment.action().into_iter()).into()),
        ("normalization_mapping", norm_map()),
        ("tasks", json!(manifest.tasks)),
    ] {
        let found = fields.remove(key).unwrap_or_default();
        if found != expected {
            return Err(refuse(format!("{key:?} is {found}; the manifest's embodiment and tasks need {expected}")));
        }
    }
    for key in ["device", "license"] {
        fields.remove(key);
    }
    let policy: PolicyConfig = serde_json::from_value(fields.into()).map_err(|error| refuse(error.to_string()))?;
    if policy.kind() != manifest.policy {
        return Err(refuse(format!("\"type\" is {:?}; the manifest says {:?}", policy.kind(), manifest.policy)));
    }
    policy.check()?;
    Ok(policy)
}

/// `policy_preprocessor.json`.
pub(super) fn preprocessor_json(embodiment: &Embodiment) -> Vec<u8> {
    let features = feature_map(observation_features(embodiment).chain(embodiment.action()));
    pretty(&json!({
        "name": "policy_preprocessor",
        "steps": [
            { "registry_name": "rename_observations_processor", "config": { "rename_map": {} } },
            { "registry_name": "to_batch_processor", "config": {} },
            { "registry_name": "device_processor", "config": { "device": "cpu", "float_dtype": null } },
            {
                "registry_name": "normalizer_processor",
                "config": { "eps": EPS, "features": features, "norm_map": norm_map() },
                "state_file": PREPROCESSOR_STATS_FILE,
            },
        ],
    }))
}

/// `policy_postprocessor.json`.
pub(super) fn postprocessor_json(embodiment: &Embodiment) -> Vec<u8> {
    pretty(&json!({
        "name": "policy_postprocessor",
        "steps": [
            {
                "registry_name": "unnormalizer_processor",
                "config": { "eps": EPS, "features": feature_map(embodiment.action().into_iter()), "norm_map": norm_map() },
                "state_file": POSTPROCESSOR_STATS_FILE,
            },
            { "registry_name": "device_processor", "config": { "device": "cpu", "float_dtype": null } },
        ],
    }))
}

#[derive(Deserialize)]
struct Processor {
    steps: Vec<ProcessorStep>,
}

#[derive(Deserialize)]
struct ProcessorStep {
    registry_name: String,
    #[serde(default)]
    config: Map<String, Value>,
    state_file: Option<String>,
}

/// Refuses a preprocessor that does anything else than ours.
pub(super) fn check_preprocessor(bytes: &[u8]) -> Result<(), PackageError> {
    check_processor(PREPROCESSOR_FILE, bytes, "normalizer_processor", PREPROCESSOR_STATS_FILE)
}

/// Refuses a postprocessor that does anything else than ours.
pub(super) fn check_postprocessor(bytes: &[u8]) -> Result<(), PackageError> {
    check_processor(POSTPROCESSOR_FILE, bytes, "unnormalizer_processor", POSTPROCESSOR_STATS_FILE)
}

fn check_processor(file: &'static str, bytes: &[u8], normalizer: &str, state_file: &str) -> Result<(), PackageError> {
    let refuse = |reason: String| PackageError::Config { file, reason };
    let processor: Processor = serde_json::from_slice(bytes).map_err(|error| refuse(error.to_string()))?;
    let mut normalizers = 0;
    for step in &processor.steps {
        match step.registry_name.as_str() {
            // These move and batch tensors; the runtime has its own way.
            "to_batch_processor" | "device_processor" => {}
            "rename_observations_processor" => {
                let renames = step.config.get("rename_map").and_then(Value::as_object);
                if renames.is_some_and(|renames| !renames.is_empty()) {
                    return Err(refuse("it renames observations; features must have the embodiment's names".into()));
                }
            }
            name if name == normalizer => {
                normalizers += 1;
                if step.state_file.as_deref() != Some(state_file) {
                    return Err(refuse(format!("step {name:?} must have its statistics in {state_file:?}")));
                }
                if step.config.get("norm_map") != Some(&norm_map()) || step.config.get("eps") != Some(&json!(EPS)) {
                    return Err(refuse(format!(
                        "step {name:?} must normalise everything by {MEAN_STD} with eps {EPS}"
                    )));
                }
            }
            name => {
                return Err(refuse(format!("step {name:?} is not known; a skill that needs it is not run without it")));
            }
        }
    }
    if normalizers != 1 {
        return Err(refuse(format!("it has {normalizers} steps {normalizer:?}; exactly one is needed")));
    }
    Ok(())
}

/// The preprocessor's statistics: `<feature>.<statistic>` for every observation.
pub(super) fn observation_stats_file(embodiment: &Embodiment, stats: &Stats) -> Vec<u8> {
    let mut tensors = Weights::new();
    for (feature, range) in with_ranges(observation_features(embodiment)) {
        insert_stats(&mut tensors, feature, &stats.slice(range));
    }
    tensors.to_safetensors(WeightDtype::F32)
}

/// The postprocessor's statistics: those of the action.
pub(super) fn action_stats_file(embodiment: &Embodiment, stats: &Stats) -> Vec<u8> {
    let mut tensors = Weights::new();
    if let Some(action) = embodiment.action() {
        insert_stats(&mut tensors, action, stats);
    }
    tensors.to_safetensors(WeightDtype::F32)
}

fn insert_stats(tensors: &mut Weights, feature: &Feature, stats: &Stats) {
    let shape = shape_of(feature);
    for (statistic, values) in [("mean", &stats.mean), ("std", &stats.std), ("min", &stats.min), ("max", &stats.max)] {
        let values = values.iter().map(|&value| value as f32).collect();
        tensors.insert(format!("{}.{statistic}", feature.name), &shape, values);
    }
    tensors.insert(format!("{}.count", feature.name), &[1], vec![stats.count as f32]);
}

/// The normaliser of `features`, one after the other: each must have a mean and a std of its shape.
pub(super) fn read_stats(
    file: &'static str,
    tensors: &Weights,
    features: &[&Feature],
) -> Result<Normalizer, PackageError> {
    let (mut means, mut stds) = (Vec::new(), Vec::new());
    for feature in features {
        for (statistic, all) in [("mean", &mut means), ("std", &mut stds)] {
            let name = format!("{}.{statistic}", feature.name);
            let values = tensors.tensor(&name, &shape_of(feature));
            all.extend_from_slice(values.map_err(|source| PackageError::Tensors { file, source })?);
        }
    }
    let names: Vec<&str> = features.iter().map(|feature| feature.name.as_str()).collect();
    Normalizer::new(means, stds).map_err(|source| PackageError::Stats { file, feature: names.join(", "), source })
}

fn shape_of(feature: &Feature) -> Vec<usize> {
    feature.shape.iter().map(|&dim| dim as usize).collect()
}

fn with_ranges<'a>(features: impl Iterator<Item = &'a Feature>) -> impl Iterator<Item = (&'a Feature, Range<usize>)> {
    features.scan(0, |begin, feature| {
        let range = *begin..*begin + feature.values();
        *begin = range.end;
        Some((feature, range))
    })
}
