//! Reading the log back at the start: which records are whole, where the log ends, and what is damaged.
//!
//! It changes nothing on disk; what is to be done about what it found is in [`Leftover`].

use std::collections::BTreeMap;
use std::io;

use super::disk::{Disk, SECTOR_BYTES, SegmentNumber};
use super::index::Location;
use super::record::{self, Next, Ordinal, RECORD_BYTES_MIN, Record};
use super::seal::{Keyring, Protection, SegmentKey};
use super::segment::{Ends, HEADER_BYTES, HEADER_BYTES_MAX, Head, Lock, SegmentHeader, read_head};

/// Why a log cannot be read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error("segment {first}, the first of {segments}, is encrypted with a key that was not given")]
    KeyMissing { first: SegmentNumber, segments: usize },
}

/// What reading the log back comes across.
pub(crate) enum Seen<'r> {
    /// A whole record, and where its own bytes are.
    Record(&'r Record<'r>, Location),
    /// Records that were durable are missing here: damage, not a power cut.
    Gap,
    /// The log ends in a record that was damaged, and may have been durable.
    DamagedEnd,
}

/// Who is told.
pub(crate) type Visit<'v> = dyn FnMut(Seen<'_>) + 'v;

/// What is to be done before anything leans on what was read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// The newest segment, and how much of it is trusted.
    pub(crate) tail: Option<(SegmentNumber, usize)>,
    /// Segments that were never used.
    pub(crate) unused: Vec<SegmentNumber>,
    /// Segments without a readable header.
    pub(crate) unreadable: Vec<SegmentNumber>,
}

/// What reading the log back found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Segments that hold records, in order.
    pub(crate) segments: Vec<SegmentNumber>,
    /// Where all but the last of them end.
    pub(crate) ends: Ends,
    /// How each of them is kept from other readers.
    pub(crate) protection: BTreeMap<SegmentNumber, Protection>,
    /// Whether the last segment ended in a record that was not whole.
    pub(crate) torn: bool,
    /// Segments of which something cannot be read.
    pub(crate) damaged: Vec<SegmentNumber>,
    pub(crate) leftover: Leftover,
    pub(crate) next_sequence: u64,
    pub(crate) next_ordinal: Ordinal,
    pub(crate) next_segment: SegmentNumber,
}

impl Found {
    fn damage(&mut self, segment: SegmentNumber) {
        if self.damaged.last() != Some(&segment) {
            self.damaged.push(segment);
        }
    }

    /// Skips the numbers that may have stood in so many bytes that cannot be read: none is ever used twice.
    fn skip_ordinals(&mut self, bytes: usize) {
        self.next_ordinal += (bytes / RECORD_BYTES_MIN) as u64;
    }
}

/// Reads every segment in order, calling `visit` with every whole record.
///
/// Where a segment's key is missing, nothing is visited: what is in it decides about what follows.
pub(crate) fn read_back<D: Disk>(disk: &D, keyring: &Keyring, visit: &mut Visit<'_>) -> Result<Found, OpenError> {
    let mut found = Found::default();
    let all = disk.list()?;
    found.next_segment = all.last().map_or(0, |last| last + 1);
    let mut headed: Vec<(SegmentNumber, SegmentHeader)> = Vec::new();
    let mut lost = Vec::new();
    for segment in all {
        match head_of(disk, segment)? {
            Head::Header { header, intact } => {
                if !intact {
                    found.damage(segment);
                }
                headed.push((segment, header));
            }
            Head::Blank => found.leftover.unused.push(segment),
            // Nothing was ever committed to it, so nothing is lost.
            Head::Damaged if is_empty(&disk.read_all(segment)?) => found.leftover.unused.push(segment),
            Head::Damaged => {
                found.damage(segment);
                found.leftover.unreadable.push(segment);
                lost.push(segment);
            }
        }
    }
    let keys = unlock(&headed, keyring, &mut found.protection)?;
    found.ends = known_ends(disk, &headed)?;
    for (i, &(segment, header)) in headed.iter().enumerate() {
        let next = headed.get(i + 1).map(|(_, next)| next.first_sequence);
        let end = match found.ends.get(&segment) {
            Some(&end) => End::At(end),
            None => next.map_or(End::Open, End::AtMost),
        };
        found.next_sequence = found.next_sequence.max(header.first_sequence);
        found.next_ordinal = found.next_ordinal.max(header.next_ordinal);
        if lost.iter().any(|lost| *lost < segment && found.segments.last().is_none_or(|before| before < lost)) {
            visit(Seen::Gap);
        }
        found.segments.push(segment);
        let key = keys.get(&segment).copied();
        Reading { segment, key, bytes: disk.read_all(segment)?, end, found: &mut found }.read(header, visit);
    }
    if let Some(&lost) = lost.last().filter(|lost| found.segments.last().is_none_or(|last| last < lost)) {
        found.skip_ordinals(disk.read_all(lost)?.len());
        visit(Seen::DamagedEnd);
    }
    found.ends.retain(|segment, _| found.segments.contains(segment));
    Ok(found)
}

