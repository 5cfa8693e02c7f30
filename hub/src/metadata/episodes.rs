//! Episodes, and where their manifests and chunks lie in packs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use zunft_protocol::Embodiment;
use zunft_protocol::episode::{Actor, EpisodeEnd, Manifest, Outcome};
use zunft_protocol::ids::{
    ChunkId, Digest, EmbodimentId, EpisodeId, RecordingId, ReleaseId, RobotId, SiteId, TaskName, TenantId,
};
use zunft_protocol::snapshot::SnapshotEpisode;
use zunft_skills::data::ActorKind;

use super::sql::{Row, Statement, Transaction, Value, query};
use super::unnamed::name_chunks;
use super::{Metadata, MetadataError, json, word};

/// Most episodes in one page of a listing.
pub const PAGE_EPISODES_MAX: u32 = 1000;

/// Ids in one SQL statement: SQLite allows 32,766 parameters.
pub(super) const IDS_PER_STATEMENT: usize = 1000;

/// Chunks in one SQL statement, of seven parameters each.
const ROWS_PER_STATEMENT: usize = 1000;

/// Episodes in one SQL statement, of 21 parameters each.
const EPISODES_PER_STATEMENT: usize = 250;

/// Neither chunks nor manifests are encrypted yet.
const KEY_NONE: i64 = 0;

/// How an episode ended, without the particulars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndingKind {
    /// The task reached an end of its own.
    Terminated,
    /// The recording was cut off.
    Truncated,
    /// Someone gave up.
    Aborted,
}

impl From<&EpisodeEnd> for EndingKind {
    fn from(end: &EpisodeEnd) -> Self {
        match end {
            EpisodeEnd::Terminated => Self::Terminated,
            EpisodeEnd::Truncated { .. } => Self::Truncated,
            EpisodeEnd::Aborted { .. } => Self::Aborted,
        }
    }
}

/// Which episodes to list or to freeze; an empty list allows everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpisodeFilter {
    /// Of these tasks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskName>,
    /// Of these robots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub robots: Vec<RobotId>,
    /// At these sites.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteId>,
    /// With these outcomes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<Outcome>,
    /// With these endings.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endings: Vec<EndingKind>,
    /// Where these acted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub actors: Vec<ActorKind>,
    /// Where these releases acted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub releases: Vec<ReleaseId>,
    /// With these bodies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub embodiments: Vec<EmbodimentId>,
    /// From this recording of each robot on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordinal_min: Option<u64>,
    /// Up to this recording of each robot, it included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordinal_max: Option<u64>,
    /// That arrived after this number ([`EpisodeRecord::arrival`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arrived_after: Option<u64>,
}

/// One episode, without its steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpisodeRecord {
    /// Its id.
    pub id: EpisodeId,
    /// The recording that it is of.
    pub recording: RecordingId,
    /// Counts the tenant's episodes in the order of arrival, from 1; pages continue after it.
    pub arrival: u64,
    /// Whose.
    pub robot: RobotId,
    /// Where.
    pub site: SiteId,
    /// Which of the robot's recordings.
    pub ordinal: u64,
    /// What it was about.
    pub task: TaskName,
    /// With what body.
    pub embodiment: EmbodimentId,
    /// Who acted.
    pub actor: ActorKind,
    /// Which release acted, if one did.
    pub release: Option<ReleaseId>,
    /// Whether it went well.
    pub outcome: Outcome,
    /// How it ended.
    pub ending: EndingKind,
    /// Steps.
    pub steps: u64,
    /// Stored bytes of its chunks.
    pub bytes: u64,
    /// Estimate of when it began, nanoseconds since 1970.
    pub begin_wall_ns: i64,
    /// When it became durable here.
    pub stored_unix_ms: u64,
}

/// Some episodes in the order of arrival.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpisodePage {
    /// At most as many as asked for.
    pub episodes: Vec<EpisodeRecord>,
    /// `arrived_after` of the next page, where there may be one.
    pub next: Option<u64>,
}

