//! The hub's side of one robot's uploads: what is admitted, wanted, verified and acknowledged.
//!
//! Pure. The shell looks up what the store has, keeps verified chunks, commits, and only then tells
//! [`HubEvent::Stored`]; DURABLE follows from nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::UploadReply;
use crate::episode::Manifest;
use crate::ids::{ChunkId, EpisodeId, RobotId, SiteId, TenantId};
use crate::limits::{RESUMES_MAX, UPLOAD_BYTES_HELD_MAX, UPLOADS_IN_FLIGHT_MAX};
use crate::message::{ChunkBytes, ChunkRest, Later, Receipt, Reject, RejectReason, Resume, Want};

/// Wait asked of a robot that offers more at once than it may.
const RETRY_AFTER_MS: u32 = 1000;

/// Bytes of verified chunks that are set down together: half of what an upload may hold, so that the other half can
/// come meanwhile.
const SET_DOWN_BYTES: u64 = UPLOAD_BYTES_HELD_MAX / 2;

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
    /// As `New`, and an upload of it broke off before.
    Begun {
        /// Chunks that need not be sent.
        present: BTreeSet<ChunkId>,
        /// What arrived then.
        kept: Kept,
    },
    /// The store cannot say now.
    Unavailable {
        /// When it may.
        retry_after_ms: u32,
    },
}

/// What a broken-off upload leaves: nothing of it is sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Chunks that arrived whole and were verified.
    pub chunks: Vec<ChunkBytes>,
    /// Beginnings of chunks, not verified: their hash decides when they are whole.
    pub prefixes: BTreeMap<ChunkId, Vec<u8>>,
}

impl Kept {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        let chunks: usize = self.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        let prefixes: usize = self.prefixes.values().map(Vec::len).sum();
        (chunks + prefixes) as u64
    }
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
    /// The robot says what it has, and offers no more than the manifest.
    Described {
        /// On which stream.
        upload: UploadId,
        /// The encoded manifest.
        manifest: Vec<u8>,
    },
    /// The answer to [`HubOrder::Note`]: it is written down.
    Noted {
        /// On which stream.
        upload: UploadId,
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
    /// The robot sends a chunk from where an earlier upload broke off.
    ReceivedRest {
        /// On which stream.
        upload: UploadId,
        /// The chunk's end.
        rest: ChunkRest,
    },
    /// The store's answer to [`HubOrder::Commit`]: it survives a power cut.
    Stored {
        /// On which stream.
        upload: UploadId,
        /// The signed word.
        receipt: Receipt,
    },
    /// The store could not commit, or not set down.
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
    /// Write down that the robot has this episode. The answer is [`HubEvent::Noted`] or [`HubEvent::NotStored`].
    Note {
        /// For which stream.
        upload: UploadId,
        /// The episode.
        episode: EpisodeId,
    },
    /// Send this; after anything but WANT the stream is finished.
    Reply {
        /// On which stream.
        upload: UploadId,
        /// What.
        reply: UploadReply,
    },
    /// Make these chunks durable ahead of their episode, so that memory does not have to hold all of it. The answer
    /// is [`HubEvent::NotStored`] or nothing; more chunks may come before it.
    SetDown {
        /// For which stream.
        upload: UploadId,
        /// Verified chunks; the session forgets them.
        chunks: Vec<ChunkBytes>,
    },
    /// Commit the episode with the chunks it lacked, all verified, but for those that were set down before.
    Commit {
        /// For which stream.
        upload: UploadId,
        /// The episode.
        episode: EpisodeId,
        /// Its manifest as offered: these bytes hash to the episode's id.
        manifest: Vec<u8>,
        /// The chunks that the store lacked and that were not set down.
        chunks: Vec<ChunkBytes>,
    },
}

#[derive(Debug)]
enum Upload {
    LookingUp { episode: EpisodeId, bytes: Vec<u8>, manifest: Box<Manifest>, whole: bool },
    Noting,
    Receiving(Receiving),
    Committing,
}

#[derive(Debug)]
struct Receiving {
    episode: EpisodeId,
    bytes: Vec<u8>,
    /// Chunks that are not whole yet, and their sizes.
    missing: BTreeMap<ChunkId, u32>,
    /// What is, without what was set down.
    kept: Kept,
    /// Bytes of its chunks.
    held: u64,
}

