//! A pack: manifests and chunks that were committed together, in one immutable object that describes itself.
//!
//! ```text
//! 0    magic       "ZNPK"
//! 4    version     u16 little-endian, 1
//! 6    reserved    u16, 0
//! 8    entries     stored bytes of chunks and manifests, back to back
//! ..   directory   deterministic CBOR: the tenant, and kind, id, position, bytes and key of every entry
//! ..   trailer     directory's bytes u64 | BLAKE3 of the directory [32] | "ZNPKEND1"
//! ```
//! An entry's id is the BLAKE3 of its bytes, and the pack's name that of its directory: so the name stands for every
//! byte, and no byte is hashed twice. The directory is all that rebuilding the metadata needs.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zunft_protocol::cbor::{self, CborError};
use zunft_protocol::ids::{Digest, TenantId};

/// The pack format written by this version.
pub const PACK_VERSION: u16 = 1;

/// Bytes after the directory.
pub const TRAILER_BYTES: usize = 8 + 32 + 8;

/// Largest directory: about 600,000 entries, more than the largest pack has room for.
pub const DIRECTORY_BYTES_MAX: usize = 64 * 1024 * 1024;

const HEADER: [u8; 8] = [b'Z', b'N', b'P', b'K', 1, 0, 0, 0];
const END: [u8; 8] = *b"ZNPKEND1";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A chunk of some stream.
    Chunk,
    /// An episode's manifest.
    Manifest,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// BLAKE3 of its bytes.
    pub id: Digest,
    /// Where it begins in the pack.
    pub position: u64,
    /// Its size.
    pub bytes: u32,
    /// The key that it is encrypted with; 0 for none.
    pub key_id: u32,
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// [`PACK_VERSION`].
    pub version: u16,
    /// Whose: a pack never holds experience of two tenants.
    pub tenant: TenantId,
    /// In the order of their positions.
    pub entries: Vec<Entry>,
}

/// Why bytes are not a pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Cut off, or something else.
    #[error("these bytes do not begin and end like a pack")]
    Frame,
    /// Written by a newer hub.
    #[error("pack has version {found}; this hub reads up to {PACK_VERSION}: upgrade it")]
    Version {
        /// The version found.
        found: u16,
    },
    /// The directory is not what the trailer says.
    #[error("the pack's directory is damaged")]
    Directory,
    /// The directory cannot be read.
    #[error("the pack's directory cannot be read")]
    Encoding(#[from] CborError),
    /// An entry that does not begin where the one before it ends, or bytes that are no entry's.
    #[error("entry {index} of the pack is not where it should be")]
    Entry {
        /// Which.
        index: usize,
    },
}

/// A pack in the making.
#[derive(Debug)]
pub struct PackBuilder {
    directory: Directory,
    parts: Vec<Bytes>,
    position: u64,
}

/// A finished pack.
#[derive(Debug)]
pub struct Pack {
    /// BLAKE3 of its directory: its name.
    pub digest: Digest,
    /// Its bytes, one part after the other.
    pub parts: Vec<Bytes>,
    /// Its size.
    pub bytes: u64,
}

impl PackBuilder {
    /// An empty pack.
    pub fn new(tenant: TenantId) -> Self {
        let directory = Directory { version: PACK_VERSION, tenant, entries: Vec::new() };
        let mut builder = Self { directory, parts: Vec::new(), position: 0 };
        builder.append(Bytes::from_static(&HEADER));
        builder
    }

    /// Adds an entry whose bytes hash to `id`, and says where it lies.
    pub fn add(&mut self, kind: EntryKind, id: Digest, bytes: Bytes) -> u64 {
        let position = self.position;
        let size = u32::try_from(bytes.len()).expect("chunks and manifests are a few MiB at most");
        self.directory.entries.push(Entry { kind, id, position, bytes: size, key_id: 0 });
        self.append(bytes);
        position
    }

