//! A chunk: consecutive steps of one stream, column by column, in one compressed block.
//!
//! Chunks of a camera's stream hold encoded images: see [`samples`].
//!
//! ```text
//! 0   magic      "ZNC1"
//! 4   codec      u8: 0 as is, 1 zstd; 2 and 3 are those of [`samples`]
//! 5   flags      u8: bit 0 as [`samples`] has it, the others zero
//! 6   reserved   2 bytes, zero
//! 8   steps      u32 little-endian
//! 12  raw_bytes  u32 little-endian: size of the payload once decompressed
//! 16  payload    for each column of the stream's schema: the values of all steps, little-endian
//! ```

use serde::{Deserialize, Serialize};

use crate::embodiment::{Dtype, Embodiment, Encoding, Feature};
use crate::limits::{CHUNK_BYTES_MAX, CHUNK_RAW_BYTES_MAX, FEATURE_VALUES_MAX, FEATURES_MAX};

pub mod samples;

pub use samples::{Sample, SampleChunk, SampleChunkBuilder};

/// Column with the robot's monotonic time of each step, in nanoseconds.
pub const MONOTONIC_NS: &str = "monotonic_ns";

/// Column with the reward that followed each step's action (LeRobot's name).
pub const REWARD: &str = "next.reward";

const MAGIC: [u8; 4] = *b"ZNC1";
const HEADER_BYTES: usize = 16;

/// Fast, and on joint angles within a few percent of the slow levels.
const ZSTD_LEVEL: i32 = 1;

/// One column: the same quantity at every step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Name of the feature, or [`MONOTONIC_NS`] or [`REWARD`].
    pub name: String,
    /// Type of each value.
    pub dtype: Dtype,
    /// Values a step.
    pub values: u32,
}

impl Column {
    fn time() -> Self {
        Self { name: MONOTONIC_NS.to_owned(), dtype: Dtype::I64, values: 1 }
    }

    fn of(feature: &Feature) -> Self {
        Self { name: feature.name.clone(), dtype: feature.dtype, values: feature.values() as u32 }
    }

    /// Bytes of one step.
    pub fn step_bytes(&self) -> usize {
        self.values as usize * self.dtype.bytes()
    }
}

/// What one step of a stream holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// In the order in which chunks hold them.
    pub columns: Vec<Column>,
    /// For a camera: how the images are encoded that each step holds beside its time. See [`samples`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

/// Why a schema is impossible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    /// None or too many.
    #[error("{count} columns; between 1 and {} are needed", FEATURES_MAX + 2)]
    Count {
        /// How many.
        count: usize,
    },
    /// A column without values or with too many.
    #[error("column {name:?} has {values} values a step; between 1 and {FEATURE_VALUES_MAX} are needed")]
    Values {
        /// The column.
        name: String,
        /// Its values.
        values: u32,
    },
    /// Two of one name.
    #[error("column {name:?} appears twice")]
    Duplicate {
        /// The column.
        name: String,
    },
    /// Encoded images with columns beside their time.
    #[error("encoded images have one column beside them, {MONOTONIC_NS:?} of one i64; found others")]
    Encoded,
}

impl Schema {
    /// The schema of the `steps` stream of a robot with this body: time, every feature of a step, reward.
    pub fn steps(embodiment: &Embodiment) -> Self {
        let mut columns = vec![Column::time()];
        columns.extend(embodiment.step_features().map(Column::of));
        columns.push(Column { name: REWARD.to_owned(), dtype: Dtype::F32, values: 1 });
        Self { columns, encoding: None }
    }

    /// The schema of a feature that is a stream of its own: time, and its values or encoded images.
    pub fn stream(feature: &Feature) -> Self {
        match feature.encoding {
            Some(encoding) => Self { columns: vec![Column::time()], encoding: Some(encoding) },
            None => Self { columns: vec![Column::time(), Column::of(feature)], encoding: None },
        }
    }

