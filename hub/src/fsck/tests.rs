//! What a check finds, and what repairing brings back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zunft_protocol::Manifest;
use zunft_protocol::ids::EpisodeId;

use super::*;
use crate::fixtures::{Episode, episode, tenant};
use crate::hub::{Handle, Hub};
use crate::metadata::EpisodeFilter;
use crate::store::{Committer, Submission, Whole, write_pack};

/// A stopped hub with nine episodes in three packs, and a tenth in a pack of which the metadata never heard.
struct World {
    _folder: tempfile::TempDir,
    config: HubConfig,
    episodes: Vec<Episode>,
    orphan: Episode,
}

fn submission(episode: &Episode) -> Submission {
    let whole = Whole {
        episode: episode.manifest.id(),
        manifest: episode.manifest.clone(),
        manifest_bytes: episode.manifest.encode(),
    };
    Submission { tenant: tenant(), chunks: episode.chunk_bytes(), whole: Some(whole) }
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::fixtures::config(folder.path());
        Hub::start(config.clone()).await.unwrap().shutdown().await;
        let episodes: Vec<Episode> = (0..9).map(|ordinal| episode("r1", ordinal)).collect();
        let world = Self { _folder: folder, config, episodes, orphan: episode("r1", 9) };
        let (store, metadata) = world.open().await;
        for batch in world.episodes.chunks(3) {
            let (committer, task) = Committer::new(store.clone(), metadata.clone(), Duration::from_secs(1), 64 << 20);
            let committing = async move {
                for result in futures::future::join_all(batch.iter().map(|one| committer.commit(submission(one)))).await
                {
                    result.unwrap();
                }
            };
            tokio::join!(committing, task.run());
        }
        write_pack(&store, &tenant(), vec![submission(&world.orphan)]).await.unwrap();
        metadata.close().await;
        world
    }

    async fn open(&self) -> (Store, Metadata) {
        let store = Store::open_local(&self.config.data_dir.join("store")).unwrap();
        (store, Metadata::open_file(&self.config.data_dir.join("metadata.sqlite")).await.unwrap())
    }

    fn packs(&self) -> Vec<PathBuf> {
        let packs = self.config.data_dir.join("store/t/default/packs");
        let mut packs: Vec<_> = std::fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path()).collect();
        packs.sort();
        packs
    }

    /// A registered pack and its bytes.
    async fn registered_pack(&self) -> (PathBuf, Vec<u8>) {
        let (_, metadata) = self.open().await;
        let known = metadata.packs(&tenant()).await.unwrap();
        metadata.close().await;
        let digest = known.keys().next().unwrap();
        let path = self.packs().into_iter().find(|path| path.ends_with(format!("{digest}.pack"))).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    }

    async fn check(&self, repair: bool) -> Report {
        run(&self.config, Todo { repair, sweep: false }).await.unwrap()
    }

    /// Everything that a hub serves, read back and verified.
    async fn served(&self) -> BTreeMap<EpisodeId, Manifest> {
        let hub = Hub::start(self.config.clone()).await.unwrap();
        let served = read_all(&hub).await;
        hub.shutdown().await;
        served
    }
}

async fn read_all(hub: &Handle) -> BTreeMap<EpisodeId, Manifest> {
    let mut served = BTreeMap::new();
    for record in hub.episodes(&tenant(), &EpisodeFilter::default(), 1000).await.unwrap().episodes {
        let (_, manifest) = hub.episode(&tenant(), record.id).await.unwrap().unwrap();
        for chunk in manifest.chunks() {
            let bytes = hub.chunk(&tenant(), chunk.id).await.unwrap().unwrap();
            assert_eq!(zunft_protocol::ChunkId::of(&bytes), chunk.id);
        }
        served.insert(record.id, manifest);
    }
    served
}

fn ids<'a>(episodes: impl IntoIterator<Item = &'a Episode>) -> Vec<EpisodeId> {
    let mut ids: Vec<_> = episodes.into_iter().map(|episode| episode.manifest.id()).collect();
    ids.sort();
    ids
}

