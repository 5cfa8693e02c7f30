//! One running hub: everything that people and programs can ask of it, in-process.
//!
//! The HTTP API, the command line and the demo all go through [`Handle`]; none of them sees stores or sockets.
//! Stop order: no new robots, open uploads finish, connections close with a code, the last commit, the metadata, and
//! last the lock on the data directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use zunft_protocol::Manifest;
use zunft_protocol::episode::ManifestError;
use zunft_protocol::ids::{
    ChunkId, Digest, EpisodeId, RecordingId, ReleaseId, RobotId, SiteId, SkillName, SkillVersion, SnapshotId, TenantId,
};
use zunft_protocol::message::ChunkBytes;
use zunft_protocol::upload_policy::{HubPolicy, PushedPolicy};

use crate::clock;
use crate::config::{ConfigError, HubConfig, StoreConfig};
use crate::data_dir::{DataDir, DataDirError};
use crate::fsck;
use crate::identity::RobotIdentity;
use crate::ingest::{Ingest, ListenError};
use crate::metadata::{
    AssignmentRecord, EpisodeFilter, EpisodePage, EpisodeRecord, EvictionRecord, Metadata, MetadataError, NotedCursor,
    NotedRecord, PolicyScope, RecordingCursor, ReleaseRecord, RobotRecord, SnapshotRecord, UploadPolicies,
    UploadPolicyRecord,
};
use crate::pki::{Pki, PkiError, RobotCredentials, default_tenant};
use crate::registry::{self, PublishError};
pub use crate::services::Change;
use crate::services::Services;
use crate::snapshots::{self, ReadFault, SnapshotSource, SnapshotStoreError};
use crate::store::{CommitError, Committer, Store, StoreError, Submission, Whole, blob_key};

/// How old a pack is that a hub wrote and did not live to register: younger ones may be under way.
const ORPHAN_GRACE: Duration = Duration::from_secs(600);

/// How often chunks are looked for whose episode never came.
const FORGET_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// A hub that is not running yet.
#[derive(Debug)]
pub struct Hub;

/// A running hub. Clones are the same hub.
#[derive(Debug, Clone)]
pub struct Handle {
    inner: Arc<Running>,
}

#[derive(Debug)]
struct Running {
    services: Arc<Services>,
    ingest: Ingest,
    committing: TaskTracker,
    /// Ends the search for packs that nobody registered.
    stop_sweep: CancellationToken,
    /// Given back last, when the hub has stopped.
    data_dir: Mutex<Option<DataDir>>,
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
    /// What it may upload, and whose policy that is; `None`: its own file's.
    pub upload_policy: (PushedPolicy, Option<PolicyScope>),
}

/// Which robots get a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssignTo {
    /// Every robot of the tenant whose body it fits, or has not been told yet.
    All,
    /// These.
    Robots(Vec<RobotId>),
}

