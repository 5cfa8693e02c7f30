//! A snapshot as a local directory: what `zunft data import` writes and `zunft train` reads without a hub.
//!
//! ```text
//! DIR/snapshot.cbor   the protocol's snapshot, deterministic CBOR
//! DIR/episodes.pack   manifests and chunks, one after the other
//! DIR/episodes.index  0   "ZNSI"
//!                     4   version u16, 1
//!                     6   reserved u16, 0
//!                     8   entries u64
//!                     16  for each entry, sorted by id: id [32], offset u64, bytes u32, kind u32 (0 manifest, 1 chunk)
//!                     ..  BLAKE3 of all of the above
//! ```
//! Numbers are little-endian. Two files hold any number of episodes, because a file for each of thousands of chunks
//! costs an fsync each. A directory appears whole or not at all: it is written beside its place under the name
//! `.NAME.partial`, synced, and renamed. It never changes afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use zunft_protocol::episode::{Manifest, ManifestError};
use zunft_protocol::ids::{ChunkId, EpisodeId, RobotId, SnapshotId, TenantId};
use zunft_protocol::limits::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX};
use zunft_protocol::snapshot::{Snapshot, SnapshotEpisode, SnapshotError};

use super::source::{EpisodeSource, SourceError};

/// The index format written by this version.
pub const SNAPSHOT_DIR_VERSION: u16 = 1;

const SNAPSHOT_FILE: &str = "snapshot.cbor";
const PACK_FILE: &str = "episodes.pack";
const INDEX_FILE: &str = "episodes.index";

const MAGIC: [u8; 4] = *b"ZNSI";
const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 48;
const DIGEST_BYTES: usize = 32;

/// Bytes gathered before a write: a few chunks, so that small manifests do not become small writes.
const WRITE_BUFFER_BYTES: usize = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Manifest,
    Chunk,
}

