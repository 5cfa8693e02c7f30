//! What the trainer promises: a run becomes a package, also over stops and restarts, and a failure says why.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zunft_protocol::ids::{ReleaseId, SkillName, SkillVersion, SnapshotId};
use zunft_skills::data::EpisodeSource;
use zunft_skills::package::Package;
use zunft_skills::train::TrainConfig;

use super::testing::{Memory, tenant, tiny_config};
use super::*;

/// Longest wait for a run that trains a few hundred tiny steps.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A hub's registry and store in memory.
struct Bench {
    memory: Memory,
    published: Mutex<BTreeMap<ReleaseId, Vec<u8>>>,
    assigned: Mutex<Vec<(ReleaseId, RobotSet)>>,
    changes: watch::Sender<u64>,
}

impl Workshop for Bench {
    fn open_snapshot(&self, _tenant: &TenantId, id: SnapshotId) -> Result<Box<dyn EpisodeSource>, WorkshopError> {
        if id != self.memory.snapshot.id() {
            return Err(format!("there is no snapshot {id}").into());
        }
        Ok(Box::new(self.memory.clone()))
    }

    fn next_version(&self, _tenant: &TenantId, _skill: &SkillName) -> Result<SkillVersion, WorkshopError> {
        Ok(SkillVersion(self.published.lock().unwrap().len() as u32 + 1))
    }

    fn publish(&self, _tenant: &TenantId, release: &ReleaseId, folder: &Path) -> Result<Publication, WorkshopError> {
        let package = Package::read(folder)?;
        assert_eq!(package.manifest.release, *release);
        let mut published = self.published.lock().unwrap();
        let present = published.entry(release.clone()).or_insert_with(|| package.manifest_bytes.clone());
        Ok(if *present == package.manifest_bytes { Publication::Published } else { Publication::Taken })
    }

    fn assign(&self, _tenant: &TenantId, release: &ReleaseId, robots: &RobotSet) -> Result<(), WorkshopError> {
        self.assigned.lock().unwrap().push((release.clone(), robots.clone()));
        Ok(())
    }

    fn run_changed(&self, _tenant: &TenantId, _run: RunId) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// A data directory whose trainer can be started again and again.
struct World {
    folder: TempDir,
    bench: Arc<Bench>,
}

/// One life of a trainer.
struct Life {
    handle: TrainerHandle,
    changes: watch::Receiver<u64>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let (published, assigned) = (Mutex::default(), Mutex::default());
        let bench = Bench { memory: Memory::new(), published, assigned, changes: watch::Sender::new(0) };
        Self { folder: tempfile::tempdir().unwrap(), bench: Arc::new(bench) }
    }

    async fn start(&self) -> Life {
        let metadata = Metadata::open_file(&self.folder.path().join("metadata.sqlite")).await.unwrap();
        metadata.add_tenant(&tenant(), 0).await.unwrap();
        let trainer = Trainer::new(metadata, self.folder.path().join("runs"), Arc::clone(&self.bench) as _);
        let (handle, stop) = (trainer.handle(), CancellationToken::new());
        let changes = self.bench.changes.subscribe();
        let ended = TaskTracker::new().spawn(trainer.run(stop.clone()));
        Life { handle, changes, stop, ended }
    }

    fn plan(&self, steps: u64) -> RunPlan {
        RunPlan {
            skill: "halve".parse().unwrap(),
            snapshot: self.bench.memory.snapshot.id(),
            selection: Default::default(),
            config: tiny_config(steps),
            publish: false,
            assign: None,
        }
    }
}

