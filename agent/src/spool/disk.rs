//! What the spool needs of a disk: numbered segments of a fixed size, written in place and synced.
//!
//! The trait is the border for fault injection; [`FolderDisk`] is the real one. It decides nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::{ReadWriteFlags, preadv2};

/// Number of a segment; newer ones have greater numbers.
pub(crate) type SegmentNumber = u64;

/// Unit in which a disk writes: after a power cut, each holds all of what was last written to it, or nothing of it.
///
/// Disks promise at least this much. Where it matters, see [`super::log`].
pub(crate) const SECTOR_BYTES: usize = 512;

/// The file operations of the spool.
///
/// What is required promises no more than a file system does; [`Disk::create_durably`] and its like put the
/// operations in the order that survives a power cut.
pub(crate) trait Disk: Send + Sync {
    /// Numbers of the segments that exist, in order.
    fn list(&self) -> io::Result<Vec<SegmentNumber>>;
    /// Makes a segment of `bytes` zeros; its size is durable after [`Disk::sync`], its name after
    /// [`Disk::sync_folder`].
    fn create(&self, segment: SegmentNumber, bytes: u64) -> io::Result<()>;
    /// Reads a whole segment.
    fn read_all(&self, segment: SegmentNumber) -> io::Result<Vec<u8>>;
    /// Fills `buffer` from `offset`.
    fn read(&self, segment: SegmentNumber, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes at `offset`; durable only after [`Disk::sync`].
    fn write(&self, segment: SegmentNumber, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written to the segment survive a power cut.
    fn sync(&self, segment: SegmentNumber) -> io::Result<()>;
    /// Removes a segment; one that is gone already is fine. Durable only after [`Disk::sync_folder`].
    fn remove(&self, segment: SegmentNumber) -> io::Result<()>;
    /// Sets a damaged segment aside, out of [`Disk::list`]; durable only after [`Disk::sync_folder`].
    fn quarantine(&self, segment: SegmentNumber) -> io::Result<()>;
    /// Makes everything that was created, removed and set aside survive a power cut.
    fn sync_folder(&self) -> io::Result<()>;
    /// Bytes that the file system could still take.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Makes a segment of `bytes` zeros that survives a power cut.
    fn create_durably(&self, segment: SegmentNumber, bytes: u64) -> io::Result<()> {
        let made = self.create(segment, bytes).and_then(|()| self.sync(segment)).and_then(|()| self.sync_folder());
        made.inspect_err(|_| {
            // Half a segment would hold space and say nothing; the error that matters is the first one.
            drop(self.remove(segment));
        })
    }

    /// Removes segments; when it returns, a power cut cannot bring them back.
    fn remove_durably(&self, segments: &[SegmentNumber]) -> io::Result<()> {
        for &segment in segments {
            self.remove(segment)?;
        }
        self.sync_folder()
    }
}

const SUFFIX: &str = "seg";

/// Segments as files of one folder.
#[derive(Debug)]
pub(crate) struct FolderDisk {
    folder: PathBuf,
    /// The segment being written, kept open between commits.
    open: Mutex<Option<(SegmentNumber, File)>>,
}

impl FolderDisk {
    /// Uses `folder`, which [`FolderDisk::make_folder`] makes.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::new(None) }
    }

    /// Makes the folder if it is missing.
    pub(crate) fn make_folder(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)
    }

    /// The file of a segment.
    pub(crate) fn path(&self, segment: SegmentNumber) -> PathBuf {
        self.folder.join(format!("{segment:016x}.{SUFFIX}"))
    }

    /// Fills `buffer` if the system has the bytes in memory; says whether it had. It never waits for the disk.
    pub(crate) fn read_cached(&self, segment: SegmentNumber, offset: u64, buffer: &mut [u8]) -> bool {
        let Ok(file) = File::open(self.path(segment)) else { return false };
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut [IoSliceMut::new(&mut buffer[filled..])];
            match preadv2(&file, rest, offset + filled as u64, ReadWriteFlags::NOWAIT) {
                Ok(read) if read > 0 => filled += read,
                // Not there, or a file system that does not tell: whoever asks reads it in the usual way.
                Ok(_) | Err(_) => return false,
            }
        }
        true
    }

    fn with_open<T>(&self, segment: SegmentNumber, f: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if open.as_ref().is_none_or(|(number, _)| *number != segment) {
            *open = Some((segment, OpenOptions::new().read(true).write(true).open(self.path(segment))?));
        }
        let (_, file) = open.as_ref().expect("opened just above");
        f(file)
    }
}

impl Disk for FolderDisk {
    fn list(&self) -> io::Result<Vec<SegmentNumber>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if path.extension().is_some_and(|extension| extension == SUFFIX)
                && let Some(number) = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok())
            {
                segments.push(number);
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn create(&self, segment: SegmentNumber, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(self.path(segment))?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // A file system without preallocation: the size alone, and ENOSPC may come later.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(bytes),
            other => Ok(other?),
        }
    }

    fn read_all(&self, segment: SegmentNumber) -> io::Result<Vec<u8>> {
        fs::read(self.path(segment))
    }

    fn read(&self, segment: SegmentNumber, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        File::open(self.path(segment))?.read_exact_at(buffer, offset)
    }

    fn write(&self, segment: SegmentNumber, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with_open(segment, |file| file.write_all_at(bytes, offset))
    }

    fn sync(&self, segment: SegmentNumber) -> io::Result<()> {
        self.with_open(segment, File::sync_data)
    }

    fn remove(&self, segment: SegmentNumber) -> io::Result<()> {
        gone_is_fine(fs::remove_file(self.path(segment)))
    }

    fn quarantine(&self, segment: SegmentNumber) -> io::Result<()> {
        let path = self.path(segment);
        gone_is_fine(fs::rename(&path, path.with_extension("damaged")))
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The folder may have failed to be synced after the file was gone: then it is tried again.
fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