impl Receiving {
    /// Adds what arrived of a chunk that never became whole.
    fn begin(&mut self, arrived: ChunkRest) {
        let Some(&size) = self.missing.get(&arrived.id) else { return };
        let mut prefix = self.kept.prefixes.remove(&arrived.id).unwrap_or_default();
        // A robot that sends from elsewhere than asked says nothing about the bytes in between.
        if arrived.from as usize > prefix.len() {
            return;
        }
        prefix.truncate(arrived.from as usize);
        prefix.extend(arrived.bytes);
        if prefix.len() < size as usize {
            self.kept.prefixes.insert(arrived.id, prefix);
        }
    }
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
            HubEvent::Offered { upload, manifest } => self.offered(upload, manifest, true),
            HubEvent::Described { upload, manifest } => self.offered(upload, manifest, false),
            HubEvent::Noted { upload } => self.finish(upload, UploadReply::Noted),
            HubEvent::LookedUp { upload, known } => self.looked_up(upload, known),
            HubEvent::Received { upload, chunk } => self.received(upload, chunk),
            HubEvent::ReceivedRest { upload, rest } => self.received_rest(upload, rest),
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

    /// Ends an upload whose stream broke, with what arrived of the chunk under way, and returns what is worth keeping
    /// for its next offer.
    #[must_use]
    pub fn break_off(&mut self, upload: UploadId, arrived: Option<ChunkRest>) -> Option<(EpisodeId, Kept)> {
        let Some(Upload::Receiving(mut receiving)) = self.uploads.remove(&upload) else { return None };
        if let Some(arrived) = arrived {
            receiving.begin(arrived);
        }
        (receiving.kept.bytes() > 0).then_some((receiving.episode, receiving.kept))
    }

    fn offered(&mut self, upload: UploadId, bytes: Vec<u8>, whole: bool) {
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
        self.uploads.insert(upload, Upload::LookingUp { episode, bytes, manifest: manifest.clone(), whole });
        self.orders.push(HubOrder::LookUp { upload, episode, manifest });
    }

    fn looked_up(&mut self, upload: UploadId, known: Known) {
        let Some(Upload::LookingUp { episode, bytes, manifest, whole }) = self.uploads.remove(&upload) else {
            return;
        };
        match known {
            Known::Durable(receipt) => self.finish(upload, UploadReply::Durable(receipt)),
            Known::Conflict => self.reject(upload, RejectReason::Conflict),
            Known::Unavailable { retry_after_ms } => self.finish(upload, UploadReply::Later(Later { retry_after_ms })),
            Known::New { .. } | Known::Begun { .. } if !whole => {
                self.uploads.insert(upload, Upload::Noting);
                self.orders.push(HubOrder::Note { upload, episode });
            }
            Known::New { present } => self.receive(upload, episode, bytes, &manifest, &present, Kept::default()),
            Known::Begun { present, kept } => self.receive(upload, episode, bytes, &manifest, &present, kept),
        }
    }

    /// Asks for what neither the store nor a broken-off upload has.
    fn receive(
        &mut self,
        upload: UploadId,
        episode: EpisodeId,
        bytes: Vec<u8>,
        manifest: &Manifest,
        present: &BTreeSet<ChunkId>,
        mut kept: Kept,
    ) {
        let mut missing: BTreeMap<ChunkId, u32> = manifest
            .chunks()
            .filter(|chunk| !present.contains(&chunk.id))
            .map(|chunk| (chunk.id, chunk.bytes))
            .collect();
        kept.chunks.retain(|chunk| missing.remove(&chunk.id).is_some());
        kept.prefixes.retain(|id, prefix| missing.get(id).is_some_and(|&size| prefix.len() < size as usize));
        if missing.is_empty() {
            return self.commit(upload, episode, bytes, kept.chunks);
        }
        // A chunk that the manifest lists twice is wanted once.
        let mut told = BTreeSet::new();
        let mut want =
            Want::new(manifest.chunks().map(|chunk| missing.contains_key(&chunk.id) && told.insert(chunk.id)));
        want.resume = manifest
            .chunks()
            .enumerate()
            .filter(|(index, _)| want.contains(*index))
            .filter_map(|(index, chunk)| {
                let from = kept.prefixes.get(&chunk.id)?.len() as u32;
                Some(Resume { chunk: index as u32, from })
            })
            .take(RESUMES_MAX)
            .collect();
        let held = kept.chunks.iter().map(|chunk| chunk.bytes.len() as u64).sum();
        self.uploads.insert(upload, Upload::Receiving(Receiving { episode, bytes, missing, kept, held }));
        self.orders.push(HubOrder::Reply { upload, reply: UploadReply::Want(want) });
    }

