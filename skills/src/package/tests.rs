//! Packages that are whole, and damaged ones that are refused.

use std::fs;

use tempfile::TempDir;

use super::testing::{info, skill};
use super::*;

fn packaged() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy-3");
    write(&path, &skill(), &info()).unwrap();
    (folder, path)
}

/// Rewrites a file and lists its new bytes, as one who can make a manifest could.
fn replace(path: &Path, name: &str, bytes: &[u8]) {
    fs::write(path.join(name), bytes).unwrap();
    let mut manifest = ReleaseManifest::decode(&fs::read(path.join(MANIFEST_FILE)).unwrap()).unwrap();
    let listed = manifest.files.iter_mut().find(|file| file.name == name).unwrap();
    (listed.bytes, listed.digest) = (bytes.len() as u64, Digest::of(bytes));
    fs::write(path.join(MANIFEST_FILE), manifest.encode()).unwrap();
}

fn edit_text(path: &Path, name: &str, from: &str, to: &str) {
    let text = fs::read_to_string(path.join(name)).unwrap();
    assert!(text.contains(from), "{text}");
    replace(path, name, text.replace(from, to).as_bytes());
}

/// The whole chain of causes.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}

#[track_caller]
fn refused(path: &Path, reasons: &[&str]) {
    let error = SkillRuntime::load(path).unwrap_err();
    let text = told(&error);
    for reason in reasons {
        assert!(text.contains(reason), "{text} does not say {reason}");
    }
}

#[test]
fn package_reads_back_as_it_was_written() {
    let (_folder, path) = packaged();
    let package = Package::read(&path).unwrap();
    let skill = skill();
    assert_eq!(package.policy, skill.policy);
    assert_eq!(package.weights, skill.weights.rounded(WeightDtype::Bf16));
    assert_eq!(package.observation_normalizer, Normalizer::of(&skill.observation_stats).unwrap());
    assert_eq!(package.action_normalizer, Normalizer::of(&skill.action_stats).unwrap());
    assert_eq!((package.manifest.policy.as_str(), package.manifest.dtype.as_str()), ("mlp", "bf16"));
    assert_eq!(package.manifest.lineage, info().lineage);
    assert_eq!(package.manifest_bytes, fs::read(path.join(MANIFEST_FILE)).unwrap());
    verify_files(&path, &package.manifest).unwrap();
    SkillRuntime::load(&path).unwrap().verify_golden().unwrap();
}

#[test]
fn same_skill_makes_the_same_bytes() {
    let (_one, one) = packaged();
    let (_other, other) = packaged();
    assert_eq!(fs::read(one.join(MANIFEST_FILE)).unwrap(), fs::read(other.join(MANIFEST_FILE)).unwrap());
}

#[test]
fn config_and_processors_have_lerobots_form() {
    let (_folder, path) = packaged();
    let json =
        |name: &str| -> serde_json::Value { serde_json::from_slice(&fs::read(path.join(name)).unwrap()).unwrap() };
    let config = json(CONFIG_FILE);
    assert_eq!(config["type"], "mlp");
    assert_eq!((&config["chunk_size"], &config["n_obs_steps"]), (&3.into(), &1.into()));
    assert_eq!(config["input_features"]["observation.state"]["shape"], serde_json::json!([2]));
    assert_eq!(config["output_features"]["action"]["type"], "ACTION");
    assert!(config["input_features"].get("observation.images.top").is_none());
    let steps = &json(PREPROCESSOR_FILE)["steps"];
    assert_eq!(steps[3]["registry_name"], "normalizer_processor");
    assert_eq!(steps[3]["state_file"], PREPROCESSOR_STATS_FILE);
    assert_eq!(json(POSTPROCESSOR_FILE)["steps"][0]["registry_name"], "unnormalizer_processor");
    let stats = Weights::from_safetensors(&fs::read(path.join(PREPROCESSOR_STATS_FILE)).unwrap()).unwrap();
    assert_eq!(stats.tensor("observation.state.mean", &[2]).unwrap(), [1.0, 0.0]);
    assert_eq!(stats.tensor("observation.environment_state.mean", &[1]).unwrap(), [5.5]);
}

#[test]
fn flipped_byte_in_any_file_is_refused_by_its_name() {
    let (_folder, path) = packaged();
    for entry in fs::read_dir(&path).unwrap() {
        let file = entry.unwrap().path();
        let good = fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[good.len() / 2] ^= 0x10;
        fs::write(&file, &bad).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let error = Package::read(&path);
        if name == MANIFEST_FILE {
            // Its own bytes are vouched for by the signature; here anything but a panic will do.
            drop(error);
        } else {
            let text = told(&error.unwrap_err());
            assert!(text.contains(name) && text.contains("fetch the package again"), "{text}");
        }
        fs::write(&file, &bad[..good.len() / 2]).unwrap();
        assert!(Package::read(&path).is_err(), "{name} cut in half");
        fs::write(&file, good).unwrap();
    }
    Package::read(&path).unwrap();
}

#[test]
fn missing_and_unknown_files_are_refused() {
    let (_folder, path) = packaged();
    fs::write(path.join("extra.pkl"), b"x").unwrap();
    refused(&path, &["extra.pkl", "not listed"]);
    fs::remove_file(path.join("extra.pkl")).unwrap();
    fs::create_dir(path.join("folder")).unwrap();
    refused(&path, &["folder", "not listed"]);
    fs::remove_dir(path.join("folder")).unwrap();
    let model = path.join(MODEL_FILE);
    let kept = path.with_file_name("kept");
    fs::rename(&model, &kept).unwrap();
    refused(&path, &[MODEL_FILE, "not complete"]);
    // A link is refused although it leads to the right bytes.
    std::os::unix::fs::symlink(&kept, &model).unwrap();
    refused(&path, &[MODEL_FILE]);
}