impl Kind {
    fn bytes_max(self) -> usize {
        match self {
            Self::Manifest => MANIFEST_BYTES_MAX,
            Self::Chunk => CHUNK_BYTES_MAX,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    bytes: u32,
    kind: Kind,
}

type Index = BTreeMap<[u8; 32], Entry>;

/// Why a snapshot directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenSnapshotError {
    /// No such directory, or not one of ours.
    #[error("{} has no {file}: it is not a snapshot directory; make one with `zunft data import`", path.display())]
    NotASnapshot {
        /// The directory.
        path: PathBuf,
        /// What is not in it.
        file: &'static str,
    },
    /// Written by a newer program.
    #[error("{} is of version {found}; this program reads up to {SNAPSHOT_DIR_VERSION}: upgrade it", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
    /// An index or pack that cannot be trusted.
    #[error("{} is damaged ({reason}); import or fetch the snapshot again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// A snapshot that cannot be read.
    #[error("{} cannot be used", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// The disk failed.
    #[error("could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A snapshot directory, open for reading.
#[derive(Debug)]
pub struct SnapshotDir {
    snapshot: Snapshot,
    index: Index,
    pack: File,
}

impl SnapshotDir {
    /// Opens a directory that [`SnapshotDirWriter`] made.
    pub fn open(path: &Path) -> Result<Self, OpenSnapshotError> {
        let index_bytes = read_file(path, INDEX_FILE)?;
        let index = decode_index(&index_bytes).map_err(|fault| fault.at(path))?;
        let snapshot_path = path.join(SNAPSHOT_FILE);
        let snapshot = Snapshot::decode(&read_file(path, SNAPSHOT_FILE)?)
            .map_err(|source| OpenSnapshotError::Snapshot { path: snapshot_path.clone(), source })?;
        for episode in &snapshot.episodes {
            if index.get(episode.id.as_bytes()).is_none_or(|entry| entry.kind != Kind::Manifest) {
                let reason = "it names an episode that the pack does not hold";
                return Err(OpenSnapshotError::Damaged { path: snapshot_path, reason });
            }
        }
        let pack_path = path.join(PACK_FILE);
        let read_error = |source| read_error(path, PACK_FILE, source);
        let pack = File::open(&pack_path).map_err(read_error)?;
        let pack_bytes = pack.metadata().map_err(read_error)?.len();
        if index.values().any(|entry| entry.offset.saturating_add(u64::from(entry.bytes)) > pack_bytes) {
            return Err(OpenSnapshotError::Damaged { path: pack_path, reason: "it is shorter than its index says" });
        }
        Ok(Self { snapshot, index, pack })
    }

    fn read(&self, id: &[u8; 32], kind: Kind, what: &'static str, name: String) -> Result<Vec<u8>, SourceError> {
        let Some(entry) = self.index.get(id).filter(|entry| entry.kind == kind) else {
            return Err(SourceError::Missing { what, id: name });
        };
        let mut bytes = vec![0; entry.bytes as usize];
        match self.pack.read_exact_at(&mut bytes, entry.offset) {
            Err(source) => Err(SourceError::Read { what, id: name, source: source.into() }),
            Ok(()) if blake3::hash(&bytes).as_bytes() != id => Err(SourceError::Damaged { what, id: name }),
            Ok(()) => Ok(bytes),
        }
    }
}

impl EpisodeSource for SnapshotDir {
    fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    fn manifest(&mut self, id: EpisodeId) -> Result<Vec<u8>, SourceError> {
        self.read(id.as_bytes(), Kind::Manifest, "episode", id.to_string())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<Vec<u8>, SourceError> {
        self.read(id.as_bytes(), Kind::Chunk, "chunk", id.to_string())
    }
}

fn read_file(dir: &Path, file: &'static str) -> Result<Vec<u8>, OpenSnapshotError> {
    fs::read(dir.join(file)).map_err(|source| read_error(dir, file, source))
}

fn read_error(dir: &Path, file: &'static str, source: io::Error) -> OpenSnapshotError {
    if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
        return OpenSnapshotError::NotASnapshot { path: dir.to_owned(), file };
    }
    OpenSnapshotError::Read { path: dir.join(file), source }
}

/// Why the bytes of an index are none.
enum IndexFault {
    Newer(u16),
    Damaged(&'static str),
}

impl IndexFault {
    fn at(self, dir: &Path) -> OpenSnapshotError {
        match self {
            Self::Newer(found) => OpenSnapshotError::Newer { path: dir.to_owned(), found },
            Self::Damaged(reason) => OpenSnapshotError::Damaged { path: dir.join(INDEX_FILE), reason },
        }
    }
}

fn encode_index(index: &Index) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + index.len() * ENTRY_BYTES + DIGEST_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&SNAPSHOT_DIR_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&(index.len() as u64).to_le_bytes());
    for (id, entry) in index {
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.bytes.to_le_bytes());
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
    }
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

fn decode_index(bytes: &[u8]) -> Result<Index, IndexFault> {
    use IndexFault::{Damaged, Newer};
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Damaged("it is too short"))?;
    if header[..4] != MAGIC {
        return Err(Damaged("it does not begin with \"ZNSI\""));
    }
    // Before the digest: a newer version may put it elsewhere.
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version > SNAPSHOT_DIR_VERSION {
        return Err(Newer(version));
    }
    let (entries, digest) = rest.split_last_chunk::<DIGEST_BYTES>().ok_or(Damaged("it is too short"))?;
    if blake3::hash(&bytes[..bytes.len() - DIGEST_BYTES]).as_bytes() != digest {
        return Err(Damaged("its bytes do not match the digest at its end"));
    }
    let (entries, tail) = entries.as_chunks::<ENTRY_BYTES>();
    let count = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|at: usize| header[at]));
    if version != SNAPSHOT_DIR_VERSION || !tail.is_empty() || count != entries.len() as u64 {
        return Err(Damaged("its header contradicts its size"));
    }
    let mut index = Index::new();
    for entry in entries {
        let (id, place) = entry.split_first_chunk::<32>().ok_or(Damaged("it is too short"))?;
        index.insert(*id, decode_entry(place).ok_or(Damaged("an entry is impossible"))?);
    }
    Ok(index)
}

