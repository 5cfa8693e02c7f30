//! What is read from a LeRobot dataset, and what is said about a bad one.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use zunft_protocol::episode::{EpisodeEnd, Outcome, Truncation};

use super::fixture::{Lists, TinyDataset};
use super::*;

fn read(root: &Path, options: LeRobotOptions) -> Result<Vec<LeRobotEpisode>, LeRobotError> {
    LeRobotDataset::open(root, options)?.episodes().collect()
}

fn episodes(dataset: &TinyDataset) -> Result<Vec<LeRobotEpisode>, LeRobotError> {
    let dir = tempfile::tempdir().unwrap();
    read(&dataset.write(dir.path()), LeRobotOptions::default())
}

/// The error's message, with the temporary folder's name removed, must contain every part.
fn refused(change: impl FnOnce(&mut TinyDataset), parts: &[&str]) {
    let mut dataset = TinyDataset::new();
    change(&mut dataset);
    check_message(&episodes(&dataset).unwrap_err(), parts);
}

/// As [`refused`], for damage done to the files.
fn refused_files(damage: impl FnOnce(&Path), parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let root = TinyDataset::new().write(dir.path());
    damage(&root);
    check_message(&read(&root, LeRobotOptions::default()).unwrap_err(), parts);
}

fn check_message(error: &LeRobotError, parts: &[&str]) {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    for part in parts {
        assert!(message.contains(part), "{message:?} does not mention {part:?}");
    }
}

#[test]
fn episodes_come_with_task_steps_reward_time_and_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = LeRobotDataset::open(&TinyDataset::new().write(dir.path()), LeRobotOptions::default()).unwrap();
    let features: Vec<(&str, usize)> =
        dataset.embodiment().features.iter().map(|feature| (feature.name.as_str(), feature.values())).collect();
    assert_eq!(features, [("observation.state", 3), ("action", 2)]);
    assert_eq!(dataset.embodiment().features[0].names, ["x", "y", "z"]);
    assert_eq!((dataset.embodiment().name.as_str(), dataset.embodiment().rate_hz), ("tiny", 10.0));
    assert_eq!((dataset.episode_count(), dataset.step_count()), (3, 9));
    let episodes: Vec<LeRobotEpisode> = dataset.episodes().map(Result::unwrap).collect();
    let summary: Vec<_> =
        episodes.iter().map(|episode| (episode.task.as_str(), episode.steps, episode.outcome)).collect();
    assert_eq!(
        summary,
        [
            ("pick-up-the-cube", 3, Outcome::Success),
            ("reach-v3", 2, Outcome::Failure),
            ("pick-up-the-cube", 4, Outcome::Success)
        ]
    );
    assert_eq!(episodes[1].features[0], [3.0, 3.25, -3.0, 4.0, 4.25, -4.0]);
    assert_eq!(episodes[1].features[1], [0.375, 1.0, 0.5, 1.0]);
    assert_eq!(episodes[1].rewards, [6.0, 8.0]);
    assert_eq!(episodes[2].monotonic_ns, [0, 100_000_000, 200_000_000, 300_000_000]);
    assert!(episodes.iter().all(|episode| episode.end == EpisodeEnd::Terminated));
}

#[test]
fn every_kind_of_list_and_both_precisions_read_the_same() {
    let mut dataset = TinyDataset::new();
    let expected = episodes(&dataset).unwrap();
    for lists in [Lists::Small, Lists::Large, Lists::FixedDouble] {
        dataset.lists = lists;
        if lists == Lists::FixedDouble {
            dataset.info["features"]["observation.state"]["dtype"] = "float64".into();
        }
        assert_eq!(episodes(&dataset).unwrap(), expected, "{lists:?}");
    }
}

