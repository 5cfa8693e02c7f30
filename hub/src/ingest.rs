//! Robots' connections: accepted, identified, one at a time each, and ended in order.
//!
//! The tenant comes from the certificate, never from a message. What a connection carries is in `connection`; what is
//! done with it is decided by `zunft_protocol::session`.

mod broken;
mod connection;
mod downloads;
mod tls;
mod uploads;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Endpoint, Incoming, VarInt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, info, info_span, warn};
use zunft_protocol::message::CloseCode;

use crate::clock;
use crate::identity::{IdentityError, RobotIdentity, robot_of_certificate};
use crate::metadata::MetadataError;
use crate::services::{Change, LiveConnection, Services};
pub(crate) use broken::Broken;
pub use tls::{TlsError, transport};

/// A handshake takes two round trips and some arithmetic.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long open uploads may take to finish when the hub stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How long an older connection has to show a sign of life before a newer one takes its place: a round trip by
/// satellite and then some.
const PROBE_MAX: Duration = Duration::from_secs(2);
const PROBE_STEP: Duration = Duration::from_millis(20);

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
        let config = tls::server_config(&services.pki, clock::unix_secs())?;
        let own = tls::endpoint_config(&services.pki)?;
        let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = Endpoint::new(own, Some(config), socket, runtime).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let ingest = Self { endpoint, address, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        ingest.tasks.spawn(accept(
            ingest.endpoint.clone(),
            services.clone(),
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

async fn accept(endpoint: Endpoint, services: Arc<Services>, stop: CancellationToken, tasks: TaskTracker) {
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
        let span = info_span!("connection", address = %incoming.remote_address());
        let serving = serve(incoming, services.clone(), stop.clone(), tasks.clone());
        tasks.spawn(serving.instrument(span));
    }
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the handshake failed")]
    Handshake(#[from] quinn::ConnectionError),
    #[error("the handshake took longer than {} s", HANDSHAKE_MAX.as_secs())]
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

async fn serve(incoming: Incoming, services: Arc<Services>, stop: CancellationToken, tasks: TaskTracker) {
    let live = match admit(incoming, &services).await {
        Ok(live) => live,
        Err(error) => {
            info!(error = &error as &dyn std::error::Error, "robot not admitted");
            return;
        }
    };
    let (identity, live) = live;
    let key = (identity.tenant.clone(), identity.robot.clone());
    let changed = || Change::Robot { tenant: key.0.clone(), robot: key.1.clone() };
    info!(robot = %identity, "robot connected");
    services.announce(changed());
    let streams = TaskTracker::new();
    let reason = connection::run(identity, live.clone(), services.clone(), stop, (tasks, streams.clone())).await;
    services.gone(&key, &live.connection);
    services.announce(changed());
    info!(%reason, "robot disconnected");
    // Its streams are broken: what they leave is kept before the robot's next connection may ask for it.
    streams.close();
    streams.wait().await;
    live.ended.cancel();
}

/// Completes the handshake and makes the connection the robot's live one.
async fn admit(incoming: Incoming, services: &Services) -> Result<(RobotIdentity, LiveConnection), ServeError> {
    let connecting = incoming.accept()?;
    let connection = tokio::time::timeout(HANDSHAKE_MAX, connecting).await.map_err(|_| ServeError::Slow)??;
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
    let live =
        LiveConnection { connection: connection.clone(), assigned: Arc::default(), ended: CancellationToken::new() };
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
    let heard_before = connection.stats().udp_rx.datagrams;
    // Raising a limit sends a MAX_STREAMS frame, which a living peer acknowledges; hubs accept no such streams.
    let raised = VarInt::from_u32(1 + connection.stats().frame_tx.max_streams_uni as u32 * 2);
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
