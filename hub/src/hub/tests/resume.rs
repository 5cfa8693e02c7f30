//! Uploads that break off inside a chunk, and what is sent after it.

use zunft_protocol::message::{ChunkRest, HEADER_BYTES, Resume, Want};

use super::*;
use crate::fixtures::Episode;

/// Bytes of a chunk's message before the chunk's own.
const BEFORE: usize = HEADER_BYTES + 32;

/// Sends the first chunk and `arrived` bytes of the second, as `alter` leaves them; then the connection breaks, and the
/// robot is back. Returns what the hub wants now.
async fn break_off(
    hub: &Handle,
    episode: &Episode,
    arrived: usize,
    alter: impl Fn(&mut [u8]),
) -> (TestRobot, robot::Upload, Want) {
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let mut robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    let mut upload = robot.offer(&episode.manifest).await;
    upload.send(Message::Chunk(episode.chunk(0))).await;
    let mut second = Message::Chunk(episode.chunk(1)).encode();
    second.truncate(BEFORE + arrived);
    alter(&mut second[BEFORE..]);
    upload.send.write_all(&second).await.unwrap();
    // What is answered was sent after the chunk.
    robot.ping(7).await;
    robot.leave();
    let robot = TestRobot::connect_patiently(hub.quic_addr(), &credentials).await;
    let upload = robot.offer(&episode.manifest).await;
    let Message::Want(want) = upload.first.clone() else { panic!("{:?} to an offer", upload.first) };
    (robot, upload, want)
}

#[tokio::test]
async fn an_upload_that_broke_off_inside_a_chunk_goes_on_from_its_last_byte() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let episode = episode("r1", 0);
    let (_robot, mut upload, want) = break_off(&hub, &episode, 9, |_| {}).await;
    assert!(!want.contains(0), "the first chunk arrived whole");
    assert_eq!(want.resume, [Resume { chunk: 1, from: 9 }]);
    let whole = episode.chunk(1);
    upload.send(Message::ChunkRest(ChunkRest { id: whole.id, from: 9, bytes: whole.bytes[9..].to_vec() })).await;
    for index in (2..episode.chunks.len()).filter(|&index| want.contains(index)) {
        upload.send(Message::Chunk(episode.chunk(index))).await;
    }
    assert!(matches!(upload.reply().await, Message::Durable(_)));
    assert_eq!(stored(&hub).await, [episode.manifest.id()]);
    hub.shutdown().await;
}

#[tokio::test]
async fn a_beginning_that_was_altered_is_thrown_away_and_the_episode_arrives_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let episode = episode("r1", 0);
    let (robot, mut upload, want) = break_off(&hub, &episode, 9, |bytes| bytes[3] ^= 1).await;
    assert_eq!(want.resume, [Resume { chunk: 1, from: 9 }]);
    let whole = episode.chunk(1);
    upload.send(Message::ChunkRest(ChunkRest { id: whole.id, from: 9, bytes: whole.bytes[9..].to_vec() })).await;
    assert!(matches!(upload.reply().await, Message::Later(_)), "not rejected: the robot is not to blame");
    assert!(stored(&hub).await.is_empty());
    let again = robot.offer(&episode.manifest).await;
    let Message::Want(want) = again.first.clone() else { panic!("{:?} to an offer", again.first) };
    assert!(want.resume.is_empty());
    drop(again);
    robot.upload_durably(&episode).await;
    hub.shutdown().await;
}

#[tokio::test]
async fn what_a_robot_left_is_not_told_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let first = episode("r1", 0);
    let (_robot, _upload, _want) = break_off(&hub, &first, 9, |_| {}).await;
    let mut others = episode("r2", 0);
    others.chunks = first.chunks.clone();
    others.manifest.streams[0].chunks = first.manifest.streams[0].chunks.clone();
    let other = robot(&hub, "r2").await;
    let upload = other.offer(&others.manifest).await;
    let Message::Want(want) = upload.first.clone() else { panic!("{:?} to an offer", upload.first) };
    assert_eq!((want.count(), want.resume.len()), (others.chunks.len(), 0));
    hub.shutdown().await;
}
