//! How a segment begins: which records are in it, how many recordings there were before, where the segments before it
//! end, and whether it is encrypted.
//!
//! ```text
//! 0   magic           "ZSPL"
//! 4   version         u16: 2; 3 if it is encrypted
//! 6   reserved        u16: zero
//! 8   cipher          u32: 0, not encrypted; 1, XChaCha20-Poly1305
//! 12  first sequence  u64
//! 20  next ordinal    u64
//! 28  closed          u32: how many segments before it are listed
//!     salt            32 bytes, only if it is encrypted: makes its key
//!     check           16 bytes, only if it is encrypted: a keyed hash over the bytes before
//! 32  crc32           u32 over the bytes before; at 80 if it is encrypted
//! 36  the same again; at 84 if it is encrypted
//! 72  for each listed segment: number u64, end u64: the first sequence that it does not hold; at 168 if it is encrypted
//! ..  crc32           u32 over the list
//! ```
//! All integers are little-endian. The header is there twice because the newest one alone may know how many
//! recordings there were: a number that were used again would make two recordings one. The list is there because
//! a segment in the middle may be removed: the one before it must not seem to lack what was in it.

use std::collections::BTreeMap;

use super::disk::SegmentNumber;
use super::record::Ordinal;
use super::seal::{CHECK_BYTES, Keyring, Protection, Salt, SegmentKey};

/// Most segments that a head lists: with segments of 16 MiB, a spool of 1 TiB.
pub(crate) const SEGMENTS_MAX: usize = 65_536;

/// Size of the largest head.
pub(crate) const HEAD_BYTES_MAX: usize = HEADER_BYTES_MAX + SEGMENTS_MAX * ENTRY_BYTES + 4;

/// Size of a head before its list, if it is not encrypted.
pub(crate) const HEADER_BYTES: usize = 2 * COPY_BYTES;

/// Size of a head before its list, if it is encrypted.
pub(crate) const HEADER_BYTES_MAX: usize = 2 * SEALED_COPY_BYTES;

const COPY_BYTES: usize = FIELDS_BYTES + 4;
const SEALED_COPY_BYTES: usize = FIELDS_BYTES + SALT_BYTES + CHECK_BYTES + 4;
const FIELDS_BYTES: usize = 32;
const SALT_BYTES: usize = size_of::<Salt>();
const ENTRY_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"ZSPL";
const VERSION: u16 = 2;
const VERSION_SEALED: u16 = 3;
const CIPHER_NONE: u32 = 0;
const CIPHER_XCHACHA20_POLY1305: u32 = 1;

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
    /// If it is encrypted.
    seal: Option<Seal>,
}

/// What the header of an encrypted segment says about its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seal {
    salt: Salt,
    check: [u8; CHECK_BYTES],
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

/// What opens a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Nothing is needed.
    None,
    /// This key, which is one of those given.
    Key(SegmentKey, Protection),
    /// A key that was not given.
    KeyMissing,
}

impl SegmentHeader {
    /// Where the first record stands.
    pub(crate) fn records_at(&self) -> usize {
        self.list_at() + self.closed as usize * ENTRY_BYTES + 4
    }

    /// Where the segments before this one end; `None` when the list is not whole.
    pub(crate) fn ends(&self, segment: &[u8]) -> Option<Ends> {
        let (list, crc) = segment.get(self.list_at()..self.records_at())?.split_last_chunk::<4>()?;
        if crc32fast::hash(list) != u32::from_le_bytes(*crc) {
            return None;
        }
        let pairs = list.chunks_exact(ENTRY_BYTES).map(|entry| Some((word(entry, 0)?, word(entry, 8)?)));
        pairs.collect()
    }

    /// What opens the segment `number`, of which this is the header.
    pub(crate) fn lock(&self, number: SegmentNumber, keyring: &Keyring) -> Lock {
        let Some(Seal { salt, check }) = self.seal else { return Lock::None };
        match keyring.find(number, &salt, &self.fields(Some(&salt)), check) {
            Some((key, protection)) => Lock::Key(key, protection),
            None => Lock::KeyMissing,
        }
    }

    fn list_at(&self) -> usize {
        if self.seal.is_some() { HEADER_BYTES_MAX } else { HEADER_BYTES }
    }

