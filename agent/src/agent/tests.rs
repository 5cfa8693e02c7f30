//! Whole agents in this process, spoken to over their real sockets.

mod streams;

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zunft_client::{Begin, BeginActor, CallError, Event, Robot, Step};
use zunft_protocol::local;
use zunft_protocol::{EpisodeEnd, Outcome};

use super::*;
use crate::releases::made::{Made, embodiment};

/// An agent without a hub.
struct Cell {
    handle: Option<Handle>,
    /// Removed after the agent has stopped.
    folder: tempfile::TempDir,
}

fn certificate() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://zunft/tenant/acme/site/hall/robot/r1".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    params.self_signed(&key).unwrap().pem()
}

fn config(folder: &Path) -> Config {
    let mut config = Config { data_dir: folder.join("data"), socket: folder.join("agent.sock"), ..Config::default() };
    config.hub.certificate = Some(folder.join("robot.pem"));
    config.spool.free_bytes_min = 0;
    config
}

impl Cell {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("robot.pem"), certificate()).unwrap();
        let mut cell = Self { folder, handle: None };
        cell.start();
        cell
    }

    /// One that fetches releases from memory.
    fn with_releases(made: &Made) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("robot.pem"), certificate()).unwrap();
        std::fs::write(folder.path().join("root.json"), made.root(1)).unwrap();
        let mut cell = Self { folder, handle: None };
        let config = cell.config();
        cell.handle = Some(Agent::start_with(&config, Some(Box::new(made.fetch()))).unwrap());
        cell
    }

    fn config(&self) -> Config {
        let mut config = config(self.folder.path());
        config.root = Some(self.folder.path().join("root.json")).filter(|path| path.exists());
        config
    }

    fn start(&mut self) {
        self.handle = Some(Agent::start(&self.config()).unwrap());
    }

    fn stop(&mut self) {
        self.handle.take().unwrap().stop();
    }

    fn program(&self) -> Robot {
        Robot::connect(self.config().socket).unwrap()
    }

    fn status(&self) -> Status {
        self.handle.as_ref().unwrap().status()
    }

    /// Waits until the spool's thread has come so far.
    fn wait_for(&self, what: &str, met: impl Fn(&Status) -> bool) {
        let mut changes = self.handle.as_ref().unwrap().spool.changes();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let waited = runtime.block_on(async {
            let waited = async {
                while !met(&self.status()) {
                    changes.changed().await.unwrap();
                }
            };
            tokio::time::timeout(Duration::from_secs(30), waited).await
        });
        assert!(waited.is_ok(), "{what} did not happen: {:?}", self.status());
    }
}

fn begin(actor: BeginActor) -> Begin {
    Begin { task: "push".parse().unwrap(), embodiment: embodiment(), actor }
}

fn step(robot: &mut Robot, time: u64) {
    let (state, action) = ([time as f32, 0.5], [1.0_f32]);
    robot
        .step(&Step {
            monotonic_ns: time,
            reward: None,
            intervention: false,
            values: &[(&state).into(), (&action).into()],
        })
        .unwrap();
}

fn code(error: &CallError) -> String {
    if let CallError::Refused { code, .. } = error { code.clone() } else { format!("{error:?}") }
}

#[test]
fn an_episode_is_on_disk_when_its_end_is_answered() {
    let mut cell = Cell::new();
    let mut robot = cell.program();
    let begun = robot.begin(&begin(BeginActor::Script)).unwrap();
    assert_eq!(begun.step_bytes, 12);
    for time in 1..=50 {
        step(&mut robot, time);
    }
    assert_eq!(robot.progress().unwrap().steps_recorded, 50);
    let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    assert_eq!((ended.steps, ended.recording), (50, begun.recording));
    assert_eq!(cell.status().spool.episodes_waiting, 1);
    cell.stop();
    cell.start();
    assert_eq!(cell.status().spool.episodes_waiting, 1, "it is still there after a restart");
    let stored = cell.handle.as_ref().unwrap().spool.waiting(10, |_| false);
    assert_eq!(stored[0].episode, ended.episode);
}