    /// Closes the pack.
    pub fn finish(mut self) -> Pack {
        let directory = cbor::encode(&self.directory);
        let digest = Digest::of(&directory);
        let mut trailer = Vec::with_capacity(TRAILER_BYTES);
        trailer.extend_from_slice(&(directory.len() as u64).to_le_bytes());
        trailer.extend_from_slice(digest.as_bytes());
        trailer.extend_from_slice(&END);
        self.append(directory.into());
        self.append(trailer.into());
        Pack { digest, parts: self.parts, bytes: self.position }
    }

    fn append(&mut self, bytes: Bytes) {
        self.position += bytes.len() as u64;
        self.parts.push(bytes);
    }
}

impl Directory {
    /// Reads the directory of a whole pack, and the name that the pack must have.
    ///
    /// Every byte is an entry's, the directory's or the frame's: where all entries hash to their ids, nothing is
    /// damaged.
    pub fn read(pack: &[u8]) -> Result<(Self, Digest), PackError> {
        let (body, trailer) = pack.split_last_chunk::<TRAILER_BYTES>().ok_or(PackError::Frame)?;
        if body.get(..4) != Some(&HEADER[..4]) || trailer[40..] != END {
            return Err(PackError::Frame);
        }
        if body.get(4..8) != Some(&HEADER[4..]) {
            return Err(PackError::Version { found: body.get(4).copied().map_or(0, u16::from) });
        }
        let size = trailer.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let size = usize::try_from(size).ok().filter(|&size| size <= body.len() - HEADER.len());
        let begin = body.len() - size.ok_or(PackError::Directory)?;
        let bytes = &body[begin..];
        if blake3::hash(bytes).as_bytes() != &trailer[8..40] {
            return Err(PackError::Directory);
        }
        let directory: Self = cbor::decode(bytes, DIRECTORY_BYTES_MAX)?;
        if directory.version != PACK_VERSION {
            return Err(PackError::Version { found: directory.version });
        }
        let mut position = HEADER.len() as u64;
        for (index, entry) in directory.entries.iter().enumerate() {
            if entry.position != position {
                return Err(PackError::Entry { index });
            }
            position += u64::from(entry.bytes);
        }
        if position != begin as u64 {
            return Err(PackError::Entry { index: directory.entries.len() });
        }
        Ok((directory, Digest::of(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> (Vec<u8>, Digest) {
        let mut builder = PackBuilder::new("acme".parse().unwrap());
        builder.add(EntryKind::Chunk, Digest::of(b"chunk"), Bytes::from_static(b"chunk"));
        builder.add(EntryKind::Manifest, Digest::of(b"manifest"), Bytes::from_static(b"manifest"));
        let pack = builder.finish();
        let bytes: Vec<u8> = pack.parts.concat();
        assert_eq!(bytes.len() as u64, pack.bytes);
        (bytes, pack.digest)
    }

    #[test]
    fn a_pack_says_what_it_holds_and_where() {
        let (bytes, digest) = built();
        let (directory, name) = Directory::read(&bytes).unwrap();
        assert_eq!(name, digest);
        assert_eq!(directory.tenant.as_str(), "acme");
        for entry in &directory.entries {
            let (begin, end) = (entry.position as usize, entry.position as usize + entry.bytes as usize);
            assert_eq!(Digest::of(&bytes[begin..end]), entry.id);
        }
        assert_eq!(directory.entries.len(), 2);
        assert_eq!(&bytes[..8], b"ZNPK\x01\0\0\0", "the beginning is frozen");
        assert_eq!(&bytes[bytes.len() - 8..], b"ZNPKEND1", "the end is frozen");
    }

    #[test]
    fn damaged_packs_are_refused() {
        let (bytes, _) = built();
        for cut in 0..bytes.len() {
            assert!(Directory::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in (0..8).chain(8 + 13..bytes.len()) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Directory::read(&flipped).is_err(), "flipped at {at}");
        }
    }
}
