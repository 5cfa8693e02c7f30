//! The trainer: turns frozen snapshots into skills, one run at a time, on a thread of its own.
//!
//! ```text
//! request -> table (queued) -> worker: dataset -> train -> package -> publish -> assign -> table (succeeded)
//! ```
//!
//! A run that the hub's end interrupts goes on from its last checkpoint when the hub is back. Everything of a
//! run lies in `runs/<tenant>/<id>/`: checkpoints, metrics, packages. It knows no robot, no store and no network: what
//! it needs of the hub is a [`Workshop`].

mod metrics;
mod run;
mod table;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;
use zunft_protocol::ids::TenantId;

use crate::clock;
use crate::metadata::Metadata;
use table::RunTable;
use worker::Worker;

pub use metrics::MetricLine;
pub use run::{AllRobots, RobotSet, Run, RunId, RunPlan, RunProgress, RunState};
pub use table::{RUNS_QUEUED_MAX, RunTableError};
pub use worker::{Publication, Workshop, WorkshopError};

/// A run's metrics, inside its folder.
const METRICS_FILE: &str = "metrics.jsonl";

/// The trainer before it runs.
pub struct Trainer {
    worker: Worker,
    handle: TrainerHandle,
}

/// Asks a trainer for runs and about them. Clones ask the same one.
#[derive(Clone)]
pub struct TrainerHandle {
    shared: Arc<Shared>,
    /// One wake-up is enough, however many ask: it is a full queue's policy to drop them.
    wake: mpsc::SyncSender<()>,
}

/// What the worker and the handles share.
struct Shared {
    table: RunTable,
    folder: PathBuf,
    /// The run in work, and what it last reported.
    current: Mutex<Option<Current>>,
    /// Ends the training in work at its next step.
    stop: AtomicBool,
    /// The trainer ends.
    stopping: AtomicBool,
    workshop: Arc<dyn Workshop>,
}

#[derive(Debug)]
struct Current {
    tenant: TenantId,
    id: RunId,
    progress: Option<RunProgress>,
    stop_requested: bool,
}

impl Current {
    fn is(&self, tenant: &TenantId, id: RunId) -> bool {
        self.id == id && self.tenant == *tenant
    }
}

impl Trainer {
    /// A trainer whose runs are in `metadata` and in folders below `folder`.
    pub fn new(metadata: Metadata, folder: PathBuf, workshop: Arc<dyn Workshop>) -> Self {
        let shared = Arc::new(Shared {
            table: RunTable::new(metadata),
            folder,
            current: Mutex::new(None),
            stop: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            workshop,
        });
        let (wake, woken) = mpsc::sync_channel(1);
        let runtime = tokio::runtime::Handle::current();
        let worker = Worker { shared: Arc::clone(&shared), runtime, wake: woken };
        Self { worker, handle: TrainerHandle { shared, wake } }
    }

    /// A handle to it.
    pub fn handle(&self) -> TrainerHandle {
        self.handle.clone()
    }

    /// Trains until `stop`; a run in work writes a checkpoint first and goes on at the next start.
    pub async fn run(self, stop: CancellationToken) {
        let Self { worker, handle } = self;
        let (ended, mut end) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("trainer".to_owned()).spawn(move || {
            worker.run();
            // Nobody waits any more when the runtime itself is gone.
            let _unheard = ended.send(());
        });
        if let Err(error) = spawned {
            error!(%error, "the trainer's thread could not be started; runs stay queued");
            return;
        }
        tokio::select! {
            () = stop.cancelled() => {
                handle.shared.stopping.store(true, Ordering::SeqCst);
                handle.shared.stop_training();
                handle.wake();
                if end.await.is_err() {
                    error!("the trainer's thread ended by a fault");
                }
            }
            _ended = &mut end => error!("the trainer ended early; restart the hub to train again"),
        }
    }
}

impl TrainerHandle {
    /// Puts a run into the queue.
    pub async fn start(&self, tenant: &TenantId, plan: RunPlan) -> Result<RunId, RunTableError> {
        let id = self.shared.table.enqueue(tenant, plan, clock::unix_millis()).await?;
        self.shared.changed(tenant, id);
        self.wake();
        Ok(id)
    }

