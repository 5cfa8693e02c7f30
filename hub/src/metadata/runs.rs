//! Training runs: what was asked for, how far each is, and what came of it.

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use zunft_protocol::ids::{ReleaseId, SkillName, SnapshotId, TenantId};

use super::{Column as _, Metadata, MetadataError, json, word};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// It waits for its turn.
    Queued,
    /// It trains.
    Running,
    /// Its release is published.
    Succeeded,
    /// It stopped with an error.
    Failed,
    /// Someone stopped it.
    Cancelled,
}

/// One training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    /// Its name, unique inside the tenant.
    pub run: String,
    /// The skill it trains.
    pub skill: SkillName,
    /// What it trains on.
    pub snapshot: Option<SnapshotId>,
    /// How far it is.
    pub state: RunState,
    /// The configuration as it is run.
    pub config: serde_json::Value,
    /// The last progress that it reported.
    pub progress: serde_json::Value,
    /// Why it failed.
    pub error: Option<String>,
    /// What it published.
    pub release: Option<ReleaseId>,
    /// When it was asked for.
    pub created_unix_ms: u64,
    /// When this record last changed.
    pub updated_unix_ms: u64,
}

fn run_record(row: &SqliteRow) -> Result<RunRecord, MetadataError> {
    let snapshot: Option<Vec<u8>> = row.try_get("snapshot")?;
    let release: Option<String> = row.try_get("release")?;
    Ok(RunRecord {
        run: row.try_get("run")?,
        skill: row.name("skill")?,
        snapshot: snapshot.map(|_| row.bytes("snapshot")).transpose()?.map(SnapshotId::from_bytes),
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
    pub async fn put_run(&self, tenant: &TenantId, run: &RunRecord) -> Result<(), MetadataError> {
        sqlx::query(
            "INSERT INTO runs (tenant, run, skill, snapshot, state, config, progress, error, release, \
             created_unix_ms, updated_unix_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (tenant, run) DO UPDATE SET snapshot = excluded.snapshot, state = excluded.state, \
             progress = excluded.progress, error = excluded.error, release = excluded.release, \
             updated_unix_ms = excluded.updated_unix_ms",
        )
        .bind(tenant.as_str())
        .bind(&run.run)
        .bind(run.skill.as_str())
        .bind(run.snapshot.map(|id| id.as_bytes().to_vec()))
        .bind(word(&run.state))
        .bind(json(&run.config))
        .bind(json(&run.progress))
        .bind(&run.error)
        .bind(run.release.as_ref().map(ToString::to_string))
        .bind(run.created_unix_ms as i64)
        .bind(run.updated_unix_ms as i64)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// All runs of a tenant, the newest first.
    pub async fn runs(&self, tenant: &TenantId) -> Result<Vec<RunRecord>, MetadataError> {
        let rows = sqlx::query("SELECT * FROM runs WHERE tenant = $1 ORDER BY created_unix_ms DESC, run")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(run_record).collect()
    }

    /// One run, where there is one of that name.
    pub async fn run(&self, tenant: &TenantId, run: &str) -> Result<Option<RunRecord>, MetadataError> {
        let row = sqlx::query("SELECT * FROM runs WHERE tenant = $1 AND run = $2")
            .bind(tenant.as_str())
            .bind(run)
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(run_record).transpose()
    }
}
