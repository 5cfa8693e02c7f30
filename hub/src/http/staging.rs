//! Chunks that wait for the manifest that lists them.
//!
//! They lie in memory, bounded; when it is full the oldest go first. Nothing is promised for them: whoever posts
//! the manifest learns which are missing and sends those again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;
use zunft_protocol::ids::ChunkId;

/// Most bytes of waiting chunks, which is also the largest episode that can be imported over HTTP.
///
/// An hour of fifty numbers at 200 Hz has 150 MB before compression.
pub(super) const STAGED_BYTES_MAX: usize = 256 * 1024 * 1024;

#[derive(Debug, Default)]
struct Staged {
    chunks: HashMap<ChunkId, Bytes>,
    arrival: VecDeque<ChunkId>,
    bytes: usize,
}

/// The waiting chunks.
#[derive(Debug, Default)]
pub(super) struct ChunkStaging(Mutex<Staged>);

impl ChunkStaging {
    /// Keeps a chunk, whose id was checked.
    pub(super) fn put(&self, id: ChunkId, bytes: Bytes) {
        let mut staged = self.lock();
        if staged.chunks.contains_key(&id) {
            return;
        }
        staged.bytes += bytes.len();
        staged.chunks.insert(id, bytes);
        staged.arrival.push_back(id);
        while staged.bytes > STAGED_BYTES_MAX {
            let oldest = staged.arrival.pop_front().expect("bytes are counted of chunks in line");
            staged.remove(oldest);
        }
    }

    /// All of `ids` in their order, or those that are missing.
    pub(super) fn collect(&self, ids: &[ChunkId]) -> Result<Vec<Vec<u8>>, Vec<ChunkId>> {
        let staged = self.lock();
        let mut missing: Vec<ChunkId> = ids.iter().copied().filter(|id| !staged.chunks.contains_key(id)).collect();
        if missing.is_empty() {
            return Ok(ids.iter().map(|id| staged.chunks[id].to_vec()).collect());
        }
        missing.sort();
        missing.dedup();
        Err(missing)
    }

    /// Forgets chunks that are stored now.
    pub(super) fn forget(&self, ids: &[ChunkId]) {
        let mut staged = self.lock();
        for id in ids {
            staged.remove(*id);
        }
        let Staged { chunks, arrival, .. } = &mut *staged;
        arrival.retain(|id| chunks.contains_key(id));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Staged> {
        // Every change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Staged {
    fn remove(&mut self, id: ChunkId) {
        if let Some(bytes) = self.chunks.remove(&id) {
            self.bytes -= bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_chunks_make_room_and_are_named_as_missing() {
        let staging = ChunkStaging::default();
        let third = STAGED_BYTES_MAX / 3 + 1;
        let ids: Vec<ChunkId> = (0..3_u8).map(|i| ChunkId::of(&[i])).collect();
        for id in &ids {
            staging.put(*id, vec![0; third].into());
        }
        assert_eq!(staging.collect(&ids), Err(vec![ids[0]]));
        assert_eq!(staging.collect(&ids[1..]).unwrap().len(), 2);
        staging.forget(&ids);
        assert_eq!(staging.lock().bytes, 0);
        assert!(staging.lock().arrival.is_empty());
    }
}
