//! The append-only log: records into segments, durable when [`Log::commit`] says so.
//!
//! Records wait in memory until they are committed. A record belongs to the log from the moment its segment
//! is synced, never before. A segment whose write or sync failed is not trusted again: what was not yet
//! durable is written anew into the next segment, and readers let a segment end where the next one begins.
//!
//! Each commit begins on a sector of its own, so that a power cut cannot touch what is durable, and says that it
//! begins: where a later commit stands, everything before it was durable, and what cannot be read there is
//! damage. At the end of the log, a record of which whole sectors are missing was cut off; any other is damage.
//!
//! Where the spool is encrypted, records are sealed when it is known where they go, in a copy of what is written at
//! once: what waits stays as it is, for another segment if this one fails.
//!
//! What is read back may stand in the system's cache alone. It is written again and synced before anything
//! leans on it.
//!
//! One spare segment is always kept ready. Without one there is no room for steps, but what ends recordings
//! and frees episodes still fits.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::disk::{Disk, SECTOR_BYTES, SegmentNumber};
use super::index::{Entry, Location};
use super::read_back::{Found, Leftover, OpenError, Visit, head_of, read_back};
use super::record::{self, HEADER_BYTES, Ordinal, PAYLOAD_BYTES_MAX, Record};
use super::seal::{Keyring, Protection, SegmentKey, TAG_BYTES};
use super::segment::{self, Ends, HEAD_BYTES_MAX, Head, Lock};

/// Smallest segment that holds any allowed record.
pub(crate) const SEGMENT_BYTES_MIN: u64 = (PAYLOAD_BYTES_MAX + HEADER_BYTES + HEAD_BYTES_MAX) as u64;

/// How large the log may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// Size of every segment.
    pub(crate) segment_bytes: u64,
    /// Most bytes of all segments.
    pub(crate) spool_bytes_max: u64,
    /// What the file system must keep free for others.
    pub(crate) free_bytes_min: u64,
}

/// A record that is durable now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) ordinal: Ordinal,
    pub(crate) entry: Entry,
    pub(crate) location: Location,
}

/// Why the log has no room for steps.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("the spool holds {used_bytes} bytes and spool.bytes_max is {spool_bytes_max}: connect the hub or raise it")]
    Quota { used_bytes: u64, spool_bytes_max: u64 },
    #[error(
        "the spool's file system has {free_bytes} bytes left and spool.free_bytes_min is {free_bytes_min}: make room on the disk"
    )]
    DiskFull { free_bytes: u64, free_bytes_min: u64 },
    #[error("the spool's disk failed: {0}")]
    Disk(#[from] io::Error),
}

/// The segment being written.
#[derive(Debug, Clone, Copy)]
struct Current {
    segment: SegmentNumber,
    /// How far it is written.
    offset: u64,
    /// Whether nothing in it is durable yet, not even that it is a segment.
    fresh: bool,
    /// If it is encrypted.
    key: Option<SegmentKey>,
}

impl Current {
    /// What a record takes here beside its own bytes.
    fn overhead(&self) -> usize {
        if self.key.is_some() { TAG_BYTES } else { 0 }
    }
}

#[derive(Debug)]
struct Waiting {
    ordinal: Ordinal,
    entry: Entry,
    /// Size of the record as it waits.
    bytes: usize,
    /// Where its own bytes begin.
    body: usize,
}

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct Log<D> {
    disk: D,
    room: Room,
    keyring: Keyring,
    /// Segments that hold records, in order; the last is the one being written, unless `current` is `None`.
    segments: Vec<SegmentNumber>,
    /// Where those end that are not written any more.
    ends: Ends,
    /// How segments are kept from other readers.
    protection: BTreeMap<SegmentNumber, Protection>,
    current: Option<Current>,
    spare: Option<SegmentNumber>,
    next_segment: SegmentNumber,
    next_ordinal: Ordinal,
    next_sequence: u64,
    /// What reading back left to do before anything leans on what was read.
    leftover: Option<Leftover>,
    /// Damaged segments that are still to be set aside.
    unreadable: Vec<SegmentNumber>,
    /// Encoded records that are not durable yet, and what they are.
    batch: Vec<u8>,
    waiting: VecDeque<Waiting>,
}

