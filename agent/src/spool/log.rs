//! The append-only log: records into segments, durable when [`Log::commit`] says so.
//!
//! Records wait in memory until they are committed. A record belongs to the log from the moment its segment
//! is synced, never before. A segment whose write or sync failed is not trusted again: what was not yet
//! durable is written anew into the next segment, and readers let a segment end where the next one begins.
//!
//! One spare segment is always kept ready. Without one there is no room for steps, but what ends recordings
//! and frees episodes still fits.

use std::collections::VecDeque;
use std::io;

use super::disk::{Disk, SegmentNumber};
use super::index::{Entry, Location};
use super::record::{self, HEADER_BYTES, Next, Ordinal, PAYLOAD_BYTES_MAX, Record};

/// First bytes of a segment.
const MAGIC: [u8; 4] = *b"ZSPL";
/// Format of segments written by this version.
const VERSION: u16 = 1;
/// Size of a segment's header: magic, version, reserved, key id, first sequence, next ordinal, crc32.
const SEGMENT_HEADER_BYTES: usize = 32;

/// Smallest segment that holds any allowed record.
pub(crate) const SEGMENT_BYTES_MIN: u64 = (PAYLOAD_BYTES_MAX + HEADER_BYTES + SEGMENT_HEADER_BYTES) as u64;

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

/// What reading the log back comes across.
pub(crate) enum Seen<'r> {
    /// A whole record, and where its own bytes are.
    Record(&'r Record<'r>, Location),
    /// Records are missing here: damage, not a power cut.
    Gap,
}

/// Who is told.
pub(crate) type Visit<'v> = dyn FnMut(Seen<'_>) + 'v;

/// What reading the log back found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Segments that hold records, in order.
    segments: Vec<SegmentNumber>,
    /// Segments that were never used.
    unused: Vec<SegmentNumber>,
    /// Whether the last segment ended in a record that was not whole.
    pub(crate) torn: bool,
    /// Segments of which something in the middle cannot be read.
    pub(crate) damaged: Vec<SegmentNumber>,
    next_sequence: u64,
    next_ordinal: Ordinal,
    next_segment: SegmentNumber,
}

#[derive(Debug)]
struct Waiting {
    ordinal: Ordinal,
    entry: Entry,
    /// Size on disk.
    bytes: usize,
    /// Where its own bytes begin.
    body: usize,
}

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct Log<D> {
    disk: D,
    room: Room,
    /// Segments that hold records, in order; the last is the one being written, unless `current` is `None`.
    segments: Vec<SegmentNumber>,
    /// The segment being written and how far.
    current: Option<(SegmentNumber, u64)>,
    spare: Option<SegmentNumber>,
    next_segment: SegmentNumber,
    next_ordinal: Ordinal,
    next_sequence: u64,
    /// Encoded records that are not durable yet, and what they are.
    batch: Vec<u8>,
    waiting: VecDeque<Waiting>,
}

