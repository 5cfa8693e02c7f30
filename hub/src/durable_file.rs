//! Files and folders that appear whole or not at all, and are on disk when the call returns.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Readable and writable by the hub's user alone.
const MODE_SECRET: u32 = 0o600;
const MODE_FOLDER: u32 = 0o700;

/// Writes `bytes` to `path`, replacing what is there, readable by the owner alone.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staging = staging_path(path);
    write_synced(&staging, bytes)?;
    fs::rename(&staging, path)?;
    sync_folder(parent(path))
}

/// Writes a new file inside a folder that nobody sees yet.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(MODE_SECRET).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Creates the folder and those above it, open to the owner alone.
pub(crate) fn create_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(MODE_FOLDER).create(path)?;
    sync_folder(parent(path))
}

/// Makes the folder `path` appear with what `fill` writes into it; `path` must not exist.
///
/// What an interrupted attempt left is thrown away: nobody has seen it.
pub(crate) fn create_folder_whole<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let staging = staging_path(path);
    match fs::remove_dir_all(&staging) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    create_folder(&staging)?;
    fill(&staging)?;
    sync_folder(&staging)?;
    fs::rename(&staging, path)?;
    sync_folder(parent(path))?;
    Ok(())
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// `.NAME.partial` beside `path`: on the same file system, and hidden.
fn staging_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
