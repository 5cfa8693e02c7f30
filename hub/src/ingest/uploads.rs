//! One upload stream: carries out what the session orders, and brings it the answers.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tracing::{Instrument as _, info, info_span, warn};
use zunft_protocol::Manifest;
use zunft_protocol::ids::{ChunkId, EpisodeId, RobotId, TenantId};
use zunft_protocol::limits::UPLOAD_BYTES_HELD_MAX;
use zunft_protocol::message::{ChunkBytes, Header, Later, Message, Receipt};
use zunft_protocol::session::UploadReply;
use zunft_protocol::session::hub::{HubEvent, HubOrder, Known, UploadId};

use super::connection::Robot;
use super::lookups::{Found, NotLookedUp};
use super::wire::{self, Arriving, WireError};
use crate::clock;
use crate::metadata::KEPT_FOR;
use crate::services::{BudgetShare, Change};
use crate::store::{CommitError, Committing, Submission, Whole};

/// Wait asked of a robot while the store works but is busy.
const RETRY_BUSY_MS: u32 = 500;

/// Wait asked of a robot while the store fails: someone has to make room or mend something.
const RETRY_FAILING_MS: u32 = 5_000;

/// Serves an upload from its offer to its last word; where it is not `whole`, the manifest is all there is.
pub(super) async fn serve(
    robot: &Robot,
    upload: UploadId,
    manifest: Vec<u8>,
    whole: bool,
    send: SendStream,
    recv: &mut RecvStream,
) -> Result<(), WireError> {
    let identity = &robot.identity;
    let (tenant, name, episode) = (&identity.tenant, &identity.robot, EpisodeId::of(&manifest));
    let span = info_span!("upload", %tenant, robot = %name, %episode);
    let arriving = Arriving::default();
    let mut stream = UploadStream {
        robot,
        upload,
        whole,
        send,
        manifest: None,
        budget: None,
        chunk_bytes_max: 0,
        arriving,
        setting_down: None,
        chunks_kept: clock::now(),
    };
    let served = stream.serve(manifest, recv).instrument(span).await;
    // After the last word the session has forgotten the upload; after an error it must.
    let arrived = stream.arriving.chunk();
    drop(stream);
    let broken = robot.session.lock().unwrap_or_else(PoisonError::into_inner).break_off(upload, arrived);
    if let (Err(error), Some((episode, kept))) = (&served, broken)
        && !error.is_violation()
    {
        robot.services.keep(&robot.key(), episode, kept);
    }
    served
}

/// Answers an offer for whose manifest there is no memory now: it is read past, and offered again later.
pub(super) async fn postpone(
    mut send: SendStream,
    recv: &mut RecvStream,
    header: &Header,
    stall: Duration,
) -> Result<(), WireError> {
    wire::skip_body(recv, header, stall).await?;
    wire::write(&mut send, &Message::Later(Later { retry_after_ms: RETRY_BUSY_MS }).encode(), stall).await?;
    wire::finish(&mut send);
    Ok(())
}

struct UploadStream<'a> {
    robot: &'a Robot,
    upload: UploadId,
    /// Whether chunks are on offer.
    whole: bool,
    send: SendStream,
    /// The manifest once it was admitted.
    manifest: Option<Box<Manifest>>,
    /// The memory that the episode's chunks take until they are committed: of the robot's part and of the whole. What
    /// is on its way into the store holds it too, for that gets there even if the stream breaks.
    budget: Option<Arc<(BudgetShare, BudgetShare)>>,
    /// Bytes of the largest chunk that the hub lacks.
    chunk_bytes_max: usize,
    /// The message under way.
    arriving: Arriving,
    /// Chunks on their way into the store, ahead of their episode. They get there even if the stream breaks.
    setting_down: Option<Committing>,
    /// When the hub last made sure that the chunks it has are not forgotten meanwhile.
    chunks_kept: Instant,
}

impl Robot {
    fn key(&self) -> (TenantId, RobotId) {
        (self.identity.tenant.clone(), self.identity.robot.clone())
    }

    fn decide(&self, event: HubEvent) -> Vec<HubOrder> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).handle(event)
    }
}

