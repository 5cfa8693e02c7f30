//! Episodes that robots have and described, without having sent them: known, not held.
//!
//! Nothing here is durable experience: snapshots, receipts and counts know nothing of it. What arrives whole is an
//! episode like any other, and is no longer listed here.

use serde::Serialize;
use zunft_protocol::Manifest;
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::{EpisodeId, RobotId, TaskName, TenantId};

use super::sql::{Row, query};
use super::{Metadata, MetadataError, NotedCursor, RecordingCursor, word};

/// Of `noted_episodes n`: those that have not arrived.
macro_rules! not_held {
    () => {
        "NOT EXISTS (SELECT 1 FROM episodes h WHERE h.tenant = n.tenant AND h.episode = n.episode)"
    };
}

/// Of `noted_episodes n`: those that the robot gave up, in its own word. The ordinal alone is not enough: it begins
/// anew where a robot's spool was replaced.
macro_rules! given_up {
    () => {
        "EXISTS (SELECT 1 FROM evictions e WHERE e.tenant = n.tenant AND e.robot = n.robot AND e.ordinal = n.ordinal \
         AND e.recording = n.recording)"
    };
}

/// What is to become of an episode that is on its robot alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotedState {
    /// Nobody asked for it.
    Noted,
    /// Somebody did; its robot sends it, or will when it connects.
    Requested,
    /// Its robot gave it up for want of room: it never comes.
    GivenUp,
}

/// An episode that is on its robot alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotedRecord {
    /// Its id: the hash of its manifest.
    pub id: EpisodeId,
    /// Whose.
    pub robot: RobotId,
    /// Which of the robot's recordings.
    pub ordinal: u64,
    /// What it is about.
    pub task: TaskName,
    /// Whether the task was done.
    pub outcome: Outcome,
    /// Whether a person took over in it.
    pub interventions: bool,
    /// Its steps.
    pub steps: u64,
    /// Bytes of its chunks.
    pub bytes: u64,
    /// When the robot first described it.
    pub noted_unix_ms: u64,
    /// What is to become of it.
    pub state: NotedState,
}

fn noted_record(row: &Row) -> Result<NotedRecord, MetadataError> {
    let requested: Option<i64> = row.try_get("requested_unix_ms")?;
    Ok(NotedRecord {
        id: EpisodeId::from_bytes(row.bytes("episode")?),
        robot: row.name("robot")?,
        ordinal: row.count("ordinal")?,
        task: row.name("task")?,
        outcome: row.word("outcome")?,
        interventions: row.count("interventions")? != 0,
        steps: row.count("steps")?,
        bytes: row.count("bytes")?,
        noted_unix_ms: row.count("noted_unix_ms")?,
        state: match (row.count("given_up")?, requested) {
            (1.., _) => NotedState::GivenUp,
            (0, Some(_)) => NotedState::Requested,
            (0, None) => NotedState::Noted,
        },
    })
}

impl NotedRecord {
    /// Where a list goes on behind it.
    pub fn cursor(&self) -> NotedCursor {
        let recording = RecordingCursor { ordinal: self.ordinal, id: self.id };
        NotedCursor { robot: self.robot.clone(), recording }
    }
}

