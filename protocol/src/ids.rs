//! Names, digests and minted ids: parsed at the edge, trusted afterwards.
//!
//! A digest is BLAKE3-256 and prints as 64 hexadecimal digits; binary formats hold its 32 bytes.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::NAME_BYTES_MAX;

/// Why a text is not the id it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A name with no characters.
    #[error("{kind} is empty; give it 1 to {NAME_BYTES_MAX} characters")]
    Empty {
        /// What was being named.
        kind: &'static str,
    },
    /// A name over the bound.
    #[error("{kind} has {bytes} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong {
        /// What was being named.
        kind: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A name with a character outside the allowed set.
    #[error("{kind} {name:?} contains {character:?}; use a-z, 0-9, '-', '_' and '.', and begin with a letter or digit")]
    Character {
        /// What was being named.
        kind: &'static str,
        /// The offending name.
        name: String,
        /// The first offending character.
        character: char,
    },
    /// Hexadecimal digits that are not of the right number or not hexadecimal.
    #[error("{kind} must be {digits} hexadecimal digits")]
    Hex {
        /// What was being read.
        kind: &'static str,
        /// The number expected.
        digits: usize,
    },
    /// `skill@version` expected.
    #[error("{text:?} is not a release; write it as skill@version, for example pick-place@7")]
    Release {
        /// The offending text.
        text: String,
    },
}

fn check_name(kind: &'static str, name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(IdError::TooLong { kind, bytes: name.len() });
    }
    for (i, character) in name.chars().enumerate() {
        let plain = character.is_ascii_lowercase() || character.is_ascii_digit();
        // A leading dot or dash would be a hidden file or a command-line flag somewhere.
        if !(plain || (i > 0 && matches!(character, '-' | '_' | '.'))) {
            return Err(IdError::Character { kind, name: name.to_owned(), character });
        }
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                check_name($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

names! {
    /// Who owns a fleet. Comes from the certificate or token, never from a message.
    TenantId, "tenant";
    /// A place with robots.
    SiteId, "site";
    /// One robot, unique inside its tenant.
    RobotId, "robot";
    /// What an episode is about, for example `pick-place` or `reach-v3`.
    TaskName, "task";
    /// A named ability that releases are versions of.
    SkillName, "skill";
}

macro_rules! bytes_ids {
    ($($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps bytes that are known to be such an id.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $len];
                if !hex_decode(text, &mut bytes) {
                    return Err(IdError::Hex { kind: $kind, digits: 2 * $len });
                }
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serde_bytes::Bytes::new(&self.0).serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    return String::deserialize(deserializer)?.parse().map_err(D::Error::custom);
                }
                let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
                let bytes = bytes.as_slice().try_into().map_err(|_| {
                    D::Error::invalid_length(bytes.len(), &stringify!($len))
                })?;
                Ok(Self(bytes))
            }
        }
    )*};
}

bytes_ids! {
    /// BLAKE3-256 of some bytes.
    Digest, 32, "digest";
    /// BLAKE3 of a chunk's stored bytes: the unit of resume and, inside one tenant, of dedupe.
    ChunkId, 32, "chunk id";
    /// BLAKE3 of an episode's encoded manifest.
    EpisodeId, 32, "episode id";
    /// BLAKE3 of an embodiment's deterministic encoding.
    EmbodimentId, 32, "embodiment id";
    /// BLAKE3 of a snapshot's deterministic encoding.
    SnapshotId, 32, "snapshot id";
    /// Minted by the agent when a recording begins; there is never more than one episode for it.
    RecordingId, 16, "recording id";
    /// One power-up of a robot: monotonic time means nothing across two of them.
    BootId, 16, "boot id";
    /// First 16 bytes of BLAKE3 over an Ed25519 public key.
    KeyId, 16, "key id";
}

impl Digest {
    /// Digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl ChunkId {
    /// Id of a chunk with these stored bytes.
    pub fn of(stored: &[u8]) -> Self {
        Self(*blake3::hash(stored).as_bytes())
    }
}

impl EpisodeId {
    /// Id of the episode with this encoded manifest.
    pub fn of(manifest: &[u8]) -> Self {
        Self(*blake3::hash(manifest).as_bytes())
    }
}

impl KeyId {
    /// Id of an Ed25519 public key.
    pub fn of(public_key: &[u8; 32]) -> Self {
        let hash = blake3::hash(public_key);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        Self(id)
    }
}

fn hex_decode(text: &str, out: &mut [u8]) -> bool {
    let digits = text.as_bytes();
    if digits.len() != out.len() * 2 {
        return false;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let (Some(high), Some(low)) = (hex_digit(pair[0]), hex_digit(pair[1])) else {
            return false;
        };
        *byte = high << 4 | low;
    }
    true
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Version of a skill: 1, 2, 3, … in the order of publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SkillVersion(pub u32);

impl fmt::Display for SkillVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One release by name: `pick-place@7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReleaseId {
    /// The skill.
    pub skill: SkillName,
    /// Its version.
    pub version: SkillVersion,
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.skill, self.version)
    }
}

impl FromStr for ReleaseId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let malformed = || IdError::Release { text: text.to_owned() };
        let (skill, version) = text.split_once('@').ok_or_else(malformed)?;
        let version = version.parse().map_err(|_| malformed())?;
        Ok(Self { skill: skill.parse()?, version: SkillVersion(version) })
    }
}

impl Serialize for ReleaseId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ReleaseId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_paths_or_flags_are_refused() {
        for bad in ["", "-rf", ".hidden", "a/b", "A", "ü", "a b", &"a".repeat(64)] {
            assert!(bad.parse::<TaskName>().is_err(), "{bad:?}");
        }
        for good in ["reach-v3", "0", "weld_seam.2", &"a".repeat(63)] {
            assert_eq!(good.parse::<TaskName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn digests_print_and_parse_as_hexadecimal() {
        let id = ChunkId::of(b"zunft");
        assert_eq!(id.to_string().len(), 64);
        assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        assert!("00".parse::<ChunkId>().is_err());
        assert!("zz".repeat(32).parse::<ChunkId>().is_err());
    }

    #[test]
    fn release_reads_as_skill_at_version() {
        let release: ReleaseId = "pick-place@7".parse().unwrap();
        assert_eq!((release.skill.as_str(), release.version), ("pick-place", SkillVersion(7)));
        assert_eq!(release.to_string(), "pick-place@7");
        for bad in ["pick-place", "pick-place@", "pick-place@x", "@1", "a@-1"] {
            assert!(bad.parse::<ReleaseId>().is_err(), "{bad:?}");
        }
    }
}
