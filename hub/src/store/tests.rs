//! What the store promises.

use std::fs;
use std::time::Duration;

use super::commit::{Whole, write_pack};
use super::pack::{Directory, EntryKind};
use super::*;
use crate::fixtures::{Episode, episode, tenant};
use crate::metadata::{EpisodeFilter, Metadata};

fn submission(episode: &Episode) -> Submission {
    let whole = Whole {
        episode: episode.manifest.id(),
        manifest: episode.manifest.clone(),
        manifest_bytes: episode.manifest.encode(),
    };
    Submission { tenant: tenant(), chunks: episode.chunk_bytes(), whole: Some(whole) }
}

async fn metadata(folder: &Path) -> Metadata {
    let metadata = Metadata::open_file(&folder.join("metadata.sqlite")).await.unwrap();
    metadata.add_tenant(&tenant(), 0).await.unwrap();
    metadata
}

#[test]
fn a_local_store_syncs_what_it_writes() {
    // What fsync does shows only when the power goes; that it is asked for shows here.
    let folder = tempfile::tempdir().unwrap();
    let (objects, _) = local::open(folder.path()).unwrap();
    assert!(format!("{objects:?}").contains("fsync: true"), "{objects:?}");
}

#[test]
fn half_written_files_are_swept_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let packs = folder.path().join("t/default/packs");
    fs::create_dir_all(&packs).unwrap();
    for name in ["a.pack", "a.pack#1", "b.pack#27"] {
        fs::write(packs.join(name), "x").unwrap();
    }
    Store::open_local(folder.path()).unwrap();
    let left: Vec<_> = fs::read_dir(&packs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["a.pack"]);
}

#[tokio::test]
async fn episodes_that_come_together_share_a_pack_that_describes_itself() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = metadata(folder.path()).await;
    let store = Store::open_local(&folder.path().join("store")).unwrap();
    let (committer, task) = Committer::new(store, metadata.clone(), Duration::from_secs(1), 64 << 20);
    let episodes: Vec<Episode> = (0..20).map(|ordinal| episode("r1", ordinal)).collect();
    let committing = async move {
        let commits = episodes.iter().map(|episode| committer.commit(submission(episode)));
        assert!(futures::future::join_all(commits).await.iter().all(Result::is_ok));
    };
    tokio::join!(committing, task.run());
    let packs = folder.path().join("store/t/default/packs");
    let packs: Vec<_> = fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(packs.len(), 1);
    let (directory, _) = Directory::read(&fs::read(&packs[0]).unwrap()).unwrap();
    let manifests = directory.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest).count();
    assert_eq!((directory.tenant, manifests), (tenant(), 20));
    assert_eq!(metadata.episode_count(&tenant(), &EpisodeFilter::default()).await.unwrap(), 20);
}

#[tokio::test]
async fn a_hub_killed_between_pack_and_metadata_leaves_no_half_state() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let episode = episode("r1", 0);
    {
        let metadata = metadata(folder.path()).await;
        let store = Store::open_local(&path).unwrap();
        write_pack(&store, &tenant(), vec![submission(&episode)]).await.unwrap();
        // Here the power goes: the pack is on disk, the metadata has not heard of it, the robot of nothing.
        assert_eq!(metadata.episode_count(&tenant(), &EpisodeFilter::default()).await.unwrap(), 0);
        metadata.close().await;
    }
    let metadata = metadata(folder.path()).await;
    let store = Store::open_local(&path).unwrap();
    assert!(metadata.present_chunks(&tenant(), &[episode.chunk(0).id]).await.unwrap().is_empty());
    let (committer, task) = Committer::new(store, metadata.clone(), Duration::ZERO, 64 << 20);
    let committing = async move {
        // The robot offers again, and the very same pack comes of it.
        committer.commit(submission(&episode)).await.unwrap();
    };
    tokio::join!(committing, task.run());
    assert_eq!(metadata.episode_count(&tenant(), &EpisodeFilter::default()).await.unwrap(), 1);
}