fn decode_entry(place: &[u8]) -> Option<Entry> {
    let (offset, rest) = place.split_first_chunk::<8>()?;
    let (bytes, rest) = rest.split_first_chunk::<4>()?;
    let kind = match u32::from_le_bytes(*rest.first_chunk::<4>()?) {
        0 => Kind::Manifest,
        1 => Kind::Chunk,
        _ => return None,
    };
    let entry = Entry { offset: u64::from_le_bytes(*offset), bytes: u32::from_le_bytes(*bytes), kind };
    (entry.bytes as usize <= kind.bytes_max()).then_some(entry)
}

/// Why a snapshot directory could not be written. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum WriteSnapshotError {
    /// The place is taken.
    #[error("{} exists; snapshots never change: choose another name or remove it first", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// Another process writes the same directory.
    #[error("another process is writing {}; wait for it or choose another name", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// A name that cannot be a directory.
    #[error("{} does not name a directory; give it a name", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// A manifest that this program cannot use.
    #[error("an episode's manifest cannot be stored")]
    Manifest(#[from] ManifestError),
    /// Chunks that are not what the manifest lists.
    #[error(
        "chunk {index} of episode {episode} is missing or not what its manifest lists; pass every chunk in the manifest's order"
    )]
    Chunk {
        /// The episode.
        episode: EpisodeId,
        /// Which of its chunks.
        index: usize,
    },
    /// Two tenants in one snapshot.
    #[error("episode {episode} is of tenant {found}, the snapshot of {expected}; a snapshot never crosses tenants")]
    Tenant {
        /// The episode.
        episode: EpisodeId,
        /// Its tenant.
        found: TenantId,
        /// The snapshot's.
        expected: TenantId,
    },
    /// Two episodes for one recording.
    #[error(
        "robot {robot} has two episodes for recording {ordinal}; there is at most one: give each data set its own robot name"
    )]
    Recording {
        /// The robot.
        robot: RobotId,
        /// The ordinal.
        ordinal: u64,
    },
    /// Nothing was added.
    #[error("a snapshot without episodes is of no use; add at least one")]
    Empty,
    /// The disk failed or is full.
    #[error("could not write {}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Writes a snapshot directory, episode by episode. Dropped before [`SnapshotDirWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SnapshotDirWriter {
    path: PathBuf,
    partial: PathBuf,
    pack: BufWriter<File>,
    offset: u64,
    index: Index,
    tenant: Option<TenantId>,
    episodes: BTreeSet<SnapshotEpisode>,
    finished: bool,
}

impl SnapshotDirWriter {
    /// Begins the directory `path`, which must not exist; its parent must.
    pub fn create(path: &Path) -> Result<Self, WriteSnapshotError> {
        let Some(name) = path.file_name() else {
            return Err(WriteSnapshotError::Name { path: path.to_owned() });
        };
        let mut partial_name = std::ffi::OsString::from(".");
        partial_name.push(name);
        partial_name.push(".partial");
        let partial = path.with_file_name(partial_name);
        refuse_existing(path)?;
        let failed = |source| WriteSnapshotError::Write { path: partial.clone(), source };
        match fs::create_dir(&partial) {
            // Left by a process that was killed, or in use: the lock on the pack tells.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(failed)?,
        }
        let pack_path = partial.join(PACK_FILE);
        let pack = File::options().create(true).write(true).truncate(false).open(pack_path).map_err(failed)?;
        match pack.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(WriteSnapshotError::Busy { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        pack.set_len(0).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            partial,
            pack: BufWriter::with_capacity(WRITE_BUFFER_BYTES, pack),
            offset: 0,
            index: Index::new(),
            tenant: None,
            episodes: BTreeSet::new(),
            finished: false,
        })
    }

