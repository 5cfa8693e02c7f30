//! The control program against a peer that plays an agent: what is recorded is what happened in the cell.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread::{self, JoinHandle},
    time::Duration,
};

use zunft_client::{BeginActor, Digest, EpisodeEnd, Outcome, Robot, SkillName, SkillVersion, Truncation};
use zunft_protocol::local::{
    self, Act, Action, Begin, Begun, End, Ended, ErrorBody, FrameType, GREETING_BYTES, HEADER_BYTES, Header, Step,
};
use zunft_sim::{
    Pilot, Purpose, Range, SimRobot, Start, Task, expert,
    observation::{ACTION_DIM, OBSERVATION_DIM},
    robot::RobotError,
    rollout,
};

/// A peer that does not go on fails the test by this time instead of hanging.
const STUCK: Option<Duration> = Some(Duration::from_secs(30));

/// What a played agent was told.
#[derive(Default)]
struct Told {
    begun: Vec<Begin>,
    steps: Vec<RecordedStep>,
    ended: Vec<End>,
    first_acts: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct RecordedStep {
    monotonic_ns: u64,
    reward: f32,
    features: Vec<f32>,
}

/// Plays an agent whose skill answers as `skill` says, until the robot hangs up.
fn robot_with_agent(skill: impl Fn(&Act) -> Vec<f32> + Send + 'static) -> (SimRobot, JoinHandle<Told>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(STUCK).unwrap();
    theirs.set_read_timeout(STUCK).unwrap();
    let agent = thread::spawn(move || play_agent(theirs, &skill));
    let mut client = Robot::greet(ours, Path::new("played agent")).unwrap();
    client.set_timeout(STUCK);
    (SimRobot::new(client), agent)
}

fn play_agent(mut stream: UnixStream, skill: &dyn Fn(&Act) -> Vec<f32>) -> Told {
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&local::answer_greeting(greeting).0).unwrap();
    let mut told = Told::default();
    let mut header = [0; HEADER_BYTES];
    while stream.read_exact(&mut header).is_ok() {
        let header = Header::decode(header).unwrap();
        let mut body = vec![0; header.body_bytes as usize];
        stream.read_exact(&mut body).unwrap();
        if let Some((frame_type, answer)) = told.answer(header.frame_type, &body, skill) {
            let mut frame = Vec::new();
            local::write_frame(&mut frame, frame_type, header.request, &answer);
            stream.write_all(&frame).unwrap();
        }
    }
    told
}

impl Told {
    fn answer(
        &mut self,
        frame_type: FrameType,
        body: &[u8],
        skill: &dyn Fn(&Act) -> Vec<f32>,
    ) -> Option<(FrameType, Vec<u8>)> {
        if frame_type == FrameType::Begin {
            let begin: Begin = serde_json::from_slice(body).unwrap();
            let release = match &begin.actor {
                BeginActor::Skill { skill } if skill.as_str() == "absent" => {
                    let refusal = ErrorBody { code: "no-release".into(), message: "absent has no release".into() };
                    return Some((FrameType::Error, serde_json::to_vec(&refusal).unwrap()));
                }
                BeginActor::Skill { skill } => Some(format!("{skill}@7").parse().unwrap()),
                BeginActor::Human | BeginActor::Script => None,
            };
            let recording = "0102030405060708090a0b0c0d0e0f10".parse().unwrap();
            let begun = Begun { recording, step_bytes: begin.embodiment.step_bytes() as u32, release };
            self.begun.push(begin);
            Some((FrameType::Begun, serde_json::to_vec(&begun).unwrap()))
        } else if frame_type == FrameType::Step {
            let step = Step::decode(body).unwrap();
            let numbers = step.features.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            let (monotonic_ns, reward) = (step.monotonic_ns, step.reward);
            self.steps.push(RecordedStep { monotonic_ns, reward, features: numbers.collect() });
            None
        } else if frame_type == FrameType::Act {
            let act = Act::decode(body).unwrap();
            self.first_acts += usize::from(act.first);
            let values = skill(&act);
            let manifest = Digest::from_bytes([9; 32]);
            let mut answer = Vec::new();
            Action { version: SkillVersion(7), manifest, values }.encode(&mut answer);
            Some((FrameType::Action, answer))
        } else {
            assert_eq!(frame_type, FrameType::End);
            self.ended.push(serde_json::from_slice(body).unwrap());
            let ended = Ended {
                recording: "0102030405060708090a0b0c0d0e0f10".parse().unwrap(),
                episode: "ab".repeat(32).parse().unwrap(),
                steps: self.steps.len() as u64,
                images_dropped: 0,
            };
            Some((FrameType::Ended, serde_json::to_vec(&ended).unwrap()))
        }
    }
}

fn start(task: Task) -> Start {
    Range::whole(task).start(7, Purpose::Demonstration { robot: 0 }, 0)
}

