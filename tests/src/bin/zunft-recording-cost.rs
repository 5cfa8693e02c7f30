//! What recording costs a control program: `zunft-recording-cost step SOCKET COUNT`, `... images SOCKET SECONDS`,
//! `... cameras SOCKET SECONDS`, and `... file PATH SECONDS`, which writes the bytes of `cameras` to a file instead.
//!
//! Each prints one line of JSON. The images are bytes of a 640x480 JPEG's size that nothing can make smaller.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use zunft_client::{
    Begin, BeginActor, Data, Embodiment, Encoding, EpisodeEnd, Feature, Outcome, Robot, Step, Values, monotonic_ns,
};

/// Steps before timing.
const WARM_UP: usize = 1000;

/// Of a 640x480 JPEG at quality 90.
const IMAGE_BYTES: usize = 60_000;

const CAMERAS: [&str; 3] = ["left", "right", "wrist"];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["step", socket, count] => step(socket, count.parse().context("COUNT")?),
        ["images", socket, seconds] => images(socket, seconds.parse().context("SECONDS")?),
        ["cameras", socket, seconds] => cameras(socket, seconds.parse().context("SECONDS")?),
        ["file", path, seconds] => file(path, seconds.parse().context("SECONDS")?),
        _ => bail!("usage: zunft-recording-cost step SOCKET COUNT | images|cameras SOCKET SECONDS | file PATH SECONDS"),
    }
}

fn body() -> Embodiment {
    body_of(&CAMERAS[..2])
}

fn body_of(cameras: &[&str]) -> Embodiment {
    let cameras = cameras.iter().map(|name| Feature::camera(name, 480, 640, 30.0, Encoding::Jpeg));
    let steps = [Feature::vector("observation.state", 50), Feature::vector("action", 14)];
    Embodiment { name: "cost".into(), rate_hz: 1000.0, features: steps.into_iter().chain(cameras).collect() }
}

fn begin(socket: &str, embodiment: Embodiment) -> anyhow::Result<Robot> {
    let mut robot = Robot::connect(socket)?;
    robot.begin(&Begin { task: "cost".parse()?, embodiment, actor: BeginActor::Script })?;
    Ok(robot)
}

fn record(robot: &mut Robot, tick: u64) -> anyhow::Result<()> {
    let (state, action) = ([tick as f32; 50], [tick as f32 * 0.5; 14]);
    let values = [Values::F32(&state), Values::F32(&action)];
    Ok(robot.step(&Step { monotonic_ns: monotonic_ns(), reward: None, intervention: false, values: &values })?)
}

/// The cost of one step of 64 floats on the caller's thread, at 1 kHz.
fn step(socket: &str, count: usize) -> anyhow::Result<()> {
    let mut robot = begin(socket, body())?;
    let mut times = Vec::with_capacity(count);
    let mut tick = 0;
    paced(Duration::from_millis(1), (WARM_UP + count) as u64, |_| {
        let began = now();
        record(&mut robot, tick)?;
        tick += 1;
        if tick as usize > WARM_UP {
            times.push(began.elapsed());
        }
        Ok(())
    })?;
    robot.end(Outcome::Success, EpisodeEnd::Terminated)?;
    let (p50, p99) = quantiles(times);
    writeln!(std::io::stdout(), "{{\"step_us_p50\": {p50:.2}, \"step_us_p99\": {p99:.2}, \"count\": {count}}}")?;
    Ok(())
}

/// The middle one and the 99th of a hundred, in microseconds.
fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize].as_secs_f64() * 1e6;
    (quantile(0.5), quantile(0.99))
}

