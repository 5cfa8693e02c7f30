//! What a training run reads: an immutable, content-addressed list of episodes that a query selected.
//!
//! The order is canonical (robot, recording ordinal), so that the order of arrival changes nothing.

use serde::{Deserialize, Serialize};

use crate::cbor::{self, CborError};
use crate::ids::{EpisodeId, RobotId, SnapshotId, TenantId};

/// The snapshot format written by this version.
pub const SNAPSHOT_VERSION: u16 = 1;

/// Largest encoded snapshot: about ten million episodes.
pub const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024 * 1024;

/// One episode of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotEpisode {
    /// Whose recording. Compared first: the order of the fields is the canonical order.
    pub robot: RobotId,
    /// Which of the robot's recordings.
    pub ordinal: u64,
    /// The episode.
    pub id: EpisodeId,
}

/// A frozen selection of episodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`].
    pub version: u16,
    /// Whose episodes: a snapshot never crosses tenants.
    pub tenant: TenantId,
    /// The query that selected them, for people.
    pub query: String,
    /// In canonical order, each once.
    pub episodes: Vec<SnapshotEpisode>,
}

/// Why bytes are not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not deterministic CBOR of the right fields.
    #[error("snapshot cannot be read")]
    Encoding(#[from] CborError),
    /// Written by a newer program.
    #[error("snapshot has version {found}; this program reads up to {SNAPSHOT_VERSION}: upgrade it")]
    Version {
        /// The version found.
        found: u16,
    },
    /// Episodes out of order or listed twice.
    #[error("snapshot lists its episodes out of canonical order or twice, at index {index}")]
    Order {
        /// Where.
        index: usize,
    },
}

impl Snapshot {
    /// Freezes `episodes`, given in any order; doubles become one.
    pub fn new(tenant: TenantId, query: String, mut episodes: Vec<SnapshotEpisode>) -> Self {
        episodes.sort();
        episodes.dedup();
        Self { version: SNAPSHOT_VERSION, tenant, query, episodes }
    }

    /// Encodes the snapshot.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// The hash that names it.
    pub fn id(&self) -> SnapshotId {
        SnapshotId::from_bytes(*blake3::hash(&self.encode()).as_bytes())
    }

    /// Reads and checks a snapshot.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Self = cbor::decode(bytes, SNAPSHOT_BYTES_MAX)?;
        if snapshot.version != SNAPSHOT_VERSION {
            return Err(SnapshotError::Version { found: snapshot.version });
        }
        match snapshot.episodes.windows(2).position(|pair| pair[0] >= pair[1]) {
            Some(index) => Err(SnapshotError::Order { index: index + 1 }),
            None => Ok(snapshot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(robot: &str, ordinal: u64) -> SnapshotEpisode {
        let id = EpisodeId::of(format!("{robot}{ordinal}").as_bytes());
        SnapshotEpisode { robot: robot.parse().unwrap(), ordinal, id }
    }

    #[test]
    fn order_of_arrival_changes_nothing() {
        let tenant: TenantId = "acme".parse().unwrap();
        let one = Snapshot::new(tenant.clone(), "all".into(), vec![episode("b", 0), episode("a", 10), episode("a", 9)]);
        let other = Snapshot::new(
            tenant,
            "all".into(),
            vec![episode("a", 9), episode("b", 0), episode("a", 10), episode("a", 9)],
        );
        assert_eq!(one.id(), other.id());
        let ordinals: Vec<u64> = one.episodes.iter().map(|episode| episode.ordinal).collect();
        assert_eq!(ordinals, [9, 10, 0]);
        assert_eq!(Snapshot::decode(&one.encode()).unwrap(), one);
    }

    #[test]
    fn disordered_snapshots_are_refused() {
        let mut snapshot =
            Snapshot::new("acme".parse().unwrap(), String::new(), vec![episode("a", 0), episode("a", 1)]);
        snapshot.episodes.swap(0, 1);
        assert!(matches!(Snapshot::decode(&snapshot.encode()), Err(SnapshotError::Order { index: 1 })));
    }
}
