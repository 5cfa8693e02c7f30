//! One robot's connection: its control stream, its assignment, and a task for each stream that it opens.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{ConnectionError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug, info, warn};
use zunft_protocol::hello::{HELLO_BYTES, Hello, HelloError};
use zunft_protocol::ids::Digest;
use zunft_protocol::limits::{MESSAGE_BYTES_MAX, WANTED_PER_MESSAGE_MAX};
use zunft_protocol::message::{CloseCode, Message, PRIORITY_CONTROL, Report, SignedObject, Tombstone};
use zunft_protocol::release::AssignedRelease;
use zunft_protocol::session::hub::{HubSession, Identity, UploadId};

use super::lookups::LookUps;
use super::reports::{NotRecorded, Reports};
use super::tls::STREAMS_MAX;
use super::wire::{self, Progress, WireError};
use super::{Grouped, code, downloads, uploads};
use crate::assignments::{self, Signing};
use crate::clock;
use crate::identity::RobotIdentity;
use crate::metadata::{MetadataError, NewReport, RecordingCursor};
use crate::services::{
    Budget, BudgetShare, Change, LiveConnection, MANIFEST_MEMORY_FACTOR, MANIFEST_MEMORY_MAX, Services,
};

/// How often a connection looks whether its assignment grows old.
const RENEW_EVERY: Duration = Duration::from_secs(600);

/// Reports that wait: a robot that sends them faster than they are recorded is slowed down.
const REPORTS_MAX: usize = 16;

/// What a robot says on its control stream.
enum Said {
    Report(Box<Report>),
    Ping(u64),
    Evicted(Vec<Tombstone>),
}

type SaidByRobot = mpsc::Receiver<Result<Said, EndReason>>;

/// What one connection's tasks share.
#[derive(Debug)]
pub(super) struct Robot {
    pub(super) identity: RobotIdentity,
    pub(super) connection: quinn::Connection,
    pub(super) services: Arc<Services>,
    /// This robot's part of the memory: one that stalls cannot hold the others' up.
    pub(super) budget: Budget,
    /// Its part of the memory for large manifests: one of the largest at a time.
    pub(super) manifest_budget: Budget,
    pub(super) look_ups: LookUps,
    /// What moves on all of its uploads.
    pub(super) progress: Progress,
    /// Decides about uploads; locked for each decision, never while waiting.
    pub(super) session: Mutex<HubSession>,
}

impl Robot {
    /// How long a stream in use may stand still, unless it waits for its turn.
    pub(super) fn stall(&self) -> Duration {
        self.progress.stall()
    }

