//! One open recording: steps in, chunks and at the end a manifest out.
//!
//! Pure. The same code runs live and when the log is read back after a crash, so both make the same episode.

use serde::{Deserialize, Serialize};
use zunft_protocol::cbor::{self, CborError};
use zunft_protocol::chunk::{ChunkBuilder, Schema};
use zunft_protocol::embodiment::Embodiment;
use zunft_protocol::episode::{
    Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, StepRange, Stream,
};
use zunft_protocol::ids::{ChunkId, RecordingId, TaskName};

use super::record::{Ordinal, PAYLOAD_BYTES_MAX};
use crate::identity::Identity;

/// Most chunks of one recording.
///
/// A reference takes about 60 bytes, so this many fill most of a manifest's allowed MiB; at the target size
/// it is 4 GiB of steps.
pub(crate) const RECORDING_CHUNKS_MAX: usize = 16_000;

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
    /// Steps inside.
    pub(crate) steps: u32,
    /// Its stored bytes.
    pub(crate) stored: Vec<u8>,
}

/// A recording while it is open.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) ordinal: Ordinal,
    pub(crate) opening: Opening,
    schema: Schema,
    step_bytes: usize,
    /// Size at which a chunk is cut, before compression.
    chunk_bytes: usize,
    builder: ChunkBuilder,
    chunks: Vec<ChunkRef>,
    interventions: Vec<StepRange>,
    steps: u64,
}

impl Recorder {
    pub(crate) fn new(ordinal: Ordinal, opening: Opening, chunk_bytes: usize) -> Self {
        let schema = Schema::steps(&opening.embodiment);
        Self {
            ordinal,
            step_bytes: schema.step_bytes(),
            chunk_bytes,
            builder: ChunkBuilder::new(schema.clone()),
            schema,
            opening,
            chunks: Vec::new(),
            interventions: Vec::new(),
            steps: 0,
        }
    }

    /// Steps so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether another step would make the manifest too large.
    pub(crate) fn is_full(&self) -> bool {
        self.chunks.len() >= RECORDING_CHUNKS_MAX
    }

    /// Cuts a chunk if the next step would take it over its target size: call before every [`Self::push`].
    pub(crate) fn cut_before_step(&mut self) -> Option<CutChunk> {
        if self.builder.raw_bytes() + self.step_bytes <= self.chunk_bytes { None } else { self.cut() }
    }

    /// Adds a step; `false` when the row has not the size that the embodiment needs.
    pub(crate) fn push(&mut self, row: &[u8], intervention: bool) -> bool {
        if row.len() != self.step_bytes {
            return false;
        }
        self.builder.push(row);
        if intervention {
            match self.interventions.last_mut().filter(|range| range.end == self.steps) {
                Some(range) => range.end += 1,
                None => self.interventions.push((self.steps..self.steps + 1).into()),
            }
        }
        self.steps += 1;
        true
    }

    /// Takes a chunk that the log holds already; `false` when it is not of the steps since the last one.
    pub(crate) fn replay_chunk(&mut self, steps: u32, stored: &[u8]) -> bool {
        if steps != self.builder.steps() {
            return false;
        }
        self.builder = ChunkBuilder::new(self.schema.clone());
        self.chunks.push(ChunkRef { id: ChunkId::of(stored), bytes: stored.len() as u32, steps });
        true
    }

    /// Ends the recording: its last chunk, if steps are left, and its manifest.
    ///
    /// `None` without any step.
    pub(crate) fn seal(
        mut self,
        identity: &Identity,
        outcome: Outcome,
        end: EpisodeEnd,
    ) -> Option<(Option<CutChunk>, Manifest)> {
        if self.steps == 0 {
            return None;
        }
        let last = self.cut();
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
            streams: vec![Stream { name: STEPS_STREAM.to_owned(), schema: self.schema, chunks: self.chunks }],
        };
        Some((last, manifest))
    }

    fn cut(&mut self) -> Option<CutChunk> {
        let (stored, steps) = self.builder.finish()?;
        self.chunks.push(ChunkRef { id: ChunkId::of(&stored), bytes: stored.len() as u32, steps });
        Some(CutChunk { steps, stored })
    }
}
