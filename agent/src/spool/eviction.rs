//! Which episodes a full spool gives up, so that it can go on recording.
//!
//! Whole episodes go, the least valuable first: those of unknown outcome, then successes, then failures, then those
//! in which a person took over; in a class the oldest first. Pinned tasks, open recordings and what damage took are
//! never given up. Room comes in segments: of what a segment holds, the most valuable decides when it goes.
//!
//! Pure. It says what would have to go; [`super::worker`] writes it into the log and removes the segment.

use std::collections::{BTreeMap, BTreeSet};

use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::TaskName;

use super::disk::SegmentNumber;
use super::index::{Index, StoredEpisode};
use super::record::Ordinal;

/// What a full spool does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EvictionPolicy {
    /// Whether it gives anything up at all.
    pub(crate) evicts: bool,
    /// Tasks whose episodes are never given up.
    pub(crate) pinned_tasks: BTreeSet<TaskName>,
}

/// What makes one segment free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Episodes to give up.
    pub(crate) victims: Vec<Ordinal>,
    /// Recordings that are gone already, but whose mark in the segment must be written again first.
    pub(crate) carried: Vec<Ordinal>,
}

/// How much an episode is worth, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Value {
    Unknown,
    Success,
    Failure,
    Intervention,
}

fn value(episode: &StoredEpisode) -> Value {
    match episode.outcome {
        _ if episode.intervened => Value::Intervention,
        Outcome::Unknown => Value::Unknown,
        Outcome::Success => Value::Success,
        Outcome::Failure => Value::Failure,
    }
}

/// The cheapest way to free one of the `closed` segments; `None` where there is none.
///
/// A segment is not worth freeing for more than `carried_max` marks that would have to be written again.
pub(crate) fn plan(
    index: &Index,
    closed: &[SegmentNumber],
    policy: &EvictionPolicy,
    carried_max: usize,
) -> Option<Plan> {
    if !policy.evicts {
        return None;
    }
    let mut candidates: Vec<(Value, Ordinal)> = index
        .sealed()
        .values()
        .filter(|episode| !policy.pinned_tasks.contains(&episode.task))
        .map(|episode| (value(episode), episode.ordinal))
        .collect();
    candidates.sort_unstable();
    let ranks: BTreeMap<Ordinal, usize> =
        candidates.iter().zip(1..).map(|(&(_, ordinal), rank)| (ordinal, rank)).collect();
    let cheapest = closed.iter().filter_map(|&segment| {
        let carried = index.marks_needed(segment);
        let living = index.living_in(segment);
        // Some of it may not go at all.
        let ranked: Option<Vec<usize>> = living.iter().map(|ordinal| ranks.get(ordinal).copied()).collect();
        let rank = ranked?.into_iter().max().unwrap_or(0);
        (carried.len() <= carried_max).then_some((rank, segment, Plan { victims: living, carried }))
    });
    cheapest.min_by_key(|(rank, segment, _)| (*rank, *segment)).map(|(.., plan)| plan)
}