    fn received(&mut self, upload: UploadId, chunk: ChunkBytes) {
        let Some(Upload::Receiving(Receiving { missing, kept, held, .. })) = self.uploads.get_mut(&upload) else {
            if self.uploads.contains_key(&upload) {
                self.reject(upload, RejectReason::WrongChunk);
            }
            return;
        };
        let expected = missing.remove(&chunk.id);
        if expected != Some(chunk.bytes.len() as u32) || ChunkId::of(&chunk.bytes) != chunk.id {
            return self.reject(upload, RejectReason::WrongChunk);
        }
        kept.prefixes.remove(&chunk.id);
        *held += chunk.bytes.len() as u64;
        kept.chunks.push(chunk);
        if missing.is_empty() {
            if let Some(Upload::Receiving(Receiving { episode, bytes, kept, .. })) = self.uploads.remove(&upload) {
                self.commit(upload, episode, bytes, kept.chunks);
            }
        } else if *held >= SET_DOWN_BYTES {
            *held = 0;
            let chunks = std::mem::take(&mut kept.chunks);
            self.orders.push(HubOrder::SetDown { upload, chunks });
        }
    }

    fn received_rest(&mut self, upload: UploadId, rest: ChunkRest) {
        let Some(Upload::Receiving(Receiving { missing, kept, .. })) = self.uploads.get_mut(&upload) else {
            if self.uploads.contains_key(&upload) {
                self.reject(upload, RejectReason::WrongChunk);
            }
            return;
        };
        let prefix = kept.prefixes.remove(&rest.id).filter(|prefix| prefix.len() == rest.from as usize);
        let Some(mut bytes) = prefix else {
            return self.reject(upload, RejectReason::WrongChunk);
        };
        bytes.extend(rest.bytes);
        if missing.get(&rest.id).is_some_and(|&size| size as usize == bytes.len()) && ChunkId::of(&bytes) != rest.id {
            // Whose fault it is nobody can say: both parts are thrown away, and the whole chunk is asked for next time.
            return self.finish(upload, UploadReply::Later(Later { retry_after_ms: RETRY_AFTER_MS }));
        }
        self.received(upload, ChunkBytes { id: rest.id, bytes });
    }

