//! What the store knows of offers, looked up in groups: many small episodes at once cost a few questions, not one each.
//!
//! One task takes what waits and asks once for each tenant; what comes meanwhile is the next one's. A lone offer is
//! looked up at once; under load, groups are asked for some milliseconds apart.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;
use zunft_protocol::ids::{ChunkId, EpisodeId, RecordingId, TenantId};

use crate::metadata::Metadata;

/// Offers that wait; a robot has at most as many among them as it may have uploads open.
const QUEUE_MAX: usize = 1024;

/// Offers of one question. Those of long episodes name many chunks, which are asked for a thousand at a time.
const GROUP_MAX: usize = 128;

/// Time between two questions: offers come long before their chunks can.
const INTERVAL: Duration = Duration::from_millis(10);

/// The database did not answer; the cause is in the log.
#[derive(Debug, thiserror::Error)]
#[error("the offer could not be looked up")]
pub(super) struct NotLookedUp;

/// What the store knows of an offer.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The recording's episode, and since when it is stored, in milliseconds since 1970.
    pub(super) episode: Option<(EpisodeId, u64)>,
    /// Those of its chunks that the tenant has.
    pub(super) present: BTreeSet<ChunkId>,
}

struct Offer {
    tenant: TenantId,
    recording: RecordingId,
    chunks: Vec<ChunkId>,
    answer: oneshot::Sender<Result<Found, NotLookedUp>>,
}

/// Hands offers to the task that looks them up.
#[derive(Debug, Clone)]
pub(super) struct LookUps {
    queue: mpsc::Sender<Offer>,
}

/// The task's part.
pub(super) struct LookUpTask {
    queue: mpsc::Receiver<Offer>,
    metadata: Metadata,
}

impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("recording", &self.recording).finish_non_exhaustive()
    }
}

/// A handle and the task behind it, which ends when every handle is gone.
pub(super) fn look_ups(metadata: Metadata) -> (LookUps, LookUpTask) {
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    (LookUps { queue: sender }, LookUpTask { queue, metadata })
}

impl LookUps {
    /// What the store knows of a recording and of these chunks.
    pub(super) async fn look_up(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        chunks: Vec<ChunkId>,
    ) -> Result<Found, NotLookedUp> {
        let (answer, answered) = oneshot::channel();
        let offer = Offer { tenant: tenant.clone(), recording, chunks, answer };
        self.queue.send(offer).await.map_err(|_| NotLookedUp)?;
        answered.await.map_err(|_| NotLookedUp)?
    }
}

impl LookUpTask {
    /// Looks up until every handle is gone.
    pub(super) async fn run(mut self) {
        let mut group = Vec::new();
        let mut not_before = Instant::now();
        while let Some(first) = self.queue.recv().await {
            group.push(first);
            tokio::time::sleep_until(not_before).await;
            not_before = Instant::now() + INTERVAL;
            while group.len() < GROUP_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                group.push(next);
            }
            let mut tenants: BTreeMap<TenantId, Vec<Offer>> = BTreeMap::new();
            for offer in group.drain(..) {
                tenants.entry(offer.tenant.clone()).or_default().push(offer);
            }
            for (tenant, offers) in tenants {
                self.look_up(&tenant, offers).await;
            }
        }
    }

    async fn look_up(&self, tenant: &TenantId, offers: Vec<Offer>) {
        let recordings: Vec<RecordingId> = offers.iter().map(|offer| offer.recording).collect();
        let chunks: BTreeSet<ChunkId> = offers.iter().flat_map(|offer| offer.chunks.iter().copied()).collect();
        let chunks: Vec<ChunkId> = chunks.into_iter().collect();
        let known = self.metadata.known(tenant, &recordings, &chunks).await;
        if let Err(error) = &known {
            warn!(error = error as &dyn std::error::Error, offers = offers.len(), "offers could not be looked up");
        }
        for Offer { recording, chunks, answer, .. } in offers {
            let found = match &known {
                Err(_) => Err(NotLookedUp),
                Ok((episodes, present)) => {
                    let present = chunks.into_iter().filter(|chunk| present.contains(chunk)).collect();
                    Ok(Found { episode: episodes.get(&recording).copied(), present })
                }
            };
            // A robot that has gone meanwhile needs no answer.
            drop(answer.send(found));
        }
    }
}
