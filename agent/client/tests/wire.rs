//! The client against a peer that plays an agent by script: every byte in either direction is written out here.

#![expect(clippy::unwrap_used, reason = "a script that does not play out fails the test")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use zunft_client::{
    AbortReason, Begin, BeginActor, CallError, ConnectError, Data, Embodiment, Encoding, EpisodeEnd, Event, Feature,
    Outcome, Robot, SkillVersion, Step, StepError, monotonic_ns,
};

const GREETING: [u8; 8] = *b"ZLCL\x01\0\x01\0";
const GREETING_ANSWER: [u8; 8] = *b"ZLCL\x01\0\0\0";
const RECORDING: &str = "0102030405060708090a0b0c0d0e0f10";
const BEGIN_JSON: &str = concat!(
    r#"{"task":"push","embodiment":{"name":"arm","rate_hz":20.0,"features":["#,
    r#"{"name":"observation.state","dtype":"f32","shape":[2],"names":[],"units":[],"min":[],"max":[]},"#,
    r#"{"name":"action","dtype":"f32","shape":[1],"names":[],"units":[],"min":[],"max":[]}]},"actor":"script"}"#
);
const END_JSON: &[u8] = br#"{"outcome":"unknown","end":"terminated"}"#;
/// A script that does not fit the client fails by this time instead of hanging.
const STUCK: Option<Duration> = Some(Duration::from_secs(30));

