//! What robots report, recorded in groups: a fleet that reports at once costs a few transactions, not one a robot.
//!
//! One task takes what waits and records it in one transaction; what comes meanwhile is the next one's. Nobody waits
//! for a timer, and whoever reports waits until its report is recorded: the queue is bounded by the robots.

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::metadata::{Metadata, NewReport};

/// Reports that wait; a robot has at most one among them.
const QUEUE_MAX: usize = 1024;

/// Reports of one transaction: what else writes metadata waits no longer than for these.
const GROUP_MAX: usize = 256;

/// The report could not be recorded; the cause is in the log.
#[derive(Debug, thiserror::Error)]
#[error("the report could not be recorded")]
pub(super) struct NotRecorded;

struct Waiting {
    report: NewReport,
    answer: oneshot::Sender<Result<(), NotRecorded>>,
}

/// Hands reports to the recording task.
#[derive(Clone)]
pub(super) struct Reports {
    queue: mpsc::Sender<Waiting>,
}

/// The recording task's part.
pub(super) struct RecordTask {
    queue: mpsc::Receiver<Waiting>,
    metadata: Metadata,
}

/// A handle and the task behind it, which ends when every handle is gone.
pub(super) fn recorder(metadata: Metadata) -> (Reports, RecordTask) {
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    (Reports { queue: sender }, RecordTask { queue, metadata })
}

impl Reports {
    /// Records a report.
    pub(super) async fn record(&self, report: NewReport) -> Result<(), NotRecorded> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Waiting { report, answer }).await.map_err(|_| NotRecorded)?;
        answered.await.map_err(|_| NotRecorded)?
    }
}

impl RecordTask {
    /// Records until every handle is gone.
    pub(super) async fn run(mut self) {
        let mut group = Vec::new();
        while self.queue.recv_many(&mut group, GROUP_MAX).await > 0 {
            let (reports, answers): (Vec<_>, Vec<_>) =
                group.drain(..).map(|waiting| (waiting.report, waiting.answer)).unzip();
            let recorded = self.metadata.record_reports(&reports).await;
            if let Err(error) = &recorded {
                warn!(error = error as &dyn std::error::Error, reports = reports.len(), "reports were not recorded");
            }
            for answer in answers {
                // A robot that has gone meanwhile needs no answer.
                drop(answer.send(if recorded.is_ok() { Ok(()) } else { Err(NotRecorded) }));
            }
        }
    }
}
