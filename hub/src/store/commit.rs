//! Group commit: episodes that are complete within a few milliseconds become durable together.
//!
//! What comes while a commit is under way is the next one's: nobody waits for company, but two small groups begin at
//! least an interval apart. One task takes submissions from a bounded queue, writes one pack a tenant, waits for the store's
//! word, then registers the pack in the metadata, and only then answers. A pack whose registration fails is an orphan:
//! nothing refers to it, nobody was told of it, and the robots offer its episodes again.
//!
//! While a large group is on its way to the disk, the next may be written too: then disk and network work at the same
//! time. Small ones wait for each other, for a group's cost is the same whatever is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use object_store::PutPayload;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use zunft_protocol::Manifest;
use zunft_protocol::dsse::SigningKey;
use zunft_protocol::ids::{ChunkId, Digest, EpisodeId, TenantId};
use zunft_protocol::message::{ChunkBytes, Receipt};

use super::pack::{EntryKind, Pack, PackBuilder};
use super::{Store, StoreError, pack_key};
use crate::clock;
use crate::metadata::{Metadata, MetadataError, NewChunk, NewEpisode, NewPack, Registered};

/// Submissions that wait: their bytes are bounded by the ingest budget, of which each holds its part until it is
/// answered; this bounds their number.
const QUEUE_MAX: usize = 1024;

/// Commits under way at a time: one is written while the other is synced and registered.
const COMMITS_MAX: usize = 2;

/// From so many bytes on, a group does not wait until the one before it is durable.
const LARGE_BYTES_MIN: usize = 8 * 1024 * 1024;

/// What is to become durable: an episode, or chunks of one that is still on its way.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) tenant: TenantId,
    /// Verified chunks that the store lacked when it was asked.
    pub(crate) chunks: Vec<ChunkBytes>,
    /// The episode that they complete, if they do.
    pub(crate) whole: Option<Whole>,
}

/// An episode of which every chunk is stored or comes with it.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) episode: EpisodeId,
    pub(crate) manifest: Manifest,
    /// The bytes that hash to the episode's id.
    pub(crate) manifest_bytes: Vec<u8>,
}

/// Why an episode was not committed. Nothing of it is visible.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CommitError {
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The recording has another episode.
    #[error("the recording has another episode")]
    Conflict,
    /// A chunk that the store was thought to have is not there.
    #[error("a chunk is missing")]
    ChunkMissing,
    /// Store or metadata failed; the cause is in the log.
    #[error("the store failed")]
    Failed,
    /// The hub stops.
    #[error("the hub stops")]
    Stopped,
}

type Answer = oneshot::Sender<Result<Committed, CommitError>>;

/// A submission is durable.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    /// Since when, in milliseconds since 1970.
    pub(crate) stored_unix_ms: u64,
    /// What became durable with it, and which of them it is.
    together: Option<(Arc<Together>, usize)>,
}

/// Episodes that became durable at the same time: their receipts are signed at once.
#[derive(Debug, Default)]
struct Together {
    episodes: Vec<EpisodeId>,
    receipts: OnceLock<Vec<Receipt>>,
}

impl Committed {
    /// The receipt for this episode.
    pub(crate) fn receipt(&self, tenant: &TenantId, episode: EpisodeId, key: &SigningKey) -> Receipt {
        let stored_unix_secs = self.stored_unix_ms / 1000;
        let shared = self.together.as_ref().and_then(|(together, index)| {
            let sign = || Receipt::sign_all(tenant, &together.episodes, stored_unix_secs, key);
            together.receipts.get_or_init(sign).get(*index)
        });
        let shared = shared.filter(|receipt| receipt.episode == episode);
        shared.cloned().unwrap_or_else(|| Receipt::sign(tenant, episode, stored_unix_secs, key))
    }
}

/// Memory that a submission takes; dropping it gives it back.
type Memory = Box<dyn Send>;

struct Waiting {
    submission: Submission,
    answer: Answer,
    memory: Memory,
}