impl UploadStream<'_> {
    async fn serve(&mut self, manifest: Vec<u8>, recv: &mut RecvStream) -> Result<(), WireError> {
        let upload = self.upload;
        let first =
            if self.whole { HubEvent::Offered { upload, manifest } } else { HubEvent::Described { upload, manifest } };
        let mut orders = VecDeque::from(self.robot.decide(first));
        loop {
            let event = match orders.pop_front() {
                None => {
                    let reading = self.arriving.read_chunk(recv, &self.robot.progress, self.chunk_bytes_max);
                    let message = reading.await?.ok_or(WireError::Ended)?;
                    if let Message::Chunk(chunk) = message {
                        HubEvent::Received { upload, chunk }
                    } else if let Message::ChunkRest(rest) = message {
                        HubEvent::ReceivedRest { upload, rest }
                    } else {
                        return Err(WireError::Unexpected);
                    }
                }
                Some(HubOrder::LookUp { episode, manifest, .. }) => {
                    let known = self.look_up(episode, &manifest).await;
                    self.manifest = Some(manifest);
                    HubEvent::LookedUp { upload, known }
                }
                Some(HubOrder::Note { episode, .. }) => self.note(episode).await,
                Some(HubOrder::SetDown { chunks, .. }) => match self.set_down(chunks).await {
                    None => continue,
                    Some(not_stored) => not_stored,
                },
                Some(HubOrder::Commit { episode, manifest, chunks, .. }) => {
                    self.commit(episode, manifest, chunks).await
                }
                Some(HubOrder::Reply { reply, .. }) => {
                    if self.reply(reply).await? {
                        return Ok(());
                    }
                    continue;
                }
            };
            orders.extend(self.robot.decide(event));
        }
    }

    /// What the store knows of the episode.
    async fn look_up(&mut self, episode: EpisodeId, manifest: &Manifest) -> Known {
        match self.known(episode, manifest).await {
            Ok(known) => known,
            // The cause is in the log.
            Err(NotLookedUp) => Known::Unavailable { retry_after_ms: RETRY_FAILING_MS },
        }
    }

    async fn known(&mut self, episode: EpisodeId, manifest: &Manifest) -> Result<Known, NotLookedUp> {
        let tenant = &self.robot.identity.tenant;
        let ids: Vec<ChunkId> = manifest.chunks().map(|chunk| chunk.id).collect();
        let Found { episode: known, present } = self.robot.look_ups.look_up(tenant, manifest.recording, ids).await?;
        if let Some((stored, stored_unix_ms)) = known {
            if stored != episode {
                warn!(recording = %manifest.recording, %stored, "another episode of a stored recording is refused");
                return Ok(Known::Conflict);
            }
            let receipt = self.receipt(episode, stored_unix_ms);
            return Ok(receipt.map_or(Known::Unavailable { retry_after_ms: RETRY_FAILING_MS }, Known::Durable));
        }
        if !self.whole {
            return Ok(Known::New { present });
        }
        let present = self.keep_chunks(present).await?;
        let missing = || manifest.chunks().filter(|chunk| !present.contains(&chunk.id)).map(|chunk| chunk.bytes);
        self.chunk_bytes_max = missing().max().unwrap_or(0) as usize;
        let missing: u64 = missing().map(u64::from).sum();
        let (services, key) = (&self.robot.services, self.robot.key());
        let kept = services.take_kept(&key, episode);
        let held = missing.min(UPLOAD_BYTES_HELD_MAX);
        let own = self.robot.budget.reserve(held);
        self.budget = own.and_then(|own| Some(Arc::new((own, services.reserve(held)?))));
        if self.budget.is_none() {
            if let Some(kept) = kept {
                services.keep(&key, episode, kept);
            }
            return Ok(Known::Unavailable { retry_after_ms: RETRY_BUSY_MS });
        }
        Ok(match kept {
            None => Known::New { present },
            Some(kept) => {
                info!(bytes = kept.bytes(), "an upload is taken up where it broke off");
                Known::Begun { present, kept }
            }
        })
    }

    /// Writes down that the robot has the episode.
    async fn note(&mut self, episode: EpisodeId) -> HubEvent {
        let (upload, tenant) = (self.upload, &self.robot.identity.tenant);
        let manifest = self.manifest.take().expect("an episode is looked up before it is noted");
        match self.robot.services.metadata.note_episode(tenant, episode, &manifest, clock::unix_millis()).await {
            Ok(()) => HubEvent::Noted { upload },
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "an episode could not be noted");
                HubEvent::NotStored { upload, retry_after_ms: RETRY_FAILING_MS }
            }
        }
    }

    /// Says which of these chunks are there to stay for as long as this upload may take.
    async fn keep_chunks(&mut self, chunks: BTreeSet<ChunkId>) -> Result<BTreeSet<ChunkId>, NotLookedUp> {
        self.chunks_kept = clock::now();
        if chunks.is_empty() {
            return Ok(chunks);
        }
        let (tenant, metadata) = (&self.robot.identity.tenant, &self.robot.services.metadata);
        metadata.keep_chunks(tenant, &chunks, clock::unix_millis()).await.map_err(|error| {
            warn!(error = &error as &dyn std::error::Error, "an offer could not be looked up");
            NotLookedUp
        })
    }

    /// Makes chunks durable ahead of their episode, while others come; fails where those before could not be.
    async fn set_down(&mut self, chunks: Vec<ChunkBytes>) -> Option<HubEvent> {
        let submission = Submission { tenant: self.robot.identity.tenant.clone(), chunks, whole: None };
        let begun = match (self.set_down_before().await, self.robot.services.committer()) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(committer)) => committer.begin(submission, self.budget.clone()).await,
            (Ok(()), None) => Err(CommitError::Stopped),
        };
        if let Some(manifest) = self.manifest.as_ref().filter(|_| self.chunks_kept.elapsed() >= KEPT_FOR) {
            let chunks = manifest.chunks().map(|chunk| chunk.id).collect();
            // What went nevertheless the commit finds missing, and the next offer asks for it.
            drop(self.keep_chunks(chunks).await);
        }
        match begun {
            Ok(setting_down) => {
                self.setting_down = Some(setting_down);
                None
            }
            Err(error) => Some(self.not_stored(error)),
        }
    }

    /// Waits for the chunks that are on their way into the store.
    async fn set_down_before(&mut self) -> Result<(), CommitError> {
        let Some(setting_down) = self.setting_down.take() else { return Ok(()) };
        setting_down.ended().await.map(drop)
    }

    fn not_stored(&self, error: CommitError) -> HubEvent {
        let retry_after_ms = match error {
            CommitError::Full | CommitError::Failed | CommitError::Stopped => RETRY_FAILING_MS,
            // The next offer learns which it is.
            CommitError::Conflict | CommitError::ChunkMissing => RETRY_BUSY_MS,
        };
        HubEvent::NotStored { upload: self.upload, retry_after_ms }
    }

    /// Makes the episode durable.
    async fn commit(&mut self, episode: EpisodeId, manifest_bytes: Vec<u8>, chunks: Vec<ChunkBytes>) -> HubEvent {
        let upload = self.upload;
        let manifest = self.manifest.take().expect("an episode is looked up before it is committed");
        let (steps, bytes) = (manifest.steps, manifest.bytes());
        let tenant = self.robot.identity.tenant.clone();
        let whole = Some(Whole { episode, manifest: *manifest, manifest_bytes });
        let submission = Submission { tenant: tenant.clone(), chunks, whole };
        let committed = match (self.set_down_before().await, self.robot.services.committer()) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(committer)) => committer.commit(submission).await,
            (Ok(()), None) => Err(CommitError::Stopped),
        };
        self.budget = None;
        let receipt = committed.map(|committed| {
            let keys = self.robot.services.keys(&tenant)?;
            Some(committed.receipt(&tenant, episode, &keys.assigner))
        });
        match receipt {
            Ok(Some(receipt)) => {
                info!(steps, bytes, "episode stored");
                self.robot.services.announce(Change::Episode { tenant, episode });
                HubEvent::Stored { upload, receipt }
            }
            Ok(None) => self.not_stored(CommitError::Failed),
            Err(error) => self.not_stored(error),
        }
    }

    fn receipt(&self, episode: EpisodeId, stored_unix_ms: u64) -> Option<Receipt> {
        let tenant = &self.robot.identity.tenant;
        let keys = self.robot.services.keys(tenant)?;
        Some(Receipt::sign(tenant, episode, stored_unix_ms / 1000, &keys.assigner))
    }

    /// Sends a reply; says whether it was the last word.
    async fn reply(&mut self, reply: UploadReply) -> Result<bool, WireError> {
        let message = match reply {
            UploadReply::Want(want) => Message::Want(want),
            UploadReply::Later(later) => Message::Later(later),
            UploadReply::Durable(receipt) => Message::Durable(receipt),
            UploadReply::Noted => Message::Noted,
            UploadReply::Reject(reject) => {
                warn!(reason = %reject.reason, "episode rejected");
                Message::Reject(reject)
            }
        };
        let last = !matches!(message, Message::Want(_));
        wire::write(&mut self.send, &message.encode(), self.robot.stall()).await?;
        if last {
            wire::finish(&mut self.send);
        }
        Ok(last)
    }
}