    /// Adds an episode: its encoded manifest and the stored bytes of its chunks in the manifest's order.
    pub fn add<C: AsRef<[u8]>>(
        &mut self,
        manifest_bytes: &[u8],
        chunks: &[C],
    ) -> Result<EpisodeId, WriteSnapshotError> {
        let id = EpisodeId::of(manifest_bytes);
        let manifest = Manifest::decode(manifest_bytes)?;
        let expected = self.tenant.get_or_insert_with(|| manifest.tenant.clone());
        if *expected != manifest.tenant {
            let (found, expected) = (manifest.tenant, expected.clone());
            return Err(WriteSnapshotError::Tenant { episode: id, found, expected });
        }
        let count = manifest.chunks().count();
        let wrong = manifest.chunks().zip(chunks).position(|(listed, chunk)| ChunkId::of(chunk.as_ref()) != listed.id);
        if let Some(index) = wrong.or((count != chunks.len()).then_some(count.min(chunks.len()))) {
            return Err(WriteSnapshotError::Chunk { episode: id, index });
        }
        for (listed, chunk) in manifest.chunks().zip(chunks) {
            self.append(*listed.id.as_bytes(), Kind::Chunk, chunk.as_ref())?;
        }
        self.append(*id.as_bytes(), Kind::Manifest, manifest_bytes)?;
        self.episodes.insert(SnapshotEpisode { robot: manifest.robot, ordinal: manifest.ordinal, id });
        Ok(id)
    }

    /// Episodes so far.
    pub fn episodes(&self) -> usize {
        self.episodes.len()
    }

    /// Makes the directory appear, durable and complete. `query` says for people what it holds.
    pub fn finish(mut self, query: &str) -> Result<SnapshotId, WriteSnapshotError> {
        let Some(tenant) = self.tenant.take() else {
            return Err(WriteSnapshotError::Empty);
        };
        let episodes: Vec<SnapshotEpisode> = std::mem::take(&mut self.episodes).into_iter().collect();
        if let Some(pair) =
            episodes.windows(2).find(|pair| (&pair[0].robot, pair[0].ordinal) == (&pair[1].robot, pair[1].ordinal))
        {
            return Err(WriteSnapshotError::Recording { robot: pair[0].robot.clone(), ordinal: pair[0].ordinal });
        }
        let snapshot = Snapshot::new(tenant, query.to_owned(), episodes);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteSnapshotError::Write { path, source }
        };
        let pack_path = self.partial.join(PACK_FILE);
        self.pack.flush().map_err(failed(&pack_path))?;
        self.pack.get_ref().sync_all().map_err(failed(&pack_path))?;
        for (file, bytes) in [(INDEX_FILE, encode_index(&self.index)), (SNAPSHOT_FILE, snapshot.encode())] {
            let path = self.partial.join(file);
            write_synced(&path, &bytes).map_err(failed(&path))?;
        }
        sync_dir(&self.partial).map_err(failed(&self.partial))?;
        refuse_existing(&self.path)?;
        fs::rename(&self.partial, &self.path).map_err(failed(&self.path))?;
        self.finished = true;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(parent).map_err(failed(parent))?;
        Ok(snapshot.id())
    }

    fn append(&mut self, id: [u8; 32], kind: Kind, bytes: &[u8]) -> Result<(), WriteSnapshotError> {
        if self.index.contains_key(&id) {
            return Ok(());
        }
        self.pack
            .write_all(bytes)
            .map_err(|source| WriteSnapshotError::Write { path: self.partial.join(PACK_FILE), source })?;
        // Manifests and chunks are far below 4 GiB: `Manifest::decode` bounds both.
        self.index.insert(id, Entry { offset: self.offset, bytes: bytes.len() as u32, kind });
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for SnapshotDirWriter {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.partial) {
            tracing::warn!(path = %self.partial.display(), %error, "an unfinished snapshot directory remains; remove it");
        }
    }
}

