//! An episode larger than a hub's memory for it: set down in parts, taken up where it broke off, whole in the end.

use quinn::Endpoint;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use zunft_hub::config::HubConfig;
use zunft_hub::hub::{Handle, Hub};
use zunft_hub::identity::RobotIdentity;
use zunft_protocol::episode::ChunkRef;
use zunft_protocol::ids::ChunkId;
use zunft_protocol::limits::{CHUNK_BYTES_MAX, UPLOAD_BYTES_HELD_MAX};
use zunft_protocol::message::{ChunkBytes, Message, Want};
use zunft_tests::episode::Episode;
use zunft_tests::peer::{Credentials, Peer};

/// Chunks of the largest size.
const CHUNKS: usize = 100;

/// Of which so many arrive before the hub is restarted.
const BEFORE: usize = 60;

fn identity() -> RobotIdentity {
    RobotIdentity {
        tenant: zunft_hub::pki::default_tenant(),
        site: "hall".parse().unwrap(),
        robot: "r1".parse().unwrap(),
    }
}

/// An hour of cameras, in short: every chunk is as large as chunks may be.
fn episode() -> Episode {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut episode = Episode::new(&identity(), 0, 1);
    let chunk = |_| {
        let mut bytes = vec![0; CHUNK_BYTES_MAX];
        random.fill_bytes(&mut bytes);
        ChunkBytes { id: ChunkId::of(&bytes), bytes }
    };
    episode.chunks = (0..CHUNKS).map(chunk).collect();
    let listed =
        episode.chunks.iter().map(|chunk| ChunkRef { id: chunk.id, bytes: chunk.bytes.len() as u32, steps: 1 });
    episode.manifest.streams[0].chunks = listed.collect();
    episode.manifest.steps = CHUNKS as u64;
    episode
}

async fn want(peer: &Peer, episode: &Episode) -> (zunft_tests::peer::Upload, Want) {
    let mut upload = peer.offer(&episode.manifest).await.unwrap();
    match upload.hear().await.unwrap() {
        Message::Want(want) => (upload, want),
        other => panic!("{other:?} to an offer"),
    }
}

async fn peer(hub: &Handle, endpoint: &Endpoint, credentials: &Credentials) -> Peer {
    Peer::connect(endpoint, hub.quic_addr(), credentials.client_config().unwrap()).await.unwrap()
}

#[tokio::test]
async fn an_episode_larger_than_its_memory_is_set_down_in_parts_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = HubConfig { data_dir: folder.path().join("hub"), ..HubConfig::default() };
    config.quic.listen = "127.0.0.1:0".parse().unwrap();
    config.store.pack_bytes_max = 8 << 20;
    config.limits.ingest_bytes_max = 80 << 20;
    let episode = episode();
    assert!(episode.manifest.bytes() > config.limits.ingest_bytes_max as u64);
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();

    let hub = Hub::start(config.clone()).await.unwrap();
    let credentials = Credentials::from(&hub.add_robot(&identity()).await.unwrap());
    let robot = peer(&hub, &endpoint, &credentials).await;
    let (mut upload, wanted) = want(&robot, &episode).await;
    assert!((0..CHUNKS).all(|index| wanted.contains(index)));
    for chunk in &episode.chunks[..BEFORE] {
        upload.send.write_all(&Message::Chunk(chunk.clone()).encode()).await.unwrap();
        assert!(hub.ingest_bytes_reserved() <= UPLOAD_BYTES_HELD_MAX);
    }
    // The hub forgets what it holds in memory, and not what it has set down.
    hub.shutdown().await;
    drop(robot);

    let hub = Hub::start(config).await.unwrap();
    let robot = peer(&hub, &endpoint, &credentials).await;
    let (mut upload, wanted) = want(&robot, &episode).await;
    let missing: Vec<usize> = (0..CHUNKS).filter(|&index| wanted.contains(index)).collect();
    let held = (UPLOAD_BYTES_HELD_MAX as usize).div_ceil(CHUNK_BYTES_MAX);
    assert!((CHUNKS - BEFORE..=CHUNKS - BEFORE + held + 8).contains(&missing.len()), "{} are missing", missing.len());
    for &index in &missing {
        upload.send.write_all(&Message::Chunk(episode.chunks[index].clone()).encode()).await.unwrap();
    }
    let answer = upload.hear().await.unwrap();
    assert!(matches!(&answer, Message::Durable(receipt) if receipt.episode == episode.manifest.id()), "{answer:?}");
    let tenant = identity().tenant;
    for chunk in &episode.chunks {
        assert!(hub.chunk(&tenant, chunk.id).await.unwrap().unwrap() == chunk.bytes, "a chunk was altered");
    }
    hub.shutdown().await;
}
