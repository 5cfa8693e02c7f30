//! What the metadata promises, in SQLite and in PostgreSQL.

use std::collections::BTreeSet;

use zunft_protocol::Manifest;
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::{Digest, EpisodeId, RecordingId, RobotId, SnapshotId};
use zunft_protocol::message::{EvictionReason, Tombstone};
use zunft_protocol::upload_policy::{HubPolicy, PushedPolicy};
use zunft_skills::data::ActorKind;

use super::*;
use crate::fixtures::servers::TestDatabase;
use crate::fixtures::{Episode, episode, identity, tenant};
use crate::store::Forget as _;

const NOW: u64 = 1_800_000_000_000;

/// A database that no one has used.
struct Database {
    url: SecretUrl,
    path: PathBuf,
}

impl Database {
    async fn open(&self) -> Metadata {
        let metadata = Metadata::open(self.url.clone(), self.path.clone()).await.unwrap();
        metadata.add_tenant(&tenant(), NOW).await.unwrap();
        metadata
    }
}

/// Runs a test on each database that the hub can use.
async fn each(test: impl AsyncFn(&Database)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.sqlite");
    test(&Database { url: SecretUrl::default(), path: path.clone() }).await;
    if let Some(created) = TestDatabase::create().await {
        test(&Database { url: created.url.clone(), path }).await;
        created.drop().await;
    }
}

