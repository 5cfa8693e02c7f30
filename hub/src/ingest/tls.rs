//! How the hub speaks QUIC: mutual TLS with its own authority, and a bound on everything a robot can use.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rand::RngExt as _;
use rustls::RootCertStore;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use zunft_protocol::hello::ALPN;
use zunft_protocol::limits::UPLOADS_IN_FLIGHT_MAX;

use crate::pki::{Pki, PkiError};

/// Streams that a robot may open before its first upload or download: QUIC takes memory for each one allowed, and most
/// robots are idle.
const STREAMS_IDLE: u32 = 8;

/// Streams that a robot may have open: control, the uploads in flight, their successors and downloads.
///
/// A quarter more, since QUIC gives back what was closed once it is an eighth of the whole.
pub(super) const STREAMS_MAX: u32 = UPLOADS_IN_FLIGHT_MAX as u32 * 5 / 4;

/// What one stream may send ahead: a chunk in flight and one being hashed hide the round trip on any link to 100 ms.
const STREAM_RECEIVE_BYTES_MAX: u32 = 1024 * 1024;

/// What a connection may send ahead over all streams: the most that a silent robot can hold of our memory.
const CONNECTION_RECEIVE_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// What we send ahead: release downloads on a link of 1 Gbit/s and 8 ms, and little enough for control to overtake.
const SEND_BYTES_MAX: u64 = 1024 * 1024;

/// A robot that says nothing for so long is gone. Robots send a keep-alive several times within it.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Handshakes under way before more are turned away, and their buffers before there is anyone to blame for them.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_BYTES_MAX: u64 = 16 * 1024;

/// Two connections of one hub share an id with a chance of one in 10^19.
const CONNECTION_ID_BYTES: usize = 8;

/// A TLS configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The hub's keys.
    #[error("the hub's certificate cannot be used")]
    Pki(#[from] PkiError),
    /// TLS refuses certificate or key.
    #[error("TLS refuses the hub's certificate or key")]
    Tls(#[from] rustls::Error),
    /// The authority's certificate.
    #[error("TLS refuses the hub's authority for verifying robots")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// QUIC needs a cipher that is not there.
    #[error("TLS offers no cipher that QUIC needs")]
    Cipher(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// The server's side of every connection: public, so that a plain copy can be measured under the same bounds.
pub fn server_config(pki: &Pki, now_unix_secs: u64) -> Result<ServerConfig, TlsError> {
    // Named here, so that another provider elsewhere in the program changes nothing.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(pki.ca().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let own = pki.hub_certificate(now_unix_secs)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.certificate], own.key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would carry the robot's certificate over unverified.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config
        .transport_config(Arc::new(transport()))
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(HANDSHAKE_BYTES_MAX)
        .incoming_buffer_size_total(HANDSHAKE_BYTES_MAX * HANDSHAKES_MAX as u64)
        // Robots change from one network to another.
        .migration(true);
    Ok(config)
}

/// The endpoint's side: robots of a hub that was killed learn at once, from the one that is back, that it forgot them.
pub(crate) fn endpoint_config(pki: &Pki) -> Result<EndpointConfig, TlsError> {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &pki.reset_secret()?);
    let mut config = EndpointConfig::new(Arc::new(key));
    // The default generator takes connections of an earlier process for noise, and leaves their robots waiting.
    config.cid_generator(|| Box::new(RandomIds));
    Ok(config)
}

/// Connection ids of random bytes.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        rand::rng().fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What a robot's connection may use: public, so that a plain copy can be measured under the same bounds.
pub fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_MAX).expect("30 s is a valid idle timeout");
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_IDLE))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_BYTES_MAX))
        .receive_window(VarInt::from_u32(CONNECTION_RECEIVE_BYTES_MAX))
        .send_window(SEND_BYTES_MAX)
        .max_idle_timeout(Some(idle))
        // Robots keep the connection alive: they know whether their link is metered.
        .keep_alive_interval(None)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0);
    transport
}