    fn commit(&mut self, upload: UploadId, episode: EpisodeId, manifest: Vec<u8>, chunks: Vec<ChunkBytes>) {
        self.uploads.insert(upload, Upload::Committing);
        self.orders.push(HubOrder::Commit { upload, episode, manifest, chunks });
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
    fn a_long_episode_is_set_down_in_parts_and_committed_with_the_rest() {
        let mut session = session();
        session.episode_bytes_max = u64::MAX;
        let parts: Vec<Vec<u8>> = (0..40).map(|n| vec![n; 1 << 20]).collect();
        let chunks: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let manifest = manifest_of(&chunks);
        let _orders = offer(&mut session, &manifest);
        let _orders = look_up(&mut session, Known::New { present: BTreeSet::new() });
        let mut down = 0;
        for (index, part) in chunks.iter().enumerate() {
            match receive(&mut session, chunk(part)).as_slice() {
                [] => {}
                [HubOrder::SetDown { chunks, .. }] => {
                    let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
                    assert!(bytes as u64 <= UPLOAD_BYTES_HELD_MAX / 2);
                    down += chunks.len();
                }
                [HubOrder::Commit { chunks, .. }] => {
                    assert_eq!((index, chunks.len()), (39, 40 - down), "what was set down is not there twice");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(down, 32);
        let stored = session.handle(HubEvent::NotStored { upload: UPLOAD, retry_after_ms: 7 });
        assert!(matches!(stored[..], [HubOrder::Reply { reply: UploadReply::Later(_), .. }]), "{stored:?}");
    }

    #[test]
    fn durable_follows_only_from_the_store_s_word() {
        let mut session = session();
        let manifest = manifest_of(&[b"a", b"b"]);
        assert!(matches!(offer(&mut session, &manifest)[..], [HubOrder::LookUp { .. }]));
        let present = BTreeSet::from([ChunkId::of(b"a")]);
        let orders = look_up(&mut session, Known::New { present });
        let want = UploadReply::Want(Want { bitmap: vec![0b10], resume: Vec::new() });
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
        let orders = session.handle(HubEvent::Stored { upload: UPLOAD, receipt: receipt.clone() });
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Durable(receipt) }]);
        assert_eq!(session.open(), 0);
    }

    #[test]
    fn a_description_is_noted_and_brings_neither_chunks_nor_a_commit() {
        let manifest = manifest_of(&[b"a", b"b"]);
        let describe = |session: &mut HubSession| {
            let orders = session.handle(HubEvent::Described { upload: UPLOAD, manifest: manifest.encode() });
            assert!(matches!(orders[..], [HubOrder::LookUp { .. }]));
        };
        let whole: BTreeSet<ChunkId> = [ChunkId::of(b"a"), ChunkId::of(b"b")].into();
        // Although the store has all of its chunks: the robot has not offered the episode.
        for present in [BTreeSet::new(), whole] {
            let mut session = session();
            describe(&mut session);
            let orders = look_up(&mut session, Known::New { present });
            assert_eq!(orders, [HubOrder::Note { upload: UPLOAD, episode: manifest.id() }]);
            let orders = session.handle(HubEvent::Noted { upload: UPLOAD });
            assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Noted }]);
            assert_eq!(session.open(), 0);
        }
        let mut session = session();
        describe(&mut session);
        let _orders = look_up(&mut session, Known::New { present: BTreeSet::new() });
        assert_eq!(receive(&mut session, chunk(b"a")), rejected(RejectReason::WrongChunk));
        describe(&mut session);
        let receipt = Receipt::sign(&manifest.tenant, manifest.id(), 1, &SigningKey::from_seed(&[1; 32]));
        let orders = look_up(&mut session, Known::Durable(receipt.clone()));
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Durable(receipt) }]);
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
        let want = UploadReply::Want(Want { bitmap: vec![0b01], resume: Vec::new() });
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
        let orders = look_up(&mut first, Known::Durable(receipt.clone()));
        assert_eq!(orders, [HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Durable(receipt) }]);
        let mut second = session();
        let _orders = offer(&mut second, &manifest);
        assert_eq!(look_up(&mut second, Known::Conflict), rejected(RejectReason::Conflict));
    }
    /// The answer to an offer of which `kept` arrived before.
    fn take_up(session: &mut HubSession, manifest: &Manifest, kept: Kept) -> Vec<HubOrder> {
        let _orders = offer(session, manifest);
        look_up(session, Known::Begun { present: BTreeSet::new(), kept })
    }

    fn wanted(bitmap: u8, resume: &[(u32, u32)]) -> Vec<HubOrder> {
        let resume = resume.iter().map(|&(chunk, from)| Resume { chunk, from }).collect();
        vec![HubOrder::Reply { upload: UPLOAD, reply: UploadReply::Want(Want { bitmap: vec![bitmap], resume }) }]
    }

    fn rest(whole: &[u8], from: u32) -> ChunkRest {
        ChunkRest { id: ChunkId::of(whole), from, bytes: whole[from as usize..].to_vec() }
    }

    /// What is kept of an upload of `manifest` that broke off after `chunks` and `arrived`.
    fn broken_off(manifest: &Manifest, chunks: &[&[u8]], arrived: ChunkRest) -> Kept {
        let mut session = session();
        let _orders = offer(&mut session, manifest);
        let _orders = look_up(&mut session, Known::New { present: BTreeSet::new() });
        for bytes in chunks {
            assert!(receive(&mut session, chunk(bytes)).is_empty());
        }
        let (episode, kept) = session.break_off(UPLOAD, Some(arrived)).unwrap();
        assert_eq!((episode, session.open()), (manifest.id(), 0));
        kept
    }

    #[test]
    fn what_arrived_before_a_break_is_not_asked_for_again() {
        let manifest = manifest_of(&[b"first", b"second", b"third"]);
        let arrived = ChunkRest { id: ChunkId::of(b"second"), from: 0, bytes: b"sec".to_vec() };
        let kept = broken_off(&manifest, &[b"first"], arrived);
        assert_eq!(kept.bytes(), 8);
        let mut session = session();
        assert_eq!(take_up(&mut session, &manifest, kept), wanted(0b110, &[(1, 3)]));
        assert!(session.handle(HubEvent::ReceivedRest { upload: UPLOAD, rest: rest(b"second", 3) }).is_empty());
        let orders = receive(&mut session, chunk(b"third"));
        let [HubOrder::Commit { chunks, .. }] = &orders[..] else { panic!("{orders:?}") };
        assert_eq!(chunks[..], [chunk(b"first"), chunk(b"second"), chunk(b"third")]);
    }

    #[test]
    fn a_chunk_that_breaks_off_twice_goes_on_from_the_second_break() {
        let manifest = manifest_of(&[b"a long chunk"]);
        let id = ChunkId::of(b"a long chunk");
        let kept = broken_off(&manifest, &[], ChunkRest { id, from: 0, bytes: b"a lo".to_vec() });
        let mut session = session();
        assert_eq!(take_up(&mut session, &manifest, kept), wanted(1, &[(0, 4)]));
        let (_, kept) = session.break_off(UPLOAD, Some(ChunkRest { id, from: 4, bytes: b"ng".to_vec() })).unwrap();
        assert_eq!(take_up(&mut session, &manifest, kept), wanted(1, &[(0, 6)]));
        let orders = session.handle(HubEvent::ReceivedRest { upload: UPLOAD, rest: rest(b"a long chunk", 6) });
        assert!(matches!(&orders[..], [HubOrder::Commit { chunks, .. }] if chunks[..] == [chunk(b"a long chunk")]));
    }

    #[test]
    fn a_beginning_that_does_not_fit_the_hash_is_thrown_away_and_the_chunk_asked_for_whole() {
        let manifest = manifest_of(&[b"chunk"]);
        let kept = broken_off(&manifest, &[], ChunkRest { id: ChunkId::of(b"chunk"), from: 0, bytes: b"XX".to_vec() });
        let mut session = session();
        assert_eq!(take_up(&mut session, &manifest, kept), wanted(1, &[(0, 2)]));
        let orders = session.handle(HubEvent::ReceivedRest { upload: UPLOAD, rest: rest(b"chunk", 2) });
        assert!(matches!(orders[..], [HubOrder::Reply { reply: UploadReply::Later(_), .. }]), "{orders:?}");
        assert_eq!(session.break_off(UPLOAD, None), None, "nothing is kept of it");
        assert_eq!(take_up(&mut session, &manifest, Kept::default()), wanted(1, &[]));
    }

    #[test]
    fn a_rest_that_was_not_asked_for_or_begins_elsewhere_is_rejected() {
        let manifest = manifest_of(&[b"chunk"]);
        let whole = || Kept { prefixes: [(ChunkId::of(b"chunk"), b"ch".to_vec())].into(), chunks: Vec::new() };
        for (kept, rest) in
            [(whole(), rest(b"chunk", 3)), (Kept::default(), rest(b"chunk", 0)), (whole(), rest(b"x", 0))]
        {
            let mut session = session();
            let _orders = take_up(&mut session, &manifest, kept);
            assert_eq!(
                session.handle(HubEvent::ReceivedRest { upload: UPLOAD, rest }),
                rejected(RejectReason::WrongChunk)
            );
        }
    }

    #[test]
    fn what_was_kept_of_another_episode_or_in_excess_is_not_believed() {
        let manifest = manifest_of(&[b"chunk"]);
        let mut kept = Kept { chunks: vec![chunk(b"alien")], prefixes: BTreeMap::new() };
        kept.prefixes.insert(ChunkId::of(b"chunk"), b"longer than it".to_vec());
        kept.prefixes.insert(ChunkId::of(b"alien"), b"al".to_vec());
        assert_eq!(take_up(&mut session(), &manifest, kept), wanted(1, &[]));
        let arrived = ChunkRest { id: ChunkId::of(b"chunk"), from: 3, bytes: b"nk".to_vec() };
        let mut session = session();
        let _orders = take_up(&mut session, &manifest, Kept::default());
        assert_eq!(session.break_off(UPLOAD, Some(arrived)), None, "bytes with a gap before them");
    }
}
