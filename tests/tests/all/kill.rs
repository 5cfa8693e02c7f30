//! `kill -9` of agent and hub while robots record: what an agent called durable arrives, once and unaltered.
//!
//! `ZUNFT_KILLS` sets the number of kills, `ZUNFT_SEED` when and whom they hit.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use zunft_client::{Robot, Step, Values};
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::Truncation;
use zunft_protocol::ids::RecordingId;
use zunft_protocol::local::{Begin, BeginActor};
use zunft_protocol::{Embodiment, EpisodeEnd, EpisodeId, Outcome};

use crate::fleet::{Fleet, Stored};

const OBSERVATION_DIM: u32 = 12;
const ACTION_DIM: u32 = 3;

/// Robots that record at once while hub and agents are killed.
const ROBOTS: usize = 4;

/// Recordings of one robot never reach it: numbers of different robots never meet.
const NUMBERS_PER_ROBOT: u32 = 1_000_000;

/// Steps between two questions for how many of them survive a power cut.
const PROGRESS_EVERY: u64 = 40;

/// What the control program knows about one recording.
struct Recorded {
    /// Distinguishes the values of this recording from all others'.
    number: u32,
    /// Steps that the agent said survive a power cut.
    steps_on_disk: u64,
    /// Steps handed over, or at least tried to.
    steps_sent: u64,
    ending: Ending,
}

/// How far the end of a recording came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Nobody asked for it.
    Open,
    /// Asked for; the agent died before its answer arrived.
    Asked,
    /// The agent's word.
    Promised(EpisodeId),
}

fn body() -> Embodiment {
    Embodiment {
        name: "probe".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, OBSERVATION_DIM), Feature::vector(ACTION, ACTION_DIM)],
    }
}

/// Values from 1 to 2 that depend on their recording, step and place in every bit, so that any mix-up shows.
fn values(recording: u32, step: u64, len: u32) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64((u64::from(recording) << 32) ^ step);
    (0..len).map(|_| f32::from_bits(0x3f80_0000 | (rng.next_u32() >> 9))).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

type Records = BTreeMap<RecordingId, Recorded>;

/// Records so many steps of a new recording, resting between them; returns the steps that are on disk.
fn record_open(
    robot: &mut Robot,
    number: u32,
    steps: u64,
    rest: Duration,
    records: &mut Records,
) -> anyhow::Result<RecordingId> {
    let begin = Begin { task: "probe".parse()?, embodiment: body(), actor: BeginActor::Script };
    let begun = robot.begin(&begin)?;
    let known = Recorded { number, steps_on_disk: 0, steps_sent: 0, ending: Ending::Open };
    let known = records.entry(begun.recording).or_insert(known);
    for step in 0..steps {
        let (observation, action) = (values(number, step, OBSERVATION_DIM), values(number, step, ACTION_DIM));
        known.steps_sent += 1;
        robot.step(&Step {
            monotonic_ns: 1 + step * 20_000_000,
            reward: Some(0.0),
            intervention: false,
            values: &[Values::F32(&observation), Values::F32(&action)],
        })?;
        if step % PROGRESS_EVERY == PROGRESS_EVERY - 1 {
            known.steps_on_disk = robot.progress()?.steps_on_disk;
            thread::sleep(rest);
        }
    }
    let mut progress = robot.progress()?;
    assert_eq!(progress.steps_recorded, steps);
    // Some kills come before the first sync, some after the last.
    while number % 20 >= 10 && progress.steps_on_disk < steps {
        progress = robot.progress()?;
    }
    known.steps_on_disk = progress.steps_on_disk;
    Ok(begun.recording)
}

/// Records a whole episode.
fn record(robot: &mut Robot, number: u32, steps: u64, rest: Duration, records: &mut Records) -> anyhow::Result<()> {
    let recording = record_open(robot, number, steps, rest, records)?;
    let known = records.get_mut(&recording).unwrap();
    known.ending = Ending::Asked;
    let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated)?;
    assert_eq!((ended.recording, ended.steps), (recording, steps));
    known.ending = Ending::Promised(ended.episode);
    known.steps_on_disk = steps;
    Ok(())
}

