//! A whole hub, spoken to over real QUIC on loopback by robots that know nothing but the protocol.

mod resume;
mod robot;
mod set_down;
mod wanted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use zunft_protocol::chunk::{Sample, SampleChunkBuilder, Schema};
use zunft_protocol::embodiment::{Encoding, Feature};
use zunft_protocol::episode::Outcome;
use zunft_protocol::episode::{ChunkRef, Stream};
use zunft_protocol::ids::{ChunkId, Digest, RecordingId};
use zunft_protocol::limits::MANIFEST_BYTES_MAX;
use zunft_protocol::message::{CloseCode, EvictionReason, HEADER_BYTES, Later, Message, RejectReason, Tombstone};
use zunft_protocol::release::{Trust, TrustError, parse_envelope};
use zunft_skills::data::EpisodeSource as _;
use zunft_skills::package::PackageError;

use super::*;
use crate::fixtures::{body, config, episode, identity, tenant, write_package};
use crate::metadata::{NewChunk, NewPack};
use robot::TestRobot;

async fn started(folder: &Path) -> Handle {
    Hub::start(config(folder)).await.unwrap()
}

async fn robot(hub: &Handle, name: &str) -> TestRobot {
    let credentials = hub.add_robot(&identity(name)).await.unwrap();
    TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap()
}

async fn stored(hub: &Handle) -> Vec<EpisodeId> {
    let page = hub.episodes(&tenant(), &EpisodeFilter::default(), 1000).await.unwrap();
    page.episodes.iter().map(|episode| episode.id).collect()
}

#[tokio::test]
async fn an_uploaded_episode_is_durable_listed_once_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    let episode = episode("r1", 0);
    let receipt = robot.upload_durably(&episode).await;
    assert_eq!(receipt.episode, episode.manifest.id());
    assert!(receipt.verify(&tenant(), &robot.root.assigners));
    let again = robot.offer(&episode.manifest).await;
    assert_eq!(again.first, Message::Durable(receipt.clone()), "nothing is sent twice");
    let mut other = episode.manifest.clone();
    other.outcome = Outcome::Failure;
    assert_eq!(robot.offer(&other).await.rejection(), Some(RejectReason::Conflict));
    hub.shutdown().await;
    assert_eq!(robot.closed().await, Some(CloseCode::Stopping));

    let hub = started(folder.path()).await;
    assert_eq!(stored(&hub).await, [episode.manifest.id()]);
    let (_, manifest) = hub.episode(&tenant(), episode.manifest.id()).await.unwrap().unwrap();
    assert_eq!(manifest, episode.manifest);
    let robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    assert_eq!(robot.offer(&episode.manifest).await.first, Message::Durable(receipt));
    hub.shutdown().await;
}

#[tokio::test]
async fn what_a_robot_gave_up_is_known_for_good_before_the_robot_may_forget_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let mut robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    let tombstone = |ordinal: u64| Tombstone {
        recording: RecordingId::from_bytes([ordinal as u8; 16]),
        ordinal,
        task: "push".parse().unwrap(),
        outcome: Outcome::Unknown,
        interventions: ordinal == 7,
        steps: 10 + ordinal,
        bytes: 1000,
        reason: EvictionReason::Quota,
    };
    assert_eq!(robot.tell_evictions(vec![tombstone(3), tombstone(7)]).await, [3, 7]);
    // The answer was lost: the robot tells again, and more.
    assert_eq!(robot.tell_evictions(vec![tombstone(3), tombstone(4)]).await, [3, 4]);
    hub.shutdown().await;
    let hub = started(folder.path()).await;
    let told = |records: Vec<EvictionRecord>| -> Vec<Tombstone> {
        records.into_iter().map(|record| record.tombstone).collect()
    };
    let robot = "r1".parse().unwrap();
    let all = hub.evictions(&tenant(), &robot, None, 10).await.unwrap();
    let first = all[0].cursor();
    assert_eq!(told(all), [tombstone(3), tombstone(4), tombstone(7)]);
    assert_eq!(told(hub.evictions(&tenant(), &robot, Some(first), 1).await.unwrap()), [tombstone(4)]);
    let other = hub.evictions(&tenant(), &"r2".parse().unwrap(), None, 10).await.unwrap();
    assert!(other.is_empty(), "another robot's");
    hub.shutdown().await;
}

