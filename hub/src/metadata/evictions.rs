//! What robots gave up for want of room, as they told it.

use serde::Serialize;
use zunft_protocol::episode::Outcome;
use zunft_protocol::ids::{RecordingId, RobotId, TaskName, TenantId};
use zunft_protocol::message::{EvictionReason, Tombstone};

use super::sql::query;
use super::{Metadata, MetadataError, RecordingCursor, word};

/// One episode that a robot gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvictionRecord {
    /// What is left of it.
    pub tombstone: Tombstone,
    /// When the robot first told.
    pub told_unix_ms: u64,
}

impl EvictionRecord {
    /// Where a list of its robot goes on behind it.
    pub fn cursor(&self) -> RecordingCursor<RecordingId> {
        RecordingCursor { ordinal: self.tombstone.ordinal, id: self.tombstone.recording }
    }
}

impl Metadata {
    /// Keeps what a robot gave up. What is known already stays as it was first told.
    pub(crate) async fn record_evictions(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
        tombstones: &[Tombstone],
        now_unix_ms: u64,
    ) -> Result<(), MetadataError> {
        let mut transaction = self.begin().await?;
        for tombstone in tombstones {
            query(
                "INSERT INTO evictions (tenant, robot, ordinal, recording, task, outcome, interventions, steps, bytes, \
                 reason, told_unix_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
                 ON CONFLICT (tenant, robot, ordinal, recording) DO NOTHING",
            )
            .bind(tenant.as_str())
            .bind(robot.as_str())
            .bind(tombstone.ordinal as i64)
            .bind(tombstone.recording.as_bytes().to_vec())
            .bind(tombstone.task.as_str())
            .bind(word(&tombstone.outcome))
            .bind(i64::from(tombstone.interventions))
            .bind(tombstone.steps as i64)
            .bind(tombstone.bytes as i64)
            .bind(word(&tombstone.reason))
            .bind(now_unix_ms as i64)
            .execute(&mut transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// What a robot gave up, in the order of its recordings, after this one.
    pub async fn evictions(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
        after: Option<RecordingCursor<RecordingId>>,
        limit: u32,
    ) -> Result<Vec<EvictionRecord>, MetadataError> {
        let rows = query(
            "SELECT * FROM evictions WHERE tenant = $1 AND robot = $2 \
             AND (ordinal > $3 OR (ordinal = $4 AND recording > $5)) ORDER BY ordinal, recording LIMIT $6",
        )
        .bind(tenant.as_str())
        .bind(robot.as_str())
        .bind(after.map_or(-1, |after| after.ordinal as i64))
        .bind(after.map_or(-1, |after| after.ordinal as i64))
        .bind(after.map_or(Vec::new(), |after| after.id.as_bytes().to_vec()))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let records = rows.iter().map(|row| {
            let tombstone = Tombstone {
                recording: RecordingId::from_bytes(row.bytes("recording")?),
                ordinal: row.count("ordinal")?,
                task: row.name::<TaskName>("task")?,
                outcome: row.word::<Outcome>("outcome")?,
                interventions: row.count("interventions")? != 0,
                steps: row.count("steps")?,
                bytes: row.count("bytes")?,
                reason: row.word::<EvictionReason>("reason")?,
            };
            Ok(EvictionRecord { tombstone, told_unix_ms: row.count("told_unix_ms")? })
        });
        records.collect()
    }
}