    /// Bytes of one step over all columns; encoded images come on top.
    pub fn step_bytes(&self) -> usize {
        self.columns.iter().map(Column::step_bytes).sum()
    }

    /// Checks what decoding relies on.
    pub fn check(&self) -> Result<(), ColumnError> {
        if self.columns.is_empty() || self.columns.len() > FEATURES_MAX + 2 {
            return Err(ColumnError::Count { count: self.columns.len() });
        }
        for (i, column) in self.columns.iter().enumerate() {
            if column.values == 0 || column.values as usize > FEATURE_VALUES_MAX {
                return Err(ColumnError::Values { name: column.name.clone(), values: column.values });
            }
            if self.columns[..i].iter().any(|other| other.name == column.name) {
                return Err(ColumnError::Duplicate { name: column.name.clone() });
            }
        }
        if self.encoding.is_some() && self.columns != [Column::time()] {
            return Err(ColumnError::Encoded);
        }
        Ok(())
    }
}

/// Why bytes are not a chunk of the expected schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Over the bound.
    #[error("chunk has {bytes} bytes; at most {CHUNK_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not a chunk, or of an unknown version.
    #[error("these bytes do not begin like a chunk (\"ZNC1\")")]
    Header,
    /// A compression that this program does not know, or that another kind of stream has.
    #[error(
        "chunk uses codec {codec}; here this program knows 0 (as is) and 1 (zstd), and for images 2 (JPEG) and 3 (H.264)"
    )]
    Codec {
        /// The codec found.
        codec: u8,
    },
    /// The sizes in the header contradict the schema.
    #[error(
        "chunk claims {steps} steps in {raw_bytes} bytes; its schema needs {expected} bytes, and at most {CHUNK_RAW_BYTES_MAX}"
    )]
    Size {
        /// Steps claimed.
        steps: u32,
        /// Bytes claimed.
        raw_bytes: u32,
        /// Bytes that so many steps need.
        expected: usize,
    },
    /// The stream holds encoded images, the chunk was to be read as numbers.
    #[error("the stream holds encoded images; read its chunks as samples")]
    Encoded,
    /// The table of samples contradicts itself.
    #[error("chunk of {samples} images is damaged: its lengths, key frames or flags contradict each other")]
    Samples {
        /// How many images it claims.
        samples: u32,
    },
    /// The payload does not decompress to what the header says.
    #[error("chunk payload is damaged or truncated")]
    Payload,
}

/// Collects steps, row by row, until they make a chunk.
#[derive(Debug)]
pub struct ChunkBuilder {
    schema: Schema,
    columns: Vec<Vec<u8>>,
    steps: u32,
}

impl ChunkBuilder {
    /// An empty chunk of `schema`.
    pub fn new(schema: Schema) -> Self {
        let columns = schema.columns.iter().map(|_| Vec::new()).collect();
        Self { schema, columns, steps: 0 }
    }

    /// Adds one step: its columns one after the other, little-endian, [`Schema::step_bytes`] in all.
    ///
    /// # Panics
    /// When `row` has another size.
    pub fn push(&mut self, row: &[u8]) {
        assert_eq!(row.len(), self.schema.step_bytes(), "a step has the size of its schema");
        let mut rest = row;
        for (column, bytes) in self.schema.columns.iter().zip(&mut self.columns) {
            let (value, tail) = rest.split_at(column.step_bytes());
            bytes.extend_from_slice(value);
            rest = tail;
        }
        self.steps += 1;
    }

    /// Steps so far.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        self.columns.iter().map(Vec::capacity).sum()
    }

    /// Size before compression.
    pub fn raw_bytes(&self) -> usize {
        self.steps as usize * self.schema.step_bytes()
    }

    /// The chunk's stored bytes and number of steps; the builder is empty again. `None` without steps.
    pub fn finish(&mut self) -> Option<(Vec<u8>, u32)> {
        if self.steps == 0 {
            return None;
        }
        let steps = std::mem::take(&mut self.steps);
        let mut raw = Vec::with_capacity(steps as usize * self.schema.step_bytes());
        for column in &mut self.columns {
            raw.append(column);
        }
        Some((encode(&raw, steps), steps))
    }
}

