//! Valid values of everything that travels or is stored, and ways to damage bytes.

use std::collections::BTreeMap;
use std::ops::Range;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use zunft_protocol::chunk::Schema;
use zunft_protocol::dsse::SigningKey;
use zunft_protocol::embodiment::{ACTION, Dtype, Embodiment, Encoding, Feature};
use zunft_protocol::episode::{
    AbortReason, Actor, ChunkRef, Clock, EpisodeEnd, MANIFEST_VERSION, Manifest, Outcome, STEPS_STREAM, Stream,
    Truncation, WallQuality,
};
use zunft_protocol::ids::{
    BootId, ChunkId, Digest, EmbodimentId, EpisodeId, KeyId, RecordingId, ReleaseId, SkillVersion, SnapshotId, TaskName,
};
use zunft_protocol::limits::{RECEIPT_PATH_MAX, RESUMES_MAX, UPLOAD_BYTES_PER_SECOND_MIN};
use zunft_protocol::local::{Act, Begin, BeginActor};
use zunft_protocol::message::{
    Beside, ChunkBytes, ChunkRest, EvictionReason, Fetch, Found, Later, Message, Receipt, Reject, RejectReason,
    ReleaseReport, ReleaseState, Report, Resume, SignedObject, Tombstone, Want,
};
use zunft_protocol::release::{
    AssignedRelease, Assignment, Lineage, Publisher, ReleaseFile, ReleaseManifest, Root, VersionFloor,
};
use zunft_protocol::snapshot::{Snapshot, SnapshotEpisode};
use zunft_protocol::upload_policy::{HubPolicy, PushedPolicy, UploadMode, Window};

/// One way to damage bytes.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Set(Index, u8),
    FlipBit(Index, u8),
    Truncate(Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
}

impl Mutation {
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        match self {
            Self::Set(at, value) => bytes[at.index(len)] = *value,
            Self::FlipBit(at, bit) => bytes[at.index(len)] ^= 1 << (bit % 8),
            Self::Truncate(at) => bytes.truncate(at.index(len)),
            Self::Insert(at, more) => drop(bytes.splice(at.index(len)..at.index(len), more.iter().copied())),
            Self::Repeat(from, to) => {
                let part = bytes[from.index(len)..].iter().copied().take(64).collect::<Vec<_>>();
                drop(bytes.splice(to.index(len)..to.index(len), part));
            }
        }
    }
}

/// A few mutations, mild ones first: the later ones work on what is already damaged.
pub(crate) fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let one = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Mutation::FlipBit(at, bit)),
        1 => any::<Index>().prop_map(Mutation::Truncate),
        1 => (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, more)| Mutation::Insert(at, more)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
    ];
    vec(one, 1..8)
}

pub(crate) fn bytes(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..len_max)
}

/// The key of one of the three offices: 1 signs roots, 2 publishes, 3 assigns.
pub(crate) fn seed(office: u8) -> SigningKey {
    SigningKey::from_seed(&[office; 32])
}

/// A name of any kind.
fn name<T: std::str::FromStr + std::fmt::Debug>() -> impl Strategy<Value = T>
where
    T::Err: std::fmt::Debug,
{
    "[a-z0-9][a-z0-9._-]{0,12}".prop_map(|text| text.parse().expect("the pattern is the grammar of names"))
}

fn finite() -> impl Strategy<Value = f64> {
    prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::NEGATIVE
}

fn some<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = T> {
    select(values)
}

