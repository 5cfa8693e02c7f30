//! A hub and agents as real processes over loopback, which can be killed at any moment and come back.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use zunft_client::Robot;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::{Handle, Hub};
use zunft_hub::identity::RobotIdentity;
use zunft_hub::metadata::EpisodeFilter;
use zunft_protocol::chunk::{MONOTONIC_NS, SampleChunk};
use zunft_protocol::ids::TenantId;
use zunft_protocol::{Chunk, Manifest};
use zunft_skills::data::EpisodeSource;

/// Nothing here takes half as long, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// What the hub holds of one recording.
pub(crate) struct Stored {
    pub(crate) manifest: Manifest,
    pub(crate) observations: Vec<f32>,
    pub(crate) actions: Vec<f32>,
    /// Times and bytes of every sample of the streams beside the steps.
    pub(crate) samples: BTreeMap<String, Vec<(i64, Vec<u8>)>>,
}

pub(crate) struct Fleet {
    folder: TempDir,
    /// `hub` or `service`.
    role: &'static str,
    http: SocketAddr,
    hub: Option<Child>,
    agents: Vec<Option<Child>>,
}

impl Fleet {
    /// Makes keys, certificates and configurations for a hub and `robots` agents, and starts them all.
    pub(crate) fn start(robots: usize) -> Self {
        Self::start_as("hub", robots)
    }

    /// As [`Self::start`], with the hub's HTTP API.
    pub(crate) fn start_with_api(robots: usize) -> Self {
        Self::start_as("service", robots)
    }

    fn start_as(role: &'static str, robots: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The port is free now; the hub binds it at once and again after each kill.
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let hub_toml = format!(
            "data_dir = {:?}\n[quic]\nlisten = \"{address}\"\n[http]\nlisten = \"{http}\"\n",
            folder.path().join("hub")
        );
        fs::write(folder.path().join("hub.toml"), hub_toml).unwrap();
        let mut fleet = Self { folder, role, http, hub: None, agents: (0..robots).map(|_| None).collect() };
        fleet.with_hub_here(async |hub| {
            for i in 0..robots {
                let identity = RobotIdentity {
                    tenant: tenant(),
                    site: "hall".parse().unwrap(),
                    robot: format!("r{i}").parse().unwrap(),
                };
                let credentials = hub.add_robot(&identity).await.unwrap();
                let home = fleet.agent_folder(i);
                fs::create_dir_all(&home).unwrap();
                fs::write(home.join("robot.pem"), credentials.certificate_pem).unwrap();
                fs::write(home.join("robot.key"), credentials.key_pem).unwrap();
                fs::write(home.join("ca.pem"), credentials.ca_pem).unwrap();
                fs::write(home.join("root.dsse.json"), credentials.root.to_json()).unwrap();
                let toml = format!(
                    "data_dir = \"data\"\nsocket = \"agent.sock\"\nroot = \"root.dsse.json\"\n\
                     [hub]\naddress = \"{address}\"\nca = \"ca.pem\"\ncertificate = \"robot.pem\"\nkey = \"robot.key\"\n\
                     [spool]\nsync_interval_ms = 20\nfree_bytes_min = 0\nsegment_bytes = 16777216\n\
                     [upload]\nreconnect_secs_min = 1\nreconnect_secs_max = 1\n"
                );
                fs::write(home.join("agent.toml"), toml).unwrap();
            }
        });
        fleet.start_hub();
        for i in 0..robots {
            fleet.start_agent(i);
        }
        fleet
    }

    pub(crate) fn start_hub(&mut self) {
        self.hub = Some(node(self.role, &self.folder.path().join("hub.toml")));
    }

    pub(crate) fn start_agent(&mut self, i: usize) {
        self.agents[i] = Some(node("agent", &self.agent_folder(i).join("agent.toml")));
    }

    /// `kill -9`.
    pub(crate) fn kill_hub(&mut self) {
        kill(self.hub.take());
    }

    /// `kill -9`.
    pub(crate) fn kill_agent(&mut self, i: usize) {
        kill(self.agents[i].take());
    }

