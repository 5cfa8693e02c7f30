//! The spool's records as bytes: what the log holds, and where it ends after a power cut.
//!
//! Pure. It knows nothing of files; [`super::log`] decides where records go.
//!
//! ```text
//! 0   length    u32  bytes of payload
//! 4   crc32     u32  over the rest of the header and the payload
//! 8   sequence  u64  one more than the record before
//! 16  type      u16
//! 18  flags     u16  1: the first record of a commit, so everything before it was durable
//! 20  length    u32  again, so that a torn header cannot send the reader far away
//! 24  payload   begins with u64 ordinal: which recording the record is about
//! ```
//! All integers are little-endian.
//!
//! In an encrypted segment the payload is ciphertext, 16 bytes longer by its tag; lengths and checksum are over that.
//! So where the log ends can be told without the key, and by the same rules.

use zunft_protocol::limits::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX, STEP_BYTES_MAX};

use super::disk::SECTOR_BYTES;
use super::recorder::StreamNumber;
use super::seal::{SegmentKey, TAG_BYTES};

/// Size of a record before its payload.
pub(crate) const HEADER_BYTES: usize = 24;

/// Largest payload: the largest manifest with its ordinal, and the tag of its ciphertext.
pub(crate) const PAYLOAD_BYTES_MAX: usize = MANIFEST_BYTES_MAX + 1024;

const _: () = assert!(
    CHUNK_BYTES_MAX <= MANIFEST_BYTES_MAX && STEP_BYTES_MAX <= MANIFEST_BYTES_MAX,
    "a chunk and a step of any allowed embodiment, with time and reward, fit a record"
);

const BEGIN: u16 = 1;
const STEP: u16 = 2;
const CHUNK: u16 = 3;
const SEALED: u16 = 4;
const FREED: u16 = 5;
const DAMAGED: u16 = 6;
const SAMPLE: u16 = 7;
const EVICTED: u16 = 8;

const STEP_INTERVENTION: u32 = 1;
const SAMPLE_KEY_FRAME: u16 = 1;

const COMMIT_BEGINS: u16 = 1;

/// Size of the smallest record: more of them do not fit anywhere.
pub(crate) const RECORD_BYTES_MIN: usize = HEADER_BYTES + 8;

/// Counts a robot's recordings from 0; never used twice.
pub(crate) type Ordinal = u64;

/// Why a recording no longer needs its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freeing {
    /// The hub said DURABLE.
    Durable,
}