fn feature() -> impl Strategy<Value = Feature> {
    let dtype = some(&[Dtype::F32, Dtype::F64, Dtype::I64, Dtype::U8]);
    let lists = (any::<bool>(), any::<bool>(), any::<bool>());
    (dtype, vec(1..4_u32, 1..4), lists, finite()).prop_map(|(dtype, shape, (names, units, limits), bound)| {
        let values = shape.iter().product::<u32>() as usize;
        let bound = bound.abs();
        Feature {
            name: ACTION.to_owned(),
            dtype,
            shape,
            names: if names { (0..values).map(|i| format!("joint {i}")).collect() } else { Vec::new() },
            units: if units { vec!["rad/s²".to_owned()] } else { Vec::new() },
            min: if limits { vec![-bound; values] } else { Vec::new() },
            max: if limits { vec![bound; values] } else { Vec::new() },
            rate_hz: None,
            encoding: None,
        }
    })
}

pub(crate) fn encoding() -> impl Strategy<Value = Encoding> {
    some(&[Encoding::Jpeg, Encoding::H264])
}

pub(crate) fn embodiment() -> impl Strategy<Value = Embodiment> {
    let cameras = vec(encoding(), 0..3);
    let rates = vec(option::of(0.1..1000.0_f64), 4);
    (r"\PC{0,12}", 0.1..1000.0_f64, vec(feature(), 1..5), rates, cameras).prop_map(
        |(name, rate_hz, mut features, rates, cameras)| {
            for (i, (feature, rate)) in features.iter_mut().skip(1).zip(rates).enumerate() {
                feature.name = format!("observation.{i}");
                feature.rate_hz = rate;
            }
            for (i, encoding) in cameras.into_iter().enumerate() {
                features.insert(i, Feature::camera(&i.to_string(), 480, 640, 30.0, encoding));
            }
            Embodiment { name, rate_hz, features }
        },
    )
}

pub(crate) fn release_id() -> impl Strategy<Value = ReleaseId> {
    (name(), any::<u32>()).prop_map(|(skill, version)| ReleaseId { skill, version: SkillVersion(version) })
}

fn actor() -> impl Strategy<Value = Actor> {
    prop_oneof![
        Just(Actor::Human),
        Just(Actor::Script),
        (release_id(), any::<[u8; 32]>())
            .prop_map(|(release, bytes)| Actor::Release { release, manifest: Digest::from_bytes(bytes) }),
    ]
}

fn end() -> impl Strategy<Value = EpisodeEnd> {
    let limit = some(&[Truncation::StepLimit, Truncation::AgentStopped, Truncation::ClientGone, Truncation::SpoolFull]);
    prop_oneof![
        Just(EpisodeEnd::Terminated),
        limit.prop_map(|limit| EpisodeEnd::Truncated { limit }),
        some(&[AbortReason::Operator, AbortReason::Safety, AbortReason::Fault])
            .prop_map(|reason| EpisodeEnd::Aborted { reason }),
    ]
}

fn clock() -> impl Strategy<Value = Clock> {
    let quality = some(&[WallQuality::Implausible, WallQuality::Unsynchronised, WallQuality::Synchronised]);
    (any::<[u8; 16]>(), any::<u64>(), any::<i64>(), quality).prop_map(
        |(boot, begin_monotonic_ns, begin_wall_ns, wall_quality)| Clock {
            boot: BootId::from_bytes(boot),
            begin_monotonic_ns,
            begin_wall_ns,
            wall_quality,
        },
    )
}

fn chunks() -> impl Strategy<Value = Vec<ChunkRef>> {
    let one = (any::<[u8; 32]>(), 1..1_000_000_u32, 1..5000_u32);
    vec(one.prop_map(|(id, bytes, steps)| ChunkRef { id: ChunkId::from_bytes(id), bytes, steps }), 1..6)
}

