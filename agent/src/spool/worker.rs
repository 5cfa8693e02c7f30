//! What the spool does with each command, and when it commits.
//!
//! The thread in [`super`] feeds it and waits; the worker never waits for anything but its disk, and is given
//! the time. Nothing is acknowledged here before the log says that it is durable.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use zunft_protocol::cbor;
use zunft_protocol::episode::{EpisodeEnd, Outcome, Truncation};
use zunft_protocol::ids::RecordingId;
use zunft_protocol::local::Ended;
use zunft_protocol::message::{EvictionReason, Tombstone};

use super::disk::Disk;
use super::eviction::{self, EvictionPolicy, Plan};
use super::index::{Entry, Index};
use super::log::{Committed, Log, NoRoom, Room};
use super::read_back::{OpenError, Seen};
use super::record::{Freeing, Ordinal, Record};
use super::recorder::{CutChunk, Opening, Recorder, STEPS, StreamNumber};
use super::seal::{Keyring, Protection};
use super::{Refusal, Shared, Tracker};
use crate::identity::Identity;

/// Waiting time before a failed disk is tried again.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// When what waits is committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommitPolicy {
    /// A step is on disk at most this long after it arrived.
    pub(crate) interval: Duration,
    /// Or as soon as so many bytes wait.
    pub(crate) bytes: usize,
    /// Size at which a chunk is cut, before compression.
    pub(crate) chunk_bytes: usize,
}

/// Who waits for an episode to be on disk.
pub(crate) type Reply = SyncSender<Result<Ended, Refusal>>;

/// What the spool's thread is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// The first step of a recording is about to follow.
    Begin { opening: Box<Opening>, tracker: Arc<Tracker> },
    /// A step.
    Step { recording: RecordingId, intervention: bool, row: Vec<u8> },
    /// A sample of a stream of its own: its time, i64, and its bytes.
    Sample { recording: RecordingId, stream: StreamNumber, key_frame: bool, row: Vec<u8> },
    /// The recording is over.
    End { recording: RecordingId, outcome: Outcome, end: EpisodeEnd, reply: Option<Reply> },
    /// The hub holds the episode.
    Free { ordinal: Ordinal, receipt: Vec<u8> },
}

#[derive(Debug)]
struct Open {
    recorder: Recorder,
    tracker: Arc<Tracker>,
}

#[derive(Debug)]
struct Sealing {
    ended: Ended,
    reply: Option<Reply>,
}

/// The spool's state, owned by its thread.
pub(crate) struct Worker<D> {
    log: Log<D>,
    identity: Identity,
    policy: CommitPolicy,
    eviction: EvictionPolicy,
    shared: Arc<Shared>,
    open: BTreeMap<RecordingId, Open>,
    /// Recordings whose steps may still be in the log's batch.
    trackers: BTreeMap<Ordinal, Arc<Tracker>>,
    sealing: BTreeMap<Ordinal, Sealing>,
    /// Since when something waits to be committed.
    waiting_since: Option<Instant>,
    /// Someone waits for the next commit.
    urgent: bool,
    /// When a spool without room looks again.
    retry_at: Option<Instant>,
    /// What waits could not be written: trying again at once would not help.
    disk_failed: bool,
}

impl<D: Disk> Worker<D> {
    /// Reads the log back and seals what was open as cut off by the agent's stop.
    pub(crate) fn open(
        disk: D,
        room: Room,
        keyring: Keyring,
        policy: CommitPolicy,
        eviction: EvictionPolicy,
        identity: Identity,
        shared: Arc<Shared>,
    ) -> Result<Self, OpenError> {
        let mut index = Index::new(tombstones_max(room));
        let mut open = BTreeMap::new();
        let (log, found) = Log::open(disk, room, keyring, &mut |seen| replay(seen, policy, &mut index, &mut open))?;
        let damaged = index.mark_unaccounted(|ordinal| open.contains_key(&ordinal));
        index.unsettled = log.unsettled();
        index.segments_damaged = found.damaged.len() as u64;
        let unfinished = open.len();
        tracing::info!(episodes = index.sealed().len(), unfinished, torn = found.torn, "spool read back");
        *shared.index() = index;
        let mut worker = Self {
            log,
            identity,
            policy,
            eviction,
            shared,
            open: BTreeMap::new(),
            trackers: BTreeMap::new(),
            sealing: BTreeMap::new(),
            waiting_since: None,
            urgent: false,
            retry_at: None,
            disk_failed: false,
        };
        for ordinal in damaged {
            tracing::error!(ordinal, "records of a recording are damaged; it is kept but not uploaded");
            worker.log.append(&Record::Damaged { ordinal });
        }
        for (ordinal, recorder) in open {
            let end = EpisodeEnd::Truncated { limit: Truncation::AgentStopped };
            tracing::warn!(ordinal, steps = recorder.steps(), "a recording was cut off; it is kept as truncated");
            worker.seal(recorder, Outcome::Unknown, end, None);
        }
        Ok(worker)
    }