fn pack_of(name: &str, episodes: &[&Episode]) -> NewPack {
    let chunks = episodes.iter().flat_map(|episode| {
        episode.manifest.chunks().map(|chunk| NewChunk { id: chunk.id, position: 8, bytes: chunk.bytes })
    });
    let news = episodes.iter().map(|episode| NewEpisode {
        id: episode.manifest.id(),
        manifest: episode.manifest.clone(),
        position: 100,
        bytes: 50,
    });
    NewPack { pack: Digest::of(name.as_bytes()), bytes: 1000, chunks: chunks.collect(), episodes: news.collect() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A database is refused whose migrations were others than these: what has landed is never edited, only added to.
#[test]
fn migrations_are_what_they_were() {
    let migrations = migrations();
    let found = migrations.iter().map(|migration| (migration.version, hex(&migration.checksum[..8])));
    let found: Vec<(i64, String)> = found.collect();
    let landed = [
        (1, "d3a3ee94c1286c63"),
        (4, "ebec9a0b2a28110b"),
        (5, "f4312cdc6a7f1cb5"),
        (6, "0f4305a5fcfba515"),
        (7, "f3c676407c16b79f"),
    ];
    assert_eq!(found, landed.map(|(version, digest)| (version, digest.to_owned())));
}

#[tokio::test]
async fn a_recording_has_one_episode_for_ever() {
    each(async |database| {
        let metadata = database.open().await;
        let first = episode("r1", 0);
        let mut second = first.clone();
        second.manifest.outcome = Outcome::Failure;
        let stored = Registered::Stored { stored_unix_ms: NOW };
        let registered = metadata.register_pack(&tenant(), &pack_of("a", &[&first, &second]), NOW).await.unwrap();
        assert_eq!(registered, [stored, Registered::Conflict]);
        let again = metadata.register_pack(&tenant(), &pack_of("b", &[&first]), NOW + 1).await.unwrap();
        assert_eq!(again, [stored], "the first time counts");
        metadata.close().await;
        let metadata = database.open().await;
        let page = metadata.episodes(&tenant(), &EpisodeFilter::default(), 10).await.unwrap();
        let ids: Vec<EpisodeId> = page.episodes.iter().map(|episode| episode.id).collect();
        assert_eq!((ids, page.next), (vec![first.manifest.id()], None));
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn an_episode_without_its_chunks_is_not_taken() {
    each(async |database| {
        let metadata = database.open().await;
        let mut pack = pack_of("a", &[&episode("r1", 0), &episode("r2", 0)]);
        pack.chunks.truncate(3);
        let registered = metadata.register_pack(&tenant(), &pack, NOW).await.unwrap();
        assert_eq!(registered, [Registered::Stored { stored_unix_ms: NOW }, Registered::ChunkMissing]);
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn filters_select_and_pages_continue() {
    each(async |database| {
        let metadata = database.open().await;
        let mut episodes: Vec<Episode> = (0..5).map(|ordinal| episode("r1", ordinal)).collect();
        episodes[1].manifest.outcome = Outcome::Failure;
        episodes[2].manifest.task = "weld".parse().unwrap();
        let references: Vec<&Episode> = episodes.iter().collect();
        metadata.register_pack(&tenant(), &pack_of("a", &references), NOW).await.unwrap();
        let count = async |filter: EpisodeFilter| metadata.episode_count(&tenant(), &filter).await.unwrap();
        let all = EpisodeFilter::default();
        assert_eq!(count(all.clone()).await, 5);
        assert_eq!(count(EpisodeFilter { outcomes: vec![Outcome::Success], ..all.clone() }).await, 4);
        assert_eq!(count(EpisodeFilter { tasks: vec!["weld".parse().unwrap()], ..all.clone() }).await, 1);
        assert_eq!(count(EpisodeFilter { robots: vec!["r2".parse().unwrap()], ..all.clone() }).await, 0);
        assert_eq!(count(EpisodeFilter { actors: vec![ActorKind::Script], ..all.clone() }).await, 5);
        assert_eq!(count(EpisodeFilter { endings: vec![EndingKind::Aborted], ..all.clone() }).await, 0);
        let body = episodes[0].manifest.embodiment.id();
        assert_eq!(count(EpisodeFilter { embodiments: vec![body], ..all.clone() }).await, 5);
        assert_eq!(count(EpisodeFilter { ordinal_min: Some(1), ordinal_max: Some(3), ..all.clone() }).await, 3);
        let first = metadata.episodes(&tenant(), &all, 3).await.unwrap();
        assert_eq!((first.episodes.len(), first.next), (3, Some(3)));
        let rest = EpisodeFilter { arrived_after: first.next, ..all };
        let rest = metadata.episodes(&tenant(), &rest, 3).await.unwrap();
        assert_eq!((rest.episodes.len(), rest.next), (2, None));
        let other: zunft_protocol::TenantId = "other".parse().unwrap();
        assert_eq!(metadata.episode_count(&other, &EpisodeFilter::default()).await.unwrap(), 0);
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn sequences_only_grow() {
    each(async |database| {
        let metadata = database.open().await;
        let robot = identity("r1").robot;
        metadata.add_robot(&identity("r1"), NOW).await.unwrap();
        assert_eq!(metadata.next_assignment(&tenant(), &robot, 1, NOW).await.unwrap(), None);
        for (release, sequence) in [("push@1", 1), ("weld@1", 2), ("push@2", 3)] {
            metadata.assign(&tenant(), std::slice::from_ref(&robot), &release.parse().unwrap(), NOW).await.unwrap();
            assert_eq!(metadata.assignment(&tenant(), &robot).await.unwrap().unwrap().sequence, sequence);
        }
        let renewed = metadata.next_assignment(&tenant(), &robot, 2, NOW + 1).await.unwrap().unwrap();
        assert_eq!((renewed.sequence, renewed.updated_unix_ms), (4, NOW + 1));
        assert_eq!(renewed.releases, ["push@2".parse().unwrap(), "weld@1".parse().unwrap()]);
        let ahead = metadata.next_assignment(&tenant(), &robot, 9, NOW).await.unwrap().unwrap();
        assert_eq!(ahead.sequence, 9);
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_robots_upload_policy_goes_before_its_tenants_and_revisions_only_grow() {
    each(async |database| {
        let metadata = database.open().await;
        let (tenant, robot, other) = (tenant(), identity("r1").robot, identity("r2").robot);
        let capped = |rate| HubPolicy { bytes_per_second_max: Some(rate), ..HubPolicy::default() };
        let (all, one) = (PolicyScope::Tenant, PolicyScope::Robot(robot.clone()));
        let secs = NOW / 1000;
        let in_force = async |robot: &RobotId| {
            let found = metadata.upload_policies_of(&tenant, robot).await.unwrap().in_force(robot);
            assert_eq!(metadata.upload_policies(&tenant).await.unwrap().in_force(robot), found);
            (found.0.revision, found.0.policy.and_then(|policy| policy.bytes_per_second_max), found.1)
        };
        let set = async |scope: &PolicyScope, policy: Option<HubPolicy>, now| {
            let record = metadata.set_upload_policy(&tenant, scope, policy.as_ref(), now).await.unwrap();
            assert_eq!((&record.scope, &record.policy), (scope, &policy));
            record.revision
        };
        assert_eq!(in_force(&robot).await, (0, None, None));
        assert_eq!(set(&all, Some(capped(5000)), NOW).await, secs);
        assert_eq!(set(&one, Some(capped(6000)), NOW).await, secs + 1);
        assert_eq!(in_force(&robot).await, (secs + 1, Some(6000), Some(one.clone())));
        assert_eq!(in_force(&other).await, (secs, Some(5000), Some(all.clone())));
        // What the tenant's robots may is told to this one, too, although its own policy still holds.
        assert_eq!(set(&all, Some(HubPolicy { metered: true, ..capped(7000) }), 0).await, secs + 2);
        assert_eq!(in_force(&robot).await, (secs + 2, Some(6000), Some(one.clone())));
        assert_eq!(set(&one, None, NOW).await, secs + 3);
        assert_eq!(in_force(&robot).await, (secs + 3, Some(7000), Some(all.clone())));
        metadata.close().await;
        let metadata = database.open().await;
        let policies = metadata.upload_policies(&tenant).await.unwrap();
        assert!(policies.of(&all).unwrap().policy.as_ref().unwrap().metered);
        metadata.set_upload_policy(&tenant, &all, None, NOW + 60_000).await.unwrap();
        let (pushed, scope) = metadata.upload_policies_of(&tenant, &robot).await.unwrap().in_force(&robot);
        assert_eq!((pushed, scope), (PushedPolicy { revision: secs + 60, policy: None }, None));
        let stranger: zunft_protocol::TenantId = "other".parse().unwrap();
        assert_eq!(metadata.upload_policies(&stranger).await.unwrap(), UploadPolicies::default());
        metadata.close().await;
    })
    .await;
}

fn tombstone_of(manifest: &Manifest) -> Tombstone {
    Tombstone {
        recording: manifest.recording,
        ordinal: manifest.ordinal,
        task: manifest.task.clone(),
        outcome: manifest.outcome,
        interventions: false,
        steps: 1,
        bytes: 1,
        reason: EvictionReason::Quota,
    }
}

#[tokio::test]
async fn what_never_comes_keeps_nothing_else_from_being_asked_for() {
    each(async |database| {
        let metadata = database.open().await;
        let robot = identity("r1").robot;
        metadata.add_robot(&identity("r1"), NOW).await.unwrap();
        // The recordings of two spools: each number is there twice.
        let mut ids = BTreeSet::new();
        for number in 0..6 {
            let mut manifest = episode("r1", number).manifest;
            manifest.ordinal = number / 2;
            metadata.note_episode(&tenant(), manifest.id(), &manifest, NOW).await.unwrap();
            ids.insert((manifest.ordinal, manifest.id()));
        }
        let ids: Vec<EpisodeId> = ids.into_iter().map(|(_, id)| id).collect();
        let (mut listed, mut after) = (Vec::new(), None);
        while let Some(noted) = metadata.noted_episodes(&tenant(), after.as_ref(), 1).await.unwrap().pop() {
            after = Some(noted.cursor());
            listed.push(noted.id);
        }
        assert_eq!(listed, ids, "a page may end between two recordings of one number");
        let mut asked = None;
        let mut next = async |limit| {
            let (wanted, last) = metadata.wanted_episodes(&tenant(), &robot, asked, limit).await.unwrap();
            asked = last;
            wanted
        };
        assert_eq!(next(3).await, []);
        metadata.request_episodes(&tenant(), &ids[..5], NOW).await.unwrap();
        assert_eq!(next(3).await, ids[..3]);
        assert_eq!(next(3).await, [ids[3], ids[4], ids[0]], "what comes after, and then the first again");
        metadata.request_episodes(&tenant(), &ids[5..], NOW).await.unwrap();
        assert_eq!(next(5).await, ids[1..]);
        assert_eq!(next(10).await, ids, "all of it, where it fits");
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_noted_is_no_episode_until_it_has_come_and_is_asked_for_until_then() {
    each(async |database| {
        let metadata = database.open().await;
        let robot = identity("r1").robot;
        metadata.add_robot(&identity("r1"), NOW).await.unwrap();
        let episodes: Vec<Episode> = (0..4).map(|ordinal| episode("r1", ordinal)).collect();
        let ids: Vec<EpisodeId> = episodes.iter().map(|episode| episode.manifest.id()).collect();
        for (id, episode) in ids.iter().zip(&episodes) {
            for now in [NOW, NOW + 5] {
                metadata.note_episode(&tenant(), *id, &episode.manifest, now).await.unwrap();
            }
        }
        let states = async || {
            let noted = metadata.noted_episodes(&tenant(), None, 10).await.unwrap();
            noted.into_iter().map(|noted| (noted.ordinal, noted.state)).collect::<Vec<_>>()
        };
        let wanted = async || metadata.wanted_episodes(&tenant(), &robot, None, 10).await.unwrap().0;
        let all = EpisodeFilter::default();
        assert_eq!(metadata.episode_count(&tenant(), &all).await.unwrap(), 0, "known is not held");
        let first = metadata.noted_episodes(&tenant(), None, 1).await.unwrap().remove(0);
        assert_eq!((first.id, first.noted_unix_ms, first.bytes), (ids[0], NOW, episodes[0].manifest.bytes()));
        let rest = metadata.noted_episodes(&tenant(), Some(&first.cursor()), 10).await.unwrap();
        assert_eq!(rest.len(), 3);
        let unknown = [ids[3], EpisodeId::of(b"?")];
        let refused = metadata.request_episodes(&tenant(), &unknown, NOW).await.unwrap_err();
        assert!(matches!(refused, MetadataError::Missing { .. }), "{refused}");
        assert_eq!(wanted().await, [], "all or none");
        let asked = metadata.request_episodes(&tenant(), &ids[..3], NOW).await.unwrap();
        assert_eq!(asked, vec![robot.clone(); 3]);
        assert_eq!(wanted().await, ids[..3]);
        metadata.register_pack(&tenant(), &pack_of("a", &[&episodes[0]]), NOW).await.unwrap();
        let tombstone = tombstone_of(&episodes[1].manifest);
        // The robot had another spool once, and gave up the third recording of that.
        let earlier = Tombstone { recording: RecordingId::from_bytes([9; 16]), ordinal: 2, ..tombstone.clone() };
        metadata.record_evictions(&tenant(), &robot, &[earlier], NOW).await.unwrap();
        assert_eq!(wanted().await, ids[1..3]);
        metadata.record_evictions(&tenant(), &robot, &[tombstone], NOW).await.unwrap();
        assert_eq!(wanted().await, [ids[2]]);
        use NotedState::{GivenUp, Noted, Requested};
        assert_eq!(states().await, [(1, GivenUp), (2, Requested), (3, Noted)]);
        let third = tombstone_of(&episodes[2].manifest);
        metadata.record_evictions(&tenant(), &robot, &[third], NOW).await.unwrap();
        assert_eq!(states().await[1], (2, GivenUp), "given up from both spools");
        let evictions = metadata.evictions(&tenant(), &robot, None, 10).await.unwrap();
        let ordinals: Vec<u64> = evictions.iter().map(|eviction| eviction.tombstone.ordinal).collect();
        assert_eq!(ordinals, [1, 2, 2]);
        let behind = metadata.evictions(&tenant(), &robot, Some(evictions[1].cursor()), 10).await.unwrap();
        assert_eq!(behind, evictions[2..], "a page may end between two recordings of one number");
        let other: zunft_protocol::TenantId = "other".parse().unwrap();
        assert_eq!(metadata.noted_episodes(&other, None, 10).await.unwrap(), []);
        assert!(metadata.request_episodes(&other, &ids[3..], NOW).await.is_err());
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_robot_stays_at_its_site_and_needs_a_known_certificate() {
    each(async |database| {
        let metadata = database.open().await;
        let home = identity("r1");
        let mut away = home.clone();
        away.site = "ulm".parse().unwrap();
        assert_eq!(metadata.add_robot(&home, NOW).await.unwrap(), home.site);
        assert_eq!(metadata.add_robot(&away, NOW).await.unwrap(), home.site);
        metadata.add_certificate(&home, "0a", NOW, NOW + 1).await.unwrap();
        assert!(metadata.knows_certificate(&home, "0a").await.unwrap());
        assert!(!metadata.knows_certificate(&home, "0b").await.unwrap());
        assert!(!metadata.knows_certificate(&away, "0a").await.unwrap());
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn runs_are_kept_as_they_last_were() {
    each(async |database| {
        let metadata = database.open().await;
        let mut run = RunRecord {
            run: 9,
            skill: "push".parse().unwrap(),
            snapshot: SnapshotId::from_bytes([7; 32]),
            state: RunState::Queued,
            config: serde_json::json!({ "steps": 10 }),
            progress: serde_json::Value::Null,
            error: None,
            release: None,
            created_unix_ms: NOW,
            updated_unix_ms: NOW,
        };
        metadata.put_run(&tenant(), &run).await.unwrap();
        run.state = RunState::Succeeded;
        run.release = Some("push@1".parse().unwrap());
        metadata.put_run(&tenant(), &run).await.unwrap();
        assert_eq!(metadata.runs(&tenant(), None, 5).await.unwrap(), [run.clone()]);
        assert_eq!(metadata.run(&tenant(), 9).await.unwrap(), Some(run.clone()));

        let waiting = RunRecord { run: 10, state: RunState::Queued, ..run.clone() };
        metadata.put_run(&tenant(), &waiting).await.unwrap();
        assert_eq!(metadata.unfinished_runs().await.unwrap(), [(tenant(), waiting.clone())]);
        assert_eq!(metadata.runs(&tenant(), None, 1).await.unwrap(), [waiting]);
        assert_eq!(metadata.runs(&tenant(), Some(10), 5).await.unwrap(), [run]);
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn of_rival_episodes_of_one_recording_exactly_one_wins() {
    each(async |database| {
        let metadata = database.open().await;
        let rivals: Vec<Episode> = (0..12)
            .map(|rival| {
                let mut episode = episode("r1", 0);
                episode.manifest.interventions = Vec::new();
                episode.manifest.ordinal = rival;
                episode
            })
            .collect();
        let packs: Vec<NewPack> =
            rivals.iter().map(|rival| pack_of(&rival.manifest.ordinal.to_string(), &[rival])).collect();
        let registering =
            packs.iter().map(|pack| async { metadata.register_pack(&tenant(), pack, NOW).await.unwrap()[0] });
        let outcomes = futures::future::join_all(registering).await;
        let won: Vec<usize> = (0..12).filter(|&i| outcomes[i] == Registered::Stored { stored_unix_ms: NOW }).collect();
        assert_eq!(won.len(), 1, "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|&&outcome| outcome == Registered::Conflict).count(), 11);
        let (winner, _) =
            metadata.episode_of_recording(&tenant(), rivals[0].manifest.recording).await.unwrap().unwrap();
        assert_eq!(winner, rivals[won[0]].manifest.id());
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_pack_with_more_chunks_than_fit_into_one_statement_is_registered_whole() {
    each(async |database| {
        let metadata = database.open().await;
        let episode = episode("r1", 0);
        let mut pack = pack_of("a", &[&episode]);
        let ids: Vec<zunft_protocol::ChunkId> =
            (0..2500_u32).map(|i| zunft_protocol::ChunkId::of(&i.to_le_bytes())).collect();
        pack.chunks.extend(ids.iter().map(|&id| NewChunk { id, position: 8, bytes: 4 }));
        metadata.register_pack(&tenant(), &pack, NOW).await.unwrap();
        let absent = zunft_protocol::ChunkId::of(b"absent");
        let asked: Vec<_> = ids.iter().copied().chain([absent]).collect();
        let present = metadata.present_chunks(&tenant(), &asked).await.unwrap();
        assert_eq!(present, ids.into_iter().collect());
        metadata.close().await;
    })
    .await;
}

#[tokio::test]
async fn postgres_belongs_to_one_hub_and_to_the_next_when_that_is_gone() {
    let Some(created) = TestDatabase::create().await else { return };
    let first = Metadata::open(created.url.clone(), PathBuf::new()).await.unwrap();
    let second = Metadata::open(created.url.clone(), PathBuf::new()).await;
    assert!(matches!(second, Err(MetadataError::InUse { .. })), "{second:?}");
    first.close().await;
    let second = Metadata::open(created.url.clone(), PathBuf::new()).await.unwrap();
    second.add_tenant(&tenant(), NOW).await.unwrap();
    created.disconnect_all().await;
    // A server that restarts costs at most the transactions under way.
    assert_eq!(second.tenants().await.unwrap(), [tenant()]);
    let mut answer = second.add_tenant(&"other".parse().unwrap(), NOW).await;
    if answer.is_err() {
        answer = second.add_tenant(&"other".parse().unwrap(), NOW).await;
    }
    answer.unwrap();
    second.close().await;
    created.drop().await;
}

#[tokio::test]
async fn postgres_that_would_lose_commits_is_refused_by_the_name_of_its_setting() {
    let Some(created) = TestDatabase::create().await else { return };
    created.set("synchronous_commit", "off").await;
    let refused = Metadata::open(created.url.clone(), PathBuf::new()).await.unwrap_err();
    assert!(matches!(refused, MetadataError::Undurable { setting: "synchronous_commit", .. }), "{refused}");
    created.drop().await;
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_named_without_its_password() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = SecretUrl::from(format!("postgres://zunft:sesame@{closed}/guild").as_str());
    let error = Metadata::open(url, PathBuf::new()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&closed.to_string()) && text.contains("guild") && text.contains("metadata.url"), "{text}");
    assert!(!crate::causes::with_causes(&error).contains("sesame") && !format!("{error:?}").contains("sesame"));
}

#[tokio::test]
async fn chunks_that_no_episode_names_are_forgotten_when_nobody_has_asked_for_them_for_long() {
    each(async |database| {
        let metadata = database.open().await;
        let (named, late, lost) = (episode("r1", 0), episode("r1", 1), episode("r1", 2));
        let set_down = |name: &str, episode: &Episode| NewPack { episodes: Vec::new(), ..pack_of(name, &[episode]) };
        let ids = |episode: &Episode| episode.manifest.chunks().map(|chunk| chunk.id).collect::<BTreeSet<_>>();
        for (name, episode) in [("a", &named), ("b", &late), ("c", &lost)] {
            metadata.register_pack(&tenant(), &set_down(name, episode), NOW).await.unwrap();
        }
        // One episode came, one was offered again just now.
        let whole = NewPack { chunks: Vec::new(), ..pack_of("d", &[&named]) };
        metadata.register_pack(&tenant(), &whole, NOW + 1).await.unwrap();
        let later = NOW + 2 * KEPT_FOR.as_millis() as u64;
        assert_eq!(metadata.keep_chunks(&tenant(), &ids(&late), later).await.unwrap(), ids(&late));
        assert_eq!(metadata.forget_chunks(&tenant(), NOW).await.unwrap(), 0, "none is older");
        assert_eq!(metadata.forget_chunks(&tenant(), later).await.unwrap(), 2, "the lost episode's alone");
        for (episode, left) in [(&named, ids(&named)), (&late, ids(&late)), (&lost, BTreeSet::new())] {
            assert_eq!(metadata.keep_chunks(&tenant(), &ids(episode), later).await.unwrap(), left);
        }
        // Its pack may go, once, and the others not.
        assert_eq!(metadata.empty_packs(&tenant(), NOW).await.unwrap(), []);
        assert_eq!(metadata.empty_packs(&tenant(), NOW + 1).await.unwrap(), [Digest::of(b"c")]);
        for (name, gone) in [("a", false), ("b", false), ("c", true), ("c", false), ("d", false)] {
            assert_eq!(metadata.forget_pack(&tenant(), Digest::of(name.as_bytes())).await.unwrap(), gone, "{name}");
        }
        // The other one came at last.
        metadata.register_pack(&tenant(), &pack_of("e", &[&late]), later).await.unwrap();
        assert_eq!(metadata.forget_chunks(&tenant(), u64::MAX).await.unwrap(), 0);
        // A listed episode's chunks were lost, and came back before it did.
        metadata.replace_pack(&tenant(), Digest::of(b"a"), None, later).await.unwrap();
        metadata.register_pack(&tenant(), &set_down("f", &named), later).await.unwrap();
        metadata.register_pack(&tenant(), &whole, later).await.unwrap();
        assert_eq!(metadata.forget_chunks(&tenant(), u64::MAX).await.unwrap(), 0, "named by what is listed");
        metadata.close().await;
    })
    .await;
}
