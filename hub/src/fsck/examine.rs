//! Looks into one pack: which of its entries are what their ids say.
//!
//! Pure: bytes in, verdict out.

use bytes::Bytes;
use zunft_protocol::Manifest;
use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, TenantId};

use crate::metadata::{NewChunk, NewEpisode, NewPack};
use crate::store::pack::{Directory, Entry, EntryKind};

/// What is in a pack.
#[derive(Debug)]
pub(super) struct Examined {
    pub(super) bytes: Bytes,
    /// Entries whose bytes hash to their id, in the order of their positions.
    pub(super) intact: Vec<Entry>,
    /// How many do not.
    pub(super) broken: u64,
    /// Whether it describes itself, under its own name, and every entry is intact.
    pub(super) whole: bool,
}

/// Examines a pack. `known` is what the metadata says lies in it: that helps where its own directory is damaged.
pub(super) fn examine(tenant: &TenantId, name: Digest, bytes: Bytes, known: &[Entry]) -> Examined {
    let read = Directory::read(&bytes).ok().filter(|(directory, _)| directory.tenant == *tenant);
    let described = read.as_ref().is_some_and(|(_, found)| *found == name);
    let candidates = read.map_or_else(|| known.to_vec(), |(directory, _)| directory.entries);
    let count = candidates.len() as u64;
    let intact: Vec<Entry> = candidates.into_iter().filter(|entry| is_intact(tenant, &bytes, entry)).collect();
    let broken = count - intact.len() as u64;
    let whole = described && broken == 0;
    Examined { bytes, intact, broken, whole }
}

impl Examined {
    /// The stored bytes of an intact entry.
    pub(super) fn stored(&self, entry: &Entry) -> Bytes {
        let begin = entry.position as usize;
        self.bytes.slice(begin..begin + entry.bytes as usize)
    }

    /// The manifests in it.
    pub(super) fn manifests(&self) -> impl Iterator<Item = (&Entry, Manifest)> {
        let entries = self.intact.iter().filter(|entry| entry.kind == EntryKind::Manifest);
        entries.filter_map(|entry| Some((entry, Manifest::decode(&self.stored(entry)).ok()?)))
    }

    /// Its chunks, as a pack to be registered.
    pub(super) fn chunks(&self, name: Digest) -> NewPack {
        let entries = self.intact.iter().filter(|entry| entry.kind == EntryKind::Chunk);
        let chunks = entries.map(|entry| NewChunk {
            id: ChunkId::from_bytes(*entry.id.as_bytes()),
            position: entry.position,
            bytes: entry.bytes,
        });
        NewPack { pack: name, bytes: self.bytes.len() as u64, chunks: chunks.collect(), episodes: Vec::new() }
    }

    /// Its episodes, as a pack to be registered.
    pub(super) fn episodes(&self, name: Digest) -> NewPack {
        let episodes = self.manifests().map(|(entry, manifest)| NewEpisode {
            id: EpisodeId::from_bytes(*entry.id.as_bytes()),
            manifest,
            position: entry.position,
            bytes: entry.bytes,
        });
        NewPack { pack: name, bytes: self.bytes.len() as u64, chunks: Vec::new(), episodes: episodes.collect() }
    }
}

fn is_intact(tenant: &TenantId, pack: &[u8], entry: &Entry) -> bool {
    let range =
        usize::try_from(entry.position).ok().and_then(|begin| Some(begin..begin.checked_add(entry.bytes as usize)?));
    let Some(stored) = range.and_then(|range| pack.get(range)) else { return false };
    let hashed = Digest::of(stored) == entry.id;
    match entry.kind {
        EntryKind::Chunk => hashed,
        EntryKind::Manifest => hashed && Manifest::decode(stored).is_ok_and(|manifest| manifest.tenant == *tenant),
    }
}