    /// Asks a run to stop; returns it as it is then.
    pub async fn stop(&self, tenant: &TenantId, id: RunId) -> Result<Run, RunTableError> {
        let run = self.shared.table.request_stop(tenant, id, clock::unix_millis()).await?;
        self.shared.request_stop(tenant, id);
        self.shared.changed(tenant, id);
        Ok(self.shared.freshen(tenant, run))
    }

    /// Puts a run that ended into the queue again, to go on from its last checkpoint.
    ///
    /// `publish` and `assign` replace what the run was started with.
    pub async fn resume(
        &self,
        tenant: &TenantId,
        id: RunId,
        publish: Option<bool>,
        assign: Option<RobotSet>,
    ) -> Result<Run, RunTableError> {
        let change = |plan: &mut RunPlan| {
            plan.publish = publish.unwrap_or(plan.publish);
            plan.assign = assign.or(plan.assign.take());
        };
        let run = self.shared.table.resume(tenant, id, clock::unix_millis(), change).await?;
        self.shared.changed(tenant, id);
        self.wake();
        Ok(run)
    }

    /// One run.
    pub async fn find(&self, tenant: &TenantId, id: RunId) -> Result<Run, RunTableError> {
        self.shared.table.run(tenant, id).await.map(|run| self.shared.freshen(tenant, run))
    }

    /// At most `limit` runs before `before`, newest first.
    pub async fn list(
        &self,
        tenant: &TenantId,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<Run>, RunTableError> {
        let runs = self.shared.table.runs(tenant, before, limit).await?;
        Ok(runs.into_iter().map(|run| self.shared.freshen(tenant, run)).collect())
    }

    /// Where a run's metrics lie, one JSON object a line.
    pub fn metrics_path(&self, tenant: &TenantId, id: RunId) -> PathBuf {
        self.shared.folder(tenant, id).join(METRICS_FILE)
    }

    fn wake(&self) {
        // A full queue holds a wake-up already; without a receiver the trainer has ended.
        let _woken_anyway = self.wake.try_send(());
    }
}

impl Shared {
    fn folder(&self, tenant: &TenantId, id: RunId) -> PathBuf {
        self.folder.join(tenant.as_str()).join(id.to_string())
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Current>> {
        // A panic while it was held left a whole value: it is only replaced.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, tenant: &TenantId, id: RunId) {
        let mut current = self.current();
        *current = Some(Current { tenant: tenant.clone(), id, progress: None, stop_requested: false });
        // In this order: whoever ends the trainer sets `stopping` first and `stop` second.
        self.stop.store(false, Ordering::SeqCst);
        if self.stopping.load(Ordering::SeqCst) {
            self.stop_training();
        }
        drop(current);
        self.changed(tenant, id);
    }

    fn finish(&self) {
        let finished = self.current().take();
        if let Some(Current { tenant, id, .. }) = finished {
            self.changed(&tenant, id);
        }
    }

    fn stop_training(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    fn request_stop(&self, tenant: &TenantId, id: RunId) {
        if let Some(current) = self.current().as_mut().filter(|current| current.is(tenant, id)) {
            current.stop_requested = true;
            self.stop_training();
        }
    }

    fn stop_requested(&self) -> bool {
        self.current().as_ref().is_some_and(|current| current.stop_requested)
    }

    fn show(&self, tenant: &TenantId, id: RunId, progress: RunProgress) {
        if let Some(current) = self.current().as_mut() {
            current.progress = Some(progress);
        }
        self.changed(tenant, id);
    }

    fn changed(&self, tenant: &TenantId, id: RunId) {
        self.workshop.run_changed(tenant, id);
    }

    /// Replaces stored progress by what the run last reported.
    fn freshen(&self, tenant: &TenantId, mut run: Run) -> Run {
        let current = self.current();
        let current = current.as_ref().filter(|current| current.is(tenant, run.id));
        run.progress = current.and_then(|current| current.progress).unwrap_or(run.progress);
        run
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
