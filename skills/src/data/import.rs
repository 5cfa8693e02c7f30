//! Turns the episodes of a LeRobot dataset into ours: manifests and chunks, the same ones at every import.
//!
//! The recording's id is the hash of what was recorded and by whom, so importing twice, or once more after the
//! dataset grew, gives the same episodes again, and whoever stores them sees what is there already.
//! It knows no store: a local directory and a hub are both an [`EpisodeSink`].

use std::ops::ControlFlow;
use std::path::Path;

use zunft_protocol::cbor;
use zunft_protocol::chunk::{ChunkBuilder, Sample, SampleChunkBuilder, Schema};
use zunft_protocol::embodiment::{Embodiment, Encoding, Feature};
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, MANIFEST_VERSION, Manifest, ManifestError, STEPS_STREAM, Stream, WallQuality,
};
use zunft_protocol::ids::{BootId, ChunkId, EpisodeId, RecordingId, RobotId, SiteId, TenantId};
use zunft_protocol::limits::CHUNK_BYTES_TARGET;

use super::lerobot::{LeRobotDataset, LeRobotEpisode, LeRobotError};
use super::snapshot_dir::{SnapshotDirWriter, WriteSnapshotError};

/// The robot's name where a dataset's folder has none that can be used.
const ROBOT_FALLBACK: &str = "lerobot-import";

/// Keeps these hashes apart from all others.
const RECORDING_CONTEXT: &str = "zunft 2026 recording id of an imported LeRobot episode";
const BOOT_CONTEXT: &str = "zunft 2026 boot id of an imported LeRobot episode";

/// Whose episodes the imported ones become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub site: SiteId,
    /// Which robot. Each dataset needs its own: the ordinals are the dataset's episode numbers.
    pub robot: RobotId,
    /// Who acted. LeRobot does not say; most datasets are teleoperated, [`Actor::Human`].
    pub actor: Actor,
}

/// An episode as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedEpisode {
    /// Hash of the manifest.
    pub id: EpisodeId,
    /// What it says.
    pub manifest: Manifest,
    /// Its encoding.
    pub manifest_bytes: Vec<u8>,
    /// Stored bytes of its chunks, in the manifest's order.
    pub chunks: Vec<Vec<u8>>,
}

/// What a sink's error may be.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Where imported episodes go.
pub trait EpisodeSink {
    /// Stores one; the same one may come again in a later import.
    fn put(&mut self, episode: &ImportedEpisode) -> Result<(), SinkError>;
}

