//! Carries out one run after another on a thread of its own.
//!
//! It decides nothing about the queue; the table does. What it needs of the hub around it is a [`Workshop`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use tokio::runtime::Handle;
use tracing::{error, info, info_span, warn};
use zunft_protocol::ids::{ReleaseId, SkillName, SkillVersion, SnapshotId, TenantId};
use zunft_skills::data::{Dataset, DatasetError, EpisodeSource};
use zunft_skills::package::{self, ReleaseInfo, WriteError};
use zunft_skills::train::{Progress, TrainEnd, TrainError, Trained, train};
use zunft_skills::weights::WeightDtype;

use super::Shared;
use super::metrics::{MetricLine, MetricsFile};
use super::run::{RobotSet, RunId, RunProgress, RunState};
use super::table::{Ended, OwnedRun, RunTableError};
use crate::causes::with_causes;
use crate::clock;

/// How often a run's progress is stored; what is shown is newer.
const PROGRESS_STORE_MILLIS: u64 = 2000;

/// How often the next version may be taken by someone else before a run gives up.
const PUBLISH_ATTEMPTS_MAX: usize = 8;

/// Licence of what a hub trains: its owner's own, until they say otherwise.
const LICENCE: &str = "LicenseRef-Proprietary";

/// Any error of the hub around the trainer.
pub type WorkshopError = Box<dyn std::error::Error + Send + Sync>;

/// What a trainer needs of the hub around it. Called on the trainer's own thread, so it may wait.
pub trait Workshop: Send + Sync + 'static {
    /// The episodes of a frozen snapshot.
    fn open_snapshot(&self, tenant: &TenantId, id: SnapshotId) -> Result<Box<dyn EpisodeSource>, WorkshopError>;

    /// The version that the next release of a skill will have.
    fn next_version(&self, tenant: &TenantId, skill: &SkillName) -> Result<SkillVersion, WorkshopError>;

    /// Signs and registers the package in `folder`. Doing it twice with the same package is one release.
    fn publish(&self, tenant: &TenantId, release: &ReleaseId, folder: &Path) -> Result<Publication, WorkshopError>;

    /// Assigns a release to robots.
    fn assign(&self, tenant: &TenantId, release: &ReleaseId, robots: &RobotSet) -> Result<(), WorkshopError>;

    /// Tells those who watch that a run changed. It must not wait.
    fn run_changed(&self, tenant: &TenantId, run: RunId);
}