#[test]
fn episode_is_recorded_with_the_documented_bytes() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(1, 1, BEGIN_JSON.as_bytes()));
        agent.send(&frame(129, 1, begun().as_bytes()));
        agent.expect(&[
            2, 0, 0, 0, // STEP, flags
            0, 0, 0, 0x80, // request: the first step
            28, 0, 0, 0, // length
            0, 0, 0, 0, // reserved
            2, 1, 0, 0, 0, 0, 0, 0, // monotonic_ns
            0, 0, 0x80, 0x3f, // reward 1.0
            1, 0, 0, 0, // a person had taken over
            0, 0, 0x80, 0x3f, // observation.state: 1.0
            0, 0, 0, 0xc0, // -2.0
            0, 0, 0, 0x3f, // action: 0.5
        ]);
        agent.expect(&[
            2, 0, 0, 0, 1, 0, 0, 0x80, 28, 0, 0, 0, 0, 0, 0, 0, // the second step
            3, 1, 0, 0, 0, 0, 0, 0, // monotonic_ns
            0, 0, 0xc0, 0x7f, // no reward
            0, 0, 0, 0, // no flags
            0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0, 0, 0x3f,
        ]);
        agent.expect(&frame(4, 2, b""));
        agent.send(&frame(132, 2, &[2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
        agent.expect(&frame(3, 3, br#"{"outcome":"success","end":{"aborted":{"reason":"safety"}}}"#));
        agent.send(&frame(131, 3, ended(2).as_bytes()));
    });
    let begun = robot.begin(&begin()).unwrap();
    assert_eq!((begun.recording.to_string().as_str(), begun.step_bytes), (RECORDING, 12));
    robot.step(&step(258, Some(1.0), true)).unwrap();
    robot.step(&step(259, None, false)).unwrap();
    let progress = robot.progress().unwrap();
    assert_eq!((progress.steps_recorded, progress.steps_on_disk), (2, 1));
    let end = EpisodeEnd::Aborted { reason: AbortReason::Safety };
    assert_eq!(robot.end(Outcome::Success, end).unwrap().steps, 2);
    agent.join().unwrap();
}

/// A body with two cameras and a force sensor around the arm's own features.
fn begin_with_streams() -> Begin {
    let mut begin = begin();
    let force = Feature { rate_hz: Some(500.0), ..Feature::vector("observation.force", 2) };
    begin.embodiment.features.insert(0, Feature::camera("top", 1, 2, 30.0, Encoding::Jpeg));
    begin.embodiment.features.push(Feature::camera("side", 480, 640, 30.0, Encoding::H264));
    begin.embodiment.features.push(force);
    begin
}

#[test]
fn samples_are_sent_with_the_documented_bytes_and_a_refused_one_is_told_by_name() {
    let sample = |request: u32, time: u8, feature: u8, flags: u8, bytes: &[u8]| {
        let mut body = vec![time, 0, 0, 0, 0, 0, 0, 0, feature, 0, 0, 0, flags, 0, 0, 0];
        body.extend_from_slice(bytes);
        frame(9, request, &body)
    };
    let (mut robot, agent) = robot_and_agent(move |agent| {
        agent.skip(16 + serde_json::to_vec(&begin_with_streams()).unwrap().len());
        agent.send(&frame(129, 1, begun().as_bytes()));
        agent.expect(&sample(0xc000_0000, 1, 0, 1, &[0xff, 0xd8]));
        agent.expect(&sample(0xc000_0001, 2, 0, 3, &[1, 2, 3, 4, 5, 6]));
        agent.expect(&sample(0xc0c0_0000, 2, 3, 0, &[7]));
        agent.expect(&sample(0xc0c0_0001, 3, 3, 1, &[8, 9]));
        agent.expect(&sample(0xc100_0000, 2, 4, 0, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]));
        agent.send(&frame(255, 0xc0c0_0001, br#"{"code":"time-not-increasing","message":"too early"}"#));
        agent.expect(&frame(4, 2, b""));
        agent.send(&frame(132, 2, &[0; 16]));
    });
    robot.begin(&begin_with_streams()).unwrap();
    let (top, side, force) = ("observation.images.top", "observation.images.side", "observation.force");
    robot.sample(top, 1, Data::Jpeg(&[0xff, 0xd8])).unwrap();
    robot.sample(top, 2, Data::Raw(&[1, 2, 3, 4, 5, 6])).unwrap();
    robot.sample(side, 2, Data::H264 { access_unit: &[7], key_frame: false }).unwrap();
    robot.sample(side, 3, Data::H264 { access_unit: &[8, 9], key_frame: true }).unwrap();
    robot.sample(force, 2, Data::Values((&[1.0_f32, 2.0]).into())).unwrap();
    let wrong = |robot: &mut Robot, stream: &str, data| robot.sample(stream, 9, data).unwrap_err().to_string();
    assert_eq!(
        wrong(&mut robot, "action", Data::Jpeg(&[])),
        "feature \"action\" is no stream of its own in this embodiment; it has observation.images.top, observation.images.side, observation.force"
    );
    assert_eq!(
        wrong(&mut robot, side, Data::Jpeg(&[])),
        "a sample of \"observation.images.side\" is to be an access unit of H.264"
    );
    assert!(wrong(&mut robot, top, Data::Raw(&[0; 5])).contains("height x width x channels"));
    assert!(wrong(&mut robot, force, Data::Values((&[1.0_f64]).into())).contains("takes 2 values of F32"));
    let Err(CallError::StepsRefused { count: 1, first, ended: None }) = robot.progress() else { panic!() };
    assert_eq!(first.to_string(), "observation.images.side 1 was refused: too early (time-not-increasing)");
    agent.join().unwrap();
}

#[test]
fn act_carries_the_observation_and_tells_which_release_answered() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&[
            5, 0, 0, 0, 1, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, // ACT
            4, 0, b'p', b'u', b's', b'h', // skill
            1, 0, b't', // task
            1, 0, 0, 0, // first step
            2, 0, 0, 0, 0, 0, 0x80, 0x3f, 0, 0, 0, 0x40, // two values
        ]);
        let mut action = vec![7, 0, 0, 0];
        action.extend([9; 32]);
        action.extend([1, 0, 0, 0, 0, 0, 0, 0x3f]);
        agent.send(&frame(133, 1, &action));
    });
    let action = robot.act(&"push".parse().unwrap(), &"t".parse().unwrap(), true, &[1.0, 2.0]).unwrap();
    assert_eq!(action.release.to_string(), "push@7");
    assert_eq!(action.manifest.as_bytes(), &[9; 32]);
    assert_eq!(action.values, [0.5]);
    agent.join().unwrap();
}

