//! Chunks that are on their way into the store while their upload is gone.

use zunft_protocol::limits::UPLOAD_BYTES_HELD_MAX;

use super::*;

/// Bytes of one chunk here.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks that are set down together.
const SET_DOWN: usize = UPLOAD_BYTES_HELD_MAX as usize / 2 / CHUNK_BYTES;

/// Time within which a hub that nothing holds up gives memory back, even on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An episode of more than is set down together; what is in it is nobody's business but a trainer's.
fn long_episode() -> crate::fixtures::Episode {
    let mut episode = episode("r1", 0);
    episode.chunks = (0..=SET_DOWN).map(|number| vec![number as u8; CHUNK_BYTES]).collect();
    let listed =
        episode.chunks.iter().map(|chunk| ChunkRef { id: ChunkId::of(chunk), bytes: chunk.len() as u32, steps: 1 });
    episode.manifest.streams[0].chunks = listed.collect();
    episode.manifest.steps = episode.chunks.len() as u64;
    episode
}

#[tokio::test]
async fn what_is_set_down_takes_its_memory_until_the_store_has_it_though_its_upload_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::of_objects(Arc::new(object_store::memory::InMemory::new()));
    let hub = Hub::start_with_store(config(folder.path()), store.clone()).await.unwrap();
    let robot = robot(&hub, "r1").await;
    // As long as this is held the store takes nothing in.
    let slow = store.deleting().await;
    let episode = long_episode();
    let mut upload = robot.offer(&episode.manifest).await;
    assert!(matches!(upload.first, Message::Want(_)), "{:?}", upload.first);
    for index in 0..SET_DOWN {
        upload.send(Message::Chunk(episode.chunk(index))).await;
    }
    upload.break_off().await;
    let reserved = hub.ingest_bytes_reserved();
    assert!(reserved >= (SET_DOWN * CHUNK_BYTES) as u64, "{reserved} bytes are reserved for what waits for the store");
    drop(slow);
    let given_back = async {
        while hub.ingest_bytes_reserved() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, given_back).await.expect("memory stays reserved");
    robot.upload_durably(&episode).await;
    hub.shutdown().await;
}
