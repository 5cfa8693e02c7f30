//! The first eight bytes in either direction of the control stream: frozen, they fix the version.

/// The version of the wire protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// The ALPN token of the protocol's major version.
pub const ALPN: &[u8] = b"zunft/1";

/// Size of a hello.
pub const HELLO_BYTES: usize = 8;

const MAGIC: [u8; 4] = *b"ZNFT";

/// The robot's first words: the versions it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Lowest.
    pub version_min: u16,
    /// Highest.
    pub version_max: u16,
}

/// Why a hello cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not our protocol.
    #[error("the peer does not begin with \"ZNFT\"; is this the hub's QUIC port?")]
    Magic,
    /// No version in common.
    #[error(
        "the peer speaks versions {version_min} to {version_max}; this program speaks {PROTOCOL_VERSION}: upgrade the older one"
    )]
    Version {
        /// Its lowest.
        version_min: u16,
        /// Its highest.
        version_max: u16,
    },
}

impl Hello {
    /// What this program says.
    pub const fn ours() -> Self {
        Self { version_min: PROTOCOL_VERSION, version_max: PROTOCOL_VERSION }
    }

    /// The hello's bytes.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let [a, b, c, d] = MAGIC;
        let [e, f] = self.version_min.to_le_bytes();
        let [g, h] = self.version_max.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }

    /// Reads a robot's hello.
    pub fn decode(bytes: [u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        if bytes[..4] != MAGIC {
            return Err(HelloError::Magic);
        }
        Ok(Self {
            version_min: u16::from_le_bytes([bytes[4], bytes[5]]),
            version_max: u16::from_le_bytes([bytes[6], bytes[7]]),
        })
    }

    /// The version that the hub chooses: the highest in common.
    pub fn choose(&self) -> Result<HelloAnswer, HelloError> {
        if (self.version_min..=self.version_max).contains(&PROTOCOL_VERSION) {
            return Ok(HelloAnswer { version: PROTOCOL_VERSION });
        }
        Err(HelloError::Version { version_min: self.version_min, version_max: self.version_max })
    }
}

/// The hub's answer: the version that both will speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HelloAnswer {
    /// The version.
    pub version: u16,
}

impl HelloAnswer {
    /// The answer's bytes; the last two are reserved.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let [a, b, c, d] = MAGIC;
        let [e, f] = self.version.to_le_bytes();
        [a, b, c, d, e, f, 0, 0]
    }

    /// Reads a hub's answer.
    pub fn decode(bytes: [u8; HELLO_BYTES]) -> Result<Self, HelloError> {
        if bytes[..4] != MAGIC {
            return Err(HelloError::Magic);
        }
        let version = u16::from_le_bytes([bytes[4], bytes[5]]);
        if version != PROTOCOL_VERSION {
            return Err(HelloError::Version { version_min: version, version_max: version });
        }
        Ok(Self { version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_is_frozen() {
        let hello = Hello { version_min: 1, version_max: 3 };
        assert_eq!(
            hello.encode(),
            [
                b'Z', b'N', b'F', b'T', // magic
                1, 0, // version_min, little-endian
                3, 0, // version_max
            ]
        );
        assert_eq!(HelloAnswer { version: 1 }.encode(), *b"ZNFT\x01\0\0\0");
    }

    #[test]
    fn versions_meet_or_are_refused() {
        assert_eq!(Hello::decode(*b"ZNFT\x01\0\x03\0").unwrap().choose(), Ok(HelloAnswer { version: 1 }));
        assert!(Hello::decode(*b"ZNFT\x02\0\x03\0").unwrap().choose().is_err());
        assert_eq!(Hello::decode(*b"HTTP\x01\0\x03\0"), Err(HelloError::Magic));
        assert!(HelloAnswer::decode(*b"ZNFT\x02\0\0\0").is_err());
    }
}
