//! One connection to the hub: `select()` waits, `apply()` decides, and what it orders is carried out by tasks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use zunft_protocol::hello::{HELLO_BYTES, Hello, HelloAnswer};
use zunft_protocol::ids::EpisodeId;
use zunft_protocol::limits::{EVICTIONS_PER_MESSAGE_MAX, UPLOADS_IN_FLIGHT_MAX};
use zunft_protocol::message::{CloseCode, Message, PRIORITY_CONTROL, Want};
use zunft_protocol::session::UploadReply;
use zunft_protocol::session::agent::{AgentEvent, AgentOrder};
use zunft_protocol::upload_policy::PushedPolicy;

use super::download::{self, Request};
use super::silence::Silence;
use super::upload::{Upload, UploadError, UploadTurns};
use super::wire::{self, STANDSTILL_MAX, WireError, read_message};
use super::{Services, Uploads, Way, now};

/// A sign of life, with the robot's numbers.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// How often the time of day and the robot's activity are looked at; neither is announced.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The first look at a new connection; the time to the next doubles. A fast link is not left idle until it is known.
const LOOK_INTERVAL_FIRST: Duration = Duration::from_millis(50);

/// Time over which the rate of the status is taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Signs of life that may be owed at a time; beyond, none are asked for.
const PINGS_OWED_MAX: usize = 64;

/// Messages of the hub that wait to be looked at; it sends three at connect and few later.
const CONTROL_MESSAGES_MAX: usize = 8;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("the agent stops")]
    Stopped,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the hub does not speak our protocol")]
    Hello(#[from] zunft_protocol::hello::HelloError),
    #[error("{0}")]
    Lost(String),
}

enum Event {
    Stop,
    Lost(String),
    Said(Result<Message, WireError>),
    Replied { upload: UploadId, reply: UploadReply },
    UploadEnded { upload: UploadId, result: Result<(), UploadError> },
    SpoolChanged,
    ReleasesChanged,
    Fetch(Request),
    ReportDue,
    PingDue,
    LookAround,
    Wake,
}

/// An upload of an episode: what an earlier one has still to say is not for this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct UploadId {
    episode: EpisodeId,
    number: u64,
}

/// An upload under way.
struct Under {
    number: u64,
    /// Dropped when the upload is given up.
    wanted: mpsc::Sender<Want>,
}

/// A task's last words.
struct Ended {
    upload: Option<UploadId>,
    result: Result<(), UploadError>,
}

pub(super) struct Connection<'u> {
    connection: quinn::Connection,
    services: &'u Services,
    uploads: &'u mut Uploads,
    /// What the hub allowed first of all, until it is obeyed.
    allowed: Option<PushedPolicy>,
    requests: &'u mut mpsc::Receiver<Request>,
    control: SendStream,
    said: mpsc::Receiver<Result<Message, WireError>>,
    replies: mpsc::Receiver<(UploadId, UploadReply)>,
    reply_sender: mpsc::Sender<(UploadId, UploadReply)>,
    under_way: BTreeMap<EpisodeId, Under>,
    /// Uploads so far: their numbers.
    begun: u64,
    turns: UploadTurns,
    tasks: JoinSet<Ended>,
    spool_changes: watch::Receiver<u64>,
    release_changes: watch::Receiver<u64>,
    report_at: Instant,
    /// The hub has not yet answered what it was told of evictions.
    telling_evictions: bool,
    way: Way<'u>,
    ping_at: Instant,
    look_at: Instant,
    look_interval: Duration,
    /// Pings so far: their numbers.
    pings: u64,
    /// Those that were not answered yet, and when they were sent.
    pinged: BTreeMap<u64, Instant>,
    silence: Silence,
    rate: Rate,
}