#[test]
fn a_program_that_goes_away_leaves_its_episode_behind() {
    let cell = Cell::new();
    let mut robot = cell.program();
    robot.begin(&begin(BeginActor::Human)).unwrap();
    step(&mut robot, 1);
    robot.progress().unwrap();
    drop(robot);
    cell.wait_for("the seal", |status| status.spool.episodes_waiting == 1);
    let spool = &cell.handle.as_ref().unwrap().spool;
    let stored = spool.waiting(1, |_| false).remove(0);
    let manifest = zunft_protocol::Manifest::decode(&spool.read_manifest(&stored).unwrap()).unwrap();
    let limit = zunft_protocol::episode::Truncation::ClientGone;
    assert_eq!((manifest.end, manifest.steps), (EpisodeEnd::Truncated { limit }, 1));
}

#[test]
fn a_stop_seals_what_is_open() {
    let mut cell = Cell::new();
    let mut robot = cell.program();
    robot.begin(&begin(BeginActor::Script)).unwrap();
    step(&mut robot, 1);
    robot.progress().unwrap();
    cell.stop();
    cell.start();
    let spool = &cell.handle.as_ref().unwrap().spool;
    let stored = spool.waiting(1, |_| false).remove(0);
    let manifest = zunft_protocol::Manifest::decode(&spool.read_manifest(&stored).unwrap()).unwrap();
    let limit = zunft_protocol::episode::Truncation::AgentStopped;
    assert_eq!(manifest.end, EpisodeEnd::Truncated { limit });
}

/// A client that says what the library would not.
struct Raw(UnixStream);

impl Raw {
    fn connect(cell: &Cell) -> Self {
        let mut stream = UnixStream::connect(cell.config().socket).unwrap();
        // An agent that turns a program away may have hung up before it is greeted; its words are still there to read.
        match stream.write_all(&local::client_greeting()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            greeted => greeted.unwrap(),
        }
        let mut greeting = [0; local::GREETING_BYTES];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(local::read_agent_greeting(greeting), Some(local::VERSION));
        Self(stream)
    }

    fn say(&mut self, frame_type: local::FrameType, body: &[u8]) {
        let mut frame = Vec::new();
        local::write_frame(&mut frame, frame_type, 7, body);
        self.0.write_all(&frame).unwrap();
    }

    fn hear(&mut self) -> (local::FrameType, Vec<u8>) {
        let mut header = [0; local::HEADER_BYTES];
        self.0.read_exact(&mut header).unwrap();
        let header = local::Header::decode(header).unwrap();
        assert_eq!(header.request, 7);
        let mut body = vec![0; header.body_bytes as usize];
        self.0.read_exact(&mut body).unwrap();
        (header.frame_type, body)
    }

    fn refused(&mut self, frame_type: local::FrameType, body: &[u8], code: &str) {
        self.say(frame_type, body);
        let (answer, body) = self.hear();
        assert_eq!(answer, local::FrameType::Error);
        let error: local::ErrorBody = serde_json::from_slice(&body).unwrap();
        assert_eq!(error.code, code, "{}", error.message);
    }
}

fn step_body(time: u64, values: [f32; 3]) -> Vec<u8> {
    let features: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut body = Vec::new();
    local::Step { monotonic_ns: time, reward: f32::NAN, intervention: false, features: &features }.encode(&mut body);
    body
}

