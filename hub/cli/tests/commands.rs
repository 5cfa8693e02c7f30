//! The command line as a person uses it: the program itself, on real files, judged by output and exit code.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A small LeRobot v3 dataset.
fn dataset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/metaworld/fixture")
}

fn zunft(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zunft"));
    command.env_remove("ZUNFT_TOKEN").env_remove("ZUNFT_HUB_URL").args(arguments).output().unwrap()
}

/// Runs a command that must succeed, and reads the JSON that it prints.
fn json(arguments: &[&str]) -> Value {
    let output = zunft(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs a command that must fail with `code` and name all of `words` on standard error.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = zunft(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(output.stdout.is_empty(), "errors do not go to standard output");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Trains a small skill on the dataset.
fn train(out: &Path, more: &[&str]) -> Vec<String> {
    let dataset = dataset();
    let fixed = ["train", "start", "reach", "--data", text(&dataset), "--out", text(out), "--json"];
    let small = ["--policy", "mlp", "--steps", "20", "--hidden-dims", "16", "--batch-size", "32", "--threads", "1"];
    fixed.iter().chain(&small).chain(more).map(|&word| word.to_owned()).collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn dataset_becomes_the_same_snapshot_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = dataset();
    let import = |name: &str| {
        let out = folder.path().join(name);
        json(&["data", "import", text(&dataset), "--out", text(&out), "--robot", "arm", "--json"])
    };
    let (first, second) = (import("a"), import("b"));
    assert_eq!(first["snapshot"], second["snapshot"]);
    let episodes = first["episodes"].as_u64().unwrap();
    assert!(episodes > 0);

    let listed = json(&["data", "ls", text(&folder.path().join("a")), text(&dataset), "--json"]);
    for summary in listed.as_array().unwrap() {
        assert_eq!(summary["total"]["episodes"], episodes);
        assert_eq!(summary["total"]["steps"], first["steps"]);
    }
    assert_eq!(listed[0]["robots"]["arm"]["episodes"], episodes);
    let episode = json(&["data", "show", text(&folder.path().join("a")), "0", "--json"]);
    assert_eq!(episode["manifest"]["ordinal"], 0);
    assert_eq!(episode["streams"]["steps"]["samples"], episode["manifest"]["steps"]);
    let id = episode["id"].as_str().unwrap();
    let same = json(&["data", "show", text(&folder.path().join("a")), &id[..16], "--json"]);
    assert_eq!(same, episode);
}

#[test]
fn dataset_goes_in_and_out_and_damage_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (snapshot, out) = (folder.path().join("snapshot"), folder.path().join("out"));
    let imported = json(&["data", "import", text(&dataset()), "--out", text(&snapshot), "--json"]);
    let exported = json(&["data", "export", text(&snapshot), "--out", text(&out), "--json"]);
    assert_eq!((&exported["episodes"], &exported["steps"]), (&imported["episodes"], &imported["steps"]));
    // The same episodes as before, bit for bit: the ids are hashes of what is in them.
    json(&[
        "data",
        "import",
        text(&out),
        "--out",
        text(&folder.path().join("again")),
        "--robot",
        imported["robot"].as_str().unwrap(),
        "--json",
    ]);
    let shown = |path: &Path| json(&["data", "show", text(path), "3", "--json"]);
    assert_eq!(shown(&folder.path().join("again"))["id"], shown(&snapshot)["id"]);
    refused(&["data", "export", text(&snapshot), "--out", text(&out)], 64, &["exists already", "choose another"]);

    let plotted = zunft(&["data", "show", text(&snapshot), "0", "--plot"]);
    let drawn = String::from_utf8(plotted.stdout).unwrap();
    assert!(drawn.contains("action") && drawn.contains('█') && drawn.contains('▁'), "{drawn}");

    let verified = json(&["data", "verify", text(&snapshot), "--json"]);
    assert_eq!((&verified["episodes"], &verified["damaged"]), (&imported["episodes"], &Value::Array(vec![])));
    let pack = snapshot.join("episodes.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let found = zunft(&["data", "verify", text(&snapshot), "--json"]);
    assert_eq!(found.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(report["damaged"].as_array().unwrap().len(), 1, "{report}");
    assert!(report["damaged"][0]["reason"].as_str().unwrap().contains("damaged"), "{report}");
}

#[test]
fn skill_is_trained_shown_and_verified_and_the_same_seed_gives_the_same_skill() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let report = json(&words(&train(&first, &["--seed", "3"])));
    assert_eq!(report["release"], "reach@1");
    json(&words(&train(&second, &["--seed", "3"])));
    let model = |package: &Path| std::fs::read(package.join("model.safetensors")).unwrap();
    assert_eq!(model(&first), model(&second));
    assert!(!folder.path().join("first.run").exists(), "checkpoints go when the package is there");

    let shown = json(&["skill", "show", text(&first), "--json"]);
    assert_eq!((&shown["policy"], &shown["signed"]), (&"mlp".into(), &false.into()));
    let verified = json(&["skill", "verify", text(&first), "--json"]);
    assert_eq!(verified["golden_vectors"], true);

    let mut damaged = model(&first);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    std::fs::write(first.join("model.safetensors"), damaged).unwrap();
    refused(&["skill", "verify", text(&first)], 64, &["model.safetensors", "digest", "again"]);
}

#[test]
fn what_is_not_there_or_cannot_be_used_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, empty, out) = (folder.path().join("absent"), folder.path().join("empty"), folder.path().join("out"));
    std::fs::create_dir(&empty).unwrap();
    refused(&["data", "import", text(&absent), "--out", text(&out)], 77, &["absent"]);
    refused(&["data", "ls", text(&empty)], 64, &["empty", "zunft data import"]);
    refused(&["data", "import", text(&empty), "--out", text(&out)], 64, &["info.json"]);
    assert!(!out.exists(), "nothing half-written is left");
    refused(&["skill", "show", text(&absent)], 77, &["zunft train start"]);
    refused(&["eval", text(&absent)], 77, &["zunft train start"]);
    refused(&words(&train(&empty, &[])), 64, &["empty", "never overwritten"]);
    refused(&words(&train(&out, &["--tasks", "fold-towel"])), 64, &["fold-towel", "drawer-close-v3"]);
    refused(&words(&train(&out, &["--ema-decay", "1.5"])), 64, &["ema_decay", "below 1"]);
    refused(&["train", "start", "reach"], 2, &["--data"]);
    refused(&["demo", "--robots", "0"], 2, &["--robots"]);
}

#[test]
fn unknown_keys_in_a_file_with_options_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let options = folder.path().join("options.toml");
    std::fs::write(&options, "step = 7\n").unwrap();
    let out = folder.path().join("out");
    refused(&words(&train(&out, &["--config", text(&options)])), 64, &["options.toml", "step"]);
}