fn refuse_existing(path: &Path) -> Result<(), WriteSnapshotError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(WriteSnapshotError::Write { path: path.to_owned(), source }),
        Ok(_) => Err(WriteSnapshotError::Exists { path: path.to_owned() }),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::data::fixture::episode;

    fn write(dir: &Path) -> (PathBuf, SnapshotId) {
        let path = dir.join("demo");
        let mut writer = SnapshotDirWriter::create(&path).unwrap();
        for ordinal in [1, 0] {
            let (manifest, chunks) = episode(ordinal, "reach", &[[1.0, 2.0]; 3]);
            writer.add(&manifest.encode(), &chunks).unwrap();
        }
        let id = writer.finish("test").unwrap();
        (path, id)
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_written_is_read_in_canonical_order() {
        let dir = tempfile::tempdir().unwrap();
        let (path, id) = write(dir.path());
        let mut read = SnapshotDir::open(&path).unwrap();
        assert_eq!(read.snapshot().id(), id);
        let ids: Vec<EpisodeId> = read.snapshot().episodes.iter().map(|episode| episode.id).collect();
        for (ordinal, id) in (0..).zip(ids) {
            let bytes = read.manifest(id).unwrap();
            let manifest = Manifest::decode(&bytes).unwrap();
            assert_eq!(manifest.ordinal, ordinal);
            let listed = manifest.chunks().next().unwrap();
            assert_eq!(ChunkId::of(&read.chunk(listed.id).unwrap()), listed.id);
        }
        assert!(matches!(read.chunk(ChunkId::of(b"other")), Err(SourceError::Missing { what: "chunk", .. })));
        assert_eq!(files(dir.path()), ["demo"]);
        assert_eq!(files(&path), [INDEX_FILE, PACK_FILE, SNAPSHOT_FILE]);
    }

    #[test]
    fn the_index_is_frozen() {
        let index = BTreeMap::from([
            ([7; 32], Entry { offset: 0x0102_0304, bytes: 0x0506, kind: Kind::Chunk }),
            ([9; 32], Entry { offset: 0, bytes: 1, kind: Kind::Manifest }),
        ]);
        let mut expected = b"ZNSI\x01\x00\x00\x00".to_vec(); // magic, version, reserved
        expected.extend([2, 0, 0, 0, 0, 0, 0, 0]); // entries
        expected.extend([7; 32]);
        expected.extend([4, 3, 2, 1, 0, 0, 0, 0]); // offset
        expected.extend([6, 5, 0, 0]); // bytes
        expected.extend([1, 0, 0, 0]); // kind
        expected.extend([9; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 0, 0, 0]);
        expected.extend([0, 0, 0, 0]);
        expected.extend(*blake3::hash(&expected).as_bytes());
        assert_eq!(encode_index(&index), expected);
        assert!(decode_index(&expected).is_ok_and(|decoded| decoded == index));
    }

    #[test]
    fn equal_chunks_are_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(dir.path());
        let read = SnapshotDir::open(&path).unwrap();
        assert_eq!(read.index.len(), 4, "two manifests and the two chunks that they share");
    }

    #[test]
    fn an_unfinished_directory_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SnapshotDirWriter::create(&dir.path().join("demo")).unwrap();
        let (manifest, chunks) = episode(0, "reach", &[[1.0, 2.0]]);
        writer.add(&manifest.encode(), &chunks).unwrap();
        assert_eq!(files(dir.path()), [".demo.partial"]);
        drop(writer);
        assert!(files(dir.path()).is_empty());
        let empty = SnapshotDirWriter::create(&dir.path().join("demo")).unwrap();
        assert!(matches!(empty.finish(""), Err(WriteSnapshotError::Empty)));
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn what_a_killed_import_left_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let partial = dir.path().join(".demo.partial");
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(PACK_FILE), vec![7; 100_000]).unwrap();
        let (path, id) = write(dir.path());
        assert_eq!(SnapshotDir::open(&path).unwrap().snapshot().id(), id);
        assert!(fs::metadata(path.join(PACK_FILE)).unwrap().len() < 100_000);
        assert_eq!(files(dir.path()), ["demo"]);
    }

    #[test]
    fn a_place_that_is_taken_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(dir.path());
        assert!(matches!(SnapshotDirWriter::create(&path), Err(WriteSnapshotError::Exists { .. })));
        let other = dir.path().join("other");
        let _first = SnapshotDirWriter::create(&other).unwrap();
        assert!(matches!(SnapshotDirWriter::create(&other), Err(WriteSnapshotError::Busy { .. })));
        assert!(matches!(SnapshotDirWriter::create(Path::new("/")), Err(WriteSnapshotError::Name { .. })));
    }

    #[test]
    fn episodes_that_do_not_belong_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = SnapshotDirWriter::create(&dir.path().join("demo")).unwrap();
        let (first, chunks) = episode(0, "reach", &[[1.0, 2.0]]);
        writer.add(&first.encode(), &chunks).unwrap();
        let none: [Vec<u8>; 0] = [];
        assert!(matches!(writer.add(&first.encode(), &none), Err(WriteSnapshotError::Chunk { index: 0, .. })));
        let wrong = [b"other".to_vec()];
        assert!(matches!(writer.add(&first.encode(), &wrong), Err(WriteSnapshotError::Chunk { index: 0, .. })));
        let (mut foreign, chunks) = episode(1, "reach", &[[1.0, 2.0]]);
        foreign.tenant = "other".parse().unwrap();
        assert!(matches!(writer.add(&foreign.encode(), &chunks), Err(WriteSnapshotError::Tenant { .. })));
        let (again, chunks) = episode(0, "push", &[[1.0, 2.0]]);
        writer.add(&again.encode(), &chunks).unwrap();
        assert!(matches!(writer.finish(""), Err(WriteSnapshotError::Recording { ordinal: 0, .. })));
    }

    #[test]
    fn damage_is_found_and_named() {
        let check = |damage: fn(&Path), expected: &str| {
            let dir = tempfile::tempdir().unwrap();
            let (path, _) = write(dir.path());
            damage(&path);
            let error = SnapshotDir::open(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        fn edit(path: PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        }
        check(|path| fs::remove_dir_all(path).unwrap(), "zunft data import");
        check(|path| fs::remove_file(path.join(SNAPSHOT_FILE)).unwrap(), "no snapshot.cbor");
        check(|path| edit(path.join(INDEX_FILE), |bytes| bytes[4] = 2), "version 2; this program reads up to 1");
        check(|path| edit(path.join(INDEX_FILE), |bytes| bytes[20] ^= 1), "digest");
        check(|path| edit(path.join(INDEX_FILE), |bytes| bytes.truncate(30)), "too short");
        check(|path| edit(path.join(INDEX_FILE), |bytes| bytes[0] = b'X'), "ZNSI");
        check(|path| edit(path.join(PACK_FILE), |bytes| bytes.truncate(100)), "shorter than its index says");
        check(|path| edit(path.join(SNAPSHOT_FILE), |bytes| bytes[0] ^= 1), "snapshot.cbor cannot be used");
    }

    #[test]
    fn a_flipped_byte_in_the_pack_is_found_when_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(dir.path());
        let pack = path.join(PACK_FILE);
        let mut bytes = fs::read(&pack).unwrap();
        bytes[20] ^= 1;
        fs::write(&pack, bytes).unwrap();
        let mut read = SnapshotDir::open(&path).unwrap();
        let id = ChunkId::of(&episode(0, "reach", &[[1.0, 2.0]; 3]).1[0]);
        assert!(matches!(read.chunk(id), Err(SourceError::Damaged { what: "chunk", .. })));
    }

    #[test]
    fn snapshots_of_a_newer_version_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(dir.path());
        let mut snapshot = SnapshotDir::open(&path).unwrap().snapshot.clone();
        snapshot.version += 1;
        fs::write(path.join(SNAPSHOT_FILE), snapshot.encode()).unwrap();
        let error = SnapshotDir::open(&path).unwrap_err();
        assert!(matches!(error, OpenSnapshotError::Snapshot { source: SnapshotError::Version { .. }, .. }));
    }
}
