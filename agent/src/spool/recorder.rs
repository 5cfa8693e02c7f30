//! One open recording: steps and samples in, chunks and at the end a manifest out.
//!
//! Pure. The same code runs live and when the log is read back after a crash, so both make the same episode.
//!
//! What it holds in memory does not grow with the recording but for the references of its chunks: of each stream at
//! most one chunk that is being filled. [`Recorder::memory_bytes`] counts it.

use serde::{Deserialize, Serialize};
use zunft_protocol::cbor::{self, CborError};
use zunft_protocol::chunk::samples::SAMPLE_OVERHEAD_BYTES;
use zunft_protocol::chunk::{ChunkBuilder, Sample, SampleChunkBuilder, Schema};
use zunft_protocol::embodiment::Embodiment;
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, StepRange, Stream,
};
use zunft_protocol::ids::{ChunkId, RecordingId, TaskName};
use zunft_protocol::limits::{CHUNK_BYTES_MAX, EPISODE_CHUNKS_MAX, EPISODE_STEPS_MAX, INTERVENTIONS_MAX};

use super::record::{Ordinal, PAYLOAD_BYTES_MAX};
use crate::identity::Identity;

/// Which stream of a recording: 0 is `steps`, the others follow in the embodiment's order.
pub(crate) type StreamNumber = u16;

/// The steps.
pub(crate) const STEPS: StreamNumber = 0;

/// Size of a sample's time before its bytes, in the row that the log holds.
pub(crate) const TIME_BYTES: usize = 8;

/// What is known when a recording begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Opening {
    /// Minted at BEGIN.
    pub(crate) recording: RecordingId,
    /// What it is about.
    pub(crate) task: TaskName,
    /// With what body.
    pub(crate) embodiment: Embodiment,
    /// Who acts.
    pub(crate) actor: Actor,
    /// When the first step was taken.
    pub(crate) clock: Clock,
}

impl Opening {
    pub(crate) fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        cbor::decode(bytes, PAYLOAD_BYTES_MAX)
    }
}

/// A chunk as it goes into the log.
#[derive(Debug)]
pub(crate) struct CutChunk {
    /// Of which stream.
    pub(crate) stream: StreamNumber,
    /// Steps or samples inside.
    pub(crate) steps: u32,
    /// Its stored bytes.
    pub(crate) stored: Vec<u8>,
}

/// The chunk of a stream that is being filled.
#[derive(Debug)]
enum Filling {
    /// Rows of one size, little-endian numbers.
    Rows { builder: ChunkBuilder, row_bytes: usize },
    /// Encoded images.
    Images(SampleChunkBuilder),
}

#[derive(Debug)]
struct StreamRecorder {
    name: String,
    schema: Schema,
    filling: Filling,
    /// How large a chunk of rows, before compression, or of images may become.
    chunk_bytes_max: (usize, usize),
    chunks: Vec<ChunkRef>,
}

impl StreamRecorder {
    fn new(name: &str, schema: Schema, chunk_bytes_max: (usize, usize)) -> Self {
        let filling = Filling::of(&schema, chunk_bytes_max.1);
        Self { name: name.to_owned(), schema, filling, chunk_bytes_max, chunks: Vec::new() }
    }

    /// Whether a row is one of this stream.
    fn fits(&self, row: &[u8]) -> bool {
        match &self.filling {
            Filling::Rows { row_bytes, .. } => row.len() == *row_bytes,
            Filling::Images(_) => {
                let images = TIME_BYTES + 1..=self.chunk_bytes_max.1 - HEADER_AND_TIME_BYTES;
                images.contains(&row.len())
            }
        }
    }