/// One record of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A recording began; `opening` is CBOR of [`super::recorder::Opening`].
    Begin { ordinal: Ordinal, opening: &'a [u8] },
    /// One step: its row in the order of the steps stream's schema.
    Step { ordinal: Ordinal, intervention: bool, row: &'a [u8] },
    /// One sample of another stream: its time, i64, and its bytes.
    Sample { ordinal: Ordinal, stream: StreamNumber, key_frame: bool, row: &'a [u8] },
    /// The first of a stream's steps or samples since its last chunk, as one chunk.
    Chunk { ordinal: Ordinal, stream: StreamNumber, steps: u32, stored: &'a [u8] },
    /// The recording became an episode.
    Sealed { ordinal: Ordinal, manifest: &'a [u8] },
    /// Records of the recording were lost to damage: what is left of it is no episode.
    Damaged { ordinal: Ordinal },
    /// The recording's records may go.
    Freed { ordinal: Ordinal, why: Freeing, receipt: &'a [u8] },
    /// The recording was given up for want of room; `tombstone` is CBOR of [`zunft_protocol::message::Tombstone`].
    Evicted { ordinal: Ordinal, tombstone: &'a [u8] },
}

/// What stands at a place in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// A whole record and its size on disk.
    Record {
        record: Record<'a>,
        /// Header and payload.
        bytes: usize,
        /// Where the record's own bytes (opening, row, chunk, manifest, receipt) begin, from the record's first byte.
        body: usize,
    },
    /// Nothing was ever written here.
    End,
    /// Something was written here, but not all of it, or it was damaged since.
    Torn,
}

impl Record<'_> {
    /// Which recording.
    pub(crate) fn ordinal(&self) -> Ordinal {
        match *self {
            Self::Begin { ordinal, .. }
            | Self::Step { ordinal, .. }
            | Self::Sample { ordinal, .. }
            | Self::Chunk { ordinal, .. }
            | Self::Sealed { ordinal, .. }
            | Self::Damaged { ordinal }
            | Self::Freed { ordinal, .. }
            | Self::Evicted { ordinal, .. } => ordinal,
        }
    }

    /// Appends the record as number `sequence`; returns where its own bytes begin, from its first byte.
    pub(crate) fn encode(&self, sequence: u64, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        out.resize(begin + HEADER_BYTES, 0);
        out.extend_from_slice(&self.ordinal().to_le_bytes());
        let (kind, body) = match *self {
            Self::Begin { opening, .. } => (BEGIN, opening),
            Self::Step { intervention, row, .. } => {
                out.extend_from_slice(&(if intervention { STEP_INTERVENTION } else { 0 }).to_le_bytes());
                (STEP, row)
            }
            Self::Sample { stream, key_frame, row, .. } => {
                out.extend_from_slice(&stream.to_le_bytes());
                out.extend_from_slice(&(if key_frame { SAMPLE_KEY_FRAME } else { 0 }).to_le_bytes());
                (SAMPLE, row)
            }
            Self::Chunk { stream, steps, stored, .. } => {
                out.extend_from_slice(&u32::from(stream).to_le_bytes());
                out.extend_from_slice(&steps.to_le_bytes());
                (CHUNK, stored)
            }
            Self::Sealed { manifest, .. } => (SEALED, manifest),
            Self::Damaged { .. } => (DAMAGED, &[][..]),
            Self::Freed { why: Freeing::Durable, receipt, .. } => {
                out.extend_from_slice(&0_u32.to_le_bytes());
                (FREED, receipt)
            }
            Self::Evicted { tombstone, .. } => (EVICTED, tombstone),
        };
        let body_at = out.len() - begin;
        out.extend_from_slice(body);
        let payload_bytes = out.len() - begin - HEADER_BYTES;
        assert!(payload_bytes + TAG_BYTES <= PAYLOAD_BYTES_MAX, "records are bounded by what may be recorded");
        let length = (payload_bytes as u32).to_le_bytes();
        out[begin..begin + 4].copy_from_slice(&length);
        out[begin + 8..begin + 16].copy_from_slice(&sequence.to_le_bytes());
        out[begin + 16..begin + 18].copy_from_slice(&kind.to_le_bytes());
        out[begin + 20..begin + 24].copy_from_slice(&length);
        let crc = crc32fast::hash(&out[begin + 8..]).to_le_bytes();
        out[begin + 4..begin + 8].copy_from_slice(&crc);
        body_at
    }
}

/// Marks the encoded record at the beginning of `bytes` as the first of a commit.
///
/// # Panics
/// When no whole record begins there.
pub(crate) fn mark_commit(bytes: &mut [u8]) {
    let end = HEADER_BYTES + u32_at(bytes, 0) as usize;
    bytes[18..20].copy_from_slice(&COMMIT_BEGINS.to_le_bytes());
    let crc = crc32fast::hash(&bytes[8..end]).to_le_bytes();
    bytes[4..8].copy_from_slice(&crc);
}

/// Appends `record`, which is encoded and ends with its payload, as it stands at `offset` of the segment of `key`.
pub(crate) fn seal(record: &[u8], key: &SegmentKey, offset: u64, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend_from_slice(record);
    let (header, payload) = out[begin..].split_at_mut(HEADER_BYTES);
    let length = ((payload.len() + TAG_BYTES) as u32).to_le_bytes();
    header[..4].copy_from_slice(&length);
    header[20..24].copy_from_slice(&length);
    let sequence = u64::from_le_bytes(array(&header[8..16]));
    let tag = key.seal(offset, sequence, &header[8..], payload);
    out.extend_from_slice(&tag);
    let crc = crc32fast::hash(&out[begin + 8..]).to_le_bytes();
    out[begin + 4..begin + 8].copy_from_slice(&crc);
}

/// Decrypts the payload of a whole record in place, and cuts its tag off; `false` if it was not sealed at `offset` of
/// the segment of `key`.
pub(crate) fn open(record: &mut Vec<u8>, key: &SegmentKey, offset: u64) -> bool {
    let Some((header, sealed)) = record.split_at_mut_checked(HEADER_BYTES) else { return false };
    let Some((payload, tag)) = sealed.split_last_chunk_mut::<TAG_BYTES>() else { return false };
    let (sequence, opened_bytes) = (u64::from_le_bytes(array(&header[8..16])), HEADER_BYTES + payload.len());
    let opened = key.open(offset, sequence, &header[8..], payload, *tag);
    record.truncate(opened_bytes);
    opened
}

/// The number of the record at the beginning of `bytes`, if one that begins a commit may stand there.
pub(crate) fn commit_at(bytes: &[u8]) -> Option<u64> {
    let header = bytes.get(..HEADER_BYTES)?;
    let flags = u16::from_le_bytes(array(&header[18..20]));
    let plausible = flags == COMMIT_BEGINS && u32_at(header, 0) == u32_at(header, 20);
    plausible.then(|| u64::from_le_bytes(array(&header[8..16])))
}

/// Whether the record at `at`, which is not whole, was damaged: `false` where a power cut may have kept it from
/// ever being written.
///
/// A power cut leaves whole sectors of zeros, since segments are made of zeros and each commit begins on a sector
/// of its own. `at` counts from the beginning of the segment; `begins_commit` asks for the first of a commit, which
/// a record of an earlier one, that happens to stand there, is not.
pub(crate) fn is_damaged(segment: &[u8], at: usize, sequence: u64, begins_commit: bool) -> bool {
    let Some(header) = segment.get(at..at + HEADER_BYTES) else { return false };
    let lengths = [u32_at(header, 0) as usize, u32_at(header, 20) as usize];
    let [kind, flags] = [&header[16..18], &header[18..20]].map(|bytes| u16::from_le_bytes(array(bytes)));
    let signs = [
        lengths[0] == lengths[1] && (RECORD_BYTES_MIN - HEADER_BYTES..=PAYLOAD_BYTES_MAX).contains(&lengths[0]),
        u64::from_le_bytes(array(&header[8..16])) == sequence,
        (BEGIN..=EVICTED).contains(&kind),
        if begins_commit { flags == COMMIT_BEGINS } else { flags <= COMMIT_BEGINS },
    ];
    // One flipped bit spoils one sign of a header, and makes at most one where nothing was written.
    if signs.iter().filter(|&&sign| sign).count() < 3 {
        return false;
    }
    let end = (at + HEADER_BYTES + lengths[0].min(lengths[1])).min(segment.len());
    let sectors = segment[at / SECTOR_BYTES * SECTOR_BYTES..].chunks(SECTOR_BYTES);
    let mut touched = sectors.take(end.div_ceil(SECTOR_BYTES) - at / SECTOR_BYTES);
    touched.all(|sector| sector.iter().any(|&byte| byte != 0))
}

/// Reads the record at the beginning of `bytes`, which must be number `sequence`.
pub(crate) fn decode(bytes: &[u8], sequence: u64) -> Next<'_> {
    match frame(bytes, sequence) {
        Framed::Whole { kind, bytes } => next_of(kind, &bytes[HEADER_BYTES..], bytes.len()),
        Framed::End => Next::End,
        Framed::Torn => Next::Torn,
    }
}

/// The same at `offset` of the segment of `key`; the record is decrypted into `opened`.
///
/// One that is whole but does not open was damaged or moved: it is as good as torn.
pub(crate) fn decode_sealed<'o>(
    bytes: &[u8],
    sequence: u64,
    key: &SegmentKey,
    offset: u64,
    opened: &'o mut Vec<u8>,
) -> Next<'o> {
    match frame(bytes, sequence) {
        Framed::Whole { kind, bytes } => {
            opened.clear();
            opened.extend_from_slice(bytes);
            if open(opened, key, offset) { next_of(kind, &opened[HEADER_BYTES..], bytes.len()) } else { Next::Torn }
        }
        Framed::End => Next::End,
        Framed::Torn => Next::Torn,
    }
}

/// What stands at a place in a segment, as far as it can be told without knowing what it says.
enum Framed<'a> {
    /// All bytes of a record.
    Whole {
        kind: u16,
        bytes: &'a [u8],
    },
    End,
    Torn,
}

