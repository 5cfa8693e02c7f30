//! Gives back the room of chunks that were set down and whose episode never came.
//!
//! First the rows of old unnamed chunks go, then packs without rows: row first, object last. A hub that dies between
//! leaves a pack that nobody knows, which the next one registers and forgets again. While a pack goes no other is
//! committed: a robot that sends the same chunks again makes a pack of the same name, and would be told of an object
//! that is being deleted.

use std::collections::BTreeSet;

use tracing::warn;
use zunft_protocol::Manifest;
use zunft_protocol::ids::{Digest, RecordingId, TenantId};

use super::pack::{Directory, EntryKind};
use super::{Store, StoreError, pack_key};
use crate::metadata::MetadataError;

/// What was given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forgotten {
    /// Chunks that nothing named.
    pub(crate) chunks: u64,
    /// Packs deleted.
    pub(crate) packs: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// Why not everything old was forgotten; what was, is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForgetError {
    /// The metadata.
    #[error("chunks that no episode names could not be looked up")]
    Metadata(#[from] MetadataError),
    /// The store.
    #[error("a pack in which nothing is needed could not be deleted; store.orphan_days = 0 keeps them")]
    Store(#[from] StoreError),
}

/// Where chunks and packs are forgotten: the metadata, or a model of it.
pub(crate) trait Forget: Send + Sync {
    /// Takes out the rows of chunks that no episode has named since before then; how many. Durable when this returns.
    fn forget_chunks(
        &self,
        tenant: &TenantId,
        before_unix_ms: u64,
    ) -> impl Future<Output = Result<u64, MetadataError>> + Send;

    /// Packs stored before then to which no row leads.
    fn empty_packs(
        &self,
        tenant: &TenantId,
        before_unix_ms: u64,
    ) -> impl Future<Output = Result<Vec<Digest>, MetadataError>> + Send;

    /// Takes a pack's row out, unless another row leads to it; whether it did. Durable when this returns.
    fn forget_pack(&self, tenant: &TenantId, pack: Digest) -> impl Future<Output = Result<bool, MetadataError>> + Send;

    /// Which of these recordings have an episode.
    fn recorded(
        &self,
        tenant: &TenantId,
        recordings: &[RecordingId],
    ) -> impl Future<Output = Result<BTreeSet<RecordingId>, MetadataError>> + Send;
}

/// Forgets what no episode of the tenant has named since before then, and deletes the packs that this leaves empty.
pub(crate) async fn forget<R: Forget>(
    store: &Store,
    metadata: &R,
    tenant: &TenantId,
    before_unix_ms: u64,
) -> Result<Forgotten, ForgetError> {
    let chunks = metadata.forget_chunks(tenant, before_unix_ms).await?;
    let mut forgotten = Forgotten { chunks, ..Forgotten::default() };
    for pack in metadata.empty_packs(tenant, before_unix_ms).await? {
        let Some(bytes) = spare(store, metadata, tenant, pack).await? else { continue };
        let deleting = store.deleting().await;
        if metadata.forget_pack(tenant, pack).await? {
            store.delete(&pack_key(tenant, pack)).await?;
            forgotten.packs += 1;
            forgotten.bytes += bytes;
        }
        drop(deleting);
    }
    Ok(forgotten)
}

/// The size of a pack whose content nobody needs. The last manifest of a recording is needed even where it is not
/// listed: chunks that it lacks may come back from a backup.
async fn spare<R: Forget>(
    store: &Store,
    metadata: &R,
    tenant: &TenantId,
    pack: Digest,
) -> Result<Option<u64>, ForgetError> {
    let bytes = match store.read(&pack_key(tenant, pack)).await {
        Ok(bytes) => bytes,
        Err(StoreError::Missing { .. }) => return Ok(Some(0)),
        Err(error) => return Err(error.into()),
    };
    let Ok((directory, _)) = Directory::read(&bytes) else {
        warn!(%tenant, %pack, "a pack in which nothing is listed is damaged; `zunft fsck --repair` moves it away");
        return Ok(None);
    };
    let manifests: Option<Vec<RecordingId>> = directory
        .entries
        .iter()
        .filter(|entry| entry.kind == EntryKind::Manifest)
        .map(|entry| {
            let begin = entry.position as usize;
            Manifest::decode(&bytes[begin..begin + entry.bytes as usize]).ok().map(|manifest| manifest.recording)
        })
        .collect();
    let Some(recordings) = manifests else { return Ok(None) };
    let recorded = metadata.recorded(tenant, &recordings).await?;
    Ok(recordings.iter().all(|recording| recorded.contains(recording)).then_some(bytes.len() as u64))
}
