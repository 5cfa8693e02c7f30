//! Episodes to upload: random numbers, which nothing makes smaller.

use std::path::Path;
use std::thread;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use zunft_client::{Robot, Step, Values};
use zunft_protocol::embodiment::{ACTION, Feature, OBSERVATION_STATE};
use zunft_protocol::local::{Begin, BeginActor};
use zunft_protocol::{Embodiment, EpisodeEnd, Outcome};

/// Numbers of one step.
const OBSERVATION_DIM: usize = 2048;

/// Bytes of one step's observation.
pub(crate) const STEP_BYTES: usize = OBSERVATION_DIM * 4;

/// Control programs at once: each end of an episode waits for the disk.
const PROGRAMS: u64 = 8;

/// Records so many episodes of about so many bytes through the agent's socket.
pub(crate) fn record(socket: &Path, episodes: u64, episode_bytes: u64) -> anyhow::Result<()> {
    super::eventually(|| Robot::connect(socket).ok())?;
    thread::scope(|scope| {
        let programs: Vec<_> = (0..PROGRAMS)
            .map(|program| {
                let share = (program..episodes).step_by(PROGRAMS as usize).count() as u64;
                scope.spawn(move || record_share(socket, program, share, episode_bytes))
            })
            .collect();
        programs.into_iter().try_for_each(|program| program.join().map_err(|_| anyhow::anyhow!("a recorder failed"))?)
    })
}

fn record_share(socket: &Path, program: u64, episodes: u64, episode_bytes: u64) -> anyhow::Result<()> {
    let mut robot = Robot::connect(socket)?;
    let mut rng = SmallRng::seed_from_u64(program);
    let embodiment = Embodiment {
        name: "bench".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, OBSERVATION_DIM as u32), Feature::vector(ACTION, 1)],
    };
    let begin = Begin { task: "bench".parse()?, embodiment, actor: BeginActor::Script };
    for _ in 0..episodes {
        robot.begin(&begin)?;
        for step in 0..episode_bytes / STEP_BYTES as u64 {
            let observation: Vec<f32> = (0..OBSERVATION_DIM).map(|_| number(&mut rng)).collect();
            let values = [Values::F32(&observation), Values::F32(&[0.0])];
            robot.step(&Step { monotonic_ns: 1 + step, reward: None, intervention: false, values: &values })?;
        }
        robot.end(Outcome::Success, EpisodeEnd::Terminated)?;
    }
    Ok(())
}

/// Random in every bit but one: without it, it is a number.
fn number(rng: &mut SmallRng) -> f32 {
    f32::from_bits(rng.next_u32() & !(1 << 30))
}