/// Where some stored bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// In which pack.
    pub pack: Digest,
    /// From which byte on.
    pub position: u64,
    /// How many.
    pub bytes: u32,
}

/// A pack that is durable and not yet known here.
#[derive(Debug)]
pub(crate) struct NewPack {
    pub(crate) pack: Digest,
    pub(crate) bytes: u64,
    pub(crate) chunks: Vec<NewChunk>,
    pub(crate) episodes: Vec<NewEpisode>,
}

/// A chunk of a new pack.
#[derive(Debug)]
pub(crate) struct NewChunk {
    pub(crate) id: ChunkId,
    pub(crate) position: u64,
    pub(crate) bytes: u32,
}

/// An episode whose manifest lies in a new pack.
#[derive(Debug)]
pub(crate) struct NewEpisode {
    pub(crate) id: EpisodeId,
    pub(crate) manifest: Manifest,
    pub(crate) position: u64,
    pub(crate) bytes: u32,
}

/// What became of each episode of a new pack, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registered {
    /// It is in the metadata, since this time.
    Stored { stored_unix_ms: u64 },
    /// Its recording has another episode.
    Conflict,
    /// A chunk that it needs is nowhere.
    ChunkMissing,
}

fn episode_record(row: &Row) -> Result<EpisodeRecord, MetadataError> {
    let release: Option<String> = row.try_get("release")?;
    Ok(EpisodeRecord {
        id: EpisodeId::from_bytes(row.bytes("episode")?),
        recording: RecordingId::from_bytes(row.bytes("recording")?),
        arrival: row.count("arrival")?,
        robot: row.name("robot")?,
        site: row.name("site")?,
        ordinal: row.count("ordinal")?,
        task: row.name("task")?,
        embodiment: EmbodimentId::from_bytes(row.bytes("embodiment")?),
        actor: row.word("actor")?,
        release: release.map(|_| row.name("release")).transpose()?,
        outcome: row.word("outcome")?,
        ending: row.word("ending")?,
        steps: row.count("steps")?,
        bytes: row.count("bytes")?,
        begin_wall_ns: row.try_get("begin_wall_ns")?,
        stored_unix_ms: row.count("stored_unix_ms")?,
    })
}

fn location(row: &Row, bytes: &'static str) -> Result<Location, MetadataError> {
    Ok(Location {
        pack: Digest::from_bytes(row.bytes("pack")?),
        position: row.count("position")?,
        bytes: row.count(bytes)? as u32,
    })
}

impl EpisodeFilter {
    /// Adds the conditions to a statement that ends in a condition.
    fn push(&self, query: &mut Statement) {
        fn one_of(query: &mut Statement, condition: &'static str, values: Vec<String>) {
            if !values.is_empty() {
                query.push(condition).push_list(values);
            }
        }
        one_of(query, " AND task IN ", self.tasks.iter().map(ToString::to_string).collect());
        one_of(query, " AND robot IN ", self.robots.iter().map(ToString::to_string).collect());
        one_of(query, " AND site IN ", self.sites.iter().map(ToString::to_string).collect());
        one_of(query, " AND outcome IN ", self.outcomes.iter().map(word).collect());
        one_of(query, " AND ending IN ", self.endings.iter().map(word).collect());
        one_of(query, " AND actor IN ", self.actors.iter().map(word).collect());
        one_of(query, " AND release IN ", self.releases.iter().map(ToString::to_string).collect());
        if !self.embodiments.is_empty() {
            query.push(" AND embodiment IN ").push_list(self.embodiments.iter().map(|id| id.as_bytes().as_slice()));
        }
        for (condition, bound) in [
            (" AND ordinal >= ", self.ordinal_min),
            (" AND ordinal <= ", self.ordinal_max),
            (" AND arrival > ", self.arrived_after),
        ] {
            if let Some(bound) = bound {
                query.push(condition).push_bind(bound.min(i64::MAX as u64) as i64);
            }
        }
    }
}

