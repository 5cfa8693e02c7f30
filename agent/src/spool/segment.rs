//! How a segment begins: which records are in it, how many recordings there were before, and where the segments
//! before it end.
//!
//! ```text
//! 0   magic           "ZSPL"
//! 4   version         u16: 2
//! 6   reserved        u16: zero
//! 8   key id          u32: 0, not encrypted
//! 12  first sequence  u64
//! 20  next ordinal    u64
//! 28  closed          u32: how many segments before it are listed
//! 32  crc32           u32 over the 32 bytes before
//! 36  the same again
//! 72  for each listed segment: number u64, end u64: the first sequence that it does not hold
//! ..  crc32           u32 over the list
//! ```
//! All integers are little-endian. The header is there twice because the newest one alone may know how many
//! recordings there were: a number that were used again would make two recordings one. The list is there because
//! a segment in the middle may be removed: the one before it must not seem to lack what was in it.

use std::collections::BTreeMap;

use super::disk::SegmentNumber;
use super::record::Ordinal;

/// Most segments that a head lists: with segments of 16 MiB, a spool of 1 TiB.
pub(crate) const SEGMENTS_MAX: usize = 65_536;

/// Size of the largest head.
pub(crate) const HEAD_BYTES_MAX: usize = HEADER_BYTES + SEGMENTS_MAX * ENTRY_BYTES + 4;

/// Size of a head before its list.
pub(crate) const HEADER_BYTES: usize = 2 * COPY_BYTES;

const COPY_BYTES: usize = 36;
const ENTRY_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"ZSPL";
const VERSION: u16 = 2;

/// Where segments end: the first sequence that each does not hold.
pub(crate) type Ends = BTreeMap<SegmentNumber, u64>;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Number of its first record.
    pub(crate) first_sequence: u64,
    /// The first ordinal that no recording before it has.
    pub(crate) next_ordinal: Ordinal,
    /// Segments listed.
    closed: u32,
}

/// What stands where a header should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// A header, `intact` if both copies are.
    Header { header: SegmentHeader, intact: bool },
    /// Zeros: the segment was made ahead and never used.
    Blank,
    /// Something else.
    Damaged,
}

impl SegmentHeader {
    /// Where the first record stands.
    pub(crate) fn records_at(&self) -> usize {
        HEADER_BYTES + self.closed as usize * ENTRY_BYTES + 4
    }

    /// Where the segments before this one end; `None` when the list is not whole.
    pub(crate) fn ends(&self, segment: &[u8]) -> Option<Ends> {
        let (list, crc) = segment.get(HEADER_BYTES..self.records_at())?.split_last_chunk::<4>()?;
        if crc32fast::hash(list) != u32::from_le_bytes(*crc) {
            return None;
        }
        let pairs = list.chunks_exact(ENTRY_BYTES).map(|entry| Some((word(entry, 0)?, word(entry, 8)?)));
        pairs.collect()
    }
}

/// The bytes before the first record.
pub(crate) fn encode_head(first_sequence: u64, next_ordinal: Ordinal, ends: &Ends) -> Vec<u8> {
    let listed = ends.iter().skip(ends.len().saturating_sub(SEGMENTS_MAX));
    let list: Vec<u8> =
        listed.flat_map(|(segment, end)| segment.to_le_bytes().into_iter().chain(end.to_le_bytes())).collect();
    let mut copy = Vec::with_capacity(COPY_BYTES);
    copy.extend_from_slice(&MAGIC);
    copy.extend_from_slice(&VERSION.to_le_bytes());
    copy.extend_from_slice(&[0; 6]);
    copy.extend_from_slice(&first_sequence.to_le_bytes());
    copy.extend_from_slice(&next_ordinal.to_le_bytes());
    copy.extend_from_slice(&((list.len() / ENTRY_BYTES) as u32).to_le_bytes());
    copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
    let list_crc = crc32fast::hash(&list).to_le_bytes();
    [&copy[..], &copy, &list, &list_crc].concat()
}

/// Reads what stands at the beginning of a segment.
pub(crate) fn read_head(bytes: &[u8; HEADER_BYTES]) -> Head {
    let copies = [read_copy(&bytes[..COPY_BYTES]), read_copy(&bytes[COPY_BYTES..])];
    match copies {
        [Some(header), second] => Head::Header { header, intact: second == Some(header) },
        [None, Some(header)] => Head::Header { header, intact: false },
        [None, None] if bytes.iter().all(|&byte| byte == 0) => Head::Blank,
        [None, None] => Head::Damaged,
    }
}

fn read_copy(copy: &[u8]) -> Option<SegmentHeader> {
    let (body, crc) = copy.split_last_chunk::<4>()?;
    let (_, closed) = body.split_last_chunk::<4>()?;
    let ours = copy[..4] == MAGIC && copy[4..6] == VERSION.to_le_bytes() && copy[6..12] == [0; 6];
    let closed = u32::from_le_bytes(*closed);
    let header = SegmentHeader { first_sequence: word(body, 12)?, next_ordinal: word(body, 20)?, closed };
    (ours && closed as usize <= SEGMENTS_MAX && crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(header)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Vec<u8> {
        encode_head(5, 3, &Ends::from([(1, 2), (4, 5)]))
    }

    fn header_of(head: &[u8]) -> Head {
        read_head(head[..HEADER_BYTES].try_into().unwrap())
    }

    #[test]
    fn the_head_is_frozen() {
        let bytes = head();
        let expected = [
            b'Z', b'S', b'P', b'L', // magic
            2, 0, 0, 0, // version, reserved
            0, 0, 0, 0, // key id
            5, 0, 0, 0, 0, 0, 0, 0, // first sequence
            3, 0, 0, 0, 0, 0, 0, 0, // next ordinal
            2, 0, 0, 0, // closed
        ];
        assert_eq!(bytes[..32], expected);
        assert_eq!(bytes[32..36], crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(bytes[36..72], bytes[..36]);
        let list = [[1_u64, 2], [4, 5]].concat().iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(bytes[72..104], list);
        assert_eq!(bytes[104..], crc32fast::hash(&list).to_le_bytes());
    }

    #[test]
    fn one_flipped_bit_costs_no_header_and_is_noticed() {
        let header = SegmentHeader { first_sequence: 5, next_ordinal: 3, closed: 2 };
        let mut bytes = head();
        assert_eq!(header_of(&bytes), Head::Header { header, intact: true });
        assert_eq!((header.records_at(), header.ends(&bytes)), (bytes.len(), Some(Ends::from([(1, 2), (4, 5)]))));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(header_of(&bytes), Head::Header { header, intact: bit >= HEADER_BYTES * 8 }, "bit {bit}");
            assert_eq!(header.ends(&bytes).is_some(), bit < HEADER_BYTES * 8, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(header_of(&[0; HEADER_BYTES]), Head::Blank);
        assert_eq!(header_of(&[1; HEADER_BYTES]), Head::Damaged);
    }
}
