//! Training runs: what was asked for, how far each is, and what came of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::{ReleaseId, SkillName, SnapshotId, TenantId};

use super::sql::{Row, query};
use super::{Metadata, MetadataError, json, word};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It waits for its turn.
    Queued,
    /// It trains. After the hub restarts it goes on from its last checkpoint.
    Running,
    /// It was asked to stop; it writes a checkpoint first.
    Stopping,
    /// Its package is written, and released where that was asked.
    Succeeded,
    /// It ended with an error, which the run holds.
    Failed,
    /// Someone stopped it; it can be resumed.
    Stopped,
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&word(self))
    }
}

/// One training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    /// Its number inside the tenant: 1, 2, 3, …
    pub run: u32,
    /// The skill it trains.
    pub skill: SkillName,
    /// What it trains on.
    pub snapshot: SnapshotId,
    /// How far it is.
    pub state: RunState,
    /// Everything that decides what it does.
    pub config: serde_json::Value,
    /// How far it is in numbers.
    pub progress: serde_json::Value,
    /// Why it failed.
    pub error: Option<String>,
    /// What it published, or is about to.
    pub release: Option<ReleaseId>,
    /// When it was asked for.
    pub created_unix_ms: u64,
    /// When this record last changed.
    pub updated_unix_ms: u64,
}

fn run_record(row: &Row) -> Result<RunRecord, MetadataError> {
    let run: String = row.try_get("run")?;
    let release: Option<String> = row.try_get("release")?;
    Ok(RunRecord {
        run: run.parse().map_err(|_| MetadataError::Damaged { column: "run", found: run })?,
        skill: row.name("skill")?,
        snapshot: SnapshotId::from_bytes(row.bytes("snapshot")?),
        state: row.word("state")?,
        config: row.json("config")?,
        progress: row.json("progress")?,
        error: row.try_get("error")?,
        release: release.map(|_| row.name("release")).transpose()?,
        created_unix_ms: row.count("created_unix_ms")?,
        updated_unix_ms: row.count("updated_unix_ms")?,
    })
}

impl Metadata {
    /// Writes a run, whether it is new or known.
    pub(crate) async fn put_run(&self, tenant: &TenantId, run: &RunRecord) -> Result<(), MetadataError> {
        query(
            "INSERT INTO runs (tenant, run, skill, snapshot, state, config, progress, error, release, \
             created_unix_ms, updated_unix_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (tenant, run) DO UPDATE SET snapshot = excluded.snapshot, state = excluded.state, \
             config = excluded.config, progress = excluded.progress, error = excluded.error, \
             release = excluded.release, updated_unix_ms = excluded.updated_unix_ms",
        )
        .bind(tenant.as_str())
        .bind(run.run.to_string())
        .bind(run.skill.as_str())
        .bind(run.snapshot.as_bytes().to_vec())
        .bind(word(&run.state))
        .bind(json(&run.config))
        .bind(json(&run.progress))
        .bind(run.error.clone())
        .bind(run.release.as_ref().map(ToString::to_string))
        .bind(run.created_unix_ms as i64)
        .bind(run.updated_unix_ms as i64)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// At most `limit` runs with numbers below `before`, the newest first.
    pub async fn runs(
        &self,
        tenant: &TenantId,
        before: Option<u32>,
        limit: u32,
    ) -> Result<Vec<RunRecord>, MetadataError> {
        let rows = query(
            "SELECT * FROM runs WHERE tenant = $1 AND CAST(run AS BIGINT) < $2 \
             ORDER BY CAST(run AS BIGINT) DESC LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(before.map_or(i64::MAX, i64::from))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(run_record).collect()
    }

    /// One run, where there is one of that number.
    pub async fn run(&self, tenant: &TenantId, run: u32) -> Result<Option<RunRecord>, MetadataError> {
        let row = query("SELECT * FROM runs WHERE tenant = $1 AND run = $2")
            .bind(tenant.as_str())
            .bind(run.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(run_record).transpose()
    }

    /// The runs of all tenants that have not ended, the oldest first.
    pub(crate) async fn unfinished_runs(&self) -> Result<Vec<(TenantId, RunRecord)>, MetadataError> {
        let rows = query(
            "SELECT * FROM runs WHERE state IN ('queued', 'running', 'stopping') \
             ORDER BY created_unix_ms, tenant, CAST(run AS BIGINT)",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((row.name("tenant")?, run_record(row)?))).collect()
    }
}
