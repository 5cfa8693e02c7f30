//! Every bound on bytes and lists that come from outside, with its reason.
//!
//! A bound is checked before memory is taken for what it bounds.

/// Largest body of a control message.
///
/// Control messages carry no bulk; this keeps a hostile peer from making us buffer more per stream.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Largest chunk, as stored and as sent.
///
/// One chunk fits the hub's per-stream receive window, so a stalled robot cannot hold more than this.
pub const CHUNK_BYTES_MAX: usize = 1024 * 1024;

/// Size at which the recorder closes a chunk (before compression).
///
/// Small enough that a lost connection costs little, large enough that hashing and framing vanish.
pub const CHUNK_BYTES_TARGET: usize = 256 * 1024;

/// Largest size of a chunk once decompressed.
///
/// A zstd bomb stops here; [`CHUNK_BYTES_TARGET`] plus one step of any allowed embodiment is far below.
pub const CHUNK_RAW_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Largest encoded episode manifest: an hour of ten cameras at 30 Hz has some 60,000 chunks, 3.5 MB of references.
///
/// With the header of its record it fits a segment of 8 MiB on the robot.
pub const MANIFEST_BYTES_MAX: usize = 8 * 1024 * 1024 - 16 * 1024;

/// Most bytes that one [`ChunkRef`](crate::episode::ChunkRef) takes in a manifest: the digest, two numbers, three names.
pub const CHUNK_REF_BYTES_MAX: usize = 64;

/// Most chunks in one episode, over all its streams.
///
/// A manifest with so many is within [`MANIFEST_BYTES_MAX`] whatever else it says; the bitmap of WANT is within a
/// message.
pub const EPISODE_CHUNKS_MAX: usize = 100_000;

/// Most ranges of steps under human control in one episode: one a second for four hours.
pub const INTERVENTIONS_MAX: usize = 16_384;

/// Most bytes that one range takes in a manifest.
pub const INTERVENTION_BYTES_MAX: usize = 32;

/// Largest encoded embodiment: it travels in every manifest, and its names again in the streams.
pub const EMBODIMENT_BYTES_MAX: usize = 256 * 1024;

// The names in the streams and their schemas repeat the embodiment's at most twice; the last term is all else.
const _: () = assert!(
    EPISODE_CHUNKS_MAX * CHUNK_REF_BYTES_MAX
        + INTERVENTIONS_MAX * INTERVENTION_BYTES_MAX
        + 3 * EMBODIMENT_BYTES_MAX
        + 64 * 1024
        <= MANIFEST_BYTES_MAX
);
const _: () = assert!(EPISODE_CHUNKS_MAX.div_ceil(8) + 1024 <= MESSAGE_BYTES_MAX);

/// Most steps in one episode: 11 days at 1 kHz would be a log, not an episode.
pub const EPISODE_STEPS_MAX: u64 = 1_000_000_000;

/// Most features of an embodiment: a humanoid with ten cameras has about fifty.
pub const FEATURES_MAX: usize = 256;

/// Most values in one feature of one step: a 1280x720 RGB image and then some.
pub const FEATURE_VALUES_MAX: usize = 4 * 1024 * 1024;

/// Most values in one image of a camera whose images are encoded: 32 million, a 4K RGB image and then some.
///
/// Nothing is allocated for them: the encoded bytes have [`SAMPLE_BYTES_MAX`].
pub const IMAGE_VALUES_MAX: usize = 32 * 1024 * 1024;

/// Largest encoded image of a stream: alone, it fits a chunk.
pub const SAMPLE_BYTES_MAX: usize = CHUNK_BYTES_MAX - 1024;

/// Most dimensions of a feature's shape; LeRobot writes up to five.
pub const SHAPE_DIMS_MAX: usize = 5;

/// Largest raw size of one step over all features.
///
/// It must fit a local frame and, alone, a chunk.
pub const STEP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest name (task, robot, site, tenant, skill), in bytes.
///
/// Names become parts of certificates, store keys and file names; 63 is the DNS label's bound.
pub const NAME_BYTES_MAX: usize = 63;

/// Largest DSSE envelope of a root or an assignment, checked before parsing.
pub const ENVELOPE_BYTES_MAX: usize = 48 * 1024;

/// Largest signed manifest of a release: golden vectors are files of their own, so this is names and digests.
pub const RELEASE_MANIFEST_BYTES_MAX: usize = 1024 * 1024;

/// Most files in a release.
pub const RELEASE_FILES_MAX: usize = 64;

/// Largest single file of a release: 8 GiB holds a 4-billion-parameter policy in bf16.
pub const RELEASE_FILE_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

/// Most releases in one assignment: the complete set that a robot shall run.
pub const ASSIGNED_RELEASES_MAX: usize = 64;

/// Uploads that one robot may have open at once.
///
/// A hub commits in groups of some tens of milliseconds: so many small episodes fill a gigabit link meanwhile.
pub const UPLOADS_IN_FLIGHT_MAX: usize = 512;

/// Bytes of one upload that a hub holds in memory at most: beyond, it writes chunks down before the episode is whole.
pub const UPLOAD_BYTES_HELD_MAX: u64 = 32 * 1024 * 1024;

/// Most hashes between a receipt and the signature that it shares with others.
pub const RECEIPT_PATH_MAX: usize = 20;

/// Most chunks of one episode that a hub holds in part: a stream carries one chunk at a time, so each break leaves one.
pub const RESUMES_MAX: usize = 16;

/// Largest body of a frame on the local socket: one step, one image or one JSON text.
pub const LOCAL_FRAME_BYTES_MAX: usize = STEP_BYTES_MAX + 4096;

/// Most tombstones in one message: at about 150 bytes each they stay well below [`MESSAGE_BYTES_MAX`].
pub const EVICTIONS_PER_MESSAGE_MAX: usize = 256;

/// Lowest bandwidth cap of a robot's uplink: below, a handshake takes longer than hub and agent wait for it.
pub const UPLOAD_BYTES_PER_SECOND_MIN: u64 = 4096;

/// Most upload windows in a policy: one for every hour of the day, and then some.
pub const UPLOAD_WINDOWS_MAX: usize = 32;

/// Most tasks that a hub can tell a robot to keep on site: with names of [`NAME_BYTES_MAX`] they fit a message.
pub const KEPT_TASKS_MAX: usize = 256;

const _: () = assert!(KEPT_TASKS_MAX * (NAME_BYTES_MAX + 8) + UPLOAD_WINDOWS_MAX * 4 + 256 <= MESSAGE_BYTES_MAX);

/// Most episodes that a hub asks for in one message, and that a robot remembers to be asked for without having them.
pub const WANTED_PER_MESSAGE_MAX: usize = 1024;

const _: () = assert!(WANTED_PER_MESSAGE_MAX * 32 + 256 <= MESSAGE_BYTES_MAX);