#[test]
fn a_dataset_written_by_lerobot_itself_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/metaworld/fixture");
    let dataset = LeRobotDataset::open(&root, LeRobotOptions::default()).unwrap();
    assert_eq!((dataset.embodiment().name.as_str(), dataset.embodiment().rate_hz), ("sawyer", 80.0));
    assert_eq!(dataset.embodiment().features[1].names, ["dx", "dy", "dz", "gripper"]);
    let episodes: Vec<LeRobotEpisode> = dataset.episodes().map(Result::unwrap).collect();
    let steps: Vec<usize> = episodes.iter().map(|episode| episode.steps).collect();
    assert_eq!(steps, [79, 79, 78, 78, 79, 78, 79, 79, 78, 78, 60, 58, 62, 62, 67, 75, 60, 62, 74, 59]);
    assert_eq!((episodes[9].task.as_str(), episodes[10].task.as_str()), ("drawer-close-v3", "button-press-topdown-v3"));
    assert!(episodes.iter().all(|episode| episode.outcome == Outcome::Success));
    // As pyarrow reads them.
    let last = &episodes[19];
    assert_eq!(last.features[0][58 * 39..58 * 39 + 3], [-0.062163267, 0.8145932, 0.2904136]);
    assert_eq!(last.features[1][58 * 4..], [0.03399604, -0.25046408, -1.0, 1.0]);
    assert_eq!(last.monotonic_ns[58], 725_000_000);
}

#[test]
fn outcome_and_end_are_what_the_last_step_says() {
    let check = |change: fn(&mut TinyDataset), expected: (Outcome, EpisodeEnd)| {
        let mut dataset = TinyDataset::new();
        change(&mut dataset);
        let first = episodes(&dataset).unwrap().swap_remove(0);
        assert_eq!((first.outcome, first.end), expected);
    };
    let cut = EpisodeEnd::Truncated { limit: Truncation::StepLimit };
    check(
        |d| (d.files[0][0].success, d.files[0][2].success) = (true, false),
        (Outcome::Failure, EpisodeEnd::Terminated),
    );
    check(|d| d.files[0][2].done = false, (Outcome::Success, cut));
    check(|d| remove(d, "next.done"), (Outcome::Success, EpisodeEnd::Terminated));
    check(|d| remove(d, "next.success"), (Outcome::Unknown, EpisodeEnd::Terminated));
}

#[test]
fn a_reward_that_nobody_gave_is_none() {
    let mut dataset = TinyDataset::new();
    remove(&mut dataset, "next.reward");
    assert!(episodes(&dataset).unwrap().iter().flat_map(|episode| &episode.rewards).all(|reward| reward.is_nan()));
}

#[test]
fn capture_times_are_kept_and_synthetic_ones_made_exact() {
    let mut dataset = TinyDataset::new();
    dataset.files[0][1].timestamp = 0.1 + 5e-5;
    assert_eq!(episodes(&dataset).unwrap()[0].monotonic_ns, [0, 100_000_000, 200_000_000]);
    dataset.files[0][1].timestamp = 0.125;
    assert_eq!(episodes(&dataset).unwrap()[0].monotonic_ns[..2], [0, 125_000_000]);
}

#[test]
fn unsupported_features_are_refused_or_left_out_on_request() {
    let mut dataset = TinyDataset::new();
    dataset.info["features"]["observation.images.top"] =
        serde_json::json!({"dtype": "video", "shape": [480, 640, 3], "names": null});
    dataset.info["features"]["comment"] = serde_json::json!({"dtype": "string", "shape": [1], "names": null});
    let dir = tempfile::tempdir().unwrap();
    let root = dataset.write(dir.path());
    let error = read(&root, LeRobotOptions::default()).unwrap_err();
    check_message(&error, &["info.json", "observation.images.top", "video", "--skip-unsupported"]);
    let skipping = LeRobotDataset::open(&root, LeRobotOptions { skip_unsupported: true }).unwrap();
    assert_eq!(skipping.skipped(), ["comment", "observation.images.top"]);
    assert_eq!(skipping.episodes().count(), 3);
}

/// The dataset with an image of 8x6 pixels at each step, as LeRobot writes them.
fn with_images(shape: [u32; 3], names: serde_json::Value) -> TinyDataset {
    let mut dataset = TinyDataset::new();
    dataset.info["features"]["observation.images.top"] =
        serde_json::json!({"dtype": "image", "shape": shape, "names": names});
    dataset.images = (0..9).map(|row| Some(images::tests::png(8, 6, [row * 20, 100, 200]))).collect();
    dataset
}

