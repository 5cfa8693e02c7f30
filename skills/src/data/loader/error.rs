//! Why a loader could not be opened, or a batch not be made.

use std::io;

use zunft_protocol::ids::{ChunkId, EpisodeId};

use super::BATCH_BYTES_MAX;
use crate::data::dataset::DatasetError;

/// Why a loader has no batch.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A number that makes no sense.
    #[error("the loader's {field} is {found}; it needs {expected}")]
    Config {
        /// Which.
        field: &'static str,
        /// What was given.
        found: String,
        /// What would do.
        expected: &'static str,
    },
    /// Batches that do not fit in memory.
    #[error(
        "a batch of {batch_size} such windows takes more than {BATCH_BYTES_MAX} bytes; lower batch_size, or take fewer steps or cameras"
    )]
    BatchTooLarge {
        /// Windows a batch.
        batch_size: usize,
    },
    /// The selection, or an episode of it.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// No such camera.
    #[error("the embodiment has no camera {camera:?}; it has {known:?}")]
    NoCamera {
        /// The name given.
        camera: String,
        /// Its cameras.
        known: Vec<String>,
    },
    /// A camera that is not JPEG.
    #[error("camera {camera:?} does not record JPEG; the loader decodes nothing else: leave it out")]
    Encoding {
        /// Which.
        camera: String,
    },
    /// An episode in which a camera saw nothing.
    #[error("episode {episode} has no image of camera {camera:?}; leave out that episode or that camera")]
    NoImages {
        /// The episode.
        episode: EpisodeId,
        /// The camera.
        camera: String,
    },
    /// Steps without times: nobody knows which image belongs to which.
    #[error("the steps of episode {episode} have no times, which images need; leave that episode out")]
    NoTimes {
        /// The episode.
        episode: EpisodeId,
    },
    /// Images out of order.
    #[error("chunk {chunk} of camera {camera:?} in episode {episode} goes back in time; leave that episode out")]
    ImageTimes {
        /// The episode.
        episode: EpisodeId,
        /// The camera.
        camera: String,
        /// The chunk.
        chunk: ChunkId,
    },
    /// An image of another size than the embodiment says.
    #[error(
        "camera {camera:?} of episode {episode} has an image of {}x{} at {time_ns} ns; its embodiment says {}x{}: leave that episode out", .found[0], .found[1], .expected[0], .expected[1]
    )]
    ImageSize {
        /// The episode.
        episode: EpisodeId,
        /// The camera.
        camera: String,
        /// When it was taken, on the robot's monotonic clock.
        time_ns: i64,
        /// Width and height of the image.
        found: [u32; 2],
        /// Width and height in the embodiment.
        expected: [u32; 2],
    },
    /// An image that cannot be decoded.
    #[error(
        "an image of camera {camera:?} of episode {episode}, taken at {time_ns} ns, cannot be decoded; leave that episode out"
    )]
    Jpeg {
        /// The episode.
        episode: EpisodeId,
        /// The camera.
        camera: String,
        /// When it was taken, on the robot's monotonic clock.
        time_ns: i64,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No thread.
    #[error("a thread of the loader could not be started; lower its threads")]
    Thread {
        /// The cause.
        #[source]
        source: io::Error,
    },
}
