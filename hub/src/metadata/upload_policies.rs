//! What robots may upload, as their operator last said: for all robots of a tenant, or for one.
//!
//! Every change takes the tenant's next revision, a clearing as well, so that what a robot is told only ever grows.
//! A revision is at least the time of its change in seconds: a hub that was restored from a backup has later changes
//! believed, although its robots have heard more than it knows.

use serde::Serialize;
use zunft_protocol::ids::{RobotId, TenantId};
use zunft_protocol::upload_policy::{HubPolicy, PushedPolicy};

use super::sql::{Row, query};
use super::{Metadata, MetadataError, json};

/// The name of no robot: the row that holds for all.
const ALL: &str = "";

/// Whom a policy is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyScope {
    /// Every robot of the tenant that has none of its own.
    Tenant,
    /// One robot.
    Robot(RobotId),
}

impl PolicyScope {
    fn column(&self) -> &str {
        match self {
            Self::Tenant => ALL,
            Self::Robot(robot) => robot.as_str(),
        }
    }
}

/// The last change of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadPolicyRecord {
    /// Whom it is for.
    pub scope: PolicyScope,
    /// Number of the change.
    pub revision: u64,
    /// `None`: it was cleared.
    pub policy: Option<HubPolicy>,
    /// When it changed.
    pub updated_unix_ms: u64,
}

/// Policies of a tenant, or those of them that concern one robot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadPolicies(Vec<UploadPolicyRecord>);

impl UploadPolicies {
    /// The last change of one of them, unless nothing was ever said.
    pub fn of(&self, scope: &PolicyScope) -> Option<&UploadPolicyRecord> {
        self.0.iter().find(|record| record.scope == *scope)
    }

    /// What holds for a robot, and whose it is: its own, whole, or else its tenant's.
    pub fn in_force(&self, robot: &RobotId) -> (PushedPolicy, Option<PolicyScope>) {
        let scopes = [PolicyScope::Robot(robot.clone()), PolicyScope::Tenant];
        let records = scopes.iter().filter_map(|scope| self.of(scope));
        let revision = records.clone().map(|record| record.revision).max().unwrap_or(0);
        let record = records.clone().find(|record| record.policy.is_some());
        let policy = record.and_then(|record| record.policy.clone());
        (PushedPolicy { revision, policy }, record.map(|record| record.scope.clone()))
    }
}

fn policy_record(row: &Row) -> Result<UploadPolicyRecord, MetadataError> {
    let robot: String = row.try_get("robot")?;
    let policy: Option<String> = row.try_get("policy")?;
    Ok(UploadPolicyRecord {
        scope: if robot == ALL { PolicyScope::Tenant } else { PolicyScope::Robot(row.name("robot")?) },
        revision: row.count("revision")?,
        policy: policy.map(|_| row.json("policy")).transpose()?,
        updated_unix_ms: row.count("updated_unix_ms")?,
    })
}

impl Metadata {
    /// Sets a policy, or clears it with `None`.
    pub(crate) async fn set_upload_policy(
        &self,
        tenant: &TenantId,
        scope: &PolicyScope,
        policy: Option<&HubPolicy>,
        now_unix_ms: u64,
    ) -> Result<UploadPolicyRecord, MetadataError> {
        let mut transaction = self.begin().await?;
        let row = query("SELECT COALESCE(MAX(revision), 0) AS revision FROM upload_policies WHERE tenant = $1")
            .bind(tenant.as_str())
            .fetch_one(&mut transaction)
            .await?;
        let revision = (row.count("revision")? + 1).max(now_unix_ms / 1000);
        query(
            "INSERT INTO upload_policies (tenant, robot, revision, policy, updated_unix_ms) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (tenant, robot) DO UPDATE SET revision = excluded.revision, policy = excluded.policy, \
             updated_unix_ms = excluded.updated_unix_ms",
        )
        .bind(tenant.as_str())
        .bind(scope.column())
        .bind(revision as i64)
        .bind(policy.map(json))
        .bind(now_unix_ms as i64)
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        let (scope, policy) = (scope.clone(), policy.cloned());
        Ok(UploadPolicyRecord { scope, revision, policy, updated_unix_ms: now_unix_ms })
    }

    /// All policies of a tenant.
    pub async fn upload_policies(&self, tenant: &TenantId) -> Result<UploadPolicies, MetadataError> {
        let rows = query("SELECT * FROM upload_policies WHERE tenant = $1 ORDER BY robot")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        Ok(UploadPolicies(rows.iter().map(policy_record).collect::<Result<_, _>>()?))
    }

    /// Those that concern one robot.
    pub async fn upload_policies_of(
        &self,
        tenant: &TenantId,
        robot: &RobotId,
    ) -> Result<UploadPolicies, MetadataError> {
        let rows = query("SELECT * FROM upload_policies WHERE tenant = $1 AND robot IN ($2, $3)")
            .bind(tenant.as_str())
            .bind(ALL)
            .bind(robot.as_str())
            .fetch_all(&self.readers)
            .await?;
        Ok(UploadPolicies(rows.iter().map(policy_record).collect::<Result<_, _>>()?))
    }
}
