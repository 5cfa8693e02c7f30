//! The way to the hub: one QUIC connection that the robot opens, and opens again when it is lost.
//!
//! Episodes go up in the order that the session decides; assignments come down; releases are fetched for the
//! installer. A robot without a hub goes on recording and acting.

mod cap;
mod connection;
mod download;
mod rules;
mod silence;
mod tls;
mod turns;
mod upload;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{ConnectError, ConnectionError, Endpoint, Runtime as _, TokioRuntime};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use zunft_protocol::ids::EpisodeId;
use zunft_protocol::message::{CloseCode, Report};
use zunft_protocol::session::agent::{AgentEvent, AgentSession, UploadClass};
use zunft_protocol::upload_policy::PushedPolicy;
use zunft_protocol::{Outcome, RobotId, TaskName, TenantId};

use self::cap::{Cap, CappedSocket};
use self::connection::{Connection, ConnectionEnd};
pub(crate) use self::download::HubFetch;
use self::download::Request;
pub(crate) use self::rules::UploadRules;
pub use self::rules::{PolicySource, PolicyStatus};
pub(crate) use self::tls::Credentials;
pub use self::tls::{TlsError, transport};
use crate::activity::Activity;
use crate::clock::RobotClock;
use crate::config::UploadConfig;
use crate::embodiment::Body;
use crate::identity::Identity;
use crate::releases::Releases;
use crate::spool::{Spool, StoredEpisode};

/// Longest wait for a connection to stand; a hub that drops our packets answers nothing at all.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// Round trips of which the quantiles are told: at the default interval, those of the last three hours.
const ROUND_TRIPS_MAX: usize = 1024;

/// Episodes looked up in the spool at a time.
const LOOK_MAX: usize = 256;

/// How the way to the hub is, for people and programs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct HubStatus {
    /// `offline` (none configured), `connecting` or `connected`.
    pub state: HubState,
    /// Where.
    pub address: Option<String>,
    /// Why the last attempt or connection ended.
    pub last_error: Option<String>,
    /// The hub's time of the last receipt.
    pub last_receipt_unix_secs: Option<u64>,
    /// Episodes that became durable since the agent started.
    pub episodes_durable: u64,
    /// Episodes that the hub refused since then; they stay in the spool.
    pub episodes_rejected: u64,
    /// What may be uploaded, and who says so.
    pub upload_policy: PolicyStatus,
    /// Whole episodes in the spool whose tasks stay on site: never offered.
    pub episodes_kept_on_site: u64,
    /// Bytes of their chunks.
    pub bytes_kept_on_site: u64,
    /// Episodes that the hub knows of and nobody asked for yet (`upload.mode`): they are here alone.
    pub episodes_noted: u64,
    /// Whether the upload windows allow uploads now.
    pub upload_window_open: bool,
    /// Bytes of chunks sent since then.
    pub bytes_uploaded: u64,
    /// How long half of the hub's last thousand signs of life took at most, in milliseconds.
    pub round_trip_ms_p50: Option<f64>,
    /// And 99 of 100 of them.
    pub round_trip_ms_p99: Option<f64>,
    /// How often the hub was silent for so long that another port was tried.
    pub port_changes: u64,
    /// UDP bytes a second that left in the last ten seconds.
    pub bytes_per_second: f64,
    /// Signs of life since the agent started.
    pub round_trips: u64,
}

/// See [`HubStatus::state`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HubState {
    /// No hub is configured.
    #[default]
    Offline,
    /// The hub is not reached at the moment.
    Connecting,
    /// The hub answers.
    Connected,
}

/// The status, shared with whoever asks.
#[derive(Debug, Default)]
pub(crate) struct SharedStatus(Mutex<HubStatus>, Mutex<VecDeque<Duration>>);