/// What became of the recordings.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    lost: usize,
    doubled: usize,
    altered: usize,
    /// The first of them, in words.
    culprit: Option<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, doubled, altered, culprit } = self;
        write!(f, "lost {lost}, doubled {doubled}, altered {altered}")?;
        culprit.iter().try_for_each(|culprit| write!(f, "; the first: {culprit}"))
    }
}

impl Verdict {
    fn of(records: &Records, stored: &[Stored]) -> Self {
        let mut episodes: BTreeMap<RecordingId, Vec<&Stored>> = BTreeMap::new();
        for episode in stored {
            episodes.entry(episode.manifest.recording).or_default().push(episode);
        }
        let mut verdict = Self::default();
        for (recording, known) in records {
            let culprit = match episodes.remove(recording).unwrap_or_default().as_slice() {
                [] if known.steps_on_disk == 0 && !matches!(known.ending, Ending::Promised(_)) => continue,
                [] => {
                    verdict.lost += 1;
                    format!("recording {recording} with {} steps on disk is lost", known.steps_on_disk)
                }
                [found] => match known.differs(found) {
                    None => continue,
                    Some(difference) => {
                        verdict.altered += 1;
                        format!("recording {recording}: {difference}")
                    }
                },
                several => {
                    verdict.doubled += 1;
                    format!("recording {recording} has {} episodes", several.len())
                }
            };
            verdict.culprit.get_or_insert(culprit);
        }
        if let Some(recording) = episodes.keys().next() {
            verdict.altered += episodes.len();
            verdict.culprit.get_or_insert(format!("recording {recording} comes from nowhere"));
        }
        verdict
    }
}

impl Recorded {
    /// In what the hub's episode is not what the control program recorded, bit by bit.
    fn differs(&self, found: &Stored) -> Option<String> {
        let (manifest, steps) = (&found.manifest, found.manifest.steps);
        let whole =
            (manifest.end, manifest.outcome) == (EpisodeEnd::Terminated, Outcome::Success) && steps == self.steps_sent;
        let cut = (manifest.end, manifest.outcome)
            == (EpisodeEnd::Truncated { limit: Truncation::AgentStopped }, Outcome::Unknown);
        let ending = match self.ending {
            Ending::Promised(episode) => whole && manifest.id() == episode,
            Ending::Asked => whole || cut,
            Ending::Open => cut,
        };
        if !ending {
            return Some(format!("ended with {:?}, {:?} and {steps} steps", manifest.end, manifest.outcome));
        }
        if !(self.steps_on_disk..=self.steps_sent).contains(&steps) {
            return Some(format!("{steps} steps, of {} on disk and {} sent", self.steps_on_disk, self.steps_sent));
        }
        let expect = |len| (0..steps).flat_map(move |step| values(self.number, step, len)).map(f32::to_bits);
        let same = |found: &[f32], len| found.iter().map(|value| value.to_bits()).eq(expect(len));
        let unaltered = same(&found.observations, OBSERVATION_DIM) && same(&found.actions, ACTION_DIM);
        (!unaltered).then(|| "values were altered".to_owned())
    }
}

/// Compares, says so, and fails on any difference.
#[expect(clippy::print_stdout, reason = "the claims read the figures from the test's output")]
fn compare(kills: &str, seed: u64, records: &Records, stored: &[Stored]) {
    let verdict = Verdict::of(records, stored);
    let truncated = stored.iter().filter(|episode| episode.manifest.end != EpisodeEnd::Terminated).count();
    println!(
        "{kills}, seed {seed}: {} recordings, {} stored, {truncated} truncated; {verdict}",
        records.len(),
        stored.len()
    );
    assert_eq!(verdict, Verdict::default(), "seed {seed}");
    assert!(truncated > 0, "at least one open episode arrives marked truncated");
}

