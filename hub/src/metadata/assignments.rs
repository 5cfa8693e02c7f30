//! Which releases each robot shall run, and the sequence of the last assignment signed for it.

use serde::Serialize;
use zunft_protocol::ids::{ReleaseId, RobotId, TenantId};

use super::sql::{Row, query};
use super::{Metadata, MetadataError, json};

/// What one robot shall run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AssignmentRecord {
    /// Which robot.
    pub robot: RobotId,
    /// Sequence of the last assignment signed for it.
    pub sequence: u64,
    /// The complete set, at most one release a skill.
    pub releases: Vec<ReleaseId>,
    /// When the set or the sequence last changed.
    pub updated_unix_ms: u64,
}

fn assignment_record(row: &Row) -> Result<AssignmentRecord, MetadataError> {
    Ok(AssignmentRecord {
        robot: row.name("robot")?,
        sequence: row.count("sequence")?,
        releases: row.json("releases")?,
        updated_unix_ms: row.count("updated_unix_ms")?,
    })
}

impl Metadata {
    /// What a robot shall run, where anything was assigned.
    pub async fn assignment(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
    ) -> Result<Option<AssignmentRecord>, MetadataError> {
        let row = query("SELECT * FROM assignments WHERE tenant = $1 AND robot = $2")
            .bind(tenant.as_str())
            .bind(robot.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(assignment_record).transpose()
    }

    /// What every robot of a tenant shall run.
    pub async fn assignments(&self, tenant: &TenantId) -> Result<Vec<AssignmentRecord>, MetadataError> {
        let rows = query("SELECT * FROM assignments WHERE tenant = $1 ORDER BY robot")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(assignment_record).collect()
    }

    /// Gives each robot a release in place of its skill's present one, and a new sequence, all or none.
    pub(crate) async fn assign(
        &self,
        tenant: &TenantId,
        robots: &[RobotId],
        release: &ReleaseId,
        now_unix_ms: u64,
    ) -> Result<(), MetadataError> {
        let mut transaction = self.begin().await?;
        for robot in robots {
            let row = query("SELECT * FROM assignments WHERE tenant = $1 AND robot = $2")
                .bind(tenant.as_str())
                .bind(robot.as_str())
                .fetch_optional(&mut transaction)
                .await?;
            let present = row.as_ref().map(assignment_record).transpose()?;
            let (sequence, mut releases) =
                present.map_or((0, Vec::new()), |present| (present.sequence, present.releases));
            releases.retain(|other| other.skill != release.skill);
            releases.push(release.clone());
            releases.sort();
            query(
                "INSERT INTO assignments (tenant, robot, sequence, releases, updated_unix_ms) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant, robot) DO UPDATE SET \
                 sequence = excluded.sequence, releases = excluded.releases, \
                 updated_unix_ms = excluded.updated_unix_ms",
            )
            .bind(tenant.as_str())
            .bind(robot.as_str())
            .bind(sequence as i64 + 1)
            .bind(json(&releases))
            .bind(now_unix_ms as i64)
            .execute(&mut transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Takes the next sequence for a fresh signature over the same set; `None` where nothing is assigned.
    ///
    /// `sequence_min` is one above what the robot has accepted: a hub restored from a backup catches up.
    pub(crate) async fn next_assignment(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
        sequence_min: u64,
        now_unix_ms: u64,
    ) -> Result<Option<AssignmentRecord>, MetadataError> {
        let row = query(
            "UPDATE assignments SET sequence = CASE WHEN sequence + 1 < $1 THEN $1 ELSE sequence + 1 END, \
             updated_unix_ms = $2 WHERE tenant = $3 AND robot = $4 RETURNING *",
        )
        .bind(sequence_min as i64)
        .bind(now_unix_ms as i64)
        .bind(tenant.as_str())
        .bind(robot.as_str())
        .fetch_optional(&self.writer)
        .await?;
        row.as_ref().map(assignment_record).transpose()
    }
}
