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
use zunft_protocol::message::{CloseCode, Message, PRIORITY_CONTROL, Report, SignedObject, Tombstone};
use zunft_protocol::release::AssignedRelease;
use zunft_protocol::session::hub::{HubSession, Identity, UploadId};

use super::wire::{self, WireError};
use super::{code, downloads, uploads};
use crate::assignments::{self, Signing};
use crate::clock;
use crate::identity::RobotIdentity;
use crate::metadata::MetadataError;
use crate::services::{Budget, Change, LiveConnection, Services};

/// How long a robot may take for its hello.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// How often a connection looks whether its assignment grows old.
const RENEW_EVERY: Duration = Duration::from_secs(600);

/// Reports that wait: a robot that sends them faster than they are recorded is slowed down.
const REPORTS_MAX: usize = 16;

/// What a robot says on its control stream.
enum Said {
    Report(Report),
    Evicted(Vec<Tombstone>),
}

type Control = mpsc::Receiver<Result<Said, EndReason>>;

/// What one connection's tasks share.
#[derive(Debug)]
pub(super) struct Robot {
    pub(super) identity: RobotIdentity,
    pub(super) connection: quinn::Connection,
    pub(super) services: Arc<Services>,
    /// This robot's part of the memory: one that stalls cannot hold the others' up.
    pub(super) budget: Budget,
    /// Decides about uploads; locked for each decision, never while waiting.
    pub(super) session: Mutex<HubSession>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndReason {
    #[error("the hub stops")]
    Stopping,
    #[error("connection ended: {0}")]
    Connection(#[from] ConnectionError),
    #[error("no hello within {} s", HELLO_MAX.as_secs())]
    NoHello,
    #[error("hello refused: {0}")]
    Hello(#[from] HelloError),
    #[error("control stream ended: {0}")]
    Control(#[from] WireError),
    #[error("the robot ended its control stream")]
    Left,
    #[error("metadata failed: {0}")]
    Metadata(#[from] MetadataError),
}

impl EndReason {
    fn close_code(&self) -> CloseCode {
        match self {
            Self::Hello(HelloError::Version { .. }) => CloseCode::Version,
            Self::NoHello | Self::Hello(HelloError::Magic) => CloseCode::Protocol,
            Self::Control(error) if error.is_violation() => CloseCode::Protocol,
            Self::Metadata(_) => CloseCode::Overloaded,
            Self::Stopping | Self::Connection(_) | Self::Control(_) | Self::Left => CloseCode::Stopping,
        }
    }
}

/// What a connection waits for.
enum Event {
    Report(Report),
    Evicted(Vec<Tombstone>),
    ControlEnded(EndReason),
    Stream(SendStream, RecvStream),
    Assigned,
    Ended(ConnectionError),
    Stop,
}

/// Serves the robot until it leaves or the hub stops.
pub(super) async fn run(
    identity: RobotIdentity,
    live: LiveConnection,
    services: Arc<Services>,
    stop: CancellationToken,
    tasks: TaskTracker,
) -> EndReason {
    let connection = live.connection.clone();
    let reason = match greet(&connection).await {
        Err(reason) => reason,
        Ok((control, reports)) => {
            let session_identity = Identity {
                tenant: identity.tenant.clone(),
                site: identity.site.clone(),
                robot: identity.robot.clone(),
            };
            // An episode is committed in one pack.
            let episode_bytes_max = services.config.store.pack_bytes_max as u64;
            let budget = Budget::new(services.config.store.pack_bytes_max);
            let session = Mutex::new(HubSession::new(session_identity, episode_bytes_max));
            let robot = Arc::new(Robot { identity, connection: connection.clone(), services, budget, session });
            Conversation { robot, live, control, uploads: 0, accepted: None, sent: 0 }.run(reports, stop, tasks).await
        }
    };
    connection.close(code(reason.close_code()), reason.to_string().as_bytes());
    reason
}

/// Agrees on the version on the first stream.
async fn greet(connection: &quinn::Connection) -> Result<(SendStream, RecvStream), EndReason> {
    let greeting = async {
        let (mut send, mut recv) = connection.accept_bi().await?;
        let mut hello = [0; HELLO_BYTES];
        wire::fill(&mut recv, &mut hello).await?;
        let answer = Hello::decode(hello)?.choose()?;
        if let Err(error) = send.set_priority(PRIORITY_CONTROL) {
            debug!(%error, "the control stream is gone already");
        }
        wire::write(&mut send, &answer.encode()).await?;
        Ok((send, recv))
    };
    tokio::time::timeout(HELLO_MAX, greeting).await.map_err(|_| EndReason::NoHello)?
}

struct Conversation {
    robot: Arc<Robot>,
    live: LiveConnection,
    control: SendStream,
    /// Upload streams so far: their numbers.
    uploads: u64,
    /// The last assignment that the robot says it accepted; unknown before its first report.
    accepted: Option<u64>,
    /// The last assignment sent on this connection.
    sent: u64,
}

impl Conversation {
    async fn run(mut self, control: RecvStream, stop: CancellationToken, tasks: TaskTracker) -> EndReason {
        let (sender, mut said) = mpsc::channel(REPORTS_MAX);
        tasks.spawn(read_control(control, sender).in_current_span());
        let own_tasks = TaskTracker::new();
        let mut renewal = tokio::time::interval(RENEW_EVERY);
        loop {
            let event = tokio::select! {
                heard = said.recv() => match heard {
                    Some(Ok(Said::Report(report))) => Event::Report(report),
                    Some(Ok(Said::Evicted(tombstones))) => Event::Evicted(tombstones),
                    Some(Err(reason)) => Event::ControlEnded(reason),
                    None => Event::ControlEnded(EndReason::Left),
                },
                stream = self.robot.connection.accept_bi() => match stream {
                    Ok((send, recv)) => Event::Stream(send, recv),
                    Err(error) => Event::Ended(error),
                },
                () = self.live.assigned.notified() => Event::Assigned,
                _ = renewal.tick() => Event::Assigned,
                () = stop.cancelled() => Event::Stop,
            };
            let done = match event {
                Event::Report(report) => self.reported(report, &mut said).await,
                Event::Evicted(tombstones) => self.evicted(&tombstones).await,
                Event::Assigned => self.send_assignment().await,
                Event::Stream(send, recv) => {
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
        wire::write(&mut self.control, &Message::EvictionsStored(ordinals).encode()).await?;
        Ok(())
    }

    /// Takes the latest of the reports that wait: the ones before it say nothing any more.
    async fn reported(&mut self, first: Report, said: &mut Control) -> Result<(), EndReason> {
        let (mut report, mut ended) = (first, None);
        while let (None, Ok(next)) = (&ended, said.try_recv()) {
            match next {
                Ok(Said::Report(next)) => report = next,
                Ok(Said::Evicted(tombstones)) => self.evicted(&tombstones).await?,
                Err(reason) => ended = Some(reason),
            }
        }
        let report = &report;
        let (tenant, robot) = (&self.robot.identity.tenant, &self.robot.identity.robot);
        let services = &self.robot.services;
        services.metadata.record_report(tenant, robot, report, clock::unix_millis()).await?;
        services.announce(Change::Robot { tenant: tenant.clone(), robot: robot.clone() });
        self.accepted = Some(report.assignment_sequence);
        match ended {
            Some(reason) => Err(reason),
            None => self.send_assignment().await,
        }
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
        wire::write(&mut self.control, &Message::Assign(SignedObject { envelope }).encode()).await?;
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
async fn read_control(mut control: RecvStream, said: mpsc::Sender<Result<Said, EndReason>>) {
    loop {
        let read = tokio::select! {
            read = read_said(&mut control) => read,
            () = said.closed() => return,
        };
        let ended = read.is_err();
        if said.send(read).await.is_err() || ended {
            return;
        }
    }
}

async fn read_said(control: &mut RecvStream) -> Result<Said, EndReason> {
    // A quiet control stream is fine: the idle timeout ends silent connections.
    let message = loop {
        match wire::read_message(control).await {
            Err(WireError::Stalled) => {}
            other => break other?,
        }
    };
    match message {
        Some(Message::Report(report)) => Ok(Said::Report(report)),
        Some(Message::Evicted(tombstones)) => Ok(Said::Evicted(tombstones)),
        Some(_) => Err(WireError::Unexpected.into()),
        None => Err(EndReason::Left),
    }
}

/// Serves one stream by what its first message is.
async fn serve_stream(robot: Arc<Robot>, upload: UploadId, send: SendStream, mut recv: RecvStream) {
    let served = async {
        match wire::read_message(&mut recv).await? {
            None => Ok(()),
            Some(Message::Offer(manifest)) => uploads::serve(&robot, upload, manifest, send, &mut recv).await,
            Some(Message::Fetch(fetch)) => downloads::serve(&robot, fetch, send).await,
            Some(_) => Err(WireError::Unexpected),
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
