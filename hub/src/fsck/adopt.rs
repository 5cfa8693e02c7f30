//! Registers packs that the metadata does not know: after a crash between the two, and to rebuild the metadata.

use std::collections::BTreeSet;

use tracing::{info, warn};
use zunft_protocol::Manifest;
use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, RobotId, TenantId};

use super::FsckError;
use super::examine::{Examined, examine};
use crate::identity::RobotIdentity;
use crate::metadata::{Metadata, Registered};
use crate::store::{Store, pack_key, packs_folder};

/// A pack to be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Orphan {
    /// When it became durable: its episodes arrive in that order.
    pub(super) written_unix_ms: u64,
    pub(super) pack: Digest,
}

/// What became of the episodes of some orphans.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Adopted {
    /// Listed now, some of them before.
    pub(super) stored: u64,
    /// Their recordings have other episodes.
    pub(super) rivals: Vec<EpisodeId>,
    /// Chunks that they need are nowhere.
    pub(super) incomplete: Vec<(EpisodeId, RobotId)>,
}

/// Registers the intact entries of packs, all chunks before any episode: an episode's may be in several.
///
/// Chunks that were `lost` and come back are named as they come: the episode that names them may be listed already, by
/// a manifest in a pack that is none of the orphans. One that no episode names stays for good; that costs its room.
pub(super) async fn adopt(
    store: &Store,
    metadata: &Metadata,
    tenant: &TenantId,
    orphans: &BTreeSet<Orphan>,
    lost: &BTreeSet<ChunkId>,
) -> Result<Adopted, FsckError> {
    for orphan in orphans {
        let chunks = read(store, tenant, orphan.pack).await?.chunks(orphan.pack);
        let back = chunks.chunks.iter().map(|chunk| chunk.id).filter(|id| lost.contains(id)).collect();
        metadata.register_named(tenant, &chunks, back, orphan.written_unix_ms).await?;
    }
    let mut adopted = Adopted::default();
    for orphan in orphans {
        let pack = read(store, tenant, orphan.pack).await?.episodes(orphan.pack);
        for episode in &pack.episodes {
            metadata.add_robot(&robot(&episode.manifest), orphan.written_unix_ms).await?;
        }
        let registered = metadata.register_pack(tenant, &pack, orphan.written_unix_ms).await?;
        for (episode, outcome) in pack.episodes.into_iter().zip(registered) {
            match outcome {
                Registered::Stored { .. } => adopted.stored += 1,
                Registered::Conflict => adopted.rivals.push(episode.id),
                Registered::ChunkMissing => adopted.incomplete.push((episode.id, episode.manifest.robot)),
            }
        }
    }
    Ok(adopted)
}

/// Reads a pack and hashes all of it.
pub(super) async fn read(store: &Store, tenant: &TenantId, pack: Digest) -> Result<Examined, FsckError> {
    let bytes = store.read(&pack_key(tenant, pack)).await?;
    let owner = tenant.clone();
    let examining = tokio::task::spawn_blocking(move || examine(&owner, pack, bytes, &[]));
    Ok(examining.await.expect("examining a pack does not panic"))
}

/// Registers packs that a hub wrote and did not live to register; the younger ones may be under way right now.
///
/// Their episodes were never acknowledged, but they are whole: their robots are told so at the next offer.
pub(crate) async fn sweep(store: &Store, metadata: &Metadata, written_before_unix_ms: u64) -> Result<u64, FsckError> {
    let mut stored = 0;
    for tenant in metadata.tenants().await? {
        let known = metadata.packs(&tenant).await?;
        let mut orphans = BTreeSet::new();
        for object in store.list(&packs_folder(&tenant)).await? {
            let name: Option<Digest> =
                object.key.filename().and_then(|name| name.strip_suffix(".pack")).and_then(|name| name.parse().ok());
            let Some(pack) = name.filter(|pack| !known.contains_key(pack)) else { continue };
            if object.written_unix_ms >= written_before_unix_ms {
                continue;
            }
            if read(store, &tenant, pack).await?.whole {
                orphans.insert(Orphan { written_unix_ms: object.written_unix_ms, pack });
            } else {
                warn!(%tenant, %pack, "a pack that nobody was told of is damaged; `zunft fsck --repair` moves it away");
            }
        }
        let adopted = adopt(store, metadata, &tenant, &orphans, &BTreeSet::new()).await?;
        if !orphans.is_empty() {
            info!(%tenant, packs = orphans.len(), episodes = adopted.stored, "packs of a hub that crashed are registered");
        }
        stored += adopted.stored;
    }
    Ok(stored)
}

fn robot(manifest: &Manifest) -> RobotIdentity {
    RobotIdentity { tenant: manifest.tenant.clone(), site: manifest.site.clone(), robot: manifest.robot.clone() }
}
