//! Robots' connections: accepted, identified, one at a time each, and ended in order.
//!
//! The tenant comes from the certificate, never from a message. What a connection carries is in `connection`; what is
//! done with it is decided by `zunft_protocol::session`.

mod broken;
mod connection;
mod downloads;
mod lookups;
mod reports;
mod tls;
mod uploads;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, Incoming, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::field::{Empty, display};
use tracing::{Instrument as _, Span, debug, info, info_span, warn};
use zunft_protocol::message::CloseCode;

use crate::clock;
use crate::identity::{IdentityError, RobotIdentity, robot_of_certificate};
use crate::metadata::MetadataError;
use crate::services::{Change, LiveConnection, Services};
pub(crate) use broken::Broken;
use lookups::LookUps;
use reports::Reports;
pub use tls::{TlsError, server_config, transport};

/// Handshakes under way before a robot must first show that it receives at the address that it sends from.
///
/// Below, a connection costs one round trip less; above, packets with forged senders cost the hub nothing.
const HANDSHAKES_UNPROVEN_MAX: usize = 64;

/// Handshakes under way before further ones are not heard: a robot's QUIC asks again by itself.
const HANDSHAKES_MAX: usize = 1024;

/// How long open uploads may take to finish when the hub stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long an older connection has to show a sign of life before a newer one takes its place: a round trip by
/// satellite and then some.
const PROBE_MAX: Duration = Duration::from_secs(2);
const PROBE_STEP: Duration = Duration::from_millis(20);

/// Probes of one connection: each raises a limit, and takes memory for it.
const PROBES_MAX: u64 = 32;

/// Why the QUIC port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port.
    #[error("could not listen for robots on {address} (config key quic.listen); is the port in use? choose another")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TLS.
    #[error("could not set up TLS for robots")]
    Tls(#[from] TlsError),
}

/// The open port and all connections.
#[derive(Debug)]
pub(crate) struct Ingest {
    endpoint: Endpoint,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Ingest {
    /// Opens the port and begins to accept robots.
    pub(crate) fn start(services: &Arc<Services>) -> Result<Self, ListenError> {
        let address = services.config.quic.listen;
        let failed = |source| ListenError::Bind { address, source };
        let config = server_config(&services.pki, clock::unix_secs())?;
        let own = tls::endpoint_config(&services.pki)?;
        let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(own, Some(config), socket, runtime).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let (reports, recording) = reports::recorder(services.metadata.clone());
        let (look_ups, looking_up) = lookups::look_ups(services.metadata.clone());
        let ingest = Self { endpoint, address, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        ingest.tasks.spawn(recording.run());
        ingest.tasks.spawn(looking_up.run());
        ingest.tasks.spawn(accept(
            ingest.endpoint.clone(),
            services.clone(),
            Grouped { reports, look_ups },
            ingest.stop.clone(),
            ingest.tasks.clone(),
        ));
        info!(%address, "listening for robots");
        Ok(ingest)
    }

    /// Where robots connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nobody any more, lets open uploads finish for a moment, and closes.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_MAX, self.tasks.wait()).await.is_err() {
            debug!("some uploads did not finish in time; their robots will offer them again");
        }
        self.endpoint.close(code(CloseCode::Stopping), b"hub stops");
        self.endpoint.wait_idle().await;
        self.tasks.wait().await;
    }
}

pub(crate) fn code(code: CloseCode) -> VarInt {
    VarInt::from_u32(code as u32)
}

/// What connections ask of the metadata together.
#[derive(Clone)]
struct Grouped {
    reports: Reports,
    look_ups: LookUps,
}

async fn accept(
    endpoint: Endpoint,
    services: Arc<Services>,
    grouped: Grouped,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = stop.cancelled() => None,
        };
        let Some(incoming) = incoming else { break };
        if endpoint.open_connections() >= services.config.limits.connections_max {
            warn!(address = %incoming.remote_address(), "no room for another robot");
            incoming.refuse();
            continue;
        }
        let Some((incoming, place)) = open_door(incoming, &handshakes) else { continue };
        let span = info_span!("connection", address = %incoming.remote_address(), tenant = Empty, robot = Empty);
        let serving = serve(incoming, place, services.clone(), grouped.clone(), stop.clone(), tasks.clone());
        tasks.spawn(serving.instrument(span));
    }
}

