//! Many robots at once against one hub, beside as many plain copies at once.
//!
//! The robots are tasks of this process that speak the protocol, each with a certificate and a connection of its own;
//! their episodes are random bytes, made as they are sent: the hub never looks into a chunk. A few uploads of each are
//! open at a time, as an agent's are.

use std::io::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use quinn::{ClientConfig, Endpoint};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::Hub;
use zunft_hub::identity::RobotIdentity;
use zunft_hub::metadata::EpisodeFilter;
use zunft_protocol::ids::ChunkId;
use zunft_protocol::message::{ChunkBytes, Message};
use zunft_tests::episode::Episode;
use zunft_tests::peer::{Credentials, Peer};

use super::node::{Node, cpu_of};
use super::{Measured, copy, now};

/// Uploads that a robot has open.
const OPEN_MAX: usize = 4;

const CHUNK_BYTES: u64 = 256 * 1024;

#[derive(Debug, Serialize)]
struct Results {
    robots: usize,
    episode_bytes: u64,
    bytes: u64,
    copies: Measured,
    durable: Measured,
    ratio: f64,
    /// When the last one had finished, divided by when the first one had.
    copies_last_by_first: f64,
    robots_last_by_first: f64,
    hub_megabytes: f64,
    /// How often a robot was told to offer again later.
    later: u64,
}

struct Robot {
    identity: RobotIdentity,
    config: ClientConfig,
}

/// When the first and the last had finished, and how often one was put off.
struct Finished {
    first: Duration,
    last: Duration,
    later: u64,
}

/// Measures both, and prints one line of JSON.
pub(crate) fn bench(node: &Path, robots: usize, bytes: u64, episode_bytes: u64) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let config = format!("data_dir = \"hub\"\n[quic]\nlisten = \"{address}\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    std::fs::write(folder.join("hub.toml"), config)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let fleet = runtime.block_on(enrol(folder, robots))?;
    let episodes = (bytes / robots as u64 / episode_bytes).max(1);
    let (share, bytes) = (episodes * episode_bytes, episodes * episode_bytes * robots as u64);

    let copying = copy::receiver(folder, &address.to_string(), copy::Between::Memory)?;
    let began = cpu_of(std::process::id())?;
    let copied = runtime
        .block_on(at_once(&fleet, address, |connection, _| copy::send_on(connection, copy::Source::memory(), share)))?;
    let copies = Measured::new(bytes, copied.last, cpu_of(std::process::id())? - began, copying.cpu()?);
    drop(copying);

    let hub = Node::start(node, "hub", &folder.join("hub.toml"))?;
    let (began, hub_began) = (cpu_of(std::process::id())?, hub.cpu()?);
    let finished = runtime.block_on(at_once(&fleet, address, |connection, identity| async move {
        upload(Peer::greet(connection).await?, identity, episodes, episode_bytes).await
    }))?;
    let durable = Measured::new(bytes, finished.last, cpu_of(std::process::id())? - began, hub.cpu()? - hub_began);
    let hub_megabytes = hub.peak_megabytes()?;
    hub.stop()?;
    let stored = runtime.block_on(stored(folder))?;
    ensure!(stored == episodes * robots as u64, "the hub holds {stored} of {} episodes", episodes * robots as u64);
    let results = Results {
        robots,
        episode_bytes,
        bytes,
        ratio: durable.megabytes_per_sec / copies.megabytes_per_sec,
        copies,
        durable,
        copies_last_by_first: copied.last.as_secs_f64() / copied.first.as_secs_f64(),
        robots_last_by_first: finished.last.as_secs_f64() / finished.first.as_secs_f64(),
        hub_megabytes,
        later: finished.later,
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&results)?)?;
    Ok(())
}

async fn enrol(folder: &Path, robots: usize) -> anyhow::Result<Vec<Robot>> {
    let hub = Hub::start(HubConfig::load(Some(&folder.join("hub.toml")))?).await?;
    let mut fleet = Vec::with_capacity(robots);
    for number in 0..robots {
        let tenant = zunft_hub::pki::default_tenant();
        let identity = RobotIdentity { tenant, site: "hall".parse()?, robot: format!("r{number}").parse()? };
        let config = Credentials::from(&hub.add_robot(&identity).await?).client_config()?;
        fleet.push(Robot { identity, config });
    }
    hub.shutdown().await;
    Ok(fleet)
}

async fn stored(folder: &Path) -> anyhow::Result<u64> {
    let hub = Hub::start(HubConfig::load(Some(&folder.join("hub.toml")))?).await?;
    let tenant = zunft_hub::pki::default_tenant();
    let stored = hub.metadata().episode_count(&tenant, &EpisodeFilter::default()).await?;
    hub.shutdown().await;
    Ok(stored)
}