    /// One copy but for its check and its checksum.
    fn fields(&self, salt: Option<&Salt>) -> Vec<u8> {
        let (version, cipher) =
            if salt.is_some() { (VERSION_SEALED, CIPHER_XCHACHA20_POLY1305) } else { (VERSION, CIPHER_NONE) };
        let mut fields = Vec::with_capacity(SEALED_COPY_BYTES);
        fields.extend_from_slice(&MAGIC);
        fields.extend_from_slice(&version.to_le_bytes());
        fields.extend_from_slice(&[0; 2]);
        fields.extend_from_slice(&cipher.to_le_bytes());
        fields.extend_from_slice(&self.first_sequence.to_le_bytes());
        fields.extend_from_slice(&self.next_ordinal.to_le_bytes());
        fields.extend_from_slice(&self.closed.to_le_bytes());
        fields.extend_from_slice(salt.map_or(&[], |salt| &salt[..]));
        fields
    }
}

/// The bytes before the first record; `seal` if those that follow are encrypted.
pub(crate) fn encode_head(
    first_sequence: u64,
    next_ordinal: Ordinal,
    ends: &Ends,
    seal: Option<&(SegmentKey, Salt)>,
) -> Vec<u8> {
    let listed = ends.iter().skip(ends.len().saturating_sub(SEGMENTS_MAX));
    let list: Vec<u8> =
        listed.flat_map(|(segment, end)| segment.to_le_bytes().into_iter().chain(end.to_le_bytes())).collect();
    let closed = (list.len() / ENTRY_BYTES) as u32;
    let header = SegmentHeader { first_sequence, next_ordinal, closed, seal: None };
    let mut copy = header.fields(seal.map(|(_, salt)| salt));
    if let Some((key, _)) = seal {
        copy.extend_from_slice(&key.check(&copy));
    }
    copy.extend_from_slice(&crc32fast::hash(&copy).to_le_bytes());
    let list_crc = crc32fast::hash(&list).to_le_bytes();
    [&copy[..], &copy, &list, &list_crc].concat()
}

/// Reads what stands at the beginning of a segment.
pub(crate) fn read_head(bytes: &[u8; HEADER_BYTES_MAX]) -> Head {
    for copy_bytes in [COPY_BYTES, SEALED_COPY_BYTES] {
        match [read_copy(&bytes[..copy_bytes]), read_copy(&bytes[copy_bytes..2 * copy_bytes])] {
            [Some(header), second] => return Head::Header { header, intact: second == Some(header) },
            [None, Some(header)] => return Head::Header { header, intact: false },
            [None, None] => {}
        }
    }
    if bytes[..HEADER_BYTES].iter().all(|&byte| byte == 0) { Head::Blank } else { Head::Damaged }
}

