//! Writes what `zunft-recording-cost` records to an MCAP file, by the `mcap` crate, in the caller's process:
//! `zunft-mcap-peer PATH step COUNT`, `... cameras SECONDS`, `... images SECONDS`.
//!
//! `step` is 64 floats at 1 kHz, `images` three cameras at 30 Hz, `cameras` 14 joints at 50 Hz with two cameras at 30
//! Hz. Once in 100 ms the chunk is ended and the file synced, in the caller's thread, as nobody else does it: then as
//! much is on disk after a power cut as of an agent's spool. The bytes are not compressed. One line of JSON is printed.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mcap::records::MessageHeader;
use mcap::{WriteOptions, Writer};

/// Of a 640x480 JPEG at quality 90.
const IMAGE_BYTES: usize = 60_000;

/// How much a power cut may take.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// Ticks in a second of `/proc/self/stat`.
const CLOCK_TICKS: f64 = 100.0;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [path, "step", count] => step(Recording::create(path, &[])?, count.parse().context("COUNT")?),
        [path, "cameras", seconds] => {
            cameras(Recording::create(path, &["left", "right"])?, seconds.parse().context("SECONDS")?)
        }
        [path, "images", seconds] => {
            images(Recording::create(path, &["left", "right", "wrist"])?, seconds.parse().context("SECONDS")?)
        }
        _ => bail!("usage: zunft-mcap-peer PATH step COUNT | cameras SECONDS | images SECONDS"),
    }
}

/// An MCAP file under way.
struct Recording {
    file: File,
    writer: Writer<BufWriter<File>>,
    steps: u16,
    cameras: Vec<u16>,
    written: u32,
    synced: Instant,
    /// Of each write: of the messages of one instant.
    times: Vec<Duration>,
    /// Of each sync.
    syncs: Vec<Duration>,
}

impl Recording {
    fn create(path: &str, cameras: &[&str]) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("could not create {path}"))?;
        let options = WriteOptions::new().compression(None);
        let mut writer = options.create(BufWriter::new(file.try_clone()?))?;
        let none = Default::default();
        let steps = writer.add_channel(0, "steps", "floats", &none)?;
        let cameras =
            cameras.iter().map(|name| Ok(writer.add_channel(0, name, "jpeg", &none)?)).collect::<anyhow::Result<_>>()?;
        let (times, syncs) = (Vec::new(), Vec::new());
        Ok(Self { file, writer, steps, cameras, written: 0, synced: Instant::now(), times, syncs })
    }

    fn write(&mut self, channel_id: u16, bytes: &[u8]) -> anyhow::Result<()> {
        let began = Instant::now();
        self.written += 1;
        let time = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
        let header = MessageHeader { channel_id, sequence: self.written, log_time: time, publish_time: time };
        self.writer.write_to_known_channel(&header, bytes)?;
        self.times.push(began.elapsed());
        Ok(())
    }

    fn floats(&mut self, count: usize, tick: u64) -> anyhow::Result<()> {
        let floats: Vec<u8> = std::iter::repeat_n(tick as f32, count).flat_map(f32::to_le_bytes).collect();
        self.write(self.steps, &floats)
    }

    fn images(&mut self, image: &mut [u8], tick: u64) -> anyhow::Result<()> {
        image[2..10].copy_from_slice(&tick.to_le_bytes());
        for camera in self.cameras.clone() {
            self.write(camera, image)?;
        }
        Ok(())
    }

    fn sync_when_due(&mut self) -> anyhow::Result<()> {
        if self.synced.elapsed() < SYNC_INTERVAL {
            return Ok(());
        }
        let began = Instant::now();
        self.writer.flush()?;
        self.file.sync_data()?;
        self.synced = Instant::now();
        self.syncs.push(began.elapsed());
        Ok(())
    }

    fn end(mut self, began: Instant) -> anyhow::Result<()> {
        self.writer.finish()?;
        self.file.sync_data()?;
        let core = cpu_seconds()? / began.elapsed().as_secs_f64() * 100.0;
        let quantile = |times: &mut Vec<Duration>, q: f64| {
            times.sort_unstable();
            let index = (times.len().saturating_sub(1) as f64 * q).round() as usize;
            times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        let (p50, p99) = (quantile(&mut self.times, 0.5), quantile(&mut self.times, 0.99));
        let (sync_p50, sync_p99) = (quantile(&mut self.syncs, 0.5), quantile(&mut self.syncs, 0.99));
        writeln!(
            std::io::stdout(),
            "{{\"write_us_p50\": {p50:.2}, \"write_us_p99\": {p99:.2}, \"sync_us_p50\": {sync_p50:.0}, \
             \"sync_us_p99\": {sync_p99:.0}, \"core_percent\": {core:.2}, \"cpu_seconds\": {:.2}, \
             \"peak_mb\": {:.1}, \"count\": {}}}",
            cpu_seconds()?,
            peak_mb()?,
            self.times.len(),
        )?;
        Ok(())
    }
}

fn step(mut recording: Recording, count: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    paced(Duration::from_millis(1), count, |tick| {
        recording.floats(64, tick)?;
        recording.sync_when_due()
    })?;
    recording.end(began)
}

fn cameras(mut recording: Recording, seconds: u64) -> anyhow::Result<()> {
    let (began, mut image) = (Instant::now(), image());
    // 150 Hz is the least common multiple of 50 and 30.
    paced(Duration::from_micros(6_667), seconds * 150, |tick| {
        if tick % 3 == 0 {
            recording.floats(64, tick)?;
        }
        if tick % 5 == 0 {
            recording.images(&mut image, tick)?;
        }
        recording.sync_when_due()
    })?;
    recording.end(began)
}

fn images(mut recording: Recording, seconds: u64) -> anyhow::Result<()> {
    let (began, mut image) = (Instant::now(), image());
    paced(Duration::from_micros(33_333), seconds * 30, |tick| {
        recording.images(&mut image, tick)?;
        recording.sync_when_due()
    })?;
    recording.end(began)
}

/// Calls back so many times, one interval apart, without drifting.
fn paced(interval: Duration, count: u64, mut call: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let began = Instant::now();
    for tick in 0..count {
        let due = began + interval * u32::try_from(tick)?;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        call(tick)?;
    }
    Ok(())
}

/// Bytes that begin like a JPEG and that nothing can make smaller.
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

fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).context("/proc/self/stat");
    Ok((ticks(11)? + ticks(12)?) / CLOCK_TICKS)
}

fn peak_mb() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).context("/proc/self/status")?;
    Ok(line.split_whitespace().nth(1).context("VmHWM")?.parse::<f64>()? * 1024.0 / 1e6)
}
