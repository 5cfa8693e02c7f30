//! What the log holds, by recording and by segment: always rebuildable from the log itself.
//!
//! Pure. It takes the records that are durable, in their order, and says which segments may go.

use std::collections::{BTreeMap, BTreeSet};

use zunft_protocol::cbor;
use zunft_protocol::episode::{ChunkRef, Manifest, Outcome};
use zunft_protocol::ids::{ChunkId, EpisodeId, RecordingId, TaskName};
use zunft_protocol::message::{EvictionReason, Tombstone};

use super::disk::SegmentNumber;
use super::record::{Ordinal, PAYLOAD_BYTES_MAX, Record};

/// Where a record is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Which segment.
    pub(crate) segment: SegmentNumber,
    /// From its first byte.
    pub(crate) offset: u64,
    /// Size of the whole record.
    pub(crate) bytes: u32,
    /// Where its own bytes begin, from the record's first byte.
    pub(crate) body: u16,
    /// Whether the segment is encrypted.
    pub(crate) sealed: bool,
}

/// What the index keeps of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A recording has its first record.
    Begin,
    /// A step of it.
    Step,
    /// A sample of one of its other streams.
    Sample,
    /// A chunk of it.
    Chunk(ChunkRef),
    /// It is an episode now.
    Sealed {
        episode: EpisodeId,
        recording: RecordingId,
        task: TaskName,
        outcome: Outcome,
        intervened: bool,
        steps: u64,
        chunks: Vec<ChunkId>,
    },
    /// Damage took records of it.
    Damaged,
    /// Its place may be used again.
    Freed,
    /// Its place was needed for others.
    Evicted(Tombstone),
}

impl Entry {
    /// What the index keeps of `record`; `None` when its manifest or tombstone cannot be read.
    pub(crate) fn of(record: &Record<'_>) -> Option<Self> {
        Some(match *record {
            Record::Begin { .. } => Self::Begin,
            Record::Step { .. } => Self::Step,
            Record::Sample { .. } => Self::Sample,
            Record::Chunk { steps, stored, .. } => {
                Self::Chunk(ChunkRef { id: ChunkId::of(stored), bytes: stored.len() as u32, steps })
            }
            Record::Sealed { manifest, .. } => {
                let decoded = Manifest::decode(manifest).ok()?;
                Self::Sealed {
                    episode: EpisodeId::of(manifest),
                    recording: decoded.recording,
                    task: decoded.task.clone(),
                    outcome: decoded.outcome,
                    intervened: !decoded.interventions.is_empty(),
                    steps: decoded.steps,
                    chunks: decoded.chunks().map(|chunk| chunk.id).collect(),
                }
            }
            Record::Damaged { .. } => Self::Damaged,
            Record::Freed { .. } => Self::Freed,
            Record::Evicted { tombstone, .. } => Self::Evicted(cbor::decode(tombstone, PAYLOAD_BYTES_MAX).ok()?),
        })
    }
}

/// An episode on disk, whole, that the hub has not yet said to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEpisode {
    /// Which of the robot's recordings.
    pub ordinal: Ordinal,
    /// Hash of its manifest.
    pub episode: EpisodeId,
    /// The recording that it was.
    pub recording: RecordingId,
    /// What it is about.
    pub task: TaskName,
    /// Whether it went well.
    pub outcome: Outcome,
    /// Whether a human took over in some of its steps.
    pub intervened: bool,
    /// Its steps.
    pub steps: u64,
    pub(crate) manifest: Location,
    pub(crate) chunks: Vec<(ChunkRef, Location)>,
}

impl StoredEpisode {
    /// Bytes of its chunks.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks.iter().map(|(chunk, _)| u64::from(chunk.bytes)).sum()
    }

    /// What is left of it when it is given up.
    pub(crate) fn tombstone(&self, reason: EvictionReason) -> Tombstone {
        Tombstone {
            recording: self.recording,
            ordinal: self.ordinal,
            task: self.task.clone(),
            outcome: self.outcome,
            interventions: self.intervened,
            steps: self.steps,
            bytes: self.chunk_bytes(),
            reason,
        }
    }

    /// Its chunks in the order of the manifest.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = &ChunkRef> {
        self.chunks.iter().map(|(chunk, _)| chunk)
    }
}

