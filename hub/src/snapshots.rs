//! Frozen lists of episodes, and reading what they list.
//!
//! Training reads a [`SnapshotSource`] and nothing else of the hub. What a query selects is decided by the metadata.

use tokio::runtime;
use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, SnapshotId, TenantId};
use zunft_protocol::snapshot::{Snapshot, SnapshotError};
use zunft_skills::data::{EpisodeSource, SourceError};

use crate::clock;
use crate::metadata::{EpisodeFilter, Location, Metadata, MetadataError, SnapshotRecord};
use crate::store::{Store, StoreError, pack_key, snapshot_key};

/// Why a snapshot cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotStoreError {
    /// Nothing to freeze.
    #[error("no episode passes the filter {query}; loosen it")]
    Empty {
        /// The filter as JSON.
        query: String,
    },
    /// No such snapshot.
    #[error("there is no snapshot {id}; list the snapshots that there are")]
    Missing {
        /// Which.
        id: SnapshotId,
    },
    /// The stored list cannot be trusted.
    #[error("snapshot {id} is damaged; restore it from a backup")]
    Damaged {
        /// Which.
        id: SnapshotId,
        /// What is wrong, where it can be read at all.
        #[source]
        source: Option<SnapshotError>,
    },
    /// The metadata.
    #[error("the snapshot's episodes could not be looked up")]
    Metadata(#[from] MetadataError),
    /// The store.
    #[error("the snapshot could not be stored or read")]
    Store(#[from] StoreError),
}

/// Freezes the episodes that pass `filter`.
pub(crate) async fn create(
    store: &Store,
    metadata: &Metadata,
    tenant: &TenantId,
    filter: &EpisodeFilter,
) -> Result<SnapshotRecord, SnapshotStoreError> {
    let query = serde_json::to_string(filter).expect("a filter has string keys");
    let episodes = metadata.snapshot_episodes(tenant, filter).await?;
    if episodes.is_empty() {
        return Err(SnapshotStoreError::Empty { query });
    }
    let snapshot = Snapshot::new(tenant.clone(), query.clone(), episodes);
    let (id, encoded) = (snapshot.id(), snapshot.encode());
    if let Some(present) = metadata.snapshot(tenant, id).await? {
        return Ok(present);
    }
    store.put(&snapshot_key(tenant, id), encoded.into()).await?;
    let episodes = snapshot.episodes.len() as u64;
    let record = SnapshotRecord { id, query, episodes, created_unix_ms: clock::unix_millis() };
    metadata.add_snapshot(tenant, &record).await?;
    Ok(record)
}

/// The episodes of one snapshot, read from packs and verified.
///
/// It waits for disk and database: call it from a thread of its own, never from the runtime's.
#[derive(Debug)]
pub struct SnapshotSource {
    snapshot: Snapshot,
    tenant: TenantId,
    store: Store,
    metadata: Metadata,
    runtime: runtime::Handle,
}

impl SnapshotSource {
    /// Opens a snapshot.
    pub(crate) async fn open(
        store: Store,
        metadata: Metadata,
        tenant: TenantId,
        id: SnapshotId,
    ) -> Result<Self, SnapshotStoreError> {
        if metadata.snapshot(&tenant, id).await?.is_none() {
            return Err(SnapshotStoreError::Missing { id });
        }
        let bytes = store.read(&snapshot_key(&tenant, id)).await?;
        if blake3::hash(&bytes).as_bytes() != id.as_bytes() {
            return Err(SnapshotStoreError::Damaged { id, source: None });
        }
        let snapshot =
            Snapshot::decode(&bytes).map_err(|source| SnapshotStoreError::Damaged { id, source: Some(source) })?;
        Ok(Self { snapshot, tenant, store, metadata, runtime: runtime::Handle::current() })
    }
}

impl EpisodeSource for SnapshotSource {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn manifest(&mut self, id: EpisodeId) -> Result<Vec<u8>, SourceError> {
        let location = self.metadata.manifest_location(&self.tenant, id);
        let read = read_located(&self.store, &self.tenant, location, *id.as_bytes());
        self.runtime.block_on(read).map_err(|fault| fault.about("episode", id.to_string()))
    }

    fn chunk(&mut self, id: ChunkId) -> Result<Vec<u8>, SourceError> {
        let location = self.metadata.chunk_location(&self.tenant, id);
        let read = read_located(&self.store, &self.tenant, location, *id.as_bytes());
        self.runtime.block_on(read).map_err(|fault| fault.about("chunk", id.to_string()))
    }
}

/// Why located bytes were not read.
pub(crate) enum ReadFault {
    Missing,
    Damaged,
    Metadata(MetadataError),
    Store(StoreError),
}

impl ReadFault {
    pub(crate) fn about(self, what: &'static str, id: String) -> SourceError {
        match self {
            Self::Missing => SourceError::Missing { what, id },
            Self::Damaged => SourceError::Damaged { what, id },
            Self::Metadata(source) => SourceError::Read { what, id, source: source.into() },
            Self::Store(source) => SourceError::Read { what, id, source: source.into() },
        }
    }
}

/// Reads bytes from where they lie and checks their hash.
pub(crate) async fn read_located(
    store: &Store,
    tenant: &TenantId,
    location: impl Future<Output = Result<Option<Location>, MetadataError>>,
    id: [u8; 32],
) -> Result<Vec<u8>, ReadFault> {
    let location = location.await.map_err(ReadFault::Metadata)?.ok_or(ReadFault::Missing)?;
    let range = location.position..location.position + u64::from(location.bytes);
    let bytes = store.read_range(&pack_key(tenant, location.pack), range).await.map_err(ReadFault::Store)?;
    if Digest::of(&bytes).as_bytes() != &id {
        return Err(ReadFault::Damaged);
    }
    Ok(bytes.into())
}
