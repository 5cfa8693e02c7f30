//! The processes of the demo: a hub and one agent for each robot, over real QUIC with real certificates.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use zunft_client::Robot;
use zunft_protocol::ids::{RobotId, SiteId};

use super::process::Processes;
use crate::api::{ApiError, HubApi, RobotView};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::interrupt;
use crate::robot::{self, RobotRequest};

/// How long a process may take to answer for the first time; a machine may be busy.
const READY_SECS_MAX: u64 = 60;

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A running hub with its robots' agents.
pub(super) struct Fleet {
    api: HubApi,
    processes: Processes,
    members: Vec<RobotMember>,
}

/// One robot's name and where its agent listens.
#[derive(Debug, Clone)]
pub(super) struct RobotMember {
    pub(super) index: u16,
    pub(super) robot: RobotId,
    pub(super) socket: PathBuf,
}

impl Fleet {
    pub(super) fn start(folder: &Path, robots: u16) -> Result<Self, Failure> {
        let processes = Processes::new();
        let (quic, http) = free_ports().or_internal()?;
        let config = folder.join("hub.toml");
        let text = format!(
            "data_dir = \"hub\"\n\n[quic]\nlisten = \"127.0.0.1:{quic}\"\n\n[http]\nlisten = \"127.0.0.1:{http}\"\n"
        );
        fs::write(&config, text).or_internal()?;
        let config = config.display().to_string();
        let serve = ["hub", "serve", "--until-stdin-closes", "--config", &config];
        processes.start("the hub", &serve, &folder.join("hub.log"))?;
        let base = format!("http://127.0.0.1:{http}");
        let token = folder.join("hub").join("pki").join("admin.token");
        let api = wait_for("the hub", &processes, || {
            let api = HubApi::with_token_file(&base, &token).ok()?;
            api.get::<serde_json::Value>("/v1/robots").ok().map(|_| api)
        })?;

        let mut fleet = Self { api, processes, members: Vec::new() };
        for index in 0..robots {
            let robot = format!("robot-{}", index + 1).parse().expect("`robot-1` is a name");
            fleet.add_robot(folder, index, robot, quic)?;
        }
        let (fleet_api, members) = (&fleet.api, &fleet.members);
        for member in members {
            wait_for("an agent", &fleet.processes, || Robot::connect(&member.socket).ok())?;
        }
        wait_for("the agents' connections to the hub", &fleet.processes, || {
            let robots: Vec<RobotView> = fleet_api.list("/v1/robots").ok()?;
            (robots.iter().filter(|robot| robot.connected).count() == members.len()).then_some(())
        })?;
        Ok(fleet)
    }

    fn add_robot(&mut self, folder: &Path, index: u16, robot: RobotId, quic: u16) -> Result<(), Failure> {
        let folder = folder.join(robot.as_str());
        let site: SiteId = "demo".parse().expect("`demo` is a name");
        let address = format!("127.0.0.1:{quic}");
        let request = RobotRequest { robot: &robot, site: &site, hub: Some(&address) };
        robot::add(&self.api, &request, &folder)?;
        let embodiment = serde_json::to_vec_pretty(&zunft_sim::observation::embodiment()).or_internal()?;
        fs::write(folder.join("embodiment.json"), embodiment).or_internal()?;
        let config = folder.join("agent.toml");
        fs::write(&config, agent_toml(&address)).or_internal()?;
        let config = config.display().to_string();
        let run = ["agent", "run", "--until-stdin-closes", "--config", &config];
        self.processes.start(&format!("the agent of {robot}"), &run, &folder.join("agent.log"))?;
        self.members.push(RobotMember { index, robot, socket: folder.join("agent.sock") });
        Ok(())
    }

    pub(super) fn members(&self) -> &[RobotMember] {
        &self.members
    }

    /// How often a process had to be started again.
    pub(super) fn restarts(&self) -> u64 {
        self.processes.restarts()
    }

    /// Asks the hub until it answers: it may be restarting.
    pub(super) fn ask<T>(&self, question: impl Fn(&HubApi) -> Result<T, ApiError>) -> Result<T, Failure> {
        let mut refused = None;
        let answer = wait_for("the hub", &self.processes, || match question(&self.api) {
            Ok(answer) => Some(Ok(answer)),
            Err(error @ (ApiError::Unreachable { .. } | ApiError::Broken { .. })) => {
                tracing::debug!(%error, "the hub does not answer");
                None
            }
            Err(error) => {
                refused = Some(());
                Some(Err(Failure::from(error)))
            }
        })?;
        debug_assert!(answer.is_ok() || refused.is_some(), "only a refusal ends the asking without an answer");
        answer
    }

    /// Looks until `found` finds something, as long as the processes live.
    ///
    /// `progress` says how far it is; without progress for too long this gives up.
    pub(super) fn watch<T>(
        &self,
        what: &str,
        idle_secs_max: u64,
        mut look: impl FnMut() -> Result<(Option<T>, u64), Failure>,
    ) -> Result<T, Failure> {
        let mut patience = Patience::new(idle_secs_max);
        let mut last = None;
        loop {
            interrupt::check()?;
            self.processes.check()?;
            let (found, progress) = look()?;
            if let Some(found) = found {
                return Ok(found);
            }
            if last.replace(progress) != Some(progress) {
                patience = Patience::new(idle_secs_max);
            }
            patience.spend(what)?;
            thread::sleep(LOOK_INTERVAL * 3);
        }
    }

    /// Stops everything in order.
    pub(super) fn stop(mut self) -> Result<(), Failure> {
        self.processes.check()?;
        self.processes.stop();
        Ok(())
    }
}

/// Time that is left until something counts as stuck.
struct Patience {
    begun: Instant,
    secs_max: u64,
}

#[expect(clippy::disallowed_methods, reason = "the demo is a shell: it gives up on what makes no progress")]
impl Patience {
    fn new(secs_max: u64) -> Self {
        Self { begun: Instant::now(), secs_max }
    }

    fn spend(&self, what: &str) -> Result<(), Failure> {
        if self.begun.elapsed().as_secs() < self.secs_max {
            return Ok(());
        }
        let error = format!(
            "{what}: no progress for {} s; run again with --keep DIR and read the logs in there",
            self.secs_max
        );
        Err(Failure::new(ExitCode::Failed, error))
    }
}

fn wait_for<T>(what: &str, processes: &Processes, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
    let patience = Patience::new(READY_SECS_MAX);
    loop {
        interrupt::check()?;
        processes.check()?;
        if let Some(found) = look() {
            return Ok(found);
        }
        patience.spend(what)?;
        thread::sleep(LOOK_INTERVAL);
    }
}

/// A UDP and a TCP port that nobody uses now. They are fixed from here on, so that a hub that was killed comes back
/// where its robots look for it.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let quic = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    Ok((quic, http))
}

fn agent_toml(hub: &str) -> String {
    format!(
        "data_dir = \"data\"\n\
         socket = \"agent.sock\"\n\
         root = \"root.dsse.json\"\n\
         embodiment = \"embodiment.json\"\n\n\
         [hub]\n\
         address = \"{hub}\"\n\
         ca = \"ca.pem\"\n\
         certificate = \"robot.pem\"\n\
         key = \"robot.key\"\n\n\
         [spool]\n\
         segment_bytes = 16777216\n\n\
         [upload]\n\
         reconnect_secs_max = 2\n"
    )
}