/// What stands where a segment's header should be.
pub(crate) fn head_of<D: Disk>(disk: &D, segment: SegmentNumber) -> io::Result<Head> {
    let mut bytes = [0; HEADER_BYTES_MAX];
    match disk.read(segment, 0, &mut bytes) {
        Ok(()) => Ok(read_head(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            // Cut off: while it was made, or later.
            let whole = disk.read_all(segment)?;
            let (there, missing) = bytes.split_at_mut(whole.len().min(HEADER_BYTES_MAX));
            there.copy_from_slice(&whole[..there.len()]);
            missing.fill(0);
            Ok(read_head(&bytes))
        }
        Err(error) => Err(error),
    }
}

/// Whether a segment whose header cannot be read has nothing behind it.
fn is_empty(segment: &[u8]) -> bool {
    segment.get(HEADER_BYTES_MAX..).is_some() && segment[HEADER_BYTES..].iter().all(|&byte| byte == 0)
}

/// The keys of those segments that are encrypted.
fn unlock(
    headed: &[(SegmentNumber, SegmentHeader)],
    keyring: &Keyring,
    protection: &mut BTreeMap<SegmentNumber, Protection>,
) -> Result<BTreeMap<SegmentNumber, SegmentKey>, OpenError> {
    let (mut keys, mut locked) = (BTreeMap::new(), Vec::new());
    for &(segment, header) in headed {
        match header.lock(segment, keyring) {
            Lock::None => drop(protection.insert(segment, Protection::Clear)),
            Lock::Key(key, how) => {
                keys.insert(segment, key);
                protection.insert(segment, how);
            }
            Lock::KeyMissing => locked.push(segment),
        }
    }
    match locked.first() {
        Some(&first) => Err(OpenError::KeyMissing { first, segments: locked.len() }),
        None => Ok(keys),
    }
}

/// Where segments end, as the newest one says.
///
/// A segment may have lost its list with its first commit; what an older list says is as true.
fn known_ends<D: Disk>(disk: &D, headed: &[(SegmentNumber, SegmentHeader)]) -> io::Result<Ends> {
    for &(segment, header) in headed.iter().rev() {
        if let Some(ends) = header.ends(&disk.read_all(segment)?) {
            return Ok(ends);
        }
    }
    Ok(Ends::new())
}

/// How far a segment is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As far as it can be: it is the newest.
    Open,
    /// Not to this record; what was behind it may have been removed.
    AtMost(u64),
    /// Up to this record: one that is missing before it is damage.
    At(u64),
}

impl End {
    fn is_before(self, sequence: u64) -> bool {
        match self {
            Self::Open => false,
            Self::AtMost(end) | Self::At(end) => end <= sequence,
        }
    }
}

/// One segment being read.
struct Reading<'f> {
    segment: SegmentNumber,
    /// If it is encrypted.
    key: Option<SegmentKey>,
    bytes: Vec<u8>,
    end: End,
    found: &'f mut Found,
}

