//! What the metadata says about packs, row by row: for comparing with the packs themselves, and for setting it right.

use std::collections::{BTreeMap, BTreeSet};

use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, RobotId, TenantId};

use super::sql::{Row, Transaction, query};
use super::{Metadata, MetadataError};
use crate::store::pack::{Entry, EntryKind};

/// An episode's place in the listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedEpisode {
    pub(crate) id: EpisodeId,
    pub(crate) robot: RobotId,
    pub(crate) arrival: u64,
    pub(crate) pack: Digest,
    pub(crate) position: u64,
    pub(crate) bytes: u32,
}

/// A pack that takes another one's place.
#[derive(Debug)]
pub(crate) struct Replacement<'a> {
    pub(crate) pack: Digest,
    pub(crate) bytes: u64,
    pub(crate) entries: &'a [Entry],
}

impl Metadata {
    /// Every pack that the tenant's rows know, with its size.
    pub(crate) async fn packs(&self, tenant: &TenantId) -> Result<BTreeMap<Digest, u64>, MetadataError> {
        let rows = query("SELECT pack, bytes FROM packs WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok((Digest::from_bytes(row.bytes("pack")?), row.count("bytes")?))).collect()
    }

    /// What rows say lies in a pack, by position.
    pub(crate) async fn entries_of(&self, tenant: &TenantId, pack: Digest) -> Result<Vec<Entry>, MetadataError> {
        let mut entries = Vec::new();
        let pack = pack.as_bytes().as_slice();
        let rows = query("SELECT chunk AS id, position, bytes, key_id FROM chunks WHERE tenant = $1 AND pack = $2")
            .bind(tenant.as_str())
            .bind(pack)
            .fetch_all(&self.readers)
            .await?;
        for row in &rows {
            entries.push(entry(row, EntryKind::Chunk)?);
        }
        let rows = query(
            "SELECT episode AS id, position, manifest_bytes AS bytes, key_id FROM episodes \
             WHERE tenant = $1 AND pack = $2",
        )
        .bind(tenant.as_str())
        .bind(pack)
        .fetch_all(&self.readers)
        .await?;
        for row in &rows {
            entries.push(entry(row, EntryKind::Manifest)?);
        }
        entries.sort_by_key(|entry| entry.position);
        Ok(entries)
    }

    /// Episodes in the order of arrival, from after `arrival`, at most `limit`.
    pub(crate) async fn listed_episodes(
        &self,
        tenant: &TenantId,
        arrival: u64,
        limit: u32,
    ) -> Result<Vec<ListedEpisode>, MetadataError> {
        let rows = query(
            "SELECT episode, robot, arrival, pack, position, manifest_bytes FROM episodes \
             WHERE tenant = $1 AND arrival > $2 ORDER BY arrival LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(arrival as i64)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ListedEpisode {
                    id: EpisodeId::from_bytes(row.bytes("episode")?),
                    robot: row.name("robot")?,
                    arrival: row.count("arrival")?,
                    pack: Digest::from_bytes(row.bytes("pack")?),
                    position: row.count("position")?,
                    bytes: row.count("manifest_bytes")? as u32,
                })
            })
            .collect()
    }

    /// Every blob that robots of the tenant may fetch, with its size.
    pub(crate) async fn blobs(&self, tenant: &TenantId) -> Result<BTreeMap<Digest, u64>, MetadataError> {
        let rows = query("SELECT digest, bytes FROM blobs WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok((Digest::from_bytes(row.bytes("digest")?), row.count("bytes")?))).collect()
    }

    /// Points all rows of `pack` to its replacement (which may be itself), all or none.
    ///
    /// Rows of chunks and episodes that the replacement lacks are taken out; the chunks' ids come back.
    pub(crate) async fn replace_pack(
        &self,
        tenant: &TenantId,
        pack: Digest,
        replacement: Option<&Replacement<'_>>,
        now_unix_ms: u64,
    ) -> Result<BTreeSet<ChunkId>, MetadataError> {
        let known = self.entries_of(tenant, pack).await?;
        let mut places: BTreeMap<(EntryKind, Digest), &Entry> = BTreeMap::new();
        let mut transaction = self.begin().await?;
        if let Some(new) = replacement {
            places.extend(new.entries.iter().map(|entry| ((entry.kind, entry.id), entry)));
            query(
                "INSERT INTO packs (tenant, pack, bytes, stored_unix_ms) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (tenant, pack) DO NOTHING",
            )
            .bind(tenant.as_str())
            .bind(new.pack.as_bytes().as_slice())
            .bind(new.bytes as i64)
            .bind(now_unix_ms as i64)
            .execute(&mut transaction)
            .await?;
        }
        let mut lost = BTreeSet::new();
        for entry in &known {
            let place = places.get(&(entry.kind, entry.id));
            match (replacement, place) {
                (Some(new), Some(place)) => point(&mut transaction, tenant, new.pack, place).await?,
                (None, _) | (_, None) => {
                    take_out(&mut transaction, tenant, entry).await?;
                    if entry.kind == EntryKind::Chunk {
                        lost.insert(ChunkId::from_bytes(*entry.id.as_bytes()));
                    }
                }
            }
        }
        if replacement.is_none_or(|new| new.pack != pack) {
            query("DELETE FROM packs WHERE tenant = $1 AND pack = $2")
                .bind(tenant.as_str())
                .bind(pack.as_bytes().as_slice())
                .execute(&mut transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(lost)
    }

    /// Takes an episode out of the listing: its recording may be offered again.
    pub(crate) async fn forget_episode(&self, tenant: &TenantId, episode: EpisodeId) -> Result<(), MetadataError> {
        query("DELETE FROM episodes WHERE tenant = $1 AND episode = $2")
            .bind(tenant.as_str())
            .bind(episode.as_bytes().as_slice())
            .execute(&self.writer)
            .await?;
        Ok(())
    }
}

fn entry(row: &Row, kind: EntryKind) -> Result<Entry, MetadataError> {
    Ok(Entry {
        kind,
        id: Digest::from_bytes(row.bytes("id")?),
        position: row.count("position")?,
        bytes: row.count("bytes")? as u32,
        key_id: row.count("key_id")? as u32,
    })
}

/// Sets where an entry lies.
async fn point(
    transaction: &mut Transaction,
    tenant: &TenantId,
    pack: Digest,
    place: &Entry,
) -> Result<(), MetadataError> {
    let statement = match place.kind {
        EntryKind::Chunk => "UPDATE chunks SET pack = $1, position = $2, bytes = $3 WHERE tenant = $4 AND chunk = $5",
        EntryKind::Manifest => {
            "UPDATE episodes SET pack = $1, position = $2, manifest_bytes = $3 WHERE tenant = $4 AND episode = $5"
        }
    };
    query(statement)
        .bind(pack.as_bytes().as_slice())
        .bind(place.position as i64)
        .bind(i64::from(place.bytes))
        .bind(tenant.as_str())
        .bind(place.id.as_bytes().as_slice())
        .execute(transaction)
        .await?;
    Ok(())
}

/// Takes the row of an entry out.
async fn take_out(transaction: &mut Transaction, tenant: &TenantId, entry: &Entry) -> Result<(), MetadataError> {
    let statement = match entry.kind {
        EntryKind::Chunk => "DELETE FROM chunks WHERE tenant = $1 AND chunk = $2",
        EntryKind::Manifest => "DELETE FROM episodes WHERE tenant = $1 AND episode = $2",
    };
    query(statement).bind(tenant.as_str()).bind(entry.id.as_bytes().as_slice()).execute(transaction).await?;
    Ok(())
}
