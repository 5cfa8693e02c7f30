//! The hub's side of one robot's uploads: what is admitted, wanted, verified and acknowledged.
//!
//! Pure. The shell looks up what the store has, keeps verified chunks, commits, and only then tells
//! [`HubEvent::Stored`]; DURABLE follows from nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::UploadReply;
use crate::episode::Manifest;
use crate::ids::{ChunkId, EpisodeId, RobotId, SiteId, TenantId};
use crate::limits::UPLOADS_IN_FLIGHT_MAX;
use crate::message::{ChunkBytes, Later, Receipt, Reject, RejectReason, Want};

/// Wait asked of a robot that offers more at once than it may.
const RETRY_AFTER_MS: u32 = 1000;

/// Who speaks, from the certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Whose robot.
    pub tenant: TenantId,
    /// Where.
    pub site: SiteId,
    /// Which.
    pub robot: RobotId,
}

/// One upload stream of a connection, numbered by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UploadId(pub u64);

/// What the store knows of an offered episode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Durable already.
    Durable(Receipt),
    /// The recording has another episode.
    Conflict,
    /// Not yet; these of its chunks are in the tenant's store.
    New {
        /// Chunks that need not be sent.
        present: BTreeSet<ChunkId>,
    },
    /// The store cannot say now.
    Unavailable {
        /// When it may.
        retry_after_ms: u32,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum HubEvent {
    /// The robot offers a manifest.
    Offered {
        /// On which stream.
        upload: UploadId,
        /// The encoded manifest.
        manifest: Vec<u8>,
    },
    /// The store's answer to [`HubOrder::LookUp`].
    LookedUp {
        /// On which stream.
        upload: UploadId,
        /// What it knows.
        known: Known,
    },
    /// The robot sends a chunk.
    Received {
        /// On which stream.
        upload: UploadId,
        /// The chunk.
        chunk: ChunkBytes,
    },
    /// The store's answer to [`HubOrder::Commit`]: it survives a power cut.
    Stored {
        /// On which stream.
        upload: UploadId,
        /// The signed word.
        receipt: Receipt,
    },
    /// The store could not commit.
    NotStored {
        /// On which stream.
        upload: UploadId,
        /// When to try again.
        retry_after_ms: u32,
    },
    /// The stream is gone.
    Gone {
        /// Which.
        upload: UploadId,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum HubOrder {
    /// Ask the store what it knows.
    LookUp {
        /// For which stream.
        upload: UploadId,
        /// The episode.
        episode: EpisodeId,
        /// Its manifest, checked.
        manifest: Box<Manifest>,
    },
    /// Send this; after anything but WANT the stream is finished.
    Reply {
        /// On which stream.
        upload: UploadId,
        /// What.
        reply: UploadReply,
    },
    /// Commit the episode with the chunks it lacked, all verified.
    Commit {
        /// For which stream.
        upload: UploadId,
        /// The episode.
        episode: EpisodeId,
        /// Its manifest as offered: these bytes hash to the episode's id.
        manifest: Vec<u8>,
        /// The chunks that the store lacked.
        chunks: Vec<ChunkBytes>,
    },
}

#[derive(Debug)]
enum Upload {
    LookingUp { episode: EpisodeId, bytes: Vec<u8>, manifest: Box<Manifest> },
    Receiving { episode: EpisodeId, bytes: Vec<u8>, missing: BTreeMap<ChunkId, u32>, chunks: Vec<ChunkBytes> },
    Committing,
}

/// The hub's decisions about one robot's uploads.
#[derive(Debug)]
pub struct HubSession {
    identity: Identity,
    episode_bytes_max: u64,
    uploads: BTreeMap<UploadId, Upload>,
    orders: Vec<HubOrder>,
}

impl HubSession {
    /// A session with the robot of `identity`, whose episodes may have at most `episode_bytes_max`.
    pub fn new(identity: Identity, episode_bytes_max: u64) -> Self {
        Self { identity, episode_bytes_max, uploads: BTreeMap::new(), orders: Vec::new() }
    }

    /// Uploads that are open.
    pub fn open(&self) -> usize {
        self.uploads.len()
    }

    /// Takes an event and returns what to do, in order.
    #[must_use]
    pub fn handle(&mut self, event: HubEvent) -> Vec<HubOrder> {
        match event {
            HubEvent::Offered { upload, manifest } => self.offered(upload, manifest),
            HubEvent::LookedUp { upload, known } => self.looked_up(upload, known),
            HubEvent::Received { upload, chunk } => self.received(upload, chunk),
            HubEvent::Stored { upload, receipt } => self.finish(upload, UploadReply::Durable(receipt)),
            HubEvent::NotStored { upload, retry_after_ms } => {
                self.finish(upload, UploadReply::Later(Later { retry_after_ms }));
            }
            HubEvent::Gone { upload } => {
                self.uploads.remove(&upload);
            }
        }
        std::mem::take(&mut self.orders)
    }

    fn offered(&mut self, upload: UploadId, bytes: Vec<u8>) {
        if self.uploads.contains_key(&upload) {
            return self.reject(upload, RejectReason::Malformed);
        }
        if self.uploads.len() >= UPLOADS_IN_FLIGHT_MAX {
            return self.finish(upload, UploadReply::Later(Later { retry_after_ms: RETRY_AFTER_MS }));
        }
        let Ok(manifest) = Manifest::decode(&bytes) else {
            return self.reject(upload, RejectReason::Malformed);
        };
        let named =
            Identity { tenant: manifest.tenant.clone(), site: manifest.site.clone(), robot: manifest.robot.clone() };
        if named != self.identity {
            return self.reject(upload, RejectReason::WrongIdentity);
        }
        if manifest.bytes() > self.episode_bytes_max {
            return self.reject(upload, RejectReason::TooLarge);
        }
        let episode = EpisodeId::of(&bytes);
        let manifest = Box::new(manifest);
        self.uploads.insert(upload, Upload::LookingUp { episode, bytes, manifest: manifest.clone() });
        self.orders.push(HubOrder::LookUp { upload, episode, manifest });
    }

    fn looked_up(&mut self, upload: UploadId, known: Known) {
        let Some(Upload::LookingUp { episode, bytes, manifest }) = self.uploads.remove(&upload) else {
            return;
        };
        match known {
            Known::Durable(receipt) => self.finish(upload, UploadReply::Durable(receipt)),
            Known::Conflict => self.reject(upload, RejectReason::Conflict),
            Known::Unavailable { retry_after_ms } => self.finish(upload, UploadReply::Later(Later { retry_after_ms })),
            Known::New { present } => {
                let mut missing = BTreeMap::new();
                // A chunk that the manifest lists twice is wanted once.
                let want = Want::new(
                    manifest
                        .chunks()
                        .map(|chunk| !present.contains(&chunk.id) && missing.insert(chunk.id, chunk.bytes).is_none()),
                );
                if missing.is_empty() {
                    self.uploads.insert(upload, Upload::Committing);
                    self.orders.push(HubOrder::Commit { upload, episode, manifest: bytes, chunks: Vec::new() });
                } else {
                    self.uploads.insert(upload, Upload::Receiving { episode, bytes, missing, chunks: Vec::new() });
                    self.orders.push(HubOrder::Reply { upload, reply: UploadReply::Want(want) });
                }
            }
        }
    }

    fn received(&mut self, upload: UploadId, chunk: ChunkBytes) {
        let Some(Upload::Receiving { missing, chunks, .. }) = self.uploads.get_mut(&upload) else {
            if self.uploads.contains_key(&upload) {
                self.reject(upload, RejectReason::WrongChunk);
            }
            return;
        };
        let expected = missing.remove(&chunk.id);
        if expected != Some(chunk.bytes.len() as u32) || ChunkId::of(&chunk.bytes) != chunk.id {
            return self.reject(upload, RejectReason::WrongChunk);
        }
        chunks.push(chunk);
        if missing.is_empty()
            && let Some(Upload::Receiving { episode, bytes, chunks, .. }) =
                self.uploads.insert(upload, Upload::Committing)
        {
            self.orders.push(HubOrder::Commit { upload, episode, manifest: bytes, chunks });
        }
    }

    fn reject(&mut self, upload: UploadId, reason: RejectReason) {
        self.finish(upload, UploadReply::Reject(Reject { reason }));
    }

    fn finish(&mut self, upload: UploadId, reply: UploadReply) {
        self.uploads.remove(&upload);
        self.orders.push(HubOrder::Reply { upload, reply });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsse::SigningKey;
    use crate::episode::tests::manifest;

    const UPLOAD: UploadId = UploadId(1);

    fn session() -> HubSession {
        let manifest = manifest();
        HubSession::new(Identity { tenant: manifest.tenant, site: manifest.site, robot: manifest.robot }, 1000)
    }

    fn chunk(bytes: &[u8]) -> ChunkBytes {
        ChunkBytes { id: ChunkId::of(bytes), bytes: bytes.to_vec() }
    }

    /// The manifest of an episode with these chunks.
    fn manifest_of(chunks: &[&[u8]]) -> Manifest {
        let mut manifest = manifest();
        let template = manifest.streams[0].chunks[0].clone();
        manifest.streams[0].chunks = chunks
            .iter()
            .map(|bytes| crate::episode::ChunkRef {
                id: ChunkId::of(bytes),
                bytes: bytes.len() as u32,
                ..template.clone()
            })
            .collect();
        manifest.steps = u64::from(template.steps) * chunks.len() as u64;
        manifest
    }

    fn offer(session: &mut HubSession, manifest: &Manifest) -> Vec<HubOrder> {
        session.handle(HubEvent::Offered { upload: UPLOAD, manifest: manifest.encode() })
    }

    fn look_up(session: &mut HubSession, known: Known) -> Vec<HubOrder> {
        session.handle(HubEvent::LookedUp { upload: UPLOAD, known })
    }

    fn receive(session: &mut HubSession, chunk: ChunkBytes) -> Vec<HubOrder> {
        session.handle(HubEvent::Received { upload: UPLOAD, chunk })
    }

    fn rejected(reason: RejectReason) -> Vec<HubOrder> {
        vec![HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Reject(Reject { reason }) }]
    }

    #[test]
    fn durable_follows_only_from_the_store_s_word() {
        let mut session = session();
        let manifest = manifest_of(&[b"a", b"b"]);
        assert!(matches!(offer(&mut session, &manifest)[..], [HubOrder::LookUp { .. }]));
        let present = BTreeSet::from([ChunkId::of(b"a")]);
        let orders = look_up(&mut session, Known::New { present });
        let want = UploadReply::Want(Want { bitmap: vec![0b10] });
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: want }]);
        let orders = receive(&mut session, chunk(b"b"));
        let commit = HubOrder::Commit {
            upload: UPLOAD,
            episode: manifest.id(),
            manifest: manifest.encode(),
            chunks: vec![chunk(b"b")],
        };
        assert_eq!(orders, [commit]);
        let receipt = Receipt::sign(&manifest.tenant, manifest.id(), 1, &SigningKey::from_seed(&[1; 32]));
        let orders = session.handle(HubEvent::Stored { upload: UPLOAD, receipt });
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Durable(receipt) }]);
        assert_eq!(session.open(), 0);
    }

    #[test]
    fn a_failing_store_says_later() {
        let mut session = session();
        let _orders = offer(&mut session, &manifest_of(&[b"a"]));
        let orders = look_up(&mut session, Known::New { present: BTreeSet::from([ChunkId::of(b"a")]) });
        assert!(matches!(orders[..], [HubOrder::Commit { .. }]), "nothing was missing");
        let orders = session.handle(HubEvent::NotStored { upload: UPLOAD, retry_after_ms: 7 });
        let later = UploadReply::Later(Later { retry_after_ms: 7 });
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: later }]);
    }

    #[test]
    fn manifests_that_contradict_the_certificate_are_rejected() {
        for change in [
            (|m: &mut Manifest| m.tenant = "other".parse().unwrap()) as fn(&mut Manifest),
            |m| m.site = "other".parse().unwrap(),
            |m| m.robot = "other".parse().unwrap(),
        ] {
            let mut manifest = manifest_of(&[b"a"]);
            change(&mut manifest);
            assert_eq!(offer(&mut session(), &manifest), rejected(RejectReason::WrongIdentity));
        }
    }

    #[test]
    fn chunks_that_do_not_match_end_the_upload() {
        for bad in [
            chunk(b"unasked"),
            ChunkBytes { id: ChunkId::of(b"a"), bytes: b"x".to_vec() },
            ChunkBytes { id: ChunkId::of(b"a"), bytes: b"aa".to_vec() },
        ] {
            let mut session = session();
            let _orders = offer(&mut session, &manifest_of(&[b"a"]));
            let _orders = look_up(&mut session, Known::New { present: BTreeSet::new() });
            assert_eq!(receive(&mut session, bad), rejected(RejectReason::WrongChunk));
            assert_eq!(session.open(), 0);
            assert!(receive(&mut session, chunk(b"a")).is_empty(), "the upload is over");
        }
    }

    #[test]
    fn a_chunk_listed_twice_is_wanted_once() {
        let mut session = session();
        let _orders = offer(&mut session, &manifest_of(&[b"a", b"a"]));
        let orders = look_up(&mut session, Known::New { present: BTreeSet::new() });
        let want = UploadReply::Want(Want { bitmap: vec![0b01] });
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: want }]);
        assert!(matches!(receive(&mut session, chunk(b"a"))[..], [HubOrder::Commit { .. }]));
    }

    #[test]
    fn malformed_large_and_too_many_offers_are_refused() {
        let mut session = session();
        let orders = session.handle(HubEvent::Offered { upload: UPLOAD, manifest: vec![0xff] });
        assert_eq!(orders, rejected(RejectReason::Malformed));
        let mut large = manifest_of(&[b"a"]);
        large.streams[0].chunks[0].bytes = 1001;
        assert_eq!(offer(&mut session, &large), rejected(RejectReason::TooLarge));
        for n in 0..UPLOADS_IN_FLIGHT_MAX as u64 {
            let manifest = manifest_of(&[b"a"]).encode();
            let orders = session.handle(HubEvent::Offered { upload: UploadId(10 + n), manifest });
            assert!(matches!(orders[..], [HubOrder::LookUp { .. }]));
        }
        let orders = offer(&mut session, &manifest_of(&[b"a"]));
        assert!(matches!(orders[..], [HubOrder::Reply { reply: UploadReply::Later(_), .. }]));
    }

    #[test]
    fn what_is_known_already_is_answered_at_once() {
        let manifest = manifest_of(&[b"a"]);
        let receipt = Receipt::sign(&manifest.tenant, manifest.id(), 1, &SigningKey::from_seed(&[1; 32]));
        let mut first = session();
        let _orders = offer(&mut first, &manifest);
        let orders = look_up(&mut first, Known::Durable(receipt));
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Durable(receipt) }]);
        let mut second = session();
        let _orders = offer(&mut second, &manifest);
        assert_eq!(look_up(&mut second, Known::Conflict), rejected(RejectReason::Conflict));
    }
}