#[test]
fn hub_that_is_not_there_is_named_with_the_remedy() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let hub = format!("http://127.0.0.1:{port}");
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    refused(&["fleet", "ls", "--hub", &hub, "--token-file", text(&token)], 64, &["token", "--token-file"]);
    std::fs::write(&token, "t").unwrap();
    refused(&["fleet", "ls", "--hub", &hub, "--token-file", text(&token)], 69, &["zunft hub serve"]);
}

#[test]
#[cfg(not(feature = "otlp"))]
fn exporting_without_the_feature_is_refused_by_the_name_of_the_key_and_the_feature() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("hub.toml");
    std::fs::write(&config, "[telemetry]\notlp_endpoint = \"http://127.0.0.1:4318\"\n").unwrap();
    let words = ["telemetry.otlp_endpoint", "http://127.0.0.1:4318", "--features otlp"];
    refused(&["hub", "serve", "--config", text(&config)], 64, &words);
}

#[test]
fn help_names_every_exit_code() {
    let help = String::from_utf8(zunft(&["--help"]).stdout).unwrap();
    for code in ["64", "69", "70", "75", "77", "130"] {
        assert!(help.contains(code), "{code}");
    }
}

#[test]
fn fsck_tells_a_sound_store_from_a_damaged_one_by_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let (hub, config) = (folder.path().join("hub"), folder.path().join("hub.toml"));
    std::fs::write(&config, "data_dir = \"hub\"\n").unwrap();
    refused(&["fsck", "--config", text(&config)], 64, &[text(&hub), "--data-dir"]);
    json(&["hub", "init", "--config", text(&config), "--json"]);
    let report = json(&["fsck", "--config", text(&config), "--json"]);
    assert_eq!((&report["packs"], &report["findings"]), (&0.into(), &Value::Array(Vec::new())));
    // A pack of which the hub has only the name, and other bytes.
    let packs = hub.join("store/t/default/packs");
    std::fs::create_dir_all(&packs).unwrap();
    std::fs::write(packs.join(format!("{}.pack", "0".repeat(64))), "damaged").unwrap();
    let output = zunft(&["fsck", "--config", text(&config), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["findings"][0]["kind"], "damaged-pack", "{report}");
    let repaired = json(&["fsck", "--config", text(&config), "--repair", "--json"]);
    let place = repaired["findings"][0]["quarantined"].as_str().unwrap();
    assert!(hub.join("store").join(place).is_file());
    assert_eq!(json(&["fsck", "--config", text(&config), "--json"])["findings"], Value::Array(Vec::new()));
}
