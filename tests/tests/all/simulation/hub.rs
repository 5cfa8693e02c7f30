//! The simulated hub: a store that keeps what it committed and loses everything else with the power.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt as _;
use zunft_protocol::Manifest;
use zunft_protocol::dsse::SigningKey;
use zunft_protocol::ids::{ChunkId, EpisodeId, RecordingId, TenantId};
use zunft_protocol::message::{ChunkBytes, Message, Receipt};
use zunft_protocol::session::UploadReply;
use zunft_protocol::session::hub::{HubEvent, HubOrder, HubSession, Identity, Known, UploadId};

use super::{ConnectionId, Event, Fleet};

/// Wait asked of a robot when a commit failed.
const RETRY_AFTER_MS: u32 = 500;

const EPISODE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

/// A commit under way.
pub(super) struct Commit {
    connection: ConnectionId,
    upload: UploadId,
    tenant: TenantId,
    recording: RecordingId,
    episode: EpisodeId,
    manifest: Vec<u8>,
    chunks: Vec<ChunkBytes>,
}

/// What survives a power cut, of one tenant.
#[derive(Default)]
struct Store {
    episodes: BTreeMap<RecordingId, (EpisodeId, Vec<u8>)>,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
}

/// The hub.
pub(super) struct Hub {
    pub(super) up: bool,
    life: u64,
    full: bool,
    sessions: BTreeMap<ConnectionId, HubSession>,
    tenants: BTreeMap<TenantId, Store>,
}

impl Hub {
    pub(super) fn new(tenants: &[&str]) -> Self {
        let tenants = tenants.iter().map(|tenant| (tenant.parse().unwrap(), Store::default())).collect();
        Self { up: true, life: 0, full: false, sessions: BTreeMap::new(), tenants }
    }

    pub(super) fn accept(&mut self, connection: ConnectionId, identity: Identity) {
        self.sessions.insert(connection, HubSession::new(identity, EPISODE_BYTES_MAX));
    }

    pub(super) fn episode(&self, tenant: &TenantId, recording: RecordingId) -> Option<(EpisodeId, &[u8])> {
        self.tenants[tenant].episodes.get(&recording).map(|(episode, manifest)| (*episode, manifest.as_slice()))
    }

    pub(super) fn chunk(&self, tenant: &TenantId, chunk: ChunkId) -> Option<&[u8]> {
        self.tenants[tenant].chunks.get(&chunk).map(Vec::as_slice)
    }

    pub(super) fn holds(&self, tenant: &TenantId, episode: EpisodeId) -> bool {
        self.tenants[tenant].episodes.values().any(|(held, _)| *held == episode)
    }

    pub(super) fn episodes(&self) -> usize {
        self.tenants.values().map(|store| store.episodes.len()).sum()
    }

    fn known(&self, tenant: &TenantId, episode: EpisodeId, manifest: &Manifest) -> Known {
        let store = &self.tenants[tenant];
        match store.episodes.get(&manifest.recording) {
            Some((stored, _)) if *stored == episode => Known::Durable(Receipt::sign(tenant, episode, 1, &key())),
            Some(_) => Known::Conflict,
            None => {
                let ids = manifest.chunks().map(|chunk| chunk.id);
                Known::New { present: ids.filter(|id| store.chunks.contains_key(id)).collect::<BTreeSet<_>>() }
            }
        }
    }
}

impl Fleet {
    pub(super) fn at_hub(&mut self, connection: ConnectionId, stream: UploadId, message: Option<Vec<u8>>) {
        if self.connections[&connection].broken {
            return;
        }
        let event = match message.map(|bytes| Message::decode(&bytes).unwrap()) {
            None => HubEvent::Gone { upload: stream },
            Some(Message::Offer(manifest)) => HubEvent::Offered { upload: stream, manifest },
            Some(Message::Chunk(chunk)) => HubEvent::Received { upload: stream, chunk },
            Some(other) => panic!("a robot sent {other:?} on an upload stream"),
        };
        self.tell_hub(connection, event);
    }

    /// A dead connection's uploads go; commits under way go on without them.
    pub(super) fn hub_notices(&mut self, connection: ConnectionId) {
        self.hub.sessions.remove(&connection);
    }