#[test]
fn images_in_the_tables_become_a_camera() {
    let names = [serde_json::json!(["height", "width", "channels"]), serde_json::Value::Null];
    let channels_first = ([3, 6, 8], serde_json::json!(["channels", "height", "width"]));
    for (shape, names) in names.map(|names| ([6, 8, 3], names)).into_iter().chain([channels_first]) {
        let dir = tempfile::tempdir().unwrap();
        let root = with_images(shape, names).write(dir.path());
        let dataset = LeRobotDataset::open(&root, LeRobotOptions::default()).unwrap();
        let camera = dataset.embodiment().streams().next().unwrap();
        assert_eq!((camera.name.as_str(), &camera.shape[..]), ("observation.images.top", &[6, 8, 3][..]));
        assert_eq!(camera.rate_hz, Some(10.0));
        let episodes: Vec<LeRobotEpisode> = dataset.episodes().map(Result::unwrap).collect();
        assert_eq!(episodes[1].features.len(), 2);
        let images: Vec<usize> = episodes.iter().map(|episode| episode.images[0].len()).collect();
        assert_eq!(images, [3, 2, 4]);
        assert!(episodes[1].images[0][0].starts_with(&[0xff, 0xd8]));
    }
}

#[test]
fn images_that_cannot_be_carried_are_refused_with_their_place() {
    let check = |change: fn(&mut TinyDataset), parts: &[&str]| {
        let mut dataset = with_images([6, 8, 3], serde_json::Value::Null);
        change(&mut dataset);
        check_message(&episodes(&dataset).unwrap_err(), parts);
    };
    let place = "episode 1, frame 1 has an image in \"observation.images.top\"";
    check(|d| d.images[4] = Some(b"GIF89a".to_vec()), &["file-000.parquet", place, "neither PNG nor JPEG"]);
    check(|d| d.images[4] = Some(images::tests::png(6, 8, [0; 3])), &[place, "it is [8, 6, 3]"]);
    check(|d| d.images[4] = None, &["observation.images.top", "empty cells"]);
    check(|d| d.images.clear(), &["no column \"observation.images.top\""]);
    check(|d| d.info["features"]["observation.images.top"]["shape"] = serde_json::json!([6, 8]), &["dtype image"]);
    check(|d| d.info["features"]["observation.images.top"]["shape"] = serde_json::json!([6, 8, 4]), &["dtype image"]);
}

#[test]
fn missing_files_are_named() {
    for file in [
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-001.parquet",
    ] {
        refused_files(|root| fs::remove_file(root.join(file)).unwrap(), &[file, "missing", "copy it again"]);
    }
    refused_files(|root| fs::remove_dir_all(root.join("meta/episodes")).unwrap(), &["meta/episodes", "missing"]);
}

#[test]
fn truncated_parquet_is_named() {
    for file in ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-001.parquet"] {
        let truncate = |root: &Path| {
            let bytes = fs::read(root.join(file)).unwrap();
            fs::write(root.join(file), &bytes[..bytes.len() / 2]).unwrap();
        };
        refused_files(truncate, &[file, "truncated or damaged", "copy it again"]);
    }
}

#[test]
fn other_versions_and_broken_info_are_refused_with_the_way_out() {
    refused_files(|root| fs::write(root.join("meta/info.json"), "{").unwrap(), &["info.json", "copy it again"]);
    refused(|d| d.info["codebase_version"] = "v2.1".into(), &["info.json", "v2.1", "convert_dataset_v21_to_v30"]);
    refused(|d| d.info["codebase_version"] = "v4.0".into(), &["info.json", "v4.0", "upgrade"]);
    refused(|d| d.info["codebase_version"] = "three".into(), &["codebase_version", "three", "v3.0"]);
    refused(|d| d.info["fps"] = 0.into(), &["info.json", "fps", "positive"]);
    refused(|d| d.info["data_path"] = "data/{episode_index}.parquet".into(), &["data_path", "{file_index:03d}"]);
    refused(|d| remove(d, "action"), &["info.json", "action"]);
    refused(|d| remove(d, "observation.state"), &["info.json", "observation"]);
}

