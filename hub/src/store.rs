//! The experience store: immutable, content-addressed objects that are durable when a call returns.
//!
//! ```text
//! t/<tenant>/packs/<digest>.pack      episodes: manifests and chunks, see [`pack`]
//! t/<tenant>/snapshots/<id>.cbor      frozen lists of episodes
//! t/<tenant>/blobs/<digest>           envelopes and files of releases
//! quarantine/<key>                    what `zunft fsck --repair` moved away
//! probe/<random>                      written and deleted at start, see [`Store::probed`]
//! ```
//! Objects are created and, where nobody needs them any more, deleted, but never changed, so that no store needs
//! compare-and-swap. It does not know what the metadata says about them.

mod commit;
mod direct;
mod error;
mod forget;
mod local;
pub mod pack;
mod s3;

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, PutResult};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tracing::{debug, warn};
use zunft_protocol::ids::{Digest, SnapshotId, TenantId};

use crate::causes::with_causes;
use crate::config::{StoreConfig, StorePlace};
#[cfg(test)]
pub(crate) use commit::write_pack;
pub(crate) use commit::{CommitError, Committer, Committing, Submission, Whole};
pub use error::StoreError;
pub(crate) use error::disk_is_full;
pub(crate) use forget::{Forget, ForgetError, Forgotten, forget};

/// Attempts at creating an object that another hub begins to create and then does not.
const PUT_ATTEMPTS_MAX: usize = 3;

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedObject {
    pub(crate) key: Key,
    /// When it became durable, by the store's clock.
    pub(crate) written_unix_ms: u64,
}

/// What a store needs beside [`ObjectStore`] where an object that is visible is not durable by that.
pub(crate) trait Settle: std::fmt::Debug + Send + Sync {
    /// Makes an object durable that is visible already.
    fn settle(&self, key: &Key) -> BoxFuture<'static, io::Result<()>>;

    /// Creates an object, durable when this ends, in a quicker way than the store's own, where there is one.
    fn create(&self, key: &Key, payload: &PutPayload) -> Option<BoxFuture<'static, io::Result<()>>> {
        let _ = (key, payload);
        None
    }
}

/// The experience store.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Where it is, for people.
    place: Arc<str>,
    /// How an object that is visible is made durable, where one does not imply the other.
    settle: Option<Arc<dyn Settle>>,
    /// Whether the store itself refuses to create what is there.
    create_only: bool,
    /// Held by all commits under way, or by the one pack that is being deleted.
    packs: Arc<RwLock<()>>,
}

impl Store {
    /// Opens the store that the configuration names, and tries that it keeps what it promises.
    pub async fn open(config: StoreConfig, place: StorePlace) -> Result<Self, StoreError> {
        let store = match place {
            StorePlace::Local(path) => {
                let opening = tokio::task::spawn_blocking(move || Self::open_local(&path));
                opening.await.expect("opening a directory does not panic")?
            }
            StorePlace::S3 { bucket, prefix } => {
                let (objects, place) = s3::open(&config.s3, &bucket, &prefix)?;
                Self { objects, place: place.into(), settle: None, create_only: true, packs: Arc::default() }
            }
        };
        store.probed(config.accept_unconditional_put).await
    }

    /// Opens a local directory, creating it where needed.
    ///
    /// Half-written files of a hub that was killed are removed, and what the others hold is made durable: a name that
    /// a killed hub created may not have reached the disk.
    pub fn open_local(path: &Path) -> Result<Self, StoreError> {
        let (objects, path) = local::open(path)?;
        let place = path.display().to_string().into();
        let settle: Option<Arc<dyn Settle>> = Some(Arc::new(local::Folder(path)));
        Ok(Self { objects: Arc::new(objects), place, settle, create_only: true, packs: Arc::default() })
    }

    /// A store over any other implementation; it must be durable when a put returns.
    pub fn of_objects(objects: Arc<dyn ObjectStore>) -> Self {
        let place = objects.to_string().into();
        Self { objects, place, settle: None, create_only: true, packs: Arc::default() }
    }

    /// The same, over an implementation whose objects may be visible before they are durable.
    #[cfg(test)]
    pub(crate) fn of_unsettled(objects: Arc<dyn ObjectStore>, settle: Arc<dyn Settle>) -> Self {
        Self { settle: Some(settle), ..Self::of_objects(objects) }
    }

    /// Tries whether the store can be used, and whether it refuses to create an object that is there.
    ///
    /// Where it does not, it is refused unless the operator accepted that: then objects are looked for before they are
    /// put, and between two puts of one name either may win, for both are the same bytes.
    pub async fn probed(self, accept_unconditional_put: bool) -> Result<Self, StoreError> {
        let key = Key::from(format!("probe/{:032x}", rand::random::<u128>()));
        let (first, second): (&[u8], &[u8]) = (b"first", b"second");
        let create_only = match self.create(&key, PutPayload::from_static(first)).await {
            // Some stores know no conditional put at all.
            Err(object_store::Error::NotImplemented { .. }) => false,
            Err(source) if with_causes(&source).contains("NotImplemented") => false,
            Err(source) => return Err(self.fault(&key, source)),
            Ok(_) => {
                let again = self.create(&key, PutPayload::from_static(second)).await;
                let kept = self.read(&key).await? == first;
                match again {
                    Err(object_store::Error::AlreadyExists { .. }) => kept,
                    Err(source) => return Err(self.fault(&key, source)),
                    Ok(_) => false,
                }
            }
        };
        if let Err(error) = self.objects.delete(&key).await {
            // A policy may forbid it: the hub deletes nothing else than packs that nobody needs (store.orphan_days).
            debug!(%key, error = &error as &dyn std::error::Error, "the probe stays in the store");
        }
        if !create_only && !accept_unconditional_put {
            return Err(StoreError::Unconditional { place: self.place.to_string() });
        }
        if !create_only {
            warn!(store = %self.place, "the store ignores create-only puts, as store.accept_unconditional_put allows");
        }
        Ok(Self { create_only, ..self })
    }