impl<D: Disk> Log<D> {
    /// Reads the log back, calling `visit` with every whole record in order, and opens it for appending.
    pub(crate) fn open(
        disk: D,
        room: Room,
        keyring: Keyring,
        visit: &mut Visit<'_>,
    ) -> Result<(Self, Found), OpenError> {
        let found = read_back(&disk, &keyring, visit)?;
        for &segment in &found.damaged {
            tracing::error!(segment, "a segment of the spool is damaged; its readable records are kept");
        }
        let log = Self {
            disk,
            room,
            keyring,
            segments: found.segments.clone(),
            ends: found.ends.clone(),
            protection: found.protection.clone(),
            current: None,
            spare: None,
            next_segment: found.next_segment,
            next_ordinal: found.next_ordinal,
            next_sequence: found.next_sequence,
            leftover: Some(found.leftover.clone()),
            unreadable: Vec::new(),
            batch: Vec::new(),
            waiting: VecDeque::new(),
        };
        Ok((log, found))
    }

    /// A number for a new recording.
    pub(crate) fn mint_ordinal(&mut self) -> Ordinal {
        let ordinal = self.next_ordinal;
        self.next_ordinal += 1;
        ordinal
    }

    /// Recordings begun so far.
    pub(crate) fn recordings(&self) -> u64 {
        self.next_ordinal
    }

    /// Adds a record to those that wait to be committed.
    pub(crate) fn append(&mut self, record: &Record<'_>) {
        let before = self.batch.len();
        let body = record.encode(self.next_sequence, &mut self.batch);
        self.next_sequence += 1;
        let entry = Entry::of(record).expect("a manifest that was just sealed can be read");
        let bytes = self.batch.len() - before;
        self.waiting.push_back(Waiting { ordinal: record.ordinal(), entry, bytes, body });
    }

