//! What goes in comes out, and what has no place is said.

use zunft_protocol::episode::Actor;

use super::*;
use crate::data::lerobot::fixture::TinyDataset;
use crate::data::{
    EpisodeSink, ImportOptions, LeRobotDataset, LeRobotEpisode, LeRobotOptions, SnapshotDir, SnapshotDirWriter,
    import_lerobot,
};

const REFUSE: ExportOptions = ExportOptions { fps: None, unknown_outcomes: UnknownOutcomes::Refuse };

fn go_on(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn read(root: &Path) -> (LeRobotDataset, Vec<LeRobotEpisode>) {
    let dataset = LeRobotDataset::open(root, LeRobotOptions::default()).unwrap();
    let episodes = dataset.episodes().collect::<Result<_, _>>().unwrap();
    (dataset, episodes)
}

/// Makes a snapshot of the tiny dataset in `folder`.
fn snapshot(folder: &Path, dataset: &TinyDataset) -> (PathBuf, SnapshotDir) {
    let original = dataset.write(folder);
    let options = ImportOptions {
        tenant: "acme".parse().unwrap(),
        site: "lab".parse().unwrap(),
        robot: "tiny".parse().unwrap(),
        actor: Actor::Human,
    };
    let mut writer = SnapshotDirWriter::create(&folder.join("snapshot")).unwrap();
    let lerobot = LeRobotDataset::open(&original, LeRobotOptions::default()).unwrap();
    let sink: &mut dyn EpisodeSink = &mut writer;
    import_lerobot(&lerobot, &options, sink, &mut |_| ControlFlow::Continue(())).unwrap();
    writer.finish("test").unwrap();
    (original, SnapshotDir::open(&folder.join("snapshot")).unwrap())
}

#[test]
fn what_was_imported_is_exported_again() {
    let folder = tempfile::tempdir().unwrap();
    let (original, mut source) = snapshot(folder.path(), &TinyDataset::new());
    let root = folder.path().join("exported");
    let summary = export_lerobot(&mut source, &REFUSE, &root, &mut go_on).unwrap();
    assert_eq!((summary.episodes, summary.steps, summary.left_out.len()), (3, 9, 0));
    let ((before, episodes_before), (after, episodes_after)) = (read(&original), read(&root));
    assert_eq!(episodes_after, episodes_before);
    assert_eq!(after.embodiment(), before.embodiment());
    let names = |dataset: &LeRobotDataset| dataset.tasks().iter().map(|task| task.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&after), names(&before));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing half-written stays: {left:?}");
}

#[test]
fn statistics_are_those_of_all_values() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut source) = snapshot(folder.path(), &TinyDataset::new());
    let root = folder.path().join("exported");
    export_lerobot(&mut source, &REFUSE, &root, &mut go_on).unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&fs::read(root.join("meta/stats.json")).unwrap()).unwrap();
    // The states' first value counts the rows, 0 to 8.
    let state = &stats["observation.state"];
    assert_eq!(state["mean"][0], 4.0);
    assert_eq!(state["max"][0], 8.0);
    assert_eq!(state["q50"][0], 4.0);
    assert_eq!(state["count"], serde_json::json!([9]));
    assert!((state["std"][0].as_f64().unwrap() - (60.0_f64 / 9.0).sqrt()).abs() < 1e-12);
    assert_eq!(stats["next.success"]["max"], serde_json::json!([true]));
}

#[test]
fn an_existing_place_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (original, mut source) = snapshot(folder.path(), &TinyDataset::new());
    let error = export_lerobot(&mut source, &REFUSE, &original, &mut go_on).unwrap_err();
    assert!(matches!(error, ExportError::Exists { .. }), "{error}");
    assert_eq!(read(&original).1.len(), 3);
}

#[test]
fn a_stopped_export_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut source) = snapshot(folder.path(), &TinyDataset::new());
    let root = folder.path().join("exported");
    let error = export_lerobot(&mut source, &REFUSE, &root, &mut |_, _| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, ExportError::Stopped { episodes: 1 }), "{error}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_rate_that_is_no_whole_number_needs_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let mut dataset = TinyDataset::new();
    dataset.info["fps"] = serde_json::json!(12.5);
    for row in dataset.files.iter_mut().flatten() {
        row.timestamp = row.frame_index as f32 / 12.5;
    }
    let (_, mut source) = snapshot(folder.path(), &dataset);
    let root = folder.path().join("exported");
    let error = export_lerobot(&mut source, &REFUSE, &root, &mut go_on).unwrap_err();
    assert!(error.to_string().contains("--fps"), "{error}");
    let options = ExportOptions { fps: Some(12), ..REFUSE };
    export_lerobot(&mut source, &options, &root, &mut go_on).unwrap();
    assert_eq!(read(&root).0.embodiment().rate_hz, 12.0);
}

#[test]
fn an_unknown_outcome_is_never_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut known) = snapshot(folder.path(), &TinyDataset::new());
    // One of the three episodes, with its outcome withdrawn.
    let ids: Vec<EpisodeId> = known.snapshot().episodes.iter().map(|episode| episode.id).collect();
    let mut writer = SnapshotDirWriter::create(&folder.path().join("mixed")).unwrap();
    for (i, id) in ids.into_iter().enumerate() {
        let mut manifest = Manifest::decode(&known.manifest(id).unwrap()).unwrap();
        if i == 1 {
            manifest.outcome = Outcome::Unknown;
        }
        let chunks: Vec<Vec<u8>> = manifest.chunks().map(|chunk| known.chunk(chunk.id).unwrap()).collect();
        writer.add(&manifest.encode(), &chunks).unwrap();
    }
    writer.finish("mixed").unwrap();
    let mut mixed = SnapshotDir::open(&folder.path().join("mixed")).unwrap();
    let root = folder.path().join("exported");
    let error = export_lerobot(&mut mixed, &REFUSE, &root, &mut go_on).unwrap_err();
    assert!(matches!(error, ExportError::UnknownOutcome { unknown: 1, episodes: 3 }), "{error}");
    let skip = ExportOptions { unknown_outcomes: UnknownOutcomes::Skip, ..REFUSE };
    let summary = export_lerobot(&mut mixed, &skip, &root, &mut go_on).unwrap();
    assert_eq!((summary.episodes, summary.episodes_skipped), (2, 1));
    assert_eq!(read(&root).1.len(), 2);
    let failure = ExportOptions { unknown_outcomes: UnknownOutcomes::Failure, ..REFUSE };
    let other = folder.path().join("failures");
    export_lerobot(&mut mixed, &failure, &other, &mut go_on).unwrap();
    assert_eq!(read(&other).1[1].outcome, Outcome::Failure);
}
