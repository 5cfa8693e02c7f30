//! A robot that speaks the protocol by hand over a bare QUIC connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zunft_protocol::Manifest;
use zunft_protocol::hello::{ALPN, HELLO_BYTES, Hello, HelloAnswer};
use zunft_protocol::ids::{BootId, Digest, EmbodimentId, EpisodeId};
use zunft_protocol::message::{
    CloseCode, Fetch, HEADER_BYTES, Header, Message, Receipt, RejectReason, Report, Tombstone,
};
use zunft_protocol::release::{Root, Trust};
use zunft_protocol::upload_policy::PushedPolicy;

use crate::fixtures::Episode;
use crate::pki::{HUB_DNS_NAME, RobotCredentials};

/// Tries of [`TestRobot::connect_patiently`]: the hub notices that a peer left within a few of them.
const TRIES_MAX: usize = 50;

pub(super) struct TestRobot {
    pub(super) root: Root,
    /// What the hub allowed first of all.
    pub(super) allowed: PushedPolicy,
    connection: Connection,
    control: (SendStream, RecvStream),
    _endpoint: Endpoint,
}

pub(super) struct Upload {
    pub(super) send: SendStream,
    recv: RecvStream,
    pub(super) first: Message,
}

impl TestRobot {
    /// Connects and says hello; an error holds the hub's close code, where it gave one.
    pub(super) async fn connect(hub: SocketAddr, credentials: &RobotCredentials) -> Result<Self, Option<CloseCode>> {
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        endpoint.set_default_client_config(client_config(credentials));
        let connection = endpoint.connect(hub, HUB_DNS_NAME).unwrap().await.map_err(|error| close_code(&error))?;
        let hello = async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            send.write_all(&Hello::ours().encode()).await.ok()?;
            let mut answer = [0; HELLO_BYTES];
            recv.read_exact(&mut answer).await.ok()?;
            HelloAnswer::decode(answer).ok()?;
            Some((send, recv))
        };
        let Some(mut control) = hello.await else {
            return Err(close_code(&connection.closed().await));
        };
        let message = read(&mut control.1).await;
        let Message::UploadPolicy(allowed) = message else { panic!("{message:?} before the upload policy") };
        let trust = Trust::pin(&credentials.root, credentials.identity.robot.clone(), 0).unwrap();
        Ok(Self { root: trust.root().clone(), allowed, connection, control, _endpoint: endpoint })
    }

    /// Connects, trying again while an older connection of this robot is still thought alive.
    pub(super) async fn connect_patiently(hub: SocketAddr, credentials: &RobotCredentials) -> Self {
        for _ in 0..TRIES_MAX {
            match Self::connect(hub, credentials).await {
                Ok(robot) => return robot,
                Err(Some(CloseCode::DuplicateIdentity)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(other) => panic!("refused with {other:?}"),
            }
        }
        panic!("the older connection was never given up")
    }

    pub(super) async fn report(&mut self, assignment_sequence: u64, embodiment: Option<EmbodimentId>) {
        let report = Report {
            agent_version: "test".into(),
            boot: BootId::from_bytes([1; 16]),
            embodiment,
            episodes_waiting: 0,
            spool_bytes: 0,
            recordings: 0,
            assignment_sequence,
            upload_policy_revision: self.allowed.revision,
            releases: Vec::new(),
        };
        self.control.0.write_all(&Message::Report(report).encode()).await.unwrap();
    }

    /// Tells what was given up; returns what may be forgotten.
    pub(super) async fn tell_evictions(&mut self, tombstones: Vec<Tombstone>) -> Vec<u64> {
        self.control.0.write_all(&Message::Evicted(tombstones).encode()).await.unwrap();
        let message = read(&mut self.control.1).await;
        let Message::EvictionsStored(ordinals) = message else { panic!("{message:?} to a list of evictions") };
        ordinals
    }

    /// The envelope of the next assignment that the hub sends.
    pub(super) async fn assignment(&mut self) -> Vec<u8> {
        let message = read(&mut self.control.1).await;
        let Message::Assign(object) = message else { panic!("{message:?} on the control stream") };
        object.envelope
    }

    /// The next upload policy that the hub sends; it is kept to.
    pub(super) async fn policy(&mut self) -> PushedPolicy {
        let message = read(&mut self.control.1).await;
        let Message::UploadPolicy(pushed) = message else { panic!("{message:?} on the control stream") };
        self.allowed = pushed.clone();
        pushed
    }

    /// The next episodes that the hub asks for.
    pub(super) async fn wanted(&mut self) -> Vec<EpisodeId> {
        let message = read(&mut self.control.1).await;
        let Message::Wanted(episodes) = message else { panic!("{message:?} on the control stream") };
        episodes
    }

    /// Waits for a sign of life.
    pub(super) async fn ping(&mut self, number: u64) {
        self.control.0.write_all(&Message::Ping(number).encode()).await.unwrap();
        assert_eq!(read(&mut self.control.1).await, Message::Pong(number));
    }

    pub(super) async fn offer(&self, manifest: &Manifest) -> Upload {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&Message::Offer(manifest.encode()).encode()).await.unwrap();
        let first = read(&mut recv).await;
        Upload { send, recv, first }
    }

    /// Begins a message and leaves the hub waiting for its rest as long as the stream is kept.
    pub(super) async fn begin(&self, bytes: &[u8]) -> SendStream {
        let (mut send, _recv) = self.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send
    }

    /// Uploads until the hub says DURABLE.
    pub(super) async fn upload_durably(&self, episode: &Episode) -> Receipt {
        let mut upload = self.offer(&episode.manifest).await;
        let Message::Want(want) = upload.first.clone() else { panic!("{:?} to an offer", upload.first) };
        for index in (0..episode.chunks.len()).filter(|&index| want.contains(index)) {
            upload.send(Message::Chunk(episode.chunk(index))).await;
        }
        let reply = upload.reply().await;
        let Message::Durable(receipt) = reply else { panic!("{reply:?} to a whole episode") };
        receipt
    }

    /// A blob's bytes from an offset on; `None` where the hub says that there is none.
    pub(super) async fn fetch(&self, digest: Digest, offset: u64) -> Option<Vec<u8>> {
        let (mut send, mut recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&Message::Fetch(Fetch { digest, offset }).encode()).await.unwrap();
        let reply = read(&mut recv).await;
        if reply == Message::Missing {
            return None;
        }
        let Message::Found(found) = reply else { panic!("{reply:?} to a fetch") };
        let bytes = recv.read_to_end(64 << 20).await.unwrap();
        assert_eq!(bytes.len() as u64, found.bytes_total - offset);
        Some(bytes)
    }

    pub(super) async fn send_raw(&self, bytes: &[u8]) {
        let (mut send, _recv) = self.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        send.finish().unwrap();
        // Dropping the receiving half is fine: the hub answers by closing.
    }

    /// Sends something, whoever hears it.
    pub(super) async fn speak(&self) {
        let (mut send, _recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&[0; 64]).await.unwrap();
    }

    /// Waits until the hub closes, and says how.
    pub(super) async fn closed(&self) -> Option<CloseCode> {
        close_code(&self.connection.closed().await)
    }

    /// Waits for the end of the connection; says whether the hub had forgotten it.
    pub(super) async fn was_reset(&self) -> bool {
        matches!(self.connection.closed().await, ConnectionError::Reset)
    }

    pub(super) fn leave(self) {
        self.connection.close((CloseCode::Stopping as u32).into(), b"test over");
    }
}

