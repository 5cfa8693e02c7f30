//! A plain copy over QUIC: one stream, no storage, the transport's bounds of agent and hub. What a link can do.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::link::LinkConfig;
use crate::relay::Relay;

const PIECE_BYTES: usize = 64 * 1024;

/// Sends over `link` for `time`, from the moment that the connection stands; returns the bytes that arrived.
pub fn copy(link: LinkConfig, seed: u64, time: Duration) -> anyhow::Result<u64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (server, certificate) = server()?;
        let relay = Relay::start(server.local_addr()?)?;
        relay.shape(link, seed);
        let client = client(certificate)?;
        let arrived = Arc::new(AtomicU64::new(0));
        let receiving = receive(server, Arc::clone(&arrived));
        let sending = async {
            let connection = client.connect(relay.address(), "hub")?.await?;
            match tokio::time::timeout(time, send(&connection)).await {
                Err(_) => anyhow::Ok(arrived.load(Ordering::Relaxed)),
                Ok(ended) => Err(ended.err().context("the copy never ends by itself")?),
            }
        };
        tokio::select! {
            bytes = sending => bytes,
            failed = receiving => Err(failed.err().context("the copy ended early")?),
        }
    })
}

/// Sends without end.
async fn send(connection: &quinn::Connection) -> anyhow::Result<()> {
    let mut stream = connection.open_uni().await?;
    let piece = vec![7; PIECE_BYTES];
    loop {
        stream.write_all(&piece).await?;
    }
}

async fn receive(server: Endpoint, arrived: Arc<AtomicU64>) -> anyhow::Result<()> {
    let connection = server.accept().await.context("no connection")?.await?;
    let mut stream = connection.accept_uni().await?;
    while let Some(chunk) = stream.read_chunk(PIECE_BYTES, true).await? {
        arrived.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn server() -> anyhow::Result<(Endpoint, CertificateDer<'static>)> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["hub".into()])?.self_signed(&key)?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)?;
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    let mut transport = zunft_hub::ingest::transport();
    // The hub has none: this copy uses one.
    transport.max_concurrent_uni_streams(1_u32.into());
    config.transport_config(Arc::new(transport));
    Ok((Endpoint::server(config, ([127, 0, 0, 1], 0).into())?, certificate))
}

fn client(root: CertificateDer<'static>) -> anyhow::Result<Endpoint> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root)?;
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(Arc::new(zunft_agent::uplink::transport()));
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut endpoint = Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}