    /// Asks the hub's API, once it listens; it must answer with what was asked for.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        serde_json::from_str(&self.tell(method, path, body)).unwrap()
    }

    /// Tells the hub's API something that it must take; returns the body of its answer.
    pub(crate) fn tell(&self, method: &str, path: &str, body: &Value) -> String {
        let token = fs::read_to_string(self.folder.path().join("hub/pki/admin.token")).unwrap();
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            token.trim(),
            body.len()
        );
        let mut stream = eventually("the hub's API listens", || TcpStream::connect(self.http).ok());
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Waits until agent `i` says so of itself.
    pub(crate) fn wait_for_status(&self, i: usize, what: &str, met: impl Fn(&Value) -> bool) {
        eventually(what, || met(&self.robot(i).status().ok()?).then_some(()));
    }

    /// A control program's connection to agent `i`, once it listens.
    pub(crate) fn robot(&self, i: usize) -> Robot {
        let socket = self.socket(i);
        eventually("the agent listens", || Robot::connect(&socket).ok())
    }

    /// Where agent `i` listens.
    pub(crate) fn socket(&self, i: usize) -> PathBuf {
        self.agent_folder(i).join("agent.sock")
    }

    /// Waits until agent `i` holds nothing that the hub has not acknowledged.
    pub(crate) fn wait_until_uploaded(&self, i: usize) {
        eventually("every episode is acknowledged", || {
            let status = self.robot(i).status().ok()?;
            let waiting = status["spool"]["episodes_waiting"].as_u64()?;
            let open = status["spool"]["recordings_open"].as_u64()?;
            (waiting == 0 && open == 0).then_some(())
        });
    }

    /// Stops the hub for good and reads back everything that it holds, checking every hash.
    pub(crate) fn stored(&mut self) -> Vec<Stored> {
        self.kill_hub();
        let mut stored = Vec::new();
        self.with_hub_here(async |hub| {
            let snapshot = hub.create_snapshot(&tenant(), &EpisodeFilter::default()).await.unwrap();
            let mut source = hub.snapshot_source(&tenant(), snapshot.id).await.unwrap();
            let read = tokio::task::spawn_blocking(move || {
                let mut episodes = Vec::new();
                for episode in source.snapshot().clone().episodes {
                    let manifest = Manifest::decode(&source.manifest(episode.id).unwrap()).unwrap();
                    assert_eq!(manifest.id(), episode.id);
                    let samples = samples(&mut source, &manifest);
                    let mut read = Stored { observations: Vec::new(), actions: Vec::new(), samples, manifest };
                    for reference in &read.manifest.streams[0].chunks {
                        let bytes = source.chunk(reference.id).unwrap();
                        assert_eq!(zunft_protocol::ChunkId::of(&bytes), reference.id);
                        let chunk = Chunk::decode(&bytes, &read.manifest.streams[0].schema).unwrap();
                        read.observations.extend(chunk.column_f32("observation.state").unwrap());
                        read.actions.extend(chunk.column_f32("action").unwrap());
                    }
                    episodes.push(read);
                }
                episodes
            });
            stored = read.await.unwrap();
        });
        stored
    }

    fn agent_folder(&self, i: usize) -> PathBuf {
        self.folder.path().join(format!("r{i}"))
    }

    /// Runs the hub inside this process, while no other does.
    fn with_hub_here(&self, work: impl AsyncFnOnce(&Handle)) {
        let config = HubConfig::load(Some(&self.folder.path().join("hub.toml"))).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let hub = Hub::start(config).await.unwrap();
            work(&hub).await;
            hub.shutdown().await;
        });
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        kill(self.hub.take());
        for agent in &mut self.agents {
            kill(agent.take());
        }
    }
}

fn samples(source: &mut impl EpisodeSource, manifest: &Manifest) -> BTreeMap<String, Vec<(i64, Vec<u8>)>> {
    let mut samples: BTreeMap<String, Vec<(i64, Vec<u8>)>> = BTreeMap::new();
    for stream in &manifest.streams[1..] {
        let found = samples.entry(stream.name.clone()).or_default();
        for reference in &stream.chunks {
            let bytes = source.chunk(reference.id).unwrap();
            assert_eq!(zunft_protocol::ChunkId::of(&bytes), reference.id);
            match stream.schema.encoding {
                Some(encoding) => {
                    let chunk = SampleChunk::decode(&bytes, encoding).unwrap();
                    found.extend(chunk.samples().iter().map(|sample| (sample.monotonic_ns, sample.bytes.to_vec())));
                }
                None => {
                    let chunk = Chunk::decode(&bytes, &stream.schema).unwrap();
                    let times = chunk.column(MONOTONIC_NS).unwrap().chunks_exact(8);
                    let times = times.map(|time| i64::from_le_bytes(time.try_into().unwrap()));
                    let values = chunk.column(&stream.name).unwrap();
                    let values = values.chunks_exact(stream.schema.columns[1].step_bytes());
                    found.extend(times.zip(values.map(<[u8]>::to_vec)));
                }
            }
        }
    }
    samples
}

fn tenant() -> TenantId {
    zunft_hub::pki::default_tenant()
}

fn node(role: &str, config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_zunft-test-node")).arg(role).arg(config).stdin(Stdio::null()).spawn().unwrap()
}

fn kill(process: Option<Child>) {
    if let Some(mut process) = process {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

/// Waits for a condition, which other processes bring about.
#[expect(clippy::disallowed_methods, reason = "real processes take real time")]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(GLANCE);
    }
}