/// Hands episodes to the committing task.
#[derive(Debug, Clone)]
pub(crate) struct Committer {
    queue: mpsc::Sender<Waiting>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let episode = self.submission.whole.as_ref().map(|whole| whole.episode);
        f.debug_struct("Waiting").field("episode", &episode).finish_non_exhaustive()
    }
}

/// Where packs are registered: the metadata, or a model of it.
pub(crate) trait Register: Send + Sync {
    /// Takes a durable pack in, all of it or, on an error, nothing; durable when this returns.
    fn register(
        &self,
        tenant: &TenantId,
        pack: &NewPack,
        now_unix_ms: u64,
    ) -> impl Future<Output = Result<Vec<Registered>, MetadataError>> + Send;
}

impl Register for Metadata {
    async fn register(
        &self,
        tenant: &TenantId,
        pack: &NewPack,
        now_unix_ms: u64,
    ) -> Result<Vec<Registered>, MetadataError> {
        self.register_pack(tenant, pack, now_unix_ms).await
    }
}

/// The committing task's part.
#[derive(Debug)]
pub(crate) struct CommitTask<R = Metadata> {
    queue: mpsc::Receiver<Waiting>,
    interval: Duration,
    pack_bytes_max: usize,
    places: Places<R>,
}

/// Where a group goes.
#[derive(Debug)]
struct Places<R> {
    store: Store,
    metadata: R,
    /// Whether the last commit failed: the log tells of the change, not of every episode.
    failing: AtomicBool,
}

impl Committer {
    /// A committer and the task that it needs; the task ends when every committer is gone.
    pub(crate) fn new<R: Register>(
        store: Store,
        metadata: R,
        interval: Duration,
        pack_bytes_max: usize,
    ) -> (Self, CommitTask<R>) {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        let places = Places { store, metadata, failing: AtomicBool::new(false) };
        (Self { queue: sender }, CommitTask { queue, interval, pack_bytes_max, places })
    }

    /// Makes an episode or its chunks durable.
    pub(crate) async fn commit(&self, submission: Submission) -> Result<Committed, CommitError> {
        self.begin(submission, ()).await?.ended().await
    }

    /// Hands a submission in, and does not wait for the disk. `memory` is dropped when it is answered.
    pub(crate) async fn begin(
        &self,
        submission: Submission,
        memory: impl Send + 'static,
    ) -> Result<Committing, CommitError> {
        let (answer, answered) = oneshot::channel();
        let memory = Box::new(memory);
        self.queue.send(Waiting { submission, answer, memory }).await.map_err(|_| CommitError::Stopped)?;
        Ok(Committing(answered))
    }
}

/// A commit under way; it goes on though nobody waits for it.
#[derive(Debug)]
pub(crate) struct Committing(oneshot::Receiver<Result<Committed, CommitError>>);

impl Committing {
    /// Waits until it is durable, or cannot be.
    pub(crate) async fn ended(self) -> Result<Committed, CommitError> {
        self.0.await.map_err(|_| CommitError::Stopped)?
    }
}

impl<R: Register> CommitTask<R> {
    /// Commits until every committer is gone.
    pub(crate) async fn run(self) {
        let Self { mut queue, interval, pack_bytes_max, places } = self;
        let mut not_before = Instant::now();
        let mut commits = FuturesUnordered::new();
        loop {
            let first = tokio::select! {
                first = queue.recv() => first,
                Some(()) = commits.next() => continue,
            };
            let Some(first) = first else { break };
            let mut group = Group::of(first);
            loop {
                let (full, large) = (group.bytes >= pack_bytes_max, group.bytes >= LARGE_BYTES_MIN);
                let room = commits.is_empty() || (commits.len() < COMMITS_MAX && large);
                let begin_at = if large { Instant::now() } else { not_before };
                tokio::select! {
                    biased;
                    Some(()) = commits.next() => {}
                    Some(next) = queue.recv(), if !full => group.push(next),
                    () = tokio::time::sleep_until(begin_at), if room => break,
                }
            }
            not_before = Instant::now() + interval;
            for (tenant, group) in by_tenant(group.submissions) {
                commits.push(places.commit(tenant, group));
            }
        }
        while commits.next().await.is_some() {}
    }
}