/// Everything the log holds.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Chunks of recordings that are not sealed yet.
    open: BTreeMap<Ordinal, Vec<(ChunkRef, Location)>>,
    /// Whole episodes.
    sealed: BTreeMap<Ordinal, StoredEpisode>,
    /// Bytes of their chunks.
    sealed_bytes: u64,
    /// Recordings whose records contradict each other after damage: kept, never offered.
    damaged: BTreeSet<Ordinal>,
    /// In which segments each recording has records, while any is left.
    footprint: BTreeMap<Ordinal, BTreeSet<SegmentNumber>>,
    /// Where the record stands that frees a recording, while its footprint is not empty.
    freed: BTreeMap<Ordinal, SegmentNumber>,
    /// What was given up and the hub does not know of yet, and where that stands.
    tombstones: BTreeMap<Ordinal, (Tombstone, SegmentNumber)>,
    /// Most of them; beyond, the oldest is forgotten.
    pub(crate) tombstones_max: usize,
    /// The segment that was read back and is not known to be durable: what ends in it is not to be shown yet.
    pub(crate) unsettled: Option<SegmentNumber>,
    /// Segments of which something could not be read.
    pub(crate) segments_damaged: u64,
    /// Counts what may change the episodes to offer, but for those that the hub holds.
    revision: u64,
}

impl Index {
    /// An empty one that keeps at most so many tombstones.
    pub(crate) fn new(tombstones_max: usize) -> Self {
        Self { tombstones_max, ..Self::default() }
    }

    /// Takes one durable record.
    pub(crate) fn apply(&mut self, ordinal: Ordinal, entry: Entry, location: Location) {
        if !matches!(entry, Entry::Freed | Entry::Evicted(_)) {
            self.footprint.entry(ordinal).or_default().insert(location.segment);
        }
        if matches!(entry, Entry::Sealed { .. } | Entry::Damaged | Entry::Evicted(_)) {
            self.revision += 1;
        }
        match entry {
            Entry::Begin => {
                self.open.entry(ordinal).or_default();
            }
            Entry::Step | Entry::Sample => {}
            Entry::Chunk(chunk) => self.open.entry(ordinal).or_default().push((chunk, location)),
            Entry::Sealed { episode, recording, task, outcome, intervened, steps, chunks } => {
                let found = self.open.remove(&ordinal).unwrap_or_default();
                let Some(chunks) = in_order(found, &chunks) else {
                    self.damaged.insert(ordinal);
                    return;
                };
                let manifest = location;
                let stored =
                    StoredEpisode { ordinal, episode, recording, task, outcome, intervened, steps, manifest, chunks };
                self.sealed_bytes += stored.chunk_bytes();
                if let Some(before) = self.sealed.insert(ordinal, stored) {
                    self.sealed_bytes -= before.chunk_bytes();
                }
            }
            Entry::Damaged => {
                self.open.remove(&ordinal);
                self.damaged.insert(ordinal);
            }
            Entry::Freed => self.free(ordinal, location.segment),
            Entry::Evicted(tombstone) => {
                self.free(ordinal, location.segment);
                self.tombstones.insert(ordinal, (tombstone, location.segment));
                if self.tombstones.len() > self.tombstones_max {
                    self.tombstones.pop_first();
                }
            }
        }
    }

    fn free(&mut self, ordinal: Ordinal, freed_in: SegmentNumber) {
        self.open.remove(&ordinal);
        if let Some(gone) = self.sealed.remove(&ordinal) {
            self.sealed_bytes -= gone.chunk_bytes();
        }
        self.damaged.remove(&ordinal);
        self.freed.insert(ordinal, freed_in);
    }

