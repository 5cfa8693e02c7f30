//! The metadata of the model: a small one in memory, or SQLite itself, with what may go wrong around it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use zunft_protocol::ids::{ChunkId, EpisodeId, RecordingId, TenantId};

use super::{Power, Register, RegisterFault};
use crate::fixtures::tenant;
use crate::metadata::{Location, Metadata, MetadataError, NewPack, Registered};

/// What the hub and the checker ask the metadata.
pub(super) trait Catalog: Register {
    async fn episode_of(&self, recording: RecordingId) -> Option<EpisodeId>;
    async fn present(&self, ids: &[ChunkId]) -> BTreeSet<ChunkId>;
    async fn manifest_place(&self, episode: EpisodeId) -> Option<Location>;
    async fn chunk_place(&self, chunk: ChunkId) -> Option<Location>;
}

impl Catalog for Metadata {
    async fn episode_of(&self, recording: RecordingId) -> Option<EpisodeId> {
        self.episode_of_recording(&tenant(), recording).await.unwrap().map(|(episode, _)| episode)
    }

    async fn present(&self, ids: &[ChunkId]) -> BTreeSet<ChunkId> {
        self.present_chunks(&tenant(), ids).await.unwrap()
    }

    async fn manifest_place(&self, episode: EpisodeId) -> Option<Location> {
        self.manifest_location(&tenant(), episode).await.unwrap()
    }

    async fn chunk_place(&self, chunk: ChunkId) -> Option<Location> {
        self.chunk_location(&tenant(), chunk).await.unwrap()
    }
}

/// The least that metadata must do: what is registered is durable at once, and one episode has a recording.
#[derive(Debug, Clone, Default)]
pub(super) struct Model(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    chunks: BTreeMap<ChunkId, Location>,
    episodes: BTreeMap<RecordingId, (EpisodeId, Location)>,
}

impl Register for Model {
    async fn register(
        &self,
        _tenant: &TenantId,
        pack: &NewPack,
        now_unix_ms: u64,
    ) -> Result<Vec<Registered>, MetadataError> {
        let mut tables = self.0.lock().unwrap();
        for chunk in &pack.chunks {
            let place = Location { pack: pack.pack, position: chunk.position, bytes: chunk.bytes };
            tables.chunks.entry(chunk.id).or_insert(place);
        }
        let mut outcomes = Vec::new();
        for episode in &pack.episodes {
            let recording = episode.manifest.recording;
            outcomes.push(match tables.episodes.get(&recording) {
                Some((present, _)) if *present == episode.id => Registered::Stored { stored_unix_ms: now_unix_ms },
                Some(_) => Registered::Conflict,
                None if episode.manifest.chunks().any(|chunk| !tables.chunks.contains_key(&chunk.id)) => {
                    Registered::ChunkMissing
                }
                None => {
                    let place = Location { pack: pack.pack, position: episode.position, bytes: episode.bytes };
                    tables.episodes.insert(recording, (episode.id, place));
                    Registered::Stored { stored_unix_ms: now_unix_ms }
                }
            });
        }
        Ok(outcomes)
    }
}

impl Catalog for Model {
    async fn episode_of(&self, recording: RecordingId) -> Option<EpisodeId> {
        self.0.lock().unwrap().episodes.get(&recording).map(|(episode, _)| *episode)
    }

    async fn present(&self, ids: &[ChunkId]) -> BTreeSet<ChunkId> {
        let tables = self.0.lock().unwrap();
        ids.iter().copied().filter(|id| tables.chunks.contains_key(id)).collect()
    }

    async fn manifest_place(&self, episode: EpisodeId) -> Option<Location> {
        let tables = self.0.lock().unwrap();
        tables.episodes.values().find(|(id, _)| *id == episode).map(|(_, place)| *place)
    }

    async fn chunk_place(&self, chunk: ChunkId) -> Option<Location> {
        self.0.lock().unwrap().chunks.get(&chunk).copied()
    }
}

/// A catalog at which something may go wrong the next time.
#[derive(Debug, Clone)]
pub(super) struct Catalogued<C> {
    pub(super) inner: C,
    fault: Arc<Mutex<RegisterFault>>,
    power: Arc<Power>,
}

impl<C> Catalogued<C> {
    pub(super) fn new(inner: C, power: Arc<Power>) -> Self {
        Self { inner, fault: Arc::new(Mutex::new(RegisterFault::None)), power }
    }

    pub(super) fn arm(&self, fault: RegisterFault) {
        *self.fault.lock().unwrap() = fault;
    }
}

impl<C: Register> Register for Catalogued<C> {
    async fn register(
        &self,
        tenant: &TenantId,
        pack: &NewPack,
        now_unix_ms: u64,
    ) -> Result<Vec<Registered>, MetadataError> {
        let fault = std::mem::replace(&mut *self.fault.lock().unwrap(), RegisterFault::None);
        match fault {
            RegisterFault::Refused => return Err(MetadataError::Full),
            RegisterFault::CutBefore => self.power.cut().await,
            RegisterFault::None | RegisterFault::CommittedUnheard | RegisterFault::CutAfter => {}
        }
        let registered = self.inner.register(tenant, pack, now_unix_ms).await;
        match fault {
            RegisterFault::CommittedUnheard => Err(MetadataError::Database(sqlx::Error::WorkerCrashed)),
            RegisterFault::CutAfter => self.power.cut().await,
            RegisterFault::None | RegisterFault::Refused | RegisterFault::CutBefore => registered,
        }
    }
}