fn flip(path: &Path, bytes: &[u8], at: usize) {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_sound_store_is_found_sound_and_an_orphan_harmless_until_it_is_registered() {
    let world = World::new().await;
    let report = world.check(false).await;
    assert_eq!((report.packs, report.manifests, report.chunks, report.episodes), (4, 10, 20, 9));
    assert!(report.is_sound());
    assert!(matches!(&report.findings[..], [Finding::OrphanPack { episodes: 1, registered: false, .. }]));
    assert_eq!(world.check(true).await.episodes, 10);
    let again = world.check(false).await;
    assert_eq!((again.findings, again.episodes), (vec![], 10));
    assert_eq!(world.served().await.into_keys().collect::<Vec<_>>(), ids(world.episodes.iter().chain([&world.orphan])));
}

#[tokio::test]
async fn a_database_that_is_gone_is_rebuilt_with_the_same_episodes() {
    let world = World::new().await;
    for suffix in ["", "-wal", "-shm"] {
        if let Err(error) = std::fs::remove_file(world.config.data_dir.join(format!("metadata.sqlite{suffix}"))) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        }
    }
    let report = world.check(false).await;
    assert!(!report.is_sound());
    assert_eq!(report.findings[0], Finding::MetadataGone { rebuilt: false });
    assert!(!world.config.data_dir.join("metadata.sqlite").exists(), "a check alone changes nothing");
    let report = world.check(true).await;
    assert_eq!(report.findings[0], Finding::MetadataGone { rebuilt: true });
    assert_eq!((report.is_sound(), report.episodes), (true, 10));
    assert_eq!(world.check(false).await.findings, []);
    assert_eq!(world.served().await.into_keys().collect::<Vec<_>>(), ids(world.episodes.iter().chain([&world.orphan])));
}

#[tokio::test]
async fn a_flipped_byte_anywhere_in_a_pack_is_named_and_costs_at_most_the_episode_that_it_hits() {
    let world = World::new().await;
    world.check(true).await;
    let (_, metadata) = world.open().await;
    let (path, bytes) = world.registered_pack().await;
    let known = metadata.packs(&tenant()).await.unwrap();
    let entries = metadata.entries_of(&tenant(), *known.keys().next().unwrap()).await.unwrap();
    metadata.close().await;
    drop(world);
    let names = [
        ("header", 3),
        ("first chunk", entries[0].position as usize),
        ("directory", bytes.len() - 200),
        ("trailer", bytes.len() - 1),
    ];
    for (name, at) in names {
        let world = World::new().await;
        world.check(true).await;
        let path = world.config.data_dir.join("store/t/default/packs").join(path.file_name().unwrap());
        flip(&path, &bytes, at);
        let report = world.check(false).await;
        let damaged = report.findings.iter().find_map(damaged_pack);
        assert_eq!(damaged.as_ref().map(|(_, quarantined)| quarantined), Some(&None), "{name}: {report:?}");
        assert!(path.ends_with(damaged.unwrap().0), "{name}");
        assert!(!report.is_sound(), "{name}");
        let report = world.check(true).await;
        let lost: Vec<EpisodeId> = report.findings.iter().filter_map(unlisted).collect();
        assert_eq!(lost.len(), usize::from(name == "first chunk"), "{name}: {report:?}");
        let quarantined = report.findings.iter().find_map(damaged_pack).unwrap().1;
        assert!(world.config.data_dir.join("store").join(quarantined.unwrap()).is_file(), "moved, not deleted");
        assert_eq!(world.check(false).await.findings, [], "{name}: the next run finds nothing");
        let served: Vec<EpisodeId> = world.served().await.into_keys().collect();
        let expect: Vec<EpisodeId> =
            ids(world.episodes.iter().chain([&world.orphan])).into_iter().filter(|id| !lost.contains(id)).collect();
        assert_eq!(served, expect, "{name}: every other episode is read byte for byte");
    }
}

fn unlisted(finding: &Finding) -> Option<EpisodeId> {
    let Finding::UnreadableEpisode { episode, unlisted: true, .. } = finding else { return None };
    Some(*episode)
}

/// A damaged pack, and where it was moved.
fn damaged_pack(finding: &Finding) -> Option<(String, Option<String>)> {
    let Finding::DamagedPack { key, quarantined, .. } = finding else { return None };
    Some((key.clone(), quarantined.clone()))
}

#[tokio::test]
async fn an_episode_whose_chunk_is_broken_is_taken_in_again_from_its_robot() {
    let world = World::new().await;
    let (path, bytes) = world.registered_pack().await;
    flip(&path, &bytes, 8);
    let report = world.check(true).await;
    let lost = report.findings.iter().find_map(unlisted).unwrap();
    let episode = world.episodes.iter().find(|episode| episode.manifest.id() == lost).unwrap();
    let (store, metadata) = world.open().await;
    let (committer, task) = Committer::new(store, metadata.clone(), Duration::ZERO, 64 << 20);
    let committing = async move { committer.commit(submission(episode)).await.unwrap() };
    tokio::join!(committing, task.run());
    metadata.close().await;
    assert!(world.check(false).await.is_sound());
    assert_eq!(world.served().await.len(), 10);
}