pub(crate) fn manifest() -> impl Strategy<Value = Manifest> {
    let identity = (name(), name(), name(), any::<[u8; 16]>(), any::<u64>(), name());
    let story = (actor(), some(&[Outcome::Success, Outcome::Failure, Outcome::Unknown]), end(), clock());
    (identity, story, embodiment(), chunks(), vec(any::<Index>(), 0..6)).prop_map(
        |((tenant, site, robot, recording, ordinal, task), (actor, outcome, end, clock), embodiment, chunks, cuts)| {
            let own = embodiment.streams().map(|feature| Stream {
                name: feature.name.clone(),
                schema: Schema::stream(feature),
                chunks: chunks[1..].to_vec(),
            });
            let own: Vec<Stream> = own.collect();
            let steps = chunks.iter().map(|chunk| u64::from(chunk.steps)).sum::<u64>();
            Manifest {
                version: MANIFEST_VERSION,
                tenant,
                site,
                robot,
                recording: RecordingId::from_bytes(recording),
                ordinal,
                task,
                actor,
                outcome,
                end,
                interventions: ranges(steps, cuts).into_iter().map(Into::into).collect(),
                steps,
                clock,
                streams: [Stream { name: STEPS_STREAM.into(), schema: Schema::steps(&embodiment), chunks }]
                    .into_iter()
                    .chain(own)
                    .collect(),
                embodiment,
            }
        },
    )
}

/// Non-empty ranges in order inside `0..steps`.
fn ranges(steps: u64, cuts: Vec<Index>) -> Vec<Range<u64>> {
    let mut cuts: Vec<u64> = cuts.iter().map(|cut| cut.index(steps as usize) as u64).collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect()
}

pub(crate) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let episode = (name(), any::<u64>(), any::<[u8; 32]>());
    let episode =
        episode.prop_map(|(robot, ordinal, id)| SnapshotEpisode { robot, ordinal, id: EpisodeId::from_bytes(id) });
    (name(), ".*", vec(episode, 0..20)).prop_map(|(tenant, query, episodes)| Snapshot::new(tenant, query, episodes))
}

fn lineage() -> impl Strategy<Value = Lineage> {
    let metrics = prop::collection::btree_map("[a-z.]{1,12}", finite(), 0..4);
    (option::of(any::<[u8; 32]>()), any::<u64>(), ".{0,12}", metrics, 0.0..1e9_f64).prop_map(
        |(snapshot, seed, code_version, metrics, train_secs): (_, _, _, BTreeMap<String, f64>, _)| Lineage {
            snapshot: snapshot.map(SnapshotId::from_bytes),
            config: serde_json::json!({ "seed": seed, "layers": [256, 256], "lr": 3e-4 }),
            seed,
            code_version,
            metrics,
            train_secs,
        },
    )
}

/// Of tenant `acme`, as are [`root`] and [`assignment`].
pub(crate) fn release_manifest() -> impl Strategy<Value = ReleaseManifest> {
    let file = (0..9_000_000_u64, any::<[u8; 32]>());
    let tasks = prop::collection::btree_set("[a-z0-9-]{1,8}".prop_filter("no flag", |t| !t.starts_with('-')), 1..4);
    (release_id(), embodiment(), tasks, vec(file, 1..5), lineage()).prop_map(
        |(release, embodiment, tasks, files, lineage)| {
            let tasks = tasks.iter().map(|task| task.parse::<TaskName>().expect("the pattern is the grammar of names"));
            let files = files.into_iter().enumerate().map(|(i, (bytes, digest))| ReleaseFile {
                name: format!("file-{i}.bin"),
                bytes,
                digest: Digest::from_bytes(digest),
            });
            ReleaseManifest {
                tenant: "acme".parse().expect("a tenant"),
                release,
                policy: "mlp".into(),
                dtype: "bf16".into(),
                embodiment,
                tasks: tasks.collect(),
                files: files.collect(),
                lineage,
                licence: "MIT OR Apache-2.0".into(),
            }
        },
    )
}

/// With one key an office: see [`seed`].
pub(crate) fn root() -> impl Strategy<Value = Root> {
    (any::<u32>(), any::<u64>()).prop_map(|(version, expires_unix_secs)| Root {
        tenant: "acme".parse().expect("a tenant"),
        version,
        expires_unix_secs,
        root_keys: vec![seed(1).public()],
        root_threshold: 1,
        publishers: vec![Publisher { key: seed(2).public(), skills: Vec::new() }],
        assigners: vec![seed(3).public()],
    })
}