impl EpisodeSink for SnapshotDirWriter {
    fn put(&mut self, episode: &ImportedEpisode) -> Result<(), SinkError> {
        self.add(&episode.manifest_bytes, &episode.chunks)?;
        Ok(())
    }
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportProgress {
    /// Episodes stored.
    pub episodes: usize,
    /// Episodes of the dataset.
    pub episodes_total: usize,
    /// Steps stored.
    pub steps: u64,
}

/// Why an import stopped.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The dataset cannot be read.
    #[error(transparent)]
    Dataset(#[from] LeRobotError),
    /// An episode of the dataset that we cannot hold.
    #[error("episode {episode} of the dataset makes no episode here")]
    Episode {
        /// Its number.
        episode: u64,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// The store refused or failed.
    #[error("episode {episode} of the dataset could not be stored")]
    Store {
        /// Its number.
        episode: u64,
        /// The cause.
        #[source]
        source: SinkError,
    },
    /// The local snapshot could not be written.
    #[error(transparent)]
    Snapshot(#[from] WriteSnapshotError),
    /// The caller asked to stop.
    #[error("import stopped after {episodes} episodes")]
    Stopped {
        /// Stored by then.
        episodes: usize,
    },
}

/// Imports every episode of `dataset` into `sink`, reporting after each; the report may ask to stop.
pub fn import_lerobot(
    dataset: &LeRobotDataset,
    options: &ImportOptions,
    sink: &mut dyn EpisodeSink,
    report: &mut dyn FnMut(ImportProgress) -> ControlFlow<()>,
) -> Result<ImportProgress, ImportError> {
    let mut progress = ImportProgress { episodes: 0, episodes_total: dataset.episode_count(), steps: 0 };
    for episode in dataset.episodes() {
        let episode = episode?;
        let imported = import_episode(dataset.embodiment(), &episode, options)?;
        sink.put(&imported).map_err(|source| ImportError::Store { episode: episode.index, source })?;
        progress.episodes += 1;
        progress.steps += episode.steps as u64;
        if report(progress).is_break() {
            return Err(ImportError::Stopped { episodes: progress.episodes });
        }
    }
    Ok(progress)
}

/// Makes one episode ours.
pub fn import_episode(
    embodiment: &Embodiment,
    episode: &LeRobotEpisode,
    options: &ImportOptions,
) -> Result<ImportedEpisode, ImportError> {
    let schema = Schema::steps(embodiment);
    let mut recording = blake3::Hasher::new_derive_key(RECORDING_CONTEXT);
    for name in [options.tenant.as_str(), options.robot.as_str(), episode.task.as_str()] {
        recording.update(name.as_bytes()).update(&[0]);
    }
    recording.update(embodiment.id().as_bytes()).update(&episode.index.to_le_bytes());
    recording.update(&cbor::encode(&(episode.outcome, episode.end)));
    let mut builder = ChunkBuilder::new(schema.clone());
    let mut chunks = Vec::new();
    let mut row = Vec::with_capacity(schema.step_bytes());
    for step in 0..episode.steps {
        episode.row(step, &mut row);
        recording.update(&row);
        builder.push(&row);
        if builder.raw_bytes() >= CHUNK_BYTES_TARGET {
            chunks.extend(builder.finish());
        }
    }
    chunks.extend(builder.finish());
    let mut streams = vec![Stream { name: STEPS_STREAM.to_owned(), schema, chunks: refs(&chunks) }];
    for (camera, images) in embodiment.streams().zip(&episode.images) {
        for image in images {
            recording.update(&(image.len() as u64).to_le_bytes()).update(image);
        }
        let (stream, camera_chunks) = camera_stream(camera, images, &episode.monotonic_ns);
        streams.push(stream);
        chunks.extend(camera_chunks);
    }
    let recording = first_half(recording.finalize().as_bytes());
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        tenant: options.tenant.clone(),
        site: options.site.clone(),
        robot: options.robot.clone(),
        recording: RecordingId::from_bytes(recording),
        ordinal: episode.index,
        task: episode.task.clone(),
        embodiment: embodiment.clone(),
        actor: options.actor.clone(),
        outcome: episode.outcome,
        end: episode.end,
        interventions: Vec::new(),
        steps: episode.steps as u64,
        clock: clock(&recording, episode.monotonic_ns[0]),
        streams,
    };
    manifest.check().map_err(|source| ImportError::Episode { episode: episode.index, source })?;
    let manifest_bytes = manifest.encode();
    let chunks = chunks.into_iter().map(|(stored, _)| stored).collect();
    Ok(ImportedEpisode { id: EpisodeId::of(&manifest_bytes), manifest, manifest_bytes, chunks })
}

/// The stream of a camera that has an image at each step, and its chunks.
fn camera_stream(camera: &Feature, images: &[Vec<u8>], monotonic_ns: &[i64]) -> (Stream, Vec<(Vec<u8>, u32)>) {
    let mut builder = SampleChunkBuilder::new(Encoding::Jpeg);
    let mut chunks = Vec::new();
    for (bytes, &monotonic_ns) in images.iter().zip(monotonic_ns) {
        chunks.extend(builder.cut_before(true, bytes.len()));
        builder.push(&Sample { monotonic_ns, key_frame: true, bytes });
    }
    chunks.extend(builder.finish());
    (Stream { name: camera.name.clone(), schema: Schema::stream(camera), chunks: refs(&chunks) }, chunks)
}

fn refs(chunks: &[(Vec<u8>, u32)]) -> Vec<ChunkRef> {
    let one = |(stored, steps): &(Vec<u8>, u32)| ChunkRef {
        id: ChunkId::of(stored),
        bytes: stored.len() as u32,
        steps: *steps,
    };
    chunks.iter().map(one).collect()
}

/// A LeRobot dataset does not say when: each episode has a power-up of its own, long ago.
fn clock(recording: &[u8; 16], begin_ns: i64) -> Clock {
    Clock {
        boot: BootId::from_bytes(first_half(&blake3::derive_key(BOOT_CONTEXT, recording))),
        begin_monotonic_ns: begin_ns.unsigned_abs(),
        begin_wall_ns: 0,
        wall_quality: WallQuality::Implausible,
    }
}

fn first_half(hash: &[u8; 32]) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

/// A robot's name for the dataset at `root`: its folder's, made fit to be one.
pub fn robot_for(root: &Path) -> RobotId {
    let folder = root.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String =
        folder.chars().map(|c| if matches!(c, 'a'..='z' | '0'..='9' | '_' | '.') { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '_', '.']);
    name.parse().or_else(|_| ROBOT_FALLBACK.parse()).expect("the fallback is a name")
}

#[cfg(test)]
mod tests {
    use zunft_protocol::chunk::{Chunk, MONOTONIC_NS, REWARD, SampleChunk};
    use zunft_protocol::embodiment::{ACTION, OBSERVATION_STATE};

    use super::*;
    use crate::data::lerobot::LeRobotOptions;
    use crate::data::lerobot::fixture::TinyDataset;

    struct Kept(Vec<ImportedEpisode>);

    impl EpisodeSink for Kept {
        fn put(&mut self, episode: &ImportedEpisode) -> Result<(), SinkError> {
            self.0.push(episode.clone());
            Ok(())
        }
    }

    fn options() -> ImportOptions {
        ImportOptions {
            tenant: "acme".parse().unwrap(),
            site: "lab".parse().unwrap(),
            robot: "tiny".parse().unwrap(),
            actor: Actor::Human,
        }
    }

    fn import(dataset: &TinyDataset, options: &ImportOptions) -> Vec<ImportedEpisode> {
        let dir = tempfile::tempdir().unwrap();
        let dataset = LeRobotDataset::open(&dataset.write(dir.path()), LeRobotOptions::default()).unwrap();
        let mut kept = Kept(Vec::new());
        let progress = import_lerobot(&dataset, options, &mut kept, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(progress, ImportProgress { episodes: 3, episodes_total: 3, steps: 9 });
        kept.0
    }

    #[test]
    fn imported_steps_are_those_of_the_dataset() {
        let imported = import(&TinyDataset::new(), &options());
        let ordinals: Vec<u64> = imported.iter().map(|episode| episode.manifest.ordinal).collect();
        assert_eq!(ordinals, [0, 1, 2]);
        let episode = &imported[1];
        assert_eq!(Manifest::decode(&episode.manifest_bytes).unwrap(), episode.manifest);
        assert_eq!(EpisodeId::of(&episode.manifest_bytes), episode.id);
        let listed = &episode.manifest.streams[0].chunks[0];
        assert_eq!((listed.id, listed.steps), (ChunkId::of(&episode.chunks[0]), 2));
        let chunk = Chunk::decode(&episode.chunks[0], &episode.manifest.streams[0].schema).unwrap();
        assert_eq!(chunk.column_f32(OBSERVATION_STATE).unwrap(), [3.0, 3.25, -3.0, 4.0, 4.25, -4.0]);
        assert_eq!(chunk.column_f32(ACTION).unwrap(), [0.375, 1.0, 0.5, 1.0]);
        assert_eq!(chunk.column_f32(REWARD).unwrap(), [6.0, 8.0]);
        assert_eq!(chunk.column(MONOTONIC_NS).unwrap()[8..], 100_000_000_i64.to_le_bytes());
    }

    #[test]
    fn importing_twice_gives_the_same_episodes_and_other_content_gives_others() {
        let ids = |dataset: &TinyDataset, options: &ImportOptions| -> Vec<(EpisodeId, RecordingId)> {
            import(dataset, options).iter().map(|episode| (episode.id, episode.manifest.recording)).collect()
        };
        let first = ids(&TinyDataset::new(), &options());
        assert_eq!(first, ids(&TinyDataset::new(), &options()));
        let mut changed = TinyDataset::new();
        changed.files[0][4].action[0] = 9.0;
        let second = ids(&changed, &options());
        assert_eq!((first[0], first[2]), (second[0], second[2]));
        assert!(first[1].0 != second[1].0 && first[1].1 != second[1].1);
        let other_robot = ids(&TinyDataset::new(), &ImportOptions { robot: "other".parse().unwrap(), ..options() });
        assert!(first.iter().zip(&other_robot).all(|(a, b)| a.1 != b.1));
    }

    #[test]
    fn images_become_the_stream_of_their_camera() {
        let embodiment = Embodiment {
            name: "seeing".into(),
            rate_hz: 10.0,
            features: vec![
                Feature::vector(OBSERVATION_STATE, 1),
                Feature::camera("top", 6, 8, 10.0, Encoding::Jpeg),
                Feature::vector(ACTION, 1),
            ],
        };
        let steps = 5;
        let mut episode = LeRobotEpisode {
            index: 0,
            task: "reach".parse().unwrap(),
            outcome: zunft_protocol::episode::Outcome::Success,
            end: zunft_protocol::episode::EpisodeEnd::Terminated,
            steps,
            features: vec![vec![0.5; steps], vec![0.0; steps]],
            images: vec![vec![vec![7; 400_000]; steps]],
            rewards: vec![0.0; steps],
            monotonic_ns: (0..steps as i64).collect(),
        };
        let imported = import_episode(&embodiment, &episode, &options()).unwrap();
        let stream = &imported.manifest.streams[1];
        let counts: Vec<u32> = stream.chunks.iter().map(|chunk| chunk.steps).collect();
        assert_eq!((stream.name.as_str(), counts), ("observation.images.top", vec![2, 2, 1]));
        let chunk = SampleChunk::decode(&imported.chunks[2], Encoding::Jpeg).unwrap();
        assert_eq!((chunk.samples()[1].monotonic_ns, chunk.samples()[1].bytes.len()), (3, 400_000));
        episode.images[0][4][0] = 8;
        let other = import_episode(&embodiment, &episode, &options()).unwrap();
        assert_ne!(imported.manifest.recording, other.manifest.recording);
    }

    #[test]
    fn long_episodes_are_cut_into_chunks() {
        let embodiment = Embodiment {
            name: "wide".into(),
            rate_hz: 100.0,
            features: vec![Feature::vector(OBSERVATION_STATE, 1000), Feature::vector(ACTION, 1)],
        };
        let steps = 200;
        let episode = LeRobotEpisode {
            index: 0,
            task: "reach".parse().unwrap(),
            outcome: zunft_protocol::episode::Outcome::Success,
            end: zunft_protocol::episode::EpisodeEnd::Terminated,
            steps,
            features: vec![vec![0.5; 1000 * steps], vec![0.0; steps]],
            images: Vec::new(),
            rewards: vec![0.0; steps],
            monotonic_ns: (0..steps as i64).collect(),
        };
        let imported = import_episode(&embodiment, &episode, &options()).unwrap();
        let counts: Vec<u32> = imported.manifest.streams[0].chunks.iter().map(|chunk| chunk.steps).collect();
        assert_eq!(counts, [66, 66, 66, 2]);
    }

    #[test]
    fn an_import_stops_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = LeRobotDataset::open(&TinyDataset::new().write(dir.path()), LeRobotOptions::default()).unwrap();
        let mut kept = Kept(Vec::new());
        let stopped = import_lerobot(&dataset, &options(), &mut kept, &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(ImportError::Stopped { episodes: 1 })));
    }

    #[test]
    fn a_robot_is_named_after_the_folder() {
        let check = |path: &str, expected: &str| assert_eq!(robot_for(Path::new(path)).as_str(), expected);
        check("data/metaworld-mt10", "metaworld-mt10");
        check("/x/My Data (v2)/", "my-data--v2");
        check("/", "lerobot-import");
        check("..", "lerobot-import");
    }
}
