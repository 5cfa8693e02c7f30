//! Anything that holds the episodes of one snapshot: a local directory here, the hub's store there.
//!
//! A source hands out bytes; it may check them, but nobody relies on it: the loader verifies every hash.

use zunft_protocol::ids::{ChunkId, EpisodeId};
use zunft_protocol::snapshot::Snapshot;

/// Episodes by id, as stored.
pub trait EpisodeSource {
    /// The snapshot whose episodes this source holds.
    fn snapshot(&self) -> &Snapshot;

    /// Encoded manifest of an episode of the snapshot.
    fn manifest(&mut self, id: EpisodeId) -> Result<Vec<u8>, SourceError>;

    /// Stored bytes of a chunk that one of those manifests lists.
    fn chunk(&mut self, id: ChunkId) -> Result<Vec<u8>, SourceError>;
}

/// Why a source did not hand out bytes.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The snapshot names it, the source lacks it.
    #[error("{what} {id} is missing; fetch or import the snapshot again")]
    Missing {
        /// `episode` or `chunk`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// Bytes that are not what their id says.
    #[error("{what} {id} is damaged: its bytes have another hash; fetch or import the snapshot again")]
    Damaged {
        /// `episode` or `chunk`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// Disk or database failed.
    #[error("{what} {id} could not be read")]
    Read {
        /// `episode` or `chunk`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
