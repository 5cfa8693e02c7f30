//! Frozen lists of episodes, and reading what they list.

/// The episodes of one snapshot, read from packs and verified. Implements `zunft_skills::data::EpisodeSource`.
#[derive(Debug)]
pub struct SnapshotSource;
