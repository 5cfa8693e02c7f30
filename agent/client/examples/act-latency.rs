//! Times ACT through an agent's socket beside ECHO of as many bytes: `act-latency SOCKET SKILL TASK OBSERVATION_DIM [COUNT]`.
//!
//! Prints one line of JSON in milliseconds. The two alternate, so that a busy machine hits both.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use zunft_client::Robot;
use zunft_protocol::ids::{SkillName, TaskName};

/// Calls before timing: the first ones page the policy in.
const WARM_UP: usize = 200;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (socket, skill, task, observation_dim, count) = match arguments.as_slice() {
        [socket, skill, task, dim] => (socket, skill, task, dim, 5000),
        [socket, skill, task, dim, count] => (socket, skill, task, dim, count.parse().context("COUNT")?),
        _ => bail!("usage: act-latency SOCKET SKILL TASK OBSERVATION_DIM [COUNT]"),
    };
    let (skill, task): (SkillName, TaskName) = (skill.parse()?, task.parse()?);
    let observation = vec![0.0_f32; observation_dim.parse().context("OBSERVATION_DIM")?];
    ensure!(count > 0, "COUNT must be at least 1");
    let mut robot = Robot::connect(socket)?;
    // `first` makes every call a forward pass, not a pop of an action that was predicted before.
    for _ in 0..WARM_UP {
        robot.act(&skill, &task, true, &observation)?;
    }
    let bytes = vec![0; observation.len() * 4];
    let (mut acts, mut echoes) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for _ in 0..count {
        acts.push(timed(|| robot.act(&skill, &task, true, &observation).map(drop))?);
        echoes.push(timed(|| robot.echo(&bytes).map(drop))?);
    }
    writeln!(
        std::io::stdout(),
        "{{\"act_ms_p50\": {:.4}, \"act_ms_p99\": {:.4}, \"echo_ms_p50\": {:.4}, \"echo_ms_p99\": {:.4}, \"count\": {count}}}",
        quantile(&mut acts, 0.5),
        quantile(&mut acts, 0.99),
        quantile(&mut echoes, 0.5),
        quantile(&mut echoes, 0.99),
    )?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "measuring time is all that this program does")]
fn timed<E>(call: impl FnOnce() -> Result<(), E>) -> Result<Duration, E> {
    let began = Instant::now();
    call()?;
    Ok(began.elapsed())
}

/// In milliseconds.
fn quantile(times: &mut [Duration], q: f64) -> f64 {
    times.sort_unstable();
    let index = ((times.len() - 1) as f64 * q).round() as usize;
    times[index].as_secs_f64() * 1e3
}