#[test]
fn step_of_the_wrong_size_is_never_sent() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(1, 1, BEGIN_JSON.as_bytes()));
        agent.send(&frame(129, 1, begun().as_bytes()));
        agent.expect_end();
    });
    assert!(matches!(robot.step(&step(1, None, false)), Err(StepError::NotRecording)));
    robot.begin(&begin()).unwrap();
    let wrong = |robot: &mut Robot, values: &[zunft_client::Values<'_>]| {
        robot.step(&Step { monotonic_ns: 1, reward: None, intervention: false, values }).unwrap_err().to_string()
    };
    assert_eq!(
        wrong(&mut robot, &[(&[1.0_f32, 2.0]).into()]),
        "the step has 1 features; the embodiment has 2: give one array each, in its order"
    );
    assert_eq!(
        wrong(&mut robot, &[(&[1.0_f32, 2.0]).into(), (&[1.0_f64]).into()]),
        "feature \"action\" takes 1 values of F32; the step gives 1 of F64"
    );
    drop(robot);
    agent.join().unwrap();
}

#[test]
fn refused_step_is_told_once_by_the_next_progress_and_can_be_taken() {
    let refusal = |request: u32| {
        frame(255, request, br#"{"code":"time-not-increasing","message":"259 ns is not later than 259 ns"}"#)
    };
    let (mut robot, agent) = robot_and_agent(move |agent| {
        agent.expect(&frame(1, 1, BEGIN_JSON.as_bytes()));
        agent.send(&frame(129, 1, begun().as_bytes()));
        agent.skip(2 * 44);
        agent.send(&refusal(0x8000_0001));
        agent.expect(&frame(4, 2, b""));
        agent.send(&frame(132, 2, &[0; 16]));
        agent.expect(&frame(4, 3, b""));
        agent.send(&frame(132, 3, &[0; 16]));
        agent.skip(44);
        agent.send(&refusal(0x8000_0002));
        agent.expect(&frame(8, 4, b"x"));
        agent.send(&frame(136, 4, b"x"));
        agent.skip(44);
        agent.send(&refusal(0x8000_0003));
        agent.expect(&frame(3, 5, END_JSON));
        agent.send(&frame(131, 5, ended(1).as_bytes()));
    });
    robot.begin(&begin()).unwrap();
    robot.step(&step(259, None, false)).unwrap();
    robot.step(&step(259, None, false)).unwrap();
    let Err(CallError::StepsRefused { count: 1, first, ended: None }) = robot.progress() else { panic!() };
    assert_eq!(first.to_string(), "step 1 was refused: 259 ns is not later than 259 ns (time-not-increasing)");
    robot.progress().unwrap();
    robot.step(&step(259, None, false)).unwrap();
    assert_eq!(robot.echo(b"x").unwrap(), b"x");
    let taken = robot.take_refusals().unwrap();
    assert_eq!(taken.iter().map(|refusal| refusal.step).collect::<Vec<_>>(), [2]);
    robot.step(&step(259, None, false)).unwrap();
    let ended = robot.end(Outcome::Unknown, EpisodeEnd::Terminated);
    let Err(CallError::StepsRefused { count: 1, ended: Some(ended), .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(ended.steps, 1);
    agent.join().unwrap();
}

#[test]
fn agent_that_refuses_every_step_of_a_long_recording_never_blocks_it() {
    const STEPS: u64 = 20_000;
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(1, 1, BEGIN_JSON.as_bytes()));
        agent.send(&frame(129, 1, begun().as_bytes()));
        for step in 0..STEPS as u32 {
            agent.skip(44);
            agent.send(&frame(255, 0x8000_0000 | step, br#"{"code":"disk-error","message":"the disk is gone"}"#));
        }
        agent.expect(&frame(3, 2, END_JSON));
        agent.send(&frame(255, 2, br#"{"code":"not-recording","message":"no recording is open"}"#));
    });
    robot.begin(&begin()).unwrap();
    for at in 0..STEPS {
        robot.step(&step(at, None, false)).unwrap();
    }
    let ended = robot.end(Outcome::Unknown, EpisodeEnd::Terminated);
    let Err(CallError::StepsRefused { count: STEPS, first, ended: None }) = ended else { panic!("{ended:?}") };
    assert_eq!((first.step, first.code.as_str()), (0, "disk-error"));
    agent.join().unwrap();
}

#[test]
fn events_arrive_between_answers_and_unknown_ones_are_passed_over() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(7, 1, b""));
        agent.send(&frame(135, 1, b""));
        agent.expect(&frame(6, 2, b""));
        agent.send(&frame(192, 1, br#"{"event":"release-changed","skill":"push","version":8,"previous":7}"#));
        agent.send(&frame(192, 1, br#"{"event":"battery-low"}"#));
        agent.send(&frame(134, 2, br#"{"robot":"r1","new":true}"#));
        agent.expect(&frame(6, 3, b""));
        agent.send(&frame(192, 1, br#"{"event":"release-changed","skill":"push","version":null,"previous":8}"#));
        agent.send(&frame(134, 3, br#"{"robot":"r1"}"#));
        agent.expect_end();
    });
    robot.subscribe().unwrap();
    assert_eq!(robot.status().unwrap()["robot"], "r1");
    robot.status().unwrap();
    let skill: zunft_client::SkillName = "push".parse().unwrap();
    let changed = |version: Option<u32>, previous: u32| Event::ReleaseChanged {
        skill: skill.clone(),
        version: version.map(SkillVersion),
        previous: Some(SkillVersion(previous)),
    };
    assert_eq!(robot.poll_event(Duration::ZERO).unwrap(), Some(changed(Some(8), 7)));
    assert_eq!(robot.poll_event(Duration::ZERO).unwrap(), Some(changed(None, 8)));
    assert_eq!(robot.poll_event(Duration::from_millis(1)).unwrap(), None);
    drop(robot);
    agent.join().unwrap();
}

#[test]
fn late_answer_is_dropped_and_the_next_call_gets_its_own() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(8, 1, b"late"));
        agent.expect(&frame(8, 2, b"next"));
        agent.send(&frame(136, 1, b"late"));
        agent.send(&frame(136, 2, b"next"));
    });
    robot.set_timeout(Some(Duration::from_millis(1)));
    assert!(matches!(robot.echo(b"late"), Err(CallError::TimedOut { call: "ECHO" })));
    robot.set_timeout(STUCK);
    assert_eq!(robot.echo(b"next").unwrap(), b"next");
    agent.join().unwrap();
}

#[test]
fn recording_in_doubt_after_a_timeout_makes_the_connection_useless() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(1, 1, BEGIN_JSON.as_bytes()));
        agent.expect_end();
    });
    robot.set_timeout(Some(Duration::from_millis(1)));
    assert!(matches!(robot.begin(&begin()), Err(CallError::TimedOut { call: "BEGIN" })));
    assert!(matches!(robot.status(), Err(CallError::Failed)));
    drop(robot);
    agent.join().unwrap();
}

#[test]
fn refused_calls_carry_the_agents_code_and_message() {
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(3, 1, END_JSON));
        agent.send(&frame(255, 1, br#"{"code":"not-recording","message":"no recording is open"}"#));
        agent.expect(&frame(6, 2, b""));
        agent.send(&frame(255, 0, br#"{"code":"bad-frame","message":"unknown frame type 77"}"#));
    });
    let error = robot.end(Outcome::Unknown, EpisodeEnd::Terminated).unwrap_err();
    assert_eq!(error.to_string(), "END was refused: no recording is open (not-recording)");
    let error = robot.status().unwrap_err();
    assert_eq!(error.to_string(), "STATUS was refused: unknown frame type 77 (bad-frame)");
    assert!(matches!(robot.status(), Err(CallError::Failed)));
    agent.join().unwrap();
}

#[test]
fn agent_that_goes_away_or_talks_nonsense_is_an_error_not_a_hang() {
    let (mut robot, agent) = robot_and_agent(|agent| agent.expect(&frame(6, 1, b"")));
    assert!(matches!(robot.status(), Err(CallError::Closed)));
    agent.join().unwrap();
    let (mut robot, agent) = robot_and_agent(|agent| {
        agent.expect(&frame(6, 1, b""));
        agent.send(&[77; 16]);
        agent.expect_end();
    });
    assert!(matches!(robot.status(), Err(CallError::Frame(_))));
    assert!(matches!(robot.status(), Err(CallError::Failed)));
    drop(robot);
    agent.join().unwrap();
}

#[test]
fn connecting_says_what_to_do_when_it_fails() {
    let error = Robot::connect("/nonexistent/agent.sock").unwrap_err();
    assert!(matches!(error, ConnectError::NoAgent { .. }));
    assert!(error.to_string().contains("zunft-agent run --config agent.toml"), "{error}");
    let greeted_with = |answer: [u8; 8]| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&answer).unwrap();
        Robot::greet(ours, Path::new("agent.sock")).unwrap_err()
    };
    assert!(matches!(greeted_with(*b"ZLCL\0\0\0\0"), ConnectError::VersionRefused { .. }));
    assert!(matches!(greeted_with(*b"HTTP/1.1"), ConnectError::NotAnAgent { .. }));
}

#[test]
fn agent_that_turns_a_program_away_is_heard() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&GREETING_ANSWER).unwrap();
    theirs.write_all(&frame(255, 0, br#"{"code":"busy","message":"too many programs"}"#)).unwrap();
    drop(theirs);
    let mut robot = Robot::greet(ours, Path::new("agent.sock")).unwrap();
    assert_eq!(robot.status().unwrap_err().to_string(), "STATUS was refused: too many programs (busy)");
}

#[test]
fn monotonic_clock_moves_forward() {
    let before = monotonic_ns();
    assert!(before > 0 && monotonic_ns() >= before);
}

/// The agent's end of the socket.
struct ScriptedAgent(UnixStream);

impl ScriptedAgent {
    fn expect(&mut self, bytes: &[u8]) {
        let mut found = vec![0; bytes.len()];
        self.0.read_exact(&mut found).unwrap();
        assert_eq!(found, bytes, "{}", String::from_utf8_lossy(&found));
    }

    fn skip(&mut self, bytes: usize) {
        self.0.read_exact(&mut vec![0; bytes]).unwrap();
    }

    fn expect_end(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }
}

fn robot_and_agent(script: impl FnOnce(&mut ScriptedAgent) + Send + 'static) -> (Robot, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(STUCK).unwrap();
    let agent = thread::spawn(move || {
        let mut agent = ScriptedAgent(theirs);
        agent.expect(&GREETING);
        agent.send(&GREETING_ANSWER);
        script(&mut agent);
    });
    let mut robot = Robot::greet(ours, Path::new("scripted")).unwrap();
    robot.set_timeout(STUCK);
    (robot, agent)
}

fn frame(frame_type: u8, request: u32, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![frame_type, 0, 0, 0];
    frame.extend(request.to_le_bytes());
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend([0; 4]);
    frame.extend(body);
    frame
}

fn begun() -> String {
    format!(r#"{{"recording": "{RECORDING}", "step_bytes": 12}}"#)
}

fn ended(steps: u64) -> String {
    format!(r#"{{"recording": "{RECORDING}", "episode": "{}", "steps": {steps}}}"#, "ab".repeat(32))
}

fn begin() -> Begin {
    Begin {
        task: "push".parse().unwrap(),
        embodiment: Embodiment {
            name: "arm".into(),
            rate_hz: 20.0,
            features: vec![Feature::vector("observation.state", 2), Feature::vector("action", 1)],
        },
        actor: BeginActor::Script,
    }
}

fn step(monotonic_ns: u64, reward: Option<f32>, intervention: bool) -> Step<'static> {
    const VALUES: &[zunft_client::Values<'static>] =
        &[zunft_client::Values::F32(&[1.0, -2.0]), zunft_client::Values::F32(&[0.5])];
    Step { monotonic_ns, reward, intervention, values: VALUES }
}
