//! The hub's data directory: who uses it, and which version of the program wrote it.
//!
//! ```text
//! hub.lock          held while a hub uses the directory
//! version           the layout's version; written last, so that a directory with it is complete
//! pki/              keys and certificates
//! metadata.sqlite   the metadata
//! store/            the experience store, unless configured elsewhere
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::durable_file;

/// The layout written by this program.
pub const DATA_DIR_VERSION: u32 = 1;

const LOCK_FILE: &str = "hub.lock";
const VERSION_FILE: &str = "version";

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another hub has it.
    #[error("another hub uses data directory {}; stop it, or set data_dir to another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "data directory {} is of version {found}; this hub understands up to {DATA_DIR_VERSION}: upgrade the hub", path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A version file that does not hold a version.
    #[error("{} does not hold a version; restore it from a backup, or write 1 into it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// A directory with other things in it.
    #[error("{} holds {entry:?} and is no data directory of a hub; set data_dir to an empty or new directory", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What does not belong there.
        entry: String,
    },
    /// Keys are gone from a directory that had them.
    #[error("data directory {} has lost its {entry:?}; restore it from a backup: robots trust those keys", path.display())]
    Incomplete {
        /// The directory.
        path: PathBuf,
        /// What is gone.
        entry: &'static str,
    },
    /// The disk.
    #[error("could not use {}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A data directory that this process alone uses, until it is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    complete: bool,
    /// The lock ends with the file.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, creating it where needed.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { path: path.to_owned(), source };
        let new = !path.exists();
        if new {
            durable_file::create_folder(path).map_err(failed)?;
        }
        let version = read_version(path)?;
        if let Some(found) = version.filter(|&found| found > DATA_DIR_VERSION) {
            return Err(DataDirError::Newer { path: path.to_owned(), found });
        }
        if version.is_none() {
            refuse_foreign(path)?;
        }
        let lock_path = path.join(LOCK_FILE);
        let lock_failed = |source| DataDirError::Io { path: lock_path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(lock_failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(lock_failed(source)),
        }
        let complete = version.is_some();
        if complete && !path.join("pki").is_dir() {
            return Err(DataDirError::Incomplete { path: path.to_owned(), entry: "pki" });
        }
        Ok(Self { path: path.to_owned(), complete, _lock: lock })
    }

    /// Says that everything a hub needs is in the directory.
    pub(crate) fn complete(&mut self) -> Result<(), DataDirError> {
        if !self.complete {
            let path = self.path.join(VERSION_FILE);
            durable_file::write(&path, format!("{DATA_DIR_VERSION}\n").as_bytes())
                .map_err(|source| DataDirError::Io { path, source })?;
            self.complete = true;
        }
        Ok(())
    }

    /// Keys and certificates.
    pub(crate) fn pki(&self) -> PathBuf {
        self.path.join("pki")
    }

    /// The metadata's file.
    pub(crate) fn metadata(&self) -> PathBuf {
        self.path.join("metadata.sqlite")
    }
}

fn read_version(path: &Path) -> Result<Option<u32>, DataDirError> {
    let path = path.join(VERSION_FILE);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataDirError::Io { path, source }),
        Ok(text) => text.trim().parse().map(Some).map_err(|_| DataDirError::Version { path }),
    }
}

/// Only what an interrupted first start leaves may be in a directory without a version.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let failed = |source| DataDirError::Io { path: path.to_owned(), source };
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let ours = [LOCK_FILE, "pki", ".pki.partial", ".version.partial", "store"].contains(&name.as_str())
            || name.starts_with("metadata.sqlite");
        if !ours {
            return Err(DataDirError::Foreign { path: path.to_owned(), entry: name });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hubs_cannot_use_one_directory() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::InUse { .. })));
        drop(first);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn directories_of_others_and_of_newer_hubs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        assert!(
            matches!(DataDir::open(folder.path()), Err(DataDirError::Foreign { entry, .. }) if entry == "thesis.tex")
        );
        fs::write(folder.path().join(VERSION_FILE), "2\n").unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::Newer { found: 2, .. })));
        fs::write(folder.path().join(VERSION_FILE), "new").unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::Version { .. })));
        fs::write(folder.path().join(VERSION_FILE), "1").unwrap();
        assert!(matches!(DataDir::open(folder.path()), Err(DataDirError::Incomplete { .. })));
    }
}