fn skill() -> Pilot {
    Pilot::Skill("handwork".parse::<SkillName>().unwrap())
}

fn expert_skill(act: &Act) -> Vec<f32> {
    let task: Task = act.task.as_str().parse().unwrap();
    expert::act(task, act.observation.as_slice().try_into().unwrap()).to_vec()
}

#[test]
fn demonstration_is_recorded_step_by_step_as_it_happened() {
    for task in Task::ALL {
        let (mut robot, agent) = robot_with_agent(|_| unreachable!("an expert asks nobody"));
        let report = robot.run_episode(&start(task), &Pilot::Demonstration).unwrap();
        drop(robot);
        let told = agent.join().unwrap();

        let mut expected = Vec::new();
        let run = rollout::demonstrate(&start(task), |step| expected.push(*step)).unwrap();
        assert_eq!((report.end, report.steps, report.release), (run.end, run.steps, None));
        assert_eq!(told.begun[0].task.as_str(), task.name());
        assert_eq!(told.begun[0].actor, BeginActor::Script);
        assert_eq!(told.steps.len(), expected.len());
        for (recorded, expected) in told.steps.iter().zip(&expected) {
            assert_eq!(recorded.features[..OBSERVATION_DIM], expected.observation);
            assert_eq!(recorded.features[OBSERVATION_DIM..], expected.action);
            assert_eq!(recorded.reward, expected.reward);
        }
        assert!(told.steps.is_sorted_by(|earlier, later| earlier.monotonic_ns < later.monotonic_ns));
        assert_eq!(told.ended, [End { outcome: Outcome::Success, end: EpisodeEnd::Terminated }]);
    }
}

#[test]
fn skill_acts_in_lock_step_with_the_cell() {
    let (mut robot, agent) = robot_with_agent(expert_skill);
    let report = robot.run_episode(&start(Task::PickPlace), &skill()).unwrap();
    drop(robot);
    let told = agent.join().unwrap();

    let run = rollout::rollout(&start(Task::PickPlace), |observation| {
        expert::act(Task::PickPlace, observation.try_into().unwrap())
    })
    .unwrap();
    assert_eq!((report.end, report.steps, report.reward), (run.end, run.steps, run.reward));
    assert_eq!(report.release.unwrap().to_string(), "handwork@7");
    assert_eq!(report.act_latencies.len(), run.steps as usize);
    assert_eq!(told.first_acts, 1);
}

#[test]
fn what_is_recorded_is_what_was_carried_out_not_what_was_asked_beyond_the_limits() {
    let (mut robot, agent) = robot_with_agent(|_| vec![9.0, -9.0, 0.1, 2.0]);
    let report = robot.run_episode(&start(Task::WeldSeam), &skill()).unwrap();
    drop(robot);
    let told = agent.join().unwrap();
    assert!(!report.end.success());
    assert_eq!(told.steps[0].features[OBSERVATION_DIM..], [0.2, -0.2, 0.1, 1.0]);
    assert_eq!(told.ended[0].outcome, Outcome::Failure);
}

#[test]
fn step_limit_is_recorded_as_truncated() {
    let (mut robot, agent) = robot_with_agent(|_| vec![0.0; ACTION_DIM]);
    robot.run_episode(&start(Task::Push), &skill()).unwrap();
    drop(robot);
    let end = EpisodeEnd::Truncated { limit: Truncation::StepLimit };
    assert_eq!(agent.join().unwrap().ended, [End { outcome: Outcome::Failure, end }]);
}

#[test]
fn bad_answer_of_a_skill_aborts_the_episode_and_the_robot_goes_on() {
    let (mut robot, agent) = robot_with_agent(|act| match act.task.as_str() {
        "push" => vec![0.0, f32::NAN, 0.0, 0.0],
        _ => vec![0.0; 3],
    });
    let nan = robot.run_episode(&start(Task::Push), &skill()).unwrap_err();
    assert!(matches!(nan, RobotError::Act(_)), "{nan:?}");
    let short = robot.run_episode(&start(Task::PickPlace), &skill()).unwrap_err();
    assert!(matches!(short, RobotError::Act(_)), "{short:?}");
    assert!(robot.run_episode(&start(Task::Push), &Pilot::Expert).unwrap().end.success());
    drop(robot);
    let told = agent.join().unwrap();
    assert!(matches!(told.ended[0].end, EpisodeEnd::Aborted { .. }));
    assert_eq!(told.ended.len(), 3);
}

#[test]
fn refused_beginning_is_told_with_the_agents_reason() {
    let (mut robot, agent) = robot_with_agent(expert_skill);
    let pilot = Pilot::Skill("absent".parse().unwrap());
    let error = robot.run_episode(&start(Task::Push), &pilot).unwrap_err();
    let RobotError::Call(cause) = error else { panic!("{error:?}") };
    assert_eq!(cause.to_string(), "BEGIN was refused: absent has no release (no-release)");
    drop(robot);
    agent.join().unwrap();
}