    fn tell_hub(&mut self, connection: ConnectionId, event: HubEvent) {
        // A hub that lost its power has forgotten the connection.
        let Some(session) = self.hub.sessions.get_mut(&connection) else { return };
        for order in session.handle(event) {
            match order {
                HubOrder::LookUp { upload, episode, manifest } => {
                    let tenant = self.tenant_of(connection);
                    let known = self.hub.known(&tenant, episode, &manifest);
                    self.tell_hub(connection, HubEvent::LookedUp { upload, known });
                }
                HubOrder::Reply { upload, reply } => self.reply(connection, upload, reply),
                HubOrder::Note { upload, .. } => self.tell_hub(connection, HubEvent::Noted { upload }),
                HubOrder::SetDown { upload, chunks } => {
                    let tenant = self.tenant_of(connection);
                    if self.hub.full {
                        self.tell_hub(connection, HubEvent::NotStored { upload, retry_after_ms: RETRY_AFTER_MS });
                    } else if let Some(store) = self.hub.tenants.get_mut(&tenant) {
                        store.chunks.extend(chunks.into_iter().map(|chunk| (chunk.id, chunk.bytes)));
                    }
                }
                HubOrder::Commit { upload, episode, manifest, chunks } => {
                    let tenant = self.tenant_of(connection);
                    let recording = Manifest::decode(&manifest).unwrap().recording;
                    let commit = Commit { connection, upload, tenant, recording, episode, manifest, chunks };
                    let wait = Duration::from_millis(5) + self.random(Duration::from_millis(200));
                    let life = self.hub.life;
                    self.soon(wait, Event::Committed { life, commit: Box::new(commit) });
                }
            }
        }
    }

    fn tenant_of(&self, connection: ConnectionId) -> TenantId {
        self.robots[self.connections[&connection].robot].identity.tenant.clone()
    }

    fn reply(&mut self, connection: ConnectionId, upload: UploadId, reply: UploadReply) {
        let message = match reply {
            UploadReply::Want(want) => Message::Want(want),
            UploadReply::Later(later) => Message::Later(later),
            UploadReply::Reject(reject) => Message::Reject(reject),
            UploadReply::Noted => Message::Noted,
            UploadReply::Durable(mut receipt) => {
                if self.chaotic() && self.rng.random_bool(0.02) {
                    receipt.signature[0] ^= 1;
                }
                Message::Durable(receipt)
            }
        };
        self.send(connection, upload, false, Some(&message));
    }

    /// The disk has answered: the episode is durable, unless the power was faster.
    pub(super) fn committed(&mut self, life: u64, commit: Commit) {
        if life != self.hub.life {
            return;
        }
        let Commit { connection, upload, tenant, recording, episode, manifest, chunks } = commit;
        let store = self.hub.tenants.get_mut(&tenant).unwrap();
        let decoded = Manifest::decode(&manifest).unwrap();
        let brought: BTreeSet<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
        let complete =
            decoded.chunks().all(|chunk| brought.contains(&chunk.id) || store.chunks.contains_key(&chunk.id));
        let other = store.episodes.get(&recording).is_some_and(|(stored, _)| *stored != episode);
        if self.hub.full || other || !complete {
            let event = HubEvent::NotStored { upload, retry_after_ms: RETRY_AFTER_MS };
            return self.tell_hub(connection, event);
        }
        store.chunks.extend(chunks.into_iter().map(|chunk| (chunk.id, chunk.bytes)));
        store.episodes.insert(recording, (episode, manifest));
        if self.chaotic() && self.rng.random_bool(0.005) {
            // Durable, and nobody hears of it.
            self.hub_power_cut();
            let wait = self.random(Duration::from_secs(10));
            return self.soon(wait, Event::HubBoot);
        }
        let receipt = Receipt::sign(&tenant, episode, 1, &key());
        self.tell_hub(connection, HubEvent::Stored { upload, receipt });
    }

    pub(super) fn hub_power_cut(&mut self) {
        self.hub.up = false;
        self.hub.life += 1;
        self.hub.sessions.clear();
        let live: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, link)| !link.broken).map(|(&connection, _)| connection).collect();
        for connection in live {
            self.cut(connection);
        }
    }

    pub(super) fn hub_disk(&mut self, full: bool) {
        self.hub.full = full;
        if full {
            let wait = self.random(Duration::from_secs(20));
            self.soon(wait, Event::HubDisk { full: false });
        }
    }
}
