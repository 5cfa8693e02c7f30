//! The file operations of the release store: the border where a test cuts the power.
//!
//! Each method is one step as a power cut sees it. It decides nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use crate::data_dir::{replace_file, sync_folder};

/// What the store does to the disk.
pub(crate) trait Files: Send {
    /// Makes a folder, and those above it.
    fn create_folder(&mut self, path: &Path) -> io::Result<()>;
    /// Adds bytes to the end of a file, which is made if it is missing. Not durable yet.
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's bytes durable.
    fn sync_file(&mut self, path: &Path) -> io::Result<()>;
    /// Gives a file or folder another name, durably; what has the name already must be gone.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()>;
    /// Replaces a file all or nothing, durably.
    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file, if it is there.
    fn remove_file(&mut self, path: &Path) -> io::Result<()>;
    /// Removes a folder and everything in it, if it is there.
    fn remove_folder(&mut self, path: &Path) -> io::Result<()>;
}

/// The real disk.
#[derive(Debug)]
pub(crate) struct RealFiles;

impl Files for RealFiles {
    fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).create(true).open(path)?.write_all(bytes)
    }

    fn sync_file(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let folder = |path: &Path| path.parent().unwrap_or(Path::new(".")).to_owned();
        if from.is_dir() {
            sync_folder(from)?;
        }
        fs::rename(from, to)?;
        sync_folder(&folder(from))?;
        sync_folder(&folder(to))
    }

    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        replace_file(path, bytes)
    }

    fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        gone(fs::remove_file(path))
    }

    fn remove_folder(&mut self, path: &Path) -> io::Result<()> {
        gone(fs::remove_dir_all(path))
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