impl Upload {
    pub(super) async fn send(&mut self, message: Message) {
        self.send.write_all(&message.encode()).await.unwrap();
    }

    pub(super) async fn reply(&mut self) -> Message {
        read(&mut self.recv).await
    }

    /// Ends the stream as a process that dies does, after all that it said; waits until the hub has let go of it.
    pub(super) async fn break_off(mut self) {
        self.send.finish().unwrap();
        assert!(self.recv.read_to_end(1).await.unwrap().is_empty(), "an answer to a part of an episode");
    }

    pub(super) fn rejection(&self) -> Option<RejectReason> {
        let Message::Reject(reject) = &self.first else { return None };
        Some(reject.reason)
    }
}

async fn read(stream: &mut RecvStream) -> Message {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.unwrap();
    let header = Header::decode(header).unwrap();
    let mut body = vec![0; header.body_bytes];
    stream.read_exact(&mut body).await.unwrap();
    header.decode_body(body).unwrap()
}

fn close_code(error: &ConnectionError) -> Option<CloseCode> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    CloseCode::from_code(close.error_code.into_inner())
}

fn client_config(credentials: &RobotCredentials) -> ClientConfig {
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(&credentials.ca_pem)).unwrap();
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes()).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate(&credentials.certificate_pem)], key)
        .unwrap();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    config.transport_config(Arc::new(transport));
    config
}