    /// Takes a command. `now` is when it arrived.
    pub(crate) fn apply(&mut self, command: Command, now: Instant) {
        match command {
            Command::Begin { opening, tracker } => self.begin(*opening, tracker),
            Command::Step { recording, intervention, row } => self.step(recording, intervention, &row),
            Command::Sample { recording, stream, key_frame, row } => self.sample(recording, stream, key_frame, &row),
            Command::End { recording, outcome, end, reply } => self.end(recording, outcome, end, reply),
            Command::Free { ordinal, receipt } => {
                if self.shared.index().sealed().contains_key(&ordinal) {
                    self.log.append(&Record::Freed { ordinal, why: Freeing::Durable, receipt: &receipt });
                }
            }
        }
        if self.log.waiting_bytes() > 0 {
            self.waiting_since.get_or_insert(now);
        }
    }

    fn begin(&mut self, opening: Opening, tracker: Arc<Tracker>) {
        if let Err(refusal) = self.shared.accepting() {
            tracker.refuse(refusal);
            return;
        }
        let ordinal = self.log.mint_ordinal();
        self.log.append(&Record::Begin { ordinal, opening: &opening.encode() });
        self.trackers.insert(ordinal, Arc::clone(&tracker));
        let (recording, recorder) = (opening.recording, Recorder::new(ordinal, opening, self.policy.chunk_bytes));
        self.open.insert(recording, Open { recorder, tracker });
    }

    fn step(&mut self, recording: RecordingId, intervention: bool, row: &[u8]) {
        let Some(open) = self.open_for(recording, STEPS, true, row) else { return };
        let ordinal = open.recorder.ordinal;
        assert!(open.recorder.push(row, intervention), "the socket checks the size of every step");
        self.log.append(&Record::Step { ordinal, intervention, row });
    }

    fn sample(&mut self, recording: RecordingId, stream: StreamNumber, key_frame: bool, row: &[u8]) {
        let Some(open) = self.open_for(recording, stream, key_frame, row) else { return };
        let ordinal = open.recorder.ordinal;
        assert!(open.recorder.push_sample(stream, row, key_frame), "the socket checks every sample");
        self.log.append(&Record::Sample { ordinal, stream, key_frame, row });
    }

    /// The open recording with room for this row. One that is full is sealed instead.
    fn open_for(
        &mut self,
        recording: RecordingId,
        stream: StreamNumber,
        key_frame: bool,
        row: &[u8],
    ) -> Option<&mut Open> {
        // Steps of a recording that was refused or sealed early may still be on their way.
        let open = self.open.get_mut(&recording)?;
        let ordinal = open.recorder.ordinal;
        while let Some(CutChunk { stream, steps, stored }) = open.recorder.cut_before(stream, row, key_frame) {
            self.log.append(&Record::Chunk { ordinal, stream, steps, stored: &stored });
        }
        if open.recorder.is_full() {
            open.tracker.refuse(Refusal::TooLong);
            self.end(recording, Outcome::Unknown, EpisodeEnd::Truncated { limit: Truncation::StepLimit }, None);
            return None;
        }
        self.open.get_mut(&recording)
    }

    fn end(&mut self, recording: RecordingId, outcome: Outcome, end: EpisodeEnd, reply: Option<Reply>) {
        match self.open.remove(&recording) {
            Some(open) => self.seal(open.recorder, outcome, end, reply),
            None => answer(reply, Err(Refusal::Gone)),
        }
    }

    fn seal(&mut self, recorder: Recorder, outcome: Outcome, end: EpisodeEnd, reply: Option<Reply>) {
        let ordinal = recorder.ordinal;
        // There is a step to seal, except after a crash between BEGIN and the first, or where a program sent images
        // and no step: an episode is steps, so what has none is forgotten.
        let Some((last, manifest)) = recorder.seal(&self.identity, outcome, end) else {
            self.log.append(&Record::Freed { ordinal, why: Freeing::Durable, receipt: &[] });
            answer(reply, Err(Refusal::Gone));
            return;
        };
        for CutChunk { stream, steps, stored } in last {
            self.log.append(&Record::Chunk { ordinal, stream, steps, stored: &stored });
        }
        let encoded = manifest.encode();
        self.log.append(&Record::Sealed { ordinal, manifest: &encoded });
        let episode = zunft_protocol::EpisodeId::of(&encoded);
        let ended = Ended { recording: manifest.recording, episode, steps: manifest.steps, images_dropped: 0 };
        self.sealing.insert(ordinal, Sealing { ended, reply });
        self.urgent = true;
    }