impl SharedStatus {
    fn lock(&self) -> MutexGuard<'_, HubStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> HubStatus {
        let mut status = self.lock().clone();
        let mut times: Vec<Duration> = self.round_trips().iter().copied().collect();
        times.sort_unstable();
        let millis = |index: usize| times.get(index).map(|time| time.as_secs_f64() * 1e3);
        status.round_trip_ms_p50 = millis(times.len() / 2);
        status.round_trip_ms_p99 = millis(times.len().saturating_sub(1) * 99 / 100);
        status
    }

    fn round_trips(&self) -> MutexGuard<'_, VecDeque<Duration>> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, bytes: u64) {
        self.lock().bytes_uploaded += bytes;
    }

    fn round_trip(&self, took: Duration) {
        self.lock().round_trips += 1;
        let mut times = self.round_trips();
        if times.len() >= ROUND_TRIPS_MAX {
            times.pop_front();
        }
        times.push_back(took);
    }

    fn durable(&self, unix_secs: u64) {
        let mut status = self.lock();
        status.episodes_durable += 1;
        status.last_receipt_unix_secs = Some(unix_secs);
    }

    fn kept_on_site(&self, kept: &BTreeMap<u64, Kept>) {
        let mut status = self.lock();
        status.episodes_kept_on_site = kept.len() as u64;
        status.bytes_kept_on_site = kept.values().map(|kept| kept.bytes).sum();
    }

    /// What may be uploaded from now on.
    pub(crate) fn policy(&self, policy: &PolicyStatus) {
        self.lock().upload_policy = policy.clone();
    }

    fn port_changed(&self) {
        self.lock().port_changes += 1;
    }

    fn rate(&self, bytes_per_second: f64) {
        self.lock().bytes_per_second = bytes_per_second;
    }

    fn window(&self, open: bool, noted: u64) {
        let mut status = self.lock();
        status.upload_window_open = open;
        status.episodes_noted = noted;
    }

    fn rejected(&self) {
        self.lock().episodes_rejected += 1;
    }
}

/// What the uplink works with.
pub(crate) struct Services {
    pub(crate) spool: Spool,
    pub(crate) releases: Releases,
    pub(crate) body: Arc<Body>,
    pub(crate) clock: Arc<RobotClock>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) state: Arc<SharedStatus>,
}

impl Services {
    fn report(&self) -> Report {
        let spool = self.spool.status();
        Report {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.clock.boot(),
            embodiment: self.body.known().map(|body| body.id()),
            episodes_waiting: spool.episodes_waiting,
            spool_bytes: spool.bytes_waiting,
            recordings: spool.recordings_total,
            assignment_sequence: self.releases.assignment_sequence(),
            upload_policy_revision: self.state.lock().upload_policy.revision,
            releases: self.releases.reports(),
        }
    }
}

/// The session and the episodes that it knows of; both outlive connections.
pub(crate) struct Uploads {
    session: AgentSession,
    episodes: BTreeMap<EpisodeId, StoredEpisode>,
    /// Recordings that the session has heard of and the spool still holds, or that are never offered.
    told: BTreeSet<u64>,
    /// The spool's revision at the last look.
    seen: Option<u64>,
    /// What may be uploaded.
    rules: UploadRules,
    /// What stays on site of the recordings in `told`.
    kept: BTreeMap<u64, Kept>,
}

/// An episode that is not offered because its task stays on site.
struct Kept {
    task: TaskName,
    bytes: u64,
}