    /// The stored bytes of a chunk, if the next row would take it over its size.
    fn cut_before(&mut self, row: &[u8], key_frame: bool) -> Option<(Vec<u8>, u32)> {
        match &mut self.filling {
            Filling::Rows { builder, row_bytes } if builder.raw_bytes() + *row_bytes <= self.chunk_bytes_max.0 => None,
            Filling::Rows { builder, .. } => builder.finish(),
            Filling::Images(builder) => builder.cut_before(key_frame, row.len() - TIME_BYTES),
        }
    }

    fn push(&mut self, row: &[u8], key_frame: bool) {
        match &mut self.filling {
            Filling::Rows { builder, .. } => builder.push(row),
            Filling::Images(builder) => {
                let (time, bytes) = row.split_first_chunk().expect("`fits` was asked");
                builder.push(&Sample { monotonic_ns: i64::from_le_bytes(*time), key_frame, bytes });
            }
        }
    }

    fn finish(&mut self) -> Option<(Vec<u8>, u32)> {
        match &mut self.filling {
            Filling::Rows { builder, .. } => builder.finish(),
            Filling::Images(builder) => builder.finish(),
        }
    }

    fn list(&mut self, stored: &[u8], steps: u32) {
        self.chunks.push(ChunkRef { id: ChunkId::of(stored), bytes: stored.len() as u32, steps });
    }

    /// Takes a chunk that the log holds already; `false` when it is not of the rows since the last one.
    fn replay(&mut self, steps: u32, stored: &[u8]) -> bool {
        let fits = match &mut self.filling {
            // Another version of zstd may compress in another way: the steps count, not the bytes.
            Filling::Rows { builder, .. } => {
                let fits = steps == builder.steps();
                self.filling = Filling::of(&self.schema, self.chunk_bytes_max.1);
                fits
            }
            Filling::Images(builder) => builder.take(steps).is_some_and(|(found, _)| found == stored),
        };
        if fits {
            self.list(stored, steps);
        }
        fits
    }

    fn memory_bytes(&self) -> usize {
        let filling = match &self.filling {
            Filling::Rows { builder, .. } => builder.memory_bytes(),
            Filling::Images(builder) => builder.memory_bytes(),
        };
        filling + self.chunks.capacity() * size_of::<ChunkRef>()
    }
}

/// What an image takes in a chunk of its own, beside its row.
const HEADER_AND_TIME_BYTES: usize = 16 + SAMPLE_OVERHEAD_BYTES - TIME_BYTES;

impl Filling {
    fn of(schema: &Schema, images_bytes_max: usize) -> Self {
        match schema.encoding {
            Some(encoding) => Self::Images(SampleChunkBuilder::with_bytes_max(encoding, images_bytes_max)),
            None => Self::Rows { builder: ChunkBuilder::new(schema.clone()), row_bytes: schema.step_bytes() },
        }
    }
}

/// A recording while it is open.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) ordinal: Ordinal,
    pub(crate) opening: Opening,
    /// By their numbers.
    streams: Vec<StreamRecorder>,
    interventions: Vec<StepRange>,
    steps: u64,
}

impl Recorder {
    /// `chunk_bytes` is the size at which a chunk of rows is cut, before compression.
    pub(crate) fn new(ordinal: Ordinal, opening: Opening, chunk_bytes: usize) -> Self {
        Self::with_chunk_bytes(ordinal, opening, chunk_bytes, CHUNK_BYTES_MAX)
    }