/// The fields of a chunk's header.
struct Header {
    codec: u8,
    flags: u8,
    steps: u32,
    raw_bytes: u32,
}

impl Header {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[self.codec, self.flags, 0, 0]);
        out.extend_from_slice(&self.steps.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
    }
}

/// The header and the payload of a chunk of any kind.
fn split(stored: &[u8]) -> Result<(Header, &[u8]), ChunkError> {
    if stored.len() > CHUNK_BYTES_MAX {
        return Err(ChunkError::TooLarge { bytes: stored.len() });
    }
    let (header, payload) = stored.split_at_checked(HEADER_BYTES).ok_or(ChunkError::Header)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..4] != MAGIC || header[6..8] != [0, 0] {
        return Err(ChunkError::Header);
    }
    Ok((Header { codec: header[4], flags: header[5], steps: word(8), raw_bytes: word(12) }, payload))
}

fn encode(raw: &[u8], steps: u32) -> Vec<u8> {
    let compressed = zstd::bulk::compress(raw, ZSTD_LEVEL).ok().filter(|compressed| compressed.len() < raw.len());
    let (codec, payload) = match &compressed {
        Some(compressed) => (1, compressed.as_slice()),
        None => (0, raw),
    };
    let mut stored = Vec::with_capacity(HEADER_BYTES + payload.len());
    Header { codec, flags: 0, steps, raw_bytes: raw.len() as u32 }.write(&mut stored);
    stored.extend_from_slice(payload);
    stored
}

/// A decoded chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    schema: Schema,
    steps: u32,
    raw: Vec<u8>,
}

impl Chunk {
    /// Reads stored bytes as steps of `schema`, which must have passed [`Schema::check`].
    pub fn decode(stored: &[u8], schema: &Schema) -> Result<Self, ChunkError> {
        if schema.encoding.is_some() {
            return Err(ChunkError::Encoded);
        }
        let (header, payload) = split(stored)?;
        if header.flags != 0 {
            return Err(ChunkError::Header);
        }
        let Header { codec, steps, raw_bytes, .. } = header;
        let expected = (steps as usize).saturating_mul(schema.step_bytes());
        if steps == 0 || expected != raw_bytes as usize || expected > CHUNK_RAW_BYTES_MAX {
            return Err(ChunkError::Size { steps, raw_bytes, expected });
        }
        let raw = match codec {
            0 => payload.to_vec(),
            1 => zstd::bulk::decompress(payload, expected).map_err(|_| ChunkError::Payload)?,
            codec => return Err(ChunkError::Codec { codec }),
        };
        if raw.len() != expected {
            return Err(ChunkError::Payload);
        }
        Ok(Self { schema: schema.clone(), steps, raw })
    }

    /// Steps inside.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Little-endian bytes of the named column: all steps, one after the other.
    pub fn column(&self, name: &str) -> Option<&[u8]> {
        let mut begin = 0;
        for column in &self.schema.columns {
            let end = begin + column.step_bytes() * self.steps as usize;
            if column.name == name {
                return Some(&self.raw[begin..end]);
            }
            begin = end;
        }
        None
    }

