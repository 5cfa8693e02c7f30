//! Large objects go to a local disk around the page cache: nobody reads a pack soon after it was written.
//!
//! Written through the cache and synced, a pack costs a copy, a page for each 4 KiB, and a wait for the kernel to find
//! them again; on the machine of docs/benchmarks.md a file of 16 MiB took five times as long to become durable. File
//! systems that cannot do it say so, and the object goes the usual way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use object_store::PutPayload;

use crate::durable_file;

/// Smaller objects go the usual way: a direct write waits for the disk each time.
pub(super) const DIRECT_BYTES_MIN: usize = 1024 * 1024;

/// Bytes of one write: a disk is busy with less.
const WRITE_BYTES: usize = 1024 * 1024;

/// What position, size and memory of a direct write are multiples of; no disk asks for more than a page.
const ALIGN: usize = 4096;

/// What is done with the disk, in this order: a file is made, written and synced, and then gets its name.
trait Disk {
    type File;

    /// A new file whose writes go to the disk.
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    fn write(&self, file: &mut Self::File, block: &[u8]) -> io::Result<()>;
    fn set_len(&self, file: &Self::File, bytes: u64) -> io::Result<()>;
    /// The file's size and the disk's own cache.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Gives a file a second name, where nothing has it.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// Creates a file with these bytes, durable when this returns.
///
/// `Unsupported` where the file system, or a folder that is missing, asks for the usual way; `AlreadyExists` where there
/// is one of that name.
pub(super) fn create(path: &Path, payload: &PutPayload) -> io::Result<()> {
    create_on(&Direct, path, payload).map_err(|error| {
        // Alignment that is not enough, flags that are not known, the first object of a tenant.
        let usual = matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound);
        if usual { io::ErrorKind::Unsupported.into() } else { error }
    })
}

fn create_on<D: Disk>(disk: &D, path: &Path, payload: &PutPayload) -> io::Result<()> {
    let staging = staging_path(path);
    let mut file = disk.create(&staging)?;
    let named = write_all(disk, &mut file, payload).and_then(|()| {
        disk.sync(&file)?;
        disk.link(&staging, path)
    });
    // What stays behind after a crash is swept at the next start.
    let removed = disk.remove(&staging);
    named?;
    removed?;
    disk.sync_folder(path.parent().unwrap_or(path))
}

fn write_all<D: Disk>(disk: &D, file: &mut D::File, payload: &PutPayload) -> io::Result<()> {
    let mut memory = vec![0; WRITE_BYTES + ALIGN];
    let begin = memory.as_ptr().align_offset(ALIGN);
    let block = &mut memory[begin..begin + WRITE_BYTES];
    let mut filled = 0;
    for part in payload {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(WRITE_BYTES - filled));
            block[filled..filled + now.len()].copy_from_slice(now);
            (filled, rest) = (filled + now.len(), later);
            if filled == WRITE_BYTES {
                disk.write(file, block)?;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        let padded = filled.next_multiple_of(ALIGN);
        block[filled..padded].fill(0);
        disk.write(file, &block[..padded])?;
        disk.set_len(file, payload.content_length() as u64)?;
    }
    Ok(())
}

/// `NAME#NUMBER`, which is swept when the hub starts.
fn staging_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!("#{}", rand::random::<u64>()));
    path.with_file_name(name)
}

struct Direct;

impl Disk for Direct {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path)
    }

    fn write(&self, file: &mut File, block: &[u8]) -> io::Result<()> {
        file.write_all(block)
    }

    fn set_len(&self, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        durable_file::sync_folder(folder)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bytes::Bytes;

    use super::*;

    /// A disk that remembers what was done with it, and fails where it is told to.
    #[derive(Default)]
    struct Remembering {
        done: RefCell<Vec<&'static str>>,
        fails_at: Option<&'static str>,
    }

    impl Remembering {
        fn does(&self, what: &'static str) -> io::Result<()> {
            self.done.borrow_mut().push(what);
            if self.fails_at == Some(what) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl Disk for Remembering {
        type File = Vec<u8>;

        fn create(&self, _: &Path) -> io::Result<Vec<u8>> {
            self.does("create").map(|()| Vec::new())
        }

        fn write(&self, file: &mut Vec<u8>, block: &[u8]) -> io::Result<()> {
            assert!(block.as_ptr().addr().is_multiple_of(ALIGN) && block.len().is_multiple_of(ALIGN));
            file.extend_from_slice(block);
            self.does("write")
        }

        fn set_len(&self, file: &Vec<u8>, bytes: u64) -> io::Result<()> {
            assert!(file.len() as u64 - bytes < ALIGN as u64);
            self.does("set_len")
        }

        fn sync(&self, _: &Vec<u8>) -> io::Result<()> {
            self.does("sync")
        }

        fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
            self.does("link")
        }

        fn remove(&self, _: &Path) -> io::Result<()> {
            self.does("remove")
        }

        fn sync_folder(&self, _: &Path) -> io::Result<()> {
            self.does("sync_folder")
        }
    }

    fn payload(bytes: usize) -> PutPayload {
        let bytes: Vec<u8> = (0..bytes).map(|i| (i / 251) as u8).collect();
        bytes.chunks(100_000).map(Bytes::copy_from_slice).collect()
    }

    #[test]
    fn a_file_is_synced_before_it_has_its_name_and_its_folder_after() {
        let disk = Remembering::default();
        create_on(&disk, Path::new("packs/a.pack"), &payload(WRITE_BYTES + 1)).unwrap();
        let done = ["create", "write", "write", "set_len", "sync", "link", "remove", "sync_folder"];
        assert_eq!(*disk.done.borrow(), done);
    }

    #[test]
    fn what_fails_is_not_said_to_be_durable_and_leaves_nothing() {
        for fails_at in ["create", "write", "set_len", "sync", "link", "remove", "sync_folder"] {
            let disk = Remembering { fails_at: Some(fails_at), ..Remembering::default() };
            let error = create_on(&disk, Path::new("packs/a.pack"), &payload(DIRECT_BYTES_MIN + 1)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            let done = disk.done.borrow();
            assert_eq!(done.contains(&"remove"), fails_at != "create", "{done:?}");
            assert!(!done.contains(&"link") || fails_at == "link" || done.contains(&"sync"), "{done:?}");
        }
    }

    #[test]
    fn files_hold_what_was_put_and_are_created_once() {
        // Beside the sources: temporary folders may be in memory, where nothing is direct.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for bytes in [DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, 3 * WRITE_BYTES - 4096, 2 * WRITE_BYTES + 4095] {
            let (path, payload) = (folder.path().join(format!("{bytes}.pack")), payload(bytes));
            match create(&path, &payload) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
                created => created.unwrap(),
            }
            assert!(fs::read(&path).unwrap() == Bytes::from(payload.clone()));
            assert_eq!(create(&path, &payload).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4, "nothing is left beside them");
        let missing = create(&folder.path().join("none/a.pack"), &payload(DIRECT_BYTES_MIN));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
