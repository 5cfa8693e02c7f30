//! The metadata of the model: a small one in memory, or SQLite itself, with what may go wrong around it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, RecordingId, TenantId};

use super::{Power, Register, RegisterFault};
use crate::fixtures::tenant;
use crate::metadata::{Location, Metadata, MetadataError, NewPack, Registered};
use crate::store::Forget;

/// What the hub and the checker ask the metadata.
pub(super) trait Catalog: Register + Forget {
    /// Whether a power cut may come while it is asked: a database in memory would end with its connection.
    const CUT_ANYWHERE: bool;

    async fn episode_of(&self, recording: RecordingId) -> Option<EpisodeId>;
    async fn present(&self, ids: &[ChunkId]) -> BTreeSet<ChunkId>;
    async fn manifest_place(&self, episode: EpisodeId) -> Option<Location>;
    async fn chunk_place(&self, chunk: ChunkId) -> Option<Location>;
    async fn packs(&self) -> Vec<Digest>;
}

impl Catalog for Metadata {
    const CUT_ANYWHERE: bool = false;

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

    async fn packs(&self) -> Vec<Digest> {
        self.packs(&tenant()).await.unwrap().into_keys().collect()
    }
}

/// The least that metadata must do: what is registered is durable at once, and one episode has a recording.
#[derive(Debug, Clone, Default)]
pub(super) struct Model(Arc<Mutex<Tables>>);

#[derive(Debug, Default)]
struct Tables {
    packs: BTreeSet<Digest>,
    named: BTreeSet<ChunkId>,
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
        tables.packs.insert(pack.pack);
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
                    tables.named.extend(episode.manifest.chunks().map(|chunk| chunk.id));
                    Registered::Stored { stored_unix_ms: now_unix_ms }
                }
            });
        }
        Ok(outcomes)
    }
}

impl Tables {
    fn is_empty(&self, pack: Digest) -> bool {
        let manifests = self.episodes.values().map(|(_, place)| place);
        !self.chunks.values().chain(manifests).any(|place| place.pack == pack)
    }
}

/// In the model every unnamed chunk is old.
impl Forget for Model {
    async fn forget_chunks(&self, _tenant: &TenantId, _before_unix_ms: u64) -> Result<u64, MetadataError> {
        let mut tables = self.0.lock().unwrap();
        let (all, named) = (tables.chunks.len(), tables.named.clone());
        tables.chunks.retain(|id, _| named.contains(id));
        Ok((all - tables.chunks.len()) as u64)
    }

    async fn empty_packs(&self, _tenant: &TenantId, _before_unix_ms: u64) -> Result<Vec<Digest>, MetadataError> {
        let tables = self.0.lock().unwrap();
        Ok(tables.packs.iter().copied().filter(|&pack| tables.is_empty(pack)).collect())
    }

    async fn forget_pack(&self, _tenant: &TenantId, pack: Digest) -> Result<bool, MetadataError> {
        let mut tables = self.0.lock().unwrap();
        Ok(tables.is_empty(pack) && tables.packs.remove(&pack))
    }

    async fn recorded(
        &self,
        _tenant: &TenantId,
        recordings: &[RecordingId],
    ) -> Result<BTreeSet<RecordingId>, MetadataError> {
        let tables = self.0.lock().unwrap();
        Ok(recordings.iter().copied().filter(|recording| tables.episodes.contains_key(recording)).collect())
    }
}

impl Catalog for Model {
    const CUT_ANYWHERE: bool = true;

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

    async fn packs(&self) -> Vec<Digest> {
        self.0.lock().unwrap().packs.iter().copied().collect()
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