    /// Whether so many bytes wait that a commit should not wait for more.
    pub(crate) fn has_enough(&self) -> bool {
        !self.disk_failed && self.log.waiting_bytes() >= self.policy.bytes
    }

    /// When [`Self::commit`] is due; `None` when nothing waits.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.disk_failed {
            return self.retry_at;
        }
        let at_once = self.urgent || self.log.waiting_bytes() >= self.policy.bytes;
        let waiting = self.waiting_since.map(|since| if at_once { since } else { since + self.policy.interval });
        waiting.into_iter().chain(self.retry_at).min()
    }

    /// Makes what waits durable, answers who waits for it, and sees to room for what comes.
    pub(crate) fn commit(&mut self, now: Instant) {
        let mut done = Vec::new();
        let committed = self.log.commit(&mut done).map_err(NoRoom::Disk);
        self.acknowledge(done);
        self.disk_failed = committed.is_err();
        if committed.is_ok() {
            self.shared.index().settle();
        }
        let outcome = committed.and_then(|()| self.reclaim()).and_then(|()| self.make_room());
        self.waiting_since = (self.log.waiting_bytes() > 0).then_some(now);
        self.urgent = false;
        match outcome {
            Ok(()) => {
                if self.shared.set_refusal(None) {
                    tracing::info!("the spool takes steps again");
                }
                self.retry_at = None;
            }
            Err(error) => {
                self.retry_at = Some(now + RETRY_INTERVAL);
                self.refuse(&error, now);
            }
        }
        let open_bytes: usize = self.open.values().map(|open| open.recorder.memory_bytes()).sum();
        self.shared.recordings_open_bytes.store(open_bytes as u64, Ordering::Relaxed);
        self.shared.count(self.log.used_bytes(), self.open.len() as u64, self.log.recordings());
        let [clear, old] = [Protection::Clear, Protection::Old].map(|how| self.log.segments_with(how) as u64);
        self.shared.count_segments(clear, old);
    }

    fn acknowledge(&mut self, done: Vec<Committed>) {
        let mut sealed = Vec::new();
        let mut index = self.shared.index();
        for Committed { ordinal, entry, location } in done {
            if entry == Entry::Step
                && let Some(tracker) = self.trackers.get(&ordinal)
            {
                tracker.on_disk.fetch_add(1, Ordering::Release);
            }
            if matches!(entry, Entry::Sealed { .. }) {
                sealed.push(ordinal);
            }
            index.apply(ordinal, entry, location);
        }
        drop(index);
        self.shared.changed();
        for ordinal in sealed {
            self.trackers.remove(&ordinal);
            if let Some(Sealing { ended, reply }) = self.sealing.remove(&ordinal) {
                tracing::info!(episode_id = %ended.episode, ordinal, steps = ended.steps, "episode on disk");
                answer(reply, Ok(ended));
            }
        }
    }

    fn reclaim(&mut self) -> Result<(), NoRoom> {
        let removable = self.shared.index().removable(self.log.closed_segments());
        if !removable.is_empty() {
            self.log.remove(&removable)?;
            self.shared.index().segments_removed(&removable);
        }
        Ok(())
    }

    /// Sees to room for steps, giving up what the policy allows.
    fn make_room(&mut self) -> Result<(), NoRoom> {
        loop {
            let error = match self.log.make_room() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let reason = match error {
                NoRoom::Quota { .. } => EvictionReason::Quota,
                // Where others have filled the disk, giving up everything would not help.
                NoRoom::DiskFull { free_bytes, free_bytes_min } => {
                    let segment_bytes = self.log.room().segment_bytes;
                    let closed_bytes = self.log.closed_segments().len() as u64 * segment_bytes;
                    if free_bytes + closed_bytes < free_bytes_min + segment_bytes {
                        return Err(error);
                    }
                    EvictionReason::DiskFull
                }
                NoRoom::Disk(_) => return Err(error),
            };
            let carried_max = tombstones_max(self.log.room());
            let plan = eviction::plan(&self.shared.index(), self.log.closed_segments(), &self.eviction, carried_max);
            let Some(plan) = plan else { return Err(error) };
            self.evict(&plan, reason)?;
        }
    }

    fn evict(&mut self, Plan { victims, carried }: &Plan, reason: EvictionReason) -> Result<(), NoRoom> {
        let (given_up, carried_on): (Vec<Tombstone>, Vec<(Ordinal, Option<Tombstone>)>) = {
            let index = self.shared.index();
            let given_up = victims.iter().filter_map(|ordinal| index.sealed().get(ordinal));
            let carried_on = carried.iter().map(|&ordinal| (ordinal, index.tombstone(ordinal).cloned()));
            (given_up.map(|episode| episode.tombstone(reason)).collect(), carried_on.collect())
        };
        for Tombstone { ordinal, task, outcome, steps, bytes, .. } in &given_up {
            tracing::warn!(ordinal, %task, %outcome, steps, bytes, ?reason, "an episode is given up to make room");
        }
        self.shared.evicted.fetch_add(given_up.len() as u64, Ordering::Relaxed);
        for tombstone in given_up {
            self.log.append(&Record::Evicted { ordinal: tombstone.ordinal, tombstone: &cbor::encode(&tombstone) });
        }
        for (ordinal, tombstone) in carried_on {
            match tombstone {
                Some(tombstone) => self.log.append(&Record::Evicted { ordinal, tombstone: &cbor::encode(&tombstone) }),
                None => self.log.append(&Record::Freed { ordinal, why: Freeing::Durable, receipt: &[] }),
            }
        }
        let mut done = Vec::new();
        let committed = self.log.commit(&mut done);
        self.acknowledge(done);
        committed?;
        self.reclaim()
    }

    /// Stops taking steps: what was recorded is sealed with what it has, and nothing old is given up.
    fn refuse(&mut self, error: &NoRoom, now: Instant) {
        let refusal = match error {
            NoRoom::Quota { .. } | NoRoom::DiskFull { .. } => Refusal::SpoolFull(error.to_string()),
            NoRoom::Disk(_) => Refusal::Disk(error.to_string()),
        };
        if self.shared.set_refusal(Some(refusal.clone())) {
            tracing::error!(error = error as &dyn std::error::Error, "the spool takes no more steps");
        }
        for (_, open) in std::mem::take(&mut self.open) {
            open.tracker.refuse(refusal.clone());
            let end = EpisodeEnd::Truncated { limit: Truncation::SpoolFull };
            self.seal(open.recorder, Outcome::Unknown, end, None);
        }
        if self.log.waiting_bytes() > 0 {
            self.waiting_since.get_or_insert(now);
        }
    }

    #[cfg(test)]
    pub(crate) fn room_mut(&mut self) -> &mut Room {
        self.log.room_mut()
    }

    /// Whether recordings are open or records wait.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.log.waiting_bytes() == 0
    }

    /// Seals what is still open, since the agent stops.
    pub(crate) fn seal_all(&mut self, now: Instant) {
        for (_, open) in std::mem::take(&mut self.open) {
            let end = EpisodeEnd::Truncated { limit: Truncation::AgentStopped };
            self.seal(open.recorder, Outcome::Unknown, end, None);
        }
        self.commit(now);
    }
}

