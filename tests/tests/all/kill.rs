//! `kill -9` of agent and hub while a robot records: what the agent called durable arrives, once and unaltered.
//!
//! `ZUNFT_KILLS` sets the number of kills, `ZUNFT_SEED` when and whom they hit.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use zunft_client::{Step, Values};
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::episode::Truncation;
use zunft_protocol::ids::RecordingId;
use zunft_protocol::local::{Begin, BeginActor};
use zunft_protocol::{Embodiment, EpisodeEnd, EpisodeId, Outcome};

use crate::fleet::{Fleet, Stored};

const OBSERVATION_DIM: u32 = 12;
const ACTION_DIM: u32 = 3;

/// What the control program knows about one recording.
struct Recorded {
    /// Distinguishes the values of this recording from all others'.
    number: u32,
    /// Steps that the agent said survive a power cut.
    steps_on_disk: u64,
    /// Steps handed over.
    steps_sent: u64,
    /// The agent's word at the end, if it lived to give it.
    ended: Option<EpisodeId>,
}

fn body() -> Embodiment {
    Embodiment {
        name: "probe".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, OBSERVATION_DIM), Feature::vector(ACTION, ACTION_DIM)],
    }
}

/// Values that name their recording, step and place, so that any mix-up shows.
fn values(recording: u32, step: u64, len: u32) -> Vec<f32> {
    (0..len).map(|i| recording as f32 * 1000.0 + step as f32 + i as f32 / 64.0).collect()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Records `steps` steps and ends, unless `stop_before_end`; errors mean that the agent died.
fn record(
    fleet: &Fleet,
    number: u32,
    steps: u64,
    stop_before_end: bool,
    recorded: &mut BTreeMap<RecordingId, Recorded>,
) -> zunft_client::Robot {
    let mut robot = fleet.robot(0);
    let begin = Begin { task: "probe".parse().unwrap(), embodiment: body(), actor: BeginActor::Script };
    let begun = robot.begin(&begin).unwrap();
    let entry =
        recorded.entry(begun.recording).or_insert(Recorded { number, steps_on_disk: 0, steps_sent: 0, ended: None });
    for step in 0..steps {
        let (observation, action) = (values(number, step, OBSERVATION_DIM), values(number, step, ACTION_DIM));
        robot
            .step(&Step {
                monotonic_ns: 1 + step * 20_000_000,
                reward: Some(0.0),
                intervention: false,
                values: &[Values::F32(&observation), Values::F32(&action)],
            })
            .unwrap();
        entry.steps_sent += 1;
    }
    let mut progress = robot.progress().unwrap();
    assert_eq!(progress.steps_recorded, steps);
    // Some kills come before the first sync, some after the last.
    while number % 20 >= 10 && progress.steps_on_disk < steps {
        progress = robot.progress().unwrap();
    }
    entry.steps_on_disk = progress.steps_on_disk;
    if !stop_before_end {
        let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated).unwrap();
        assert_eq!((ended.recording, ended.steps), (begun.recording, steps));
        entry.ended = Some(ended.episode);
        entry.steps_on_disk = steps;
    }
    robot
}

fn compare(recorded: &BTreeMap<RecordingId, Recorded>, stored: &BTreeMap<RecordingId, Stored>) {
    for (recording, known) in recorded {
        let Some(found) = stored.get(recording) else {
            assert_eq!((known.steps_on_disk, known.ended), (0, None), "recording {recording} is lost");
            continue;
        };
        if let Some(episode) = known.ended {
            assert_eq!(found.manifest.id(), episode, "another episode than the agent promised");
            assert_eq!(found.manifest.end, EpisodeEnd::Terminated);
        } else {
            assert_eq!(found.manifest.end, EpisodeEnd::Truncated { limit: Truncation::AgentStopped });
            assert_eq!(found.manifest.outcome, Outcome::Unknown);
        }
        let steps = found.manifest.steps;
        assert!((known.steps_on_disk..=known.steps_sent).contains(&steps), "{steps} steps of {}", known.steps_on_disk);
        let expect = |len| (0..steps).flat_map(|step| values(known.number, step, len)).collect::<Vec<f32>>();
        assert_eq!(found.observations, expect(OBSERVATION_DIM), "recording {recording} was altered");
        assert_eq!(found.actions, expect(ACTION_DIM), "recording {recording} was altered");
    }
    for recording in stored.keys() {
        assert!(recorded.contains_key(recording), "recording {recording} comes from nowhere");
    }
}

#[test]
fn kills_of_hub_and_agent_lose_double_and_alter_nothing() {
    let (kills, seed) = (number("ZUNFT_KILLS", 10), number("ZUNFT_SEED", 1));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut fleet = Fleet::start(1);
    let mut recorded = BTreeMap::new();
    let mut cut = 0;
    for kill in 0..kills as u32 {
        for i in 0..rng.random_range(0..3) {
            drop(record(&fleet, kill * 10 + i, rng.random_range(1..200), false, &mut recorded));
        }
        if rng.random_bool(0.5) {
            // In the middle of an episode, at any point between two syncs.
            let open = record(&fleet, kill * 10 + 9, rng.random_range(1..3000), true, &mut recorded);
            fleet.kill_agent(0);
            drop(open);
            fleet.start_agent(0);
            cut += 1;
        } else {
            fleet.kill_hub();
            drop(record(&fleet, kill * 10 + 8, rng.random_range(1..200), false, &mut recorded));
            fleet.start_hub();
        }
    }
    assert!(cut > 0, "seed {seed} never killed the agent");
    fleet.wait_until_uploaded(0);
    let stored = fleet.stored();
    compare(&recorded, &stored);
    let truncated = stored.values().filter(|episode| episode.manifest.end != EpisodeEnd::Terminated).count();
    println!(
        "kills {kills} (agent {cut}), seed {seed}: {} recordings, {} stored, {truncated} truncated; lost 0, doubled 0, altered 0",
        recorded.len(),
        stored.len()
    );
    assert!(truncated > 0, "at least one open episode arrives marked truncated");
}