/// What became of a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// It is the release.
    Published,
    /// Another package has the name already.
    Taken,
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("the hub could not {operation}")]
    Workshop { operation: &'static str, source: WorkshopError },
    #[error("the snapshot cannot be trained on")]
    Dataset(#[from] DatasetError),
    #[error("training failed")]
    Train(#[from] TrainError),
    #[error("the package could not be written")]
    Package(#[from] WriteError),
    #[error("could not use {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Table(#[from] RunTableError),
    #[error("other releases took the next version {PUBLISH_ATTEMPTS_MAX} times; resume the run to publish it")]
    Contended,
    #[error("training stopped at a fault of the program: {message}; report it with the run's plan")]
    Panicked { message: String },
}

/// How the work on a run came to its end.
enum Outcome {
    Succeeded { metrics: BTreeMap<String, f64> },
    Interrupted,
}

/// The trainer's thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Handle,
    pub(super) wake: mpsc::Receiver<()>,
}

impl Worker {
    /// Works until the trainer stops.
    pub(super) fn run(self) {
        if let Err(error) = self.runtime.block_on(self.shared.table.end_stopping(clock::unix_millis())) {
            error!(error = with_causes(&error), "runs that were stopping cannot be ended");
        }
        while !self.shared.stopping.load(Ordering::SeqCst) {
            match self.runtime.block_on(self.shared.table.take_next(clock::unix_millis())) {
                Ok(Some(owned)) => self.carry_out(&owned),
                Ok(None) => {
                    // The handle and this thread hold a sender each: waiting ends with a wake-up.
                    if self.wake.recv().is_err() {
                        return;
                    }
                }
                Err(error) => {
                    error!(
                        error = with_causes(&error),
                        "the queue of runs cannot be read; it is looked at again with the next request"
                    );
                    if self.wake.recv().is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn carry_out(&self, owned: &OwnedRun) {
        let OwnedRun { tenant, run, .. } = owned;
        let span = info_span!("training", %tenant, run = %run.id, skill = %run.plan.skill);
        let _entered = span.enter();
        info!("run begins");
        self.shared.begin(tenant, run.id);
        let worked = self.heed_early_stop(owned);
        let worked = catch_unwind(AssertUnwindSafe(|| worked.and_then(|()| self.work(owned))))
            .unwrap_or_else(|panic| Err(RunError::Panicked { message: panic_message(panic.as_ref()) }));
        let ended = match worked {
            Ok(Outcome::Succeeded { metrics }) => Some(Ended::Succeeded { metrics }),
            // The hub stops: the run goes on after its restart.
            Ok(Outcome::Interrupted) if !self.shared.stop_requested() => None,
            Ok(Outcome::Interrupted) => Some(Ended::Stopped),
            Err(error) => Some(Ended::Failed { error: with_causes(&error) }),
        };
        if let Some(ended) = ended {
            match &ended {
                Ended::Succeeded { .. } => info!("run succeeded"),
                Ended::Failed { error } => warn!(error, "run failed"),
                Ended::Stopped => info!("run stopped"),
            }
            if let Err(error) =
                self.runtime.block_on(self.shared.table.end(tenant, run.id, ended, clock::unix_millis()))
            {
                error!(error = with_causes(&error), "the end of a run cannot be stored; it goes on at the next start");
                self.shared.stopping.store(true, Ordering::SeqCst);
            }
        }
        self.shared.finish();
    }

    /// A request to stop that came between the run's leaving the queue and its being the current one.
    fn heed_early_stop(&self, OwnedRun { tenant, run, .. }: &OwnedRun) -> Result<(), RunError> {
        let stored = self.runtime.block_on(self.shared.table.run(tenant, run.id))?;
        if stored.state == RunState::Stopping {
            self.shared.request_stop(tenant, run.id);
        }
        Ok(())
    }

    fn work(&self, owned: &OwnedRun) -> Result<Outcome, RunError> {
        let OwnedRun { tenant, run, .. } = owned;
        let folder = self.shared.folder(tenant, run.id);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RunError::Io { path, source }
        };
        let checkpoints = folder.join("checkpoints");
        fs::create_dir_all(&checkpoints).map_err(failed(&checkpoints))?;

        let mut source =
            self.shared.workshop.open_snapshot(tenant, run.plan.snapshot).map_err(workshop("open the snapshot"))?;
        let dataset = Dataset::load(source.as_mut(), &run.plan.selection)?;
        drop(source);
        if !dataset.streams_left_out().is_empty() {
            info!(streams = dataset.streams_left_out().join(", "), "streams beside the steps are left out");
        }
        let trained = match self.train(owned, &dataset, &folder, &checkpoints)? {
            TrainEnd::Finished(trained) => *trained,
            TrainEnd::Interrupted { .. } => return Ok(Outcome::Interrupted),
        };
        self.release(owned, &folder, &trained)?;
        Ok(Outcome::Succeeded { metrics: trained.lineage.metrics })
    }

    fn train(
        &self,
        OwnedRun { tenant, run, .. }: &OwnedRun,
        dataset: &Dataset,
        folder: &Path,
        checkpoints: &Path,
    ) -> Result<TrainEnd, RunError> {
        let path = folder.join(super::METRICS_FILE);
        let failed = |source| RunError::Io { path: path.clone(), source };
        let mut metrics = MetricsFile::open(&path).map_err(failed)?;
        let mut metrics_failure = None;
        let mut stored_ms = 0;
        let report = |progress: Progress| {
            let line = metric_line(&progress);
            // One failure ends the run after its next step, with a checkpoint.
            if let Err(source) = metrics.append(&path, &line) {
                metrics_failure.get_or_insert(source);
                self.shared.stop_training();
            }
            let progress = run_progress(&progress);
            self.shared.show(tenant, run.id, progress);
            let now_ms = clock::unix_millis();
            if now_ms.saturating_sub(stored_ms) >= PROGRESS_STORE_MILLIS || progress.step == progress.steps {
                stored_ms = now_ms;
                self.store_progress(tenant, run.id, progress, now_ms);
            }
        };
        let end = train(dataset, &run.plan.config, Some(checkpoints), &self.shared.stop, report)?;
        match metrics_failure {
            Some(source) => Err(RunError::Io { path, source }),
            None => Ok(end),
        }
    }

    fn store_progress(&self, tenant: &TenantId, id: RunId, progress: RunProgress, now_ms: u64) {
        if let Err(error) = self.runtime.block_on(self.shared.table.set_progress(tenant, id, progress, now_ms)) {
            // The run itself is not harmed: its checkpoints hold the truth.
            warn!(error = with_causes(&error), "progress could not be stored");
        }
    }

    /// Writes the package, and publishes and assigns it where that was asked.
    fn release(&self, owned: &OwnedRun, folder: &Path, trained: &Trained) -> Result<(), RunError> {
        let OwnedRun { tenant, run, reserved } = owned;
        let skill = &run.plan.skill;
        if !run.plan.publishes() {
            let release = ReleaseId { skill: skill.clone(), version: SkillVersion(0) };
            write_package(tenant, &release, &folder.join("package"), trained)?;
            return Ok(());
        }
        let mut reserved = reserved.clone();
        for _attempt in 0..PUBLISH_ATTEMPTS_MAX {
            let release = match reserved.take() {
                Some(release) => release,
                None => {
                    let version =
                        self.shared.workshop.next_version(tenant, skill).map_err(workshop("find the next version"))?;
                    let release = ReleaseId { skill: skill.clone(), version };
                    // Before anything is published: after a crash the same name and bytes are published again.
                    self.runtime.block_on(self.shared.table.reserve(tenant, run.id, &release, clock::unix_millis()))?;
                    release
                }
            };
            let package = folder.join(format!("package-{}", release.version));
            write_package(tenant, &release, &package, trained)?;
            let published =
                self.shared.workshop.publish(tenant, &release, &package).map_err(workshop("publish the release"))?;
            if published == Publication::Taken {
                continue;
            }
            info!(%release, "release published");
            if let Some(robots) = &run.plan.assign {
                self.shared.workshop.assign(tenant, &release, robots).map_err(workshop("assign the release"))?;
            }
            return Ok(());
        }
        Err(RunError::Contended)
    }
}

/// Writes the package unless it is there: an interrupted run that goes on must publish the same bytes.
fn write_package(tenant: &TenantId, release: &ReleaseId, path: &Path, trained: &Trained) -> Result<(), WriteError> {
    if path.exists() {
        return Ok(());
    }
    let info = ReleaseInfo {
        tenant: tenant.clone(),
        release: release.clone(),
        dtype: WeightDtype::Bf16,
        lineage: trained.lineage.clone(),
        licence: LICENCE.to_owned(),
    };
    package::write(path, &trained.skill, &info).map(drop)
}

fn workshop(operation: &'static str) -> impl FnOnce(WorkshopError) -> RunError {
    move |source| RunError::Workshop { operation, source }
}

fn metric_line(progress: &Progress) -> MetricLine {
    MetricLine {
        step: progress.step,
        loss: progress.loss,
        lr: progress.lr,
        gradient_norm: progress.gradient_norm,
        steps_per_sec: progress.steps_per_sec,
        validation_loss: progress.validation_loss,
    }
}

fn run_progress(progress: &Progress) -> RunProgress {
    RunProgress {
        step: progress.step,
        steps: progress.steps,
        loss: Some(progress.loss),
        validation_loss: progress.validation_loss,
        steps_per_sec: Some(progress.steps_per_sec),
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