#[test]
fn requests_that_make_no_sense_are_refused_by_their_code_and_the_recording_stays_open() {
    use local::FrameType::{Act, Begin, End, Progress, Step};
    let cell = Cell::new();
    let mut raw = Raw::connect(&cell);
    raw.refused(Step, &step_body(1, [0.0; 3]), "not-recording");
    raw.refused(End, br#"{"outcome":"success","end":"terminated"}"#, "not-recording");
    raw.refused(Progress, &[], "not-recording");
    raw.refused(Begin, b"{", "bad-request");
    let mut twisted = begin(BeginActor::Script);
    twisted.embodiment.features[1].shape = vec![0];
    raw.refused(Begin, &serde_json::to_vec(&twisted).unwrap(), "bad-embodiment");
    let skilled = begin(BeginActor::Skill { skill: "push".parse().unwrap() });
    raw.refused(Begin, &serde_json::to_vec(&skilled).unwrap(), "no-release");
    let plain = serde_json::to_vec(&begin(BeginActor::Script)).unwrap();
    raw.say(Begin, &plain);
    assert_eq!(raw.hear().0, local::FrameType::Begun);
    raw.refused(Begin, &plain, "already-recording");
    raw.refused(End, br#"{"outcome":"success","end":"terminated"}"#, "no-steps");
    raw.say(Begin, &plain);
    assert_eq!(raw.hear().0, local::FrameType::Begun);
    raw.refused(Step, &step_body(1, [0.0; 3])[..20], "wrong-size");
    raw.refused(Step, &[0; 3], "wrong-size");
    raw.refused(Step, &step_body(1, [0.0, f32::NAN, 0.0]), "not-a-number");
    raw.say(Step, &step_body(5, [0.0; 3]));
    raw.refused(Step, &step_body(5, [0.0; 3]), "time-not-increasing");
    raw.refused(Step, &step_body(u64::MAX, [0.0; 3]), "time-not-increasing");
    let mut act = Vec::new();
    let (skill, task) = ("push".parse().unwrap(), "push".parse().unwrap());
    local::Act { skill, task, first: true, observation: vec![0.0; 2] }.encode(&mut act);
    raw.refused(Act, &act, "no-release");
    raw.say(End, br#"{"outcome":"success","end":"terminated"}"#);
    let (answer, body) = raw.hear();
    assert_eq!(answer, local::FrameType::Ended);
    assert_eq!(serde_json::from_slice::<local::Ended>(&body).unwrap().steps, 1);
    let mut other = begin(BeginActor::Script);
    other.embodiment.name = "another".into();
    raw.refused(Begin, &serde_json::to_vec(&other).unwrap(), "bad-embodiment");
    raw.refused(Act, &act[..5], "bad-frame");
    assert_eq!(raw.0.read(&mut [0; 1]).unwrap(), 0, "after a bad frame the agent closes");
}

#[test]
fn programs_over_the_limit_are_told_so() {
    let cell = Cell::new();
    let mut connected: Vec<Raw> = (0..local_limit()).map(|_| Raw::connect(&cell)).collect();
    let mut one_more = Raw::connect(&cell);
    let mut header = [0; local::HEADER_BYTES];
    one_more.0.read_exact(&mut header).unwrap();
    assert_eq!(local::Header::decode(header).unwrap().frame_type, local::FrameType::Error);
    connected[0].say(local::FrameType::Echo, b"still here");
    assert_eq!(connected[0].hear().1, b"still here");
}

fn local_limit() -> usize {
    crate::local::CONNECTIONS_MAX
}

#[test]
fn a_second_agent_is_refused_by_name() {
    let cell = Cell::new();
    let error = Agent::start(&cell.config()).err().unwrap().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    let mut elsewhere = cell.config();
    elsewhere.data_dir = cell.folder.path().join("other");
    let error = Agent::start(&elsewhere).err().unwrap().to_string();
    assert!(error.contains("agent.sock"), "{error}");
}

#[test]
fn the_active_release_acts_and_a_recording_keeps_the_one_it_began_with() {
    let mut made = Made::new();
    let (first, second) = (made.publish(1, 0.0), made.publish(2, 5.0));
    let mut cell = Cell::with_releases(&made);
    let releases = cell.handle.as_ref().unwrap().releases.clone();
    let mut robot = cell.program();
    let mut other = cell.program();
    other.subscribe().unwrap();
    releases.assign(made.assign(1, &[&first]));
    // The first recording tells the agent which body it has.
    robot.begin(&begin(BeginActor::Script)).unwrap();
    assert_eq!(next_change(&mut other), (Some(1), None));
    step(&mut robot, 1);
    robot.end(Outcome::Unknown, EpisodeEnd::Terminated).unwrap();
    let (skill, task) = ("push".parse().unwrap(), "push".parse().unwrap());
    let begun = robot.begin(&begin(BeginActor::Skill { skill: "push".parse().unwrap() })).unwrap();
    assert_eq!(begun.release.unwrap().to_string(), "push@1");
    let values: Vec<f32> = [true, false, false, true]
        .into_iter()
        .map(|first| robot.act(&skill, &task, first, &[0.0, 0.0]).unwrap().values[0])
        .collect();
    assert_eq!(values, [0.0, 1.0, 0.0, 0.0], "a chunk is handed out action by action, and a first step begins anew");
    assert_eq!(code(&robot.act(&skill, &"weld".parse().unwrap(), true, &[0.0; 2]).unwrap_err()), "unknown-task");
    assert_eq!(code(&robot.act(&skill, &task, true, &[0.0; 3]).unwrap_err()), "wrong-observation");
    assert_eq!(code(&robot.act(&skill, &task, true, &[f32::NAN; 2]).unwrap_err()), "wrong-observation");
    let mut weld = begin(BeginActor::Skill { skill: "push".parse().unwrap() });
    weld.task = "weld".parse().unwrap();
    assert_eq!(code(&cell.program().begin(&weld).unwrap_err()), "unknown-task");

    // A newer release comes while the episode is open.
    releases.assign(made.assign(2, &[&second]));
    assert_eq!(next_change(&mut other), (Some(2), Some(1)));
    step(&mut robot, 1);
    assert_eq!(robot.act(&skill, &task, false, &[0.0; 2]).unwrap().release.version.0, 1);
    assert_eq!(other.act(&skill, &task, true, &[0.0; 2]).unwrap().values, [5.0]);
    robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    assert_eq!(robot.act(&skill, &task, true, &[0.0; 2]).unwrap().release.version.0, 2);
    // The status learns of it a moment after whoever acts, and nothing announces it.
    let since = activity::now();
    loop {
        let status = serde_json::to_value(cell.status()).unwrap();
        let active = crate::status::describe(&status).contains("push@2 active");
        if active && status["releases"][0]["release"] == "push@2" {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{status}");
        std::thread::sleep(Duration::from_millis(5));
    }
    cell.stop();
    cell.start();
    let mut robot = cell.program();
    assert_eq!(robot.act(&skill, &task, true, &[0.0; 2]).unwrap().values, [5.0], "it acts without a hub");
}

fn next_change(program: &mut Robot) -> (Option<u32>, Option<u32>) {
    let Event::ReleaseChanged { version, previous, .. } =
        program.poll_event(Duration::from_secs(60)).unwrap().expect("a release changes");
    (version.map(|version| version.0), previous.map(|version| version.0))
}

#[test]
fn numbers_are_answered_for_prometheus_until_the_agent_stops() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("robot.pem"), certificate()).unwrap();
    let mut config = config(folder.path());
    config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
    let handle = Agent::start(&config).unwrap();
    let address = handle.metrics.as_ref().unwrap().address();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: robot\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    assert!(body.contains("\nzunft_agent_episodes_waiting 0\n"), "{body}");
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once(' ').unwrap();
        assert!(name.starts_with("zunft_agent_") && value.parse::<f64>().is_ok(), "{line}");
    }
    handle.stop();
    assert!(std::net::TcpStream::connect(address).is_err(), "the port is closed");
}

#[test]
fn an_agent_with_a_key_says_that_its_spool_is_encrypted_and_one_that_others_can_read_is_refused() {
    let key = |folder: &Path, mode| {
        let path = folder.join("spool.key");
        std::fs::write(&path, "7d".repeat(32)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let mut cell = Cell::new();
    assert!(
        crate::status::describe(&serde_json::to_value(cell.status()).unwrap()).contains("at rest    not encrypted")
    );
    cell.stop();
    let mut config = cell.config();
    config.spool.encryption_key_file = Some(key(cell.folder.path(), 0o644));
    let Err(error) = Agent::start(&config) else { panic!("a key for everyone is none") };
    let text = crate::text::chain(&error);
    for said in ["spool.key", "spool.encryption_key_file", "chmod 600"] {
        assert!(text.contains(said), "{text}");
    }
    key(cell.folder.path(), 0o600);
    let handle = Agent::start(&config).unwrap();
    let mut robot = cell.program();
    robot.begin(&begin(BeginActor::Script)).unwrap();
    step(&mut robot, 1);
    robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
    let status = serde_json::to_value(handle.status()).unwrap();
    assert_eq!((&status["spool"]["encrypted"], &status["spool"]["episodes_waiting"]), (&true.into(), &1.into()));
    assert!(crate::status::describe(&status).contains("at rest    encrypted"));
    handle.stop();
    config.spool.encryption_key_file = None;
    let Err(error) = Agent::start(&config) else { panic!("what is encrypted needs its key") };
    let text = crate::text::chain(&error);
    for said in [".seg", "spool.encryption_key_file", "nothing was changed"] {
        assert!(text.contains(said), "{text}");
    }
}
