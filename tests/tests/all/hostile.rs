//! Robots with a valid certificate that do everything wrong, and strangers without one: the hub answers with typed
//! refusals, gives back what they took, and serves an honest robot all the while.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectionError, Endpoint};
use tempfile::TempDir;
use tokio::net::UdpSocket;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::{Handle, Hub};
use zunft_hub::identity::RobotIdentity;
use zunft_hub::metadata::EpisodeFilter;
use zunft_protocol::Manifest;
use zunft_protocol::ids::{ChunkId, EpisodeId};
use zunft_protocol::limits::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX, MESSAGE_BYTES_MAX, UPLOADS_IN_FLIGHT_MAX};
use zunft_protocol::message::{ChunkBytes, CloseCode, Fetch, HEADER_BYTES, Message, RejectReason};
use zunft_tests::episode::Episode;
use zunft_tests::peer::{self, Credentials, Peer, Upload};

/// Seconds of standing still that the hub of these tests allows, and for greeting it: an honest robot on a busy machine
/// needs far less.
const STALL_SECS: u64 = 3;
const GREETING_SECS: u64 = 5;

/// Nothing here takes half as long, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Strangers that begin a handshake and say no more: far more than may be under way without a proven address.
const STRANGERS: usize = 300;

/// Larger than any UDP packet.
const PACKET_BYTES_MAX: usize = 65_536;

/// A hub in this process, an honest robot, and an endpoint for hostile ones.
struct World {
    hub: Handle,
    endpoint: Endpoint,
    honest: Peer,
    honest_uploads: u64,
    _folder: TempDir,
}