    /// What was given up and the hub does not know of, at most `count_max`, oldest first.
    pub(crate) fn tombstones(&self, count_max: usize) -> impl Iterator<Item = &Tombstone> {
        self.tombstones.values().take(count_max).map(|(tombstone, _)| tombstone)
    }

    /// How many there are.
    pub(crate) fn tombstones_count(&self) -> usize {
        self.tombstones.len()
    }

    /// The hub knows of these. After a restart they may be told again, as long as their records are there.
    pub(crate) fn forget_tombstones(&mut self, ordinals: &[Ordinal]) {
        for ordinal in ordinals {
            self.tombstones.remove(ordinal);
        }
    }

    /// Marks every recording as damaged that is neither whole, nor freed, nor `open`; returns those that were not
    /// known to be.
    pub(crate) fn mark_unaccounted(&mut self, open: impl Fn(Ordinal) -> bool) -> Vec<Ordinal> {
        let known = |ordinal: &Ordinal| {
            self.sealed.contains_key(ordinal) || self.freed.contains_key(ordinal) || self.damaged.contains(ordinal)
        };
        let lost: Vec<Ordinal> =
            self.footprint.keys().filter(|ordinal| !known(ordinal) && !open(**ordinal)).copied().collect();
        self.damaged.extend(&lost);
        lost
    }

    /// Whole episodes, oldest first.
    pub(crate) fn sealed(&self) -> &BTreeMap<Ordinal, StoredEpisode> {
        &self.sealed
    }

    /// All of it is durable.
    pub(crate) fn settle(&mut self) {
        if self.unsettled.take().is_some() {
            self.revision += 1;
        }
    }

    /// Changes with the episodes to offer, unless those alone are gone that the hub holds.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Bytes of the chunks of all whole episodes.
    pub(crate) fn sealed_bytes(&self) -> u64 {
        self.sealed_bytes
    }

    /// Whole episodes that a power cut cannot take, oldest first.
    pub(crate) fn offerable(&self) -> impl Iterator<Item = &StoredEpisode> {
        self.sealed.values().filter(|episode| self.unsettled != Some(episode.manifest.segment))
    }

    /// Recordings that damage took from us.
    pub(crate) fn damaged_count(&self) -> usize {
        self.damaged.len()
    }

    /// Segments of `candidates` that hold nothing which is still needed.
    ///
    /// A record that frees a recording is needed as long as any other segment could bring the recording back.
    pub(crate) fn removable(&self, candidates: &[SegmentNumber]) -> Vec<SegmentNumber> {
        let mut needed: BTreeSet<SegmentNumber> = self.tombstones.values().map(|(_, segment)| *segment).collect();
        for (ordinal, segments) in &self.footprint {
            match self.freed.get(ordinal) {
                None => needed.extend(segments),
                Some(freed_in) if segments.iter().any(|segment| segment != freed_in) => {
                    needed.insert(*freed_in);
                }
                Some(_) => {}
            }
        }
        candidates.iter().filter(|&segment| !needed.contains(segment)).copied().collect()
    }

    /// Recordings with records in `segment` that are not gone.
    pub(crate) fn living_in(&self, segment: SegmentNumber) -> Vec<Ordinal> {
        let living = self
            .footprint
            .iter()
            .filter(|(ordinal, segments)| segments.contains(&segment) && !self.freed.contains_key(*ordinal));
        living.map(|(&ordinal, _)| ordinal).collect()
    }

    /// Recordings that are gone, whose mark in `segment` is needed: other segments could bring them back, or the hub
    /// does not know yet.
    pub(crate) fn marks_needed(&self, segment: SegmentNumber) -> Vec<Ordinal> {
        let elsewhere = |ordinal: &Ordinal| {
            self.footprint.get(ordinal).is_some_and(|segments| segments.iter().any(|&other| other != segment))
        };
        let freed = self.freed.iter().filter(|(ordinal, freed_in)| **freed_in == segment && elsewhere(ordinal));
        let untold = self.tombstones.iter().filter(|(_, (_, told_in))| *told_in == segment);
        let all: BTreeSet<Ordinal> =
            freed.map(|(&ordinal, _)| ordinal).chain(untold.map(|(&ordinal, _)| ordinal)).collect();
        all.into_iter().collect()
    }

