//! The folder of a package on disk: written all or nothing, read with distrust.
//!
//! It does not know what is in the files.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use zunft_protocol::ids::Digest;
use zunft_protocol::limits::RELEASE_MANIFEST_BYTES_MAX;
use zunft_protocol::release::{ReleaseFile, ReleaseManifest};

use super::{ENVELOPE_FILE, MANIFEST_FILE, PackageError, WriteError};

/// Writes all files into a new folder at `path`, which appears complete or not at all.
pub(super) fn write_folder<'a>(
    path: &Path,
    files: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<(), WriteError> {
    if path.symlink_metadata().is_ok() {
        return Err(WriteError::Exists { path: path.to_owned() });
    }
    let parent = parent_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The process id keeps two writers apart; what a killed one left behind is replaced.
    let staging = parent.join(format!(".{name}.{}.part", std::process::id()));
    let written = stage(&staging, files)
        .and_then(|()| fs::rename(&staging, path).map_err(|source| (path.to_owned(), source)))
        .and_then(|()| sync_folder(&parent).map_err(|source| (parent.clone(), source)));
    written.map_err(|(path, source)| {
        // Best effort: the error that matters is the one that is returned.
        drop(fs::remove_dir_all(&staging));
        WriteError::Io { path, source }
    })
}

fn stage<'a>(staging: &Path, files: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| (path, source)
    };
    if staging.exists() {
        fs::remove_dir_all(staging).map_err(at(staging))?;
    }
    fs::create_dir_all(staging).map_err(at(staging))?;
    for (name, bytes) in files {
        let path = staging.join(name);
        write_synced(&path, bytes).map_err(at(&path))?;
    }
    sync_folder(staging).map_err(at(staging))
}

/// Creates a file that is on disk when this returns.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Reads the manifest, and its exact bytes.
pub(super) fn read_manifest(folder: &Path) -> Result<(ReleaseManifest, Vec<u8>), PackageError> {
    let path = folder.join(MANIFEST_FILE);
    let bytes = read_at_most(&path, RELEASE_MANIFEST_BYTES_MAX as u64 + 1)?;
    let manifest = ReleaseManifest::decode(&bytes).map_err(|source| PackageError::Manifest { path, source })?;
    Ok((manifest, bytes))
}

/// Refuses a folder that holds anything but the files of its manifest.
pub(super) fn check_listing(folder: &Path, manifest: &ReleaseManifest) -> Result<(), PackageError> {
    let failed = |source| PackageError::Io { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let known =
            name == MANIFEST_FILE || name == ENVELOPE_FILE || manifest.files.iter().any(|file| file.name == name);
        // A link could point anywhere, and change after it was checked.
        if !known || !entry.file_type().map_err(failed)?.is_file() {
            return Err(PackageError::UnknownFile { path: entry.path() });
        }
    }
    Ok(())
}

/// Reads the file called `name`, which the manifest must list.
pub(super) fn read_listed(
    folder: &Path,
    manifest: &ReleaseManifest,
    name: &'static str,
) -> Result<Vec<u8>, PackageError> {
    let file = manifest.files.iter().find(|file| file.name == name);
    read_verified(folder, file.ok_or(PackageError::Unlisted { file: name })?)
}

/// Reads one file, which must have the size and digest listed.
pub(super) fn read_verified(folder: &Path, file: &ReleaseFile) -> Result<Vec<u8>, PackageError> {
    // The manifest's check leaves only plain names, so this stays inside the folder.
    let path = folder.join(&file.name);
    let found = fs::metadata(&path).map_err(|source| PackageError::Io { path: path.clone(), source })?.len();
    if found != file.bytes {
        return Err(PackageError::Size { path, found, expected: file.bytes });
    }
    let bytes = read_at_most(&path, file.bytes)?;
    let found = Digest::of(&bytes);
    if found != file.digest {
        return Err(PackageError::Digest { path, found, expected: file.digest });
    }
    Ok(bytes)
}

fn read_at_most(path: &Path, bytes_max: u64) -> Result<Vec<u8>, PackageError> {
    let failed = |source| PackageError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(bytes_max).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
