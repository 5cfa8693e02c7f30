//! What the parts of a running hub share: store, metadata, keys, and who is connected.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use zunft_protocol::ids::{EpisodeId, ReleaseId, RobotId, TenantId};
use zunft_protocol::limits::MANIFEST_BYTES_MAX;
use zunft_protocol::session::hub::Kept;

use crate::clock;
use crate::config::HubConfig;
use crate::ingest::Broken;
use crate::metadata::Metadata;
use crate::pki::{Pki, TenantKeys};
use crate::store::{Committer, Store};

/// Changes that a slow subscriber may be behind; then it is told that it lags.
const CHANGES_MAX: usize = 1024;

/// The ingest budget is counted in KiB: the semaphore's permits are 32-bit.
const BUDGET_UNIT_BYTES: usize = 1024;

/// Memory that a large manifest takes beside its bytes: they are kept until the commit, and so are the list of its
/// chunks, and sets of those that are present and missing.
pub(crate) const MANIFEST_MEMORY_FACTOR: usize = 4;

/// Memory that the largest manifest takes.
pub(crate) const MANIFEST_MEMORY_MAX: usize = MANIFEST_BYTES_MAX * MANIFEST_MEMORY_FACTOR;

/// Something changed. A subscriber that lags misses some and should list again.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
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
    /// What robots may upload changed.
    UploadPolicy {
        /// Whose.
        tenant: TenantId,
        /// Which robot; none: all.
        robot: Option<RobotId>,
    },
    /// A training run changed.
    Run {
        /// Whose.
        tenant: TenantId,
        /// Which.
        run: String,
    },
}

/// One robot's live connection.
#[derive(Debug, Clone)]
pub(crate) struct LiveConnection {
    pub(crate) connection: quinn::Connection,
    /// Wakes it when the robot's assignment changed.
    pub(crate) assigned: Arc<Notify>,
    /// Wakes it when what the robot may upload changed.
    pub(crate) allowed: Arc<Notify>,
    /// Wakes it when somebody asked for episodes of the robot.
    pub(crate) wanted: Arc<Notify>,
    /// Cancelled when all its tasks have ended, and what its uploads left is kept.
    pub(crate) ended: CancellationToken,
}

/// Which part of the ingest budget may hold what broken-off uploads left: one in so many.
const BROKEN_SHARE: usize = 4;

pub(crate) type RobotKey = (TenantId, RobotId);

/// Everything that is shared.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) config: HubConfig,
    pub(crate) pki: Pki,
    pub(crate) store: Store,
    pub(crate) metadata: Metadata,
    /// `None` once the hub stops: then the committing task ends when it has nothing left.
    committer: Mutex<Option<Committer>>,
    keys: BTreeMap<TenantId, Arc<TenantKeys>>,
    live: Mutex<BTreeMap<RobotKey, LiveConnection>>,
    changes: broadcast::Sender<Change>,
    /// Over all robots.
    pub(crate) budget: Budget,
    /// What uploads that broke off have left.
    kept: Mutex<Broken>,
}

/// A bound on memory for experience that is not committed yet.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    permits: Arc<Semaphore>,
    units: usize,
}

/// A share of a budget; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let units = bytes_max / BUDGET_UNIT_BYTES;
        Self { permits: Arc::new(Semaphore::new(units)), units }
    }

    /// A share of so many bytes, if there is enough now.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<BudgetShare> {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT_BYTES as u64)).ok()?;
        self.permits.clone().try_acquire_many_owned(units).ok().map(|permit| BudgetShare { _permit: permit })
    }

    /// Bytes that are given out now, in whole KiB.
    pub(crate) fn reserved_bytes(&self) -> u64 {
        ((self.units - self.permits.available_permits()) * BUDGET_UNIT_BYTES) as u64
    }
}

impl Services {
    pub(crate) fn new(
        config: HubConfig,
        pki: Pki,
        store: Store,
        metadata: Metadata,
        committer: Committer,
        keys: BTreeMap<TenantId, Arc<TenantKeys>>,
    ) -> Self {
        let budget = Budget::new(config.limits.ingest_bytes_max);
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        let kept = Mutex::new(Broken::new((config.limits.ingest_bytes_max / BROKEN_SHARE) as u64));
        Self {
            config,
            pki,
            store,
            metadata,
            committer: Mutex::new(Some(committer)),
            keys,
            live: Mutex::default(),
            changes,
            budget,
            kept,
        }
    }

    /// A share of the memory over all robots. What broken-off uploads left makes room for those under way.
    pub(crate) fn reserve(&self, bytes: u64) -> Option<BudgetShare> {
        self.budget.reserve(bytes).or_else(|| {
            self.broken().clear();
            self.budget.reserve(bytes)
        })
    }

    /// Keeps what a broken-off upload left, if there is room.
    pub(crate) fn keep(&self, robot: &RobotKey, episode: EpisodeId, kept: Kept) {
        if let Some(share) = self.budget.reserve(kept.bytes()) {
            self.broken().keep(robot, episode, kept, share, clock::now());
        }
    }

    /// What an earlier upload of the episode left.
    pub(crate) fn take_kept(&self, robot: &RobotKey, episode: EpisodeId) -> Option<Kept> {
        self.broken().take(robot, episode, clock::now())
    }

    fn broken(&self) -> MutexGuard<'_, Broken> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys of a tenant of this hub.
    pub(crate) fn keys(&self, tenant: &TenantId) -> Option<Arc<TenantKeys>> {
        self.keys.get(tenant).cloned()
    }

    /// Where episodes are handed in, unless the hub stops.
    pub(crate) fn committer(&self) -> Option<Committer> {
        self.committer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes no more episodes.
    pub(crate) fn stop_committing(&self) {
        *self.committer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Tells subscribers; nobody listening is fine.
    pub(crate) fn announce(&self, change: Change) {
        if self.changes.send(change).is_err() {
            tracing::trace!("nobody listens for changes");
        }
    }

    pub(crate) fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// The live connection of a robot.
    pub(crate) fn live(&self, tenant: &TenantId, robot: &RobotId) -> Option<LiveConnection> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(&(tenant.clone(), robot.clone())).filter(|live| live.connection.close_reason().is_none()).cloned()
    }

    /// The live connections of a tenant's robots.
    pub(crate) fn live_of(&self, tenant: &TenantId) -> Vec<LiveConnection> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.iter().filter(|((of, _), _)| of == tenant).map(|(_, live)| live.clone()).collect()
    }

    /// Makes a connection the robot's live one, unless another was put there since `expected` was looked up.
    pub(crate) fn go_live(
        &self,
        key: &RobotKey,
        connection: &LiveConnection,
        expected: Option<&LiveConnection>,
    ) -> bool {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let present = live.get(key).filter(|live| live.connection.close_reason().is_none());
        let same = match (present, expected) {
            (None, _) => true,
            (Some(present), Some(expected)) => present.connection.stable_id() == expected.connection.stable_id(),
            (Some(_), None) => false,
        };
        if same {
            live.insert(key.clone(), connection.clone());
        }
        same
    }

    /// Forgets a connection that ended, unless the robot has another one.
    pub(crate) fn gone(&self, key: &RobotKey, connection: &quinn::Connection) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.get(key).is_some_and(|live| live.connection.stable_id() == connection.stable_id()) {
            live.remove(key);
        }
    }
}
