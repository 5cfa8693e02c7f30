//! Checks the experience store against the metadata while no hub uses them, and sets right what can be.
//!
//! Every object's bytes are read and hashed. One pack at a time is in memory, and what is wrong. With `repair`:
//! intact entries of damaged packs are copied to new packs before those are moved to `quarantine/`; packs that the
//! metadata does not know are registered, which rebuilds it where it is gone; nothing is deleted from the store. With
//! `sweep`, afterwards, what `store.orphan_days` lets go is forgotten, if the store is sound. Every step can be cut off: the next run goes on from there.

mod adopt;
mod examine;
mod objects;
mod packs;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;

use tracing::info;
use zunft_protocol::ids::{Digest, SnapshotId, TenantId};

pub(crate) use self::adopt::sweep;
pub use self::report::{Finding, Report, Swept};
use crate::clock;
use crate::config::{ConfigError, HubConfig, StorePlace};
use crate::data_dir::{DataDir, DataDirError};
use crate::metadata::{Metadata, MetadataError};
use crate::store::{self, ForgetError, Forgotten, ListedObject, Store, StoreError};

/// Why a check cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The configuration.
    #[error("the hub's configuration cannot be used")]
    Config(#[from] ConfigError),
    /// Nothing to check.
    #[error("there is no {}; name the hub's by --config or --data-dir", path.display())]
    Absent {
        /// Which directory.
        path: PathBuf,
    },
    /// The data directory; most of all: a hub uses it.
    #[error("the hub's data directory cannot be used; a hub must be stopped while it is checked")]
    DataDir(#[from] DataDirError),
    /// The metadata.
    #[error("the metadata cannot be used; where it is damaged, move it away and rebuild it with --repair")]
    Metadata(#[from] MetadataError),
    /// The store.
    #[error("the experience store cannot be read")]
    Store(#[from] StoreError),
    /// Sweeping.
    #[error("chunks whose episode never came were not all forgotten")]
    Sweep(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A check under way.
struct Check<'a> {
    store: &'a Store,
    metadata: &'a Metadata,
    repair: bool,
    now_unix_ms: u64,
    report: Report,
}

/// What the store holds of one tenant.
#[derive(Debug, Default)]
struct Holdings {
    packs: BTreeMap<Digest, ListedObject>,
    snapshots: BTreeMap<SnapshotId, ListedObject>,
    blobs: BTreeMap<Digest, ListedObject>,
}

/// What to do beside checking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Todo {
    /// Set right what can be.
    pub repair: bool,
    /// Forget what `store.orphan_days` lets go, if nothing is wrong.
    pub sweep: bool,
}

/// Checks a hub's store and metadata, and does what `todo` says.
pub async fn run(config: &HubConfig, todo: Todo) -> Result<Report, FsckError> {
    config.check()?;
    let place = config.store_place()?;
    let folders = [Some(&config.data_dir), if let StorePlace::Local(path) = &place { Some(path) } else { None }];
    if let Some(path) = folders.into_iter().flatten().find(|path| !path.is_dir()) {
        return Err(FsckError::Absent { path: path.clone() });
    }
    let data_dir = DataDir::open(&config.data_dir)?;
    let store = Store::open(config.store.clone(), place).await?;
    let gone = config.metadata.url.expose().is_empty() && !data_dir.metadata().exists();
    let metadata = if gone && !todo.repair {
        // A check alone leaves no file behind.
        Metadata::open_memory().await?
    } else {
        Metadata::open(config.metadata.url.clone(), data_dir.metadata()).await?
    };
    let now = clock::unix_millis();
    let mut report = check(&store, &metadata, todo.repair, now).await;
    if let Ok(report) = &mut report
        && todo.sweep
        && report.is_sound()
    {
        let swept = forget(&store, &metadata, config.store.orphaned_before(now)).await;
        report.swept = Some(swept.map_err(|error| FsckError::Sweep(error.into()))?);
    }
    metadata.close().await;
    report
}

/// Forgets chunks of all tenants that no episode has named since before then, and deletes packs that this leaves empty.
pub(crate) async fn forget(store: &Store, metadata: &Metadata, before_unix_ms: u64) -> Result<Swept, ForgetError> {
    let mut swept = Swept::default();
    for tenant in metadata.tenants().await? {
        let Forgotten { chunks, packs, bytes } = store::forget(store, metadata, &tenant, before_unix_ms).await?;
        if chunks + packs > 0 {
            info!(%tenant, chunks, packs, bytes, "chunks whose episode never came are forgotten");
        }
        swept.chunks += chunks;
        swept.packs += packs;
        swept.bytes += bytes;
    }
    Ok(swept)
}

/// The check itself, over a store and metadata that nobody else uses.
pub(crate) async fn check(
    store: &Store,
    metadata: &Metadata,
    repair: bool,
    now_unix_ms: u64,
) -> Result<Report, FsckError> {
    let mut check = Check { store, metadata, repair, now_unix_ms, report: Report::default() };
    let mut tenants = check.holdings().await?;
    let known = metadata.tenants().await?;
    if known.is_empty() && !tenants.is_empty() {
        check.report.findings.push(Finding::MetadataGone { rebuilt: repair });
    }
    for tenant in known {
        tenants.entry(tenant).or_default();
    }
    for (tenant, holdings) in &tenants {
        info!(%tenant, packs = holdings.packs.len(), "checking a tenant's experience");
        if repair {
            metadata.add_tenant(tenant, now_unix_ms).await?;
        }
        check.packs(tenant, &holdings.packs).await?;
        check.snapshots(tenant, &holdings.snapshots).await?;
        check.blobs(tenant, &holdings.blobs).await?;
        check.report.episodes += metadata.episode_count(tenant, &crate::metadata::EpisodeFilter::default()).await?;
    }
    Ok(check.report)
}

impl Check<'_> {
    /// Everything in the store, by tenant.
    async fn holdings(&mut self) -> Result<BTreeMap<TenantId, Holdings>, FsckError> {
        let mut tenants: BTreeMap<TenantId, Holdings> = BTreeMap::new();
        for object in self.store.list("").await? {
            let key = object.key.to_string();
            if key.starts_with("quarantine/") || key.starts_with("probe/") {
                continue;
            }
            if file(&mut tenants, &key, object).is_none() {
                self.report.findings.push(Finding::ForeignObject { key });
            }
        }
        Ok(tenants)
    }

    /// Moves an object away, where that was asked; says where to.
    async fn quarantine(&self, key: &object_store::path::Path) -> Result<Option<String>, FsckError> {
        if !self.repair {
            return Ok(None);
        }
        let place = self.store.quarantine(key, self.now_unix_ms).await?;
        Ok(Some(place.to_string()))
    }
}

/// Puts an object where its key says; `None` where that says nothing.
fn file(tenants: &mut BTreeMap<TenantId, Holdings>, key: &str, object: ListedObject) -> Option<()> {
    let mut parts = key.split('/');
    let (Some("t"), Some(tenant), Some(kind), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let holdings = tenants.entry(tenant.parse().ok()?).or_default();
    match kind {
        "packs" => holdings.packs.insert(name.strip_suffix(".pack")?.parse().ok()?, object),
        "snapshots" => holdings.snapshots.insert(name.strip_suffix(".cbor")?.parse().ok()?, object),
        "blobs" => holdings.blobs.insert(name.parse().ok()?, object),
        _ => return None,
    };
    Some(())
}

#[cfg(test)]
mod tests;
