//! Everything that was recorded and not yet durable on the hub, safe on the robot's disk.
//!
//! Steps go to the spool's own thread, which writes and syncs them in groups: a control program never waits
//! for the disk. An episode is whole, or sealed as truncated, and stays until the hub's receipt for it.
//! It does not know who records or who uploads.

mod disk;
mod eviction;
mod index;
mod key_file;
mod log;
mod mailbox;
mod read_back;
mod record;
mod recorder;
mod seal;
mod segment;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;
use zunft_protocol::embodiment::Embodiment;
use zunft_protocol::episode::{Actor, Clock, EpisodeEnd, Outcome};
use zunft_protocol::ids::{ChunkId, EpisodeId, RecordingId, TaskName};
use zunft_protocol::limits::CHUNK_BYTES_TARGET;
use zunft_protocol::local::{Ended, Progress};
use zunft_protocol::message::Tombstone;

use self::disk::{Disk, FolderDisk};
use self::eviction::EvictionPolicy;
use self::index::Index;
pub use self::index::StoredEpisode;
pub use self::key_file::KeyFileError;
use self::log::Room;
use self::mailbox::Mailbox;
use self::read_back::OpenError;
use self::recorder::Opening;
use self::seal::Keyring;
use self::worker::{Command, CommitPolicy, RETRY_INTERVAL, Worker};
use crate::config::{SpoolConfig, WhenFull};
use crate::identity::Identity;

/// Smallest `spool.segment_bytes` that holds any allowed step.
pub const SEGMENT_BYTES_MIN: u64 = log::SEGMENT_BYTES_MIN;

/// Most segments that a spool can have.
pub const SEGMENTS_MAX: u64 = segment::SEGMENTS_MAX as u64;

/// Why the spool did not take something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No room: by quota or on the disk.
    #[error("{0}")]
    SpoolFull(String),
    /// The disk failed.
    #[error("{0}")]
    Disk(String),
    /// The recording has as many chunks as an episode may have.
    #[error("the recording is as long as an episode may be; end it and begin another")]
    TooLong,
    /// The recording is not open any more.
    #[error("the recording is no longer open")]
    Gone,
    /// The agent stops.
    #[error("the agent is stopping")]
    Stopping,
}

/// What one recording has reached, shared between its connection and the spool's thread.
#[derive(Debug, Default)]
struct Tracker {
    recorded: AtomicU64,
    on_disk: AtomicU64,
    refusal: OnceLock<Refusal>,
}

impl Tracker {
    fn refuse(&self, refusal: Refusal) {
        // The first reason is the one that the client hears.
        drop(self.refusal.set(refusal));
    }
}

/// The spool's numbers for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SpoolStatus {
    /// Bytes of all segments on disk.
    pub bytes: u64,
    /// Most bytes that they may have.
    pub bytes_max: u64,
    /// Recordings begun since the agent was installed.
    pub recordings_total: u64,
    /// Recordings that are open now.
    pub recordings_open: u64,
    /// Bytes that they hold in memory: chunks that are being filled, and the lists of those that are cut.
    pub recordings_open_bytes: u64,
    /// Whole episodes that the hub does not hold yet.
    pub episodes_waiting: u64,
    /// Bytes of their chunks.
    pub bytes_waiting: u64,
    /// The oldest of them, by its number.
    pub oldest_ordinal_waiting: Option<u64>,
    /// Recordings that damage on disk took; kept for a closer look.
    pub recordings_damaged: u64,
    /// Segments of which something could not be read at the start.
    pub segments_damaged: u64,
    /// Episodes given up for want of room since the agent started.
    pub episodes_evicted: u64,
    /// Given up, and the hub does not know of it yet.
    pub evictions_untold: u64,
    /// Whether what is recorded now is encrypted on disk.
    pub encrypted: bool,
    /// Segments that are not, from before.
    pub segments_in_clear: u64,
    /// Segments that only a key of `spool.encryption_key_files_old` opens.
    pub segments_of_old_keys: u64,
    /// Why no steps are taken now.
    pub refuses: Option<String>,
}