#[test]
fn values_that_contradict_the_description_are_refused() {
    let data = "data/chunk-000/file-000.parquet";
    refused(|d| d.info["features"]["action"]["shape"] = [3].into(), &[data, "action", "2 items", "[3]"]);
    refused(|d| d.info["features"]["action"]["shape"] = [2, 1, 2].into(), &[data, "action", "[2, 1, 2]"]);
    let extra = serde_json::json!({"dtype": "float32", "shape": [2], "names": null});
    refused(|d| d.info["features"]["observation.extra"] = extra, &[data, "observation.extra"]);
    refused(
        |d| {
            d.lists = Lists::Small;
            d.files[0][4].action.pop();
        },
        &[data, "action", "1 to 2 items"],
    );
    refused(|d| d.files[0][4].action[1] = f32::NAN, &[data, "action", "[1]", "episode 1", "frame 1", "NaN"]);
    refused(|d| d.files[0][0].state[2] = f32::INFINITY, &["observation.state", "episode 0", "frame 0", "inf"]);
    refused(|d| d.files[0][0].reward = f32::NAN, &["next.reward", "episode 0", "frame 0"]);
    refused(|d| d.files[0][1].timestamp = -1.0, &[data, "timestamp", "frame 1"]);
    refused(|d| d.files[0][1].timestamp = 9.0, &[data, "timestamp 0.2", "frame 2"]);
    refused(|d| d.files[0][2].timestamp = 0.1, &[data, "timestamp 0.1", "frame 2", "grow"]);
}

#[test]
fn counts_that_do_not_add_up_are_refused() {
    let meta = "meta/episodes";
    refused(|d| d.info["total_episodes"] = 4.into(), &[meta, "3 episodes", "info.json", "4"]);
    refused(|d| d.info["total_frames"] = 10.into(), &[meta, "9 frames", "10"]);
    refused(|d| drop(d.files[1].pop()), &["file-001", "3 rows of episode 2"]);
    refused(|d| d.files[0].extend_from_within(4..), &["file-000", "6 rows", "5"]);
    refused(|d| d.files[1].extend_from_within(3..), &["file-001", "5 rows", "4"]);
    refused(|d| (d.episodes[1].length, d.episodes[1].end) = (0, 3), &[meta, "episode 1", "length 0"]);
    refused(|d| d.episodes[1].length = -1, &[meta, "length", "-1"]);
    refused(|d| d.episodes[1].begin = 2, &[meta, "dataset_from_index", "2"]);
    refused(|d| d.episodes[1].end = 6, &[meta, "dataset_to_index", "6"]);
    refused(|d| d.episodes[0].length = i64::MAX, &[meta, "episode 0", "split"]);
}

#[test]
fn rows_out_of_order_are_refused() {
    refused(|d| d.files[0].swap(0, 1), &["file-000", "row 0", "frame_index 1"]);
    refused(|d| d.files[0].swap(2, 3), &["file-000", "row 2", "episode_index 1"]);
    refused(|d| d.files[1][1].index = 7, &["file-001", "row 1", "index 7"]);
    refused(|d| d.episodes.swap(0, 1), &["meta/episodes", "row 0", "episode_index 1"]);
}

#[test]
fn unknown_and_clashing_tasks_are_refused() {
    refused(
        |d| d.files[0].iter_mut().for_each(|row| row.task_index = 7),
        &["file-000", "episode 0", "task_index 7", "2 tasks"],
    );
    refused(|d| d.files[0].iter_mut().for_each(|row| row.task_index = -1), &["task_index -1"]);
    refused(|d| d.files[0][1].task_index = 1, &["file-000", "episode 0", "changes its task at frame 1"]);
    refused(
        |d| d.tasks[1].1 = "Pick up the cube!".to_owned(),
        &["tasks.parquet", "Pick up the cube.", "Pick up the cube!"],
    );
    refused(|d| d.tasks[1].0 = 5, &["tasks.parquet", "task_index 5"]);
}

#[test]
fn an_iterator_that_failed_is_over() {
    let mut dataset = TinyDataset::new();
    dataset.files[0][0].state[0] = f32::NAN;
    let dir = tempfile::tempdir().unwrap();
    let dataset = LeRobotDataset::open(&dataset.write(dir.path()), LeRobotOptions::default()).unwrap();
    let mut episodes = dataset.episodes();
    assert!(episodes.next().unwrap().is_err());
    assert!(episodes.next().is_none());
}

fn remove(dataset: &mut TinyDataset, feature: &str) {
    dataset.info["features"].as_object_mut().unwrap().remove(feature);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_files_give_errors_and_never_panic(
        file in 0_usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let file = ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet"][file];
        let dir = tempfile::tempdir().unwrap();
        let root = TinyDataset::new().write(dir.path());
        let mut bytes = fs::read(root.join(file)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fs::write(root.join(file), &bytes).unwrap();
        drop(read(&root, LeRobotOptions::default()));
    }
}