#[tokio::test]
async fn an_upload_that_broke_off_is_taken_up_and_known_chunks_are_not_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let robot = robot(&hub, "r1").await;
    let (first, mut second) = (episode("r1", 0), episode("r1", 1));
    robot.upload_durably(&first).await;
    // The second episode shares a chunk with the first.
    second.chunks[0] = first.chunks[0].clone();
    second.manifest.streams[0].chunks[0] = first.manifest.streams[0].chunks[0].clone();
    let mut upload = robot.offer(&second.manifest).await;
    let Message::Want(want) = &upload.first else { panic!("{:?}", upload.first) };
    assert_eq!((want.contains(0), want.contains(1)), (false, true));
    drop(upload.send.reset(0_u32.into()));
    drop(upload);
    let mut upload = robot.offer(&second.manifest).await;
    upload.send(Message::Chunk(second.chunk(1))).await;
    assert!(matches!(upload.reply().await, Message::Durable(_)));
    assert_eq!(stored(&hub).await.len(), 2);
    hub.shutdown().await;
}

#[tokio::test]
async fn what_contradicts_certificate_or_manifest_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let robot = robot(&hub, "r1").await;
    for change in [
        |manifest: &mut Manifest| manifest.tenant = "other".parse().unwrap(),
        |manifest: &mut Manifest| manifest.site = "ulm".parse().unwrap(),
        |manifest: &mut Manifest| manifest.robot = "r2".parse().unwrap(),
    ] {
        let mut manifest = episode("r1", 0).manifest;
        change(&mut manifest);
        assert_eq!(robot.offer(&manifest).await.rejection(), Some(RejectReason::WrongIdentity));
    }
    let episode = episode("r1", 0);
    let mut flipped = episode.chunk(0);
    flipped.bytes[20] ^= 1;
    let mut upload = robot.offer(&episode.manifest).await;
    upload.send(Message::Chunk(flipped)).await;
    let Message::Reject(reject) = upload.reply().await else { panic!("a flipped byte was taken") };
    assert_eq!(reject.reason, RejectReason::WrongChunk);
    assert!(stored(&hub).await.is_empty());
    robot.upload_durably(&episode).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn chunks_of_another_tenant_are_wanted_as_if_nobody_had_them() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let robot = robot(&hub, "r1").await;
    let episode = episode("r1", 0);
    // Another tenant holds the very same chunks.
    let other = "other".parse().unwrap();
    hub.metadata().add_tenant(&other, 0).await.unwrap();
    let chunk = |chunk: ChunkBytes| NewChunk { id: chunk.id, position: 8, bytes: chunk.bytes.len() as u32 };
    let chunks = episode.chunk_bytes().into_iter().map(chunk).collect();
    let pack = NewPack { pack: Digest::of(b"a pack of the other"), bytes: 1000, chunks, episodes: Vec::new() };
    hub.metadata().register_pack(&other, &pack, 0).await.unwrap();
    let Message::Want(want) = robot.offer(&episode.manifest).await.first else { panic!("the offer was not taken") };
    assert_eq!(want.count(), episode.chunks.len(), "the robot learned what another tenant has");
    robot.upload_durably(&episode).await;
    let ids: Vec<ChunkId> = episode.manifest.chunks().map(|chunk| chunk.id).collect();
    assert_eq!(hub.metadata().present_chunks(&tenant(), &ids).await.unwrap().len(), ids.len());
    hub.shutdown().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_end_the_connection_and_not_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let hostile = robot(&hub, "r1").await;
    hostile.send_raw(&[0xff; 64]).await;
    assert_eq!(hostile.closed().await, Some(CloseCode::Protocol));
    let good = robot(&hub, "r2").await;
    good.upload_durably(&episode("r2", 0)).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn robots_of_another_hub_and_unknown_ones_are_turned_away() {
    let (folder, other_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (hub, other) = (started(folder.path()).await, started(other_folder.path()).await);
    let mut foreign = other.add_robot(&identity("r1")).await.unwrap();
    assert!(TestRobot::connect(hub.quic_addr(), &foreign).await.is_err(), "the robot does not trust this hub");
    foreign.ca_pem = hub.pki().ca_pem().to_owned();
    assert!(TestRobot::connect(hub.quic_addr(), &foreign).await.is_err(), "the hub does not trust this robot");
    // Certified by the right authority, but never registered: as after a restored backup.
    let unknown = hub.pki().issue_robot(&identity("r9"), clock::unix_secs()).unwrap();
    let refused = TestRobot::connect(hub.quic_addr(), &unknown).await.err().unwrap();
    assert_eq!(refused, Some(CloseCode::UnknownRobot));
    hub.shutdown().await;
    other.shutdown().await;
}

#[tokio::test]
async fn a_second_agent_is_refused_while_the_first_lives_and_replaces_a_dead_one() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let address = hub.quic_addr();
    let first = TestRobot::connect(address, &credentials).await.unwrap();
    let refused = TestRobot::connect(address, &credentials).await.err().unwrap();
    assert_eq!(refused, Some(CloseCode::DuplicateIdentity));
    first.upload_durably(&episode("r1", 0)).await;
    first.leave();

    // Killed: its runtime is gone before it could say goodbye.
    let killed_credentials = credentials.clone();
    let killed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let robot = TestRobot::connect_patiently(address, &killed_credentials).await;
            std::mem::forget(robot);
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(move || killed.join().unwrap()).await.unwrap();
    let next = TestRobot::connect_patiently(address, &credentials).await;
    next.upload_durably(&episode("r1", 1)).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn robots_of_a_killed_hub_notice_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let first_config = config(folder.path());
    // Killed: the hub's runtime is gone before it could close anything.
    let killed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let hub = killed.spawn(Hub::start(first_config.clone())).await.unwrap().unwrap();
    let (added, address) = (hub.clone(), hub.quic_addr());
    let credentials = killed.spawn(async move { added.add_robot(&identity("r1")).await.unwrap() }).await.unwrap();
    let robot = TestRobot::connect(address, &credentials).await.unwrap();
    let receipt = robot.upload_durably(&episode("r1", 0)).await;
    killed.shutdown_background();
    drop(hub);

    let mut second_config = first_config;
    second_config.quic.listen = address;
    let hub = loop {
        // The killed runtime's threads let go of port and lock one after the other.
        match Hub::start(second_config.clone()).await {
            Ok(hub) => break hub,
            Err(StartError::DataDir(_) | StartError::Listen(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    robot.speak().await;
    assert!(robot.was_reset().await, "told at once, long before any idle timeout");
    let robot = TestRobot::connect(address, &credentials).await.unwrap();
    assert_eq!(robot.offer(&episode("r1", 0).manifest).await.first, Message::Durable(receipt));
    hub.shutdown().await;
}

#[tokio::test]
async fn a_full_disk_acknowledges_nothing_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let full = Arc::new(AtomicBool::new(true));
    let objects = FullDisk { full: full.clone(), inner: object_store::memory::InMemory::new() };
    let store = Store::of_objects(Arc::new(objects));
    let hub = Hub::start_with_store(config(folder.path()), store).await.unwrap();
    let robot = robot(&hub, "r1").await;
    let episode = episode("r1", 0);
    let mut upload = robot.offer(&episode.manifest).await;
    for chunk in episode.chunk_bytes() {
        upload.send(Message::Chunk(chunk)).await;
    }
    assert!(matches!(upload.reply().await, Message::Later(later) if later.retry_after_ms > 0));
    let import = hub.import_episode(episode.manifest.encode(), episode.chunks.clone()).await;
    assert!(matches!(import, Err(ImportError::Full)));
    assert!(stored(&hub).await.is_empty());
    full.store(false, Ordering::SeqCst);
    robot.upload_durably(&episode).await;
    assert_eq!(stored(&hub).await.len(), 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_release_is_published_assigned_pushed_and_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let mut robot = robot(&hub, "r1").await;
    robot.report(0, None).await;
    let package = write_package(folder.path(), 1);
    let published = hub.publish(&tenant(), &package).await.unwrap();
    assert_eq!(hub.publish(&tenant(), &package).await.unwrap(), published, "again changes nothing");
    let release = published.release.clone();
    hub.assign(&tenant(), &AssignTo::All, &release).await.unwrap();

    let envelope = robot.assignment().await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let mut trust = Trust::pin(&credentials.root, identity("r1").robot, 0).unwrap();
    let envelope = parse_envelope("assignment", &envelope).unwrap();
    let assignment = trust.accept_assignment(&envelope, clock::unix_secs()).unwrap();
    assert_eq!((assignment.sequence, assignment.releases.len()), (1, 1));
    let signed = robot.fetch(assignment.releases[0].envelope, 0).await.unwrap();
    let manifest = trust.accept_release(&signed, &assignment, &body()).unwrap();
    for file in &manifest.files {
        let whole = robot.fetch(file.digest, 0).await.unwrap();
        assert_eq!((whole.len() as u64, Digest::of(&whole)), (file.bytes, file.digest));
        let rest = robot.fetch(file.digest, 3).await.unwrap();
        assert_eq!(rest, whole[3..], "a download resumes where it broke off");
    }
    assert_eq!(robot.fetch(Digest::of(b"a secret of others"), 0).await, None);
    let mut other_body = body();
    other_body.name = "crane".into();
    assert!(matches!(trust.accept_release(&signed, &assignment, &other_body), Err(TrustError::WrongEmbodiment { .. })));
    hub.shutdown().await;
}

#[tokio::test]
async fn a_robot_that_was_away_hears_its_assignment_and_only_once() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let published = hub.publish(&tenant(), &write_package(folder.path(), 1)).await.unwrap();
    hub.assign(&tenant(), &AssignTo::All, &published.release).await.unwrap();
    let mut robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    robot.report(0, None).await;
    robot.assignment().await;
    robot.report(1, Some(body().id())).await;
    // The next thing it hears is the next assignment: nothing was repeated.
    let published = hub.publish(&tenant(), &write_package(folder.path(), 2)).await.unwrap();
    let to = AssignTo::Robots(vec![identity("r1").robot]);
    hub.assign(&tenant(), &to, &published.release).await.unwrap();
    let envelope = parse_envelope("assignment", &robot.assignment().await).unwrap();
    let mut trust = Trust::pin(&credentials.root, identity("r1").robot, 1).unwrap();
    let assignment = trust.accept_assignment(&envelope, clock::unix_secs()).unwrap();
    assert_eq!((assignment.sequence, assignment.releases[0].release.to_string()), (2, "push@2".into()));
    let status = hub.robot(&tenant(), &identity("r1").robot).await.unwrap().unwrap();
    assert!(status.connected);
    assert_eq!(status.record.embodiment, Some(body().id()));
    assert_eq!(status.record.report.unwrap().assignment_sequence, 1);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_robot_is_told_what_it_may_upload_first_of_all_and_on_every_change_that_concerns_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    hub.add_robot(&identity("r2")).await.unwrap();
    let mut robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    assert_eq!(robot.allowed, PushedPolicy::default(), "said although there is none: the robot waits for it");
    let capped = |rate| HubPolicy { bytes_per_second_max: Some(rate), ..HubPolicy::default() };
    let of = |name: &str| PolicyScope::Robot(identity(name).robot);
    let set = async |scope: &PolicyScope, policy: Option<&HubPolicy>| {
        hub.set_upload_policy(&tenant(), scope, policy).await.unwrap().revision
    };
    let first = set(&PolicyScope::Tenant, Some(&capped(5000))).await;
    assert_eq!(robot.policy().await, PushedPolicy { revision: first, policy: Some(capped(5000)) });
    // Another robot's is not its business: what it hears next is its own.
    set(&of("r2"), Some(&capped(7000))).await;
    let own = set(&of("r1"), Some(&capped(6000))).await;
    assert_eq!(robot.policy().await, PushedPolicy { revision: own, policy: Some(capped(6000)) });
    let mut changes = hub.changes();
    robot.report(0, None).await;
    let status = loop {
        let status = hub.robot(&tenant(), &identity("r1").robot).await.unwrap().unwrap();
        if let Some(report) = &status.record.report {
            assert_eq!(report.upload_policy_revision, own);
            break status;
        }
        changes.recv().await.unwrap();
    };
    assert_eq!(status.upload_policy, (robot.allowed.clone(), Some(of("r1"))));
    drop(robot);
    let cleared = set(&of("r1"), None).await;
    let robot = TestRobot::connect_patiently(hub.quic_addr(), &credentials).await;
    assert_eq!(robot.allowed, PushedPolicy { revision: cleared, policy: Some(capped(5000)) });
    hub.shutdown().await;
}

#[tokio::test]
async fn releases_altered_out_of_order_or_for_nobody_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let third = write_package(folder.path(), 3);
    let error = hub.publish(&tenant(), &third).await.unwrap_err();
    assert!(matches!(error, PublishError::Version { expected: SkillVersion(1), .. }), "{error}");
    let first = write_package(folder.path(), 1);
    let model = first.join("model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&model, bytes).unwrap();
    let error = hub.publish(&tenant(), &first).await.unwrap_err();
    assert!(matches!(error, PublishError::Package(PackageError::Digest { .. })), "{error}");
    assert!(hub.metadata().releases(&tenant()).await.unwrap().is_empty(), "nothing is half published");
    std::fs::remove_dir_all(&first).unwrap();
    let published = hub.publish(&tenant(), &write_package(folder.path(), 1)).await.unwrap();
    let nobody = hub.assign(&tenant(), &AssignTo::All, &published.release).await;
    assert!(matches!(nobody, Err(AssignError::Nobody { .. })));
    let to = AssignTo::Robots(vec!["ghost".parse().unwrap()]);
    assert!(matches!(hub.assign(&tenant(), &to, &published.release).await, Err(AssignError::NoRobot { .. })));
    let unknown = "weld@1".parse().unwrap();
    assert!(matches!(hub.assign(&tenant(), &to, &unknown).await, Err(AssignError::NoRelease { .. })));
    hub.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_is_frozen_and_reads_back_verified() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    for (robot, ordinal) in [("r2", 0), ("r1", 1), ("r1", 0)] {
        let episode = episode(robot, ordinal);
        hub.import_episode(episode.manifest.encode(), episode.chunks).await.unwrap();
    }
    let filter = EpisodeFilter { tasks: vec!["push".parse().unwrap()], ..EpisodeFilter::default() };
    let record = hub.create_snapshot(&tenant(), &filter).await.unwrap();
    assert_eq!(hub.create_snapshot(&tenant(), &filter).await.unwrap(), record, "the same selection");
    let later = episode("r3", 0);
    hub.import_episode(later.manifest.encode(), later.chunks).await.unwrap();
    let mut source = hub.snapshot_source(&tenant(), record.id).await.unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let listed = source.snapshot().episodes.clone();
        let first = Manifest::decode(&source.manifest(listed[0].id).unwrap()).unwrap();
        let chunks: Vec<_> = first.chunks().map(|chunk| source.chunk(chunk.id).unwrap()).collect();
        (listed, first, chunks)
    });
    let (listed, first, chunks) = read.await.unwrap();
    let order: Vec<_> = listed.iter().map(|episode| (episode.robot.as_str(), episode.ordinal)).collect();
    assert_eq!(order, [("r1", 0), ("r1", 1), ("r2", 0)]);
    assert_eq!((first, chunks), (episode("r1", 0).manifest, episode("r1", 0).chunks));
    let none = EpisodeFilter { tasks: vec!["weld".parse().unwrap()], ..EpisodeFilter::default() };
    assert!(matches!(hub.create_snapshot(&tenant(), &none).await, Err(SnapshotStoreError::Empty { .. })));
    hub.shutdown().await;
}

#[tokio::test]
async fn many_robots_upload_at_once_and_each_episode_arrives_once() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let mut changes = hub.changes();
    let uploads = (0..8).map(|number| {
        let hub = hub.clone();
        async move {
            let name = format!("r{number}");
            let robot = robot(&hub, &name).await;
            for ordinal in 0..10 {
                robot.upload_durably(&episode(&name, ordinal)).await;
            }
        }
    });
    futures::future::join_all(uploads).await;
    assert_eq!(stored(&hub).await.len(), 80);
    let packs = std::fs::read_dir(folder.path().join("hub/store/t/default/packs")).unwrap().count();
    assert!(packs < 80, "{packs} packs: commits were shared");
    let mut told = 0;
    while let Ok(change) = changes.try_recv() {
        told += usize::from(matches!(change, Change::Episode { .. }));
    }
    assert_eq!(told, 80);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = config(folder.path());
    config.quic.listen = taken.local_addr().unwrap();
    let error = Hub::start(config).await.unwrap_err();
    let StartError::Listen(error) = error else { panic!("{error}") };
    assert!(error.to_string().contains("quic.listen"), "{error}");
}