impl Metadata {
    /// Episodes that pass the filter, in the order of arrival, at most `limit` ([`PAGE_EPISODES_MAX`]).
    pub async fn episodes(
        &self,
        tenant: &TenantId,
        filter: &EpisodeFilter,
        limit: u32,
    ) -> Result<EpisodePage, MetadataError> {
        let limit = limit.clamp(1, PAGE_EPISODES_MAX);
        let mut query = Statement::begin("SELECT * FROM episodes WHERE tenant = ");
        query.push_bind(tenant.as_str());
        filter.push(&mut query);
        query.push(" ORDER BY arrival LIMIT ").push_bind(i64::from(limit));
        let rows = query.fetch_all(&self.readers).await?;
        let episodes = rows.iter().map(episode_record).collect::<Result<Vec<_>, _>>()?;
        let full = episodes.len() == limit as usize;
        let next = episodes.last().filter(|_| full).map(|last| last.arrival);
        Ok(EpisodePage { episodes, next })
    }

    /// How many episodes pass the filter.
    pub async fn episode_count(&self, tenant: &TenantId, filter: &EpisodeFilter) -> Result<u64, MetadataError> {
        let mut query = Statement::begin("SELECT COUNT(*) AS count FROM episodes WHERE tenant = ");
        query.push_bind(tenant.as_str());
        filter.push(&mut query);
        query.fetch_one(&self.readers).await?.count("count")
    }

    /// Every episode that passes the filter, as a snapshot lists it.
    pub(crate) async fn snapshot_episodes(
        &self,
        tenant: &TenantId,
        filter: &EpisodeFilter,
    ) -> Result<Vec<SnapshotEpisode>, MetadataError> {
        let mut query = Statement::begin("SELECT robot, ordinal, episode FROM episodes WHERE tenant = ");
        query.push_bind(tenant.as_str());
        filter.push(&mut query);
        let rows = query.fetch_all(&self.readers).await?;
        rows.iter()
            .map(|row| {
                let id = EpisodeId::from_bytes(row.bytes("episode")?);
                Ok(SnapshotEpisode { robot: row.name("robot")?, ordinal: row.count("ordinal")?, id })
            })
            .collect()
    }

    /// One episode, where it is stored.
    pub async fn episode(&self, tenant: &TenantId, id: EpisodeId) -> Result<Option<EpisodeRecord>, MetadataError> {
        let row = query("SELECT * FROM episodes WHERE tenant = $1 AND episode = $2")
            .bind(tenant.as_str())
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(episode_record).transpose()
    }

    /// Where an episode's manifest lies.
    pub(crate) async fn manifest_location(
        &self,
        tenant: &TenantId,
        id: EpisodeId,
    ) -> Result<Option<Location>, MetadataError> {
        let row = query("SELECT pack, position, manifest_bytes FROM episodes WHERE tenant = $1 AND episode = $2")
            .bind(tenant.as_str())
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(|row| location(row, "manifest_bytes")).transpose()
    }

