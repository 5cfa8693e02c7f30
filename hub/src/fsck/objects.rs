//! Checks snapshots and files of releases: each is named after its hash.

use std::collections::{BTreeMap, BTreeSet};

use zunft_protocol::ids::{Digest, SnapshotId, TenantId};
use zunft_protocol::snapshot::Snapshot;

use super::{Check, Finding, FsckError};
use crate::metadata::SnapshotRecord;
use crate::store::{ListedObject, blob_key, snapshot_key};

impl Check<'_> {
    pub(super) async fn snapshots(
        &mut self,
        tenant: &TenantId,
        present: &BTreeMap<SnapshotId, ListedObject>,
    ) -> Result<(), FsckError> {
        let known: BTreeSet<SnapshotId> =
            self.metadata.snapshots(tenant).await?.into_iter().map(|record| record.id).collect();
        for (&id, object) in present {
            let bytes = self.store.read(&object.key).await?;
            let snapshot = Snapshot::decode(&bytes).ok().filter(|_| Digest::of(&bytes).as_bytes() == id.as_bytes());
            self.report.objects += 1;
            let key = object.key.to_string();
            let Some(snapshot) = snapshot else {
                let quarantined = self.quarantine(&object.key).await?;
                self.report.findings.push(Finding::DamagedObject { key, quarantined });
                continue;
            };
            if known.contains(&id) {
                continue;
            }
            if self.repair {
                let (query, episodes) = (snapshot.query, snapshot.episodes.len() as u64);
                let record = SnapshotRecord { id, query, episodes, created_unix_ms: object.written_unix_ms };
                self.metadata.add_snapshot(tenant, &record).await?;
            }
            self.report.findings.push(Finding::OrphanSnapshot { key, registered: self.repair });
        }
        for &id in known.iter().filter(|id| !present.contains_key(*id)) {
            self.report.findings.push(Finding::MissingObject { key: snapshot_key(tenant, id).to_string() });
        }
        Ok(())
    }

    pub(super) async fn blobs(
        &mut self,
        tenant: &TenantId,
        present: &BTreeMap<Digest, ListedObject>,
    ) -> Result<(), FsckError> {
        let known = self.metadata.blobs(tenant).await?;
        for (&digest, object) in present {
            self.report.objects += 1;
            if self.store.digest(&object.key).await? != digest {
                let (key, quarantined) = (object.key.to_string(), self.quarantine(&object.key).await?);
                self.report.findings.push(Finding::DamagedObject { key, quarantined });
            }
        }
        for &digest in known.keys().filter(|digest| !present.contains_key(*digest)) {
            self.report.findings.push(Finding::MissingObject { key: blob_key(tenant, digest).to_string() });
        }
        Ok(())
    }
}