#[derive(Debug)]
struct Shared {
    mailbox: Mailbox<Command>,
    index: Mutex<Index>,
    refusal: Mutex<Option<Refusal>>,
    disk_bytes: AtomicU64,
    recordings_open: AtomicU64,
    recordings_open_bytes: AtomicU64,
    recordings_total: AtomicU64,
    evicted: AtomicU64,
    segments_in_clear: AtomicU64,
    segments_of_old_keys: AtomicU64,
    bytes_max: u64,
    encrypted: bool,
    /// Counts changes, so that an uploader can wait for one.
    changes: watch::Sender<u64>,
}

impl Shared {
    fn new(bytes_max: u64, encrypted: bool) -> Self {
        Self {
            mailbox: Mailbox::new(),
            index: Mutex::new(Index::default()),
            refusal: Mutex::new(None),
            disk_bytes: AtomicU64::new(0),
            recordings_open: AtomicU64::new(0),
            recordings_open_bytes: AtomicU64::new(0),
            recordings_total: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            segments_in_clear: AtomicU64::new(0),
            segments_of_old_keys: AtomicU64::new(0),
            bytes_max,
            encrypted,
            changes: watch::Sender::new(0),
        }
    }

    fn accepting(&self) -> Result<(), Refusal> {
        match &*self.refusal.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(refusal) => Err(refusal.clone()),
        }
    }

    /// Whether this changed anything worth telling an operator.
    fn set_refusal(&self, refusal: Option<Refusal>) -> bool {
        let mut current = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = current.is_some() != refusal.is_some();
        *current = refusal;
        changed
    }

    fn count(&self, disk_bytes: u64, recordings_open: u64, recordings_total: u64) {
        self.disk_bytes.store(disk_bytes, Ordering::Relaxed);
        self.recordings_open.store(recordings_open, Ordering::Relaxed);
        self.recordings_total.store(recordings_total, Ordering::Relaxed);
    }

    fn count_segments(&self, in_clear: u64, of_old_keys: u64) {
        self.segments_in_clear.store(in_clear, Ordering::Relaxed);
        self.segments_of_old_keys.store(of_old_keys, Ordering::Relaxed);
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// What is copied from the system's memory in some ten microseconds: less than handing it to another thread takes.
const AT_HAND_BYTES_MAX: u32 = 128 * 1024;

/// Why bytes of an episode could not be read back.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk.
    #[error("the spool could not be read")]
    Disk(#[from] io::Error),
    /// The bytes do not decrypt: they are not those that were written.
    #[error("chunk {chunk} is damaged on disk")]
    Chunk {
        /// Which.
        chunk: ChunkId,
    },
    /// The bytes are not those that were written.
    #[error("the manifest of episode {episode} is damaged on disk")]
    Manifest {
        /// Which.
        episode: EpisodeId,
    },
}

/// Why a spool did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk, or no thread.
    #[error(transparent)]
    System(#[from] io::Error),
    /// A key that cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// What was recorded before needs another key.
    #[error(
        "{}, the first of {segments} such segments, is encrypted {}; nothing was changed",
        path.display(), remedy(key_file.as_deref())
    )]
    KeyMissing {
        /// The first segment.
        path: PathBuf,
        /// How many there are.
        segments: usize,
        /// The file with the key for new segments.
        key_file: Option<PathBuf>,
    },
}

fn remedy(key_file: Option<&Path>) -> String {
    let (current, old) = (key_file::CURRENT, key_file::OLD);
    match key_file {
        None => format!("and no key was given: name the file with its key in config key {current}, or in {old}"),
        Some(path) => format!(
            "with another key than that in {} (config key {current}): put the other one back, or name its file in {old}",
            path.display()
        ),
    }
}