#[tokio::test]
async fn a_second_copy_in_an_orphan_heals_a_broken_chunk() {
    let world = World::new().await;
    let (path, bytes) = world.registered_pack().await;
    let (store, metadata) = world.open().await;
    // The same episodes once more, from a hub that crashed before it registered them.
    write_pack(&store, &tenant(), world.episodes.iter().map(submission).collect()).await.unwrap();
    metadata.close().await;
    flip(&path, &bytes, 8);
    let report = world.check(true).await;
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(world.check(false).await.findings, []);
    assert_eq!(world.served().await.len(), 10);
}

#[tokio::test]
async fn a_chunk_that_was_healed_is_named_and_no_sweep_takes_it() {
    let world = World::new().await;
    let (path, bytes) = world.registered_pack().await;
    let (store, metadata) = world.open().await;
    // Of a tenth episode chunks and manifest lie in packs of their own.
    let long = episode("r2", 0);
    let set_down = |episode| Submission { whole: None, ..submission(episode) };
    let parts = [set_down(&long), Submission { chunks: Vec::new(), ..submission(&long) }];
    let mut packs = Vec::new();
    for part in parts {
        let pack = write_pack(&store, &tenant(), vec![part]).await.unwrap();
        metadata.register_pack(&tenant(), &pack, 1000).await.unwrap();
        packs.push(world.config.data_dir.join("store").join(store::pack_key(&tenant(), pack.pack).as_ref()));
    }
    // All chunks once more, with their manifests or without.
    write_pack(&store, &tenant(), world.episodes.iter().map(submission).collect()).await.unwrap();
    write_pack(&store, &tenant(), vec![set_down(&long), set_down(&episode("r2", 1))]).await.unwrap();
    metadata.close().await;
    flip(&path, &bytes, 8);
    flip(&packs[0], &std::fs::read(&packs[0]).unwrap(), 8);
    let report = world.check(true).await;
    assert!(report.is_sound(), "{report:?}");
    let (store, metadata) = world.open().await;
    forget(&store, &metadata, u64::MAX).await.unwrap();
    metadata.close().await;
    assert_eq!(world.served().await.len(), 11, "every chunk is read back");
    assert_eq!(world.check(false).await.findings, []);
}

#[tokio::test]
async fn a_missing_pack_is_named_with_its_episodes_which_stay_listed() {
    let world = World::new().await;
    let (path, bytes) = world.registered_pack().await;
    std::fs::remove_file(&path).unwrap();
    for repair in [false, true] {
        let report = world.check(repair).await;
        assert!(!report.is_sound());
        assert!(
            report
                .findings
                .iter()
                .any(|finding| matches!(finding, Finding::MissingPack { key } if path.ends_with(key)))
        );
        let unreadable = report
            .findings
            .iter()
            .filter(|finding| matches!(finding, Finding::UnreadableEpisode { unlisted: false, .. }));
        assert_eq!(unreadable.count(), 3, "{report:?}");
    }
    // The backup is back.
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(world.check(false).await.findings, []);
    assert_eq!(world.served().await.len(), 10);
}

#[tokio::test]
async fn damaged_and_unknown_snapshots_and_blobs_are_found() {
    let world = World::new().await;
    world.check(true).await;
    let hub = Hub::start(world.config.clone()).await.unwrap();
    let snapshot = hub.create_snapshot(&tenant(), &EpisodeFilter::default()).await.unwrap();
    let packages = tempfile::tempdir().unwrap();
    hub.publish(&tenant(), &crate::fixtures::write_package(packages.path(), 1)).await.unwrap();
    hub.shutdown().await;
    let store = world.config.data_dir.join("store/t/default");
    let path = store.join(format!("snapshots/{}.cbor", snapshot.id));
    let bytes = std::fs::read(&path).unwrap();
    let objects = world.check(true).await.objects;
    assert!(objects > 2, "snapshot and blobs are verified: {objects}");
    flip(&path, &bytes, 0);
    let report = world.check(true).await;
    assert!(matches!(&report.findings[..], [Finding::DamagedObject { quarantined: Some(_), .. }]), "{report:?}");
    assert!(!report.is_sound() && !path.exists());
    let key = format!("t/default/snapshots/{}.cbor", snapshot.id);
    assert_eq!(world.check(true).await.findings, [Finding::MissingObject { key }], "there is no second copy");
    std::fs::write(&path, bytes).unwrap();
    let blob = std::fs::read_dir(store.join("blobs")).unwrap().next().unwrap().unwrap().path();
    flip(&blob, &std::fs::read(&blob).unwrap(), 0);
    let report = world.check(false).await;
    assert!(
        matches!(&report.findings[..], [Finding::DamagedObject { key, quarantined: None }] if blob.ends_with(key)),
        "{report:?}"
    );
    std::fs::write(store.join("stray"), "x").unwrap();
    assert!(world.check(false).await.findings.contains(&Finding::ForeignObject { key: "t/default/stray".into() }));
}

