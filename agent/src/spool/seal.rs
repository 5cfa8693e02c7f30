//! Encryption of segments: the key of each, and what only it opens.
//!
//! XChaCha20-Poly1305, one key a segment: derived from a key of the operator's, a random salt and the segment's number.
//! A record's nonce is its place (segment, offset, sequence), and no place is written twice under one salt: after a
//! failed write, a crash or a restart the log goes on in another segment, which has a salt of its own. So no nonce
//! serves twice, and a record that was moved does not open.
//!
//! Pure. It knows neither files nor what is in a record.

use std::fmt;
use std::sync::Arc;

use chacha20poly1305::aead::AeadInOut as _;
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};

use super::disk::SegmentNumber;

/// Bytes of a key in a key file.
pub(crate) const KEY_BYTES: usize = 32;

/// What a sealed record is longer than the same record in the clear.
pub(crate) const TAG_BYTES: usize = 16;

/// Bytes that prove that a header was made with a key.
pub(crate) const CHECK_BYTES: usize = 16;

/// What BLAKE3 derives a segment's keys for. Never used for anything else.
const CONTEXT: &str = "zunft-agent 2026-11 spool segment, XChaCha20-Poly1305";

/// Random bytes, new for every segment that is begun.
pub(crate) type Salt = [u8; 32];

/// A key of the operator's.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct MasterKey([u8; KEY_BYTES]);

impl MasterKey {
    pub(crate) fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key of one segment.
    pub(crate) fn segment_key(&self, segment: SegmentNumber, salt: &Salt) -> SegmentKey {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&self.0).update(salt).update(&segment.to_le_bytes());
        let (mut records, mut header) = ([0; KEY_BYTES], [0; KEY_BYTES]);
        let mut output = hasher.finalize_xof();
        output.fill(&mut records);
        output.fill(&mut header);
        SegmentKey { segment, records, header }
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

/// The key of one segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentKey {
    segment: SegmentNumber,
    records: [u8; KEY_BYTES],
    header: [u8; KEY_BYTES],
}

impl fmt::Debug for SegmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentKey of {}", self.segment)
    }
}

impl SegmentKey {
    /// Encrypts the payload of the record `sequence` at `offset`; `header` is what is left readable, and cannot be
    /// changed either.
    pub(crate) fn seal(&self, offset: u64, sequence: u64, header: &[u8], payload: &mut [u8]) -> [u8; TAG_BYTES] {
        let nonce = self.nonce(offset, sequence);
        let sealed = self.cipher().encrypt_inout_detached(&nonce, header, payload.into());
        sealed.expect("a record is shorter than 256 GiB").into()
    }

    /// Decrypts what [`Self::seal`] made; `false`, and nothing changed, if it did not make it here.
    pub(crate) fn open(
        &self,
        offset: u64,
        sequence: u64,
        header: &[u8],
        payload: &mut [u8],
        tag: [u8; TAG_BYTES],
    ) -> bool {
        let nonce = self.nonce(offset, sequence);
        self.cipher().decrypt_inout_detached(&nonce, header, payload.into(), &tag.into()).is_ok()
    }

    /// Proves that whoever wrote `header` had this key.
    pub(crate) fn check(&self, header: &[u8]) -> [u8; CHECK_BYTES] {
        let hash = blake3::keyed_hash(&self.header, header);
        *hash.as_bytes().first_chunk().expect("a hash is longer")
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.records.into())
    }

    fn nonce(&self, offset: u64, sequence: u64) -> XNonce {
        let mut nonce = XNonce::default();
        let place = [self.segment, offset, sequence];
        for (bytes, word) in nonce.chunks_exact_mut(8).zip(place) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        nonce
    }
}

/// How a segment is kept from other readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protection {
    /// Not at all.
    Clear,
    /// By the key that new segments get.
    Current,
    /// By a key that is only kept for reading.
    Old,
}

/// The keys that segments may have, and which one new ones get.
#[derive(Clone)]
pub(crate) struct Keyring {
    current: Option<MasterKey>,
    old: Vec<MasterKey>,
    salts: Arc<dyn Fn() -> Salt + Send + Sync>,
}

impl Keyring {
    /// New segments get `current`, or none; `old` opens what there is. `salts` never gives the same one twice.
    pub(crate) fn new(
        current: Option<MasterKey>,
        old: Vec<MasterKey>,
        salts: impl Fn() -> Salt + Send + Sync + 'static,
    ) -> Self {
        Self { current, old, salts: Arc::new(salts) }
    }