/// The spool: cheap to clone, one thread behind all clones.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    reader: Arc<FolderDisk>,
    keyring: Keyring,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Spool {
    /// Reads the spool in `folder` back, seals what was open when the agent stopped, and starts its thread.
    ///
    /// A disk that cannot be read does not keep the agent from acting: the spool takes no steps, says why, and tries
    /// again. A key that is missing does: it is a mistake in the configuration, like a missing certificate.
    pub fn start(folder: &Path, config: &SpoolConfig, identity: Identity) -> Result<Self, SpoolError> {
        let keyring = keyring(config)?;
        let shared = Arc::new(Shared::new(config.bytes_max, keyring.encrypts()));
        let room = Room {
            segment_bytes: config.segment_bytes,
            spool_bytes_max: config.bytes_max,
            free_bytes_min: config.free_bytes_min,
        };
        let policy = CommitPolicy {
            interval: Duration::from_millis(config.sync_interval_ms),
            bytes: usize::try_from(config.sync_bytes).unwrap_or(usize::MAX),
            chunk_bytes: CHUNK_BYTES_TARGET,
        };
        let eviction =
            EvictionPolicy { evicts: config.when_full == WhenFull::Evict, pinned_tasks: config.pinned_tasks.clone() };
        let reader = Arc::new(FolderDisk::new(folder));
        let (folder, for_worker, for_open) = (folder.to_owned(), Arc::clone(&shared), keyring.clone());
        let key_file = config.encryption_key_file.clone();
        let open = move || {
            let disk = FolderDisk::new(&folder);
            disk.make_folder()?;
            let (eviction, identity) = (eviction.clone(), identity.clone());
            Worker::open(disk, room, for_open.clone(), policy, eviction, identity, Arc::clone(&for_worker)).map_err(
                |error| match error {
                    OpenError::Disk(error) => SpoolError::System(error),
                    OpenError::KeyMissing { first, segments } => {
                        let path = FolderDisk::new(&folder).path(first);
                        SpoolError::KeyMissing { path, segments, key_file: key_file.clone() }
                    }
                },
            )
        };
        let first = match open() {
            Err(error @ SpoolError::KeyMissing { .. }) => return Err(error),
            opened => worker_or_refusal(opened, &shared, now()),
        };
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("spool".into()).spawn(move || {
            let worker = match first {
                Some(worker) => Some(worker),
                None => open_patiently(&open, &for_thread),
            };
            if let Some(worker) = worker {
                run(worker, &for_thread);
            }
        })?;
        Ok(Self { shared, reader, keyring, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// Opens a recording; nothing is written before its first step.
    pub fn record(&self, task: TaskName, embodiment: Embodiment, actor: Actor) -> Result<Recording, Refusal> {
        self.shared.accepting()?;
        let recording = RecordingId::from_bytes(rand::random());
        let begin = Some((task, embodiment, actor));
        Ok(Recording { shared: Arc::clone(&self.shared), recording, begin, tracker: Arc::default(), ended: false })
    }

    /// Whole episodes that the hub does not hold yet, oldest first, without those that `skip` names.
    pub fn waiting(&self, count_max: usize, skip: impl Fn(u64) -> bool) -> Vec<StoredEpisode> {
        let index = self.index();
        index.offerable().filter(|episode| !skip(episode.ordinal)).take(count_max).cloned().collect()
    }

    /// Changes with what [`Self::waiting`] and [`Self::missing`] say, unless that is what the hub was heard to hold.
    pub(crate) fn revision(&self) -> u64 {
        self.index().revision()
    }

    /// Changes whenever episodes come or go.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// The encoded manifest of an episode.
    pub fn read_manifest(&self, episode: &StoredEpisode) -> Result<Vec<u8>, ReadError> {
        let bytes = self.read(episode.manifest)?;
        let whole = bytes.filter(|bytes| EpisodeId::of(bytes) == episode.episode);
        whole.ok_or(ReadError::Manifest { episode: episode.episode })
    }

    /// The stored bytes of an episode's chunk number `index`, in the order of the manifest.
    ///
    /// They were verified when the spool was opened, or written since. Whoever takes them hashes them: the hub refuses
    /// what the disk has damaged meanwhile, and the episode is kept aside.
    ///
    /// # Panics
    /// When the episode has no such chunk.
    pub fn read_chunk(&self, episode: &StoredEpisode, index: usize) -> Result<Vec<u8>, ReadError> {
        let (chunk, location) = &episode.chunks[index];
        self.read(*location)?.ok_or(ReadError::Chunk { chunk: chunk.id })
    }

    /// [`Self::read_manifest`], if that takes neither the disk nor long.
    pub(crate) fn manifest_at_hand(&self, episode: &StoredEpisode) -> Option<Vec<u8>> {
        let bytes = self.at_hand(episode.manifest)?;
        (EpisodeId::of(&bytes) == episode.episode).then_some(bytes)
    }

    /// [`Self::read_chunk`], if that takes neither the disk nor long.
    pub(crate) fn chunk_at_hand(&self, episode: &StoredEpisode, index: usize) -> Option<Vec<u8>> {
        self.at_hand(episode.chunks.get(index)?.1)
    }

    fn at_hand(&self, location: index::Location) -> Option<Vec<u8>> {
        let index::Location { segment, offset, bytes, body, sealed } = location;
        if sealed || bytes > AT_HAND_BYTES_MAX {
            return None;
        }
        let mut own = vec![0; bytes as usize - usize::from(body)];
        self.reader.read_cached(segment, offset + u64::from(body), &mut own).then_some(own)
    }

    fn read(&self, location: index::Location) -> io::Result<Option<Vec<u8>>> {
        log::read_body(&*self.reader, &self.keyring, location)
    }

    /// Frees an episode: the hub holds it, as `receipt` proves.
    pub fn durable(&self, ordinal: u64, receipt: Vec<u8>) {
        let bytes = receipt.len();
        // A closed spool keeps the episode; it is offered again after the restart and found there.
        // Who hears the hub does not wait for a disk; there are no more of these than uploads under way.
        drop(self.shared.mailbox.send_at_once(Command::Free { ordinal, receipt }, bytes));
    }

    /// Of these recordings, those that the spool holds no longer as whole episodes.
    pub fn missing(&self, ordinals: impl Iterator<Item = u64>) -> Vec<u64> {
        let index = self.index();
        ordinals.filter(|ordinal| !index.sealed().contains_key(ordinal)).collect()
    }

    /// What was given up and the hub does not know of, oldest first.
    pub fn evictions(&self, count_max: usize) -> Vec<Tombstone> {
        self.index().tombstones(count_max).cloned().collect()
    }

    /// The hub has stored what was told of these recordings.
    pub fn evictions_told(&self, ordinals: &[u64]) {
        self.index().forget_tombstones(ordinals);
    }

    /// The spool's numbers.
    pub fn status(&self) -> SpoolStatus {
        let refuses = self.shared.accepting().err().map(|refusal| refusal.to_string());
        let index = self.index();
        SpoolStatus {
            bytes: self.shared.disk_bytes.load(Ordering::Relaxed),
            bytes_max: self.shared.bytes_max,
            recordings_total: self.shared.recordings_total.load(Ordering::Relaxed),
            recordings_open: self.shared.recordings_open.load(Ordering::Relaxed),
            recordings_open_bytes: self.shared.recordings_open_bytes.load(Ordering::Relaxed),
            episodes_waiting: index.sealed().len() as u64,
            bytes_waiting: index.sealed_bytes(),
            oldest_ordinal_waiting: index.sealed().keys().next().copied(),
            recordings_damaged: index.damaged_count() as u64,
            segments_damaged: index.segments_damaged,
            episodes_evicted: self.shared.evicted.load(Ordering::Relaxed),
            evictions_untold: index.tombstones_count() as u64,
            encrypted: self.shared.encrypted,
            segments_in_clear: self.shared.segments_in_clear.load(Ordering::Relaxed),
            segments_of_old_keys: self.shared.segments_of_old_keys.load(Ordering::Relaxed),
            refuses,
        }
    }

    /// Seals what is open, flushes and ends the thread. Later calls find it done.
    pub fn stop(&self) {
        self.shared.mailbox.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the spool's thread failed; what it had not synced is lost");
        }
    }

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.shared.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open recording. Dropped without an end, it is the caller's business to have ended it.
#[derive(Debug)]
pub struct Recording {
    shared: Arc<Shared>,
    recording: RecordingId,
    begin: Option<(TaskName, Embodiment, Actor)>,
    tracker: Arc<Tracker>,
    ended: bool,
}

impl Recording {
    /// Its id.
    pub fn id(&self) -> RecordingId {
        self.recording
    }

    /// Takes a step: its row in the order of the steps stream's schema. `clock` is read for the first one.
    pub fn step(&mut self, row: Vec<u8>, intervention: bool, clock: impl FnOnce() -> Clock) -> Result<(), Refusal> {
        self.open(clock)?;
        let bytes = row.len();
        self.send(Command::Step { recording: self.recording, intervention, row }, bytes)?;
        self.tracker.recorded.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Where samples of this recording go. `clock` is read if nothing was recorded yet.
    pub fn samples(&mut self, clock: impl FnOnce() -> Clock) -> Result<SampleSender, Refusal> {
        self.open(clock)?;
        let (shared, tracker) = (Arc::clone(&self.shared), Arc::clone(&self.tracker));
        Ok(SampleSender { shared, tracker, recording: self.recording })
    }

    /// Begins the recording with whatever comes first.
    fn open(&mut self, clock: impl FnOnce() -> Clock) -> Result<(), Refusal> {
        if let Some(refusal) = self.tracker.refusal.get() {
            self.ended = true;
            return Err(refusal.clone());
        }
        if let Some((task, embodiment, actor)) = self.begin.take() {
            let opening = Opening { recording: self.recording, task, embodiment, actor, clock: clock() };
            self.send(Command::Begin { opening: Box::new(opening), tracker: Arc::clone(&self.tracker) }, 0)?;
        }
        Ok(())
    }

    /// How far the recording is.
    pub fn progress(&self) -> Progress {
        Progress {
            steps_recorded: self.tracker.recorded.load(Ordering::Relaxed),
            steps_on_disk: self.tracker.on_disk.load(Ordering::Acquire),
        }
    }

    /// Whether any step was taken.
    pub fn is_empty(&self) -> bool {
        self.tracker.recorded.load(Ordering::Relaxed) == 0
    }

    /// Ends the recording; returns when the whole episode is on disk.
    pub fn end(mut self, outcome: Outcome, end: EpisodeEnd) -> Result<Ended, Refusal> {
        if let Some(refusal) = self.tracker.refusal.get() {
            self.ended = true;
            return Err(refusal.clone());
        }
        let (sender, receiver) = sync_channel(1);
        self.finish(outcome, end, Some(sender))?;
        let ended = receiver.recv().map_err(|_| Refusal::Stopping)?;
        // Between the check above and the command, the spool may have sealed it for want of room.
        ended.map_err(|refusal| self.tracker.refusal.get().cloned().unwrap_or(refusal))
    }

    /// Ends the recording without waiting for the disk: its client went away, or the agent stops.
    pub fn cut_off(mut self, end: EpisodeEnd) {
        // A spool that stops seals it all the same.
        drop(self.finish(Outcome::Unknown, end, None));
    }

    fn finish(&mut self, outcome: Outcome, end: EpisodeEnd, reply: Option<worker::Reply>) -> Result<(), Refusal> {
        self.ended = true;
        if self.begin.is_some() {
            return Err(Refusal::Gone);
        }
        self.send(Command::End { recording: self.recording, outcome, end, reply }, 0)
    }

    fn send(&self, command: Command, bytes: usize) -> Result<(), Refusal> {
        self.shared.mailbox.send(command, bytes).map_err(|_| Refusal::Stopping)
    }
}

/// Takes samples of one recording's streams, from whichever thread has them.
#[derive(Debug, Clone)]
pub struct SampleSender {
    shared: Arc<Shared>,
    tracker: Arc<Tracker>,
    recording: RecordingId,
}

impl SampleSender {
    /// Takes a sample of stream `stream` (the first after `steps` is 1): its time, i64, and its bytes.
    ///
    /// It waits while the spool's thread is behind.
    pub fn send(&self, stream: u16, key_frame: bool, row: Vec<u8>) -> Result<(), Refusal> {
        if let Some(refusal) = self.tracker.refusal.get() {
            return Err(refusal.clone());
        }
        let bytes = row.len();
        let command = Command::Sample { recording: self.recording, stream, key_frame, row };
        self.shared.mailbox.send(command, bytes).map_err(|_| Refusal::Stopping)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.ended {
            use zunft_protocol::episode::Truncation;
            drop(self.finish(Outcome::Unknown, EpisodeEnd::Truncated { limit: Truncation::ClientGone }, None));
        }
    }
}

/// Reads the keys that the configuration names.
fn keyring(config: &SpoolConfig) -> Result<Keyring, KeyFileError> {
    let current = config.encryption_key_file.as_deref().map(|path| key_file::read(path, key_file::CURRENT));
    let old = config.encryption_key_files_old.iter().map(|path| key_file::read(path, key_file::OLD));
    Ok(Keyring::new(current.transpose()?, old.collect::<Result<_, _>>()?, rand::random))
}

/// A spool that was opened; where it could not be, steps are refused until the next try.
fn worker_or_refusal<D: Disk>(
    opened: Result<Worker<D>, impl std::error::Error>,
    shared: &Shared,
    now: Instant,
) -> Option<Worker<D>> {
    match opened {
        Ok(mut worker) => {
            worker.commit(now);
            Some(worker)
        }
        Err(error) => {
            if shared.set_refusal(Some(Refusal::Disk(format!("the spool cannot be read: {error}")))) {
                tracing::error!(%error, "the spool cannot be read; nothing is recorded or uploaded until it can");
            }
            None
        }
    }
}

/// Tries until the disk lets the spool be opened; `None` when the agent stops before.
fn open_patiently<D: Disk, E: std::error::Error>(
    open: &impl Fn() -> Result<Worker<D>, E>,
    shared: &Shared,
) -> Option<Worker<D>> {
    loop {
        // Steps are refused before they are sent, so what arrives is about nothing that was taken.
        shared.mailbox.receive(Some(RETRY_INTERVAL))?;
        if let Some(worker) = worker_or_refusal(open(), shared, now()) {
            return Some(worker);
        }
    }
}

fn run<D: Disk>(mut worker: Worker<D>, shared: &Shared) {
    loop {
        let patience = worker.due().map(|due| due.saturating_duration_since(now()));
        let Some(commands) = shared.mailbox.receive(patience) else { break };
        for (command, _) in commands {
            worker.apply(command, now());
            // Between commands, so that a mailbox full of images is not in memory twice.
            if worker.has_enough() {
                worker.commit(now());
            }
        }
        if worker.due().is_some_and(|due| due <= now()) {
            worker.commit(now());
        }
    }
    worker.seal_all(now());
    if !worker.is_idle() {
        tracing::error!("the disk refused the last records; what was synced before is kept");
    }
}

#[expect(clippy::disallowed_methods, reason = "the spool's thread is a shell: it waits and gives its worker the time")]
fn now() -> Instant {
    Instant::now()
}
