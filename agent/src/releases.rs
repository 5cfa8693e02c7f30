//! Which releases answer on this robot, and how new ones get there.
//!
//! One OS thread installs, one release at a time; what answers is read by the local socket at any moment.
//! A robot always keeps its last good release: a hub that is silent, or an assignment that expired, changes nothing.

mod fetch;
mod files;
mod journal;
mod store;

#[cfg(test)]
pub(crate) mod made;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use zunft_protocol::dsse::PublicKey;
use zunft_protocol::ids::{RobotId, SkillName};
use zunft_protocol::local::Event;
use zunft_protocol::message::ReleaseReport;

pub use self::fetch::{Download, Fetch, FetchError};
use self::files::RealFiles;
use self::journal::Installed;
use self::store::{Change, Store};
pub use self::store::{InstallError, StoreError};
use crate::clock::RobotClock;
use crate::embodiment::Body;
use crate::events::Events;
use crate::policy::LoadedRelease;
use crate::text::chain;

/// Orders that may wait for the installer. The hub repeats its assignment at every connect, so one that finds
/// it full is refused and comes again.
const ORDERS_MAX: usize = 32;

/// Wait before an installation that failed for the moment is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// What the installer is told.
#[derive(Debug)]
enum Order {
    /// A signed assignment arrived.
    Assign(Vec<u8>),
    /// A signed root arrived.
    Root(Vec<u8>),
    /// Something that was missing may be there now: the hub, or the robot's body.
    LookAgain,
    /// The agent stops.
    Stop,
}

/// What others see of the releases.
#[derive(Debug)]
struct Shared {
    active: RwLock<BTreeMap<SkillName, Arc<LoadedRelease>>>,
    view: Mutex<View>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Clone, Default)]
struct View {
    reports: Vec<ReleaseReport>,
    assignment_sequence: u64,
    assignment_expires_unix_secs: Option<u64>,
    assigners: Vec<PublicKey>,
}

/// The releases: cheap to clone, one thread behind all clones.
#[derive(Debug, Clone)]
pub struct Releases {
    shared: Arc<Shared>,
    orders: Option<SyncSender<Order>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What the installer works with.
pub(crate) struct Surroundings {
    /// The robot's clock.
    pub(crate) clock: Arc<RobotClock>,
    /// The robot's body.
    pub(crate) body: Arc<Body>,
    /// Where changes are announced.
    pub(crate) events: Arc<Events>,
    /// Where blobs come from.
    pub(crate) fetch: Box<dyn Fetch>,
}

impl Releases {
    /// Releases of a robot that trusts nobody: none.
    pub fn none() -> Self {
        Self { shared: Arc::new(Shared::new()), orders: None, thread: Arc::default() }
    }

