//! How many windows a second the loader yields: `loading-bench import DATASET SNAPSHOT` makes a local snapshot of a
//! LeRobot v3 dataset, as `zunft data import --out` does; `loading-bench run SNAPSHOT STEPS BATCH THREADS SECS [CAMERA]`
//! draws from it and prints one line of JSON.
//!
//! With a camera a window also has its image, as f32. First comes a pass that is not timed, so that the cache is warm, or as
//! much of one as SECS allow.

use std::error::Error;
use std::hint::black_box;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use zunft_protocol::episode::Actor;
use zunft_skills::data::{
    ImportOptions, LeRobotDataset, LeRobotOptions, Loader, LoaderConfig, PixelType, Selection, SnapshotDir,
    SnapshotDirWriter, import_lerobot, robot_for,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["import", dataset, snapshot] => import(Path::new(dataset), Path::new(snapshot)),
        ["run", snapshot, steps, batch, threads, secs] => {
            run(Path::new(snapshot), steps.parse()?, batch.parse()?, threads.parse()?, secs.parse()?, None)
        }
        ["run", snapshot, steps, batch, threads, secs, camera] => {
            run(Path::new(snapshot), steps.parse()?, batch.parse()?, threads.parse()?, secs.parse()?, Some(camera))
        }
        _ => {
            Err("usage: loading-bench import DATASET SNAPSHOT | run SNAPSHOT STEPS BATCH THREADS SECS [CAMERA]".into())
        }
    }
}

fn import(dataset: &Path, snapshot: &Path) -> Result<(), Box<dyn Error>> {
    let options = ImportOptions {
        tenant: "bench".parse()?,
        site: "bench".parse()?,
        robot: robot_for(dataset),
        actor: Actor::Script,
    };
    let dataset = LeRobotDataset::open(dataset, LeRobotOptions::default())?;
    let mut writer = SnapshotDirWriter::create(snapshot)?;
    let progress = import_lerobot(&dataset, &options, &mut writer, &mut |_| ControlFlow::Continue(()))?;
    writer.finish("loading-bench")?;
    Ok(writeln!(std::io::stdout(), "{{\"episodes\": {}, \"steps\": {}}}", progress.episodes, progress.steps)?)
}

fn run(
    snapshot: &Path,
    steps: i32,
    batch_size: usize,
    threads: usize,
    secs: u64,
    camera: Option<&str>,
) -> Result<(), Box<dyn Error>> {
    let config = LoaderConfig {
        batch_size,
        observation_steps: 0..steps,
        action_steps: 0..steps,
        cameras: camera.into_iter().map(str::to_owned).collect(),
        pixels: PixelType::F32,
        threads,
        prefetch_batches: 2 * threads,
        ..LoaderConfig::default()
    };
    let loader = Loader::open(Box::new(SnapshotDir::open(snapshot)?), &Selection::default(), config)?;
    let mut batches = loader.batches(0)?;
    let (warm_up, began) = (Duration::from_secs(secs), now());
    for _ in 0..loader.windows().div_ceil(batch_size as u64) {
        black_box(batches.next().transpose()?);
        if began.elapsed() >= warm_up {
            break;
        }
    }
    let (began, mut samples) = (now(), 0);
    while began.elapsed() < Duration::from_secs(secs) {
        let batch = batches.next().transpose()?.ok_or("batches never end")?;
        samples += black_box(batch).windows.len();
    }
    let per_sec = samples as f64 / began.elapsed().as_secs_f64();
    let (windows, cached) = (loader.windows(), loader.cached_bytes());
    Ok(writeln!(
        std::io::stdout(),
        "{{\"samples_per_sec\": {per_sec:.0}, \"samples\": {samples}, \"windows\": {windows}, \"cached_bytes\": {cached}}}"
    )?)
}

#[expect(clippy::disallowed_methods, reason = "measuring time is all that this program does")]
fn now() -> Instant {
    Instant::now()
}
