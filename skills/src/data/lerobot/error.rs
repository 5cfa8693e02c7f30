//! Everything that can be wrong with a LeRobot dataset, each with the file, the column and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use zunft_protocol::embodiment::EmbodimentError;
use zunft_protocol::ids::{IdError, TaskName};

use super::images::ImageFileError;
use super::{LEROBOT_EPISODE_IMAGE_BYTES_MAX, LEROBOT_EPISODE_VALUES_MAX};

/// Why a LeRobot dataset cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LeRobotError {
    /// A file that the format requires.
    #[error("{} is missing; give the root of a complete LeRobot v3 dataset, or copy it again", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The disk failed.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Not parquet, truncated or damaged.
    #[error("{} is not readable as parquet: it is truncated or damaged; copy it again", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ParquetError,
    },
    /// `info.json` is no JSON or lacks something.
    #[error("{} is not a LeRobot info file; copy it again", path.display())]
    Info {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A value in `info.json` that cannot be.
    #[error("{} has {field}: {found}; expected {expected}", path.display())]
    InfoField {
        /// The file.
        path: PathBuf,
        /// The key.
        field: String,
        /// What it says.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The format before v3.
    #[error(
        "{} says codebase_version {found}; only v3 is read: convert it with `python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=…` of LeRobot 0.4",
        path.display()
    )]
    OlderVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A format after v3.
    #[error("{} says codebase_version {found}; this program reads v3: upgrade it", path.display())]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: String,
    },
    /// A path template outside the small language that LeRobot uses.
    #[error(
        "{} has data_path {template:?}; expected a relative path with {{chunk_index:03d}} and {{file_index:03d}}",
        path.display()
    )]
    PathTemplate {
        /// The file.
        path: PathBuf,
        /// The template.
        template: String,
    },
    /// A feature that cannot be carried.
    #[error("{} has feature {feature:?} of dtype {dtype}, which cannot be imported; pass --skip-unsupported to leave it out", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: String,
        /// Its type.
        dtype: String,
    },
    /// Nothing to learn from.
    #[error("{} has no {missing} feature of floats; a dataset needs an \"action\" and at least one \"observation.*\"", path.display())]
    NoFeature {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        missing: &'static str,
    },
    /// Features that no embodiment may have.
    #[error("the features in {} do not make an embodiment", path.display())]
    Embodiment {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: EmbodimentError,
    },
    /// A declared column that the file lacks.
    #[error("{} has no column {column:?}; copy it again, or remove the feature from meta/info.json", path.display())]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// A column of another type or shape than declared.
    #[error("column {column:?} of {} is {found}; meta/info.json declares {expected}: write the dataset again", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What was found.
        found: String,
        /// What was declared.
        expected: String,
    },
    /// A value that is absent.
    #[error("column {column:?} of {} has empty cells; fill them or delete those episodes", path.display())]
    Null {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// NaN or an infinity (or a float64 beyond float32).
    #[error(
        "{}: episode {episode}, frame {frame} has {value} in {column:?}[{index}]; delete that episode (`lerobot-edit-dataset`) or repair it",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Which of its values.
        index: usize,
        /// The episode.
        episode: u64,
        /// The frame.
        frame: usize,
        /// What was found.
        value: f32,
    },
    /// Two files that count differently.
    #[error("{} has {found} {what}, {expected_by} says {expected}; the dataset is incomplete or was changed: copy it again", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// Of what.
        what: String,
        /// How many it has.
        found: u64,
        /// Who says otherwise.
        expected_by: &'static str,
        /// How many there should be.
        expected: u64,
    },
    /// An episode without steps.
    #[error("{}: episode {episode} has length 0; delete it (`lerobot-edit-dataset`)", path.display())]
    EmptyEpisode {
        /// The file.
        path: PathBuf,
        /// The episode.
        episode: u64,
    },
    /// An episode that would fill the memory.
    #[error(
        "{}: episode {episode} has {steps} steps of {step_values} values; at most {LEROBOT_EPISODE_VALUES_MAX} values an episode are read: split it",
        path.display()
    )]
    EpisodeTooLarge {
        /// The file.
        path: PathBuf,
        /// The episode.
        episode: u64,
        /// Its steps.
        steps: u64,
        /// Values of a step.
        step_values: usize,
    },
    /// An image that cannot be carried.
    #[error("{}: episode {episode}, frame {frame} has an image in {column:?} that cannot be imported; delete that episode (`lerobot-edit-dataset`) or repair it", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The episode.
        episode: u64,
        /// The frame.
        frame: usize,
        /// Why.
        #[source]
        source: ImageFileError,
    },
    /// Images that would fill the memory.
    #[error(
        "{}: the images of episode {episode} take more than {LEROBOT_EPISODE_IMAGE_BYTES_MAX} bytes; split it",
        path.display()
    )]
    ImagesTooLarge {
        /// The file.
        path: PathBuf,
        /// The episode.
        episode: u64,
    },
    /// Rows that do not follow each other.
    #[error("row {row} of {} has {column} {found} where {expected} must follow; rows must be in order of episode and frame: write the dataset again", path.display())]
    RowOrder {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0 in the file.
        row: u64,
        /// The column.
        column: &'static str,
        /// What it says.
        found: i64,
        /// What it should say.
        expected: i64,
    },
    /// A task number that nobody defined.
    #[error("{}: episode {episode} has task_index {found}, but meta/tasks.parquet has {tasks} tasks; copy both again", path.display())]
    TaskIndex {
        /// The file.
        path: PathBuf,
        /// The episode.
        episode: u64,
        /// The number.
        found: i64,
        /// Tasks defined.
        tasks: usize,
    },
    /// Two tasks in one episode.
    #[error("{}: episode {episode} changes its task at frame {frame}; split it into one episode a task", path.display())]
    TaskChanges {
        /// The file.
        path: PathBuf,
        /// The episode.
        episode: u64,
        /// Where.
        frame: usize,
    },
    /// A task whose text makes no name.
    #[error("task {text:?} of {} cannot be named", path.display())]
    TaskName {
        /// The file.
        path: PathBuf,
        /// The text.
        text: String,
        /// Why.
        #[source]
        source: IdError,
    },
    /// Two tasks that would share a name.
    #[error("tasks {first:?} and {second:?} of {} would both be named {name}; rename one in the dataset", path.display())]
    TaskCollision {
        /// The file.
        path: PathBuf,
        /// One text.
        first: String,
        /// The other.
        second: String,
        /// Their common name.
        name: TaskName,
    },
    /// Time that stands still, goes backwards or is none.
    #[error("{}: episode {episode} has timestamp {found} at frame {frame}; timestamps must be finite, not negative, and grow", path.display())]
    Timestamp {
        /// The file.
        path: PathBuf,
        /// The episode.
        episode: u64,
        /// The frame.
        frame: usize,
        /// What it says.
        found: f64,
    },
}

impl LeRobotError {
    /// A file that could not be opened or read.
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound { Self::Missing { path } } else { Self::Read { path, source } }
    }
}