impl Metadata {
    /// Notes an episode that a robot described. What is noted already stays as it is.
    pub(crate) async fn note_episode(
        &self,
        tenant: &TenantId,
        episode: EpisodeId,
        manifest: &Manifest,
        now_unix_ms: u64,
    ) -> Result<(), MetadataError> {
        query(
            "INSERT INTO noted_episodes (tenant, episode, robot, ordinal, recording, task, outcome, interventions, \
             steps, bytes, noted_unix_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (tenant, episode) DO NOTHING",
        )
        .bind(tenant.as_str())
        .bind(episode.as_bytes().to_vec())
        .bind(manifest.robot.as_str())
        .bind(manifest.ordinal.min(i64::MAX as u64) as i64)
        .bind(manifest.recording.as_bytes().to_vec())
        .bind(manifest.task.as_str())
        .bind(word(&manifest.outcome))
        .bind(i64::from(!manifest.interventions.is_empty()))
        .bind(manifest.steps as i64)
        .bind(manifest.bytes() as i64)
        .bind(now_unix_ms as i64)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// What is on robots alone, by robot and number of the recording, after this one.
    pub async fn noted_episodes(
        &self,
        tenant: &TenantId,
        after: Option<&NotedCursor>,
        limit: u32,
    ) -> Result<Vec<NotedRecord>, MetadataError> {
        let rows = query(concat!(
            "SELECT n.*, CAST(CASE WHEN ",
            given_up!(),
            " THEN 1 ELSE 0 END AS BIGINT) AS given_up FROM noted_episodes n WHERE n.tenant = $1 AND ",
            not_held!(),
            " AND (n.robot > $2 OR (n.robot = $3 AND (n.ordinal > $4 OR (n.ordinal = $5 AND n.episode > $6)))) ",
            "ORDER BY n.robot, n.ordinal, n.episode LIMIT $7"
        ))
        .bind(tenant.as_str())
        .bind(after.map_or("", |after| after.robot.as_str()))
        .bind(after.map_or("", |after| after.robot.as_str()))
        .bind(after.map_or(-1, |after| after.recording.ordinal as i64))
        .bind(after.map_or(-1, |after| after.recording.ordinal as i64))
        .bind(after.map_or(Vec::new(), |after| after.recording.id.as_bytes().to_vec()))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(noted_record).collect()
    }

    /// Asks for noted episodes, all or none; returns their robots.
    pub(crate) async fn request_episodes(
        &self,
        tenant: &TenantId,
        episodes: &[EpisodeId],
        now_unix_ms: u64,
    ) -> Result<Vec<RobotId>, MetadataError> {
        let mut transaction = self.begin().await?;
        let mut robots = Vec::new();
        for episode in episodes {
            let row = query(
                "UPDATE noted_episodes SET requested_unix_ms = COALESCE(requested_unix_ms, $1) \
                 WHERE tenant = $2 AND episode = $3 RETURNING robot",
            )
            .bind(now_unix_ms as i64)
            .bind(tenant.as_str())
            .bind(episode.as_bytes().to_vec())
            .fetch_optional(&mut transaction)
            .await?;
            let missing = || MetadataError::Missing { what: "noted episode", id: episode.to_string() };
            robots.push(row.ok_or_else(missing)?.name("robot")?);
        }
        transaction.commit().await?;
        Ok(robots)
    }

    /// What was asked for of a robot and has neither come nor been given up: what was recorded after this one, oldest
    /// first, and then the rest. Where to go on from next time comes with it.
    pub(crate) async fn wanted_episodes(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
        after: Option<RecordingCursor<EpisodeId>>,
        limit: u32,
    ) -> Result<(Vec<EpisodeId>, Option<RecordingCursor<EpisodeId>>), MetadataError> {
        let rows = query(concat!(
            "SELECT n.episode, n.ordinal FROM noted_episodes n WHERE n.tenant = $1 AND n.robot = $2 ",
            "AND n.requested_unix_ms IS NOT NULL AND ",
            not_held!(),
            " AND NOT ",
            given_up!(),
            " ORDER BY CASE WHEN n.ordinal > $3 OR (n.ordinal = $4 AND n.episode > $5) THEN 0 ELSE 1 END, ",
            "n.ordinal, n.episode LIMIT $6"
        ))
        .bind(tenant.as_str())
        .bind(robot.as_str())
        .bind(after.map_or(-1, |after| after.ordinal as i64))
        .bind(after.map_or(-1, |after| after.ordinal as i64))
        .bind(after.map_or(Vec::new(), |after| after.id.as_bytes().to_vec()))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let wanted = rows.iter().map(|row| {
            let id = EpisodeId::from_bytes(row.bytes("episode")?);
            Ok(RecordingCursor { ordinal: row.count("ordinal")?, id })
        });
        let wanted = wanted.collect::<Result<Vec<_>, MetadataError>>()?;
        Ok((wanted.iter().map(|wanted| wanted.id).collect(), wanted.last().copied()))
    }
}
