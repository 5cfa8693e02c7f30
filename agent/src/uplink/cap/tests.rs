//! The cap over real QUIC on loopback, counted in UDP bytes at a relay between the two ends.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, Runtime as _, TokioRuntime};
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::uplink::now;

/// Forwards datagrams between one client and `server`, and counts the bytes of the client's.
fn counting_relay(server: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<AtomicU64>) {
    let (front, back) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    back.connect(server).unwrap();
    let address = front.local_addr().unwrap();
    let counted = Arc::new(AtomicU64::new(0));
    let (front, back) = (Arc::new(front), Arc::new(back));
    let client = Arc::new(Mutex::new(None));
    let (counter, from, to, peer) = (counted.clone(), front.clone(), back.clone(), client.clone());
    // Both threads end with the test's process: a datagram that never comes holds nothing up.
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((bytes, source)) = from.recv_from(&mut buffer) {
            *peer.lock().unwrap() = Some(source);
            counter.fetch_add(bytes as u64, Ordering::SeqCst);
            drop(to.send(&buffer[..bytes]));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok(bytes) = back.recv(&mut buffer) {
            let client = client.lock().unwrap().expect("the client speaks first");
            drop(front.send_to(&buffer[..bytes], client));
        }
    });
    (address, counted)
}

fn server() -> (Endpoint, rustls::pki_types::CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["hub".into()]).unwrap().self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    (Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap(), certificate)
}

fn client(cap: &Cap, root: rustls::pki_types::CertificateDer<'static>) -> Endpoint {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TokioRuntime.wrap_udp_socket(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let socket = Arc::new(CappedSocket::new(socket, cap.clone()));
    let mut endpoint =
        Endpoint::new_with_abstract_socket(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
            .unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap())));
    endpoint
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_udp_byte_of_a_backlog_passes_the_bucket() {
    const RATE: u64 = 400_000;
    const BYTES: usize = 600_000;
    let (server, root) = server();
    let (relay, counted) = counting_relay(server.local_addr().unwrap());
    let began = now();
    let cap = Cap::new(Some(RATE), began);
    let client = client(&cap, root);
    let receiving = async {
        let connection = server.accept().await.unwrap().await.unwrap();
        let mut stream = connection.accept_uni().await.unwrap();
        let received = stream.read_to_end(BYTES).await.unwrap().len();
        (received, connection)
    };
    let sending = async {
        let connection = client.connect(relay, "hub").unwrap().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&vec![7; BYTES]).await.unwrap();
        stream.finish().unwrap();
        connection
    };
    let ((received, _server_side), _client_side) = tokio::join!(receiving, sending);
    // The relay counts after the socket has sent: time runs on, so that the bound never fails for want of speed.
    let bytes = counted.load(Ordering::SeqCst);
    let elapsed = now() - began;
    assert_eq!(received, BYTES);
    assert!(bytes > BYTES as u64, "headers and handshake count too: {bytes}");
    let burst = RATE as f64 * bucket::BURST.as_secs_f64();
    let allowed = RATE as f64 * elapsed.as_secs_f64() + burst * 2.0 + DATAGRAM_BYTES_MAX as f64;
    assert!(bytes as f64 <= allowed, "{bytes} bytes in {elapsed:?}, at most {allowed:.0} are allowed");
    assert!(elapsed > Duration::from_secs(1), "600 kB cannot pass in {elapsed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_that_is_lifted_lets_what_waits_go() {
    let (server, root) = server();
    let (relay, _) = counting_relay(server.local_addr().unwrap());
    let cap = Cap::new(Some(20_000), now());
    let client = client(&cap, root);
    let receiving = async {
        let connection = server.accept().await.unwrap().await.unwrap();
        let mut stream = connection.accept_uni().await.unwrap();
        let mut first = [0; 1000];
        stream.read_exact(&mut first).await.unwrap();
        cap.set(None, now());
        let rest = stream.read_to_end(20_000_000).await.unwrap().len();
        (first.len() + rest, connection)
    };
    let sending = async {
        let connection = client.connect(relay, "hub").unwrap().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        // At the first rate this would take a quarter of an hour.
        stream.write_all(&vec![7; 20_000_000]).await.unwrap();
        stream.finish().unwrap();
        connection
    };
    let ((received, _server_side), _client_side) = tokio::join!(receiving, sending);
    assert_eq!(received, 20_000_000);
}