impl Uploads {
    /// Episodes in the spool that the session has not heard of.
    fn look(&mut self, spool: &Spool, state: &SharedStatus) -> Vec<AgentEvent> {
        let revision = spool.revision();
        if self.seen.replace(revision) == Some(revision) {
            return Vec::new();
        }
        let oldest = spool.status().oldest_ordinal_waiting.unwrap_or(u64::MAX);
        self.told = self.told.split_off(&oldest);
        let mut events = Vec::new();
        // What was given up for want of room is not to be offered any more.
        let held = self.episodes.values().map(|stored| stored.ordinal).chain(self.kept.keys().copied());
        let missing: BTreeSet<u64> = spool.missing(held).into_iter().collect();
        self.kept.retain(|ordinal, _| !missing.contains(ordinal));
        let gone = self.episodes.extract_if(.., |_, stored| missing.contains(&stored.ordinal));
        let episodes: BTreeSet<EpisodeId> = gone.map(|(episode, _)| episode).collect();
        if !episodes.is_empty() {
            events.push(AgentEvent::Withdrawn { episodes });
        }
        loop {
            let new = spool.waiting(LOOK_MAX, |ordinal| self.told.contains(&ordinal));
            if new.is_empty() {
                state.kept_on_site(&self.kept);
                return events;
            }
            for stored in new {
                self.told.insert(stored.ordinal);
                if self.rules.stay_on_site(&stored.task) {
                    self.keep(&stored);
                    continue;
                }
                let class = match stored.outcome {
                    Outcome::Failure => UploadClass::Urgent,
                    Outcome::Success if stored.intervened => UploadClass::Urgent,
                    Outcome::Success => UploadClass::Labelled,
                    Outcome::Unknown if stored.intervened => UploadClass::Urgent,
                    Outcome::Unknown => UploadClass::Bulk,
                };
                let (episode, ordinal, bytes) = (stored.episode, stored.ordinal, stored.chunk_bytes());
                let manifest_bytes = stored.manifest.bytes.into();
                events.push(AgentEvent::Sealed { episode, class, ordinal, bytes, manifest_bytes });
                self.episodes.insert(stored.episode, stored);
            }
        }
    }
}

impl Uploads {
    fn keep(&mut self, stored: &StoredEpisode) {
        self.kept.insert(stored.ordinal, Kept { task: stored.task.clone(), bytes: stored.chunk_bytes() });
    }

    /// Keeps to what the hub allows from now on; nothing, where that is known already.
    ///
    /// What may leave the site again is found by the next look at the spool.
    fn allow(&mut self, pushed: &PushedPolicy) -> Option<[AgentEvent; 2]> {
        if !self.rules.take(pushed) {
            return None;
        }
        self.seen = None;
        let rules = &self.rules;
        for (ordinal, _) in self.kept.extract_if(.., |_, kept| !rules.stay_on_site(&kept.task)) {
            self.told.remove(&ordinal);
        }
        let stay = self.episodes.extract_if(.., |_, stored| rules.stay_on_site(&stored.task));
        let stay: Vec<(EpisodeId, StoredEpisode)> = stay.collect();
        stay.iter().for_each(|(_, stored)| self.keep(stored));
        let episodes = stay.into_iter().map(|(episode, _)| episode).collect();
        Some([AgentEvent::Withdrawn { episodes }, AgentEvent::Policy(self.rules.session_policy())])
    }
}

/// Where the hub is and how patiently it is looked for.
pub(crate) struct Target {
    pub(crate) address: String,
    pub(crate) server_name: String,
    pub(crate) credentials: Credentials,
    pub(crate) ping_interval_ms: u64,
    pub(crate) upload: UploadConfig,
}

/// The uplink, before it runs.
pub(crate) struct Uplink {
    target: Target,
    services: Services,
    tenant: TenantId,
    robot: RobotId,
    config: quinn::ClientConfig,
    cap: Cap,
    requests: mpsc::Receiver<Request>,
    connected: watch::Sender<bool>,
}

/// The way that a connection takes: how fast it may go, and from which port.
#[derive(Clone, Copy)]
struct Way<'u> {
    target: &'u Target,
    cap: &'u Cap,
    endpoint: &'u Endpoint,
}

impl Way<'_> {
    fn ping_interval(&self) -> Duration {
        Duration::from_millis(self.target.ping_interval_ms)
    }

    /// Goes on from another port, and from whichever network there is.
    fn change_port(&self) -> io::Result<()> {
        let local = anywhere(self.endpoint.local_addr()?);
        self.endpoint.rebind_abstract(capped_socket(local, self.cap)?)
    }
}

/// Any port of any network, of the family of `address`.
fn anywhere(address: SocketAddr) -> SocketAddr {
    if address.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() }
}

