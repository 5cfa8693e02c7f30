//! What a robot is asked for on its control stream.

use zunft_protocol::limits::WANTED_PER_MESSAGE_MAX;

use super::*;

#[tokio::test]
async fn a_robot_is_asked_for_what_comes_after_though_what_was_asked_first_never_came() {
    let folder = tempfile::tempdir().unwrap();
    let hub = started(folder.path()).await;
    let credentials = hub.add_robot(&identity("r1")).await.unwrap();
    let mut manifest = episode("r1", 0).manifest;
    let mut ids = Vec::new();
    for ordinal in 0..=WANTED_PER_MESSAGE_MAX as u64 {
        manifest.ordinal = ordinal;
        ids.push(manifest.id());
        hub.metadata().note_episode(&tenant(), manifest.id(), &manifest, 0).await.unwrap();
    }
    hub.request_episodes(&tenant(), &ids).await.unwrap();
    let mut robot = TestRobot::connect(hub.quic_addr(), &credentials).await.unwrap();
    let (newest, others) = ids.split_last().unwrap();
    assert!(robot.wanted().await == others, "the oldest first");
    hub.request_episodes(&tenant(), &[*newest]).await.unwrap();
    let next = robot.wanted().await;
    assert_eq!(next[0], *newest);
    assert!(next[1..] == others[..WANTED_PER_MESSAGE_MAX - 1], "and then the first again");
    hub.shutdown().await;
}
