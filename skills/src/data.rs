//! Where training data comes from: snapshots of episodes, LeRobot datasets, and the flat arrays made of them.
//!
//! Only the hub, the command line and tests build this (feature `train`); an agent never does. Nothing here
//! knows a network: a hub's store and a local directory both look like an [`EpisodeSource`].

mod dataset;
mod export;
mod import;
mod lerobot;
mod loader;
mod selected;
mod selection;
mod snapshot_dir;
mod source;

#[cfg(test)]
pub(crate) mod fixture;

pub use dataset::{DATASET_VALUES_MAX, Dataset, DatasetEpisode, DatasetError, MixedEmbodiments};
pub use export::{ExportError, ExportOptions, ExportSummary, UnknownOutcomes, export_lerobot};
pub use import::{
    EpisodeSink, ImportError, ImportOptions, ImportProgress, ImportedEpisode, SinkError, import_episode,
    import_lerobot, robot_for,
};
pub use lerobot::{
    ImageFileError, LEROBOT_EPISODE_IMAGE_BYTES_MAX, LEROBOT_EPISODE_VALUES_MAX, LeRobotDataset, LeRobotEpisode,
    LeRobotEpisodes, LeRobotError, LeRobotOptions, LeRobotTask,
};
pub use loader::{
    BATCH_BYTES_MAX, Batches, ImageWindows, LOADER_THREADS_MAX, Loader, LoaderConfig, LoaderError, PixelType, Pixels,
    StepWindows, Window, WindowBatch,
};
pub use selection::{ActorKind, Funnel, Selection};
pub use snapshot_dir::{OpenSnapshotError, SNAPSHOT_DIR_VERSION, SnapshotDir, SnapshotDirWriter, WriteSnapshotError};
pub use source::{EpisodeSource, SourceError};