    /// Memory for a manifest of so many bytes and all that is made of it, of the robot's part and of the whole.
    fn reserve_for_manifest(&self, bytes: usize) -> Option<(BudgetShare, BudgetShare)> {
        let memory = (bytes * MANIFEST_MEMORY_FACTOR) as u64;
        let own = self.manifest_budget.reserve(memory)?;
        Some((own, self.services.budget.reserve(memory)?))
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndReason {
    #[error("the hub stops")]
    Stopping,
    #[error("connection ended: {0}")]
    Connection(#[from] ConnectionError),
    #[error("no hello in time (config key limits.greeting_secs)")]
    NoHello,
    #[error("hello refused: {0}")]
    Hello(#[from] HelloError),
    #[error("control stream ended: {0}")]
    Control(#[from] WireError),
    #[error("the robot ended its control stream")]
    Left,
    #[error("metadata failed: {0}")]
    Metadata(#[from] MetadataError),
    #[error(transparent)]
    Report(#[from] NotRecorded),
}

impl EndReason {
    fn close_code(&self) -> CloseCode {
        match self {
            Self::Hello(HelloError::Version { .. }) => CloseCode::Version,
            Self::NoHello | Self::Hello(HelloError::Magic) => CloseCode::Protocol,
            Self::Control(error) if error.is_violation() || matches!(error, WireError::Stalled) => CloseCode::Protocol,
            Self::Metadata(_) | Self::Report(_) => CloseCode::Overloaded,
            Self::Stopping | Self::Connection(_) | Self::Control(_) | Self::Left => CloseCode::Stopping,
        }
    }
}

/// What a connection waits for.
enum Event {
    Said(Said),
    ControlEnded(EndReason),
    Stream(SendStream, RecvStream),
    Assigned,
    Allowed,
    Wanted,
    Renewal,
    Ended(ConnectionError),
    Stop,
}

/// Serves the robot until it leaves or the hub stops.
///
/// Of `tasks`, the first tracks everything that the hub's stop waits for, the second this connection's streams.
pub(super) async fn run(
    identity: RobotIdentity,
    live: LiveConnection,
    services: Arc<Services>,
    Grouped { reports: recorder, look_ups }: Grouped,
    stop: CancellationToken,
    tasks: (TaskTracker, TaskTracker),
) -> EndReason {
    let connection = live.connection.clone();
    let reason = match greet(&connection, services.config.limits.greeting()).await {
        Err(reason) => reason,
        Ok((control, reports)) => {
            let session_identity = Identity {
                tenant: identity.tenant.clone(),
                site: identity.site.clone(),
                robot: identity.robot.clone(),
            };
            let episode_bytes_max = services.config.limits.episode_bytes_max;
            let budget = Budget::new(services.config.limits.robot_bytes_max());
            let progress = Progress::new(services.config.limits.stall());
            let session = Mutex::new(HubSession::new(session_identity, episode_bytes_max));
            let manifest_budget = Budget::new(MANIFEST_MEMORY_MAX);
            let connection = connection.clone();
            let robot = Arc::new(Robot {
                identity,
                connection,
                services,
                budget,
                manifest_budget,
                look_ups,
                progress,
                session,
            });
            let conversation = Conversation {
                robot,
                live,
                control,
                recorder,
                uploads: 0,
                accepted: None,
                sent: 0,
                allowed: None,
                asked: None,
            };
            conversation.run(reports, stop, tasks).await
        }
    };
    connection.close(code(reason.close_code()), reason.to_string().as_bytes());
    reason
}

/// Agrees on the version on the first stream.
async fn greet(connection: &quinn::Connection, patience: Duration) -> Result<(SendStream, RecvStream), EndReason> {
    let greeting = async {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let mut hello = [0; HELLO_BYTES];
        wire::fill(&mut recv, &mut hello, patience).await?;
        let answer = Hello::decode(hello)?.choose()?;
        if let Err(error) = send.set_priority(PRIORITY_CONTROL) {
            debug!(%error, "the control stream is gone already");
        }
        wire::write(&mut send, &answer.encode(), patience).await?;
        Ok((send, recv))
    };
    tokio::time::timeout(patience, greeting).await.map_err(|_| EndReason::NoHello)?
}

struct Conversation {
    robot: Arc<Robot>,
    live: LiveConnection,
    control: SendStream,
    recorder: Reports,
    /// Upload streams so far: their numbers.
    uploads: u64,
    /// The last assignment that the robot says it accepted; unknown before its first report.
    accepted: Option<u64>,
    /// The last assignment sent on this connection.
    sent: u64,
    /// The last revision of the upload policy sent on it.
    allowed: Option<u64>,
    /// The last episode asked for on it.
    asked: Option<RecordingCursor<zunft_protocol::EpisodeId>>,
}

impl Conversation {
    async fn run(
        mut self,
        control: RecvStream,
        stop: CancellationToken,
        (tasks, own_tasks): (TaskTracker, TaskTracker),
    ) -> EndReason {
        // Before all else: until then the robot offers nothing.
        if let Err(reason) = self.send_policy().await {
            return reason;
        }
        let (sender, mut reports) = mpsc::channel(REPORTS_MAX);
        tasks.spawn(read_control(control, sender, self.robot.stall()).in_current_span());
        let mut renewal = tokio::time::interval(RENEW_EVERY);
        loop {
            let event = tokio::select! {
                report = reports.recv() => match report {
                    Some(Ok(said)) => Event::Said(said),
                    Some(Err(reason)) => Event::ControlEnded(reason),
                    None => Event::ControlEnded(EndReason::Left),
                },
                stream = self.robot.connection.accept_bi() => match stream {
                    Ok((send, recv)) => Event::Stream(send, recv),
                    Err(error) => Event::Ended(error),
                },
                () = self.live.assigned.notified() => Event::Assigned,
                () = self.live.allowed.notified() => Event::Allowed,
                () = self.live.wanted.notified() => Event::Wanted,
                // The first one comes at once.
                _ = renewal.tick() => Event::Renewal,
                () = stop.cancelled() => Event::Stop,
            };
            let done = match event {
                Event::Said(said) => self.said(said, &mut reports).await,
                Event::Assigned => self.send_assignment().await,
                Event::Allowed => self.send_policy().await,
                Event::Wanted => self.send_wanted().await,
                Event::Renewal => match self.send_assignment().await {
                    Ok(()) => self.send_wanted().await,
                    failed => failed,
                },
                Event::Stream(send, recv) => {
                    if self.uploads == 0 {
                        self.robot.connection.set_max_concurrent_bi_streams(STREAMS_MAX.into());
                    }
                    self.uploads += 1;
                    let serving = serve_stream(self.robot.clone(), UploadId(self.uploads), send, recv);
                    own_tasks.spawn(tasks.track_future(serving).in_current_span());
                    Ok(())
                }
                Event::ControlEnded(reason) => Err(reason),
                Event::Ended(error) => Err(error.into()),
                Event::Stop => Err(EndReason::Stopping),
            };
            if let Err(reason) = done {
                own_tasks.close();
                if matches!(reason, EndReason::Stopping) {
                    // What is complete is committed and answered; the rest the robot offers again.
                    drain(&own_tasks, &self.robot.connection).await;
                }
                return reason;
            }
        }
    }

    /// Keeps what the robot gave up, and only then lets it forget.
    async fn evicted(&mut self, tombstones: &[Tombstone]) -> Result<(), EndReason> {
        let (tenant, robot) = (&self.robot.identity.tenant, &self.robot.identity.robot);
        let services = &self.robot.services;
        services.metadata.record_evictions(tenant, robot, tombstones, clock::unix_millis()).await?;
        services.announce(Change::Robot { tenant: tenant.clone(), robot: robot.clone() });
        info!(episodes = tombstones.len(), "the robot gave up episodes for want of room");
        let ordinals = tombstones.iter().map(|tombstone| tombstone.ordinal).collect();
        let stall = self.robot.stall();
        wire::write(&mut self.control, &Message::EvictionsStored(ordinals).encode(), stall).await?;
        Ok(())
    }

    /// Answers pings, and takes the latest of the reports that wait: the ones before it say nothing any more.
    async fn said(&mut self, first: Said, reports: &mut SaidByRobot) -> Result<(), EndReason> {
        let (mut report, mut ended) = (None, None);
        let mut next = Some(first);
        while let Some(said) = next.take() {
            match said {
                Said::Report(latest) => report = Some(latest),
                Said::Evicted(tombstones) => self.evicted(&tombstones).await?,
                Said::Ping(number) => {
                    wire::write(&mut self.control, &Message::Pong(number).encode(), self.robot.stall()).await?;
                }
            }
            match reports.try_recv() {
                Ok(Ok(said)) => next = Some(said),
                Ok(Err(reason)) => ended = Some(reason),
                Err(_) => {}
            }
        }
        if let Some(report) = report {
            self.reported(*report).await?;
        }
        ended.map_or(Ok(()), Err)
    }

    async fn reported(&mut self, report: Report) -> Result<(), EndReason> {
        let RobotIdentity { tenant, robot, .. } = self.robot.identity.clone();
        let accepted = report.assignment_sequence;
        let at_unix_ms = clock::unix_millis();
        let new = NewReport { tenant: tenant.clone(), robot: robot.clone(), report, at_unix_ms };
        self.recorder.record(new).await?;
        self.robot.services.announce(Change::Robot { tenant, robot });
        self.accepted = Some(accepted);
        self.send_assignment().await
    }

    /// Tells the robot what it may upload, unless it was told already.
    async fn send_policy(&mut self) -> Result<(), EndReason> {
        let RobotIdentity { tenant, robot, .. } = &self.robot.identity;
        let policies = self.robot.services.metadata.upload_policies_of(tenant, robot).await?;
        let (pushed, _) = policies.in_force(robot);
        if self.allowed == Some(pushed.revision) {
            return Ok(());
        }
        debug!(revision = pushed.revision, "upload policy sent");
        self.allowed = Some(pushed.revision);
        wire::write(&mut self.control, &Message::UploadPolicy(pushed).encode(), self.robot.stall()).await?;
        Ok(())
    }

    /// Asks for what somebody wants of the robot, as much as fits a message, and the next time for what comes after:
    /// some of it may never come.
    async fn send_wanted(&mut self) -> Result<(), EndReason> {
        let RobotIdentity { tenant, robot, .. } = &self.robot.identity;
        let metadata = &self.robot.services.metadata;
        let limit = WANTED_PER_MESSAGE_MAX as u32;
        let (wanted, last) = metadata.wanted_episodes(tenant, robot, self.asked, limit).await?;
        if !wanted.is_empty() {
            self.asked = last;
            info!(episodes = wanted.len(), "the robot is asked for episodes");
            wire::write(&mut self.control, &Message::Wanted(wanted).encode(), self.robot.stall()).await?;
        }
        Ok(())
    }

    /// Sends the robot what it should run, if it does not know.
    async fn send_assignment(&mut self) -> Result<(), EndReason> {
        let Some(accepted) = self.accepted else {
            return Ok(());
        };
        let RobotIdentity { tenant, robot, .. } = self.robot.identity.clone();
        let metadata = &self.robot.services.metadata;
        let now = clock::unix_millis();
        let record = metadata.assignment(&tenant, &robot).await?;
        let record = match assignments::decide(record.as_ref(), accepted.max(self.sent), now) {
            Signing::Nothing => None,
            Signing::Present => record,
            Signing::Fresh { sequence_min } => metadata.next_assignment(&tenant, &robot, sequence_min, now).await?,
        };
        let (Some(record), Some(keys)) = (record, self.robot.services.keys(&tenant)) else {
            return Ok(());
        };
        let mut releases = Vec::with_capacity(record.releases.len());
        for release in record.releases {
            match metadata.release(&tenant, &release).await? {
                Some(found) => releases.push(AssignedRelease { release, envelope: found.envelope }),
                None => warn!(%release, "an assigned release is not in the registry; the robot does without it"),
            }
        }
        let envelope = assignments::sign(&tenant, &robot, record.sequence, releases, &keys, now / 1000).to_json();
        info!(sequence = record.sequence, digest = %Digest::of(&envelope), "assignment sent");
        let message = Message::Assign(SignedObject { envelope });
        wire::write(&mut self.control, &message.encode(), self.robot.stall()).await?;
        self.sent = record.sequence;
        Ok(())
    }
}

/// Waits for the streams' tasks while the connection lives.
async fn drain(tasks: &TaskTracker, connection: &quinn::Connection) {
    tokio::select! {
        () = tasks.wait() => {}
        error = connection.closed() => debug!(%error, "the robot left while the hub was stopping"),
    }
}

/// Reads the control stream to its end.
async fn read_control(mut control: RecvStream, reports: mpsc::Sender<Result<Said, EndReason>>, stall: Duration) {
    loop {
        let read = tokio::select! {
            read = read_said(&mut control, stall) => read,
            () = reports.closed() => return,
        };
        let ended = read.is_err();
        if reports.send(read).await.is_err() || ended {
            return;
        }
    }
}

async fn read_said(control: &mut RecvStream, stall: Duration) -> Result<Said, EndReason> {
    let message = wire::next_message(control, stall).await?;
    match message {
        Some(Message::Report(report)) => Ok(Said::Report(Box::new(report))),
        Some(Message::Ping(number)) => Ok(Said::Ping(number)),
        Some(Message::Evicted(tombstones)) => Ok(Said::Evicted(tombstones)),
        Some(_) => Err(WireError::Unexpected.into()),
        None => Err(EndReason::Left),
    }
}

/// Serves one stream by what its first message is.
async fn serve_stream(robot: Arc<Robot>, upload: UploadId, send: SendStream, mut recv: RecvStream) {
    let served = async {
        let stall = robot.stall();
        let Some(header) = wire::read_header(&mut recv, stall).await? else { return Ok(()) };
        let memory = if header.body_bytes > MESSAGE_BYTES_MAX {
            let Some(memory) = robot.reserve_for_manifest(header.body_bytes) else {
                return uploads::postpone(send, &mut recv, &header, stall).await;
            };
            Some(memory)
        } else {
            None
        };
        match wire::read_body(&mut recv, header, stall).await? {
            Message::Offer(manifest) => {
                let served = uploads::serve(&robot, upload, manifest, true, send, &mut recv).await;
                // What was made of the manifest is in memory until its upload is over.
                drop(memory);
                served
            }
            Message::Describe(manifest) => {
                let served = uploads::serve(&robot, upload, manifest, false, send, &mut recv).await;
                drop(memory);
                served
            }
            Message::Fetch(fetch) => downloads::serve(&robot, fetch, send).await,
            Message::Report(_)
            | Message::Assign(_)
            | Message::Root(_)
            | Message::Want(_)
            | Message::Later(_)
            | Message::Reject(_)
            | Message::Chunk(_)
            | Message::ChunkRest(_)
            | Message::Ping(_)
            | Message::Pong(_)
            | Message::UploadPolicy(_)
            | Message::Noted
            | Message::Wanted(_)
            | Message::Durable(_)
            | Message::Found(_)
            | Message::Missing
            | Message::Evicted(_)
            | Message::EvictionsStored(_) => Err(WireError::Unexpected),
        }
    };
    if let Err(error) = served.instrument(Span::current()).await {
        if error.is_violation() {
            warn!(error = &error as &dyn std::error::Error, "the robot broke the protocol");
            robot.connection.close(code(CloseCode::Protocol), error.to_string().as_bytes());
        } else {
            debug!(error = &error as &dyn std::error::Error, "stream ended early");
        }
    }
}
