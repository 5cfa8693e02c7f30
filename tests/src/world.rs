//! A hub, an agent as a process of its own, and a relay between them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use zunft_client::{Begin, BeginActor, Robot, Step, Values};
use zunft_hub::config::HubConfig;
use zunft_hub::hub::{Handle, Hub};
use zunft_hub::identity::RobotIdentity;
use zunft_hub::metadata::EpisodeFilter;
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::{Embodiment, EpisodeEnd, EpisodeId, Outcome};

use crate::relay::Relay;

/// Numbers of one step: with four bytes each, a step is 4 KB.
const STATE_DIM: u32 = 1000;

/// Nothing that is waited for here takes half as long, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// See the module. Dropped, all of it stops.
pub struct World {
    folder: TempDir,
    node: PathBuf,
    runtime: tokio::runtime::Runtime,
    hub: Option<Handle>,
    /// Between agent and hub.
    pub relay: Relay,
    agent: Option<Child>,
    random: ChaCha8Rng,
}

impl World {
    /// Starts hub and relay, and enrols a robot. `node` is the program `zunft-test-node`; `upload` goes into the
    /// agent's `[upload]`, as TOML.
    pub fn start(node: &Path, upload: &str) -> anyhow::Result<Self> {
        Self::with_pings(node, upload, Duration::from_secs(10))
    }

    /// As [`Self::start`]; the agent asks for a sign of life every `ping_interval`.
    pub fn with_pings(node: &Path, upload: &str, ping_interval: Duration) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut config = HubConfig { data_dir: folder.path().join("hub"), ..HubConfig::default() };
        config.quic.listen = ([127, 0, 0, 1], 0).into();
        let hub = runtime.block_on(Hub::start(config))?;
        let relay = Relay::start(hub.quic_addr())?;
        let tenant = zunft_hub::pki::default_tenant();
        let identity = RobotIdentity { tenant, site: "hall".parse()?, robot: "r1".parse()? };
        let credentials = runtime.block_on(hub.add_robot(&identity))?;
        let write = |name: &str, text: &[u8]| fs::write(folder.path().join(name), text);
        write("robot.pem", credentials.certificate_pem.as_bytes())?;
        write("robot.key", credentials.key_pem.as_bytes())?;
        write("ca.pem", credentials.ca_pem.as_bytes())?;
        write("root.json", &credentials.root.to_json())?;
        let (address, ping_ms) = (relay.address(), ping_interval.as_millis());
        let agent = format!(
            "data_dir = \"data\"\nsocket = \"agent.sock\"\nroot = \"root.json\"\n\
             [hub]\naddress = \"{address}\"\nca = \"ca.pem\"\ncertificate = \"robot.pem\"\nkey = \"robot.key\"\n\
             ping_interval_ms = {ping_ms}\n[spool]\nfree_bytes_min = 0\n\
             [upload]\nreconnect_secs_min = 1\nreconnect_secs_max = 1\n{upload}\n"
        );
        write("agent.toml", agent.as_bytes())?;
        let random = ChaCha8Rng::seed_from_u64(1);
        Ok(Self { folder, node: node.to_owned(), runtime, hub: Some(hub), relay, agent: None, random })
    }

    /// Starts the agent and waits until it listens.
    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(&self.node);
        command.arg("agent").arg(self.folder.path().join("agent.toml")).stdin(Stdio::null());
        self.agent = Some(command.spawn().with_context(|| format!("{} does not start", self.node.display()))?);
        drop(self.robot()?);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits until the agent has stopped in order.
    pub fn stop_agent(&mut self) -> anyhow::Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        let told = Command::new("kill").arg(agent.id().to_string()).status()?;
        let ended = agent.wait()?;
        if !(told.success() && ended.success()) {
            bail!("the agent did not stop in order: {ended}");
        }
        Ok(())
    }

    /// A control program's connection.
    pub fn robot(&self) -> anyhow::Result<Robot> {
        let socket = self.folder.path().join("agent.sock");
        wait_for("the agent to listen", PATIENCE, || Ok(Robot::connect(&socket).ok()))
    }

    /// What the agent says of itself.
    pub fn status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(self.robot()?.status()?)
    }

    /// A number of the status, by its JSON pointer.
    pub fn number(&self, pointer: &str) -> anyhow::Result<f64> {
        let status = self.status()?;
        let found = status.pointer(pointer).and_then(serde_json::Value::as_f64);
        found.with_context(|| format!("the agent's status has no number at {pointer}: {status}"))
    }

    /// Waits until the agent says that it is connected.
    pub fn wait_until_connected(&self) -> anyhow::Result<()> {
        wait_for("the connection", PATIENCE, || Ok((self.status()?["hub"]["state"] == "connected").then_some(())))
    }

    /// Records episodes of about `episode_bytes` of noise, `bytes_total` in all; returns which.
    pub fn record(&mut self, bytes_total: u64, episode_bytes: u64) -> anyhow::Result<Vec<EpisodeId>> {
        let mut robot = self.robot()?;
        let mut episodes = Vec::new();
        let mut left = bytes_total;
        while left > 0 {
            let steps = (left.min(episode_bytes) / (u64::from(STATE_DIM) * 4)).max(1);
            episodes.push(self.record_one(&mut robot, steps, "noise")?);
            left = left.saturating_sub(steps * u64::from(STATE_DIM) * 4);
        }
        Ok(episodes)
    }

    /// Records one episode of noise.
    pub fn record_one(&mut self, robot: &mut Robot, steps: u64, task: &str) -> anyhow::Result<EpisodeId> {
        robot.begin(&Begin { task: task.parse()?, embodiment: body(), actor: BeginActor::Script })?;
        for step in 1..=steps {
            let state: Vec<f32> = (0..STATE_DIM).map(|_| self.random.random()).collect();
            let values = &[Values::F32(&state), Values::F32(&[0.0])];
            robot.step(&Step { monotonic_ns: step * 1_000_000, reward: None, intervention: false, values })?;
        }
        Ok(robot.end(Outcome::Success, EpisodeEnd::Terminated)?.episode)
    }

    /// Episodes that the hub holds, by its own word.
    pub fn held(&self) -> anyhow::Result<Vec<EpisodeId>> {
        let hub = self.hub.as_ref().context("the hub is stopped")?;
        let tenant = zunft_hub::pki::default_tenant();
        let page = self.runtime.block_on(hub.episodes(&tenant, &EpisodeFilter::default(), 1000))?;
        Ok(page.episodes.iter().map(|episode| episode.id).collect())
    }

    /// Waits until the agent holds nothing that the hub has not acknowledged.
    pub fn wait_until_uploaded(&self, patience: Duration) -> anyhow::Result<()> {
        wait_for("every episode to become durable", patience, || {
            Ok((self.number("/spool/episodes_waiting")? == 0.0).then_some(()))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A process that is gone already cannot be killed.
        drop(self.kill_agent());
        if let Some(hub) = self.hub.take() {
            self.runtime.block_on(hub.shutdown());
        }
    }
}

fn body() -> Embodiment {
    Embodiment {
        name: "probe".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, STATE_DIM), Feature::vector(ACTION, 1)],
    }
}

/// Waits for what another process or thread brings about.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let give_up = now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if now() > give_up {
            bail!("waited {patience:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The time, for measuring.
#[expect(clippy::disallowed_methods, reason = "real processes take real time")]
pub fn now() -> Instant {
    Instant::now()
}
