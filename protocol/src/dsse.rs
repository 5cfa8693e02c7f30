//! Signed envelopes: DSSE v1 (github.com/secure-systems-lab/dsse) over exact bytes, with Ed25519.
//!
//! What is signed is the payload's bytes together with its type, never a re-serialised structure, so
//! there is no canonical form to get wrong and one kind of object cannot pass for another.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::ids::KeyId;

/// An Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Wraps the key's 32 bytes; a key that is not a point on the curve verifies nothing.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key's name in envelopes.
    pub fn id(&self) -> KeyId {
        KeyId::of(&self.0)
    }

    /// Whether `signature` over `message` is this key's.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(&text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("a public key is 32 bytes in base64"))
    }
}

/// A key that can sign. The seed never leaves it.
#[derive(Debug)]
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// A private key that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 private key in PKCS#8 form")]
pub struct KeyRejected;

impl SigningKey {
    /// Reads a key in PKCS#8 (RFC 8410), version 1 or 2.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyRejected> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map(Self::from_pair).map_err(|_| KeyRejected)
    }

    /// Makes a key of a 32-byte seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::from_pair(Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed"))
    }

    fn from_pair(pair: Ed25519KeyPair) -> Self {
        let bytes = pair.public_key().as_ref().try_into().expect("an Ed25519 public key has 32 bytes");
        Self { pair, public: PublicKey(bytes) }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs raw bytes; for envelopes use [`Envelope::sign`].
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair.sign(message).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Which key: a hint, never trusted.
    pub keyid: KeyId,
    /// Base64 of the signature.
    pub sig: String,
}

/// A payload with its type and signatures; its JSON form is DSSE's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// Names the kind of object and its version.
    pub payload_type: String,
    /// Base64 of the exact bytes that were signed.
    pub payload: String,
    /// At least one.
    pub signatures: Vec<Signature>,
}

/// Why an envelope is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Over the bound for its kind.
    #[error("signed envelope has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// Not a DSSE envelope.
    #[error("not a DSSE envelope: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// Another kind of object.
    #[error("envelope holds {found:?} where {expected:?} is needed")]
    Type {
        /// The type found.
        found: String,
        /// The type needed.
        expected: String,
    },
    /// Not enough valid signatures of allowed keys.
    #[error("{valid} of the needed {threshold} signatures are valid and of an allowed key")]
    Signatures {
        /// Distinct allowed keys that signed.
        valid: usize,
        /// How many were needed.
        threshold: usize,
    },
}

impl Envelope {
    /// Signs `payload` with every key.
    pub fn sign(payload_type: &str, payload: &[u8], keys: &[&SigningKey]) -> Self {
        let message = pre_authentication_encoding(payload_type, payload);
        let signatures = keys
            .iter()
            .map(|key| Signature { keyid: key.public.id(), sig: BASE64.encode(key.sign(&message)) })
            .collect();
        Self { payload_type: payload_type.to_owned(), payload: BASE64.encode(payload), signatures }
    }

    /// Reads an envelope of at most `bytes_max`; it is not verified yet.
    pub fn parse(bytes: &[u8], bytes_max: usize) -> Result<Self, EnvelopeError> {
        if bytes.len() > bytes_max {
            return Err(EnvelopeError::TooLarge { bytes: bytes.len(), bytes_max });
        }
        serde_json::from_slice(bytes).map_err(|error| EnvelopeError::Malformed { reason: error.to_string() })
    }

    /// The envelope's JSON.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an envelope is strings only")
    }

    /// The payload, once `threshold` distinct keys of `allowed` are seen to have signed it as `payload_type`.
    pub fn verify(
        &self,
        payload_type: &str,
        allowed: &[PublicKey],
        threshold: usize,
    ) -> Result<Vec<u8>, EnvelopeError> {
        if self.payload_type != payload_type {
            return Err(EnvelopeError::Type { found: self.payload_type.clone(), expected: payload_type.to_owned() });
        }
        let malformed = |reason: &str| EnvelopeError::Malformed { reason: reason.to_owned() };
        let payload = BASE64.decode(&self.payload).map_err(|_| malformed("the payload is not base64"))?;
        let message = pre_authentication_encoding(payload_type, &payload);
        let mut signers: BTreeSet<&PublicKey> = BTreeSet::new();
        for signature in &self.signatures {
            let Ok(bytes) = BASE64.decode(&signature.sig) else { continue };
            signers.extend(allowed.iter().filter(|key| key.id() == signature.keyid && key.verifies(&message, &bytes)));
        }
        // A threshold of zero would trust anyone.
        let threshold = threshold.max(1);
        if signers.len() < threshold {
            return Err(EnvelopeError::Signatures { valid: signers.len(), threshold });
        }
        Ok(payload)
    }
}

/// DSSE's PAE: lengths before contents, so that no two pairs of type and payload give the same bytes.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "application/vnd.zunft.test.v1+json";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    #[test]
    fn pae_is_the_specification_s_example() {
        let message = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(message, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn a_signed_payload_verifies_and_nothing_else_does() {
        let (one, two, stranger) = (key(1), key(2), key(3));
        let envelope = Envelope::sign(TYPE, b"{}", &[&one]);
        let allowed = [one.public(), two.public()];
        assert_eq!(envelope.verify(TYPE, &allowed, 1).unwrap(), b"{}");
        assert!(envelope.verify("other", &allowed, 1).is_err());
        assert!(envelope.verify(TYPE, &[stranger.public()], 1).is_err());
        let mut altered = envelope.clone();
        altered.payload = BASE64.encode(b"{ }");
        assert!(altered.verify(TYPE, &allowed, 1).is_err());
        let mut mistyped = envelope;
        mistyped.payload_type = "other".into();
        assert!(mistyped.verify("other", &allowed, 1).is_err());
    }

    #[test]
    fn one_key_signing_twice_is_one_signature() {
        let (one, two) = (key(1), key(2));
        let allowed = [one.public(), two.public(), one.public()];
        let doubled = Envelope::sign(TYPE, b"x", &[&one, &one]);
        assert_eq!(doubled.verify(TYPE, &allowed, 2), Err(EnvelopeError::Signatures { valid: 1, threshold: 2 }));
        let both = Envelope::sign(TYPE, b"x", &[&one, &two]);
        assert_eq!(both.verify(TYPE, &allowed, 2).unwrap(), b"x");
    }

    #[test]
    fn nobody_s_signature_is_never_enough() {
        let unsigned = Envelope::sign(TYPE, b"x", &[]);
        assert!(unsigned.verify(TYPE, &[], 0).is_err());
    }

    #[test]
    fn envelopes_survive_json_and_are_bounded() {
        let envelope = Envelope::sign(TYPE, b"payload", &[&key(1)]);
        let json = envelope.to_json();
        assert_eq!(Envelope::parse(&json, json.len()).unwrap(), envelope);
        assert!(matches!(Envelope::parse(&json, json.len() - 1), Err(EnvelopeError::TooLarge { .. })));
        assert!(matches!(Envelope::parse(b"[]", 100), Err(EnvelopeError::Malformed { .. })));
    }
}
