//! One running hub: everything that people and programs can ask of it, in-process.
//!
//! The HTTP API, the command line and the demo all go through [`Handle`]; none of them sees stores or sockets.

use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;
use tokio::sync::broadcast;
use zunft_protocol::Manifest;
use zunft_protocol::ids::{EpisodeId, ReleaseId, RobotId, SkillName, SkillVersion, SnapshotId, TenantId};

use crate::config::HubConfig;
use crate::identity::RobotIdentity;
use crate::metadata::{
    AssignmentRecord, EpisodeFilter, EpisodePage, EpisodeRecord, Metadata, MetadataError, ReleaseRecord, RobotRecord,
    SnapshotRecord,
};
use crate::pki::RobotCredentials;

/// A hub that is not running yet.
#[derive(Debug)]
pub struct Hub;

/// A running hub. Clones are the same hub.
#[derive(Debug, Clone)]
pub struct Handle {
    _private: (),
}

/// A robot with what is known now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RobotStatus {
    /// As it last was.
    #[serde(flatten)]
    pub record: RobotRecord,
    /// Whether it is connected.
    pub connected: bool,
    /// What it shall run.
    pub assignment: Option<AssignmentRecord>,
}

/// Something changed. A subscriber that lags misses some and should list again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Change {
    /// A robot was added, connected, went away or reported.
    Robot {
        /// Whose.
        tenant: TenantId,
        /// Which.
        robot: RobotId,
    },
    /// An episode became durable.
    Episode {
        /// Whose.
        tenant: TenantId,
        /// Which.
        episode: EpisodeId,
    },
    /// A release was published.
    Release {
        /// Whose.
        tenant: TenantId,
        /// Which.
        release: ReleaseId,
    },
    /// A robot was assigned something.
    Assignment {
        /// Whose.
        tenant: TenantId,
        /// Which robot.
        robot: RobotId,
    },
    /// A training run changed.
    Run {
        /// Whose.
        tenant: TenantId,
        /// Which.
        run: String,
    },
}

/// Which robots get a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignTo {
    /// Every robot of the tenant.
    All,
    /// These.
    Robots(Vec<RobotId>),
}

/// Why an operation failed; replaced by one error a operation.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The metadata.
    #[error("metadata failed")]
    Metadata(#[from] MetadataError),
}

impl Hub {
    /// Starts a hub: keys, store, metadata and the QUIC port.
    pub async fn start(_config: HubConfig) -> Result<Handle, HubError> {
        unimplemented!("lands next")
    }

    /// Makes everything that a first start makes, without starting.
    pub async fn init(_config: &HubConfig) -> Result<(), HubError> {
        unimplemented!("lands next")
    }
}

#[allow(clippy::allow_attributes, clippy::unused_async, reason = "signatures; bodies land next")]
impl Handle {
    /// The configuration in force.
    pub fn config(&self) -> &HubConfig {
        unimplemented!("lands next")
    }

    /// Where robots connect: the port is real even where the configuration said 0.
    pub fn quic_addr(&self) -> SocketAddr {
        unimplemented!("lands next")
    }

    /// The token that opens the whole HTTP API (also in `pki/admin.token`).
    pub fn admin_token(&self) -> &str {
        unimplemented!("lands next")
    }

    /// The metadata, for runs and plain listings (`put_run`, `runs`, `run`, `snapshots`, `releases`, `skills`, ...).
    pub fn metadata(&self) -> &Metadata {
        unimplemented!("lands next")
    }

    /// Changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        unimplemented!("lands next")
    }

    /// Tells subscribers of a change that the caller made (the trainer: `Change::Run`).
    pub fn announce(&self, _change: Change) {
        unimplemented!("lands next")
    }

    /// Adds a robot (again: a further certificate for it) and makes its credentials.
    pub async fn add_robot(&self, _identity: &RobotIdentity) -> Result<RobotCredentials, HubError> {
        unimplemented!("lands next")
    }

    /// All robots of a tenant, by name.
    pub async fn robots(&self, _tenant: &TenantId) -> Result<Vec<RobotStatus>, HubError> {
        unimplemented!("lands next")
    }

    /// One robot.
    pub async fn robot(&self, _tenant: &TenantId, _robot: &RobotId) -> Result<Option<RobotStatus>, HubError> {
        unimplemented!("lands next")
    }

    /// Episodes in the order of arrival.
    pub async fn episodes(
        &self,
        _tenant: &TenantId,
        _filter: &EpisodeFilter,
        _limit: u32,
    ) -> Result<EpisodePage, HubError> {
        unimplemented!("lands next")
    }

    /// One episode with its manifest.
    pub async fn episode(
        &self,
        _tenant: &TenantId,
        _id: EpisodeId,
    ) -> Result<Option<(EpisodeRecord, Manifest)>, HubError> {
        unimplemented!("lands next")
    }

    /// Stores an episode that did not come over QUIC (an import); durable when this returns.
    ///
    /// Its robot is added without a certificate where it is unknown.
    pub async fn import_episode(&self, _manifest: Vec<u8>, _chunks: Vec<Vec<u8>>) -> Result<EpisodeId, HubError> {
        unimplemented!("lands next")
    }

    /// Freezes the episodes that pass the filter.
    pub async fn create_snapshot(
        &self,
        _tenant: &TenantId,
        _filter: &EpisodeFilter,
    ) -> Result<SnapshotRecord, HubError> {
        unimplemented!("lands next")
    }

    /// The version that the skill's next release will have; write the package with it, then publish.
    pub async fn next_version(&self, _tenant: &TenantId, _skill: &SkillName) -> Result<SkillVersion, HubError> {
        unimplemented!("lands next")
    }

    /// Publishes a package directory: checks every byte, signs it with the development key unless it is signed.
    pub async fn publish(&self, _tenant: &TenantId, _package: &Path) -> Result<ReleaseRecord, HubError> {
        unimplemented!("lands next")
    }

    /// Gives robots a release in place of its skill's present one; connected robots hear of it at once.
    pub async fn assign(
        &self,
        _tenant: &TenantId,
        _to: &AssignTo,
        _release: &ReleaseId,
    ) -> Result<Vec<RobotId>, HubError> {
        unimplemented!("lands next")
    }

    /// Waits for a snapshot's content to read it: an `EpisodeSource` for training, used from a blocking thread.
    pub async fn snapshot_source(
        &self,
        _tenant: &TenantId,
        _id: SnapshotId,
    ) -> Result<crate::snapshots::SnapshotSource, HubError> {
        unimplemented!("lands next")
    }

    /// Stops in order: no new robots, open uploads finish or are handed back, everything is flushed.
    pub async fn shutdown(self) {
        unimplemented!("lands next")
    }
}