/// What is committed together.
struct Group {
    submissions: Vec<Waiting>,
    bytes: usize,
}

impl Group {
    fn of(first: Waiting) -> Self {
        Self { bytes: submitted_bytes(&first), submissions: vec![first] }
    }

    fn push(&mut self, next: Waiting) {
        self.bytes += submitted_bytes(&next);
        self.submissions.push(next);
    }
}

impl<R: Register> Places<R> {
    async fn commit(&self, tenant: TenantId, group: Vec<Waiting>) {
        let tenant = &tenant;
        let (submissions, answers): (Vec<_>, Vec<_>) = group
            .into_iter()
            .map(|Waiting { submission, answer, memory }| {
                let whole = submission.whole.as_ref().map(|whole| whole.episode);
                (submission, (whole, answer, memory))
            })
            .unzip();
        let now = clock::unix_millis();
        let store = self.store.clone();
        let _creating = store.creating().await;
        let results = match write_pack(&store, tenant, submissions).await {
            Err(error) => Err(self.store_failed(&error)),
            Ok(pack) => self.register(tenant, pack, now, answers.len()).await,
        };
        if results.is_ok() && self.failing.swap(false, Ordering::Relaxed) {
            info!("experience is stored again");
        }
        let mut results = results.map(Vec::into_iter);
        let outcomes: Vec<Result<u64, CommitError>> = answers
            .iter()
            .map(|(whole, ..)| match &mut results {
                Err(error) => Err(error.clone()),
                Ok(_) if whole.is_none() => Ok(now),
                Ok(registered) => match registered.next() {
                    Some(Ok(Registered::Stored { stored_unix_ms })) => Ok(stored_unix_ms),
                    Some(Ok(Registered::Conflict)) => Err(CommitError::Conflict),
                    Some(Ok(Registered::ChunkMissing)) | None => Err(CommitError::ChunkMissing),
                    Some(Err(error)) => Err(error),
                },
            })
            .collect();
        // One that was stored before keeps its time, and gets a receipt of its own.
        let stored =
            answers.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Ok(stored) if *stored == now));
        let episodes = stored.filter_map(|((whole, ..), _)| *whole).collect();
        let together = Arc::new(Together { episodes, receipts: OnceLock::new() });
        let mut places = 0..;
        for ((whole, answer, memory), outcome) in answers.into_iter().zip(outcomes) {
            let result = outcome.map(|stored_unix_ms| {
                let shares = whole.is_some() && stored_unix_ms == now;
                let place = if shares { places.next() } else { None };
                Committed { stored_unix_ms, together: place.map(|place| (Arc::clone(&together), place)) }
            });
            drop(memory);
            if answer.send(result).is_err() {
                debug!("a robot left before its episode was durable; it will offer it again");
            }
        }
    }

    /// Registers a durable pack of so many submissions. Where the database refuses what is in it, first its chunks and
    /// then each episode alone: the one that is refused fails no other robot's.
    async fn register(
        &self,
        tenant: &TenantId,
        pack: NewPack,
        now_unix_ms: u64,
        submissions: usize,
    ) -> Result<Vec<Result<Registered, CommitError>>, CommitError> {
        match self.metadata.register(tenant, &pack, now_unix_ms).await {
            Ok(registered) => return Ok(registered.into_iter().map(Ok).collect()),
            Err(error) if submissions > 1 && error.is_refusal() => {
                warn!(error = error_text(&error), "the database refuses what is in a pack; its episodes go one by one");
            }
            Err(error) => return Err(self.metadata_failed(&error)),
        }
        let NewPack { pack, bytes, chunks, episodes } = pack;
        let chunks = NewPack { pack, bytes, chunks, episodes: Vec::new() };
        if let Err(error) = self.metadata.register(tenant, &chunks, now_unix_ms).await {
            return Err(self.metadata_failed(&error));
        }
        let mut results = Vec::with_capacity(episodes.len());
        for episode in episodes {
            let alone = NewPack { pack, bytes, chunks: Vec::new(), episodes: vec![episode] };
            results.push(match self.metadata.register(tenant, &alone, now_unix_ms).await {
                Ok(registered) => registered.into_iter().next().ok_or(CommitError::Failed),
                Err(error) => Err(self.metadata_failed(&error)),
            });
        }
        Ok(results)
    }

    fn store_failed(&self, error: &StoreError) -> CommitError {
        let full = matches!(error, StoreError::Full { .. });
        self.failed(full, error)
    }

    fn metadata_failed(&self, error: &MetadataError) -> CommitError {
        self.failed(error.is_full(), error)
    }

    fn failed(&self, full: bool, error: &dyn std::error::Error) -> CommitError {
        if !self.failing.swap(true, Ordering::Relaxed) {
            warn!(error = error_text(error), "experience cannot be stored; robots keep theirs and try again");
        }
        if full { CommitError::Full } else { CommitError::Failed }
    }
}

