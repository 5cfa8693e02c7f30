//! The QUIC endpoint's security and limits: who the hub must be, who we are, and by which time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, IdleTimeout, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::time_provider::TimeProvider;
use zunft_protocol::hello::ALPN;

use crate::clock::RobotClock;

/// Bytes that may be written and not acknowledged on all streams together: what an upload holds in memory.
pub(super) const SEND_WINDOW_BYTES: u64 = 1024 * 1024;

/// What one download may have under way.
const STREAM_RECEIVE_WINDOW_BYTES: u32 = 1024 * 1024;

/// What all downloads may have under way.
const RECEIVE_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Keeps a mapping in a home router open; most forget after 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Four missed signs of life.
const IDLE_MAX_MS: u32 = 60_000;

/// Why the endpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file.
    #[error("{} cannot be used as {what}: {reason}", path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What for.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The parts do not fit each other.
    #[error("certificate and key of this robot do not fit")]
    Identity(#[source] rustls::Error),
    /// The system.
    #[error("no UDP socket")]
    Socket(#[from] io::Error),
}

/// Time for certificates: robots boot in 1970.
#[derive(Debug)]
struct TrustedTime(Arc<RobotClock>);

impl TimeProvider for TrustedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.trusted_unix_secs())))
    }
}

/// The files that say who we are and whom we trust.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// TLS 1.3 with our certificate, the hub's authority alone, and no resumption.
pub(crate) fn client_config(credentials: &Credentials, clock: Arc<RobotClock>) -> Result<ClientConfig, TlsError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&credentials.ca, "the hub's authority")? {
        roots.add(certificate).map_err(|error| pem_error(&credentials.ca, "the hub's authority", &error))?;
    }
    let chain = certificates(&credentials.certificate, "this robot's certificate")?;
    let key = PrivateKeyDer::from_pem_file(&credentials.key)
        .map_err(|error| pem_error(&credentials.key, "this robot's key", &error))?;
    let provider = Arc::new(ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_details(provider, Arc::new(TrustedTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring offers TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Identity)?;
    // A resumed session would carry on a certificate that nobody looked at again.
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3 with ring has the cipher that QUIC begins with");
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport()));
    Ok(config)
}

/// What the connection to the hub may use: public, so that a plain copy can be measured under the same bounds.
pub fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        // The hub opens no streams: it answers on ours.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .send_window(SEND_WINDOW_BYTES)
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MAX_MS))));
    transport
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error(path, what, &error))?;
    if certificates.is_empty() {
        return Err(pem_error(path, what, &"it holds no certificate in PEM"));
    }
    Ok(certificates)
}

fn pem_error(path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Pem { path: path.to_owned(), what, reason: reason.to_string() }
}