fn frame(bytes: &[u8], sequence: u64) -> Framed<'_> {
    let Some((header, _)) = bytes.split_at_checked(HEADER_BYTES) else {
        return if bytes.iter().all(|&byte| byte == 0) { Framed::End } else { Framed::Torn };
    };
    if header.iter().all(|&byte| byte == 0) {
        return Framed::End;
    }
    let length = u32_at(header, 0) as usize;
    let found_sequence = u64::from_le_bytes(array(&header[8..16]));
    if u32_at(header, 20) as usize != length || length > PAYLOAD_BYTES_MAX || found_sequence != sequence {
        return Framed::Torn;
    }
    let Some(bytes) = bytes.get(..HEADER_BYTES + length) else { return Framed::Torn };
    let [kind, flags] = [&header[16..18], &header[18..20]].map(|bytes| u16::from_le_bytes(array(bytes)));
    if crc32fast::hash(&bytes[8..]) != u32_at(header, 4) || flags > COMMIT_BEGINS {
        return Framed::Torn;
    }
    Framed::Whole { kind, bytes }
}

fn next_of(kind: u16, payload: &[u8], bytes: usize) -> Next<'_> {
    match read_payload(kind, payload) {
        Some((record, body)) => Next::Record { record, bytes, body: HEADER_BYTES + payload.len() - body },
        None => Next::Torn,
    }
}

