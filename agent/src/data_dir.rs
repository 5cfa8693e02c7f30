//! The agent's folder on disk: whose it is, which version wrote it, and files that are replaced all or nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The layout that this program writes.
const LAYOUT_VERSION: u32 = 1;

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The disk.
    #[error("data folder {} cannot be used", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent uses it.
    #[error("another agent (process {pid}) uses {}; stop it, or give this one a data_dir of its own", path.display())]
    Locked {
        /// Which folder.
        path: PathBuf,
        /// The other's process id, as it wrote it.
        pid: String,
    },
    /// Written by a newer program.
    #[error(
        "data folder {} has version {found}; this program reads up to {LAYOUT_VERSION}: upgrade the agent",
        path.display()
    )]
    Newer {
        /// Which folder.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A version file that is none.
    #[error("{} does not hold a version number; is {} an agent's data folder?", path.display(), folder.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
}

/// An agent's folder, locked for this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held for the lock on it, which ends with the process.
    _lock: File,
}

impl DataDir {
    /// Makes or opens the folder and locks it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io { path, source }
        };
        fs::create_dir_all(path).map_err(failed(path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            lock.read_to_string(&mut pid).map_err(failed(&lock_path))?;
            return Err(DataDirError::Locked { path: path.to_owned(), pid: pid.trim().to_owned() });
        }
        let wrote_pid =
            lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
        wrote_pid.map_err(failed(&lock_path))?;
        let version_path = path.join("version");
        match fs::read_to_string(&version_path) {
            Ok(text) => match text.trim().parse::<u32>() {
                Ok(found) if found > LAYOUT_VERSION => {
                    return Err(DataDirError::Newer { path: path.to_owned(), found });
                }
                Ok(_) => {}
                Err(_) => return Err(DataDirError::Version { path: version_path, folder: path.to_owned() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace_file(&version_path, format!("{LAYOUT_VERSION}\n").as_bytes()).map_err(failed(&version_path))?;
            }
            Err(error) => return Err(failed(&version_path)(error)),
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// A path inside.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Replaces a file: after a power cut it is the old one or the new one, whole.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staging = path.with_extension("tmp");
    let mut file = File::create(&staging)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staging, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let error = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        drop(first);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_of_a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        fs::write(folder.path().join("version"), "2\n").unwrap();
        let error = DataDir::open(folder.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Newer { found: 2, .. }), "{error}");
        fs::write(folder.path().join("version"), "two").unwrap();
        assert!(matches!(DataDir::open(folder.path()).unwrap_err(), DataDirError::Version { .. }));
    }
}