impl<'u> Connection<'u> {
    /// Greets the hub.
    pub(super) async fn open(
        connection: quinn::Connection,
        services: &'u Services,
        uploads: &'u mut Uploads,
        requests: &'u mut mpsc::Receiver<Request>,
        way: Way<'u>,
    ) -> Result<Self, ConnectionEnd> {
        let (mut control, mut receive) = connection.open_bi().await.map_err(WireError::from)?;
        drop(control.set_priority(PRIORITY_CONTROL));
        wire::write(&mut control, &Hello::ours().encode()).await?;
        let mut answer = [0; HELLO_BYTES];
        let read = tokio::time::timeout(STANDSTILL_MAX, wire::read_exact(&mut receive, &mut answer)).await;
        read.map_err(|_| WireError::Standstill)??;
        HelloAnswer::decode(answer)?;
        let allowed = tokio::time::timeout(STANDSTILL_MAX, read_message(&mut receive)).await;
        let Message::UploadPolicy(allowed) = allowed.map_err(|_| WireError::Standstill)?? else {
            return Err(WireError::Unexpected("something else before the upload policy").into());
        };
        let mut tasks = JoinSet::new();
        let (sender, said) = mpsc::channel(CONTROL_MESSAGES_MAX);
        tasks.spawn(async move {
            listen(receive, sender).await;
            Ended { upload: None, result: Ok(()) }
        });
        let (reply_sender, replies) = mpsc::channel(UPLOADS_IN_FLIGHT_MAX * 2);
        let mut spool_changes = services.spool.changes();
        let mut release_changes = services.releases.changes();
        // What there is already is looked at first.
        spool_changes.mark_changed();
        release_changes.mark_changed();
        Ok(Self {
            connection,
            services,
            uploads,
            allowed: Some(allowed),
            requests,
            control,
            said,
            replies,
            reply_sender,
            under_way: BTreeMap::new(),
            begun: 0,
            turns: UploadTurns::new(),
            tasks,
            spool_changes,
            release_changes,
            report_at: now() + REPORT_INTERVAL,
            telling_evictions: false,
            way,
            ping_at: now(),
            look_at: now(),
            look_interval: LOOK_INTERVAL_FIRST,
            pings: 0,
            pinged: BTreeMap::new(),
            silence: Silence::default(),
            rate: Rate::default(),
        })
    }

    /// Serves until the connection is lost or the agent stops.
    pub(super) async fn run(mut self, stop: &CancellationToken) -> ConnectionEnd {
        // Before anything is offered.
        if let Some(allowed) = self.allowed.take() {
            self.allow(&allowed, now()).await;
        }
        self.look_around(now());
        self.tell(AgentEvent::Connected, now());
        let end = loop {
            let event = self.select(stop).await;
            if let Err(end) = self.apply(event, now()).await {
                break end;
            }
        };
        let code = if matches!(end, ConnectionEnd::Stopped) { CloseCode::Stopping } else { CloseCode::Protocol };
        self.connection.close((code as u32).into(), b"");
        // Their streams are gone with the connection.
        self.tasks.shutdown().await;
        let orders = self.uploads.session.handle(AgentEvent::Disconnected, now());
        debug_assert!(orders.is_empty(), "without a hub there is nothing to do");
        end
    }