/// The record and the size of its own bytes, which end the payload.
fn read_payload(kind: u16, payload: &[u8]) -> Option<(Record<'_>, usize)> {
    let (ordinal, rest) = payload.split_at_checked(8)?;
    let ordinal = u64::from_le_bytes(array(ordinal));
    let word = || Some((u32_at(rest.get(..4)?, 0), &rest[4..]));
    let (record, body) = match kind {
        BEGIN => (Record::Begin { ordinal, opening: rest }, rest),
        STEP => {
            let (flags, row) = word()?;
            (Record::Step { ordinal, intervention: flags & STEP_INTERVENTION != 0, row }, row)
        }
        SAMPLE => {
            let (word, row) = word()?;
            let (stream, flags) = (word as StreamNumber, (word >> 16) as u16);
            (Record::Sample { ordinal, stream, key_frame: flags & SAMPLE_KEY_FRAME != 0, row }, row)
        }
        CHUNK => {
            let (stream, rest) = word()?;
            let stream = StreamNumber::try_from(stream).ok()?;
            let steps = u32_at(rest.get(..4)?, 0);
            (Record::Chunk { ordinal, stream, steps, stored: &rest[4..] }, &rest[4..])
        }
        SEALED => (Record::Sealed { ordinal, manifest: rest }, rest),
        DAMAGED if rest.is_empty() => (Record::Damaged { ordinal }, rest),
        FREED => {
            let (_, receipt) = word()?;
            (Record::Freed { ordinal, why: Freeing::Durable, receipt }, receipt)
        }
        EVICTED => (Record::Evicted { ordinal, tombstone: rest }, rest),
        _ => return None,
    };
    Some((record, body.len()))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(&bytes[at..at + 4]))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the caller cuts as many bytes as it needs")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spool::seal::MasterKey;

    #[test]
    fn a_step_is_frozen() {
        let mut bytes = Vec::new();
        let body = Record::Step { ordinal: 3, intervention: true, row: &[9, 8] }.encode(5, &mut bytes);
        assert_eq!(body, 36);
        assert_eq!(bytes[..4], [14, 0, 0, 0]);
        let crc = crc32fast::hash(&bytes[8..]);
        assert_eq!(bytes[4..8], crc.to_le_bytes());
        assert_eq!(
            bytes[8..],
            [
                5, 0, 0, 0, 0, 0, 0, 0, // sequence
                2, 0, 0, 0, // type, flags
                14, 0, 0, 0, // length again
                3, 0, 0, 0, 0, 0, 0, 0, // ordinal
                1, 0, 0, 0, // flags: intervention
                9, 8, // row
            ]
        );
    }

    #[test]
    fn the_first_record_of_a_commit_says_so_and_is_otherwise_the_same() {
        let record = Record::Step { ordinal: 3, intervention: false, row: &[9, 8] };
        let mut bytes = Vec::new();
        record.encode(5, &mut bytes);
        assert_eq!(commit_at(&bytes), None);
        let plain = bytes.clone();
        mark_commit(&mut bytes);
        assert_eq!(bytes[16..20], [2, 0, 1, 0]);
        assert_eq!((bytes[..4].to_vec(), bytes[20..].to_vec()), (plain[..4].to_vec(), plain[20..].to_vec()));
        assert_eq!(commit_at(&bytes), Some(5));
        assert!(matches!(decode(&bytes, 5), Next::Record { record: found, .. } if found == record));
    }

    #[test]
    fn a_record_without_one_of_its_sectors_was_cut_off_and_any_other_was_damaged() {
        let mut segment = vec![0; 4 * SECTOR_BYTES];
        let mut bytes = Vec::new();
        Record::Step { ordinal: 1, intervention: false, row: &[7; 1000] }.encode(9, &mut bytes);
        segment[500..500 + bytes.len()].copy_from_slice(&bytes);
        for sector in 0..3 {
            let mut cut = segment.clone();
            cut[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].fill(0);
            assert!(!is_damaged(&cut, 500, 9, false), "without sector {sector}");
        }
        for bit in 500 * 8..(500 + bytes.len()) * 8 {
            segment[bit / 8] ^= 1 << (bit % 8);
            assert!(is_damaged(&segment, 500, 9, false), "bit {bit}");
            segment[bit / 8] ^= 1 << (bit % 8);
        }
        let mut empty = vec![0; 2 * SECTOR_BYTES];
        for bit in 0..HEADER_BYTES * 8 {
            empty[SECTOR_BYTES + bit / 8] ^= 1 << (bit % 8);
            assert!(!is_damaged(&empty, SECTOR_BYTES, 9, true), "nothing was written there; bit {bit}");
            empty[SECTOR_BYTES + bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_sealed_step_is_frozen() {
        let mut plain = Vec::new();
        Record::Step { ordinal: 3, intervention: true, row: &[9, 8] }.encode(5, &mut plain);
        let mut bytes = Vec::new();
        seal(&plain, &key(), 512, &mut bytes);
        assert_eq!(bytes[..4], [30, 0, 0, 0]);
        assert_eq!(bytes[4..8], crc32fast::hash(&bytes[8..]).to_le_bytes());
        assert_eq!(
            bytes[8..24],
            [
                5, 0, 0, 0, 0, 0, 0, 0, // sequence
                2, 0, 0, 0, // type, flags
                30, 0, 0, 0, // length again
            ]
        );
        assert_eq!(bytes[24..], SEALED_STEP);
    }

    /// Ciphertext and tag with the key of segment 6 that ones and a salt of nines make; computed with another
    /// implementation of both algorithms.
    const SEALED_STEP: [u8; 30] = [
        0x68, 0x1f, 0x5e, 0x78, 0x4c, 0x85, 0x11, 0x44, 0x4e, 0x58, 0x02, 0xb9, 0x29, 0xb8, 0xd7, 0x35, 0x71, 0x44,
        0x0a, 0xb2, 0x32, 0x4a, 0x06, 0x71, 0x28, 0x97, 0xb1, 0xd4, 0x1c, 0xa4,
    ];

    fn key() -> SegmentKey {
        MasterKey::from_bytes([1; 32]).segment_key(6, &[9; 32])
    }

    #[test]
    fn a_sealed_record_whose_checksum_was_set_right_is_torn_all_the_same() {
        let (mut plain, mut bytes, mut opened) = (Vec::new(), Vec::new(), Vec::new());
        Record::Step { ordinal: 3, intervention: false, row: &[9; 20] }.encode(5, &mut plain);
        seal(&plain, &key(), 512, &mut bytes);
        assert!(matches!(decode_sealed(&bytes, 5, &key(), 512, &mut opened), Next::Record { .. }));
        assert_eq!(decode_sealed(&bytes, 5, &key(), 1024, &mut opened), Next::Torn);
        for at in 16..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            let crc = crc32fast::hash(&forged[8..]).to_le_bytes();
            forged[4..8].copy_from_slice(&crc);
            assert_eq!(decode_sealed(&forged, 5, &key(), 512, &mut opened), Next::Torn, "byte {at}");
        }
    }

    #[test]
    fn samples_and_chunks_are_frozen() {
        let payload = |record: Record<'_>| {
            let mut bytes = Vec::new();
            record.encode(5, &mut bytes);
            (bytes[16], bytes[HEADER_BYTES + 8..].to_vec())
        };
        let sample = Record::Sample { ordinal: 3, stream: 2, key_frame: true, row: &[9, 8] };
        assert_eq!(payload(sample), (7, vec![2, 0, 1, 0, 9, 8]));
        let chunk = Record::Chunk { ordinal: 3, stream: 2, steps: 7, stored: &[9, 8] };
        assert_eq!(payload(chunk), (3, vec![2, 0, 0, 0, 7, 0, 0, 0, 9, 8]));
    }

    #[test]
    fn zeros_are_the_end_and_another_number_is_torn() {
        assert_eq!(decode(&[0; 100], 0), Next::End);
        assert_eq!(decode(&[0; 3], 0), Next::End);
        let mut bytes = Vec::new();
        Record::Sealed { ordinal: 1, manifest: b"m" }.encode(7, &mut bytes);
        assert!(matches!(decode(&bytes, 7), Next::Record { .. }));
        assert_eq!(decode(&bytes, 8), Next::Torn);
    }

    fn records() -> impl Strategy<Value = (u8, u64, u32, bool, Vec<u8>)> {
        (0..7_u8, any::<u64>(), any::<u32>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200))
    }

    fn build(kind: u8, ordinal: u64, steps: u32, intervention: bool, body: &[u8]) -> Record<'_> {
        match kind {
            0 => Record::Begin { ordinal, opening: body },
            1 => Record::Step { ordinal, intervention, row: body },
            2 => Record::Chunk { ordinal, stream: steps as u16, steps, stored: body },
            3 => Record::Sealed { ordinal, manifest: body },
            4 => Record::Sample { ordinal, stream: steps as u16, key_frame: intervention, row: body },
            5 => Record::Evicted { ordinal, tombstone: body },
            _ => Record::Freed { ordinal, why: Freeing::Durable, receipt: body },
        }
    }

    proptest! {
        #[test]
        fn every_record_comes_back_and_any_flipped_bit_is_seen(
            (kind, ordinal, steps, intervention, body) in records(), sequence: u64, flip: usize,
        ) {
            let record = build(kind, ordinal, steps, intervention, &body);
            let mut bytes = Vec::new();
            let at = record.encode(sequence, &mut bytes);
            prop_assert_eq!(&bytes[at..], &body[..]);
            let size = bytes.len();
            prop_assert_eq!(decode(&bytes, sequence), Next::Record { record, bytes: size, body: at });
            for cut in 0..size {
                let whole = matches!(decode(&bytes[..cut], sequence), Next::Record { .. });
                prop_assert!(!whole);
            }
            let bit = flip % (size * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            // The flags are covered by the checksum too.
            prop_assert_eq!(decode(&bytes, sequence), Next::Torn);
        }

        #[test]
        fn every_sealed_record_comes_back_and_any_flipped_bit_is_seen(
            (kind, ordinal, steps, intervention, body) in records(), sequence: u64, offset: u64, flip: usize,
        ) {
            let record = build(kind, ordinal, steps, intervention, &body);
            let (mut plain, mut bytes, mut opened) = (Vec::new(), Vec::new(), Vec::new());
            let at = record.encode(sequence, &mut plain);
            seal(&plain, &key(), offset, &mut bytes);
            let size = bytes.len();
            prop_assert_eq!(size, plain.len() + TAG_BYTES);
            let next = decode_sealed(&bytes, sequence, &key(), offset, &mut opened);
            prop_assert_eq!(next, Next::Record { record, bytes: size, body: at });
            let mut whole = bytes.clone();
            prop_assert!(open(&mut whole, &key(), offset));
            prop_assert_eq!(&whole[HEADER_BYTES..], &plain[HEADER_BYTES..]);
            let bit = flip % (size * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode_sealed(&bytes, sequence, &key(), offset, &mut opened), Next::Torn);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), sequence: u64) {
            let _next = decode(&bytes, sequence);
            let _next = decode_sealed(&bytes, sequence, &key(), 0, &mut Vec::new());
            let _opened = open(&mut bytes.clone(), &key(), 0);
        }
    }
}
