//! Tenants, sites, robots, their certificates and what they last said about themselves.

use serde::{Deserialize, Serialize};
use zunft_protocol::ids::{EmbodimentId, ReleaseId, RobotId, SiteId, TenantId};
use zunft_protocol::message::{ReleaseState, Report};

use super::sql::{Row, query};
use super::{Metadata, MetadataError, json};
use crate::identity::RobotIdentity;

/// One robot, as it last was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RobotRecord {
    /// Its name.
    pub robot: RobotId,
    /// Where it is.
    pub site: SiteId,
    /// When it was added.
    pub created_unix_ms: u64,
    /// When it last said anything.
    pub last_seen_unix_ms: Option<u64>,
    /// The body of its last report or episode.
    pub embodiment: Option<EmbodimentId>,
    /// What it last said about itself.
    pub report: Option<RobotReport>,
}

/// A robot's last report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobotReport {
    /// Version of its agent.
    pub agent_version: String,
    /// Episodes that wait for upload.
    pub episodes_waiting: u64,
    /// Bytes on its disk for them.
    pub spool_bytes: u64,
    /// Recordings begun since its agent was installed.
    pub recordings: u64,
    /// The last assignment that it accepted.
    pub assignment_sequence: u64,
    /// The revision of the hub's upload policy that it keeps to.
    pub upload_policy_revision: u64,
    /// The releases that it has.
    pub releases: Vec<ReleaseOnRobot>,
}

/// A report that is not recorded yet.
#[derive(Debug)]
pub(crate) struct NewReport {
    /// Whose robot.
    pub(crate) tenant: TenantId,
    /// Which.
    pub(crate) robot: RobotId,
    /// What it said.
    pub(crate) report: Report,
    /// When.
    pub(crate) at_unix_ms: u64,
}

/// One release on a robot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseOnRobot {
    /// Which.
    pub release: ReleaseId,
    /// `fetching`, `staged`, `active`, `previous` or `failed`.
    pub state: String,
    /// Why it failed, for people.
    pub reason: String,
}

impl From<&Report> for RobotReport {
    fn from(report: &Report) -> Self {
        let releases = report.releases.iter().map(|on_robot| ReleaseOnRobot {
            release: on_robot.release.clone(),
            state: state_word(on_robot.state).to_owned(),
            reason: on_robot.reason.clone(),
        });
        Self {
            agent_version: report.agent_version.clone(),
            episodes_waiting: report.episodes_waiting,
            spool_bytes: report.spool_bytes,
            recordings: report.recordings,
            assignment_sequence: report.assignment_sequence,
            upload_policy_revision: report.upload_policy_revision,
            releases: releases.collect(),
        }
    }
}

fn state_word(state: ReleaseState) -> &'static str {
    match state {
        ReleaseState::Fetching => "fetching",
        ReleaseState::Staged => "staged",
        ReleaseState::Active => "active",
        ReleaseState::Previous => "previous",
        ReleaseState::Failed => "failed",
    }
}

fn robot_record(row: &Row) -> Result<RobotRecord, MetadataError> {
    let last_seen: Option<i64> = row.try_get("last_seen_unix_ms")?;
    let embodiment: Option<Vec<u8>> = row.try_get("embodiment")?;
    let report: Option<String> = row.try_get("report")?;
    Ok(RobotRecord {
        robot: row.name("robot")?,
        site: row.name("site")?,
        created_unix_ms: row.count("created_unix_ms")?,
        last_seen_unix_ms: last_seen.map(i64::unsigned_abs),
        embodiment: embodiment.map(|_| row.bytes("embodiment")).transpose()?.map(EmbodimentId::from_bytes),
        report: report.map(|_| row.json("report")).transpose()?,
    })
}