/// A store whose disk is full while the flag says so.
#[derive(Debug)]
struct FullDisk {
    full: Arc<AtomicBool>,
    inner: object_store::memory::InMemory,
}

impl std::fmt::Display for FullDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("full disk")
    }
}

#[async_trait]
impl ObjectStore for FullDisk {
    async fn put_opts(&self, key: &Key, payload: PutPayload, opts: PutOptions) -> object_store::Result<PutResult> {
        if self.full.load(Ordering::SeqCst) {
            let source = Box::new(std::io::Error::from(std::io::ErrorKind::StorageFull));
            return Err(object_store::Error::Generic { store: "full disk", source });
        }
        self.inner.put_opts(key, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        key: &Key,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(key, opts).await
    }

    async fn get_opts(&self, key: &Key, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(key, options).await
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An episode of `r1` with a camera beside its steps.
fn episode_with_camera() -> crate::fixtures::Episode {
    let mut episode = episode("r1", 0);
    let camera = Feature::camera("top", 480, 640, 30.0, Encoding::Jpeg);
    let mut builder = SampleChunkBuilder::new(Encoding::Jpeg);
    for time in 0..3 {
        builder.push(&Sample { monotonic_ns: time, key_frame: true, bytes: &[0xff, 0xd8, time as u8] });
    }
    let (stored, steps) = builder.finish().unwrap();
    let chunks = vec![ChunkRef { id: ChunkId::of(&stored), bytes: stored.len() as u32, steps }];
    let (name, schema) = (camera.name.clone(), Schema::stream(&camera));
    episode.manifest.streams.push(Stream { name, schema, chunks });
    episode.manifest.embodiment.features.push(camera);
    episode.chunks.push(stored);
    episode
}

#[tokio::test]
async fn a_camera_s_stream_is_kept_and_training_reads_past_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let robot = robot(&hub, "r1").await;
    let episode = episode_with_camera();
    robot.upload_durably(&episode).await;
    let (_, manifest) = hub.episode(&tenant(), episode.manifest.id()).await.unwrap().unwrap();
    assert_eq!(manifest, episode.manifest);
    let images = manifest.streams[1].chunks[0].id;
    assert_eq!(hub.chunk(&tenant(), images).await.unwrap().as_deref(), Some(&episode.chunks[2][..]));
    let snapshot = hub.create_snapshot(&tenant(), &EpisodeFilter::default()).await.unwrap();
    let mut source = hub.snapshot_source(&tenant(), snapshot.id).await.unwrap();
    let loaded = tokio::task::spawn_blocking(move || {
        zunft_skills::data::Dataset::load(&mut source, &zunft_skills::data::Selection::default()).unwrap()
    });
    let dataset = loaded.await.unwrap();
    assert_eq!((dataset.steps(), dataset.observation_dim), (10, 2));
    assert_eq!(dataset.streams_left_out(), ["observation.images.top"]);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_large_manifest_waits_for_memory_before_it_is_read() {
    const TRIES_MAX: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let robot = robot(&hub, "r1").await;
    let mut episode = episode("r1", 0);
    // Names of an embodiment are the cheapest way to a manifest above what every robot may send unasked.
    episode.manifest.embodiment.name = "x".repeat(100_000);
    // It promises the largest manifest there is, and says no more: this robot's part is taken.
    let promise = Message::Offer(vec![0; MANIFEST_BYTES_MAX]).encode();
    let stalled = robot.begin(&promise[..HEADER_BYTES + 1]).await;
    let refused = Message::Later(Later { retry_after_ms: 500 });
    for tries in 0.. {
        // The hub looks at streams in an order of its own: the first offers may come before the promise.
        if robot.offer(&episode.manifest).await.first == refused {
            break;
        }
        assert!(tries < TRIES_MAX, "the hub read a manifest that it had no memory for");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(stalled);
    for tries in 0.. {
        if !matches!(robot.offer(&episode.manifest).await.first, Message::Later(_)) {
            break;
        }
        assert!(tries < TRIES_MAX, "the memory was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    robot.upload_durably(&episode).await;
    assert_eq!(stored(&hub).await, [episode.manifest.id()]);
    hub.shutdown().await;
}
