//! `zunft data ls` and `show`: what snapshots and datasets hold.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use zunft_protocol::embodiment::{Embodiment, Feature};
use zunft_protocol::episode::{Actor, Manifest, Outcome, Stream};
use zunft_protocol::ids::{EpisodeId, RobotId, SnapshotId, TaskName};
use zunft_skills::data::{EpisodeSource as _, SnapshotDir};

use super::{LsArgs, ReadingArgs, ShowArgs, open, plot};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::interrupt;
use crate::output::{Output, bytes, count, table};

/// Numbers of some episodes.
#[derive(Debug, Default, Clone, Serialize)]
struct Counts {
    episodes: u64,
    success: u64,
    failure: u64,
    unknown: u64,
    steps: u64,
    bytes: u64,
}

impl Counts {
    fn add(&mut self, manifest: &Manifest) {
        self.episodes += 1;
        match manifest.outcome {
            Outcome::Success => self.success += 1,
            Outcome::Failure => self.failure += 1,
            Outcome::Unknown => self.unknown += 1,
        }
        self.steps += manifest.steps;
        self.bytes += manifest.bytes();
    }

    fn cells(&self) -> Vec<String> {
        let numbers = [self.episodes, self.success, self.failure, self.unknown, self.steps];
        numbers.iter().map(u64::to_string).chain([bytes(self.bytes)]).collect()
    }
}

const COUNT_TITLES: [&str; 6] = ["episodes", "success", "failure", "unknown", "steps", "size"];

/// One snapshot or dataset.
#[derive(Debug, Serialize)]
struct Summary {
    path: String,
    kind: &'static str,
    snapshot: SnapshotId,
    query: String,
    total: Counts,
    tasks: BTreeMap<TaskName, Counts>,
    robots: BTreeMap<RobotId, Counts>,
    embodiments: Vec<Embodiment>,
    /// By name, over all episodes.
    streams: BTreeMap<String, StreamCounts>,
}

/// Numbers of a stream.
#[derive(Debug, Default, Clone, Serialize)]
struct StreamCounts {
    /// Nominal, in Hz: of its feature, or of the steps.
    rate_hz: f64,
    /// Steps or samples.
    samples: u64,
    chunks: u64,
    /// Stored.
    bytes: u64,
}

impl StreamCounts {
    fn add(&mut self, embodiment: &Embodiment, stream: &Stream) {
        self.rate_hz =
            embodiment.feature(&stream.name).and_then(|feature| feature.rate_hz).unwrap_or(embodiment.rate_hz);
        self.samples += stream.chunks.iter().map(|chunk| u64::from(chunk.steps)).sum::<u64>();
        self.chunks += stream.chunks.len() as u64;
        self.bytes += stream.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum::<u64>();
    }
}

/// Adds an episode's streams to those of others.
fn add_streams(streams: &mut BTreeMap<String, StreamCounts>, manifest: &Manifest) {
    for stream in &manifest.streams {
        streams.entry(stream.name.clone()).or_default().add(&manifest.embodiment, stream);
    }
}

fn streams_text(streams: &BTreeMap<String, StreamCounts>) -> String {
    let rows: Vec<Vec<String>> = streams
        .iter()
        .map(|(name, counts)| {
            let StreamCounts { rate_hz, samples, chunks, bytes: size } = counts;
            vec![name.clone(), format!("{rate_hz} Hz"), samples.to_string(), chunks.to_string(), bytes(*size)]
        })
        .collect();
    table(&["stream", "rate", "samples", "chunks", "size"], 1, &rows)
}

/// One episode.
#[derive(Debug, Serialize)]
struct EpisodeRow {
    id: EpisodeId,
    /// By name.
    streams: BTreeMap<String, StreamCounts>,
    manifest: Manifest,
}