    /// Whether new segments are encrypted.
    pub(crate) fn encrypts(&self) -> bool {
        self.current.is_some()
    }

    /// A key for a segment that is about to begin, and the salt for its header.
    pub(crate) fn for_new(&self, segment: SegmentNumber) -> Option<(SegmentKey, Salt)> {
        let key = self.current.as_ref()?;
        let salt = (self.salts)();
        Some((key.segment_key(segment, &salt), salt))
    }

    /// The key with which `header` was made, if there is one.
    pub(crate) fn find(
        &self,
        segment: SegmentNumber,
        salt: &Salt,
        header: &[u8],
        check: [u8; CHECK_BYTES],
    ) -> Option<(SegmentKey, Protection)> {
        let current = self.current.iter().map(|key| (key, Protection::Current));
        let mut all = current.chain(self.old.iter().map(|key| (key, Protection::Old)));
        all.find_map(|(key, protection)| {
            let key = key.segment_key(segment, salt);
            (key.check(header) == check).then_some((key, protection))
        })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("encrypts", &self.encrypts()).field("old", &self.old.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &[u8] = b"header";

    fn key(master: u8, segment: SegmentNumber, salt: u8) -> SegmentKey {
        MasterKey::from_bytes([master; KEY_BYTES]).segment_key(segment, &[salt; 32])
    }

    #[test]
    fn what_is_sealed_opens_at_its_place_with_its_key_and_nowhere_else() {
        let sealed_with = key(1, 2, 3);
        let mut sealed = *b"payload";
        let tag = sealed_with.seal(512, 9, HEADER, &mut sealed);
        assert_ne!(&sealed, b"payload");
        let opens = |key: SegmentKey, offset, sequence, header: &[u8], sealed: [u8; 7], tag| {
            let mut payload = sealed;
            let opened = key.open(offset, sequence, header, &mut payload, tag);
            assert_eq!(payload, if opened { *b"payload" } else { sealed });
            opened
        };
        assert!(opens(sealed_with, 512, 9, HEADER, sealed, tag));
        assert!(!opens(sealed_with, 513, 9, HEADER, sealed, tag), "elsewhere in the segment");
        assert!(!opens(sealed_with, 512, 8, HEADER, sealed, tag), "as another record");
        assert!(!opens(sealed_with, 512, 9, b"headex", sealed, tag), "as a record of another kind");
        assert!(!opens(key(1, 3, 3), 512, 9, HEADER, sealed, tag), "in another segment");
        assert!(!opens(key(1, 2, 4), 512, 9, HEADER, sealed, tag), "in a later segment of the same number");
        assert!(!opens(key(2, 2, 3), 512, 9, HEADER, sealed, tag), "with another key");
        let mut flipped = sealed;
        flipped[3] ^= 1;
        assert!(!opens(sealed_with, 512, 9, HEADER, flipped, tag));
        assert!(!opens(sealed_with, 512, 9, HEADER, sealed, [0; TAG_BYTES]));
    }

    #[test]
    fn a_ring_finds_the_key_that_a_header_was_made_with() {
        let master = |byte| MasterKey::from_bytes([byte; KEY_BYTES]);
        let ring = Keyring::new(Some(master(1)), vec![master(2)], || [0; 32]);
        let find =
            |byte| ring.find(7, &[5; 32], HEADER, key(byte, 7, 5).check(HEADER)).map(|(_, protection)| protection);
        assert_eq!(find(1), Some(Protection::Current));
        assert_eq!(find(2), Some(Protection::Old));
        assert_eq!(find(3), None);
        assert_eq!(ring.find(8, &[5; 32], HEADER, key(1, 7, 5).check(HEADER)), None, "a header of another segment");
        assert_eq!(ring.find(7, &[5; 32], b"headex", key(1, 7, 5).check(HEADER)), None, "a header that was changed");
    }

    #[test]
    fn no_key_is_ever_printed() {
        let master = MasterKey::from_bytes([0xab; KEY_BYTES]);
        let ring = Keyring::new(Some(master.clone()), vec![master.clone()], || [0; 32]);
        let printed = format!("{master:?} {:?} {ring:?}", master.segment_key(1, &[0; 32])).to_lowercase();
        assert!(!printed.contains("ab,") && !printed.contains("abab") && !printed.contains("171"), "{printed}");
    }
}
