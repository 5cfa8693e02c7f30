//! Skills, their releases, and the blobs that robots may fetch.

use serde::Serialize;
use zunft_protocol::ids::{Digest, ReleaseId, SkillName, SkillVersion, TenantId};
use zunft_protocol::release::ReleaseManifest;

use super::sql::{Row, query};
use super::{Metadata, MetadataError, json};

/// A skill's last version, 0 where it has none.
const LATEST: &str = "SELECT COALESCE(MAX(version), 0) AS latest FROM releases WHERE tenant = $1 AND skill = $2";

/// One published release.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReleaseRecord {
    /// Its name and version.
    pub release: ReleaseId,
    /// Digest of its signed envelope: what assignments name.
    pub envelope: Digest,
    /// The signed manifest.
    pub manifest: ReleaseManifest,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When it was published.
    pub published_unix_ms: u64,
}

fn release_record(row: &Row) -> Result<ReleaseRecord, MetadataError> {
    let version = row.count("version")? as u32;
    Ok(ReleaseRecord {
        release: ReleaseId { skill: row.name("skill")?, version: SkillVersion(version) },
        envelope: Digest::from_bytes(row.bytes("envelope")?),
        manifest: row.json("manifest")?,
        bytes: row.count("bytes")?,
        published_unix_ms: row.count("published_unix_ms")?,
    })
}

impl Metadata {
    /// Records a release whose blobs are stored, if its version is the next; says whether it was.
    pub(crate) async fn add_release(
        &self,
        tenant: &TenantId,
        record: &ReleaseRecord,
        blobs: &[(Digest, u64)],
    ) -> Result<bool, MetadataError> {
        let (skill, version) = (record.release.skill.as_str(), record.release.version.0);
        let now = record.published_unix_ms as i64;
        let mut transaction = self.begin().await?;
        query("INSERT INTO skills (tenant, skill, created_unix_ms) VALUES ($1, $2, $3) ON CONFLICT (tenant, skill) DO NOTHING")
            .bind(tenant.as_str())
            .bind(skill)
            .bind(now)
            .execute(&mut transaction)
            .await?;
        let latest = query(LATEST).bind(tenant.as_str()).bind(skill).fetch_one(&mut transaction).await?;
        if latest.count("latest")? + 1 != u64::from(version) {
            return Ok(false);
        }
        for (digest, bytes) in blobs {
            query(
                "INSERT INTO blobs (tenant, digest, bytes) VALUES ($1, $2, $3) ON CONFLICT (tenant, digest) DO NOTHING",
            )
            .bind(tenant.as_str())
            .bind(digest.as_bytes().as_slice())
            .bind(*bytes as i64)
            .execute(&mut transaction)
            .await?;
        }
        query(
            "INSERT INTO releases (tenant, skill, version, envelope, manifest, bytes, published_unix_ms) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(tenant.as_str())
        .bind(skill)
        .bind(i64::from(version))
        .bind(record.envelope.as_bytes().as_slice())
        .bind(json(&record.manifest))
        .bind(record.bytes as i64)
        .bind(now)
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// The version that a skill's next release will have.
    pub async fn next_version(&self, tenant: &TenantId, skill: &SkillName) -> Result<SkillVersion, MetadataError> {
        let latest = query(LATEST).bind(tenant.as_str()).bind(skill.as_str()).fetch_one(&self.readers).await?;
        Ok(SkillVersion(latest.count("latest")? as u32 + 1))
    }

    /// All skills of a tenant, by name.
    pub async fn skills(&self, tenant: &TenantId) -> Result<Vec<SkillName>, MetadataError> {
        let rows = query("SELECT skill FROM skills WHERE tenant = $1 ORDER BY skill")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| row.name("skill")).collect()
    }

    /// All releases of a tenant, by skill, the newest first.
    pub async fn releases(&self, tenant: &TenantId) -> Result<Vec<ReleaseRecord>, MetadataError> {
        let rows = query("SELECT * FROM releases WHERE tenant = $1 ORDER BY skill, version DESC")
            .bind(tenant.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(release_record).collect()
    }

    /// One release, where there is one.
    pub async fn release(
        &self,
        tenant: &TenantId,
        release: &ReleaseId,
    ) -> Result<Option<ReleaseRecord>, MetadataError> {
        let row = query("SELECT * FROM releases WHERE tenant = $1 AND skill = $2 AND version = $3")
            .bind(tenant.as_str())
            .bind(release.skill.as_str())
            .bind(i64::from(release.version.0))
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(release_record).transpose()
    }

    /// Size of a blob that robots of this tenant may fetch.
    pub(crate) async fn blob(&self, tenant: &TenantId, digest: Digest) -> Result<Option<u64>, MetadataError> {
        let row = query("SELECT bytes FROM blobs WHERE tenant = $1 AND digest = $2")
            .bind(tenant.as_str())
            .bind(digest.as_bytes().as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| row.count("bytes")).transpose()
    }
}