fn capped_socket(local: SocketAddr, cap: &Cap) -> io::Result<Arc<CappedSocket>> {
    let socket = TokioRuntime.wrap_udp_socket(UdpSocket::bind(local)?)?;
    Ok(Arc::new(CappedSocket::new(socket, cap.clone())))
}

/// The installer's half of the uplink, made before the uplink itself.
pub(crate) struct FetchLink {
    requests: mpsc::Receiver<Request>,
    connected: watch::Sender<bool>,
}

/// The way for the installer to fetch blobs over an uplink that is made later.
pub(crate) fn fetch_link() -> (HubFetch, FetchLink) {
    let (sender, requests) = mpsc::channel(download::REQUESTS_MAX);
    let (connected, watching) = watch::channel(false);
    (HubFetch::new(sender, watching), FetchLink { requests, connected })
}

impl Uplink {
    /// Reads the certificates and sets the limits; nothing is connected yet.
    pub(crate) fn new(
        target: Target,
        services: Services,
        identity: &Identity,
        link: FetchLink,
    ) -> Result<Self, TlsError> {
        let config = tls::client_config(&target.credentials, Arc::clone(&services.clock))?;
        let FetchLink { requests, connected } = link;
        let cap = Cap::new(None, now());
        let (tenant, robot) = (identity.tenant.clone(), identity.robot.clone());
        Ok(Self { target, services, tenant, robot, config, cap, requests, connected })
    }