/// Connects all, then lets all begin; `work` returns how often it was put off.
async fn at_once<W, F>(fleet: &[Robot], address: SocketAddr, work: W) -> anyhow::Result<Finished>
where
    W: Fn(quinn::Connection, RobotIdentity) -> F,
    F: Future<Output = anyhow::Result<u64>> + Send + 'static,
{
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let mut connections = Vec::with_capacity(fleet.len());
    for robot in fleet {
        connections.push((connect(&endpoint, address, robot).await?, robot.identity.clone()));
    }
    let began = now();
    let mut working = JoinSet::new();
    for (connection, identity) in connections {
        let work = work(connection, identity);
        working.spawn(async move { anyhow::Ok((work.await?, now() - began)) });
    }
    let mut finished = Finished { first: Duration::MAX, last: Duration::ZERO, later: 0 };
    while let Some(ended) = working.join_next().await {
        let (later, at) = ended??;
        finished.first = finished.first.min(at);
        finished.last = finished.last.max(at);
        finished.later += later;
    }
    Ok(finished)
}

/// Connects as soon as somebody listens.
async fn connect(endpoint: &Endpoint, address: SocketAddr, robot: &Robot) -> anyhow::Result<quinn::Connection> {
    let give_up: Instant = now() + Duration::from_secs(30);
    loop {
        match zunft_tests::peer::connect(endpoint, address, robot.config.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(error) if now() > give_up => return Err(error.context("nobody listens")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Uploads so many episodes, a few at a time; returns how often one was put off.
async fn upload(peer: Peer, identity: RobotIdentity, episodes: u64, episode_bytes: u64) -> anyhow::Result<u64> {
    let (peer, open) = (Arc::new(peer), Arc::new(Semaphore::new(OPEN_MAX)));
    let mut uploads = JoinSet::new();
    for ordinal in 0..episodes {
        let place = open.clone().acquire_owned().await?;
        let episode = random_episode(&identity, ordinal, episode_bytes);
        let peer = peer.clone();
        uploads.spawn(async move {
            let later = upload_one(&peer, &episode).await?;
            drop(place);
            anyhow::Ok(later)
        });
    }
    let mut later = 0;
    while let Some(ended) = uploads.join_next().await {
        later += ended??;
    }
    Ok(later)
}

/// Offers until the hub takes it; returns how often it did not.
async fn upload_one(peer: &Peer, episode: &Episode) -> anyhow::Result<u64> {
    let mut later = 0;
    loop {
        let mut upload = peer.offer(&episode.manifest).await?;
        let mut answer = upload.hear().await?;
        if let Message::Want(want) = &answer {
            for (_, chunk) in episode.chunks.iter().enumerate().filter(|(index, _)| want.contains(*index)) {
                upload.send.write_all(&Message::Chunk(chunk.clone()).encode()).await?;
            }
            answer = upload.hear().await?;
        }
        if let Message::Durable(_) = answer {
            return Ok(later);
        }
        let Message::Later(put_off) = answer else { bail!("{answer:?} to an episode") };
        later += 1;
        tokio::time::sleep(Duration::from_millis(put_off.retry_after_ms.into())).await;
    }
}

fn random_episode(identity: &RobotIdentity, ordinal: u64, bytes: u64) -> Episode {
    let chunks = bytes.div_ceil(CHUNK_BYTES);
    let mut episode = Episode::new(identity, ordinal, chunks as usize);
    let mut rng = SmallRng::from_seed(*episode.manifest.id().as_bytes());
    let listed = episode.manifest.streams.iter_mut().flat_map(|stream| &mut stream.chunks);
    for (index, (chunk, listed)) in episode.chunks.iter_mut().zip(listed).enumerate() {
        let mut stored = vec![0; (bytes - index as u64 * CHUNK_BYTES).min(CHUNK_BYTES) as usize];
        rng.fill_bytes(&mut stored);
        *chunk = ChunkBytes { id: ChunkId::of(&stored), bytes: stored };
        (listed.id, listed.bytes) = (chunk.id, chunk.bytes.len() as u32);
    }
    episode
}

/// Reads `[ROBOTS [BYTES [EPISODE_BYTES]]]`.
pub(crate) fn numbers(words: &[&str]) -> anyhow::Result<(usize, u64, u64)> {
    let number = |index: usize, default: u64| -> anyhow::Result<u64> {
        words.get(index).map_or(Ok(default), |word| word.parse().with_context(|| format!("{word:?} is no number")))
    };
    let (robots, bytes, episode_bytes) = (number(0, 64)?, number(1, super::BYTES)?, number(2, 1_000_000)?);
    ensure!(robots > 0 && episode_bytes > 0 && words.len() <= 3, "usage: robots [ROBOTS [BYTES [EPISODE_BYTES]]]");
    Ok((robots as usize, bytes, episode_bytes))
}