impl Metadata {
    /// Adds a tenant, unless it is there.
    pub async fn add_tenant(&self, tenant: &TenantId, now_unix_ms: u64) -> Result<(), MetadataError> {
        query("INSERT INTO tenants (tenant, created_unix_ms) VALUES ($1, $2) ON CONFLICT (tenant) DO NOTHING")
            .bind(tenant.as_str())
            .bind(now_unix_ms as i64)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// All tenants.
    pub async fn tenants(&self) -> Result<Vec<TenantId>, MetadataError> {
        let rows = query("SELECT tenant FROM tenants ORDER BY tenant").fetch_all(&self.readers).await?;
        rows.iter().map(|row| row.name("tenant")).collect()
    }

    /// Adds a robot and its site, or moves nothing where the robot is there: then its site must be the same.
    pub(crate) async fn add_robot(&self, identity: &RobotIdentity, now_unix_ms: u64) -> Result<SiteId, MetadataError> {
        let (tenant, site, robot) = (identity.tenant.as_str(), identity.site.as_str(), identity.robot.as_str());
        let mut transaction = self.begin().await?;
        query(
            "INSERT INTO sites (tenant, site, created_unix_ms) VALUES ($1, $2, $3) ON CONFLICT (tenant, site) DO NOTHING",
        )
        .bind(tenant)
        .bind(site)
        .bind(now_unix_ms as i64)
        .execute(&mut transaction)
        .await?;
        query(
            "INSERT INTO robots (tenant, robot, site, created_unix_ms) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (tenant, robot) DO NOTHING",
        )
        .bind(tenant)
        .bind(robot)
        .bind(site)
        .bind(now_unix_ms as i64)
        .execute(&mut transaction)
        .await?;
        let row = query("SELECT site FROM robots WHERE tenant = $1 AND robot = $2")
            .bind(tenant)
            .bind(robot)
            .fetch_one(&mut transaction)
            .await?;
        let present: SiteId = row.name("site")?;
        if present == identity.site {
            transaction.commit().await?;
        }
        Ok(present)
    }

    /// Records a certificate: from now on the robot may connect with it.
    pub(crate) async fn add_certificate(
        &self,
        identity: &RobotIdentity,
        serial: &str,
        now_unix_ms: u64,
        expires_unix_ms: u64,
    ) -> Result<(), MetadataError> {
        query(
            "INSERT INTO certificates (serial, tenant, robot, issued_unix_ms, expires_unix_ms) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(serial)
        .bind(identity.tenant.as_str())
        .bind(identity.robot.as_str())
        .bind(now_unix_ms as i64)
        .bind(expires_unix_ms as i64)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Whether this robot, at this site, has this certificate.
    pub(crate) async fn knows_certificate(
        &self,
        identity: &RobotIdentity,
        serial: &str,
    ) -> Result<bool, MetadataError> {
        let row = query(
            "SELECT 1 FROM certificates JOIN robots USING (tenant, robot) \
             WHERE serial = $1 AND tenant = $2 AND robot = $3 AND site = $4",
        )
        .bind(serial)
        .bind(identity.tenant.as_str())
        .bind(identity.robot.as_str())
        .bind(identity.site.as_str())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.is_some())
    }

    /// All robots of a tenant, by name.
    pub async fn robots(&self, tenant: &TenantId) -> Result<Vec<RobotRecord>, MetadataError> {
        let rows = query("SELECT * FROM robots WHERE tenant = $1 ORDER BY robot")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(robot_record).collect()
    }

    /// One robot, where there is one of that name.
    pub async fn robot(&self, tenant: &TenantId, robot: &RobotId) -> Result<Option<RobotRecord>, MetadataError> {
        let row = query("SELECT * FROM robots WHERE tenant = $1 AND robot = $2")
            .bind(tenant.as_str())
            .bind(robot.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(robot_record).transpose()
    }

    /// Keeps what robots say about themselves: all of it or, on an error, nothing.
    pub(crate) async fn record_reports(&self, reports: &[NewReport]) -> Result<(), MetadataError> {
        let mut transaction = self.begin().await?;
        for NewReport { tenant, robot, report, at_unix_ms } in reports {
            query(
                "UPDATE robots SET report = $1, last_seen_unix_ms = $2, embodiment = COALESCE($3, embodiment) \
                 WHERE tenant = $4 AND robot = $5",
            )
            .bind(json(&RobotReport::from(report)))
            .bind(*at_unix_ms as i64)
            .bind(report.embodiment.map(|id| id.as_bytes().to_vec()))
            .bind(tenant.as_str())
            .bind(robot.as_str())
            .execute(&mut transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }
}