    /// Connects, serves and connects again, until told to stop.
    pub(crate) async fn run(mut self, rules: UploadRules, stop: CancellationToken) {
        let session = AgentSession::new(self.tenant.clone(), self.services.releases.assigners());
        // Handshakes keep to it, too.
        self.cap.set(rules.bytes_per_second(false), now());
        let policy = AgentEvent::Policy(rules.session_policy());
        let (episodes, told, kept) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        let mut uploads = Uploads { session, episodes, told, seen: None, rules, kept };
        let orders = uploads.session.handle(policy, now());
        debug_assert!(orders.is_empty(), "without a hub there is nothing to do");
        {
            let mut status = self.services.state.lock();
            status.address = Some(self.target.address.clone());
            status.state = HubState::Connecting;
        }
        let mut failures = 0;
        while !stop.is_cancelled() {
            let began = now();
            let (tenant, robot) = (&self.tenant, &self.robot);
            let span = tracing::info_span!("connection", hub = self.target.address, %tenant, %robot);
            let end = tokio::select! {
                () = stop.cancelled() => break,
                end = self.connect_and_serve(&mut uploads, &stop).instrument(span) => end,
            };
            self.connected.send_replace(false);
            let reason = crate::text::chain(&end);
            // A connection that stood for a while says that the hub is well: begin the waits anew.
            let stood = now() - began > Duration::from_secs(self.target.upload.reconnect_secs_max);
            failures = if stood { 0 } else { failures + 1 };
            {
                let mut status = self.services.state.lock();
                status.state = HubState::Connecting;
                status.bytes_per_second = 0.0;
                status.last_error = Some(reason.clone());
            }
            if matches!(end, ConnectionEnd::Stopped) {
                break;
            }
            let wait = reconnect_wait(&self.target.upload, failures, rand::random());
            tracing::warn!(hub = self.target.address, reason, wait_ms = wait.as_millis() as u64, "no hub");
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn connect_and_serve(&mut self, uploads: &mut Uploads, stop: &CancellationToken) -> ConnectionEnd {
        let (endpoint, connection) = match self.connect().await {
            Ok(connected) => connected,
            Err(reason) => return ConnectionEnd::Lost(reason),
        };
        let way = Way { target: &self.target, cap: &self.cap, endpoint: &endpoint };
        let opened = Connection::open(connection.clone(), &self.services, uploads, &mut self.requests, way).await;
        let end = match opened {
            Ok(opened) => {
                tracing::info!(hub = self.target.address, "hub connected");
                {
                    let mut status = self.services.state.lock();
                    status.state = HubState::Connected;
                    status.last_error = None;
                }
                self.connected.send_replace(true);
                self.services.releases.look_again();
                opened.run(stop).await
            }
            // The reason for which the connection closed says more than the stream that it took along.
            Err(error) => connection.close_reason().map_or(error, |reason| ConnectionEnd::Lost(explain(&reason))),
        };
        // Lets the close reach the hub.
        drop(tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await);
        end
    }

    async fn connect(&self) -> Result<(Endpoint, quinn::Connection), String> {
        let Target { address, server_name, .. } = &self.target;
        let resolved: Vec<SocketAddr> = tokio::net::lookup_host(address)
            .await
            .map_err(|error| format!("hub.address {address:?} cannot be resolved: {error}"))?
            .collect();
        let mut last = format!("hub.address {address:?} resolves to nothing");
        for address in resolved {
            let attempt = async {
                let endpoint = self.endpoint(anywhere(address)).map_err(|error| format!("no UDP socket: {error}"))?;
                let connecting = endpoint
                    .connect_with(self.config.clone(), address, server_name)
                    .map_err(|error: ConnectError| format!("cannot connect to {address}: {error}"))?;
                let connection = tokio::time::timeout(CONNECT_PATIENCE, connecting)
                    .await
                    .map_err(|_| format!("{address} does not answer"))?
                    .map_err(|error| explain(&error))?;
                Ok::<_, String>((endpoint, connection))
            };
            match attempt.await {
                Ok(connected) => return Ok(connected),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// An endpoint at `local` that keeps to the cap.
    fn endpoint(&self, local: SocketAddr) -> io::Result<Endpoint> {
        let socket = capped_socket(local, &self.cap)?;
        Endpoint::new_with_abstract_socket(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
    }
}

/// The wait before the next attempt, after so many failures in a row: doubling, and by `spread` (from 0 to 1) up to
/// half shorter, so that a fleet does not come at once.
pub fn reconnect_wait(upload: &UploadConfig, failures: u32, spread: f64) -> Duration {
    let doubled = upload.reconnect_secs_min.saturating_mul(1 << failures.saturating_sub(1).min(16));
    Duration::from_secs(doubled.min(upload.reconnect_secs_max)).mul_f64(0.5 + 0.5 * spread)
}

/// QUIC error codes from here on, 256 of them, are TLS alerts.
const CRYPTO_ERRORS: u64 = 0x100;

/// What a lost connection means for an operator.
fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => match CloseCode::from_code(close.error_code.into_inner()) {
            Some(CloseCode::Stopping) => "the hub stops".into(),
            Some(CloseCode::Protocol) => "the hub says that this agent broke the protocol; see the hub's log".into(),
            Some(CloseCode::UnknownRobot) => {
                "the hub does not know this robot's certificate; make one with `zunft robot add`".into()
            }
            Some(CloseCode::DuplicateIdentity) => {
                "another agent is connected with this robot's certificate; give each robot its own".into()
            }
            Some(CloseCode::Version) => {
                "hub and agent have no protocol version in common; upgrade the older one".into()
            }
            Some(CloseCode::Overloaded) => "the hub has no room for another connection now".into(),
            None => format!("the hub closed the connection with code {}", close.error_code),
        },
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) >= CRYPTO_ERRORS => format!(
            "the hub refuses this robot's certificate ({close}): it is of another hub, expired or withdrawn; make one with `zunft robot add`"
        ),
        ConnectionError::TransportError(error) if u64::from(error.code) >= CRYPTO_ERRORS => format!(
            "the hub's certificate is not acceptable ({error}): is hub.ca of this hub, and hub.server_name right?"
        ),
        ConnectionError::TimedOut => "the hub does not answer".into(),
        ConnectionError::VersionMismatch
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::TransportError(_)
        | ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => error.to_string(),
    }
}

#[expect(clippy::disallowed_methods, reason = "the uplink is a shell: it waits and gives its session the time")]
fn now() -> Instant {
    Instant::now()
}
