//! The runs of a hub: which is next, and what became of each.
//!
//! The queue is the metadata's table, so a restart loses no run. The hub alone uses its data directory; a lock
//! orders what its own threads change.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zunft_protocol::ids::{ReleaseId, TenantId};

use super::run::{Run, RunId, RunPlan, RunProgress, RunState, after_stop, resumable};
use crate::metadata::{Metadata, MetadataError, RunRecord};

/// Most runs that wait at once: at minutes a run, more would be a mistake in a script.
pub const RUNS_QUEUED_MAX: usize = 100;

/// Why the runs could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RunTableError {
    /// The metadata.
    #[error("the metadata of training runs could not be used")]
    Metadata(#[from] MetadataError),
    /// A record that this program cannot read.
    #[error("run {run} cannot be read from the metadata; it was written by a newer hub or is damaged")]
    Record {
        /// Which.
        run: RunId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The queue is full.
    #[error("{RUNS_QUEUED_MAX} runs wait already; stop some, or try again later")]
    Full,
    /// No such run.
    #[error("there is no run {run} on this hub")]
    Unknown {
        /// Which.
        run: RunId,
    },
    /// A request that does not fit the run's state.
    #[error("run {run} is {state}; it cannot be {request}")]
    State {
        /// Which.
        run: RunId,
        /// Its state.
        state: RunState,
        /// What was asked.
        request: &'static str,
    },
}

/// The runs of one hub.
#[derive(Debug, Clone)]
pub(super) struct RunTable {
    metadata: Metadata,
    changing: Arc<Mutex<()>>,
}

/// A run with whose it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct OwnedRun {
    pub(super) tenant: TenantId,
    pub(super) run: Run,
    /// The release it is about to publish, or has published.
    pub(super) reserved: Option<ReleaseId>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ended {
    Succeeded { metrics: BTreeMap<String, f64> },
    Failed { error: String },
    Stopped,
}

impl RunTable {
    /// The runs in these metadata.
    pub(super) fn new(metadata: Metadata) -> Self {
        Self { metadata, changing: Arc::new(Mutex::new(())) }
    }

    /// Puts a run at the end of the queue.
    pub(super) async fn enqueue(&self, tenant: &TenantId, plan: RunPlan, now_ms: u64) -> Result<RunId, RunTableError> {
        let _changing = self.changing.lock().await;
        self.refuse_when_full().await?;
        let newest = self.metadata.runs(tenant, None, 1).await?;
        let id = RunId(newest.first().map_or(1, |newest| newest.run + 1));
        let steps = plan.config.steps;
        let run = Run {
            id,
            plan,
            state: RunState::Queued,
            progress: RunProgress { step: 0, steps, loss: None, validation_loss: None, steps_per_sec: None },
            metrics: BTreeMap::new(),
            created_unix_ms: now_ms,
            started_unix_ms: None,
            ended_unix_ms: None,
            error: None,
            release: None,
        };
        self.put(&OwnedRun { tenant: tenant.clone(), run, reserved: None }, now_ms).await?;
        Ok(id)
    }

    /// One run.
    pub(super) async fn run(&self, tenant: &TenantId, id: RunId) -> Result<Run, RunTableError> {
        Ok(self.find(tenant, id).await?.run)
    }

    /// At most `limit` runs before `before`, newest first.
    pub(super) async fn runs(
        &self,
        tenant: &TenantId,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<Vec<Run>, RunTableError> {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let records = self.metadata.runs(tenant, before.map(|id| id.0), limit).await?;
        records.into_iter().map(|record| Ok(of_record(tenant.clone(), record)?.run)).collect()
    }

    /// Takes the next run: one that a restart interrupted, else the oldest that waits.
    pub(super) async fn take_next(&self, now_ms: u64) -> Result<Option<OwnedRun>, RunTableError> {
        let _changing = self.changing.lock().await;
        let unfinished = self.metadata.unfinished_runs().await?;
        let interrupted = unfinished.iter().position(|(_, record)| record.state == RunState::Running);
        let waiting = || unfinished.iter().position(|(_, record)| record.state == RunState::Queued);
        let Some(next) = interrupted.or_else(waiting) else {
            return Ok(None);
        };
        let (tenant, record) = unfinished[next].clone();
        let mut next = of_record(tenant, record)?;
        next.run.state = RunState::Running;
        next.run.started_unix_ms.get_or_insert(now_ms);
        self.put(&next, now_ms).await?;
        Ok(Some(next))
    }

    /// Ends the runs that were asked to stop when the hub went away: their checkpoints are kept.
    pub(super) async fn end_stopping(&self, now_ms: u64) -> Result<(), RunTableError> {
        for (tenant, record) in self.metadata.unfinished_runs().await? {
            if record.state == RunState::Stopping {
                self.end(&tenant, RunId(record.run), Ended::Stopped, now_ms).await?;
            }
        }
        Ok(())
    }

    /// Notes a request to stop; returns the run after it.
    pub(super) async fn request_stop(&self, tenant: &TenantId, id: RunId, now_ms: u64) -> Result<Run, RunTableError> {
        let refused = |state| RunTableError::State { run: id, state, request: "stopped" };
        let change = |found: &mut OwnedRun| {
            found.run.state = after_stop(found.run.state).ok_or(refused(found.run.state))?;
            if found.run.state == RunState::Stopped {
                found.run.ended_unix_ms = Some(now_ms);
            }
            Ok(())
        };
        self.change(tenant, id, now_ms, change).await
    }

    /// Puts a run that ended into the queue again, with what may change about it.
    ///
    /// One that succeeded without a release can be taken up again to publish it.
    pub(super) async fn resume(
        &self,
        tenant: &TenantId,
        id: RunId,
        now_ms: u64,
        change_plan: impl FnOnce(&mut RunPlan),
    ) -> Result<Run, RunTableError> {
        let change = |found: &mut OwnedRun| {
            let run = &mut found.run;
            change_plan(&mut run.plan);
            let unpublished = run.state == RunState::Succeeded && run.release.is_none() && run.plan.publishes();
            if !(resumable(run.state) || unpublished) {
                let request =
                    "resumed: that needs a stopped or failed run, or a succeeded one to publish for the first time";
                return Err(RunTableError::State { run: id, state: run.state, request });
            }
            (run.state, run.error, run.ended_unix_ms) = (RunState::Queued, None, None);
            Ok(())
        };
        self.refuse_when_full().await?;
        self.change(tenant, id, now_ms, change).await
    }

    /// Stores how far a run is.
    pub(super) async fn set_progress(
        &self,
        tenant: &TenantId,
        id: RunId,
        progress: RunProgress,
        now_ms: u64,
    ) -> Result<(), RunTableError> {
        let change = |found: &mut OwnedRun| {
            found.run.progress = progress;
            Ok(())
        };
        self.change(tenant, id, now_ms, change).await.map(drop)
    }

    /// Notes the release that a run is about to publish, so that a crash does not make it publish twice.
    pub(super) async fn reserve(
        &self,
        tenant: &TenantId,
        id: RunId,
        release: &ReleaseId,
        now_ms: u64,
    ) -> Result<(), RunTableError> {
        let change = |found: &mut OwnedRun| {
            found.reserved = Some(release.clone());
            Ok(())
        };
        self.change(tenant, id, now_ms, change).await.map(drop)
    }

    /// Stores how a run ended.
    pub(super) async fn end(
        &self,
        tenant: &TenantId,
        id: RunId,
        ended: Ended,
        now_ms: u64,
    ) -> Result<(), RunTableError> {
        let change = |found: &mut OwnedRun| {
            found.run.ended_unix_ms = Some(now_ms);
            match ended {
                Ended::Succeeded { metrics } => {
                    (found.run.state, found.run.metrics) = (RunState::Succeeded, metrics);
                }
                Ended::Failed { error } => (found.run.state, found.run.error) = (RunState::Failed, Some(error)),
                Ended::Stopped => found.run.state = RunState::Stopped,
            }
            Ok(())
        };
        self.change(tenant, id, now_ms, change).await.map(drop)
    }

    async fn change(
        &self,
        tenant: &TenantId,
        id: RunId,
        now_ms: u64,
        change: impl FnOnce(&mut OwnedRun) -> Result<(), RunTableError>,
    ) -> Result<Run, RunTableError> {
        let _changing = self.changing.lock().await;
        let mut found = self.find(tenant, id).await?;
        change(&mut found)?;
        self.put(&found, now_ms).await?;
        Ok(found.run)
    }

    async fn refuse_when_full(&self) -> Result<(), RunTableError> {
        let unfinished = self.metadata.unfinished_runs().await?;
        let queued = unfinished.iter().filter(|(_, record)| record.state == RunState::Queued).count();
        if queued >= RUNS_QUEUED_MAX { Err(RunTableError::Full) } else { Ok(()) }
    }

    async fn find(&self, tenant: &TenantId, id: RunId) -> Result<OwnedRun, RunTableError> {
        let record = self.metadata.run(tenant, id.0).await?;
        of_record(tenant.clone(), record.ok_or(RunTableError::Unknown { run: id })?)
    }

    async fn put(&self, owned: &OwnedRun, now_ms: u64) -> Result<(), RunTableError> {
        Ok(self.metadata.put_run(&owned.tenant, &to_record(owned, now_ms)).await?)
    }
}

/// What a record's progress column holds.
#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    #[serde(flatten)]
    progress: RunProgress,
    metrics: BTreeMap<String, f64>,
    started_unix_ms: Option<u64>,
    ended_unix_ms: Option<u64>,
}

fn to_record(OwnedRun { run, reserved, .. }: &OwnedRun, now_ms: u64) -> RunRecord {
    let notes = Notes {
        progress: run.progress,
        metrics: run.metrics.clone(),
        started_unix_ms: run.started_unix_ms,
        ended_unix_ms: run.ended_unix_ms,
    };
    RunRecord {
        run: run.id.0,
        skill: run.plan.skill.clone(),
        snapshot: run.plan.snapshot,
        state: run.state,
        config: serde_json::to_value(&run.plan).expect("a plan has a JSON form"),
        progress: serde_json::to_value(&notes).expect("numbers have a JSON form"),
        error: run.error.clone(),
        release: reserved.clone(),
        created_unix_ms: run.created_unix_ms,
        updated_unix_ms: now_ms,
    }
}

fn of_record(tenant: TenantId, record: RunRecord) -> Result<OwnedRun, RunTableError> {
    let id = RunId(record.run);
    let unreadable = |source| RunTableError::Record { run: id, source };
    let plan: RunPlan = serde_json::from_value(record.config).map_err(unreadable)?;
    let notes: Notes = serde_json::from_value(record.progress).map_err(unreadable)?;
    let run = Run {
        id,
        plan,
        state: record.state,
        progress: notes.progress,
        metrics: notes.metrics,
        created_unix_ms: record.created_unix_ms,
        started_unix_ms: notes.started_unix_ms,
        ended_unix_ms: notes.ended_unix_ms,
        error: record.error,
        release: record.release.clone().filter(|_| record.state == RunState::Succeeded),
    };
    Ok(OwnedRun { tenant, run, reserved: record.release })
}