    async fn select(&mut self, stop: &CancellationToken) -> Event {
        let wake_at = self.uploads.session.wake_at(now());
        let wake = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Event::Stop,
            error = self.connection.closed() => Event::Lost(super::explain(&error)),
            Some(message) = self.said.recv() => Event::Said(message),
            Some((upload, reply)) = self.replies.recv() => Event::Replied { upload, reply },
            Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => match ended {
                Ok(Ended { upload: Some(upload), result }) => Event::UploadEnded { upload, result },
                Ok(Ended { upload: None, .. }) => Event::Wake,
                Err(error) => Event::Lost(format!("a task failed: {error}")),
            },
            Ok(()) = self.release_changes.changed() => Event::ReleasesChanged,
            Some(request) = self.requests.recv() => Event::Fetch(request),
            Ok(()) = self.spool_changes.changed() => Event::SpoolChanged,
            () = tokio::time::sleep_until(self.report_at.into()) => Event::ReportDue,
            () = tokio::time::sleep_until(self.ping_at.into()) => Event::PingDue,
            () = tokio::time::sleep_until(self.look_at.into()) => Event::LookAround,
            () = wake => Event::Wake,
        }
    }

    async fn apply(&mut self, event: Event, now: Instant) -> Result<(), ConnectionEnd> {
        match event {
            Event::Stop => return Err(ConnectionEnd::Stopped),
            Event::Lost(reason) => return Err(ConnectionEnd::Lost(reason)),
            Event::Said(Ok(Message::UploadPolicy(pushed))) => {
                self.allow(&pushed, now).await;
                self.report(now).await?;
            }
            Event::Said(Ok(Message::Wanted(episodes))) => self.tell(AgentEvent::Wanted { episodes }, now),
            Event::Said(message) => {
                self.said(message?, now)?;
                self.tell_evictions().await?;
            }
            Event::Replied { upload, reply } => {
                if self.is_under_way(upload) {
                    self.tell(AgentEvent::Replied { episode: upload.episode, reply }, now);
                }
            }
            Event::UploadEnded { upload, result } => {
                // Who gave an upload up has forgotten it already, and may have begun it again.
                if !self.is_under_way(upload) {
                    return Ok(());
                }
                let episode = upload.episode;
                self.under_way.remove(&episode);
                if let Err(error) = result {
                    let reason = crate::text::chain(&error);
                    if matches!(error, UploadError::Spool(_) | UploadError::Task) {
                        tracing::warn!(episode_id = %episode, reason, "an episode cannot be read back");
                        self.tell(AgentEvent::Unreadable { episode }, now);
                    } else {
                        tracing::debug!(episode_id = %episode, reason, "upload broke");
                        self.tell(AgentEvent::Broken { episode }, now);
                    }
                }
            }
            Event::SpoolChanged => {
                self.look_into_spool(now);
                self.tell_evictions().await?;
            }
            Event::ReleasesChanged => {
                self.uploads.session.trust(self.services.releases.assigners());
                self.report(now).await?;
            }
            Event::Fetch(request) => {
                let connection = self.connection.clone();
                self.tasks.spawn(async move {
                    download::run(connection, request).await;
                    Ended { upload: None, result: Ok(()) }
                });
            }
            Event::ReportDue => self.report(now).await?,
            Event::PingDue => self.ping(now).await?,
            Event::LookAround => self.look_around(now),
            Event::Wake => {
                let orders = self.uploads.session.handle_timeout(now);
                self.carry_out(orders);
            }
        }
        Ok(())
    }

    fn said(&mut self, message: Message, now: Instant) -> Result<(), WireError> {
        match message {
            Message::Assign(object) => self.services.releases.assign(object.envelope),
            Message::Root(object) => self.services.releases.root(object.envelope),
            Message::EvictionsStored(ordinals) => {
                self.services.spool.evictions_told(&ordinals);
                self.telling_evictions = false;
            }
            Message::Pong(number) => {
                if let Some(pinged_at) = self.pinged.remove(&number) {
                    self.services.state.round_trip(now.saturating_duration_since(pinged_at));
                }
            }
            Message::Report(_)
            | Message::Ping(_)
            | Message::UploadPolicy(_)
            | Message::Describe(_)
            | Message::Noted
            | Message::Wanted(_)
            | Message::Offer(_)
            | Message::Want(_)
            | Message::Later(_)
            | Message::Reject(_)
            | Message::Chunk(_)
            | Message::ChunkRest(_)
            | Message::Durable(_)
            | Message::Fetch(_)
            | Message::Found(_)
            | Message::Missing
            | Message::Evicted(_) => return Err(WireError::Unexpected("something else on the control stream")),
        }
        Ok(())
    }

    /// Keeps to what the hub's operator allows, at once and after a restart.
    async fn allow(&mut self, pushed: &PushedPolicy, now: Instant) {
        let Some(changes) = self.uploads.allow(pushed) else { return };
        tracing::info!(revision = pushed.revision, of_the_hub = pushed.policy.is_some(), "upload policy changed");
        for event in changes {
            self.tell(event, now);
        }
        self.set_cap(now);
        self.look_into_spool(now);
        self.services.state.policy(self.uploads.rules.status());
        self.uploads.rules.keep(pushed).await;
    }

    /// Sets the cap that holds while the robot acts, or rests.
    fn set_cap(&self, now: Instant) {
        self.way.cap.set(self.uploads.rules.bytes_per_second(self.services.activity.is_acting(now)), now);
    }

    fn look_into_spool(&mut self, now: Instant) {
        for event in self.uploads.look(&self.services.spool, &self.services.state) {
            self.tell(event, now);
        }
    }

    /// Tells the hub what was given up for want of room, one message at a time.
    async fn tell_evictions(&mut self) -> Result<(), WireError> {
        if self.telling_evictions {
            return Ok(());
        }
        let tombstones = self.services.spool.evictions(EVICTIONS_PER_MESSAGE_MAX);
        if tombstones.is_empty() {
            return Ok(());
        }
        self.telling_evictions = true;
        wire::write_urgently(&self.connection, &mut self.control, &Message::Evicted(tombstones)).await
    }

    async fn report(&mut self, now: Instant) -> Result<(), WireError> {
        self.report_at = now + REPORT_INTERVAL;
        let report = Message::Report(self.services.report());
        wire::write_urgently(&self.connection, &mut self.control, &report).await
    }

    /// Asks for a sign of life, unless too many are still owed.
    async fn ping(&mut self, now: Instant) -> Result<(), WireError> {
        self.ping_at = now + self.way.ping_interval();
        if self.pinged.len() >= PINGS_OWED_MAX {
            return Ok(());
        }
        self.pings += 1;
        self.pinged.insert(self.pings, now);
        wire::write_urgently(&self.connection, &mut self.control, &Message::Ping(self.pings)).await
    }

    /// Whether the robot acts, whether the hub is heard, and what time it is: all may have changed unannounced.
    fn look_around(&mut self, now: Instant) {
        self.look_at = now + self.look_interval;
        self.look_interval = (self.look_interval * 2).min(LOOK_INTERVAL);
        self.set_cap(now);
        let stats = self.connection.stats();
        let path = stats.path;
        tracing::trace!(
            sent_bytes = stats.udp_tx.bytes,
            sent_datagrams = stats.udp_tx.datagrams,
            lost_packets = path.lost_packets,
            congestion_events = path.congestion_events,
            window_bytes = path.cwnd,
            rtt_ms = path.rtt.as_millis() as u64,
            mtu = path.current_mtu,
            "link"
        );
        let bytes_per_sec = self.rate.since_last(stats.udp_tx.bytes, now) as u64;
        self.services.state.rate(self.rate.look(stats.udp_tx.bytes, now));
        self.tell(AgentEvent::Rate { bytes_per_sec }, now);
        if self.silence.look(stats.udp_rx.datagrams, stats.udp_tx.datagrams, now) {
            match self.way.change_port() {
                Ok(()) => self.services.state.port_changed(),
                Err(error) => tracing::debug!(%error, "no other port"),
            }
        }
        if let Some(secs) = self.services.clock.local_secs_of_day() {
            self.tell(AgentEvent::TimeOfDay { secs }, now);
        }
        let session = &self.uploads.session;
        self.services.state.window(session.is_open(now), session.noted() as u64);
    }

    fn is_under_way(&self, upload: UploadId) -> bool {
        self.under_way.get(&upload.episode).is_some_and(|under| under.number == upload.number)
    }

    fn tell(&mut self, event: AgentEvent, now: Instant) {
        let orders = self.uploads.session.handle(event, now);
        self.carry_out(orders);
    }

    fn carry_out(&mut self, orders: Vec<AgentOrder>) {
        for order in orders {
            match order {
                AgentOrder::Offer { episode, priority } => self.offer(episode, priority, true),
                AgentOrder::Describe { episode, priority } => self.offer(episode, priority, false),
                AgentOrder::Send { episode, want } => {
                    // An upload that broke meanwhile says so itself.
                    if let Some(upload) = self.under_way.get(&episode) {
                        drop(upload.wanted.try_send(want));
                    }
                }
                AgentOrder::Close { episode } => {
                    self.under_way.remove(&episode);
                }
                AgentOrder::Free { episode, receipt } => {
                    if let Some(stored) = self.uploads.episodes.remove(&episode) {
                        tracing::info!(episode_id = %episode, ordinal = stored.ordinal, "episode durable on the hub");
                        self.services.clock.hub_signed(receipt.stored_unix_secs);
                        self.services.state.durable(receipt.stored_unix_secs);
                        self.services.spool.durable(stored.ordinal, Message::Durable(receipt).encode());
                    }
                }
                AgentOrder::Quarantine { episode, reason } => {
                    tracing::error!(episode_id = %episode, %reason, "the hub refuses an episode; it stays in the spool");
                    self.services.state.rejected();
                }
            }
        }
    }

    fn offer(&mut self, episode: EpisodeId, priority: i32, whole: bool) {
        let Some(stored) = self.uploads.episodes.get(&episode).cloned() else { return };
        let (wanted, wants) = mpsc::channel(1);
        let (reply_sender, mut own_replies) = mpsc::channel(1);
        self.begun += 1;
        let id = UploadId { episode, number: self.begun };
        self.under_way.insert(episode, Under { number: self.begun, wanted });
        let upload = Upload {
            connection: self.connection.clone(),
            spool: self.services.spool.clone(),
            state: Arc::clone(&self.services.state),
            episode: stored,
            priority,
            whole,
            turns: self.turns.clone(),
            wanted: wants,
            replies: reply_sender,
        };
        let replies = self.reply_sender.clone();
        let span = tracing::info_span!("upload", %episode);
        let sending = async move {
            let forward = async {
                while let Some(reply) = own_replies.recv().await {
                    if replies.send((id, reply)).await.is_err() {
                        break;
                    }
                }
            };
            let (result, ()) = tokio::join!(upload.run(), forward);
            Ended { upload: Some(id), result }
        };
        self.tasks.spawn(sending.instrument(span));
    }
}

/// What left over the last ten seconds.
#[derive(Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Bytes a second since the last look, of which there were so many in all.
    fn since_last(&self, bytes: u64, now: Instant) -> f64 {
        let Some(&(since, before)) = self.0.back() else { return 0.0 };
        let secs = now.saturating_duration_since(since).as_secs_f64();
        if secs > 0.0 { (bytes - before) as f64 / secs } else { 0.0 }
    }

    /// Takes the bytes sent so far; returns bytes a second.
    fn look(&mut self, bytes: u64, now: Instant) -> f64 {
        self.0.push_back((now, bytes));
        while self.0.len() > 2 && now.saturating_duration_since(self.0[1].0) >= RATE_WINDOW {
            self.0.pop_front();
        }
        let (since, before) = self.0[0];
        let secs = now.saturating_duration_since(since).as_secs_f64();
        if secs > 0.0 { (bytes - before) as f64 / secs } else { 0.0 }
    }
}

/// Reads the hub's control messages until the stream ends or makes no sense.
async fn listen(mut receive: RecvStream, said: mpsc::Sender<Result<Message, WireError>>) {
    loop {
        let message = read_message(&mut receive).await;
        let last = message.is_err();
        if said.send(message).await.is_err() || last {
            return;
        }
    }
}