    /// With chunks of another size: of rows, before compression, and of images.
    pub(crate) fn with_chunk_bytes(ordinal: Ordinal, opening: Opening, rows: usize, images: usize) -> Self {
        let sizes = (rows, images);
        let steps = StreamRecorder::new(STEPS_STREAM, Schema::steps(&opening.embodiment), sizes);
        let features = opening.embodiment.streams();
        let own = features.map(|feature| StreamRecorder::new(&feature.name, Schema::stream(feature), sizes));
        let streams = std::iter::once(steps).chain(own).collect();
        Self { ordinal, opening, streams, interventions: Vec::new(), steps: 0 }
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether anything more would make the manifest too large. Sealing adds a chunk a stream at most.
    pub(crate) fn is_full(&self) -> bool {
        let chunks: usize = self.streams.iter().map(|stream| stream.chunks.len()).sum();
        chunks + self.streams.len() >= EPISODE_CHUNKS_MAX
            || self.interventions.len() >= INTERVENTIONS_MAX
            || self.steps >= EPISODE_STEPS_MAX
    }

    /// Cuts a chunk if the next row of a stream would take it over its size: call before every push, until `None`.
    pub(crate) fn cut_before(&mut self, number: StreamNumber, row: &[u8], key_frame: bool) -> Option<CutChunk> {
        let stream = self.streams.get_mut(usize::from(number)).filter(|stream| stream.fits(row))?;
        let (stored, steps) = stream.cut_before(row, key_frame)?;
        stream.list(&stored, steps);
        Some(CutChunk { stream: number, steps, stored })
    }

    /// Adds a step; `false` when the row has not the size that the embodiment needs.
    pub(crate) fn push(&mut self, row: &[u8], intervention: bool) -> bool {
        let steps = &mut self.streams[usize::from(STEPS)];
        if !steps.fits(row) {
            return false;
        }
        steps.push(row, true);
        if intervention {
            match self.interventions.last_mut().filter(|range| range.end == self.steps) {
                Some(range) => range.end += 1,
                None => self.interventions.push((self.steps..self.steps + 1).into()),
            }
        }
        self.steps += 1;
        true
    }

    /// Adds a sample of a stream of its own, its time before its bytes; `false` when there is no such stream, or the
    /// row is none of it.
    pub(crate) fn push_sample(&mut self, number: StreamNumber, row: &[u8], key_frame: bool) -> bool {
        let stream = self.streams.get_mut(usize::from(number)).filter(|stream| number != STEPS && stream.fits(row));
        stream.is_some_and(|stream| {
            stream.push(row, key_frame);
            true
        })
    }

    /// Takes a chunk that the log holds already; `false` when it is not of the rows since the last one.
    pub(crate) fn replay_chunk(&mut self, number: StreamNumber, steps: u32, stored: &[u8]) -> bool {
        self.streams.get_mut(usize::from(number)).is_some_and(|stream| stream.replay(steps, stored))
    }

    /// Bytes in its buffers and lists: what an open recording takes in memory, without the log's own.
    pub(crate) fn memory_bytes(&self) -> usize {
        let streams: usize = self.streams.iter().map(StreamRecorder::memory_bytes).sum();
        streams + self.interventions.capacity() * size_of::<StepRange>()
    }

    /// Ends the recording: the last chunk of each stream that has rows left, and its manifest.
    ///
    /// `None` without any step.
    pub(crate) fn seal(
        mut self,
        identity: &Identity,
        outcome: Outcome,
        end: EpisodeEnd,
    ) -> Option<(Vec<CutChunk>, Manifest)> {
        if self.steps == 0 {
            return None;
        }
        let mut last = Vec::new();
        for (number, stream) in (STEPS..).zip(&mut self.streams) {
            if let Some((stored, steps)) = stream.finish() {
                stream.list(&stored, steps);
                last.push(CutChunk { stream: number, steps, stored });
            }
        }
        let streams = self.streams.into_iter();
        let manifest = Manifest {
            version: MANIFEST_VERSION,
            tenant: identity.tenant.clone(),
            site: identity.site.clone(),
            robot: identity.robot.clone(),
            recording: self.opening.recording,
            ordinal: self.ordinal,
            task: self.opening.task,
            embodiment: self.opening.embodiment,
            actor: self.opening.actor,
            outcome,
            end,
            interventions: self.interventions,
            steps: self.steps,
            clock: self.opening.clock,
            streams: streams
                .map(|StreamRecorder { name, schema, chunks, .. }| Stream { name, schema, chunks })
                .collect(),
        };
        Some((last, manifest))
    }
}
