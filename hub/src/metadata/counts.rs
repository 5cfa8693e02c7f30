//! How many episodes there are of each task and outcome.

use serde::Serialize;
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::{TaskName, TenantId};

use super::sql::query;
use super::{Metadata, MetadataError};

/// Episodes of one task with one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TaskCount {
    /// The task.
    pub task: TaskName,
    /// The outcome.
    pub outcome: Outcome,
    /// How many.
    pub episodes: u64,
    /// Their steps.
    pub steps: u64,
    /// Stored bytes of their chunks.
    pub bytes: u64,
}

impl Metadata {
    /// Counts the episodes of a tenant by task and outcome.
    pub async fn task_counts(&self, tenant: &TenantId) -> Result<Vec<TaskCount>, MetadataError> {
        let rows = query(
            "SELECT task, outcome, COUNT(*) AS episodes, CAST(SUM(steps) AS BIGINT) AS steps, \
             CAST(SUM(bytes) AS BIGINT) AS bytes FROM episodes WHERE tenant = $1 \
             GROUP BY task, outcome ORDER BY task, outcome",
        )
        .bind(tenant.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(TaskCount {
                    task: row.name("task")?,
                    outcome: row.word("outcome")?,
                    episodes: row.count("episodes")?,
                    steps: row.count("steps")?,
                    bytes: row.count("bytes")?,
                })
            })
            .collect()
    }
}
