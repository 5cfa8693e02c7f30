//! Durable upload by one robot beside a plain QUIC copy of as many bytes, in one run.
//!
//! ```text
//! zunft-upload-bench NODE [EPISODE_BYTES [BYTES]]
//! zunft-upload-bench NODE robots [ROBOTS [BYTES [EPISODE_BYTES]]]     64 robots at once: see `robots.rs`
//! ```
//! `NODE` is the path of `zunft-test-node`. Episodes of random numbers are recorded first, then uploaded by a real
//! agent to a real hub: spool, QUIC, hash, fsync, receipt. The copy is of the same bytes, from the spool's files into a
//! file that nobody syncs, over one stream of QUIC with the TLS and the bounds of agent and hub, answered once at the
//! end; `transport` is the same without files at either end, from memory into nothing. Hub, agent and both ends of the
//! copy are processes of their own, so that each one's CPU time is known. Prints one line of JSON.

mod copy;
mod node;
mod recording;
mod robots;

use std::io::Write as _;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use zunft_client::Robot;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::Hub;
use zunft_hub::identity::RobotIdentity;
use zunft_hub::metadata::EpisodeFilter;

use copy::Between;
use node::Node;

const EPISODE_BYTES: u64 = 10_000_000;
const BYTES: u64 = 1_000_000_000;

/// How often the agent is asked how far it is: little beside the seconds that are measured.
const GLANCE: Duration = Duration::from_millis(20);

/// Nothing here takes longer; a run that does is stuck.
const PATIENCE: Duration = Duration::from_secs(600);

/// One way of getting bytes across.
#[derive(Debug, Serialize)]
struct Measured {
    secs: f64,
    megabytes_per_sec: f64,
    sender_cpu_secs_per_gb: f64,
    receiver_cpu_secs_per_gb: f64,
}

impl Measured {
    fn new(bytes: u64, took: Duration, sender_cpu: Duration, receiver_cpu: Duration) -> Self {
        let per_gb = |cpu: Duration| cpu.as_secs_f64() * 1e9 / bytes as f64;
        Self {
            secs: took.as_secs_f64(),
            megabytes_per_sec: bytes as f64 / 1e6 / took.as_secs_f64(),
            sender_cpu_secs_per_gb: per_gb(sender_cpu),
            receiver_cpu_secs_per_gb: per_gb(receiver_cpu),
        }
    }
}

#[derive(Debug, Serialize)]
struct Results {
    episode_bytes: u64,
    episodes: u64,
    bytes: u64,
    packs: usize,
    copy: Measured,
    transport: Measured,
    durable: Measured,
    /// Of durable and copy.
    ratio: f64,
    ratio_to_transport: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["receive", folder, address, between] => {
            copy::receive(Path::new(folder), address.parse()?, Between::parse(between)?)
        }
        ["send", folder, address, between, bytes] => {
            copy::send(Path::new(folder), address.parse()?, Between::parse(between)?, bytes.parse()?)
        }
        [node, "robots", numbers @ ..] => {
            let (count, bytes, episode_bytes) = robots::numbers(numbers)?;
            robots::bench(Path::new(node), count, bytes, episode_bytes)
        }
        [node] => bench(Path::new(node), EPISODE_BYTES, BYTES),
        [node, episode] => bench(Path::new(node), episode.parse().context("EPISODE_BYTES")?, BYTES),
        [node, episode, bytes] => {
            bench(Path::new(node), episode.parse().context("EPISODE_BYTES")?, bytes.parse().context("BYTES")?)
        }
        _ => bail!(
            "usage: zunft-upload-bench NODE [EPISODE_BYTES [BYTES]] | NODE robots [ROBOTS [BYTES [EPISODE_BYTES]]]"
        ),
    }
}