fn error_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn submitted_bytes(waiting: &Waiting) -> usize {
    let Submission { chunks, whole, .. } = &waiting.submission;
    let chunks: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
    chunks + whole.as_ref().map_or(0, |whole| whole.manifest_bytes.len())
}

fn by_tenant(group: Vec<Waiting>) -> BTreeMap<TenantId, Vec<Waiting>> {
    let mut tenants: BTreeMap<TenantId, Vec<Waiting>> = BTreeMap::new();
    for waiting in group {
        tenants.entry(waiting.submission.tenant.clone()).or_default().push(waiting);
    }
    tenants
}

/// Writes the submissions as one pack, durable when this returns; the metadata does not know it yet.
pub(crate) async fn write_pack(
    store: &Store,
    tenant: &TenantId,
    submissions: Vec<Submission>,
) -> Result<NewPack, StoreError> {
    let owner = tenant.clone();
    // Hashing a whole pack takes tens of milliseconds: too long for the runtime's threads.
    let built = tokio::task::spawn_blocking(move || build_pack(owner, submissions)).await;
    let (pack, new) = built.expect("building a pack does not panic");
    let payload: PutPayload = pack.parts.into_iter().collect();
    store.put(&pack_key(tenant, pack.digest), payload).await?;
    debug!(pack = %pack.digest, bytes = pack.bytes, episodes = new.episodes.len(), "pack written");
    Ok(new)
}

fn build_pack(tenant: TenantId, submissions: Vec<Submission>) -> (Pack, NewPack) {
    let mut builder = PackBuilder::new(tenant);
    let mut held: BTreeSet<ChunkId> = BTreeSet::new();
    let (mut chunks, mut episodes) = (Vec::new(), Vec::new());
    for submission in submissions {
        for chunk in submission.chunks {
            if held.insert(chunk.id) {
                let bytes = chunk.bytes.len() as u32;
                let id = Digest::from_bytes(*chunk.id.as_bytes());
                let position = builder.add(EntryKind::Chunk, id, Bytes::from(chunk.bytes));
                chunks.push(NewChunk { id: chunk.id, position, bytes });
            }
        }
        let Some(Whole { episode, manifest, manifest_bytes }) = submission.whole else { continue };
        let bytes = manifest_bytes.len() as u32;
        let id = Digest::from_bytes(*episode.as_bytes());
        let position = builder.add(EntryKind::Manifest, id, Bytes::from(manifest_bytes));
        episodes.push(NewEpisode { id: episode, manifest, position, bytes });
    }
    let pack = builder.finish();
    let new = NewPack { pack: pack.digest, bytes: pack.bytes, chunks, episodes };
    (pack, new)
}

#[cfg(test)]
mod crash_model;
