//! Chunks that no episode names, and packs in which nothing is left.
//!
//! An episode names its chunks in the transaction that lists it, so what is unnamed here nobody was told of. Whatever
//! still counts on such a chunk asks [`Metadata::keep_chunks`]: its answer holds for as long as chunks are kept.

use std::collections::BTreeSet;
use std::time::Duration;

use zunft_protocol::ids::{ChunkId, Digest, RecordingId, TenantId};

use super::episodes::IDS_PER_STATEMENT;
use super::sql::{Row, Statement, Transaction, query};
use super::{Metadata, MetadataError};
use crate::store::Forget;

/// Chunks that were set down or asked for within this time are not written anew each time that they are asked for.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(3600);

/// Rows taken out at once: other writers wait meanwhile.
const ROWS_PER_DELETE: i64 = 1000;

impl Metadata {
    /// Says which of these chunks the tenant has, and that somebody counts on them: the unnamed ones count as new.
    pub(crate) async fn keep_chunks(
        &self,
        tenant: &TenantId,
        ids: &BTreeSet<ChunkId>,
        now_unix_ms: u64,
    ) -> Result<BTreeSet<ChunkId>, MetadataError> {
        let ids: Vec<ChunkId> = ids.iter().copied().collect();
        let stale = now_unix_ms.saturating_sub(KEPT_FOR.as_millis() as u64);
        let mut present = BTreeSet::new();
        for ids in ids.chunks(IDS_PER_STATEMENT) {
            let rows = of(ids, tenant, "SELECT chunk, COALESCE(unnamed_unix_ms, -1) AS unnamed_unix_ms FROM chunks");
            let rows = rows.fetch_all(&self.readers).await?;
            let mut old = false;
            for row in &rows {
                old |= (0..stale as i64).contains(&row.try_get("unnamed_unix_ms")?);
            }
            let rows = if old { self.renew(tenant, ids, now_unix_ms).await? } else { rows };
            for row in &rows {
                present.insert(ChunkId::from_bytes(row.bytes("chunk")?));
            }
        }
        Ok(present)
    }

    /// Makes the unnamed ones new; what is there then stays for as long as chunks are kept.
    async fn renew(&self, tenant: &TenantId, ids: &[ChunkId], now_unix_ms: u64) -> Result<Vec<Row>, MetadataError> {
        let mut transaction = self.begin().await?;
        let mut renewing = Statement::begin("UPDATE chunks SET unnamed_unix_ms = ");
        renewing.push_bind(now_unix_ms as i64).push(" WHERE unnamed_unix_ms < ").push_bind(now_unix_ms as i64);
        among(&mut renewing, " AND tenant = ", tenant, ids);
        renewing.execute(&mut transaction).await?;
        let rows = of(ids, tenant, "SELECT chunk FROM chunks").fetch_all(&mut transaction).await?;
        transaction.commit().await?;
        Ok(rows)
    }
}

/// An episode names chunks that were stored before it.
pub(super) async fn name_chunks(
    transaction: &mut Transaction,
    tenant: &TenantId,
    ids: &[ChunkId],
) -> Result<(), MetadataError> {
    for ids in ids.chunks(IDS_PER_STATEMENT) {
        let mut naming = Statement::begin("UPDATE chunks SET unnamed_unix_ms = NULL WHERE unnamed_unix_ms IS NOT NULL");
        among(&mut naming, " AND tenant = ", tenant, ids);
        naming.execute(&mut *transaction).await?;
    }
    Ok(())
}

impl Forget for Metadata {
    async fn forget_chunks(&self, tenant: &TenantId, before_unix_ms: u64) -> Result<u64, MetadataError> {
        let mut forgotten = 0;
        loop {
            let rows = query(
                "DELETE FROM chunks WHERE tenant = $1 AND chunk IN (SELECT chunk FROM chunks \
                 WHERE tenant = $2 AND unnamed_unix_ms < $3 LIMIT $4) RETURNING position",
            )
            .bind(tenant.as_str())
            .bind(tenant.as_str())
            .bind(before_unix_ms.min(i64::MAX as u64) as i64)
            .bind(ROWS_PER_DELETE)
            .fetch_all(&self.writer)
            .await?;
            forgotten += rows.len() as u64;
            if rows.len() < ROWS_PER_DELETE as usize {
                return Ok(forgotten);
            }
        }
    }

    async fn empty_packs(&self, tenant: &TenantId, before_unix_ms: u64) -> Result<Vec<Digest>, MetadataError> {
        let rows = query(
            "SELECT pack FROM packs WHERE tenant = $1 AND stored_unix_ms < $2 \
             AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.tenant = packs.tenant AND chunks.pack = packs.pack) \
             AND NOT EXISTS (SELECT 1 FROM episodes WHERE episodes.tenant = packs.tenant \
             AND episodes.pack = packs.pack)",
        )
        .bind(tenant.as_str())
        .bind(before_unix_ms.min(i64::MAX as u64) as i64)
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok(Digest::from_bytes(row.bytes("pack")?))).collect()
    }

    async fn forget_pack(&self, tenant: &TenantId, pack: Digest) -> Result<bool, MetadataError> {
        let gone = query(
            "DELETE FROM packs WHERE tenant = $1 AND pack = $2 \
             AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunks.tenant = packs.tenant AND chunks.pack = packs.pack) \
             AND NOT EXISTS (SELECT 1 FROM episodes WHERE episodes.tenant = packs.tenant \
             AND episodes.pack = packs.pack) RETURNING bytes",
        )
        .bind(tenant.as_str())
        .bind(pack.as_bytes().as_slice())
        .fetch_optional(&self.writer)
        .await?;
        Ok(gone.is_some())
    }

    async fn recorded(
        &self,
        tenant: &TenantId,
        recordings: &[RecordingId],
    ) -> Result<BTreeSet<RecordingId>, MetadataError> {
        Ok(self.known(tenant, recordings, &[]).await?.0.into_keys().collect())
    }
}

/// A statement about some of the tenant's chunks.
fn of(ids: &[ChunkId], tenant: &TenantId, sql: &'static str) -> Statement {
    let mut statement = Statement::begin(sql);
    among(&mut statement, " WHERE tenant = ", tenant, ids);
    statement
}

fn among(statement: &mut Statement, joined: &'static str, tenant: &TenantId, ids: &[ChunkId]) {
    statement.push(joined).push_bind(tenant.as_str()).push(" AND chunk IN ");
    statement.push_list(ids.iter().map(|id| id.as_bytes().as_slice()));
}
