//! Measures an agent's upload through a relay: `zunft-link cap`, `zunft-link rung NAME`. Prints one line of JSON.
//!
//! What it measures is judged by `tests/claims/02-4-ladder` and `02-5-cap`.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde_json::json;
use zunft_tests::link::{LinkConfig, RUNGS};
use zunft_tests::plain;
use zunft_tests::world::{World, now, wait_for};

/// A sample of the bytes that left the robot.
const SAMPLE: Duration = Duration::from_millis(100);

/// How often a round trip is measured.
const PING_INTERVAL: Duration = Duration::from_millis(100);

/// Samples in a window over which the cap is judged: ten seconds.
const WINDOW_SAMPLES: usize = 100;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// An agent with a backlog and a bandwidth cap: UDP bytes of every sliding ten seconds.
    Cap {
        /// The cap, in bytes a second.
        #[arg(long, default_value_t = 125_000)]
        rate: u64,
        /// How long.
        #[arg(long, default_value_t = 40)]
        seconds: u64,
    },
    /// One rung of the ladder: goodput beside a plain copy, and the control round trip with and without bulk.
    Rung {
        /// Its name.
        name: String,
        /// How long the link is used for each measurement.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Of the losses.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// The names of the rungs.
    Rungs,
}

fn main() -> anyhow::Result<()> {
    let answer = match Args::parse().command {
        Command::Cap { rate, seconds } => cap(rate, seconds)?,
        Command::Rung { name, seconds, seed } => {
            let link = RUNGS.into_iter().find(|rung| rung.name == name);
            rung(link.with_context(|| format!("there is no rung {name:?}"))?, Duration::from_secs(seconds), seed)?
        }
        Command::Rungs => json!(RUNGS.map(|rung| rung.name)),
    };
    Ok(writeln!(std::io::stdout(), "{answer}")?)
}

fn node() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("zunft-test-node"))
}

fn cap(rate: u64, seconds: u64) -> anyhow::Result<serde_json::Value> {
    let mut world = World::start(&node()?, &format!("bytes_per_second_max = {rate}"))?;
    // Losses, so that there are retransmissions to count, on a link that the cap leaves mostly empty.
    let link = RUNGS.into_iter().find(|rung| rung.name == "congested-wifi").context("the ladder has this rung")?;
    world.relay.shape(link, 1);
    world.relay.cut(true);
    world.start_agent()?;
    world.record(rate * (seconds + 10), 1_000_000)?;
    world.relay.cut(false);
    // The first second is TLS and slow start: the backlog flows after it.
    wait_for("the first chunks", Duration::from_secs(60), || {
        Ok((world.relay.bytes_from_robot() > 2 * rate).then_some(()))
    })?;
    let (began, first) = (now(), world.relay.bytes_from_robot());
    let mut samples = vec![(Duration::ZERO, 0)];
    while samples.len() <= (seconds * 10) as usize {
        std::thread::sleep((SAMPLE * samples.len() as u32).saturating_sub(began.elapsed()));
        samples.push((began.elapsed(), world.relay.bytes_from_robot() - first));
    }
    let waiting = world.number("/spool/episodes_waiting")?;
    let ratios: Vec<f64> = samples
        .windows(WINDOW_SAMPLES + 1)
        .map(|window| {
            let ((from, before), (to, after)) = (window[0], window[WINDOW_SAMPLES]);
            (after - before) as f64 / (to - from).as_secs_f64() / rate as f64
        })
        .collect();
    let most = ratios.iter().copied().fold(f64::MIN, f64::max);
    let least = ratios.iter().copied().fold(f64::MAX, f64::min);
    Ok(json!({ "rate": rate, "windows": ratios.len(), "most": most, "least": least, "episodes_left": waiting }))
}

/// Three runs of `time` and one of as many bytes: pings are rare where goodput is measured, since on a link that loses
/// much every packet counts.
fn rung(link: LinkConfig, time: Duration, seed: u64) -> anyhow::Result<serde_json::Value> {
    let plain_bytes = plain::copy(link, seed, time)?;
    let episode_bytes = (plain_bytes / 16).clamp(100_000, 10_000_000);
    let (idle, bulk) = round_trips(link, time, seed, plain_bytes, episode_bytes)?;

    let mut world = World::start(&node()?, "")?;
    world.relay.cut(true);
    world.start_agent()?;
    let mut recorded = world.record(plain_bytes, episode_bytes)?;
    let bytes = world.number("/spool/bytes_waiting")?;
    world.relay.shape(link, seed);
    world.relay.cut(false);
    world.wait_until_connected()?;
    let began = now();
    world.wait_until_uploaded(time * 20)?;
    let took = began.elapsed();
    let mut held = world.held()?;
    held.sort_unstable();
    recorded.sort_unstable();
    let goodput = bytes / took.as_secs_f64();
    let plain = plain_bytes as f64 / time.as_secs_f64();
    Ok(json!({
        "rung": link.name, "seconds": time.as_secs(), "episodes": recorded.len(), "all_arrived": held == recorded,
        "bytes": bytes, "goodput_bytes_per_sec": goodput, "plain_bytes_per_sec": plain, "ratio": goodput / plain,
        "idle_ms_p50": idle.p50, "idle_ms_p99": idle.p99, "idle_round_trips": idle.count,
        "bulk_ms_p50": bulk.p50, "bulk_ms_p99": bulk.p99, "bulk_round_trips": bulk.count,
        "buffer_ms": link.buffer_time().as_secs_f64() * 1e3, "link_bytes_per_sec": link.bits_per_sec as f64 / 8.0,
    }))
}

/// Milliseconds.
struct RoundTrips {
    p50: f64,
    p99: f64,
    count: f64,
}

/// The control round trips of an agent without bulk, and with a backlog of twice what the link can carry.
fn round_trips(
    link: LinkConfig,
    time: Duration,
    seed: u64,
    plain_bytes: u64,
    episode_bytes: u64,
) -> anyhow::Result<(RoundTrips, RoundTrips)> {
    let mut world = World::with_pings(&node()?, "", PING_INTERVAL)?;
    let measure = |world: &World| -> anyhow::Result<RoundTrips> {
        world.relay.shape(link, seed);
        world.relay.cut(false);
        world.wait_until_connected()?;
        std::thread::sleep(time);
        let number = |name: &str| world.number(&format!("/hub/{name}"));
        Ok(RoundTrips {
            p50: number("round_trip_ms_p50")?,
            p99: number("round_trip_ms_p99")?,
            count: number("round_trips")?,
        })
    };
    world.start_agent()?;
    let idle = measure(&world)?;
    world.kill_agent()?;
    world.relay.cut(true);
    world.start_agent()?;
    world.record(plain_bytes * 2, episode_bytes)?;
    let bulk = measure(&world)?;
    anyhow::ensure!(world.number("/spool/episodes_waiting")? > 0.0, "the bulk ran out before the round trips did");
    Ok((idle, bulk))
}