/// Lets a handshake begin, if there is a place for it.
fn open_door(incoming: Incoming, handshakes: &Arc<Semaphore>) -> Option<(Incoming, OwnedSemaphorePermit)> {
    let under_way = HANDSHAKES_MAX - handshakes.available_permits();
    if under_way >= HANDSHAKES_UNPROVEN_MAX && !incoming.remote_address_validated() {
        if incoming.retry().is_err() {
            debug!("a robot with a proven address was asked to prove it");
        }
        return None;
    }
    let Ok(place) = handshakes.clone().try_acquire_owned() else {
        incoming.ignore();
        return None;
    };
    Some((incoming, place))
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the handshake failed")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("the handshake took too long (config key limits.greeting_secs)")]
    Slow,
    #[error("the certificate names no robot")]
    Identity(#[from] IdentityError),
    #[error("{0} is not registered with this certificate; add it with `zunft robot add`")]
    Unknown(RobotIdentity),
    #[error("{0} is connected already")]
    Duplicate(RobotIdentity),
    #[error("the robot could not be looked up")]
    Metadata(#[from] MetadataError),
}

async fn serve(
    incoming: Incoming,
    place: OwnedSemaphorePermit,
    services: Arc<Services>,
    grouped: Grouped,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let live = match admit(incoming, place, &services).await {
        Ok(live) => live,
        Err(error) => {
            info!(error = &error as &dyn std::error::Error, "robot not admitted");
            return;
        }
    };
    let (identity, live) = live;
    let key = (identity.tenant.clone(), identity.robot.clone());
    let changed = || Change::Robot { tenant: key.0.clone(), robot: key.1.clone() };
    let span = Span::current();
    span.record("tenant", display(&identity.tenant)).record("robot", display(&identity.robot));
    info!(robot = %identity, "robot connected");
    services.announce(changed());
    let streams = TaskTracker::new();
    let tasks = (tasks, streams.clone());
    let reason = connection::run(identity, live.clone(), services.clone(), grouped, stop, tasks).await;
    services.gone(&key, &live.connection);
    services.announce(changed());
    info!(%reason, "robot disconnected");
    // Its streams are broken: what they leave is kept before the robot's next connection may ask for it.
    streams.close();
    streams.wait().await;
    live.ended.cancel();
}

/// Completes the handshake and makes the connection the robot's live one.
async fn admit(
    incoming: Incoming,
    place: OwnedSemaphorePermit,
    services: &Services,
) -> Result<(RobotIdentity, LiveConnection), ServeError> {
    let connecting = incoming.accept()?;
    let patience = services.config.limits.greeting();
    let connection = tokio::time::timeout(patience, connecting).await.map_err(|_| ServeError::Slow)??;
    drop(place);
    let refuse = |close: CloseCode, reason: &str| connection.close(code(close), reason.as_bytes());
    let certified = match robot_of_certificate(&peer_certificate(&connection)) {
        Ok(certified) => certified,
        Err(error) => {
            refuse(CloseCode::UnknownRobot, &error.to_string());
            return Err(error.into());
        }
    };
    let identity = certified.identity;
    match services.metadata.knows_certificate(&identity, &certified.serial).await {
        Ok(true) => {}
        Ok(false) => {
            refuse(CloseCode::UnknownRobot, "this hub does not know this robot with this certificate");
            return Err(ServeError::Unknown(identity));
        }
        Err(error) => {
            refuse(CloseCode::Overloaded, "the hub cannot look robots up now");
            return Err(error.into());
        }
    }
    let live = LiveConnection {
        connection: connection.clone(),
        assigned: Arc::default(),
        allowed: Arc::default(),
        wanted: Arc::default(),
        ended: CancellationToken::new(),
    };
    let key = (identity.tenant.clone(), identity.robot.clone());
    let older = services.live(&key.0, &key.1);
    let alive = match &older {
        Some(older) => shows_life(&older.connection).await,
        None => false,
    };
    if alive || !services.go_live(&key, &live, older.as_ref()) {
        refuse(CloseCode::DuplicateIdentity, "another agent is connected with this robot's certificate");
        return Err(ServeError::Duplicate(identity));
    }
    if let Some(older) = older {
        older.connection.close(code(CloseCode::DuplicateIdentity), b"silent, replaced by a newer connection");
        if tokio::time::timeout(PROBE_MAX, older.ended.cancelled()).await.is_err() {
            debug!("the older connection's last commit takes long; the robot will offer that episode again");
        }
    }
    Ok((identity, live))
}

fn peer_certificate(connection: &quinn::Connection) -> Vec<u8> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer<'_>>>().ok());
    // Without a certificate the handshake fails; no bytes name no robot.
    chain.and_then(|chain| chain.first().map(|certificate| certificate.to_vec())).unwrap_or_default()
}

/// Whether the peer of an older connection answers: a killed agent's connection is open until its idle timeout.
async fn shows_life(connection: &quinn::Connection) -> bool {
    let (probes, heard_before) = (connection.stats().frame_tx.max_streams_uni, connection.stats().udp_rx.datagrams);
    let Some(raised) = probe_limit(probes) else {
        // It lived each time that it was asked; if it no longer does, its idle timeout says so.
        return true;
    };
    // Raising a limit sends a MAX_STREAMS frame, which a living peer acknowledges; hubs accept no such streams.
    connection.set_max_concurrent_uni_streams(raised);
    let steps = PROBE_MAX.as_millis() / PROBE_STEP.as_millis();
    for _ in 0..steps {
        tokio::time::sleep(PROBE_STEP).await;
        if connection.close_reason().is_some() {
            return false;
        }
        if connection.stats().udp_rx.datagrams > heard_before {
            return true;
        }
    }
    false
}

/// The limit that the next probe of a connection announces; `None` after [`PROBES_MAX`] of them.
///
/// QUIC only tells the peer of a limit that grew by more than an eighth.
fn probe_limit(probes: u64) -> Option<VarInt> {
    if probes >= PROBES_MAX {
        return None;
    }
    let limit = (0..probes).fold(1, |limit: u64, _| limit + limit / 4 + 1);
    VarInt::from_u64(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_is_announced_and_their_number_is_bounded() {
        let limits: Vec<u64> = (0..).map_while(probe_limit).map(VarInt::into_inner).collect();
        assert_eq!(limits.len() as u64, PROBES_MAX);
        for pair in limits.windows(2) {
            assert!(pair[1] - pair[0] > pair[1] / 8, "{pair:?}");
        }
        assert!(limits[limits.len() - 1] < 10_000, "streams that are allowed take memory");
    }
}
