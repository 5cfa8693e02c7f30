//! The demo in small: every stage real, with two robots and little training, so that a broken stage turns red here;
//! and the same with its processes killed in the middle.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use zunft_client::{Begin, BeginActor, Robot, Step, monotonic_ns};

#[test]
fn demo_closes_the_loop_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_zunft"))
        .args(["demo", "--robots", "2", "--starts", "2", "--demonstrations", "2", "--train-steps", "60", "--json"])
        .arg(&json)
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let figures: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(figures["episodes_lost"], 0, "{figures}");
    // Two demonstrations a robot and task at least, and what the robots did themselves.
    assert!(figures["episodes_recorded"].as_u64().unwrap() > 2 * 3 * 2, "{figures}");
    assert_eq!(figures["episodes_recorded"], figures["episodes_durable"], "{figures}");
    assert_eq!(figures["robots_on_second_release"], 2, "{figures}");
    for task in ["push", "pick-place", "weld-seam"] {
        assert_eq!(figures["tasks"][task]["success_expert"], 1.0, "{figures}");
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the figures are left: {left:?}");
}

#[test]
fn killed_agent_and_hub_come_back_and_nothing_confirmed_is_lost() {
    const STEPS: u64 = 77;
    let outer = tempfile::tempdir().unwrap();
    let (folder, report) = (outer.path().join("demo"), outer.path().join("demo.json"));
    let sizes = ["--robots", "2", "--demonstrations", "20", "--train-steps", "300", "--starts", "4"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_zunft"));
    command.args(["demo", "--seed", "5", "--json", report.to_str().unwrap(), "--keep", folder.to_str().unwrap()]);
    let mut demo = Demo(command.args(sizes).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());

    // The agent loses power in the middle of an episode.
    let socket = folder.canonicalize().unwrap_or_else(|_| folder.clone()).join("robot-1/agent.sock");
    let open = record_without_end(&socket, STEPS);
    let agent_pid = status(&socket).unwrap()["pid"].as_i64().unwrap();
    kill_9(agent_pid);
    drop(open);
    let cut_off =
        wait_for("cut off episode", || episodes(&folder)?.into_iter().find(|episode| episode["steps"] == STEPS));
    assert_eq!((&cut_off["ending"], &cut_off["outcome"]), (&"truncated".into(), &"unknown".into()));
    assert_ne!(status(&socket).unwrap()["pid"], agent_pid, "another process took over");

    // So does the hub, while it trains or robots work.
    kill_9(hub_pid(&folder).expect("the hub runs"));

    let ended = wait_for("end of the demo", || demo.0.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["episodes_lost"], 0);
    assert_eq!(report["episodes_durable"], report["episodes_recorded"]);
    assert!(report["episodes_cut_off"].as_u64().unwrap() >= 1);
    assert!(report["restarts"].as_u64().unwrap() >= 2);
    assert_eq!(report["robots_on_second_release"], 2);
    assert_eq!(hub_pid(&folder), None, "nothing is left running");
}

/// How long any one thing may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends the demo with its test.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test that waits for other processes must give up some time")]
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what} in time");
        thread::sleep(Duration::from_millis(10));
    }
}

fn kill_9(pid: i64) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

fn status(socket: &Path) -> Option<Value> {
    Robot::connect(socket).ok()?.status().ok()
}

/// Records `steps` steps, waits until they are on the agent's disk, and returns with the recording still open.
fn record_without_end(socket: &Path, steps: u64) -> Robot {
    let embodiment = zunft_sim::observation::embodiment();
    let mut robot = wait_for("agent", || Robot::connect(socket).ok());
    let begin = Begin { task: "push".parse().unwrap(), embodiment: embodiment.clone(), actor: BeginActor::Human };
    robot.begin(&begin).unwrap();
    let (observation, action) = ([0.5_f32; 21], [0.0_f32; 4]);
    for step in 0..steps {
        let values = [(&observation).into(), (&action).into()];
        let monotonic_ns = monotonic_ns() + step;
        robot.step(&Step { monotonic_ns, reward: None, intervention: false, values: &values }).unwrap();
    }
    wait_for("step on disk", || (robot.progress().unwrap().steps_on_disk == steps).then_some(()));
    robot
}

/// The process that runs the hub of the demo in `folder`.
fn hub_pid(folder: &Path) -> Option<i64> {
    let config = folder.join("hub.toml").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut processes = processes.filter(|pid: &i64| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
        words.contains(&b"serve".as_slice()) && words.contains(&config.as_bytes())
    });
    processes.next()
}

/// The hub's episodes, where it answers.
fn episodes(folder: &Path) -> Option<Vec<Value>> {
    let token = fs::read_to_string(folder.join("hub/pki/admin.token")).ok()?;
    let config: toml::Table = toml::from_str(&fs::read_to_string(folder.join("hub.toml")).ok()?).ok()?;
    let url = format!("http://{}/v1/episodes?limit=1000&task=push", config["http"]["listen"].as_str()?);
    let request = ureq::get(url).header("Authorization", format!("Bearer {}", token.trim()));
    let text = request.call().ok()?.body_mut().read_to_string().ok()?;
    let page: Value = serde_json::from_str(&text).ok()?;
    page["items"].as_array().cloned()
}