#[test]
fn kills_of_hub_and_agent_lose_double_and_alter_nothing() {
    let (kills, seed) = (number("ZUNFT_KILLS", 10), number("ZUNFT_SEED", 1));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut fleet = Fleet::start(1);
    let mut records = Records::new();
    let mut cut = 0;
    let rest = Duration::ZERO;
    for kill in 0..kills as u32 {
        for i in 0..rng.random_range(0..3) {
            record(&mut fleet.robot(0), kill * 10 + i, rng.random_range(1..200), rest, &mut records).unwrap();
        }
        if rng.random_bool(0.5) {
            // In the middle of an episode, at any point between two syncs.
            let mut robot = fleet.robot(0);
            record_open(&mut robot, kill * 10 + 9, rng.random_range(1..3000), rest, &mut records).unwrap();
            fleet.kill_agent(0);
            drop(robot);
            fleet.start_agent(0);
            cut += 1;
        } else {
            fleet.kill_hub();
            record(&mut fleet.robot(0), kill * 10 + 8, rng.random_range(1..200), rest, &mut records).unwrap();
            fleet.start_hub();
        }
    }
    assert!(cut > 0, "seed {seed} never killed the agent");
    fleet.wait_until_uploaded(0);
    compare(&format!("kills {kills} (agent {cut})"), seed, &records, &fleet.stored());
}

/// A control program that records episode after episode, whoever dies meanwhile.
fn control_program(socket: &Path, robot: u32, seed: u64, stop: &AtomicBool) -> Records {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (u64::from(robot) << 32));
    let mut records = Records::new();
    let mut number = robot * NUMBERS_PER_ROBOT;
    let go_on = || !stop.load(Ordering::Relaxed);
    while go_on() {
        // A refusal means that the agent is dead and will be back.
        if let Ok(mut robot) = Robot::connect(socket) {
            let mut lives = true;
            while lives && go_on() {
                let (steps, rest) = (rng.random_range(1..800), Duration::from_millis(rng.random_range(0..20)));
                lives = record(&mut robot, number, steps, rest, &mut records).is_ok();
                number += 1;
                thread::sleep(Duration::from_millis(rng.random_range(0..60)));
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    records
}

/// Kills at random moments and starts again: the hub, an agent, or both at once. Returns how many of each.
fn kill_at_random(fleet: &mut Fleet, kills: u64, rng: &mut ChaCha8Rng) -> (u64, u64) {
    let (mut hubs, mut agents) = (0, 0);
    while hubs + agents < kills {
        thread::sleep(Duration::from_millis(rng.random_range(0..800)));
        let (hub, agent) = (rng.random_bool(0.4), rng.random_range(0..ROBOTS));
        let both = rng.random_bool(0.1);
        if hub || both {
            fleet.kill_hub();
            hubs += 1;
        }
        if !hub || both {
            fleet.kill_agent(agent);
            agents += 1;
        }
        // Some come back at once, some let the others notice.
        thread::sleep(Duration::from_millis([0, 0, 100, 500][rng.random_range(0..4)]));
        if hub || both {
            fleet.start_hub();
        }
        if !hub || both {
            fleet.start_agent(agent);
        }
    }
    (hubs, agents)
}

#[test]
fn kills_at_random_moments_under_load_lose_double_and_alter_nothing() {
    let (kills, seed) = (number("ZUNFT_KILLS", 50), number("ZUNFT_SEED", 1));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut fleet = Fleet::start(ROBOTS);
    let sockets: Vec<_> = (0..ROBOTS).map(|robot| fleet.socket(robot)).collect();
    let stop = AtomicBool::new(false);
    let mut records = Records::new();
    let (hubs, agents) = thread::scope(|scope| {
        let program = |(robot, socket): (usize, &PathBuf)| {
            let stop = &stop;
            let socket = socket.clone();
            scope.spawn(move || control_program(&socket, robot as u32, seed, stop))
        };
        let programs: Vec<_> = sockets.iter().enumerate().map(program).collect();
        let killed = kill_at_random(&mut fleet, kills, &mut rng);
        stop.store(true, Ordering::Relaxed);
        programs.into_iter().for_each(|program| records.extend(program.join().unwrap()));
        killed
    });
    (0..ROBOTS).for_each(|robot| fleet.wait_until_uploaded(robot));
    let killed = format!("kills {} (hub {hubs}, agents {agents}, {ROBOTS} robots)", hubs + agents);
    compare(&killed, seed, &records, &fleet.stored());
}