    /// The named column as f32 values, where it is one.
    pub fn column_f32(&self, name: &str) -> Option<Vec<f32>> {
        let column = self.schema.columns.iter().find(|column| column.name == name)?;
        if column.dtype != Dtype::F32 {
            return None;
        }
        let bytes = self.column(name)?;
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embodiment::{ACTION, Feature, OBSERVATION_STATE};

    fn schema() -> Schema {
        Schema::steps(&Embodiment {
            name: "arm".into(),
            rate_hz: 50.0,
            features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
        })
    }

    fn row(time: i64, state: [f32; 2], action: f32, reward: f32) -> Vec<u8> {
        let mut row = time.to_le_bytes().to_vec();
        for value in [state[0], state[1], action, reward] {
            row.extend_from_slice(&value.to_le_bytes());
        }
        row
    }

    #[test]
    fn columns_come_back_whole() {
        let mut builder = ChunkBuilder::new(schema());
        for step in 0..1000_u16 {
            builder.push(&row(i64::from(step), [f32::from(step), 0.5], 2.0, -1.0));
        }
        let (stored, steps) = builder.finish().unwrap();
        assert_eq!(steps, 1000);
        assert!(stored.len() < 24_000 / 2, "numbers compress");
        let chunk = Chunk::decode(&stored, &schema()).unwrap();
        let state = chunk.column_f32(OBSERVATION_STATE).unwrap();
        assert_eq!((state[0], state[1998], state[1999]), (0.0, 999.0, 0.5));
        assert_eq!(chunk.column_f32(REWARD).unwrap(), vec![-1.0; 1000]);
        assert_eq!(chunk.column(MONOTONIC_NS).unwrap().len(), 8000);
        assert!(builder.finish().is_none(), "the builder is empty again");
    }

    #[test]
    fn incompressible_steps_are_stored_as_they_are_and_the_bytes_are_frozen() {
        let mut builder = ChunkBuilder::new(schema());
        builder.push(&row(1, [1.0, 2.0], 3.0, 4.0));
        let (stored, _) = builder.finish().unwrap();
        let mut expected = Vec::new();
        expected.extend_from_slice(b"ZNC1");
        expected.extend_from_slice(&[0, 0, 0, 0]); // codec, reserved
        expected.extend_from_slice(&[1, 0, 0, 0]); // steps
        expected.extend_from_slice(&[24, 0, 0, 0]); // raw_bytes
        expected.extend_from_slice(&1_i64.to_le_bytes());
        for value in [1.0_f32, 2.0, 3.0, 4.0] {
            expected.extend_from_slice(&value.to_le_bytes());
        }
        assert_eq!(stored, expected);
    }

    #[test]
    fn contradictory_chunks_are_refused() {
        let mut builder = ChunkBuilder::new(schema());
        builder.push(&row(1, [1.0, 2.0], 3.0, 4.0));
        let (stored, _) = builder.finish().unwrap();
        let refused = |change: fn(&mut Vec<u8>), expected: ChunkError| {
            let mut changed = stored.clone();
            change(&mut changed);
            assert_eq!(Chunk::decode(&changed, &schema()), Err(expected));
        };
        refused(|b| b.truncate(15), ChunkError::Header);
        refused(|b| b[0] = b'X', ChunkError::Header);
        refused(|b| b[4] = 9, ChunkError::Codec { codec: 9 });
        refused(|b| b[4] = 1, ChunkError::Payload);
        refused(|b| b.truncate(20), ChunkError::Payload);
        refused(|b| b.push(0), ChunkError::Payload);
        refused(|b| b[8] = 2, ChunkError::Size { steps: 2, raw_bytes: 24, expected: 48 });
        refused(|b| b.resize(CHUNK_BYTES_MAX + 1, 0), ChunkError::TooLarge { bytes: CHUNK_BYTES_MAX + 1 });
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), dressed: bool) {
            if dressed && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] %= 2;
                bytes[5..8].fill(0);
            }
            let _chunk = Chunk::decode(&bytes, &schema());
        }

        #[test]
        fn every_step_comes_back(values in proptest::collection::vec(any::<f32>(), 1..300)) {
            let mut builder = ChunkBuilder::new(schema());
            for (i, &value) in values.iter().enumerate() {
                builder.push(&row(i as i64, [value, -value], value, 0.0));
            }
            let (stored, _) = builder.finish().unwrap();
            let chunk = Chunk::decode(&stored, &schema()).unwrap();
            let actions = chunk.column_f32(ACTION).unwrap();
            prop_assert!(actions.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