impl Life {
    async fn wait(&mut self, id: RunId, reached: impl Fn(&Run) -> bool) -> Run {
        let waiting = async {
            loop {
                let run = self.handle.find(&tenant(), id).await.unwrap();
                if reached(&run) {
                    return run;
                }
                self.changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(WAIT_MAX, waiting).await.expect("the run gets there")
    }

    async fn end(self) {
        self.stop.cancel();
        self.ended.await.unwrap();
    }
}

#[tokio::test]
async fn snapshot_becomes_a_published_and_assigned_package() {
    let world = World::new();
    let mut life = world.start().await;
    let plan = RunPlan { assign: Some(RobotSet::ALL), ..world.plan(40) };
    let id = life.handle.start(&tenant(), plan).await.unwrap();
    let run = life.wait(id, |run| run.ended_unix_ms.is_some()).await;
    assert_eq!((run.state, run.error.as_deref()), (RunState::Succeeded, None));
    assert_eq!(run.release, Some("halve@1".parse().unwrap()));
    assert!(run.metrics["train_loss"].is_finite());
    assert_eq!((run.progress.step, run.progress.steps), (40, 40));
    assert_eq!(*world.bench.assigned.lock().unwrap(), [("halve@1".parse().unwrap(), RobotSet::ALL)]);
    let metrics = std::fs::read_to_string(life.handle.metrics_path(&tenant(), id)).unwrap();
    assert_eq!(metrics.lines().count(), 8);
    life.end().await;
}

#[tokio::test]
async fn run_that_was_stopped_and_resumed_makes_the_same_weights() {
    let world = World::new();
    let mut life = world.start().await;
    let whole = life.handle.start(&tenant(), world.plan(3000)).await.unwrap();
    let stopped = life.handle.start(&tenant(), world.plan(3000)).await.unwrap();
    life.wait(whole, |run| run.state == RunState::Succeeded).await;
    life.wait(stopped, |run| run.state == RunState::Running && run.progress.step > 0).await;
    assert_eq!(life.handle.stop(&tenant(), stopped).await.unwrap().state, RunState::Stopping);
    let run = life.wait(stopped, |run| run.state == RunState::Stopped).await;
    assert!(run.progress.step < 3000, "{run:?}");
    assert!(matches!(life.handle.stop(&tenant(), stopped).await, Err(RunTableError::State { .. })));

    life.handle.resume(&tenant(), stopped, None, None).await.unwrap();
    life.wait(stopped, |run| run.state == RunState::Succeeded).await;
    let weights = |id: RunId| {
        let package = world.folder.path().join(format!("runs/default/{id}/package"));
        Package::read(&package).unwrap().weights
    };
    assert_eq!(weights(stopped), weights(whole));
    let metrics = std::fs::read_to_string(life.handle.metrics_path(&tenant(), stopped)).unwrap();
    assert_eq!(metrics.lines().count(), 600);
    life.end().await;
}

#[tokio::test]
async fn run_goes_on_after_a_restart_of_the_hub() {
    let world = World::new();
    let mut life = world.start().await;
    let plan = RunPlan { publish: true, ..world.plan(3000) };
    let running = life.handle.start(&tenant(), plan.clone()).await.unwrap();
    let waiting = life.handle.start(&tenant(), RunPlan { publish: true, ..world.plan(20) }).await.unwrap();
    life.wait(running, |run| run.progress.step > 0).await;
    life.end().await;

    let mut life = world.start().await;
    let run = life.wait(running, |run| run.ended_unix_ms.is_some()).await;
    assert_eq!((run.state, run.release), (RunState::Succeeded, Some("halve@1".parse().unwrap())));
    let run = life.wait(waiting, |run| run.ended_unix_ms.is_some()).await;
    assert_eq!((run.state, run.release), (RunState::Succeeded, Some("halve@2".parse().unwrap())));
    life.end().await;
}

#[tokio::test]
async fn failing_run_says_why_and_the_next_one_trains() {
    let world = World::new();
    let mut life = world.start().await;
    let lost = RunPlan { snapshot: SnapshotId::from_bytes([9; 32]), ..world.plan(10) };
    let empty = RunPlan { selection: toml::from_str("tasks = [\"fold\"]").unwrap(), ..world.plan(10) };
    let diverging = TrainConfig { optimizer_lr: 1e30, ..world.plan(50).config };
    let diverging = RunPlan { config: diverging, ..world.plan(10) };
    for (plan, reason) in
        [(lost, "there is no snapshot"), (empty, "no selected episode is of task fold"), (diverging, "optimizer_lr")]
    {
        let id = life.handle.start(&tenant(), plan).await.unwrap();
        let run = life.wait(id, |run| run.ended_unix_ms.is_some()).await;
        assert_eq!(run.state, RunState::Failed);
        assert!(run.error.as_ref().unwrap().contains(reason), "{run:?}");
    }
    let id = life.handle.start(&tenant(), world.plan(10)).await.unwrap();
    life.wait(id, |run| run.state == RunState::Succeeded).await;
    let listed: Vec<u32> = life.handle.list(&tenant(), None, 3).await.unwrap().iter().map(|run| run.id.0).collect();
    assert_eq!(listed, [4, 3, 2]);
    life.end().await;
}

#[tokio::test]
async fn unpublished_run_can_be_published_once() {
    let world = World::new();
    let mut life = world.start().await;
    let id = life.handle.start(&tenant(), world.plan(10)).await.unwrap();
    let run = life.wait(id, |run| run.state == RunState::Succeeded).await;
    assert_eq!(run.release, None);
    assert!(matches!(life.handle.resume(&tenant(), id, None, None).await, Err(RunTableError::State { .. })));
    life.handle.resume(&tenant(), id, Some(true), None).await.unwrap();
    let run = life.wait(id, |run| run.release.is_some()).await;
    assert_eq!(run.release, Some("halve@1".parse().unwrap()));
    assert!(life.handle.resume(&tenant(), id, Some(true), None).await.is_err());
    life.end().await;
}

#[tokio::test]
async fn queue_is_bounded_and_waiting_runs_are_stopped_at_once() {
    let world = World::new();
    let metadata = Metadata::open_file(&world.folder.path().join("metadata.sqlite")).await.unwrap();
    metadata.add_tenant(&tenant(), 0).await.unwrap();
    // Nothing takes runs out of this queue.
    let trainer = Trainer::new(metadata, world.folder.path().join("runs"), Arc::clone(&world.bench) as _);
    let handle = trainer.handle();
    for _ in 0..RUNS_QUEUED_MAX {
        handle.start(&tenant(), world.plan(10)).await.unwrap();
    }
    assert!(matches!(handle.start(&tenant(), world.plan(10)).await, Err(RunTableError::Full)));
    assert_eq!(handle.stop(&tenant(), RunId(1)).await.unwrap().state, RunState::Stopped);
    assert_eq!(handle.start(&tenant(), world.plan(10)).await.unwrap(), RunId(101));
    assert!(matches!(handle.find(&tenant(), RunId(999)).await, Err(RunTableError::Unknown { .. })));
}
