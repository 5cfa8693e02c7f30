//! A directory as the experience store: what is put there is on disk when the call returns.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use object_store::PutPayload;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;

use super::direct::{self, DIRECT_BYTES_MIN};
use super::{Settle, StoreError};
use crate::durable_file;

/// Opens a directory, creating it where needed, and cleans up after a hub that was killed.
pub(super) fn open(path: &Path) -> Result<(LocalFileSystem, PathBuf), StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    durable_file::create_folder(path).map_err(failed)?;
    let path = path.canonicalize().map_err(failed)?;
    sweep(&path).map_err(failed)?;
    // Without fsync an Ok would mean the page cache, and DURABLE would be a lie.
    let objects =
        LocalFileSystem::new_with_prefix(&path).map_err(|error| failed(io::Error::other(error)))?.with_fsync(true);
    Ok((objects, path))
}

/// A directory whose files may have reached the page cache only.
#[derive(Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Settle for Folder {
    fn settle(&self, key: &Key) -> BoxFuture<'static, io::Result<()>> {
        let file = self.0.join(key.as_ref());
        let synced = tokio::task::spawn_blocking(move || {
            fs::File::open(&file)?.sync_all()?;
            durable_file::sync_folder(file.parent().unwrap_or(&file))
        });
        Box::pin(async move { synced.await.map_err(io::Error::other)? })
    }

    fn create(&self, key: &Key, payload: &PutPayload) -> Option<BoxFuture<'static, io::Result<()>>> {
        if payload.content_length() < DIRECT_BYTES_MIN {
            return None;
        }
        let (file, payload) = (self.0.join(key.as_ref()), payload.clone());
        let creating = tokio::task::spawn_blocking(move || direct::create(&file, &payload));
        Some(Box::pin(async move { creating.await.map_err(io::Error::other)? }))
    }
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