fn identity(robot: &str) -> RobotIdentity {
    RobotIdentity {
        tenant: zunft_hub::pki::default_tenant(),
        site: "hall".parse().unwrap(),
        robot: robot.parse().unwrap(),
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = HubConfig { data_dir: folder.path().join("hub"), ..HubConfig::default() };
        config.quic.listen = loopback();
        config.store.commit_interval_millis = 2;
        config.limits.stall_secs = STALL_SECS;
        config.limits.episode_bytes_max = 64 << 20;
        config.limits.greeting_secs = GREETING_SECS;
        let hub = Hub::start(config).await.unwrap();
        let endpoint = Endpoint::client(loopback()).unwrap();
        let honest = robot(&hub, &endpoint, "honest").await;
        Self { hub, endpoint, honest, honest_uploads: 0, _folder: folder }
    }

    /// Another robot, connected and greeted.
    async fn robot(&self, name: &str) -> Peer {
        robot(&self.hub, &self.endpoint, name).await
    }

    /// The honest robot uploads an episode.
    async fn honest_is_served(&mut self) {
        let episode = Episode::new(&identity("honest"), self.honest_uploads, 3);
        self.honest_uploads += 1;
        let receipt = self.honest.upload(&episode).await.unwrap();
        assert_eq!(receipt.episode, episode.manifest.id());
    }

    /// Whatever was done, the honest robot is served, nothing else is stored, and no memory stays reserved.
    async fn is_well(&mut self, others_stored: u64) {
        self.is_well_but_for(others_stored, 0).await;
    }

    /// As [`Self::is_well`], with at most `kept_bytes` of uploads that broke off, which are kept for their robots.
    async fn is_well_but_for(&mut self, others_stored: u64, kept_bytes: u64) {
        self.honest_is_served().await;
        let given_back = async {
            while self.hub.ingest_bytes_reserved() > kept_bytes {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, given_back).await.expect("memory stays reserved");
        let metadata = self.hub.metadata();
        let stored = metadata.episode_count(&identity("any").tenant, &EpisodeFilter::default()).await.unwrap();
        assert_eq!(stored, self.honest_uploads + others_stored);
    }
}

async fn robot(hub: &Handle, endpoint: &Endpoint, name: &str) -> Peer {
    let credentials = Credentials::from(&hub.add_robot(&identity(name)).await.unwrap());
    Peer::connect(endpoint, hub.quic_addr(), credentials.client_config().unwrap()).await.unwrap()
}

/// A header made by hand, with a checksum that fits nothing.
fn header(message_type: u16, schema: u16, flags: u32, body_bytes: u32) -> Vec<u8> {
    let mut bytes = message_type.to_le_bytes().to_vec();
    bytes.extend_from_slice(&schema.to_le_bytes());
    for word in [flags, body_bytes, 0xdead_beef] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    assert_eq!(bytes.len(), HEADER_BYTES);
    bytes
}

fn offer(manifest: &Manifest) -> Vec<u8> {
    Message::Offer(manifest.encode()).encode()
}

async fn rejection(upload: &mut Upload) -> RejectReason {
    match upload.hear().await.unwrap() {
        Message::Reject(reject) => reject.reason,
        other => panic!("{other:?} where a rejection belongs"),
    }
}

#[tokio::test]
async fn what_is_no_message_or_out_of_place_ends_the_connection_and_says_why() {
    let mut world = World::start().await;
    let manifest = Episode::new(&identity("x"), 0, 1).manifest;
    let chunk = Message::Chunk(ChunkBytes { id: ChunkId::of(b"x"), bytes: b"x".to_vec() }).encode();
    let mut flipped = offer(&manifest);
    *flipped.last_mut().unwrap() ^= 1;
    let violations = [
        ("noise", vec![0xff; 64]),
        ("an unknown type", header(999, 1, 0, 0)),
        ("an unknown schema", header(16, 2, 0, 8)),
        ("unknown flags", header(16, 1, 1, 8)),
        ("the largest length there is", header(16, 1, 0, u32::MAX)),
        ("a manifest over its bound", header(16, 1, 0, MANIFEST_BYTES_MAX as u32 + 1)),
        ("a chunk over its bound", header(20, 1, 0, 32 + CHUNK_BYTES_MAX as u32 + 1)),
        ("a report over its bound", header(1, 1, 0, MESSAGE_BYTES_MAX as u32 + 1)),
        ("a flipped byte", flipped),
        ("a chunk before any offer", chunk.clone()),
        ("a message of the hub", Message::Missing.encode()),
        ("an offer where its chunks belong", offer(&Episode::new(&identity("h11"), 0, 1).manifest).repeat(2)),
    ];
    for (number, (what, bytes)) in violations.into_iter().enumerate() {
        let hostile = world.robot(&format!("h{number}")).await;
        let _stream = hostile.say(&bytes).await.unwrap();
        assert_eq!(hostile.closed().await, Some(CloseCode::Protocol), "{what}");
        world.honest_is_served().await;
    }
    for (number, bytes) in [vec![0xff; 64], offer(&manifest), chunk].into_iter().enumerate() {
        let mut hostile = world.robot(&format!("c{number}")).await;
        hostile.control.write_all(&bytes).await.unwrap();
        assert_eq!(hostile.closed().await, Some(CloseCode::Protocol), "{number} on the control stream");
    }
    world.is_well(0).await;
    world.hub.shutdown().await;
}

#[tokio::test]
async fn messages_that_are_cut_off_leave_at_most_their_bytes_behind_and_the_robot_may_go_on() {
    let mut world = World::start().await;
    let robot = world.robot("r1").await;
    let episode = Episode::new(&identity("r1"), 0, 3);
    let offer = offer(&episode.manifest);
    for cut in [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, offer.len() / 2, offer.len() - 1] {
        let mut stream = robot.say(&offer[..cut]).await.unwrap();
        // This is what a process that dies looks like: the stream ends as if all were said.
        stream.send.finish().unwrap();
        assert!(stream.hear().await.is_err(), "an answer to {cut} bytes of an offer");
    }
    let chunk = Message::Chunk(episode.chunks[0].clone()).encode();
    for cut in [0, 10, chunk.len() - 1] {
        let mut stream = robot.say(&offer).await.unwrap();
        assert!(matches!(stream.hear().await.unwrap(), Message::Want(_)));
        stream.send.write_all(&chunk[..cut]).await.unwrap();
        stream.send.finish().unwrap();
        assert!(stream.hear().await.is_err(), "an answer to {cut} bytes of a chunk");
    }
    // Memory is given out in whole KiB.
    world.is_well_but_for(0, (chunk.len() as u64).next_multiple_of(1024)).await;
    robot.upload(&episode).await.unwrap();
    world.is_well(1).await;
    world.hub.shutdown().await;
}

#[tokio::test]
async fn chunks_that_are_wrong_unwanted_or_sent_twice_are_rejected() {
    let mut world = World::start().await;
    let robot = world.robot("r1").await;
    let episode = Episode::new(&identity("r1"), 0, 2);
    let [first, second] = episode.chunks.as_slice() else { panic!("two chunks") };
    let mut flipped = first.clone();
    flipped.bytes[20] ^= 1;
    let stranger = ChunkBytes { id: ChunkId::of(b"stranger"), bytes: b"stranger".to_vec() };
    let mut longer = first.clone();
    longer.bytes.push(0);
    let swapped = ChunkBytes { id: first.id, bytes: second.bytes.clone() };
    for (what, chunks) in [
        ("a flipped byte", vec![flipped]),
        ("a chunk of another episode", vec![stranger]),
        ("a byte too many", vec![longer]),
        ("the bytes of another chunk", vec![swapped]),
        ("the same chunk twice", vec![first.clone(), first.clone()]),
    ] {
        let mut upload = robot.offer(&episode.manifest).await.unwrap();
        assert!(matches!(upload.hear().await.unwrap(), Message::Want(_)));
        for chunk in chunks {
            upload.send.write_all(&Message::Chunk(chunk).encode()).await.unwrap();
        }
        assert_eq!(rejection(&mut upload).await, RejectReason::WrongChunk, "{what}");
    }
    world.is_well(0).await;
    robot.upload(&episode).await.unwrap();
    world.is_well(1).await;
    world.hub.shutdown().await;
}

#[tokio::test]
async fn replayed_offers_store_nothing_twice_and_take_no_more_than_their_share() {
    let mut world = World::start().await;
    let robot = world.robot("r1").await;
    let (stored, open) = (Episode::new(&identity("r1"), 0, 2), Episode::new(&identity("r1"), 1, 2));
    let receipt = robot.upload(&stored).await.unwrap();
    for _ in 0..20 {
        let mut replay = robot.offer(&stored.manifest).await.unwrap();
        assert_eq!(replay.hear().await.unwrap(), Message::Durable(receipt.clone()));
    }
    // The same new episode on many streams at once: a bounded number is wanted, the rest is told to come later.
    let mut streams = Vec::new();
    let (mut wanted, mut later) = (0, 0);
    for _ in 0..UPLOADS_IN_FLIGHT_MAX + 4 {
        let mut stream = robot.offer(&open.manifest).await.unwrap();
        match stream.hear().await.unwrap() {
            Message::Want(_) => wanted += 1,
            Message::Later(_) => later += 1,
            other => panic!("{other:?} to a replayed offer"),
        }
        streams.push(stream);
    }
    assert_eq!((wanted, later), (UPLOADS_IN_FLIGHT_MAX, 4));
    assert!(world.hub.ingest_bytes_reserved() > 0);
    // All of them complete: one commits, the others find it there.
    for stream in &mut streams[..UPLOADS_IN_FLIGHT_MAX] {
        for chunk in &open.chunks {
            stream.send.write_all(&Message::Chunk(chunk.clone()).encode()).await.unwrap();
        }
    }
    for stream in &mut streams[..UPLOADS_IN_FLIGHT_MAX] {
        let answer = stream.hear().await.unwrap();
        assert!(matches!(&answer, Message::Durable(receipt) if receipt.episode == open.manifest.id()), "{answer:?}");
    }
    world.is_well(2).await;
    world.hub.shutdown().await;
}

#[tokio::test]
async fn manifests_that_lie_are_rejected_and_blobs_of_others_are_missing() {
    let mut world = World::start().await;
    let robot = world.robot("r1").await;
    let honest = Episode::new(&identity("r1"), 0, 2);
    type Lie = (&'static str, RejectReason, fn(&mut Manifest));
    let lies: [Lie; 7] = [
        ("another tenant", RejectReason::WrongIdentity, |manifest| manifest.tenant = "other".parse().unwrap()),
        ("another site", RejectReason::WrongIdentity, |manifest| manifest.site = "ulm".parse().unwrap()),
        ("another robot", RejectReason::WrongIdentity, |manifest| manifest.robot = "honest".parse().unwrap()),
        ("more than an episode may have", RejectReason::TooLarge, |manifest| {
            let stream = &mut manifest.streams[0];
            let fake = |number: u32| zunft_protocol::episode::ChunkRef {
                id: ChunkId::of(&number.to_le_bytes()),
                bytes: CHUNK_BYTES_MAX as u32,
                steps: 1,
            };
            stream.chunks = (0..100).map(fake).collect();
            manifest.steps = 100;
        }),
        ("steps that no chunk has", RejectReason::Malformed, |manifest| manifest.steps += 1),
        ("a name that databases refuse", RejectReason::Malformed, |manifest| manifest.embodiment.name.push('\0')),
        ("no version that there is", RejectReason::Malformed, |manifest| manifest.version = 99),
    ];
    for (what, reason, lie) in lies {
        let mut manifest = honest.manifest.clone();
        lie(&mut manifest);
        let mut upload = robot.offer(&manifest).await.unwrap();
        assert_eq!(rejection(&mut upload).await, reason, "{what}");
    }
    let mut noise = robot.say(&Message::Offer(vec![0xa5; 5000]).encode()).await.unwrap();
    assert_eq!(rejection(&mut noise).await, RejectReason::Malformed);
    let digest = zunft_protocol::ids::Digest::of(b"a secret of others");
    let mut fetch = robot.say(&Message::Fetch(Fetch { digest, offset: u64::MAX }).encode()).await.unwrap();
    assert_eq!(fetch.hear().await.unwrap(), Message::Missing);
    world.is_well(0).await;
    world.hub.shutdown().await;
}

/// The episode's manifest, whose first chunk has as many bytes as a chunk may have.
fn promising(episode: &Episode) -> Manifest {
    let mut manifest = episode.manifest.clone();
    manifest.streams[0].chunks[0].bytes = CHUNK_BYTES_MAX as u32;
    manifest
}

#[tokio::test]
async fn what_is_announced_in_the_place_of_a_chunk_that_the_hub_lacks_is_refused_at_its_header() {
    let mut world = World::start().await;
    let stored = Episode::new(&identity("u0"), 0, 2);
    world.robot("u0").await.upload(&stored).await.unwrap();
    let stored = stored.manifest.streams[0].chunks[0].clone();
    let announced = [
        ("an offer", header(16, 1, 0, MANIFEST_BYTES_MAX as u32)),
        ("a description", header(23, 1, 0, MANIFEST_BYTES_MAX as u32)),
        ("a report", header(1, 1, 0, MESSAGE_BYTES_MAX as u32)),
        ("a chunk of the largest size", header(20, 1, 0, 32 + CHUNK_BYTES_MAX as u32)),
        ("the end of one", header(22, 1, 0, 36 + CHUNK_BYTES_MAX as u32)),
        ("a chunk as large as one that is stored", header(20, 1, 0, 32 + stored.bytes)),
    ];
    for (number, (what, header)) in announced.into_iter().enumerate() {
        let name = format!("u{}", number + 1);
        let hostile = world.robot(&name).await;
        // One chunk is stored, the other has one byte.
        let mut manifest = Episode::new(&identity(&name), 0, 2).manifest;
        manifest.streams[0].chunks[0] = stored.clone();
        manifest.streams[0].chunks[1].bytes = 1;
        let mut upload = hostile.offer(&manifest).await.unwrap();
        assert!(matches!(upload.hear().await.unwrap(), Message::Want(_)));
        upload.send.write_all(&header).await.unwrap();
        assert!(upload.hear().await.is_err());
        // A hub that waits for the rest gives up the stream alone, and later.
        let end = hostile.connection.close_reason();
        assert_eq!(end.as_ref().and_then(peer::close_code), Some(CloseCode::Protocol), "{what}: {end:?}");
    }
    let mut hostile = world.robot("c0").await;
    hostile.control.write_all(&header(16, 1, 0, MANIFEST_BYTES_MAX as u32)).await.unwrap();
    let end = hostile.connection.closed().await;
    assert!(end.to_string().contains("announced a message of"), "a manifest on the control stream: {end}");
    world.is_well(1).await;
    world.hub.shutdown().await;
}

/// Writes a byte now and then until the hub has had enough.
async fn dribble(stream: &mut quinn::SendStream) {
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    let dribbling = async {
        while stream.write_all(&[0]).await.is_ok() {
            beat.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, dribbling).await.expect("a byte now and then counts as progress");
}

#[tokio::test]
async fn streams_that_dribble_stand_still_or_never_end_are_given_up() {
    let mut world = World::start().await;
    let robot = world.robot("slow").await;
    let episode = Episode::new(&identity("slow"), 0, 2);
    // A chunk that is announced as large and comes byte by byte: its memory is held no longer than the bound.
    let mut upload = robot.offer(&promising(&episode)).await.unwrap();
    assert!(matches!(upload.hear().await.unwrap(), Message::Want(_)));
    upload.send.write_all(&header(20, 1, 0, CHUNK_BYTES_MAX as u32)).await.unwrap();
    assert!(world.hub.ingest_bytes_reserved() > 0);
    let mut silent = robot.offer(&Episode::new(&identity("slow"), 1, 2).manifest).await.unwrap();
    assert!(matches!(silent.hear().await.unwrap(), Message::Want(_)));
    let mut mute = robot.say(&header(16, 1, 0, MANIFEST_BYTES_MAX as u32)).await.unwrap();
    tokio::join!(dribble(&mut upload.send), dribble(&mut mute.send), world.honest_is_served());
    assert!(silent.hear().await.is_err(), "a stream on which nothing comes is given up too");
    world.is_well(0).await;
    // The robot itself is still welcome.
    robot.upload(&episode).await.unwrap();

    // More streams than a robot may have: the ones over the bound wait on the robot's side.
    let mut streams = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), robot.say(&[16])).await {
        streams.push(stream);
        assert!(streams.len() < 2 * UPLOADS_IN_FLIGHT_MAX, "a robot has as many streams as it likes");
    }
    world.honest_is_served().await;
    // All of them are given up in time, and the robot has its streams back.
    for stream in &mut streams {
        assert!(stream.hear().await.is_err());
    }
    let again = Episode::new(&identity("slow"), 2, 2);
    drop(streams);
    robot.upload(&again).await.unwrap();
    world.is_well(2).await;

    // A report that never ends.
    let mut endless = world.robot("endless").await;
    endless.control.write_all(&header(1, 1, 0, MESSAGE_BYTES_MAX as u32)).await.unwrap();
    dribble(&mut endless.control).await;
    assert_eq!(endless.closed().await, Some(CloseCode::Protocol));
    world.is_well(2).await;
    world.hub.shutdown().await;
}

#[tokio::test]
async fn connections_that_never_speak_are_closed_and_strangers_cost_nothing() {
    let mut world = World::start().await;
    // Strangers: their first packets reach the hub, its answers reach nobody.
    let (sink, forward) = (UdpSocket::bind(loopback()).await.unwrap(), UdpSocket::bind(loopback()).await.unwrap());
    let config = Credentials::from(&world.hub.add_robot(&identity("mute")).await.unwrap()).client_config().unwrap();
    let strangers = Endpoint::client(loopback()).unwrap();
    let mut begun = Vec::new();
    for _ in 0..STRANGERS {
        let to = sink.local_addr().unwrap();
        begun.push(strangers.connect_with(config.clone(), to, zunft_hub::pki::HUB_DNS_NAME).unwrap());
        let mut packet = vec![0; PACKET_BYTES_MAX];
        let bytes = sink.recv(&mut packet).await.unwrap();
        forward.send_to(&packet[..bytes], world.hub.quic_addr()).await.unwrap();
    }
    // A robot that comes now has to show its address first, and is served.
    let late = world.robot("late").await;
    late.upload(&Episode::new(&identity("late"), 0, 2)).await.unwrap();

    // Certified robots that say nothing at all.
    let mut silent = Vec::new();
    for number in 0..20 {
        let credentials = Credentials::from(&world.hub.add_robot(&identity(&format!("s{number}"))).await.unwrap());
        let config = credentials.client_config().unwrap();
        silent.push(peer::connect(&world.endpoint, world.hub.quic_addr(), config).await.unwrap());
    }
    world.honest_is_served().await;
    for connection in silent {
        let end = connection.closed().await;
        assert_eq!(peer::close_code(&end), Some(CloseCode::Protocol), "{end}");
    }
    world.is_well(1).await;
    drop(begun);
    world.hub.shutdown().await;
}

#[tokio::test]
async fn a_second_agent_with_the_same_certificate_is_refused_however_often_it_comes() {
    let mut world = World::start().await;
    let credentials = Credentials::from(&world.hub.add_robot(&identity("r1")).await.unwrap());
    let config = credentials.client_config().unwrap();
    let address = world.hub.quic_addr();
    let first = Peer::connect(&world.endpoint, address, config.clone()).await.unwrap();
    for _ in 0..40 {
        let second = peer::connect(&world.endpoint, address, config.clone()).await.unwrap();
        let end = second.closed().await;
        assert_eq!(peer::close_code(&end), Some(CloseCode::DuplicateIdentity), "{end}");
    }
    let receipt = first.upload(&Episode::new(&identity("r1"), 0, 2)).await.unwrap();
    assert_eq!(receipt.episode, EpisodeId::of(&Episode::new(&identity("r1"), 0, 2).manifest.encode()));
    assert!(!matches!(first.connection.close_reason(), Some(ConnectionError::ApplicationClosed(_))));
    world.is_well(1).await;
    world.hub.shutdown().await;
}
