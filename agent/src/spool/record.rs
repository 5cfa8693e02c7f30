//! The spool's records as bytes: what the log holds, and where it ends after a power cut.
//!
//! Pure. It knows nothing of files; [`super::log`] decides where records go.
//!
//! ```text
//! 0   length    u32  bytes of payload
//! 4   crc32     u32  over the rest of the header and the payload
//! 8   sequence  u64  one more than the record before
//! 16  type      u16
//! 18  reserved  u16  zero
//! 20  length    u32  again, so that a torn header cannot send the reader far away
//! 24  payload   begins with u64 ordinal: which recording the record is about
//! ```
//! All integers are little-endian.

use zunft_protocol::limits::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX, STEP_BYTES_MAX};

use super::recorder::StreamNumber;

/// Size of a record before its payload.
pub(crate) const HEADER_BYTES: usize = 24;

/// Largest payload: the largest manifest with its ordinal.
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
const SAMPLE: u16 = 6;

const STEP_INTERVENTION: u32 = 1;
const SAMPLE_KEY_FRAME: u16 = 1;

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
    /// The recording's records may go.
    Freed { ordinal: Ordinal, why: Freeing, receipt: &'a [u8] },
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
            | Self::Freed { ordinal, .. } => ordinal,
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
            Self::Freed { why: Freeing::Durable, receipt, .. } => {
                out.extend_from_slice(&0_u32.to_le_bytes());
                (FREED, receipt)
            }
        };
        let body_at = out.len() - begin;
        out.extend_from_slice(body);
        let payload_bytes = out.len() - begin - HEADER_BYTES;
        assert!(payload_bytes <= PAYLOAD_BYTES_MAX, "records are bounded by what may be recorded");
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

/// Reads the record at the beginning of `bytes`, which must be number `sequence`.
pub(crate) fn decode(bytes: &[u8], sequence: u64) -> Next<'_> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return if bytes.iter().all(|&byte| byte == 0) { Next::End } else { Next::Torn };
    };
    if header.iter().all(|&byte| byte == 0) {
        return Next::End;
    }
    let length = u32_at(header, 0) as usize;
    let found_sequence = u64::from_le_bytes(array(&header[8..16]));
    if u32_at(header, 20) as usize != length || length > PAYLOAD_BYTES_MAX || found_sequence != sequence {
        return Next::Torn;
    }
    let Some(payload) = rest.get(..length) else { return Next::Torn };
    if crc32fast::hash(&bytes[8..HEADER_BYTES + length]) != u32_at(header, 4) {
        return Next::Torn;
    }
    let kind = u16::from_le_bytes(array(&header[16..18]));
    match read_payload(kind, payload) {
        Some((record, body)) => {
            Next::Record { record, bytes: HEADER_BYTES + length, body: HEADER_BYTES + length - body }
        }
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
        FREED => {
            let (_, receipt) = word()?;
            (Record::Freed { ordinal, why: Freeing::Durable, receipt }, receipt)
        }
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
                2, 0, 0, 0, // type, reserved
                14, 0, 0, 0, // length again
                3, 0, 0, 0, 0, 0, 0, 0, // ordinal
                1, 0, 0, 0, // flags: intervention
                9, 8, // row
            ]
        );
    }

    #[test]
    fn samples_and_chunks_are_frozen() {
        let payload = |record: Record<'_>| {
            let mut bytes = Vec::new();
            record.encode(5, &mut bytes);
            (bytes[16], bytes[HEADER_BYTES + 8..].to_vec())
        };
        let sample = Record::Sample { ordinal: 3, stream: 2, key_frame: true, row: &[9, 8] };
        assert_eq!(payload(sample), (6, vec![2, 0, 1, 0, 9, 8]));
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
        (0..6_u8, any::<u64>(), any::<u32>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..200))
    }

    fn build(kind: u8, ordinal: u64, steps: u32, intervention: bool, body: &[u8]) -> Record<'_> {
        match kind {
            0 => Record::Begin { ordinal, opening: body },
            1 => Record::Step { ordinal, intervention, row: body },
            2 => Record::Chunk { ordinal, stream: steps as u16, steps, stored: body },
            3 => Record::Sealed { ordinal, manifest: body },
            4 => Record::Sample { ordinal, stream: steps as u16, key_frame: intervention, row: body },
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
            // The reserved field is covered by the checksum too.
            prop_assert_eq!(decode(&bytes, sequence), Next::Torn);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), sequence: u64) {
            let _next = decode(&bytes, sequence);
        }
    }
}