pub(crate) fn assignment() -> impl Strategy<Value = Assignment> {
    let releases = prop::collection::btree_map(name(), (1..u32::MAX, any::<[u8; 32]>()), 0..5);
    (name(), 1..u64::MAX, any::<u32>(), any::<u64>(), 1..u64::MAX, releases).prop_map(
        |(robot, sequence, root_version, issued_unix_secs, expires_unix_secs, releases)| {
            let floors = releases.iter().map(|(skill, (version, _))| VersionFloor {
                skill: Clone::clone(skill),
                version: SkillVersion(version - 1),
            });
            let assigned = releases.iter().map(|(skill, (version, digest))| AssignedRelease {
                release: ReleaseId { skill: Clone::clone(skill), version: SkillVersion(*version) },
                envelope: Digest::from_bytes(*digest),
            });
            Assignment {
                tenant: "acme".parse().expect("a tenant"),
                robot,
                sequence,
                root_version,
                issued_unix_secs,
                expires_unix_secs,
                releases: assigned.collect(),
                floors: floors.collect(),
            }
        },
    )
}

fn report() -> impl Strategy<Value = Report> {
    let state = some(&[
        ReleaseState::Fetching,
        ReleaseState::Staged,
        ReleaseState::Active,
        ReleaseState::Previous,
        ReleaseState::Failed,
    ]);
    let release = (release_id(), state, ".{0,100}");
    let release = release.prop_map(|(release, state, reason)| ReleaseReport { release, state, reason });
    let counts = any::<[u64; 4]>();
    (".{0,100}", any::<[u8; 16]>(), option::of(any::<[u8; 32]>()), counts, vec(release, 0..5)).prop_map(
        |(agent_version, boot, embodiment, [waiting, spool_bytes, recordings, sequence], releases)| Report {
            agent_version,
            boot: BootId::from_bytes(boot),
            embodiment: embodiment.map(EmbodimentId::from_bytes),
            episodes_waiting: waiting,
            spool_bytes,
            recordings,
            assignment_sequence: sequence,
            upload_policy_revision: sequence / 2,
            releases,
        },
    )
}

fn receipt() -> impl Strategy<Value = Receipt> {
    let beside = (any::<bool>(), any::<[u8; 32]>()).prop_map(|(left, digest)| {
        let digest = Digest::from_bytes(digest);
        if left { Beside::Left(digest) } else { Beside::Right(digest) }
    });
    let path = vec(beside, 0..=RECEIPT_PATH_MAX);
    (any::<[u8; 32]>(), any::<u64>(), path, any::<[u8; 16]>(), any::<[[u8; 32]; 2]>()).prop_map(
        |(episode, stored_unix_secs, path, key, signature)| Receipt {
            episode: EpisodeId::from_bytes(episode),
            stored_unix_secs,
            path,
            key: KeyId::from_bytes(key),
            signature: signature.concat().try_into().expect("twice 32 bytes"),
        },
    )
}

fn tombstone() -> impl Strategy<Value = Tombstone> {
    let count = || 0..=i64::MAX as u64;
    let outcome = some(&[Outcome::Success, Outcome::Failure, Outcome::Unknown]);
    let reason = some(&[EvictionReason::Quota, EvictionReason::DiskFull]);
    (any::<[u8; 16]>(), [count(), count(), count()], name(), outcome, any::<bool>(), reason).prop_map(
        |(recording, [ordinal, steps, bytes], task, outcome, interventions, reason)| Tombstone {
            recording: RecordingId::from_bytes(recording),
            ordinal,
            task,
            outcome,
            interventions,
            steps,
            bytes,
            reason,
        },
    )
}