fn read_copy(copy: &[u8]) -> Option<SegmentHeader> {
    let (body, crc) = copy.split_last_chunk::<4>()?;
    let (fields, sealed) = body.split_first_chunk::<FIELDS_BYTES>()?;
    let seal = match sealed.split_first_chunk::<SALT_BYTES>() {
        Some((salt, check)) => Some(Seal { salt: *salt, check: check.try_into().ok()? }),
        None => None,
    };
    let closed = u32::from_le_bytes(*fields.last_chunk()?);
    let header = SegmentHeader { first_sequence: word(fields, 12)?, next_ordinal: word(fields, 20)?, closed, seal };
    // Whatever a header does not say must be as this program writes it.
    let ours = header.fields(seal.as_ref().map(|seal| &seal.salt)).starts_with(fields);
    (ours && closed as usize <= SEGMENTS_MAX && crc32fast::hash(body) == u32::from_le_bytes(*crc)).then_some(header)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::seal::MasterKey;

    const SALT: Salt = [9; SALT_BYTES];
    const NUMBER: SegmentNumber = 6;

    fn master() -> MasterKey {
        MasterKey::from_bytes([1; 32])
    }

    fn head(sealed: bool) -> Vec<u8> {
        let seal = sealed.then(|| (master().segment_key(NUMBER, &SALT), SALT));
        encode_head(5, 3, &Ends::from([(1, 2), (4, 5)]), seal.as_ref())
    }

    fn header_of(head: &[u8]) -> Head {
        let mut bytes = [0; HEADER_BYTES_MAX];
        let whole = head.len().min(HEADER_BYTES_MAX);
        bytes[..whole].copy_from_slice(&head[..whole]);
        read_head(&bytes)
    }

    fn list() -> Vec<u8> {
        [[1_u64, 2], [4, 5]].concat().iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_head_is_frozen() {
        let bytes = head(false);
        let expected = [
            b'Z', b'S', b'P', b'L', // magic
            2, 0, 0, 0, // version, reserved
            0, 0, 0, 0, // cipher
            5, 0, 0, 0, 0, 0, 0, 0, // first sequence
            3, 0, 0, 0, 0, 0, 0, 0, // next ordinal
            2, 0, 0, 0, // closed
        ];
        assert_eq!(bytes[..32], expected);
        assert_eq!(bytes[32..36], crc32fast::hash(&expected).to_le_bytes());
        assert_eq!(bytes[36..72], bytes[..36]);
        assert_eq!(bytes[72..104], list());
        assert_eq!(bytes[104..], crc32fast::hash(&list()).to_le_bytes());
    }

    #[test]
    fn the_head_of_an_encrypted_segment_is_frozen() {
        let bytes = head(true);
        let expected = [
            b'Z', b'S', b'P', b'L', // magic
            3, 0, 0, 0, // version, reserved
            1, 0, 0, 0, // cipher
            5, 0, 0, 0, 0, 0, 0, 0, // first sequence
            3, 0, 0, 0, 0, 0, 0, 0, // next ordinal
            2, 0, 0, 0, // closed
        ];
        assert_eq!(bytes[..32], expected);
        assert_eq!(bytes[32..64], SALT);
        assert_eq!(bytes[64..80], CHECK, "the second 32 bytes of the key that BLAKE3 derives hash the 64 before");
        assert_eq!(bytes[80..84], crc32fast::hash(&bytes[..80]).to_le_bytes());
        assert_eq!(bytes[84..168], bytes[..84]);
        assert_eq!(bytes[168..200], list());
        assert_eq!(bytes[200..], crc32fast::hash(&list()).to_le_bytes());
    }

    /// Of segment 6 with a key of ones and a salt of nines; computed with another implementation of BLAKE3.
    const CHECK: [u8; CHECK_BYTES] =
        [0x87, 0xd1, 0x9e, 0x1e, 0x35, 0xe5, 0x5b, 0x8d, 0xbd, 0x66, 0xeb, 0xdb, 0x49, 0x68, 0x1e, 0x85];

    #[test]
    fn one_flipped_bit_costs_no_header_and_is_noticed() {
        for sealed in [false, true] {
            let mut bytes = head(sealed);
            let header_bytes = if sealed { HEADER_BYTES_MAX } else { HEADER_BYTES };
            let Head::Header { header, intact: true } = header_of(&bytes) else { panic!("this is a head") };
            assert_eq!((header.first_sequence, header.next_ordinal, header.closed), (5, 3, 2));
            assert_eq!((header.records_at(), header.ends(&bytes)), (bytes.len(), Some(Ends::from([(1, 2), (4, 5)]))));
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                let intact = bit >= header_bytes * 8;
                assert_eq!(header_of(&bytes), Head::Header { header, intact }, "bit {bit}");
                assert_eq!(header.ends(&bytes).is_some(), !intact, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
        assert_eq!(header_of(&[0; HEADER_BYTES_MAX]), Head::Blank);
        assert_eq!(header_of(&[1; HEADER_BYTES_MAX]), Head::Damaged);
    }

    #[test]
    fn an_encrypted_segment_opens_with_its_key_under_its_number_alone() {
        let Head::Header { header, .. } = header_of(&head(true)) else { panic!("this is a head") };
        let ring = |byte| Keyring::new(Some(MasterKey::from_bytes([byte; 32])), Vec::new(), || SALT);
        let key = master().segment_key(NUMBER, &SALT);
        assert_eq!(header.lock(NUMBER, &ring(1)), Lock::Key(key, Protection::Current));
        assert_eq!(header.lock(NUMBER + 1, &ring(1)), Lock::KeyMissing);
        assert_eq!(header.lock(NUMBER, &ring(2)), Lock::KeyMissing);
        let Head::Header { header, .. } = header_of(&head(false)) else { panic!("this is a head") };
        assert_eq!(header.lock(NUMBER, &ring(1)), Lock::None);
    }
}