impl Reading<'_> {
    fn read(mut self, header: SegmentHeader, visit: &mut Visit<'_>) {
        let (mut sequence, mut at) = (header.first_sequence, header.records_at());
        // Where the last whole record ends: what follows is not trusted.
        let mut trusted = at.min(self.bytes.len());
        let mut opened = Vec::new();
        while !self.end.is_before(sequence) {
            match decode(&self.bytes, at, sequence, self.key.as_ref(), &mut opened) {
                Next::Record { record, bytes, body } => {
                    let (segment, offset, sealed) = (self.segment, at as u64, self.key.is_some());
                    let location = Location { segment, offset, bytes: bytes as u32, body: body as u16, sealed };
                    self.found.next_ordinal = self.found.next_ordinal.max(record.ordinal() + 1);
                    visit(Seen::Record(&record, location));
                    at += bytes;
                    trusted = at;
                    sequence += 1;
                }
                stopped @ (Next::End | Next::Torn) => match self.next_commit(at, sequence) {
                    Some((next_at, next_sequence)) => {
                        if next_sequence > sequence {
                            self.gap(next_at - at, visit);
                        }
                        (at, sequence) = (next_at, next_sequence);
                    }
                    None => {
                        self.stop(at, sequence, stopped == Next::Torn, visit);
                        break;
                    }
                },
            }
        }
        self.found.next_sequence = self.found.next_sequence.max(sequence);
        if self.end == End::Open {
            self.found.leftover.tail = Some((self.segment, trusted));
        } else {
            self.found.ends.entry(self.segment).or_insert(sequence);
        }
    }

    /// Where the next commit begins that can be read, and with which number.
    fn next_commit(&self, from: usize, sequence: u64) -> Option<(usize, u64)> {
        let mut opened = Vec::new();
        let mut sectors = (from.next_multiple_of(SECTOR_BYTES)..self.bytes.len()).step_by(SECTOR_BYTES);
        sectors.find_map(|at| {
            let claimed = record::commit_at(&self.bytes[at..])?;
            let most = sequence + ((at - from) / RECORD_BYTES_MIN) as u64;
            let fits = (sequence..=most).contains(&claimed) && !self.end.is_before(claimed);
            let next = fits.then(|| decode(&self.bytes, at, claimed, self.key.as_ref(), &mut opened))?;
            matches!(next, Next::Record { .. }).then_some((at, claimed))
        })
    }

    /// Records are missing here that were durable.
    fn gap(&mut self, bytes: usize, visit: &mut Visit<'_>) {
        self.found.damage(self.segment);
        if self.end == End::Open {
            self.found.skip_ordinals(bytes);
        }
        visit(Seen::Gap);
    }

    /// Whether the next record was damaged, be it of the same commit or the first of another one.
    fn is_damaged(&self, at: usize, sequence: u64) -> bool {
        record::is_damaged(&self.bytes, at, sequence, false)
            || record::is_damaged(&self.bytes, at.next_multiple_of(SECTOR_BYTES), sequence, true)
    }

    /// Nothing more can be read of this segment.
    fn stop(&mut self, at: usize, sequence: u64, torn: bool, visit: &mut Visit<'_>) {
        let bytes = self.bytes.len().saturating_sub(at);
        if matches!(self.end, End::At(_)) {
            self.gap(bytes, visit);
        } else if self.is_damaged(at, sequence) {
            self.found.damage(self.segment);
            self.found.skip_ordinals(bytes);
            visit(if self.end == End::Open { Seen::DamagedEnd } else { Seen::Gap });
        } else {
            self.found.torn = torn;
        }
    }
}

/// Reads the record number `sequence` at `at` of a segment.
fn decode<'r>(
    segment: &'r [u8],
    at: usize,
    sequence: u64,
    key: Option<&SegmentKey>,
    opened: &'r mut Vec<u8>,
) -> Next<'r> {
    let bytes = segment.get(at..).unwrap_or_default();
    match key {
        None => record::decode(bytes, sequence),
        Some(key) => record::decode_sealed(bytes, sequence, key, at as u64, opened),
    }
}