    /// Bytes that wait to be committed.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.batch.len()
    }

    /// How large the log may become.
    pub(crate) fn room(&self) -> Room {
        self.room
    }

    #[cfg(test)]
    pub(crate) fn room_mut(&mut self) -> &mut Room {
        &mut self.room
    }

    /// Bytes that the log takes on disk.
    pub(crate) fn used_bytes(&self) -> u64 {
        (self.segments.len() as u64 + u64::from(self.spare.is_some())) * self.room.segment_bytes
    }

    /// How many segments with records are kept from other readers in this way.
    pub(crate) fn segments_with(&self, protection: Protection) -> usize {
        self.segments.iter().filter(|&segment| self.protection.get(segment) == Some(&protection)).count()
    }

    /// Makes sure that a spare segment is ready: while there is one, steps can be taken.
    pub(crate) fn make_room(&mut self) -> Result<(), NoRoom> {
        if self.spare.is_none() {
            let Room { segment_bytes, spool_bytes_max, free_bytes_min } = self.room;
            let used_bytes = self.used_bytes();
            if used_bytes + segment_bytes > spool_bytes_max {
                return Err(NoRoom::Quota { used_bytes, spool_bytes_max });
            }
            let free_bytes = self.disk.free_bytes()?;
            if free_bytes < segment_bytes + free_bytes_min {
                return Err(NoRoom::DiskFull { free_bytes, free_bytes_min });
            }
            self.spare = Some(self.create()?);
        }
        Ok(())
    }

    /// Writes and syncs what waits; `done` gets what became durable, even when an error follows.
    ///
    /// After an error the rest still waits, and the next call tries another segment.
    pub(crate) fn commit(&mut self, done: &mut Vec<Committed>) -> io::Result<()> {
        self.settle()?;
        while !self.waiting.is_empty() {
            let Some(current) = self.current else {
                self.roll()?;
                continue;
            };
            let Current { segment, offset, fresh, key } = current;
            let (records, bytes) = self.fitting(&current);
            if records == 0 {
                self.current = None;
                continue;
            }
            record::mark_commit(&mut self.batch);
            let sealed = key.map(|key| self.sealed(records, &key, offset));
            let written = self.disk.write(segment, offset, sealed.as_deref().unwrap_or(&self.batch[..bytes]));
            if let Err(error) = written.and_then(|()| self.disk.sync(segment)) {
                // After a failed sync nobody knows what the segment holds beyond the last commit.
                self.current = None;
                if fresh {
                    self.segments.pop();
                    self.discard(segment);
                }
                return Err(error);
            }
            self.batch.drain(..bytes);
            let mut at = offset;
            for waiting in self.waiting.drain(..records) {
                let bytes = (waiting.bytes + current.overhead()) as u32;
                let location =
                    Location { segment, offset: at, bytes, body: waiting.body as u16, sealed: key.is_some() };
                done.push(Committed { ordinal: waiting.ordinal, entry: waiting.entry, location });
                at += u64::from(bytes);
            }
            let offset = at.next_multiple_of(SECTOR_BYTES as u64);
            self.current = Some(Current { offset, fresh: false, ..current });
        }
        self.set_aside()
    }

    /// The segment that is not known to be durable yet, though it was read back.
    pub(crate) fn unsettled(&self) -> Option<SegmentNumber> {
        self.leftover.as_ref()?.tail.map(|(segment, _)| segment)
    }

    /// Makes durable what was read back, and removes what was made ahead of it.
    fn settle(&mut self) -> io::Result<()> {
        let Some(Leftover { tail, unused, .. }) = self.leftover.clone() else { return Ok(()) };
        if let Some((segment, bytes)) = tail {
            // A killed process leaves bytes in the cache; after a failed sync the cache may even hold them as
            // written. Only what is written again is synced for sure.
            let mut trusted = vec![0; bytes];
            self.disk.read(segment, 0, &mut trusted)?;
            self.disk.write(segment, 0, &trusted)?;
            self.disk.sync(segment)?;
        }
        // Segments without a record were made ahead; what they hold is not known to be zeros.
        self.disk.remove_durably(&unused)?;
        self.unreadable = self.leftover.take().map_or(Vec::new(), |leftover| leftover.unreadable);
        Ok(())
    }

    /// Sets aside what cannot be read, once it is durable what that costs.
    fn set_aside(&mut self) -> io::Result<()> {
        if self.unreadable.is_empty() {
            return Ok(());
        }
        if self.current.is_none() {
            // What counts the recordings may be in them alone: they must not take it along.
            self.roll()?;
            self.sync_begun()?;
        }
        for &segment in &self.unreadable {
            self.disk.quarantine(segment)?;
        }
        self.disk.sync_folder()?;
        self.unreadable.clear();
        Ok(())
    }

    /// The first of the waiting records as they stand at `offset` of the segment of `key`.
    fn sealed(&self, records: usize, key: &SegmentKey, offset: u64) -> Vec<u8> {
        let first = || self.waiting.iter().take(records);
        let mut sealed = Vec::with_capacity(first().map(|waiting| waiting.bytes + TAG_BYTES).sum());
        let mut batch = &self.batch[..];
        for waiting in first() {
            let (record, rest) = batch.split_at(waiting.bytes);
            record::seal(record, key, offset + sealed.len() as u64, &mut sealed);
            batch = rest;
        }
        sealed
    }

    /// How many of the waiting records fit into what is left of a segment, and their bytes as they wait.
    fn fitting(&self, current: &Current) -> (usize, usize) {
        let mut room = self.room.segment_bytes.saturating_sub(current.offset) as usize;
        let (mut records, mut bytes) = (0, 0);
        for waiting in &self.waiting {
            let Some(left) = room.checked_sub(waiting.bytes + current.overhead()) else { break };
            room = left;
            bytes += waiting.bytes;
            records += 1;
        }
        (records, bytes)
    }

    /// Begins the next segment. Its header is made durable by the first commit into it.
    fn roll(&mut self) -> io::Result<()> {
        let segment = match self.spare.take() {
            Some(spare) => spare,
            // What ends recordings and frees episodes may go over the quota: it is little, and it makes room.
            None => self.create()?,
        };
        let first_sequence = self.next_sequence - self.waiting.len() as u64;
        if let Some(&before) = self.segments.last() {
            self.ends.entry(before).or_insert(first_sequence);
        }
        let seal = self.keyring.for_new(segment);
        let head = segment::encode_head(first_sequence, self.next_ordinal, &self.ends, seal.as_ref());
        if let Err(error) = self.disk.write(segment, 0, &head) {
            self.discard(segment);
            return Err(error);
        }
        self.segments.push(segment);
        let key = seal.map(|(key, _)| key);
        self.protection.insert(segment, key.map_or(Protection::Clear, |_| Protection::Current));
        self.current = Some(Current { segment, offset: head.len() as u64, fresh: true, key });
        Ok(())
    }

    /// Makes the header of a segment that was just begun durable.
    fn sync_begun(&mut self) -> io::Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let segment = current.segment;
        current.fresh = false;
        self.disk.sync(segment).inspect_err(|_| {
            self.current = None;
            self.segments.pop();
            self.discard(segment);
        })
    }

    /// Removes a segment that failed before anything in it was durable; left behind, it would do no harm.
    fn discard(&self, segment: SegmentNumber) {
        if let Err(error) = self.disk.remove_durably(&[segment]) {
            tracing::warn!(segment, %error, "an unusable segment could not be removed");
        }
    }

    fn create(&mut self) -> io::Result<SegmentNumber> {
        let segment = self.next_segment;
        self.next_segment += 1;
        self.disk.create_durably(segment, self.room.segment_bytes)?;
        Ok(segment)
    }

    /// Segments that may be removed once nothing in them is needed: all but the newest, which carries the
    /// counters on.
    pub(crate) fn closed_segments(&self) -> &[SegmentNumber] {
        self.segments.split_last().map_or(&[], |(_, closed)| closed)
    }

    /// Removes closed segments for good. Call it only after a commit that succeeded: before, the newest
    /// segment's counters may not be durable.
    pub(crate) fn remove(&mut self, segments: &[SegmentNumber]) -> io::Result<()> {
        assert!(segments.iter().all(|segment| self.closed_segments().contains(segment)), "only closed segments go");
        self.disk.remove_durably(segments)?;
        self.segments.retain(|segment| !segments.contains(segment));
        self.ends.retain(|segment, _| !segments.contains(segment));
        self.protection.retain(|segment, _| !segments.contains(segment));
        Ok(())
    }
}

/// The own bytes of a record that is durable; `None` if it does not open: it was damaged or moved since.
pub(crate) fn read_body<D: Disk>(disk: &D, keyring: &Keyring, location: Location) -> io::Result<Option<Vec<u8>>> {
    let Location { segment, offset, bytes, body, sealed } = location;
    if !sealed {
        let mut own = vec![0; bytes as usize - usize::from(body)];
        disk.read(segment, offset + u64::from(body), &mut own)?;
        return Ok(Some(own));
    }
    let Head::Header { header, .. } = head_of(disk, segment)? else { return Ok(None) };
    let Lock::Key(key, _) = header.lock(segment, keyring) else { return Ok(None) };
    let mut record = vec![0; bytes as usize];
    disk.read(segment, offset, &mut record)?;
    let opened = record::open(&mut record, &key, offset);
    Ok(opened.then(|| {
        record.drain(..usize::from(body));
        record
    }))
}