/// Why a hub does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error("the hub's configuration cannot be used")]
    Config(#[from] ConfigError),
    /// The data directory.
    #[error("the hub's data directory cannot be used")]
    DataDir(#[from] DataDirError),
    /// The keys.
    #[error("the hub's keys cannot be used")]
    Pki(#[from] PkiError),
    /// The metadata.
    #[error("the hub's metadata cannot be used")]
    Metadata(#[from] MetadataError),
    /// The store.
    #[error("the hub's experience store cannot be used")]
    Store(#[from] StoreError),
    /// The port.
    #[error("the hub cannot listen")]
    Listen(#[from] ListenError),
}

/// Why a robot is not added.
#[derive(Debug, thiserror::Error)]
pub enum AddRobotError {
    /// It is somewhere else.
    #[error("robot {robot} is at site {found} already; use that site or another name")]
    OtherSite {
        /// Which robot.
        robot: RobotId,
        /// Where it is.
        found: SiteId,
    },
    /// Its certificate.
    #[error("robot's certificate could not be made")]
    Pki(#[from] PkiError),
    /// The metadata.
    #[error("robot could not be registered")]
    Metadata(#[from] MetadataError),
}

/// Why an episode is not imported. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Its manifest.
    #[error("the episode's manifest is refused")]
    Manifest(#[from] ManifestError),
    /// A chunk.
    #[error("chunk {index} is missing or not what the manifest lists; pass every chunk in the manifest's order")]
    Chunk {
        /// Which.
        index: usize,
    },
    /// Over a bound.
    #[error("the episode has {bytes} bytes; at most {bytes_max} are allowed (config key store.pack_bytes_max)")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Another episode of the same recording.
    #[error("recording {recording} has another episode already; there is never more than one")]
    Conflict {
        /// Which recording.
        recording: RecordingId,
    },
    /// Its robot.
    #[error("the episode's robot could not be registered")]
    Robot(#[from] AddRobotError),
    /// The disk is full.
    #[error("the hub's disk is full; make room and import again")]
    Full,
    /// The store.
    #[error("the episode could not be stored; the hub's log says why")]
    Failed,
    /// The hub stops.
    #[error("the hub stops; import again when it runs")]
    Stopped,
}

/// Why an episode cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum EpisodeError {
    /// The metadata.
    #[error("episode could not be looked up")]
    Metadata(#[from] MetadataError),
    /// Its bytes.
    #[error("episode's manifest could not be read")]
    Read(#[from] zunft_skills::data::SourceError),
    /// Its manifest.
    #[error("episode's manifest cannot be understood")]
    Manifest(#[from] ManifestError),
}

/// Why nothing was assigned. No robot got anything.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// No such release.
    #[error("there is no release {release}; publish it first, or list the releases that there are")]
    NoRelease {
        /// Which.
        release: ReleaseId,
    },
    /// No such robot.
    #[error("there is no robot {robot}; add it first, or list the robots that there are")]
    NoRobot {
        /// Which.
        robot: RobotId,
    },
    /// Nobody to assign to.
    #[error("no robot has the embodiment {needed} that the release needs; add one first")]
    Nobody {
        /// What the release needs.
        needed: String,
    },
    /// Made for another body.
    #[error("release {release} is made for embodiment {needed}; robot {robot} has another body")]
    WrongEmbodiment {
        /// The release.
        release: ReleaseId,
        /// What it needs.
        needed: String,
        /// The robot that differs.
        robot: RobotId,
    },
    /// The metadata.
    #[error("the assignment could not be recorded")]
    Metadata(#[from] MetadataError),
}

/// Everything that is there before the hub listens.
struct Opened {
    data_dir: DataDir,
    pki: Pki,
    metadata: Metadata,
    store: Store,
}

impl Hub {
    /// Starts a hub: keys, store, metadata and the QUIC port.
    pub async fn start(config: HubConfig) -> Result<Handle, StartError> {
        let opened = open(&config).await?;
        let store = opened.store.clone();
        Self::start_opened(config, opened, store)
    }

    /// Makes everything that a first start makes, without starting.
    pub async fn init(config: &HubConfig) -> Result<PathBuf, StartError> {
        let opened = open(config).await?;
        opened.metadata.close().await;
        Ok(opened.pki.admin_token_path())
    }

    /// Starts a hub whose experience goes to another store: for tests of stores that fail.
    #[cfg(test)]
    pub(crate) async fn start_with_store(config: HubConfig, store: Store) -> Result<Handle, StartError> {
        let opened = open(&config).await?;
        Self::start_opened(config, opened, store)
    }

    fn start_opened(config: HubConfig, opened: Opened, store: Store) -> Result<Handle, StartError> {
        let Opened { data_dir, pki, metadata, store: _ } = opened;
        let tenant = default_tenant();
        let keys = BTreeMap::from([(tenant.clone(), Arc::new(pki.tenant(&tenant)?))]);
        let interval = Duration::from_millis(config.store.commit_interval_millis);
        let (committer, task) = Committer::new(store.clone(), metadata.clone(), interval, config.store.pack_bytes_max);
        let committing = TaskTracker::new();
        committing.spawn(task.run());
        let stop_sweep = CancellationToken::new();
        let sweeping = sweep(store.clone(), metadata.clone(), config.store.clone());
        committing.spawn(stop_sweep.clone().run_until_cancelled_owned(sweeping));
        committing.close();
        let services = Arc::new(Services::new(config, pki, store, metadata, committer, keys));
        let ingest = Ingest::start(&services)?;
        let data_dir = Mutex::new(Some(data_dir));
        Ok(Handle { inner: Arc::new(Running { services, ingest, committing, stop_sweep, data_dir }) })
    }
}

/// Registers what a hub wrote and did not live to register; then, day by day, forgets chunks whose episode never came.
/// The hub works as well without.
async fn sweep(store: Store, metadata: Metadata, config: StoreConfig) {
    let before = clock::unix_millis().saturating_sub(ORPHAN_GRACE.as_millis() as u64);
    if let Err(error) = fsck::sweep(&store, &metadata, before).await {
        warn!(error = &error as &dyn std::error::Error, "packs that nobody registered were not looked for");
    }
    loop {
        let before = config.orphaned_before(clock::unix_millis());
        if let Err(error) = fsck::forget(&store, &metadata, before).await {
            warn!(error = &error as &dyn std::error::Error, "chunks whose episode never came were not all forgotten");
        }
        tokio::time::sleep(FORGET_EVERY).await;
    }
}

async fn open(config: &HubConfig) -> Result<Opened, StartError> {
    config.check()?;
    let (dir, place) = (config.data_dir.clone(), config.store_place()?);
    let now_unix_secs = clock::unix_secs();
    let opening = tokio::task::spawn_blocking(move || {
        let data_dir = DataDir::open(&dir)?;
        let pki = Pki::open(&data_dir.pki(), now_unix_secs)?;
        Ok::<_, StartError>((data_dir, pki))
    });
    let (mut data_dir, pki) = opening.await.expect("opening the data directory does not panic")?;
    let store = Store::open(config.store.clone(), place).await?;
    let metadata = Metadata::open(config.metadata.url.clone(), data_dir.metadata()).await?;
    metadata.add_tenant(&default_tenant(), clock::unix_millis()).await?;
    data_dir.complete()?;
    Ok(Opened { data_dir, pki, metadata, store })
}

impl Handle {
    fn services(&self) -> &Services {
        &self.inner.services
    }

    /// The configuration in force.
    pub fn config(&self) -> &HubConfig {
        &self.services().config
    }

    /// Where robots connect: the port is real even where the configuration said 0.
    pub fn quic_addr(&self) -> SocketAddr {
        self.inner.ingest.address()
    }

    /// Bytes of memory that uploads under way may take now, over all robots; at most `limits.ingest_bytes_max`.
    pub fn ingest_bytes_reserved(&self) -> u64 {
        self.services().budget.reserved_bytes()
    }

    /// The token that opens the whole HTTP API (also in `pki/admin.token`).
    pub fn admin_token(&self) -> &str {
        self.services().pki.admin_token()
    }

    /// The metadata, for runs and plain listings.
    pub fn metadata(&self) -> &Metadata {
        &self.services().metadata
    }

    /// The keys.
    pub fn pki(&self) -> &Pki {
        &self.services().pki
    }

    /// Changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.services().changes()
    }

    /// Tells subscribers of a change that the caller made.
    pub fn announce(&self, change: Change) {
        self.services().announce(change);
    }

    /// Adds a robot (again: a further certificate for it) and makes its credentials.
    pub async fn add_robot(&self, identity: &RobotIdentity) -> Result<RobotCredentials, AddRobotError> {
        let services = self.services();
        let now_unix_ms = clock::unix_millis();
        let credentials = services.pki.issue_robot(identity, now_unix_ms / 1000)?;
        self.register_robot(identity).await?;
        let expires_unix_ms = credentials.expires_unix_secs * 1000;
        services.metadata.add_certificate(identity, &credentials.serial, now_unix_ms, expires_unix_ms).await?;
        info!(robot = %identity, serial = %credentials.serial, "robot certified");
        services.announce(Change::Robot { tenant: identity.tenant.clone(), robot: identity.robot.clone() });
        Ok(credentials)
    }

    async fn register_robot(&self, identity: &RobotIdentity) -> Result<(), AddRobotError> {
        let found = self.services().metadata.add_robot(identity, clock::unix_millis()).await?;
        if found != identity.site {
            return Err(AddRobotError::OtherSite { robot: identity.robot.clone(), found });
        }
        Ok(())
    }

    /// All robots of a tenant, by name.
    pub async fn robots(&self, tenant: &TenantId) -> Result<Vec<RobotStatus>, MetadataError> {
        let metadata = self.metadata();
        let assignments = metadata.assignments(tenant).await?;
        let mut assignments: BTreeMap<RobotId, AssignmentRecord> =
            assignments.into_iter().map(|assignment| (assignment.robot.clone(), assignment)).collect();
        let policies = metadata.upload_policies(tenant).await?;
        let robots = metadata.robots(tenant).await?;
        Ok(robots
            .into_iter()
            .map(|record| {
                let assignment = assignments.remove(&record.robot);
                self.status(tenant, record, assignment, &policies)
            })
            .collect())
    }

    /// One robot, where there is one of that name.
    pub async fn robot(&self, tenant: &TenantId, robot: &RobotId) -> Result<Option<RobotStatus>, MetadataError> {
        let Some(record) = self.metadata().robot(tenant, robot).await? else {
            return Ok(None);
        };
        let assignment = self.metadata().assignment(tenant, robot).await?;
        let policies = self.metadata().upload_policies_of(tenant, robot).await?;
        Ok(Some(self.status(tenant, record, assignment, &policies)))
    }

    /// What a robot gave up for want of room, in the order of its recordings, after number `after`.
    pub async fn evictions(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
        after: Option<RecordingCursor<RecordingId>>,
        limit: u32,
    ) -> Result<Vec<EvictionRecord>, MetadataError> {
        self.metadata().evictions(tenant, robot, after, limit).await
    }

    fn status(
        &self,
        tenant: &TenantId,
        record: RobotRecord,
        assignment: Option<AssignmentRecord>,
        policies: &UploadPolicies,
    ) -> RobotStatus {
        let connected = self.services().live(tenant, &record.robot).is_some();
        let upload_policy = policies.in_force(&record.robot);
        RobotStatus { record, connected, assignment, upload_policy }
    }

    /// The last change of an upload policy, unless nothing was ever said.
    pub async fn upload_policy(
        &self,
        tenant: &TenantId,
        scope: &PolicyScope,
    ) -> Result<Option<UploadPolicyRecord>, MetadataError> {
        Ok(self.metadata().upload_policies(tenant).await?.of(scope).cloned())
    }

    /// Sets what robots may upload, or clears it with `None`. Those that are connected hear of it at once, the others
    /// when they connect.
    pub async fn set_upload_policy(
        &self,
        tenant: &TenantId,
        scope: &PolicyScope,
        policy: Option<&HubPolicy>,
    ) -> Result<UploadPolicyRecord, MetadataError> {
        let services = self.services();
        let record = services.metadata.set_upload_policy(tenant, scope, policy, clock::unix_millis()).await?;
        let (live, robot) = match scope {
            PolicyScope::Tenant => (services.live_of(tenant), None),
            PolicyScope::Robot(robot) => (services.live(tenant, robot).into_iter().collect(), Some(robot.clone())),
        };
        live.iter().for_each(|live| live.allowed.notify_one());
        info!(revision = record.revision, cleared = policy.is_none(), connected = live.len(), "upload policy changed");
        services.announce(Change::UploadPolicy { tenant: tenant.clone(), robot });
        Ok(record)
    }

    /// What is on robots alone, by robot and number of the recording, after this one.
    pub async fn noted_episodes(
        &self,
        tenant: &TenantId,
        after: Option<&NotedCursor>,
        limit: u32,
    ) -> Result<Vec<NotedRecord>, MetadataError> {
        self.metadata().noted_episodes(tenant, after, limit).await
    }

    /// Asks robots for all of these noted episodes: those that are connected now, the others when they connect.
    pub async fn request_episodes(&self, tenant: &TenantId, episodes: &[EpisodeId]) -> Result<(), MetadataError> {
        let services = self.services();
        let mut robots = services.metadata.request_episodes(tenant, episodes, clock::unix_millis()).await?;
        robots.sort();
        robots.dedup();
        for live in robots.iter().filter_map(|robot| services.live(tenant, robot)) {
            live.wanted.notify_one();
        }
        info!(episodes = episodes.len(), robots = robots.len(), "episodes requested");
        Ok(())
    }

    /// Episodes in the order of arrival.
    pub async fn episodes(
        &self,
        tenant: &TenantId,
        filter: &EpisodeFilter,
        limit: u32,
    ) -> Result<EpisodePage, MetadataError> {
        self.metadata().episodes(tenant, filter, limit).await
    }

    /// One episode with its manifest, where it is stored.
    pub async fn episode(
        &self,
        tenant: &TenantId,
        id: EpisodeId,
    ) -> Result<Option<(EpisodeRecord, Manifest)>, EpisodeError> {
        let services = self.services();
        let Some(record) = services.metadata.episode(tenant, id).await? else {
            return Ok(None);
        };
        let location = services.metadata.manifest_location(tenant, id);
        let bytes = snapshots::read_located(&services.store, tenant, location, *id.as_bytes())
            .await
            .map_err(|fault: ReadFault| fault.about("episode", id.to_string()))?;
        Ok(Some((record, Manifest::decode(&bytes)?)))
    }

    /// Stored bytes of a chunk, verified; `None` where it is not stored.
    pub async fn chunk(&self, tenant: &TenantId, id: ChunkId) -> Result<Option<Vec<u8>>, EpisodeError> {
        let services = self.services();
        let location = services.metadata.chunk_location(tenant, id);
        match snapshots::read_located(&services.store, tenant, location, *id.as_bytes()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(ReadFault::Missing) => Ok(None),
            Err(fault) => Err(fault.about("chunk", id.to_string()).into()),
        }
    }

    /// Stores an episode that did not come over QUIC (an import); durable when this returns.
    ///
    /// `chunks` are those of the manifest, in its order. Its robot is registered, without a certificate, where it is
    /// unknown. Importing the same episode again changes nothing.
    pub async fn import_episode(
        &self,
        manifest_bytes: Vec<u8>,
        chunks: Vec<Vec<u8>>,
    ) -> Result<EpisodeId, ImportError> {
        let manifest = Manifest::decode(&manifest_bytes)?;
        let wrong = manifest.chunks().zip(&chunks).position(|(listed, bytes)| ChunkId::of(bytes) != listed.id);
        let count = manifest.chunks().count();
        if let Some(index) = wrong.or((count != chunks.len()).then_some(count.min(chunks.len()))) {
            return Err(ImportError::Chunk { index });
        }
        let (bytes, bytes_max) = (manifest.bytes(), self.config().store.pack_bytes_max as u64);
        if bytes > bytes_max {
            return Err(ImportError::TooLarge { bytes, bytes_max });
        }
        let identity = RobotIdentity {
            tenant: manifest.tenant.clone(),
            site: manifest.site.clone(),
            robot: manifest.robot.clone(),
        };
        if self.services().keys(&identity.tenant).is_none() {
            return Err(AddRobotError::Pki(PkiError::Tenant { tenant: identity.tenant }).into());
        }
        self.register_robot(&identity).await?;
        let (episode, recording) = (EpisodeId::of(&manifest_bytes), manifest.recording);
        let chunks = manifest.chunks().zip(chunks).map(|(listed, bytes)| ChunkBytes { id: listed.id, bytes }).collect();
        let tenant = identity.tenant;
        let whole = Some(Whole { episode, manifest, manifest_bytes });
        let submission = Submission { tenant: tenant.clone(), chunks, whole };
        let committer = self.services().committer().ok_or(ImportError::Stopped)?;
        committer.commit(submission).await.map_err(|error| match error {
            CommitError::Full => ImportError::Full,
            CommitError::Conflict => ImportError::Conflict { recording },
            CommitError::ChunkMissing | CommitError::Failed => ImportError::Failed,
            CommitError::Stopped => ImportError::Stopped,
        })?;
        self.services().announce(Change::Episode { tenant, episode });
        Ok(episode)
    }

    /// Freezes the episodes that pass the filter; the same selection is the same snapshot.
    pub async fn create_snapshot(
        &self,
        tenant: &TenantId,
        filter: &EpisodeFilter,
    ) -> Result<SnapshotRecord, SnapshotStoreError> {
        let services = self.services();
        snapshots::create(&services.store, &services.metadata, tenant, filter).await
    }

    /// A snapshot's content for training. It waits for the disk: use it from a thread of its own.
    pub async fn snapshot_source(
        &self,
        tenant: &TenantId,
        id: SnapshotId,
    ) -> Result<SnapshotSource, SnapshotStoreError> {
        let services = self.services();
        SnapshotSource::open(services.store.clone(), services.metadata.clone(), tenant.clone(), id).await
    }

    /// The version that the skill's next release will have: package it as that, then publish.
    pub async fn next_version(&self, tenant: &TenantId, skill: &SkillName) -> Result<SkillVersion, MetadataError> {
        self.metadata().next_version(tenant, skill).await
    }

    /// Publishes a package directory: checks every byte, signs it with the development key unless it is signed.
    pub async fn publish(&self, tenant: &TenantId, package: &Path) -> Result<ReleaseRecord, PublishError> {
        let services = self.services();
        let keys = services.keys(tenant).ok_or_else(|| PublishError::NoTenant { tenant: tenant.clone() })?;
        let record = registry::publish(&services.store, &services.metadata, keys, package).await?;
        info!(release = %record.release, bytes = record.bytes, "release published");
        services.announce(Change::Release { tenant: tenant.clone(), release: record.release.clone() });
        Ok(record)
    }

    /// Bytes of a file of a release, or of its envelope; `None` where no release has such a file.
    pub async fn blob_bytes(&self, tenant: &TenantId, digest: Digest) -> Result<Option<u64>, MetadataError> {
        self.metadata().blob(tenant, digest).await
    }

    /// A part of such a file.
    pub async fn blob_part(&self, tenant: &TenantId, digest: Digest, part: Range<u64>) -> Result<Bytes, StoreError> {
        self.services().store.read_range(&blob_key(tenant, digest), part).await
    }

    /// Gives robots a release in place of its skill's present one; connected robots hear of it at once.
    pub async fn assign(
        &self,
        tenant: &TenantId,
        to: &AssignTo,
        release: &ReleaseId,
    ) -> Result<Vec<RobotId>, AssignError> {
        let services = self.services();
        let found = services.metadata.release(tenant, release).await?;
        let found = found.ok_or_else(|| AssignError::NoRelease { release: release.clone() })?;
        let all = services.metadata.robots(tenant).await?;
        let needed = found.manifest.embodiment.id();
        // A robot that has not said what its body is decides for itself when it gets the release.
        let unfit = |robot: &RobotRecord| robot.embodiment.is_some_and(|body| body != needed);
        let robots = match to {
            AssignTo::All => all.into_iter().filter(|robot| !unfit(robot)).collect(),
            AssignTo::Robots(wanted) => pick(all, wanted)?,
        };
        if robots.is_empty() {
            return Err(AssignError::Nobody { needed: found.manifest.embodiment.name });
        }
        if let Some(other) = robots.iter().find(|robot| unfit(robot)) {
            let (release, needed) = (release.clone(), found.manifest.embodiment.name);
            return Err(AssignError::WrongEmbodiment { release, needed, robot: other.robot.clone() });
        }
        let robots: Vec<RobotId> = robots.into_iter().map(|robot| robot.robot).collect();
        services.metadata.assign(tenant, &robots, release, clock::unix_millis()).await?;
        for robot in &robots {
            if let Some(live) = services.live(tenant, robot) {
                live.assigned.notify_one();
            }
            services.announce(Change::Assignment { tenant: tenant.clone(), robot: robot.clone() });
        }
        info!(%release, robots = robots.len(), "release assigned");
        Ok(robots)
    }

    /// Stops in order. When it returns, everything acknowledged is on disk and the data directory is free.
    pub async fn shutdown(self) {
        self.inner.ingest.shutdown().await;
        self.services().stop_committing();
        self.inner.stop_sweep.cancel();
        self.inner.committing.wait().await;
        self.metadata().close().await;
        drop(self.inner.data_dir.lock().unwrap_or_else(PoisonError::into_inner).take());
        info!("hub stopped");
    }
}

fn pick(all: Vec<RobotRecord>, wanted: &[RobotId]) -> Result<Vec<RobotRecord>, AssignError> {
    if let Some(robot) = wanted.iter().find(|wanted| all.iter().all(|known| known.robot != **wanted)) {
        return Err(AssignError::NoRobot { robot: robot.clone() });
    }
    Ok(all.into_iter().filter(|known| wanted.contains(&known.robot)).collect())
}

#[cfg(test)]
mod tests;