pub(super) fn ls(args: &LsArgs) -> Result<(), Failure> {
    let mut summaries = Vec::new();
    for path in &args.paths {
        summaries.push(summary(path)?);
    }
    Output::new(args.json.json).show(&summaries, |summaries| {
        let titles: Vec<&str> = ["data", "task"].into_iter().chain(COUNT_TITLES).collect();
        let rows: Vec<Vec<String>> = summaries
            .iter()
            .flat_map(|summary| {
                summary.tasks.iter().map(|(task, counts)| {
                    [summary.path.clone(), task.to_string()].into_iter().chain(counts.cells()).collect()
                })
            })
            .collect();
        table(&titles, 2, &rows)
    })
}

pub(super) fn show(args: &ShowArgs) -> Result<(), Failure> {
    match &args.episode {
        None => Output::new(args.json.json).show(&summary(&args.path)?, summary_text),
        Some(wanted) => {
            let mut data = open(&args.path, &ReadingArgs::default())?;
            let row = episode(&mut data.snapshot, wanted)?;
            let plot = if args.plot { plot::episode(&mut data.snapshot, &row.manifest)? } else { String::new() };
            Output::new(args.json.json).show(&row, |row| match args.plot {
                true => format!("{}\n{plot}", episode_text(row)),
                false => episode_text(row),
            })
        }
    }
}

fn summary(path: &Path) -> Result<Summary, Failure> {
    interrupt::listen();
    let mut data = open(path, &ReadingArgs { skip_unsupported: true })?;
    let mut summary = Summary {
        path: path.display().to_string(),
        kind: if data.lerobot { "lerobot" } else { "snapshot" },
        snapshot: data.snapshot.snapshot().id(),
        query: data.snapshot.snapshot().query.clone(),
        total: Counts::default(),
        tasks: BTreeMap::new(),
        robots: BTreeMap::new(),
        embodiments: Vec::new(),
        streams: BTreeMap::new(),
    };
    let ids: Vec<EpisodeId> = data.snapshot.snapshot().episodes.iter().map(|episode| episode.id).collect();
    for id in ids {
        interrupt::check()?;
        let manifest = manifest(&mut data.snapshot, id)?;
        summary.total.add(&manifest);
        add_streams(&mut summary.streams, &manifest);
        summary.robots.entry(manifest.robot.clone()).or_default().add(&manifest);
        summary.tasks.entry(manifest.task.clone()).or_default().add(&manifest);
        if !summary.embodiments.contains(&manifest.embodiment) {
            summary.embodiments.push(manifest.embodiment);
        }
    }
    Ok(summary)
}

fn manifest(snapshot: &mut SnapshotDir, id: EpisodeId) -> Result<Manifest, Failure> {
    let bytes = snapshot.manifest(id).or_input()?;
    Manifest::decode(&bytes).or_input()
}

fn episode(snapshot: &mut SnapshotDir, wanted: &str) -> Result<EpisodeRow, Failure> {
    let ids: Vec<EpisodeId> = snapshot.snapshot().episodes.iter().map(|episode| episode.id).collect();
    let by_number = wanted.parse::<usize>().ok().and_then(|number| ids.get(number).copied());
    let begins: Vec<EpisodeId> = ids.iter().copied().filter(|id| id.to_string().starts_with(wanted)).collect();
    let id = match (by_number, begins.as_slice()) {
        (Some(id), _) => id,
        (None, [id]) => *id,
        (None, []) => {
            let error = format!("no episode {wanted:?} here: give a number below {} or an id", ids.len());
            return Err(Failure::new(ExitCode::Input, error));
        }
        (None, several) => {
            let error = format!("{} episodes begin with {wanted:?}: give more digits", several.len());
            return Err(Failure::new(ExitCode::Input, error));
        }
    };
    let manifest = manifest(snapshot, id)?;
    let mut streams = BTreeMap::new();
    add_streams(&mut streams, &manifest);
    Ok(EpisodeRow { id, streams, manifest })
}