    /// Opens the store in `folder`, loads what ran before, and starts the installer.
    pub(crate) fn start(
        folder: &Path,
        root: &Path,
        robot: RobotId,
        surroundings: Surroundings,
    ) -> Result<Self, StoreError> {
        let store = Store::open(RealFiles, folder, root, robot)?;
        let shared = Arc::new(Shared::new());
        let mut installer = Installer { store, shared: Arc::clone(&shared), surroundings };
        if let Some(assignment) = installer.store.assignment() {
            installer.surroundings.clock.hub_signed(assignment.issued_unix_secs);
        }
        let changes = installer.store.load_current();
        // Nobody listens yet, so what ran before is no news.
        for change in changes {
            installer.put(change);
        }
        installer.show();
        let (orders, inbox) = sync_channel(ORDERS_MAX);
        let thread = std::thread::Builder::new()
            .name("releases".into())
            .spawn(move || installer.run(&inbox))
            .map_err(|source| StoreError::Io { path: folder.to_owned(), source })?;
        Ok(Self { shared, orders: Some(orders), thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// The release that answers for a skill now.
    pub fn active(&self, skill: &SkillName) -> Option<Arc<LoadedRelease>> {
        self.shared.active.read().unwrap_or_else(PoisonError::into_inner).get(skill).cloned()
    }

    /// Every release and how it does.
    pub fn reports(&self) -> Vec<ReleaseReport> {
        self.shared.view().reports.clone()
    }

    /// Sequence of the last assignment accepted.
    pub fn assignment_sequence(&self) -> u64 {
        self.shared.view().assignment_sequence
    }

    /// When the last assignment expires: afterwards everything still runs, but the robot says so.
    pub fn assignment_expires_unix_secs(&self) -> Option<u64> {
        self.shared.view().assignment_expires_unix_secs
    }

    /// The keys whose receipts count.
    pub fn assigners(&self) -> Vec<PublicKey> {
        self.shared.view().assigners.clone()
    }

    /// Changes whenever a release does, or the root.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// A signed assignment arrived.
    pub fn assign(&self, envelope: Vec<u8>) {
        self.order(Order::Assign(envelope));
    }

    /// A signed root arrived.
    pub fn root(&self, envelope: Vec<u8>) {
        self.order(Order::Root(envelope));
    }

    /// Something that was missing may be there now: the hub, or the robot's body.
    pub fn look_again(&self) {
        self.order(Order::LookAgain);
    }

    fn order(&self, order: Order) {
        let Some(orders) = &self.orders else { return };
        if let Err(TrySendError::Full(order)) = orders.try_send(order) {
            tracing::warn!(?order, "the installer is busy; the hub will say it again");
        }
    }

    /// Ends the installer, after the release in its hands.
    pub fn stop(&self) {
        if let Some(orders) = &self.orders {
            // A full inbox is worked off first; a thread that is gone needs no order.
            drop(orders.send(Order::Stop));
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the installer's thread failed");
        }
        self.shared.active.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Shared {
    fn new() -> Self {
        Self { active: RwLock::default(), view: Mutex::default(), changes: watch::Sender::new(0) }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Installer {
    store: Store<RealFiles>,
    shared: Arc<Shared>,
    surroundings: Surroundings,
}

impl Installer {
    fn run(mut self, inbox: &Receiver<Order>) {
        let mut retry = true;
        loop {
            let order = if retry {
                match inbox.recv_timeout(RETRY_INTERVAL) {
                    Ok(order) => order,
                    Err(RecvTimeoutError::Timeout) => Order::LookAgain,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                let Ok(order) = inbox.recv() else { return };
                order
            };
            match order {
                Order::Assign(envelope) => self.assign(&envelope),
                Order::Root(envelope) => self.advance_root(&envelope),
                Order::LookAgain => {}
                Order::Stop => return,
            }
            retry = self.install_missing();
            self.show();
        }
    }

    fn assign(&mut self, envelope: &[u8]) {
        match self.store.accept(envelope, self.surroundings.clock.trusted_unix_secs()) {
            Ok((assignment, changes)) => {
                self.surroundings.clock.hub_signed(assignment.issued_unix_secs);
                let releases = assignment.releases.len();
                tracing::info!(sequence = assignment.sequence, releases, "assignment accepted");
                for change in changes {
                    self.announce(change);
                }
            }
            // The hub repeats the assignment in force at every connect.
            Err(InstallError::Trust(zunft_protocol::release::TrustError::Replayed { found, accepted }))
                if found == accepted => {}
            Err(error) => tracing::error!(reason = chain(&error), "assignment refused"),
        }
    }

    fn advance_root(&mut self, envelope: &[u8]) {
        match self.store.advance_root(envelope) {
            Ok(true) => tracing::info!(version = self.store.trust().root().version, "root accepted"),
            Ok(false) => {}
            Err(error) => tracing::error!(reason = chain(&error), "root refused"),
        }
    }

    /// Installs what is assigned and missing; whether something is worth another try.
    fn install_missing(&mut self) -> bool {
        let missing = self.store.missing();
        if missing.is_empty() {
            return false;
        }
        let Some(body) = self.surroundings.body.known() else {
            tracing::info!("releases wait: this robot's embodiment is known with its first recording, or by config");
            return false;
        };
        let mut retry = false;
        for installed in missing {
            self.show_fetching(&installed);
            match self.store.install(&installed, &body, self.surroundings.fetch.as_mut()) {
                Ok(change) => self.announce(change),
                Err(error) if error.is_temporary() => {
                    tracing::warn!(release = %installed.release, reason = chain(&error), "installation waits");
                    retry = true;
                }
                Err(error) => {
                    tracing::error!(release = %installed.release, reason = chain(&error), "release refused");
                }
            }
            self.show();
        }
        if let Err(error) = self.store.clean_up() {
            tracing::warn!(%error, "old releases could not be removed");
        }
        retry
    }

    fn put(&self, change: Change) {
        let mut active = self.shared.active.write().unwrap_or_else(PoisonError::into_inner);
        let before = match change {
            Change::Active { skill, release, .. } => active.insert(skill, release),
            Change::Withdrawn { skill, .. } => active.remove(&skill),
        };
        drop(active);
        // Joins the release's thread, unless a recording still holds it.
        drop(before);
    }

    fn announce(&self, change: Change) {
        let event = match &change {
            Change::Active { skill, release, previous } => {
                tracing::info!(release = %release.release(), "release active");
                let previous = previous.as_ref().map(|previous| previous.release.version);
                Event::ReleaseChanged { skill: skill.clone(), version: Some(release.release().version), previous }
            }
            Change::Withdrawn { skill, previous } => {
                tracing::info!(release = %previous.release, "release withdrawn");
                let previous = Some(previous.release.version);
                Event::ReleaseChanged { skill: skill.clone(), version: None, previous }
            }
        };
        self.put(change);
        self.surroundings.events.announce(&event);
    }

    fn show(&self) {
        let reports = self.store.reports();
        let assignment = self.store.assignment();
        let root = self.store.trust().root();
        let view = View {
            reports,
            assignment_sequence: self.store.trust().accepted_sequence(),
            assignment_expires_unix_secs: assignment.map(|assignment| assignment.expires_unix_secs),
            assigners: root.assigners.clone(),
        };
        *self.shared.view() = view;
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn show_fetching(&self, installed: &Installed) {
        use zunft_protocol::message::ReleaseState;
        let state = ReleaseState::Fetching;
        let fetching = ReleaseReport { release: installed.release.clone(), state, reason: String::new() };
        self.shared.view().reports.push(fetching);
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}