#[test]
fn manifest_cannot_lead_out_of_the_folder() {
    let (_folder, path) = packaged();
    let text = fs::read_to_string(path.join(MANIFEST_FILE)).unwrap();
    fs::write(path.join(MANIFEST_FILE), text.replace(MODEL_FILE, "../model.safetensors")).unwrap();
    refused(&path, &[MANIFEST_FILE, "../model.safetensors"]);
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let (_folder, path) = packaged();
    let mut weights = skill().weights;
    weights.insert("model.head.bias", &[6], vec![0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0]);
    replace(&path, MODEL_FILE, &weights.to_safetensors(WeightDtype::Bf16));
    refused(&path, &[MODEL_FILE, "model.head.bias", "NaN"]);
}

#[test]
fn weights_of_another_network_are_refused() {
    let (_folder, path) = packaged();
    edit_text(&path, CONFIG_FILE, "16", "17");
    refused(&path, &["model.hidden.0.weight", "[17, 5]"]);
    edit_text(&path, CONFIG_FILE, "17,\n    8", "16");
    refused(&path, &["model.head.weight"]);
    let (_folder, path) = packaged();
    let mut weights = skill().weights;
    weights.insert("model.other", &[1], vec![0.0]);
    replace(&path, MODEL_FILE, &weights.to_safetensors(WeightDtype::F32));
    refused(&path, &["model.other", "no part of the network"]);
}

#[test]
fn missing_or_unsound_statistic_is_refused() {
    let (_folder, path) = packaged();
    let file = fs::read(path.join(PREPROCESSOR_STATS_FILE)).unwrap();
    let all = Weights::from_safetensors(&file).unwrap();
    let mut without = Weights::new();
    for (name, tensor) in all.iter().filter(|(name, _)| *name != "observation.environment_state.std") {
        without.insert(name, &tensor.shape, tensor.values.clone());
    }
    replace(&path, PREPROCESSOR_STATS_FILE, &without.to_safetensors(WeightDtype::F32));
    refused(&path, &[PREPROCESSOR_STATS_FILE, "observation.environment_state.std", "missing"]);
    without.insert("observation.environment_state.std", &[1], vec![-1.0]);
    replace(&path, PREPROCESSOR_STATS_FILE, &without.to_safetensors(WeightDtype::F32));
    refused(&path, &[PREPROCESSOR_STATS_FILE, "std", "-1"]);
    without.insert("observation.environment_state.std", &[1, 1], vec![1.0]);
    replace(&path, PREPROCESSOR_STATS_FILE, &without.to_safetensors(WeightDtype::F32));
    refused(&path, &["shape [1, 1]"]);
}

#[test]
fn processor_that_does_something_else_is_refused() {
    let (_folder, path) = packaged();
    edit_text(&path, PREPROCESSOR_FILE, "MEAN_STD", "MIN_MAX");
    refused(&path, &[PREPROCESSOR_FILE, "MEAN_STD"]);
    let (_folder, path) = packaged();
    edit_text(&path, POSTPROCESSOR_FILE, "device_processor", "delta_action_processor");
    refused(&path, &[POSTPROCESSOR_FILE, "delta_action_processor"]);
    let (_folder, path) = packaged();
    edit_text(&path, PREPROCESSOR_FILE, "\"normalizer_processor", "\"device_processor");
    refused(&path, &[PREPROCESSOR_FILE, "exactly one"]);
}

#[test]
fn config_with_unknown_or_other_content_is_refused() {
    for (from, to, reason) in [
        ("\"chunk_size\"", "\"chunk_length\"", "chunk_length"),
        ("\"n_action_steps\": 2", "\"n_action_steps\": 4", "n_action_steps"),
        ("\"pick\"", "\"push\"", "tasks"),
        ("\"type\": \"mlp\"", "\"type\": \"act\"", "act"),
        ("\"type\": \"ENV\"", "\"type\": \"STATE\"", "input_features"),
    ] {
        let (_folder, path) = packaged();
        edit_text(&path, CONFIG_FILE, from, to);
        refused(&path, &[CONFIG_FILE, reason]);
    }
}

#[test]
fn golden_answers_that_do_not_come_out_are_refused() {
    let (_folder, path) = packaged();
    let file = Weights::from_safetensors(&fs::read(path.join(GOLDEN_FILE)).unwrap()).unwrap();
    let mut changed = file.clone();
    let mut answers = file.tensor("action", &[2, 6]).unwrap().to_vec();
    answers[7] += 1e-3;
    changed.insert("action", &[2, 6], answers);
    replace(&path, GOLDEN_FILE, &changed.to_safetensors(WeightDtype::F32));
    refused(&path, &["golden input 1", "value 1"]);

    // Other weights of the right shape: nothing else could tell them from the right ones.
    let (_folder, path) = packaged();
    let mut weights = skill().weights;
    let (name, tensor) = weights.iter().next().map(|(name, tensor)| (name.to_owned(), tensor.clone())).unwrap();
    let moved = tensor.values.iter().map(|value| value * 1.02).collect();
    weights.insert(name, &tensor.shape, moved);
    replace(&path, MODEL_FILE, &weights.to_safetensors(WeightDtype::Bf16));
    refused(&path, &["golden"]);
}

#[test]
fn release_is_never_overwritten_and_nothing_half_written_stays() {
    let (folder, path) = packaged();
    assert!(matches!(write(&path, &skill(), &info()), Err(WriteError::Exists { .. })));
    let mut broken = skill();
    broken.golden_inputs = vec![(0, vec![f32::NAN, 0.0, 0.0])];
    let other = folder.path().join("toy-4");
    assert!(matches!(write(&other, &broken, &info()), Err(WriteError::Golden { index: 0, .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