fn summary_text(summary: &Summary) -> String {
    let mut text = format!(
        "{} {} ({})\nsnapshot {}\n{}, {}, {}\n",
        if summary.kind == "lerobot" { "LeRobot dataset" } else { "snapshot" },
        summary.path,
        summary.query,
        summary.snapshot,
        count(summary.total.episodes, "episode"),
        count(summary.total.steps, "step"),
        bytes(summary.total.bytes),
    );
    for embodiment in &summary.embodiments {
        text.push_str(&format!("\nembodiment {} at {} Hz\n", embodiment.name, embodiment.rate_hz));
        let rows: Vec<Vec<String>> = embodiment.features.iter().map(feature_cells).collect();
        text.push_str(&table(&["feature", "type", "shape"], 3, &rows));
    }
    text.push_str(&format!("\n{}", streams_text(&summary.streams)));
    let by = |title: &str, rows: Vec<(String, &Counts)>| {
        let titles: Vec<&str> = std::iter::once(title).chain(COUNT_TITLES).collect();
        let rows: Vec<Vec<String>> =
            rows.into_iter().map(|(name, counts)| [name].into_iter().chain(counts.cells()).collect()).collect();
        format!("\n{}", table(&titles, 1, &rows))
    };
    text.push_str(&by("task", summary.tasks.iter().map(|(task, counts)| (task.to_string(), counts)).collect()));
    text.push_str(&by("robot", summary.robots.iter().map(|(robot, counts)| (robot.to_string(), counts)).collect()));
    text
}

fn feature_cells(feature: &Feature) -> Vec<String> {
    let shape: Vec<String> = feature.shape.iter().map(u32::to_string).collect();
    let dtype = feature.encoding.map_or(format!("{:?}", feature.dtype), |encoding| format!("{encoding:?}"));
    vec![feature.name.clone(), dtype.to_lowercase(), format!("[{}]", shape.join(", "))]
}

fn episode_text(row: &EpisodeRow) -> String {
    let manifest = &row.manifest;
    let actor = match &manifest.actor {
        Actor::Human => "a person".to_owned(),
        Actor::Script => "a script".to_owned(),
        Actor::Release { release, .. } => format!("release {release}"),
    };
    let seconds = manifest.steps as f64 / manifest.embodiment.rate_hz;
    [
        format!("episode   {}", row.id),
        format!("recording {} (number {} of robot {})", manifest.recording, manifest.ordinal, manifest.robot),
        format!("site      {} of {}", manifest.site, manifest.tenant),
        format!("task      {}", manifest.task),
        format!("acted     {actor}"),
        format!("outcome   {} ({})", manifest.outcome, serde_json::to_string(&manifest.end).unwrap_or_default()),
        format!("steps     {} in about {seconds:.1} s", manifest.steps),
        format!("chunks    {} with {}\n", manifest.chunks().count(), bytes(manifest.bytes())),
        streams_text(&row.streams),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use zunft_protocol::chunk::Schema;
    use zunft_protocol::embodiment::Encoding;
    use zunft_protocol::episode::ChunkRef;
    use zunft_protocol::ids::ChunkId;

    use super::*;

    #[test]
    fn a_camera_is_listed_with_its_rate_and_size() {
        let camera = Feature::camera("top", 480, 640, 30.0, Encoding::Jpeg);
        let body = Embodiment { name: "arm".into(), rate_hz: 50.0, features: vec![camera.clone()] };
        assert_eq!(feature_cells(&camera), ["observation.images.top", "jpeg", "[480, 640, 3]"]);
        let chunk = ChunkRef { id: ChunkId::of(b"c"), bytes: 1_000_000, steps: 17 };
        let stream = Stream { name: camera.name.clone(), schema: Schema::stream(&camera), chunks: vec![chunk; 2] };
        let mut counts = StreamCounts::default();
        counts.add(&body, &stream);
        assert_eq!(
            streams_text(&BTreeMap::from([(camera.name, counts)])),
            "stream                   rate  samples  chunks    size\n\
             observation.images.top  30 Hz       34       2  2.0 MB\n"
        );
    }
}
