//! What the store promises.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use zunft_protocol::dsse::SigningKey;

use super::commit::{Register, Whole, write_pack};
use super::pack::{Directory, EntryKind};
use super::*;
use crate::fixtures::servers::TestDatabase;
use crate::fixtures::{Episode, episode, tenant};
use crate::metadata::{EpisodeFilter, Metadata, MetadataError, NewPack, Registered};

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
        // The first comes twice, and one more does not come whole.
        let twice = episodes.iter().chain(&episodes[..1]);
        let commits = twice.map(|episode| committer.commit(submission(episode)));
        let part = Submission { whole: None, ..submission(&episode("r1", 20)) };
        let (commits, part) = tokio::join!(futures::future::join_all(commits), committer.commit(part));
        part.unwrap();
        let key = SigningKey::from_seed(&[7; 32]);
        let mut signatures = BTreeSet::new();
        for (committed, episode) in commits.into_iter().zip(episodes.iter().chain(&episodes[..1])) {
            let receipt = committed.unwrap().receipt(&tenant(), episode.manifest.id(), &key);
            assert_eq!(receipt.episode, episode.manifest.id());
            assert!(receipt.verify(&tenant(), &[key.public()]));
            signatures.insert(receipt.signature);
        }
        assert_eq!(signatures.len(), 1, "what is durable at the same time is signed once");
    };
    tokio::join!(committing, task.run());
    let packs = folder.path().join("store/t/default/packs");
    let packs: Vec<_> = fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(packs.len(), 1);
    let (directory, _) = Directory::read(&fs::read(&packs[0]).unwrap()).unwrap();
    let manifests = directory.entries.iter().filter(|entry| entry.kind == EntryKind::Manifest).count();
    assert_eq!((directory.tenant, manifests), (tenant(), 21), "the one that came twice is there twice");
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

/// SQLite that refuses U+0000 in names, as PostgreSQL does.
#[derive(Debug)]
struct Strict(Metadata);

#[derive(Debug, thiserror::Error)]
#[error("invalid byte sequence")]
struct InvalidByte;

impl sqlx::error::DatabaseError for InvalidByte {
    fn message(&self) -> &str {
        "invalid byte sequence"
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        sqlx::error::ErrorKind::Other
    }
}

impl Register for Strict {
    async fn register(
        &self,
        tenant: &TenantId,
        pack: &NewPack,
        now_unix_ms: u64,
    ) -> Result<Vec<Registered>, MetadataError> {
        if pack.episodes.iter().any(|episode| episode.manifest.embodiment.name.contains('\0')) {
            return Err(MetadataError::Database(sqlx::Error::Database(Box::new(InvalidByte))));
        }
        self.0.register(tenant, pack, now_unix_ms).await
    }
}

/// Commits two episodes, one that the database refuses, and chunks of a fourth, all in one pack.
async fn commit_with_a_refused_one(register: impl Register, metadata: &Metadata) {
    let store = Store::of_objects(Arc::new(object_store::memory::InMemory::new()));
    let (committer, task) = Committer::new(store, register, Duration::from_secs(1), 64 << 20);
    let mut episodes: Vec<Episode> = (0..4).map(|ordinal| episode("r1", ordinal)).collect();
    episodes[1].manifest.embodiment.name.push('\0');
    let mut submissions: Vec<Submission> = episodes.iter().map(submission).collect();
    submissions[3].whole = None;
    let committing = async move {
        futures::future::join_all(submissions.into_iter().map(|submission| committer.commit(submission))).await
    };
    let (results, ()) = tokio::join!(committing, task.run());
    let stored: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(stored, [true, false, true, true], "{results:?}");
    assert_eq!(metadata.episode_count(&tenant(), &EpisodeFilter::default()).await.unwrap(), 2);
    let set_down: Vec<_> = episodes[3].chunk_bytes().iter().map(|chunk| chunk.id).collect();
    assert_eq!(metadata.present_chunks(&tenant(), &set_down).await.unwrap().len(), set_down.len());
    // What was stored names its chunks; what was not does not.
    let forgotten = metadata.forget_chunks(&tenant(), u64::MAX).await.unwrap();
    assert_eq!(forgotten, (set_down.len() + episodes[1].chunks.len()) as u64);
    metadata.close().await;
}

#[tokio::test]
async fn an_episode_that_the_database_refuses_fails_no_other_of_its_pack() {
    let folder = tempfile::tempdir().unwrap();
    let lenient = metadata(folder.path()).await;
    commit_with_a_refused_one(Strict(lenient.clone()), &lenient).await;
    if let Some(database) = TestDatabase::create().await {
        let metadata = Metadata::open(database.url.clone(), folder.path().to_owned()).await.unwrap();
        metadata.add_tenant(&tenant(), 0).await.unwrap();
        commit_with_a_refused_one(metadata.clone(), &metadata).await;
        database.drop().await;
    }
}
