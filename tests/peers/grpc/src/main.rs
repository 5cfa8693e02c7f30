//! Episodes over a gRPC client stream into files, one fsync and one reply an episode: what most would write first.
//!
//! `zunft-grpc-peer FOLDER EPISODE_BYTES EPISODES IN_FLIGHT` sends that many episodes, so many at a time, to a server
//! that is a process of its own and writes each to a file in FOLDER. HTTP/2's windows and the size of messages are
//! raised as far as they help. TLS 1.3; the client has no certificate. Prints one line of JSON.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tonic::body::Body;
use tonic::codegen::http::{self, uri::PathAndQuery};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{ClientStreamingService, NamedService};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Payload of one message.
const MESSAGE_BYTES: usize = 256 * 1024;

/// HTTP/2's windows and largest frame.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES: u32 = 1024 * 1024;

const PATH: &str = "/bench.Ingest/Upload";
const HOST: &str = "localhost";

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint64, tag = "1")]
    bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", folder, address] => runtime()?.block_on(serve(PathBuf::from(folder), address.parse()?)),
        [folder, bytes, episodes, in_flight] => {
            bench(Path::new(folder), bytes.parse()?, episodes.parse()?, in_flight.parse()?)
        }
        _ => bail!("usage: zunft-grpc-peer FOLDER EPISODE_BYTES EPISODES IN_FLIGHT"),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn bench(folder: &Path, episode_bytes: usize, episodes: u64, in_flight: usize) -> anyhow::Result<()> {
    ensure!(in_flight > 0, "IN_FLIGHT must be at least 1");
    let certified = rcgen::generate_simple_self_signed(vec![HOST.to_owned()])?;
    std::fs::write(folder.join("server.pem"), certified.cert.pem())?;
    std::fs::write(folder.join("server.key"), certified.signing_key.serialize_pem())?;
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut server =
        Command::new(std::env::current_exe()?).arg("serve").arg(folder).arg(address.to_string()).spawn()?;
    let measured = runtime()?.block_on(upload(folder, address, server.id(), episode_bytes, episodes, in_flight));
    server.kill()?;
    server.wait()?;
    let (took, sender, receiver) = measured?;
    let gb = episode_bytes as f64 * episodes as f64 / 1e9;
    println!(
        "{{\"secs\": {:.3}, \"megabytes_per_sec\": {:.1}, \"sender_cpu_secs_per_gb\": {:.2}, \"receiver_cpu_secs_per_gb\": {:.2}, \
         \"in_flight\": {in_flight}, \"message_bytes\": {MESSAGE_BYTES}, \"stream_window_bytes\": {STREAM_WINDOW_BYTES}}}",
        took.as_secs_f64(),
        gb * 1e3 / took.as_secs_f64(),
        sender.as_secs_f64() / gb,
        receiver.as_secs_f64() / gb,
    );
    Ok(())
}

/// Until the last reply: how long, and the CPU time of sender and receiver.
async fn upload(
    folder: &Path,
    address: SocketAddr,
    server: u32,
    episode_bytes: usize,
    episodes: u64,
    in_flight: usize,
) -> anyhow::Result<(Duration, Duration, Duration)> {
    let channel = connect(folder, address).await?;
    let piece = Bytes::from((0..MESSAGE_BYTES).map(|i| ((i * 31) >> 3) as u8).collect::<Vec<u8>>());
    let (sender, receiver, began) = (cpu(std::process::id())?, cpu(server)?, Instant::now());
    let next = Arc::new(AtomicU64::new(0));
    let senders: Vec<_> = (0..in_flight)
        .map(|_| {
            let (channel, piece, next) = (channel.clone(), piece.clone(), next.clone());
            tokio::spawn(async move {
                let mut grpc = tonic::client::Grpc::new(channel);
                while next.fetch_add(1, Ordering::Relaxed) < episodes {
                    grpc.ready().await?;
                    let pieces: Vec<Piece> = (0..episode_bytes)
                        .step_by(MESSAGE_BYTES)
                        .map(|at| Piece { data: piece.slice(..MESSAGE_BYTES.min(episode_bytes - at)) })
                        .collect();
                    let codec = ProstCodec::<Piece, Stored>::default();
                    let path = PathAndQuery::from_static(PATH);
                    let request = Request::new(tokio_stream::iter(pieces));
                    let stored: Response<Stored> = grpc.client_streaming(request, path, codec).await?;
                    ensure!(stored.get_ref().bytes == episode_bytes as u64, "the server has something else");
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for sender in senders {
        sender.await??;
    }
    Ok((began.elapsed(), cpu(std::process::id())? - sender, cpu(server)? - receiver))
}

async fn connect(folder: &Path, address: SocketAddr) -> anyhow::Result<Channel> {
    let ca = Certificate::from_pem(std::fs::read(folder.join("server.pem"))?);
    let endpoint = Channel::from_shared(format!("https://{address}"))?
        .tls_config(ClientTlsConfig::new().ca_certificate(ca).domain_name(HOST))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true);
    // The server may not listen yet.
    for _ in 0..200 {
        if let Ok(channel) = endpoint.connect().await {
            return Ok(channel);
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Ok(endpoint.connect().await?)
}

#[derive(Clone)]
struct Ingest {
    folder: Arc<PathBuf>,
    files: Arc<AtomicU64>,
}

async fn serve(folder: PathBuf, address: SocketAddr) -> anyhow::Result<()> {
    let read = |name: &str| std::fs::read(folder.join(name));
    let identity = Identity::from_pem(read("server.pem")?, read("server.key")?);
    let ingest = Ingest { folder: Arc::new(folder), files: Arc::default() };
    Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
        .add_service(ingest)
        .serve(address)
        .await?;
    Ok(())
}

impl NamedService for Ingest {
    const NAME: &'static str = "bench.Ingest";
}

impl Service<http::Request<Body>> for Ingest {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let upload = Upload(self.clone());
        Box::pin(async move {
            let codec = ProstCodec::<Stored, Piece>::default();
            let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(2 * MESSAGE_BYTES);
            Ok(grpc.client_streaming(upload, request).await)
        })
    }
}

struct Upload(Ingest);

impl ClientStreamingService<Piece> for Upload {
    type Response = Stored;
    type Future = BoxFuture<Response<Stored>, Status>;

    fn call(&mut self, request: Request<Streaming<Piece>>) -> Self::Future {
        let ingest = self.0.clone();
        Box::pin(async move {
            let number = ingest.files.fetch_add(1, Ordering::Relaxed);
            let mut file = File::create(ingest.folder.join(format!("{number}.episode")))?;
            let (mut pieces, mut bytes) = (request.into_inner(), 0);
            while let Some(piece) = pieces.message().await? {
                file.write_all(&piece.data)?;
                bytes += piece.data.len() as u64;
            }
            let synced = tokio::task::spawn_blocking(move || file.sync_all()).await;
            synced.map_err(|error| Status::internal(error.to_string()))??;
            Ok(Response::new(Stored { bytes }))
        })
    }
}

/// CPU time of a process so far, which Linux counts in hundredths of a second.
fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).context("/proc/PID/stat");
    Ok(Duration::from_millis(10) * (ticks(11)? + ticks(12)?))
}
