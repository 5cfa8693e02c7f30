//! A fleet of idle robots in one process, each with a certificate and a connection of its own.
//!
//! ```text
//! zunft-idle-robots make HUB_CONFIG ROBOTS FILE     certificates for so many robots, from a hub that does not run
//! zunft-idle-robots run HUB_ADDRESS FILE            connects them all, and keeps them connected as agents do
//! zunft-idle-robots silent HUB_ADDRESS FILE         connects them all; all but the last never speak
//! ```
//! `run` prints `all N` whenever the last of N robots has its connection, and `lost` whenever the first has lost it.
//! `silent` prints `opened N` and, when the hub has closed the last of the silent ones, `closed N served M`: the last
//! robot has uploaded M episodes meanwhile, one after the other, and each became durable.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use quinn::{ClientConfig, Endpoint};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zunft_agent::config::UploadConfig;
use zunft_agent::uplink::reconnect_wait;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::Hub;
use zunft_hub::identity::RobotIdentity;
use zunft_protocol::message::CloseCode;
use zunft_tests::episode::Episode;
use zunft_tests::peer::{self, Credentials, Peer};

/// As in the agent: a sign of life, and the longest wait for a connection to stand.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);

/// The working robot's rest between two episodes.
const WORK_INTERVAL: Duration = Duration::from_millis(100);

/// Robots that are switched on at the same moment.
const SWITCHED_ON_MAX: usize = 64;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match words.as_slice() {
        ["make", config, robots, file] => runtime.block_on(make(config, robots.parse().context("ROBOTS")?, file)),
        ["run", hub, file] => runtime.block_on(run(hub.parse().context("HUB_ADDRESS")?, read(file)?)),
        ["silent", hub, file] => runtime.block_on(silent(hub.parse().context("HUB_ADDRESS")?, read(file)?)),
        _ => bail!(
            "usage: zunft-idle-robots make HUB_CONFIG ROBOTS FILE | run HUB_ADDRESS FILE | silent HUB_ADDRESS FILE"
        ),
    }
}

async fn make(config: &str, robots: usize, file: &str) -> anyhow::Result<()> {
    let hub = Hub::start(HubConfig::load(Some(config.as_ref()))?).await?;
    let mut file = BufWriter::new(File::create(file)?);
    for number in 0..robots {
        let credentials = Credentials::from(&hub.add_robot(&identity(number)?).await?);
        writeln!(file, "{}", serde_json::to_string(&credentials)?)?;
    }
    file.flush()?;
    hub.shutdown().await;
    Ok(())
}

fn identity(number: usize) -> anyhow::Result<RobotIdentity> {
    let (site, robot) = ("hall".parse()?, format!("idle-{number}").parse()?);
    Ok(RobotIdentity { tenant: zunft_hub::pki::default_tenant(), site, robot })
}

fn read(file: &str) -> anyhow::Result<Vec<ClientConfig>> {
    let lines = BufReader::new(File::open(file)?).lines();
    let configs: Vec<ClientConfig> = lines
        .map(|line| serde_json::from_str::<Credentials>(&line?)?.client_config())
        .collect::<anyhow::Result<_>>()?;
    ensure!(!configs.is_empty(), "{file} holds no robots");
    Ok(configs)
}

fn say(event: &str) {
    // Nobody listens any more: then the process is about to be ended.
    drop(writeln!(std::io::stdout().lock(), "{event}"));
}

/// How many robots are connected.
struct Fleet {
    robots: usize,
    connected: AtomicUsize,
}

impl Fleet {
    fn connected(&self) {
        if self.connected.fetch_add(1, Ordering::SeqCst) + 1 == self.robots {
            say(&format!("all {}", self.robots));
        }
    }

    fn lost(&self) {
        if self.connected.fetch_sub(1, Ordering::SeqCst) == self.robots {
            say("lost");
        }
    }
}

async fn run(hub: SocketAddr, configs: Vec<ClientConfig>) -> anyhow::Result<()> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let fleet = Arc::new(Fleet { robots: configs.len(), connected: AtomicUsize::new(0) });
    let switches = Arc::new(Semaphore::new(SWITCHED_ON_MAX));
    let mut robots = JoinSet::new();
    for config in configs {
        robots.spawn(live(endpoint.clone(), hub, config, fleet.clone(), switches.clone()));
    }
    // Robots live for ever.
    robots.join_all().await;
    Ok(())
}

/// Connects, says hello and how it is, and connects again after the agent's own waits.
#[expect(clippy::disallowed_methods, reason = "a robot's life is real time")]
async fn live(endpoint: Endpoint, hub: SocketAddr, config: ClientConfig, fleet: Arc<Fleet>, switches: Arc<Semaphore>) {
    let upload = UploadConfig::default();
    let mut failures = 0;
    let mut switch = switches.acquire_owned().await.ok();
    loop {
        let began = Instant::now();
        let connecting = Peer::connect(&endpoint, hub, config.clone());
        if let Ok(Ok(peer)) = tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
            fleet.connected();
            drop(switch.take());
            stay(peer).await;
            fleet.lost();
        }
        let stood = began.elapsed() > Duration::from_secs(upload.reconnect_secs_max);
        failures = if stood { 0 } else { failures + 1 };
        tokio::time::sleep(reconnect_wait(&upload, failures, rand::random())).await;
    }
}

/// Reports until the connection is lost.
async fn stay(mut peer: Peer) {
    loop {
        if peer.report().await.is_err() {
            break;
        }
        tokio::select! {
            _ = peer.connection.closed() => break,
            () = tokio::time::sleep(REPORT_INTERVAL) => {}
        }
    }
}

/// Opens connections and says nothing on them, until the hub has closed them all; one robot works all the while.
async fn silent(hub: SocketAddr, mut configs: Vec<ClientConfig>) -> anyhow::Result<()> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    let honest = configs.pop().context("no robots")?;
    let (count, switches) = (configs.len(), Arc::new(Semaphore::new(SWITCHED_ON_MAX)));
    let served = Arc::new(AtomicUsize::new(0));
    let peer = Peer::connect(&endpoint, hub, honest).await?;
    let mut working = JoinSet::new();
    working.spawn(work(peer, identity(count)?, served.clone()));
    let opened = Arc::new(AtomicUsize::new(0));
    let mut robots = JoinSet::new();
    for config in configs {
        let (endpoint, switches, opened) = (endpoint.clone(), switches.clone(), opened.clone());
        robots.spawn(async move {
            let switch = switches.acquire_owned().await?;
            let connection = peer::connect(&endpoint, hub, config).await?;
            drop(switch);
            if opened.fetch_add(1, Ordering::SeqCst) + 1 == count {
                say(&format!("opened {count}"));
            }
            anyhow::Ok(peer::close_code(&connection.closed().await))
        });
    }
    while let Some(closed) = robots.join_next().await {
        let code = closed??;
        ensure!(code == Some(CloseCode::Protocol), "a silent connection ended with {code:?}");
    }
    if let Some(ended) = working.try_join_next() {
        ended??;
    }
    say(&format!("closed {count} served {}", served.load(Ordering::SeqCst)));
    Ok(())
}

/// Uploads one episode after the other.
async fn work(peer: Peer, identity: RobotIdentity, served: Arc<AtomicUsize>) -> anyhow::Result<()> {
    loop {
        let episode = Episode::new(&identity, served.load(Ordering::SeqCst) as u64, 3);
        peer.upload(&episode).await.context("the honest robot is not served")?;
        served.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(WORK_INTERVAL).await;
    }
}