#[tokio::test]
async fn a_running_hub_and_an_absent_one_are_not_checked() {
    let world = World::new().await;
    let hub = Hub::start(world.config.clone()).await.unwrap();
    assert!(matches!(run(&world.config, Todo::default()).await, Err(FsckError::DataDir(DataDirError::InUse { .. }))));
    hub.shutdown().await;
    let mut absent = world.config.clone();
    absent.data_dir = absent.data_dir.join("no");
    assert!(
        matches!(run(&absent, Todo { repair: true, sweep: false }).await, Err(FsckError::Absent { path }) if path == absent.data_dir)
    );
}

#[tokio::test]
async fn the_hub_sweeps_up_orphans_only_when_they_are_old() {
    let world = World::new().await;
    let (store, metadata) = world.open().await;
    assert_eq!(sweep(&store, &metadata, 0).await.unwrap(), 0, "it may be under way");
    assert_eq!(sweep(&store, &metadata, u64::MAX).await.unwrap(), 1);
    assert_eq!(sweep(&store, &metadata, u64::MAX).await.unwrap(), 0, "it is known now");
    let manifest = &world.orphan.manifest;
    let (found, _) = metadata.episode_of_recording(&tenant(), manifest.recording).await.unwrap().unwrap();
    assert_eq!(found, manifest.id());
    metadata.close().await;
}

#[tokio::test]
async fn a_rival_in_an_orphan_never_replaces_the_acknowledged_episode() {
    let world = World::new().await;
    let (store, metadata) = world.open().await;
    let mut rival = world.episodes[0].clone();
    rival.manifest.ordinal = 77;
    write_pack(&store, &tenant(), vec![submission(&rival)]).await.unwrap();
    metadata.close().await;
    let report = world.check(true).await;
    let (tenant, episode) = (tenant(), rival.manifest.id());
    assert!(report.findings.contains(&Finding::RivalEpisode { tenant: tenant.clone(), episode }), "{report:?}");
    let served = world.served().await;
    assert!(served.contains_key(&world.episodes[0].manifest.id()) && !served.contains_key(&episode));
}

#[tokio::test]
async fn what_was_set_down_for_an_episode_that_never_came_is_swept_when_it_is_old_and_nothing_else() {
    let world = World::new().await;
    let (store, metadata) = world.open().await;
    let before = world.packs();
    let lost = Submission { whole: None, ..submission(&episode("r2", 0)) };
    // The other one's manifest is stored and cannot be listed: the pack with its chunks may come back from a backup.
    let half = Submission { chunks: Vec::new(), ..submission(&episode("r2", 1)) };
    for set_down in [lost, half] {
        let pack = write_pack(&store, &tenant(), vec![set_down]).await.unwrap();
        metadata.register_pack(&tenant(), &pack, 1000).await.unwrap();
    }
    metadata.close().await;
    let sweep = async || run(&world.config, Todo { repair: false, sweep: true }).await.unwrap();
    assert_eq!(world.packs().len(), before.len() + 2);
    let swept = sweep().await.swept.unwrap();
    assert_eq!((swept.chunks, swept.packs), (2, 1));
    assert!(swept.bytes > 0 && world.packs().len() == before.len() + 1);
    assert_eq!(sweep().await.swept, Some(Swept::default()));
    assert_eq!(world.served().await.into_keys().collect::<Vec<_>>(), ids(&world.episodes));

    let (damaged, bytes) = world.registered_pack().await;
    flip(&damaged, &bytes, 20);
    assert_eq!(sweep().await.swept, None, "nothing is deleted from a store that is not sound");
}

#[tokio::test]
async fn what_was_set_down_lately_stays_and_whatever_is_old_where_the_operator_keeps_it() {
    let world = World::new().await;
    let (store, metadata) = world.open().await;
    let late = Submission { whole: None, ..submission(&episode("r2", 0)) };
    let old = Submission { whole: None, ..submission(&episode("r2", 1)) };
    for (set_down, since) in [(late, clock::unix_millis()), (old, 1000)] {
        let pack = write_pack(&store, &tenant(), vec![set_down]).await.unwrap();
        metadata.register_pack(&tenant(), &pack, since).await.unwrap();
    }
    metadata.close().await;
    let packs = world.packs();
    let sweep = async |orphan_days| {
        let mut config = world.config.clone();
        config.store.orphan_days = orphan_days;
        run(&config, Todo { repair: false, sweep: true }).await.unwrap().swept.unwrap()
    };
    assert_eq!(sweep(0).await, Swept::default(), "kept for ever");
    assert_eq!((sweep(1).await.packs, world.packs().len()), (1, packs.len() - 1));
    assert_eq!(sweep(1).await, Swept::default());
}
