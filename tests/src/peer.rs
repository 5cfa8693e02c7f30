//! A robot that speaks the protocol by hand over bare QUIC: as well, as badly or as little as it is told to.

#![expect(clippy::wildcard_enum_match_arm, reason = "whatever was not expected is an error that shows it")]

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use zunft_hub::pki::{HUB_DNS_NAME, RobotCredentials};
use zunft_protocol::Manifest;
use zunft_protocol::hello::{ALPN, HELLO_BYTES, Hello, HelloAnswer};
use zunft_protocol::ids::BootId;
use zunft_protocol::message::{CloseCode, HEADER_BYTES, Header, Message, Receipt, Report};

use crate::episode::Episode;

/// What a peer needs to pass for a robot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// The robot's certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The authority that certified the hub.
    pub ca_pem: String,
}

impl From<&RobotCredentials> for Credentials {
    fn from(made: &RobotCredentials) -> Self {
        Self {
            certificate_pem: made.certificate_pem.clone(),
            key_pem: made.key_pem.clone(),
            ca_pem: made.ca_pem.clone(),
        }
    }
}

impl Credentials {
    /// An agent's TLS and bounds for this robot.
    pub fn client_config(&self) -> anyhow::Result<ClientConfig> {
        let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).context("certificate");
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.ca_pem)?)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).context("key")?;
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate(&self.certificate_pem)?], key)?;
        tls.resumption = rustls::client::Resumption::disabled();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        config.transport_config(Arc::new(zunft_agent::uplink::transport()));
        Ok(config)
    }
}

/// A connection that has been greeted.
#[derive(Debug)]
pub struct Peer {
    /// All of it.
    pub connection: Connection,
    /// The sending half of the control stream.
    pub control: SendStream,
    /// The other half.
    pub heard: RecvStream,
}

/// An open upload stream.
#[derive(Debug)]
pub struct Upload {
    /// Where chunks go.
    pub send: SendStream,
    /// Where answers come from.
    pub recv: RecvStream,
}

/// A connection on which nothing was said yet.
pub async fn connect(endpoint: &Endpoint, hub: SocketAddr, config: ClientConfig) -> anyhow::Result<Connection> {
    Ok(endpoint.connect_with(config, hub, HUB_DNS_NAME)?.await?)
}

impl Peer {
    /// Connects and says hello.
    pub async fn connect(endpoint: &Endpoint, hub: SocketAddr, config: ClientConfig) -> anyhow::Result<Self> {
        Self::greet(connect(endpoint, hub, config).await?).await
    }

    /// Says hello.
    pub async fn greet(connection: Connection) -> anyhow::Result<Self> {
        let (mut control, mut heard) = connection.open_bi().await?;
        control.write_all(&Hello::ours().encode()).await?;
        let mut answer = [0; HELLO_BYTES];
        heard.read_exact(&mut answer).await?;
        HelloAnswer::decode(answer)?;
        Ok(Self { connection, control, heard })
    }

    /// Says how it is: well, and without anything to upload.
    pub async fn report(&mut self) -> anyhow::Result<()> {
        let report = Report {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot: BootId::from_bytes([1; 16]),
            embodiment: None,
            episodes_waiting: 0,
            spool_bytes: 0,
            recordings: 0,
            assignment_sequence: 0,
            upload_policy_revision: 0,
            releases: Vec::new(),
        };
        Ok(self.control.write_all(&Message::Report(report).encode()).await?)
    }

    /// Opens a stream and writes `bytes` to it, whatever they are.
    pub async fn say(&self, bytes: &[u8]) -> anyhow::Result<Upload> {
        let (mut send, recv) = self.connection.open_bi().await?;
        send.write_all(bytes).await?;
        Ok(Upload { send, recv })
    }

    /// Offers a manifest on a stream of its own; the answer is the first thing to hear.
    pub async fn offer(&self, manifest: &Manifest) -> anyhow::Result<Upload> {
        self.say(&Message::Offer(manifest.encode()).encode()).await
    }

    /// Uploads what the hub wants, until it says DURABLE.
    pub async fn upload(&self, episode: &Episode) -> anyhow::Result<Receipt> {
        let mut upload = self.offer(&episode.manifest).await?;
        let want = match upload.hear().await? {
            Message::Want(want) => want,
            Message::Durable(receipt) => return Ok(receipt),
            other => bail!("{other:?} to an offer"),
        };
        for (_, chunk) in episode.chunks.iter().enumerate().filter(|(index, _)| want.contains(*index)) {
            upload.send.write_all(&Message::Chunk(chunk.clone()).encode()).await?;
        }
        match upload.hear().await? {
            Message::Durable(receipt) => Ok(receipt),
            other => bail!("{other:?} to a whole episode"),
        }
    }

    /// Waits for the end, and says how the hub closed; `None` where it did not.
    pub async fn closed(&self) -> Option<CloseCode> {
        close_code(&self.connection.closed().await)
    }
}

impl Upload {
    /// The hub's next message.
    pub async fn hear(&mut self) -> anyhow::Result<Message> {
        let mut header = [0; HEADER_BYTES];
        self.recv.read_exact(&mut header).await?;
        let header = Header::decode(header)?;
        let mut body = vec![0; header.body_bytes];
        self.recv.read_exact(&mut body).await?;
        Ok(header.decode_body(body)?)
    }
}

/// The hub's reason for closing a connection, where it gave one.
pub fn close_code(error: &ConnectionError) -> Option<CloseCode> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    CloseCode::from_code(close.error_code.into_inner())
}