    /// The tombstone of a recording, if the hub does not know of it.
    pub(crate) fn tombstone(&self, ordinal: Ordinal) -> Option<&Tombstone> {
        self.tombstones.get(&ordinal).map(|(tombstone, _)| tombstone)
    }

    /// Forgets segments that are gone for good.
    pub(crate) fn segments_removed(&mut self, removed: &[SegmentNumber]) {
        self.footprint.retain(|ordinal, segments| {
            segments.retain(|segment| !removed.contains(segment));
            if segments.is_empty() {
                self.freed.remove(ordinal);
            }
            !segments.is_empty()
        });
    }
}

/// The chunks of a manifest in its order; the log has those of several streams as they came. `None` if some are missing.
fn in_order(found: Vec<(ChunkRef, Location)>, listed: &[ChunkId]) -> Option<Vec<(ChunkRef, Location)>> {
    if found.len() != listed.len() {
        return None;
    }
    if found.iter().map(|(chunk, _)| &chunk.id).eq(listed) {
        return Some(found);
    }
    let by_id: BTreeMap<ChunkId, (ChunkRef, Location)> =
        found.into_iter().map(|(chunk, location)| (chunk.id, (chunk, location))).collect();
    listed.iter().map(|id| by_id.get(id).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(segment: SegmentNumber) -> Location {
        Location { segment, offset: 0, bytes: 1, body: 0, sealed: false }
    }

    fn sealed() -> Entry {
        Entry::Sealed {
            episode: EpisodeId::of(b"m"),
            recording: RecordingId::from_bytes([0; 16]),
            task: "t".parse().unwrap(),
            outcome: Outcome::Success,
            intervened: false,
            steps: 1,
            chunks: Vec::new(),
        }
    }

    #[test]
    fn a_segment_goes_only_when_nothing_in_it_is_needed() {
        let mut index = Index::default();
        index.apply(0, Entry::Begin, at(1));
        index.apply(0, Entry::Step, at(2));
        index.apply(0, sealed(), at(2));
        assert!(index.removable(&[1, 2]).is_empty());
        index.apply(0, Entry::Freed, at(3));
        assert!(index.sealed().is_empty());
        // Segment 3 must stay: without it, the records in 1 and 2 would be an episode again.
        assert_eq!(index.removable(&[1, 2, 3]), [1, 2]);
        index.segments_removed(&[1]);
        assert_eq!(index.removable(&[2, 3]), [2]);
        index.segments_removed(&[2]);
        assert_eq!(index.removable(&[3]), [3]);
    }

    #[test]
    fn a_freeing_record_may_go_with_the_records_it_frees() {
        let mut index = Index::default();
        index.apply(0, Entry::Begin, at(1));
        index.apply(0, sealed(), at(1));
        index.apply(0, Entry::Freed, at(1));
        assert_eq!(index.removable(&[1]), [1]);
    }

    #[test]
    fn an_episode_whose_chunks_are_not_all_there_is_not_offered() {
        let mut index = Index::default();
        index.apply(0, Entry::Begin, at(1));
        let Entry::Sealed { episode, recording, task, outcome, intervened, steps, .. } = sealed() else {
            unreachable!()
        };
        let chunks = vec![ChunkId::of(b"lost")];
        index.apply(0, Entry::Sealed { episode, recording, task, outcome, intervened, steps, chunks }, at(1));
        assert!(index.sealed().is_empty());
        assert_eq!(index.damaged_count(), 1);
        assert!(index.removable(&[1]).is_empty(), "damage is kept for a closer look");
    }
}
