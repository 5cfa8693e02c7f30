//! What the log holds, by recording and by segment: always rebuildable from the log itself.
//!
//! Pure. It takes the records that are durable, in their order, and says which segments may go.

use std::collections::{BTreeMap, BTreeSet};

use zunft_protocol::episode::{ChunkRef, Manifest, Outcome};
use zunft_protocol::ids::{ChunkId, EpisodeId, RecordingId, TaskName};

use super::disk::SegmentNumber;
use super::record::{Ordinal, Record};

/// Where bytes are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Which segment.
    pub(crate) segment: SegmentNumber,
    /// From its first byte.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) bytes: u32,
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
}

impl Entry {
    /// What the index keeps of `record`; `None` when a sealed recording's manifest cannot be read.
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
    /// Recordings whose records contradict each other after damage: kept, never offered.
    damaged: BTreeSet<Ordinal>,
    /// In which segments each recording has records, while any is left.
    footprint: BTreeMap<Ordinal, BTreeSet<SegmentNumber>>,
    /// Where the record stands that frees a recording, while its footprint is not empty.
    freed: BTreeMap<Ordinal, SegmentNumber>,
    /// The segment that was read back and is not known to be durable: what ends in it is not to be shown yet.
    pub(crate) unsettled: Option<SegmentNumber>,
    /// Segments of which something could not be read.
    pub(crate) segments_damaged: u64,
}

impl Index {
    /// Takes one durable record.
    pub(crate) fn apply(&mut self, ordinal: Ordinal, entry: Entry, location: Location) {
        if entry != Entry::Freed {
            self.footprint.entry(ordinal).or_default().insert(location.segment);
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
                self.sealed.insert(ordinal, stored);
            }
            Entry::Damaged => {
                self.open.remove(&ordinal);
                self.damaged.insert(ordinal);
            }
            Entry::Freed => {
                self.open.remove(&ordinal);
                self.sealed.remove(&ordinal);
                self.damaged.remove(&ordinal);
                self.freed.insert(ordinal, location.segment);
            }
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
        let mut needed = BTreeSet::new();
        for (ordinal, segments) in &self.footprint {
            match self.freed.get(ordinal) {
                None => needed.extend(segments),
                Some(freed_in) if segments.iter().any(|segment| segment != freed_in) => {
                    needed.insert(freed_in);
                }
                Some(_) => {}
            }
        }
        candidates.iter().filter(|segment| !needed.contains(segment)).copied().collect()
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
        Location { segment, offset: 0, bytes: 1 }
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
