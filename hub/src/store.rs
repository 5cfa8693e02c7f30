//! The experience store: immutable, content-addressed objects that are durable when a call returns.
//!
//! ```text
//! t/<tenant>/packs/<digest>.pack      episodes: manifests and chunks, see [`pack`]
//! t/<tenant>/snapshots/<id>.cbor      frozen lists of episodes
//! t/<tenant>/blobs/<digest>           envelopes and files of releases
//! ```
//! Objects are only ever created, never changed, so that no store needs compare-and-swap. It does not know what the
//! metadata says about them.

mod commit;
pub mod pack;

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use zunft_protocol::ids::{Digest, SnapshotId, TenantId};

use crate::durable_file;
pub(crate) use commit::{CommitError, Committer, Submission};

/// Why the store cannot keep or give something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk of the experience store is full; make room, robots will try again by themselves")]
    Full {
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// An object that should be there.
    #[error("object {key} is missing from the experience store; restore it from a backup")]
    Missing {
        /// Which.
        key: String,
    },
    /// Another object is in its place.
    #[error("object {key} has {found} bytes where {expected} belong; move it away, it is not what its name says")]
    Foreign {
        /// Which.
        key: String,
        /// Its size.
        found: u64,
        /// The size it should have.
        expected: u64,
    },
    /// The store failed.
    #[error("experience store failed at object {key}")]
    Failed {
        /// Which.
        key: String,
        /// The cause.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The directory cannot be used.
    #[error("could not use {} as the experience store", path.display())]
    Open {
        /// Which directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The experience store.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The directory behind it, where it is a local one.
    local: Option<PathBuf>,
}

impl Store {
    /// Opens a local directory, creating it where needed.
    ///
    /// Half-written files of a hub that was killed are removed, and what the others hold is made durable: a name that
    /// a killed hub created may not have reached the disk.
    pub fn open_local(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        durable_file::create_folder(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        sweep(&path).map_err(failed)?;
        // Without fsync an Ok would mean the page cache, and DURABLE would be a lie.
        let objects =
            LocalFileSystem::new_with_prefix(&path).map_err(|error| failed(io::Error::other(error)))?.with_fsync(true);
        Ok(Self { objects: Arc::new(objects), local: Some(path) })
    }

    /// A store over any other implementation; it must be durable when a put returns.
    pub fn of_objects(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, local: None }
    }

    /// Creates an object. One that is there already is the same: its name is its content's.
    pub(crate) async fn put(&self, key: &Key, payload: PutPayload) -> Result<(), StoreError> {
        let expected = payload.content_length() as u64;
        match self.objects.put_opts(key, payload, PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(object_store::Error::AlreadyExists { .. }) => self.adopt(key, expected).await,
            Err(source) => Err(put_error(key, source)),
        }
    }

    /// Accepts an object that an earlier attempt created, making sure of its durability.
    async fn adopt(&self, key: &Key, expected: u64) -> Result<(), StoreError> {
        let failed = |source| StoreError::Failed { key: key.to_string(), source: Box::new(source) };
        let found = self.objects.head(key).await.map_err(failed)?.size;
        if found != expected {
            return Err(StoreError::Foreign { key: key.to_string(), found, expected });
        }
        let Some(root) = &self.local else {
            return Ok(());
        };
        // The earlier attempt may have failed between the link and the fsync of its folder.
        let path = root.join(key.as_ref());
        let synced = tokio::task::spawn_blocking(move || {
            fs::File::open(&path)?.sync_all()?;
            durable_file::sync_folder(path.parent().unwrap_or(&path))
        });
        let synced = synced.await.map_err(io::Error::other).and_then(|synced| synced);
        synced.map_err(|source| StoreError::Open { path: root.join(key.as_ref()), source })
    }

    /// Reads a whole object.
    pub(crate) async fn read(&self, key: &Key) -> Result<Bytes, StoreError> {
        let read = async { self.objects.get(key).await?.bytes().await };
        read.await.map_err(|source| read_error(key, source))
    }

    /// Reads a part of an object.
    pub(crate) async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.objects.get_range(key, range).await.map_err(|source| read_error(key, source))
    }
}

/// Where a pack lies.
pub(crate) fn pack_key(tenant: &TenantId, pack: Digest) -> Key {
    Key::from(format!("t/{tenant}/packs/{pack}.pack"))
}

/// Where a snapshot lies.
pub(crate) fn snapshot_key(tenant: &TenantId, snapshot: SnapshotId) -> Key {
    Key::from(format!("t/{tenant}/snapshots/{snapshot}.cbor"))
}

/// Where a blob lies.
pub(crate) fn blob_key(tenant: &TenantId, digest: Digest) -> Key {
    Key::from(format!("t/{tenant}/blobs/{digest}"))
}

fn put_error(key: &Key, source: object_store::Error) -> StoreError {
    let source = Box::new(source);
    if disk_is_full(source.as_ref()) {
        StoreError::Full { source }
    } else {
        StoreError::Failed { key: key.to_string(), source }
    }
}

fn read_error(key: &Key, source: object_store::Error) -> StoreError {
    let key = key.to_string();
    if matches!(source, object_store::Error::NotFound { .. }) {
        return StoreError::Missing { key };
    }
    StoreError::Failed { key, source: Box::new(source) }
}

/// Whether a full disk or quota is somewhere among the causes.
pub(crate) fn disk_is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let full = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded));
        if full {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Removes staged files (`name#1`) that a killed hub left, and makes the names of all others durable.
fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sweep(&entry.path())?;
        } else if staged(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path())?;
        }
    }
    durable_file::sync_folder(folder)
}

/// Whether `object_store` gives this name to a file that it is still writing.
fn staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
