//! The daemon as a process that is killed in the middle of episodes: what it said was on disk is there.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail it by panicking, as the test itself does")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use zunft_agent::config::SpoolConfig;
use zunft_agent::identity;
use zunft_agent::spool::Spool;
use zunft_client::{Begin, BeginActor, Embodiment, EpisodeEnd, Feature, Outcome, Robot, Step, Truncation};
use zunft_protocol::Manifest;
use zunft_protocol::chunk::Chunk;

fn write_config(folder: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://zunft/tenant/acme/site/hall/robot/r1".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    std::fs::write(folder.join("robot.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let config = "data_dir = \"data\"\nsocket = \"agent.sock\"\n\n[hub]\ncertificate = \"robot.pem\"\n\n\
                  [spool]\nfree_bytes_min = 0\nsegment_bytes = 16777216\n";
    std::fs::write(folder.join("agent.toml"), config).unwrap();
}

/// Starts the daemon and waits until it says that it runs.
fn start(folder: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_zunft-agent"))
        .args(["run", "--config"])
        .arg(folder.join("agent.toml"))
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines {
        said.push(line.unwrap());
        if said.last().is_some_and(|line| line.contains("agent runs")) {
            return child;
        }
    }
    let status = child.wait().unwrap();
    panic!("the agent did not start ({status}): {said:#?}");
}

fn begin() -> Begin {
    let features = vec![Feature::vector("observation.state", 2), Feature::vector("action", 1)];
    let embodiment = Embodiment { name: "cell".into(), rate_hz: 20.0, features };
    Begin { task: "push".parse().unwrap(), embodiment, actor: BeginActor::Script }
}

fn step(robot: &mut Robot, time: u64) {
    let (state, action) = ([time as f32, 0.5], [1.0_f32]);
    let values = &[(&state).into(), (&action).into()];
    robot.step(&Step { monotonic_ns: time, reward: None, intervention: false, values }).unwrap();
}

#[test]
fn what_a_killed_agent_had_on_disk_comes_back_and_nothing_is_doubled() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let mut promised = Vec::new();
    for round in 1..=4_u64 {
        let mut child = start(folder.path());
        let mut robot = Robot::connect(folder.path().join("agent.sock")).unwrap();
        // A whole episode, acknowledged.
        robot.begin(&begin()).unwrap();
        for time in 1..=round * 10 {
            step(&mut robot, time);
        }
        let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
        promised.push((ended.recording, ended.steps, true));
        // An open one, of which something is on disk.
        let begun = robot.begin(&begin()).unwrap();
        let mut time = 0;
        let on_disk = loop {
            time += 1;
            step(&mut robot, time);
            let progress = robot.progress().unwrap();
            if progress.steps_on_disk >= round * 7 {
                break progress.steps_on_disk;
            }
        };
        promised.push((begun.recording, on_disk, false));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Whoever reads the spool back seals what was open.
    let identity = identity::read(&folder.path().join("robot.pem")).unwrap();
    let config = SpoolConfig { free_bytes_min: 0, segment_bytes: 16_777_216, ..SpoolConfig::default() };
    let spool = Spool::start(&folder.path().join("data/spool"), &config, identity).unwrap();
    let stored = spool.waiting(100, |_| false);
    assert_eq!(stored.len(), promised.len(), "every recording is one episode");
    for (index, (recording, steps, whole)) in promised.into_iter().enumerate() {
        let episode = &stored[index];
        let manifest = Manifest::decode(&spool.read_manifest(episode).unwrap()).unwrap();
        assert_eq!((manifest.recording, manifest.ordinal), (recording, index as u64));
        if whole {
            assert_eq!((manifest.steps, manifest.end), (steps, EpisodeEnd::Terminated));
        } else {
            assert!(manifest.steps >= steps, "{} steps of {steps} on disk", manifest.steps);
            assert_eq!(manifest.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped });
        }
        let mut expected = 1.0;
        for chunk in 0..episode.chunks().len() {
            let bytes = spool.read_chunk(episode, chunk).unwrap();
            let chunk = Chunk::decode(&bytes, &manifest.streams[0].schema).unwrap();
            for state in chunk.column_f32("observation.state").unwrap().chunks_exact(2) {
                assert_eq!(state[0], expected);
                expected += 1.0;
            }
        }
        assert_eq!(expected as u64, manifest.steps + 1, "every step once, in order");
    }
    spool.stop();
}
