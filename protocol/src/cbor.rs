//! Deterministic CBOR (DAG-CBOR): one value has one encoding, so that its hash can be its name.
//!
//! Field names are in the bytes, so that the format can be read without this program.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a value in its one encoding.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// Over the bound for this kind of object.
    #[error("{bytes} bytes of CBOR exceed the limit of {bytes_max}")]
    TooLarge {
        /// Size found.
        bytes: usize,
        /// Size allowed.
        bytes_max: usize,
    },
    /// Not CBOR, or not of the expected fields.
    #[error("malformed CBOR: {reason}")]
    Malformed {
        /// What the decoder found.
        reason: String,
    },
    /// Another encoding of the same value: its hash would name something else.
    #[error("CBOR is not in its deterministic form; encode with sorted keys, shortest lengths and 64-bit floats")]
    NotDeterministic,
}

/// Encodes `value` in its one form.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).expect("our types have string keys and no NaN, so DAG-CBOR can hold them")
}

/// Decodes bytes of at most `bytes_max`, refusing any that [`encode`] would not have written.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, CborError> {
    if bytes.len() > bytes_max {
        return Err(CborError::TooLarge { bytes: bytes.len(), bytes_max });
    }
    let value: T =
        serde_ipld_dagcbor::from_slice(bytes).map_err(|error| CborError::Malformed { reason: error.to_string() })?;
    match serde_ipld_dagcbor::to_vec(&value) {
        Ok(again) if again == bytes => Ok(value),
        _ => Err(CborError::NotDeterministic),
    }
}