pub(crate) fn message() -> impl Strategy<Value = Message> {
    let reason = some(&[
        RejectReason::Malformed,
        RejectReason::WrongIdentity,
        RejectReason::Conflict,
        RejectReason::WrongChunk,
        RejectReason::TooLarge,
    ]);
    let chunk = (any::<[u8; 32]>(), bytes(200));
    let rest = (any::<[u8; 32]>(), any::<u32>(), bytes(200));
    let fetch = (any::<[u8; 32]>(), any::<u64>());
    prop_oneof![
        report().prop_map(Message::Report),
        bytes(200).prop_map(|envelope| Message::Assign(SignedObject { envelope })),
        bytes(200).prop_map(|envelope| Message::Root(SignedObject { envelope })),
        bytes(200).prop_map(Message::Offer),
        (bytes(200), vec(resume(), 0..RESUMES_MAX)).prop_map(|(bitmap, resume)| Message::Want(Want { bitmap, resume })),
        any::<u32>().prop_map(|retry_after_ms| Message::Later(Later { retry_after_ms })),
        reason.prop_map(|reason| Message::Reject(Reject { reason })),
        chunk.prop_map(|(id, bytes)| Message::Chunk(ChunkBytes { id: ChunkId::from_bytes(id), bytes })),
        receipt().prop_map(Message::Durable),
        fetch.prop_map(|(digest, offset)| Message::Fetch(Fetch { digest: Digest::from_bytes(digest), offset })),
        any::<u64>().prop_map(|bytes_total| Message::Found(Found { bytes_total })),
        Just(Message::Missing),
        rest.prop_map(|(id, from, bytes)| {
            Message::ChunkRest(ChunkRest { id: ChunkId::from_bytes(id), from, bytes })
        }),
        any::<u64>().prop_map(Message::Ping),
        any::<u64>().prop_map(Message::Pong),
        vec(tombstone(), 0..5).prop_map(Message::Evicted),
        vec(any::<u64>(), 0..5).prop_map(Message::EvictionsStored),
        pushed_policy().prop_map(Message::UploadPolicy),
        bytes(200).prop_map(Message::Describe),
        Just(Message::Noted),
        vec(any::<[u8; 32]>().prop_map(EpisodeId::from_bytes), 0..5).prop_map(Message::Wanted),
    ]
}

pub(crate) fn pushed_policy() -> impl Strategy<Value = PushedPolicy> {
    let mode = some(&[UploadMode::All, UploadMode::MetadataFirst]);
    let cap = || option::of(UPLOAD_BYTES_PER_SECOND_MIN..);
    let window = (0..1440_u16, 0..1440_u16).prop_filter_map("a window", |(from, to)| Window::new(from, to).ok());
    let policy = (mode, cap(), cap(), any::<bool>(), vec(window, 0..5), proptest::collection::btree_set(name(), 0..5));
    let policy = policy.prop_map(|(mode, max, acting, metered, windows, keep_on_site_tasks)| HubPolicy {
        mode,
        bytes_per_second_max: max,
        bytes_per_second_max_acting: acting,
        metered,
        windows,
        keep_on_site_tasks,
    });
    (any::<u64>(), option::of(policy)).prop_map(|(revision, policy)| PushedPolicy { revision, policy })
}

fn resume() -> impl Strategy<Value = Resume> {
    any::<(u32, u32)>().prop_map(|(chunk, from)| Resume { chunk, from })
}

pub(crate) fn act() -> impl Strategy<Value = Act> {
    (name(), name(), any::<bool>(), vec(any::<f32>(), 0..60)).prop_map(|(skill, task, first, observation)| Act {
        skill,
        task,
        first,
        observation,
    })
}

pub(crate) fn begin() -> impl Strategy<Value = Begin> {
    let actor = prop_oneof![
        Just(BeginActor::Human),
        Just(BeginActor::Script),
        name().prop_map(|skill| BeginActor::Skill { skill }),
    ];
    (name(), embodiment(), actor).prop_map(|(task, embodiment, actor)| Begin { task, embodiment, actor })
}