/// The cost of one image on the caller's thread, of three cameras at 30 Hz.
fn images(socket: &str, seconds: u64) -> anyhow::Result<()> {
    let mut robot = begin(socket, body_of(&CAMERAS))?;
    let (mut image, mut times) = (image(), Vec::new());
    paced(Duration::from_micros(33_333), seconds * 30, |tick| {
        record(&mut robot, tick)?;
        image[2..10].copy_from_slice(&tick.to_le_bytes());
        for camera in CAMERAS {
            let began = now();
            robot.sample(&format!("observation.images.{camera}"), monotonic_ns(), Data::Jpeg(&image))?;
            times.push(began.elapsed());
        }
        Ok(())
    })?;
    robot.end(Outcome::Success, EpisodeEnd::Terminated)?;
    let count = times.len();
    let (p50, p99) = quantiles(times);
    writeln!(std::io::stdout(), "{{\"image_us_p50\": {p50:.2}, \"image_us_p99\": {p99:.2}, \"count\": {count}}}")?;
    Ok(())
}

/// Steps at 50 Hz and two cameras at 30 Hz into an agent.
fn cameras(socket: &str, seconds: u64) -> anyhow::Result<()> {
    let mut robot = begin(socket, body())?;
    let mut image = image();
    let steps = play(seconds, |what| match what {
        What::Step(tick) => record(&mut robot, tick),
        What::Images(tick) => {
            image[2..10].copy_from_slice(&tick.to_le_bytes());
            for camera in &CAMERAS[..2] {
                robot.sample(&format!("observation.images.{camera}"), monotonic_ns(), Data::Jpeg(&image))?;
            }
            Ok(())
        }
    })?;
    let ended = robot.end(Outcome::Success, EpisodeEnd::Terminated)?;
    anyhow::ensure!(ended.steps == steps, "the agent kept {} of {steps} steps", ended.steps);
    writeln!(std::io::stdout(), "{{\"steps\": {steps}, \"seconds\": {seconds}}}")?;
    Ok(())
}

/// The same bytes into a file, on disk every tenth of a second as the agent has them.
fn file(path: &str, seconds: u64) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path).with_context(|| format!("could not create {path}"))?);
    let mut image = image();
    let steps = play(seconds, |what| {
        match what {
            What::Step(tick) => file.write_all(&[tick as u8; 64 * 4 + 16])?,
            What::Images(tick) => {
                image[2..10].copy_from_slice(&tick.to_le_bytes());
                for _ in &CAMERAS[..2] {
                    file.write_all(&image)?;
                }
            }
        }
        if matches!(what, What::Step(tick) if tick % 5 == 0) {
            file.flush()?;
            file.get_ref().sync_data()?;
        }
        Ok(())
    })?;
    file.flush()?;
    file.get_ref().sync_data()?;
    writeln!(std::io::stdout(), "{{\"steps\": {steps}, \"seconds\": {seconds}}}")?;
    Ok(())
}

#[derive(Clone, Copy)]
enum What {
    Step(u64),
    Images(u64),
}

/// Calls back at 50 Hz for steps and at 30 Hz for images; returns the steps.
fn play(seconds: u64, mut what: impl FnMut(What) -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let mut steps = 0;
    // 150 Hz is the least common multiple of the two.
    paced(Duration::from_micros(6_667), seconds * 150, |tick| {
        if tick % 3 == 0 {
            what(What::Step(steps))?;
            steps += 1;
        }
        if tick % 5 == 0 { what(What::Images(tick)) } else { Ok(()) }
    })?;
    Ok(steps)
}

/// Calls back so many times, one interval apart, without drifting.
fn paced(interval: Duration, count: u64, mut call: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let began = now();
    for tick in 0..count {
        let due = began + interval * u32::try_from(tick)?;
        std::thread::sleep(due.saturating_duration_since(now()));
        call(tick)?;
    }
    Ok(())
}

/// Bytes that begin like a JPEG.
fn image() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut image: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(IMAGE_BYTES)
    .collect();
    image[..2].copy_from_slice(&[0xff, 0xd8]);
    image
}

#[expect(clippy::disallowed_methods, reason = "measuring time is all that this program does")]
fn now() -> Instant {
    Instant::now()
}
