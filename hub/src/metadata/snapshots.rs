//! Which snapshots there are; their lists of episodes lie in the store.

use serde::Serialize;
use zunft_protocol::ids::{SnapshotId, TenantId};

use super::sql::{Row, query};
use super::{Metadata, MetadataError};

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// The query that selected its episodes, as JSON of an [`super::EpisodeFilter`].
    pub query: String,
    /// How many it lists.
    pub episodes: u64,
    /// When it was frozen.
    pub created_unix_ms: u64,
}

fn snapshot_record(row: &Row) -> Result<SnapshotRecord, MetadataError> {
    Ok(SnapshotRecord {
        id: SnapshotId::from_bytes(row.bytes("snapshot")?),
        query: row.try_get("query")?,
        episodes: row.count("episodes")?,
        created_unix_ms: row.count("created_unix_ms")?,
    })
}

impl Metadata {
    /// Records a snapshot whose list is stored, unless it is recorded.
    pub(crate) async fn add_snapshot(&self, tenant: &TenantId, record: &SnapshotRecord) -> Result<(), MetadataError> {
        query(
            "INSERT INTO snapshots (tenant, snapshot, query, episodes, created_unix_ms) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (tenant, snapshot) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(record.id.as_bytes().as_slice())
        .bind(&record.query)
        .bind(record.episodes as i64)
        .bind(record.created_unix_ms as i64)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// All snapshots of a tenant, the newest first.
    pub async fn snapshots(&self, tenant: &TenantId) -> Result<Vec<SnapshotRecord>, MetadataError> {
        let rows = query("SELECT * FROM snapshots WHERE tenant = $1 ORDER BY created_unix_ms DESC, snapshot")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(snapshot_record).collect()
    }

    /// One snapshot, where there is one.
    pub async fn snapshot(&self, tenant: &TenantId, id: SnapshotId) -> Result<Option<SnapshotRecord>, MetadataError> {
        let row = query("SELECT * FROM snapshots WHERE tenant = $1 AND snapshot = $2")
            .bind(tenant.as_str())
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(snapshot_record).transpose()
    }
}