fn bench(node: &Path, episode_bytes: u64, bytes: u64) -> anyhow::Result<()> {
    ensure!(episode_bytes >= recording::STEP_BYTES as u64, "an episode has at least one step of 8 KiB");
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    prepare(folder)?;
    let episodes = (bytes / episode_bytes).max(1);
    let bytes = {
        let agent = Node::start(node, "agent", &folder.join("offline.toml"))?;
        recording::record(&folder.join("agent.sock"), episodes, episode_bytes)?;
        let bytes = status(&folder.join("agent.sock"))?["spool"]["bytes_waiting"].as_u64().context("bytes_waiting")?;
        agent.stop()?;
        bytes
    };
    let copy = copy::measure(folder, Between::Files, bytes)?;
    let transport = copy::measure(folder, Between::Memory, bytes)?;
    let durable = durable(node, folder, episodes, bytes)?;
    let ratio = durable.megabytes_per_sec / copy.megabytes_per_sec;
    let ratio_to_transport = durable.megabytes_per_sec / transport.megabytes_per_sec;
    let packs = std::fs::read_dir(folder.join("hub/store/t/default/packs"))?.count();
    let results =
        Results { episode_bytes, episodes, bytes, packs, copy, transport, durable, ratio, ratio_to_transport };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&results)?)?;
    Ok(())
}

/// A hub that knows one robot, and the configurations of both.
fn prepare(folder: &Path) -> anyhow::Result<()> {
    let address = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text);
    write(
        "hub.toml",
        &format!("data_dir = \"hub\"\n[quic]\nlisten = \"{address}\"\n[http]\nlisten = \"127.0.0.1:0\"\n"),
    )?;
    let local = "data_dir = \"agent\"\nsocket = \"agent.sock\"\nroot = \"root.dsse.json\"\n\
                 [spool]\nbytes_max = 68719476736\nfree_bytes_min = 0\n[upload]\nreconnect_secs_min = 1\n\
                 reconnect_secs_max = 1\n[hub]\ncertificate = \"robot.pem\"\n";
    write("offline.toml", local)?;
    write("agent.toml", &format!("{local}address = \"{address}\"\nca = \"ca.pem\"\nkey = \"robot.key\"\n"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let hub = Hub::start(HubConfig::load(Some(&folder.join("hub.toml")))?).await?;
        let identity =
            RobotIdentity { tenant: zunft_hub::pki::default_tenant(), site: "hall".parse()?, robot: "r1".parse()? };
        let credentials = hub.add_robot(&identity).await?;
        write("robot.pem", &credentials.certificate_pem)?;
        write("robot.key", &credentials.key_pem)?;
        write("ca.pem", &credentials.ca_pem)?;
        std::fs::write(folder.join("root.dsse.json"), credentials.root.to_json())?;
        hub.shutdown().await;
        Ok(())
    })
}

fn status(socket: &Path) -> anyhow::Result<serde_json::Value> {
    Ok(Robot::connect(socket)?.status()?)
}

/// Uploads everything, and makes sure that the hub has it.
fn durable(node: &Path, folder: &Path, episodes: u64, bytes: u64) -> anyhow::Result<Measured> {
    let agent = Node::start(node, "agent", &folder.join("agent.toml"))?;
    let socket = folder.join("agent.sock");
    let mut robot = eventually(|| Robot::connect(&socket).ok())?;
    // The agent has read its spool back, and waits for a hub.
    let hub = Node::start(node, "hub", &folder.join("hub.toml"))?;
    eventually(|| {
        let status = robot.status().ok()?;
        (status["hub"]["state"] == "connected").then_some(())
    })?;
    let (began, agent_began, hub_began) = (now(), agent.cpu()?, hub.cpu()?);
    eventually(|| {
        let status = robot.status().ok()?;
        (status["hub"]["episodes_durable"] == episodes).then_some(())
    })?;
    let took = now() - began;
    let (agent_cpu, hub_cpu) = (agent.cpu()? - agent_began, hub.cpu()? - hub_began);
    agent.stop()?;
    hub.stop()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let stored = runtime.block_on(async {
        let hub = Hub::start(HubConfig::load(Some(&folder.join("hub.toml")))?).await?;
        let tenant = zunft_hub::pki::default_tenant();
        let stored = hub.metadata().episode_count(&tenant, &EpisodeFilter::default()).await?;
        hub.shutdown().await;
        anyhow::Ok(stored)
    })?;
    ensure!(stored == episodes, "the hub holds {stored} of {episodes} episodes");
    Ok(Measured::new(bytes, took, agent_cpu, hub_cpu))
}

/// Waits for what other processes bring about.
fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let give_up = now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(now() < give_up, "nothing came of it within {} s", PATIENCE.as_secs());
        std::thread::sleep(GLANCE);
    }
}

#[expect(clippy::disallowed_methods, reason = "measuring time is all that this program does")]
fn now() -> Instant {
    Instant::now()
}