    async fn create(&self, key: &Key, payload: PutPayload) -> object_store::Result<PutResult> {
        self.objects.put_opts(key, payload, PutMode::Create.into()).await
    }

    /// Creates an object. One that is there already is the same: its name is its content's.
    pub(crate) async fn put(&self, key: &Key, payload: PutPayload) -> Result<(), StoreError> {
        let mut attempt = 1;
        loop {
            if !self.create_only {
                match self.adopt(key, &payload).await {
                    Err(StoreError::Missing { .. }) => {}
                    adopted => return adopted,
                }
            }
            let exists = match self.put_once(key, &payload).await {
                Ok(()) => return Ok(()),
                Err(source @ object_store::Error::AlreadyExists { .. }) => source,
                Err(source) => return Err(self.fault(key, source)),
            };
            match self.adopt(key, &payload).await {
                // S3 answers so as well while another put of that name is under way, which may fail yet.
                Err(StoreError::Missing { .. }) if attempt < PUT_ATTEMPTS_MAX => attempt += 1,
                Err(StoreError::Missing { .. }) => return Err(self.fault(key, exists)),
                adopted => return adopted,
            }
        }
    }

    async fn put_once(&self, key: &Key, payload: &PutPayload) -> object_store::Result<()> {
        if let Some(creating) = self.settle.as_ref().and_then(|settle| settle.create(key, payload)) {
            match creating.await {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                created => {
                    return created.map_err(|source| {
                        if source.kind() == io::ErrorKind::AlreadyExists {
                            object_store::Error::AlreadyExists { path: key.to_string(), source: source.into() }
                        } else {
                            object_store::Error::Generic { store: "LocalFileSystem", source: source.into() }
                        }
                    });
                }
            }
        }
        let mode = if self.create_only { PutMode::Create } else { PutMode::Overwrite };
        self.objects.put_opts(key, payload.clone(), mode.into()).await.map(drop)
    }

    /// Accepts an object that an earlier attempt created, when it is what its name says, and makes sure that it stays.
    async fn adopt(&self, key: &Key, payload: &PutPayload) -> Result<(), StoreError> {
        let expected = payload.content_length() as u64;
        let found = self.objects.head(key).await.map_err(|source| self.fault(key, source))?.size;
        if found != expected {
            return Err(StoreError::Foreign { key: key.to_string(), found, expected });
        }
        let mut expected = blake3::Hasher::new();
        for part in payload {
            expected.update(part);
        }
        if self.digest(key).await?.as_bytes() != expected.finalize().as_bytes() {
            return Err(StoreError::Damaged { key: key.to_string() });
        }
        match &self.settle {
            // The earlier attempt may have failed between the link and the fsync of its folder.
            Some(settle) => {
                settle.settle(key).await.map_err(|source| StoreError::Unsettled { key: key.to_string(), source })
            }
            None => Ok(()),
        }
    }

    /// Reads a whole object.
    pub(crate) async fn read(&self, key: &Key) -> Result<Bytes, StoreError> {
        let read = async { self.objects.get(key).await?.bytes().await };
        read.await.map_err(|source| self.fault(key, source))
    }

    /// Reads a part of an object.
    pub(crate) async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.objects.get_range(key, range).await.map_err(|source| self.fault(key, source))
    }

    /// Every object below a folder; of all, where it is empty.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<ListedObject>, StoreError> {
        let folder = Key::from(folder);
        let mut listing = self.objects.list(Some(&folder));
        let mut objects = Vec::new();
        while let Some(meta) = listing.next().await {
            let meta = meta.map_err(|source| self.fault(&folder, source))?;
            let written_unix_ms = meta.last_modified.timestamp_millis().try_into().unwrap_or_default();
            objects.push(ListedObject { key: meta.location, written_unix_ms });
        }
        Ok(objects)
    }

    /// What an object's bytes hash to.
    pub(crate) async fn digest(&self, key: &Key) -> Result<Digest, StoreError> {
        let object = self.objects.get(key).await.map_err(|source| self.fault(key, source))?;
        let (mut hasher, mut stream) = (blake3::Hasher::new(), object.into_stream());
        while let Some(part) = stream.next().await {
            hasher.update(&part.map_err(|source| self.fault(key, source))?);
        }
        Ok(Digest::from_bytes(*hasher.finalize().as_bytes()))
    }

    /// No pack is deleted while this is held: from before a pack is created until it is registered.
    pub(crate) async fn creating(&self) -> RwLockReadGuard<'_, ()> {
        self.packs.read().await
    }

    /// No pack is created or registered while this is held.
    pub(crate) async fn deleting(&self) -> RwLockWriteGuard<'_, ()> {
        self.packs.write().await
    }

    /// Deletes an object; one that is not there is deleted already.
    pub(crate) async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        match self.objects.delete(key).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.fault(key, source)),
        }
    }

    /// Moves an object out of the way, to a place where nothing is yet; says where to.
    pub(crate) async fn quarantine(&self, key: &Key, now_unix_ms: u64) -> Result<Key, StoreError> {
        let place = Key::from(format!("quarantine/{now_unix_ms}/{key}"));
        self.objects.rename(key, &place).await.map_err(|source| self.fault(key, source))?;
        Ok(place)
    }

    fn fault(&self, key: &Key, source: object_store::Error) -> StoreError {
        StoreError::of(&self.place, key, source)
    }
}

/// Where a tenant's packs lie.
pub(crate) fn packs_folder(tenant: &TenantId) -> String {
    format!("t/{tenant}/packs")
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

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;