    /// Where a chunk lies.
    pub(crate) async fn chunk_location(
        &self,
        tenant: &TenantId,
        id: ChunkId,
    ) -> Result<Option<Location>, MetadataError> {
        let row = query("SELECT pack, position, bytes FROM chunks WHERE tenant = $1 AND chunk = $2")
            .bind(tenant.as_str())
            .bind(id.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(|row| location(row, "bytes")).transpose()
    }

    /// Which of these recordings have an episode, and since when; and which of these chunks the tenant has.
    pub(crate) async fn known(
        &self,
        tenant: &TenantId,
        recordings: &[RecordingId],
        chunks: &[ChunkId],
    ) -> Result<(BTreeMap<RecordingId, (EpisodeId, u64)>, BTreeSet<ChunkId>), MetadataError> {
        let mut episodes = BTreeMap::new();
        for recordings in recordings.chunks(IDS_PER_STATEMENT) {
            let mut query = Statement::begin("SELECT recording, episode, stored_unix_ms FROM episodes WHERE tenant = ");
            query.push_bind(tenant.as_str()).push(" AND recording IN ");
            query.push_list(recordings.iter().map(|recording| recording.as_bytes().as_slice()));
            for row in query.fetch_all(&self.readers).await? {
                let recording = RecordingId::from_bytes(row.bytes("recording")?);
                episodes
                    .insert(recording, (EpisodeId::from_bytes(row.bytes("episode")?), row.count("stored_unix_ms")?));
            }
        }
        Ok((episodes, self.present_chunks(tenant, chunks).await?))
    }

    /// The episode of a recording, where there is one, and since when.
    #[cfg(test)]
    pub(crate) async fn episode_of_recording(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<Option<(EpisodeId, u64)>, MetadataError> {
        Ok(self.known(tenant, &[recording], &[]).await?.0.remove(&recording))
    }

    /// Which of these chunks the tenant has.
    pub(crate) async fn present_chunks(
        &self,
        tenant: &TenantId,
        ids: &[ChunkId],
    ) -> Result<BTreeSet<ChunkId>, MetadataError> {
        let mut present = BTreeSet::new();
        for ids in ids.chunks(IDS_PER_STATEMENT) {
            let mut query = Statement::begin("SELECT chunk FROM chunks WHERE tenant = ");
            query.push_bind(tenant.as_str()).push(" AND chunk IN ");
            query.push_list(ids.iter().map(|id| id.as_bytes().as_slice()));
            for row in query.fetch_all(&self.readers).await? {
                present.insert(ChunkId::from_bytes(row.bytes("chunk")?));
            }
        }
        Ok(present)
    }

    /// The bodies that a tenant's robots have had.
    pub async fn embodiments(&self, tenant: &TenantId) -> Result<Vec<Embodiment>, MetadataError> {
        let rows = query("SELECT definition FROM embodiments WHERE tenant = $1 ORDER BY name, embodiment")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| row.json("definition")).collect()
    }

    /// Takes a durable pack into the metadata: all of it or, on an error, nothing.
    ///
    /// An episode that cannot be taken does not hinder the others; its bytes stay in the pack, unreferenced.
    pub(crate) async fn register_pack(
        &self,
        tenant: &TenantId,
        pack: &NewPack,
        now_unix_ms: u64,
    ) -> Result<Vec<Registered>, MetadataError> {
        self.register_named(tenant, pack, BTreeSet::new(), now_unix_ms).await
    }

    /// The same, and `named` are chunks that episodes name which are listed already, whoever's pack they come in.
    pub(crate) async fn register_named(
        &self,
        tenant: &TenantId,
        pack: &NewPack,
        mut named: BTreeSet<ChunkId>,
        now_unix_ms: u64,
    ) -> Result<Vec<Registered>, MetadataError> {
        let mut transaction = self.begin().await?;
        query(
            "INSERT INTO packs (tenant, pack, bytes, stored_unix_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tenant, pack) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(pack.pack.as_bytes().as_slice())
        .bind(pack.bytes as i64)
        .bind(now_unix_ms as i64)
        .execute(&mut transaction)
        .await?;
        let arrival = query("SELECT COALESCE(MAX(arrival), 0) AS arrival FROM episodes WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_one(&mut transaction)
            .await?;
        let mut arrival = arrival.count("arrival")?;
        let mut stored = stored_recordings(&mut transaction, tenant, &pack.episodes).await?;
        let held: BTreeSet<ChunkId> = pack.chunks.iter().map(|chunk| chunk.id).collect();
        let mut registered = Vec::with_capacity(pack.episodes.len());
        let mut new = Vec::with_capacity(pack.episodes.len());
        for episode in &pack.episodes {
            let outcome = if let Some(&(id, stored_unix_ms)) = stored.get(&episode.manifest.recording) {
                if id == episode.id {
                    // Its chunks may have come back after they were lost.
                    named.extend(episode.manifest.chunks().map(|chunk| chunk.id));
                    Registered::Stored { stored_unix_ms }
                } else {
                    Registered::Conflict
                }
            } else if all_present(&mut transaction, tenant, &episode.manifest, &held).await? {
                named.extend(episode.manifest.chunks().map(|chunk| chunk.id));
                arrival += 1;
                stored.insert(episode.manifest.recording, (episode.id, now_unix_ms));
                new.push((arrival, episode));
                Registered::Stored { stored_unix_ms: now_unix_ms }
            } else {
                Registered::ChunkMissing
            };
            registered.push(outcome);
        }
        insert_chunks(&mut transaction, tenant, pack, &named, now_unix_ms).await?;
        let before: Vec<ChunkId> = named.difference(&held).copied().collect();
        name_chunks(&mut transaction, tenant, &before).await?;
        insert_embodiments(&mut transaction, tenant, &new).await?;
        for new in new.chunks(EPISODES_PER_STATEMENT) {
            insert_episodes(&mut transaction, tenant, pack.pack, new, now_unix_ms).await?;
        }
        transaction.commit().await?;
        Ok(registered)
    }
}

/// Inserts a pack's chunks; those that none of the episodes names are unnamed from now on.
async fn insert_chunks(
    transaction: &mut Transaction,
    tenant: &TenantId,
    pack: &NewPack,
    named: &BTreeSet<ChunkId>,
    now_unix_ms: u64,
) -> Result<(), MetadataError> {
    // PostgreSQL does not update a row twice in one statement.
    let mut listed = BTreeSet::new();
    let chunks: Vec<&NewChunk> = pack.chunks.iter().filter(|chunk| listed.insert(chunk.id)).collect();
    for chunks in chunks.chunks(ROWS_PER_STATEMENT) {
        let mut query = Statement::begin(
            "INSERT INTO chunks (tenant, chunk, pack, position, bytes, key_id, unnamed_unix_ms) VALUES ",
        );
        for (index, chunk) in chunks.iter().enumerate() {
            let unnamed = (!named.contains(&chunk.id)).then_some(now_unix_ms as i64);
            query.push(if index == 0 { "" } else { ", " }).push_list([
                Value::from(tenant.as_str()),
                chunk.id.as_bytes().as_slice().into(),
                pack.pack.as_bytes().as_slice().into(),
                (chunk.position as i64).into(),
                i64::from(chunk.bytes).into(),
                KEY_NONE.into(),
                unnamed.into(),
            ]);
        }
        // A chunk that is there already stays where it is; this may name it, or make it count as new.
        query.push(
            " ON CONFLICT (tenant, chunk) DO UPDATE SET unnamed_unix_ms = excluded.unnamed_unix_ms \
             WHERE chunks.unnamed_unix_ms IS NOT NULL AND (excluded.unnamed_unix_ms IS NULL \
             OR excluded.unnamed_unix_ms > chunks.unnamed_unix_ms)",
        );
        query.execute(&mut *transaction).await?;
    }
    Ok(())
}

/// Which of these episodes' recordings have an episode already, and since when.
async fn stored_recordings(
    transaction: &mut Transaction,
    tenant: &TenantId,
    episodes: &[NewEpisode],
) -> Result<BTreeMap<RecordingId, (EpisodeId, u64)>, MetadataError> {
    let mut stored = BTreeMap::new();
    for episodes in episodes.chunks(IDS_PER_STATEMENT) {
        let mut query = Statement::begin("SELECT recording, episode, stored_unix_ms FROM episodes WHERE tenant = ");
        query.push_bind(tenant.as_str()).push(" AND recording IN ");
        query.push_list(episodes.iter().map(|episode| episode.manifest.recording.as_bytes().as_slice()));
        for row in query.fetch_all(&mut *transaction).await? {
            let recording = RecordingId::from_bytes(row.bytes("recording")?);
            stored.insert(recording, (EpisodeId::from_bytes(row.bytes("episode")?), row.count("stored_unix_ms")?));
        }
    }
    Ok(stored)
}

async fn insert_embodiments(
    transaction: &mut Transaction,
    tenant: &TenantId,
    episodes: &[(u64, &NewEpisode)],
) -> Result<(), MetadataError> {
    let embodiments: BTreeMap<EmbodimentId, &Embodiment> =
        episodes.iter().map(|(_, episode)| &episode.manifest.embodiment).map(|body| (body.id(), body)).collect();
    for (id, embodiment) in embodiments {
        query(
            "INSERT INTO embodiments (tenant, embodiment, name, definition) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tenant, embodiment) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(id.as_bytes().as_slice())
        .bind(&embodiment.name)
        .bind(json(embodiment))
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}

/// Inserts new episodes, each with its number in the order of arrival.
async fn insert_episodes(
    transaction: &mut Transaction,
    tenant: &TenantId,
    pack: Digest,
    episodes: &[(u64, &NewEpisode)],
    now_unix_ms: u64,
) -> Result<(), MetadataError> {
    let mut query = Statement::begin(
        "INSERT INTO episodes (tenant, episode, recording, arrival, robot, site, ordinal, task, embodiment, actor, \
         release, outcome, ending, steps, bytes, begin_wall_ns, stored_unix_ms, pack, position, manifest_bytes, \
         key_id) VALUES ",
    );
    for (index, (arrival, episode)) in episodes.iter().enumerate() {
        let manifest = &episode.manifest;
        let release = match &manifest.actor {
            Actor::Release { release, .. } => Some(release.to_string()),
            Actor::Human | Actor::Script => None,
        };
        query.push(if index == 0 { "" } else { ", " }).push_list([
            Value::from(tenant.as_str()),
            episode.id.as_bytes().as_slice().into(),
            manifest.recording.as_bytes().as_slice().into(),
            (*arrival as i64).into(),
            manifest.robot.as_str().into(),
            manifest.site.as_str().into(),
            (manifest.ordinal.min(i64::MAX as u64) as i64).into(),
            manifest.task.as_str().into(),
            manifest.embodiment.id().as_bytes().as_slice().into(),
            word(&ActorKind::from(&manifest.actor)).into(),
            release.into(),
            word(&manifest.outcome).into(),
            word(&EndingKind::from(&manifest.end)).into(),
            (manifest.steps as i64).into(),
            (manifest.bytes() as i64).into(),
            manifest.clock.begin_wall_ns.into(),
            (now_unix_ms as i64).into(),
            pack.as_bytes().as_slice().into(),
            (episode.position as i64).into(),
            i64::from(episode.bytes).into(),
            KEY_NONE.into(),
        ]);
    }
    query.execute(transaction).await?;
    Ok(())
}

/// Whether every chunk of the manifest is stored: those that are not among `held` are looked up.
async fn all_present(
    transaction: &mut Transaction,
    tenant: &TenantId,
    manifest: &Manifest,
    held: &BTreeSet<ChunkId>,
) -> Result<bool, MetadataError> {
    let needed: BTreeSet<ChunkId> = manifest.chunks().map(|chunk| chunk.id).filter(|id| !held.contains(id)).collect();
    let needed: Vec<ChunkId> = needed.into_iter().collect();
    for ids in needed.chunks(IDS_PER_STATEMENT) {
        let mut query = Statement::begin("SELECT COUNT(*) AS count FROM chunks WHERE tenant = ");
        query.push_bind(tenant.as_str()).push(" AND chunk IN ");
        query.push_list(ids.iter().map(|id| id.as_bytes().as_slice()));
        if query.fetch_one(&mut *transaction).await?.count("count")? != ids.len() as u64 {
            return Ok(false);
        }
    }
    Ok(true)
}