/// Bytes that a tombstone takes in the log, at most.
const TOMBSTONE_BYTES: u64 = 256;

/// Most tombstones kept: they fill a small part of a segment, so that carrying them on always makes room.
fn tombstones_max(room: Room) -> usize {
    (room.segment_bytes / 4 / TOMBSTONE_BYTES) as usize
}

fn answer(reply: Option<Reply>, result: Result<Ended, Refusal>) {
    // The client may have gone meanwhile; the episode is on disk all the same.
    if let Some(reply) = reply {
        drop(reply.try_send(result));
    }
}

fn replay(seen: Seen<'_>, policy: CommitPolicy, index: &mut Index, open: &mut BTreeMap<Ordinal, Recorder>) {
    let (record, location) = match seen {
        Seen::Record(record, location) => (record, location),
        // Steps may be missing in the middle of what was open here: it must not pass for whole.
        Seen::Gap => return open.clear(),
        // What was open has lost nothing but its end, and is sealed as cut off there.
        Seen::DamagedEnd => return,
    };
    let ordinal = record.ordinal();
    let fits = match *record {
        Record::Begin { opening, .. } => match Opening::decode(opening) {
            Ok(opening) if opening.embodiment.check().is_ok() => {
                open.insert(ordinal, Recorder::new(ordinal, opening, policy.chunk_bytes));
                true
            }
            _ => false,
        },
        Record::Step { intervention, row, .. } => {
            open.get_mut(&ordinal).is_none_or(|recorder| recorder.push(row, intervention))
        }
        Record::Sample { stream, key_frame, row, .. } => {
            open.get_mut(&ordinal).is_none_or(|recorder| recorder.push_sample(stream, row, key_frame))
        }
        Record::Chunk { stream, steps, stored, .. } => {
            open.get_mut(&ordinal).is_none_or(|recorder| recorder.replay_chunk(stream, steps, stored))
        }
        Record::Sealed { .. } | Record::Damaged { .. } | Record::Freed { .. } | Record::Evicted { .. } => {
            open.remove(&ordinal);
            true
        }
    };
    if !fits {
        open.remove(&ordinal);
    }
    index.apply(ordinal, Entry::of(record).unwrap_or(Entry::Step), location);
}

impl Shared {
    pub(super) fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