impl<D: Disk> Log<D> {
    /// Reads the log back, calling `visit` with every whole record in order, and opens it for appending.
    pub(crate) fn open(disk: D, room: Room, visit: &mut Visit<'_>) -> io::Result<(Self, Found)> {
        let found = read_back(&disk, visit)?;
        // Segments without a record were made ahead; what they hold is not known to be zeros.
        disk.remove(&found.unused)?;
        for &segment in &found.damaged {
            tracing::error!(segment, "a segment of the spool is damaged; its readable records are kept");
        }
        let log = Self {
            disk,
            room,
            segments: found.segments.clone(),
            current: None,
            spare: None,
            next_segment: found.next_segment,
            next_ordinal: found.next_ordinal,
            next_sequence: found.next_sequence,
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

    /// Bytes that the log takes on disk.
    pub(crate) fn used_bytes(&self) -> u64 {
        (self.segments.len() as u64 + u64::from(self.spare.is_some())) * self.room.segment_bytes
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
        while !self.waiting.is_empty() {
            let Some((segment, offset)) = self.current else {
                self.roll()?;
                continue;
            };
            let (records, bytes) = self.fitting(offset);
            if records == 0 {
                self.current = None;
                continue;
            }
            let written = self.disk.write(segment, offset, &self.batch[..bytes]);
            if let Err(error) = written.and_then(|()| self.disk.sync(segment)) {
                // After a failed sync nobody knows what the segment holds beyond the last commit.
                self.current = None;
                if offset == SEGMENT_HEADER_BYTES as u64 {
                    self.segments.pop();
                    self.discard(segment);
                }
                return Err(error);
            }
            self.batch.drain(..bytes);
            let mut at = offset;
            for waiting in self.waiting.drain(..records) {
                let location = Location {
                    segment,
                    offset: at + waiting.body as u64,
                    bytes: (waiting.bytes - waiting.body) as u32,
                };
                done.push(Committed { ordinal: waiting.ordinal, entry: waiting.entry, location });
                at += waiting.bytes as u64;
            }
            self.current = Some((segment, at));
        }
        Ok(())
    }

    /// How many of the waiting records fit behind `offset`, and their bytes.
    fn fitting(&self, offset: u64) -> (usize, usize) {
        let room = self.room.segment_bytes.saturating_sub(offset) as usize;
        let (mut records, mut bytes) = (0, 0);
        for waiting in &self.waiting {
            if bytes + waiting.bytes > room {
                break;
            }
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
        if let Err(error) = self.disk.write(segment, 0, &segment_header(first_sequence, self.next_ordinal)) {
            self.discard(segment);
            return Err(error);
        }
        self.segments.push(segment);
        self.current = Some((segment, SEGMENT_HEADER_BYTES as u64));
        Ok(())
    }

    /// Removes a segment that failed before anything in it was durable; left behind, it would do no harm.
    fn discard(&self, segment: SegmentNumber) {
        if let Err(error) = self.disk.remove(&[segment]) {
            tracing::warn!(segment, %error, "an unusable segment could not be removed");
        }
    }

    fn create(&mut self) -> io::Result<SegmentNumber> {
        let segment = self.next_segment;
        self.next_segment += 1;
        self.disk.create(segment, self.room.segment_bytes)?;
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
        self.disk.remove(segments)?;
        self.segments.retain(|segment| !segments.contains(segment));
        Ok(())
    }
}

fn segment_header(first_sequence: u64, next_ordinal: Ordinal) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    // 6..8 reserved, 8..12 key id: 0, not encrypted.
    header[12..20].copy_from_slice(&first_sequence.to_le_bytes());
    header[20..28].copy_from_slice(&next_ordinal.to_le_bytes());
    let crc = crc32fast::hash(&header[..28]).to_le_bytes();
    header[28..].copy_from_slice(&crc);
    header
}

/// First sequence and next ordinal of a segment; `None` when there is no whole header of this version.
fn read_segment_header(bytes: &[u8]) -> Option<(u64, Ordinal)> {
    let header = bytes.get(..SEGMENT_HEADER_BYTES)?;
    let word = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let crc = u32::from_le_bytes(header.get(28..)?.try_into().ok()?);
    let ours = header[..4] == MAGIC && header[4..6] == VERSION.to_le_bytes() && header[6..12] == [0; 6];
    (ours && crc32fast::hash(&header[..28]) == crc).then_some((word(12)?, word(20)?))
}

/// Reads every segment in order.
fn read_back<D: Disk>(disk: &D, visit: &mut Visit<'_>) -> io::Result<Found> {
    let mut found = Found::default();
    let all = disk.list()?;
    found.next_segment = all.last().map_or(0, |last| last + 1);
    let mut headed = Vec::new();
    for segment in all {
        let mut header = [0; SEGMENT_HEADER_BYTES];
        // A segment shorter than its header was cut off while it was made.
        let header = disk.read(segment, 0, &mut header).ok().and_then(|()| read_segment_header(&header));
        match header {
            Some((first_sequence, next_ordinal)) => headed.push((segment, first_sequence, next_ordinal)),
            None => found.unused.push(segment),
        }
    }
    // Before the last segment that has a header, one without is damage, not a segment made ahead.
    let last_headed = headed.last().map_or(0, |(segment, ..)| *segment);
    let unused = std::mem::take(&mut found.unused);
    for segment in unused {
        if segment < last_headed && !is_blank(disk, segment)? {
            disk.quarantine(segment)?;
        } else {
            found.unused.push(segment);
        }
    }
    for (i, &(segment, first_sequence, next_ordinal)) in headed.iter().enumerate() {
        let end = headed.get(i + 1).map(|(_, next_first, _)| *next_first);
        found.next_sequence = found.next_sequence.max(first_sequence);
        found.next_ordinal = found.next_ordinal.max(next_ordinal);
        found.segments.push(segment);
        read_segment(disk, segment, first_sequence, end, &mut found, visit)?;
    }
    Ok(found)
}

fn is_blank<D: Disk>(disk: &D, segment: SegmentNumber) -> io::Result<bool> {
    Ok(disk.read_all(segment)?.iter().take(SEGMENT_HEADER_BYTES).all(|&byte| byte == 0))
}

/// Reads the records of one segment, up to number `end` where a later segment carries on.
fn read_segment<D: Disk>(
    disk: &D,
    segment: SegmentNumber,
    first_sequence: u64,
    end: Option<u64>,
    found: &mut Found,
    visit: &mut Visit<'_>,
) -> io::Result<()> {
    let bytes = disk.read_all(segment)?;
    let (mut sequence, mut at) = (first_sequence, SEGMENT_HEADER_BYTES);
    while end.is_none_or(|end| sequence < end) {
        match record::decode(bytes.get(at..).unwrap_or_default(), sequence) {
            Next::Record { record, bytes: size, body } => {
                let location = Location { segment, offset: (at + body) as u64, bytes: (size - body) as u32 };
                found.next_ordinal = found.next_ordinal.max(record.ordinal() + 1);
                visit(Seen::Record(&record, location));
                at += size;
                sequence += 1;
            }
            next @ (Next::End | Next::Torn) => {
                if end.is_some() {
                    found.damaged.push(segment);
                    visit(Seen::Gap);
                } else {
                    found.torn = next == Next::Torn;
                }
                break;
            }
        }
    }
    found.next_sequence = found.next_sequence.max(sequence);
    Ok(())
}
