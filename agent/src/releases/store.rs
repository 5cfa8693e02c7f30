//! Releases on disk: fetched, verified, tried and committed, so that a power cut at any step leaves one to run.
//!
//! ```text
//! root.json            the newest root that was accepted
//! active.json          the journal
//! staging/DIGEST/      a release on its way; files end in .part until they are verified
//! store/DIGEST/        verified releases, named by the digest of their signed envelope
//! ```
//!
//! It waits for the disk and for blobs, and is given the time. Which connection blobs come over is not its business.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zunft_protocol::dsse::Envelope;
use zunft_protocol::embodiment::Embodiment;
use zunft_protocol::ids::{Digest, RobotId, SkillName};
use zunft_protocol::limits::RELEASE_MANIFEST_BYTES_MAX;
use zunft_protocol::message::ReleaseReport;
use zunft_protocol::release::{
    Assignment, RELEASE_TYPE, ReleaseManifest, Trust, TrustError, parse_envelope, verify_release,
};
use zunft_skills::package::{self, ENVELOPE_FILE, MANIFEST_FILE, PackageError};

use super::fetch::{Fetch, FetchError};
use super::files::Files;
use super::journal::{Installed, JOURNAL_VERSION, Journal};
use crate::policy::{LoadedRelease, TrialError};
use crate::text::chain;

/// Largest signed envelope of a release: its manifest in base64 with signatures.
const ENVELOPE_BYTES_MAX: u64 = RELEASE_MANIFEST_BYTES_MAX as u64 * 2;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("{} cannot be used", path.display())]
    Io {
        /// Which path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A root that nothing vouches for.
    #[error("root {} is not acceptable", path.display())]
    Root {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustError,
    },
    /// A journal that this program did not write.
    #[error("{} cannot be read: {reason}; a newer agent may have written it", path.display())]
    Journal {
        /// Which file.
        path: PathBuf,
        /// What the parser found.
        reason: String,
    },
}

/// Why a release was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// It did not arrive; worth another try.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The disk; worth another try.
    #[error("could not store the release at {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not signed, not assigned, or for another body.
    #[error("the release is refused")]
    Trust(#[from] TrustError),
    /// Other bytes than the manifest or the assignment says.
    #[error("{what} arrived with other bytes than were signed")]
    Bytes {
        /// Which file.
        what: String,
    },
    /// Larger than the manifest says, or than anything of its kind.
    #[error("{what} has {bytes} bytes; {bytes_max} are allowed")]
    TooLarge {
        /// Which file.
        what: String,
        /// Claimed by the hub.
        bytes: u64,
        /// Signed, or the bound.
        bytes_max: u64,
    },
    /// The folder is not what the manifest says.
    #[error("the package is refused")]
    Package(#[from] PackageError),
    /// It was tried and failed.
    #[error("the release failed its trial")]
    Trial(#[from] TrialError),
    /// It was tried before and the agent did not survive.
    #[error("the agent stopped in the middle of its trial, twice")]
    Crashed,
}

impl InstallError {
    /// Whether the same release may succeed later without being assigned again.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Fetch(_) | Self::Io { .. })
    }
}

/// What changed for control programs.
#[derive(Debug)]
pub(crate) enum Change {
    /// Another release answers for the skill.
    Active { skill: SkillName, release: Arc<LoadedRelease>, previous: Option<Installed> },
    /// No release answers for the skill any more.
    Withdrawn { skill: SkillName, previous: Installed },
}

/// The releases of this robot on its disk.
pub(crate) struct Store<F> {
    folder: PathBuf,
    files: F,
    trust: Trust,
    journal: Journal,
}

impl<F: Files> Store<F> {
    /// Opens the store in `folder` with the configured root in `root_path`.
    pub(crate) fn open(mut files: F, folder: &Path, root_path: &Path, robot: RobotId) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Io { path: folder.to_owned(), source };
        files.create_folder(&folder.join("store")).map_err(failed)?;
        files.create_folder(&folder.join("staging")).map_err(failed)?;
        let journal = read_journal(&folder.join("active.json"))?;
        let pin = |path: &Path| {
            let bytes = fs::read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
            parse_envelope("root", &bytes)
                .and_then(|envelope| Trust::pin(&envelope, robot.clone(), journal.accepted_sequence))
                .map_err(|source| StoreError::Root { path: path.to_owned(), source })
        };
        let mut trust = pin(root_path)?;
        let advanced = folder.join("root.json");
        if advanced.exists() {
            let stored = pin(&advanced)?;
            // A root configured anew begins a new chain; otherwise the newest of the chain counts.
            if stored.root().tenant == trust.root().tenant && stored.root().version > trust.root().version {
                trust = stored;
            }
        }
        Ok(Self { folder: folder.to_owned(), files, trust, journal })
    }

    /// What the robot trusts.
    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Every release and how it does.
    pub(crate) fn reports(&self) -> Vec<ReleaseReport> {
        self.journal.reports()
    }

    /// The last assignment that was accepted, if it can still be read.
    pub(crate) fn assignment(&self) -> Option<Assignment> {
        self.trust.reread_assignment(self.journal.assignment.as_ref()?).ok()
    }

    /// Takes the next root. `false` when it is the one in force or older.
    pub(crate) fn advance_root(&mut self, envelope: &[u8]) -> Result<bool, InstallError> {
        let parsed = parse_envelope("root", envelope)?;
        let mut trust = self.trust.clone();
        match trust.advance_root(&parsed) {
            Ok(()) => {}
            Err(TrustError::RootVersion { found, expected }) if found < expected => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.replace("root.json", envelope)?;
        self.trust = trust;
        Ok(true)
    }

    /// Accepts an assignment and writes it down, before anything is done about it.
    pub(crate) fn accept(
        &mut self,
        envelope: &[u8],
        now_unix_secs: u64,
    ) -> Result<(Assignment, Vec<Change>), InstallError> {
        let envelope = parse_envelope("assignment", envelope)?;
        let mut trust = self.trust.clone();
        let assignment = trust.accept_assignment(&envelope, now_unix_secs)?;
        let mut journal = self.journal.clone();
        let withdrawn = journal.assign(&assignment, envelope);
        self.write(journal)?;
        self.trust = trust;
        let changes = withdrawn
            .into_iter()
            .filter_map(|(skill, slot)| Some(Change::Withdrawn { skill, previous: slot.current? }))
            .collect();
        Ok((assignment, changes))
    }

    /// Loads what ran when the agent stopped. A release that cannot be loaded gives way to the one before.
    pub(crate) fn load_current(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let skills: Vec<SkillName> = self.journal.skills.keys().cloned().collect();
        for skill in skills {
            let mut next = self.journal.skills[&skill].current.clone();
            while let Some(installed) = next.take() {
                match self.load(&installed) {
                    Ok(release) => {
                        tracing::info!(release = %installed.release, "release runs");
                        let release = Arc::new(release);
                        changes.push(Change::Active { skill: skill.clone(), release, previous: None });
                    }
                    Err(error) => {
                        let reason = chain(&error);
                        tracing::error!(release = %installed.release, reason, "an installed release cannot be run");
                        next = self.journal.revert(&skill, reason);
                        if let Err(error) = self.write(self.journal.clone()) {
                            tracing::error!(reason = chain(&error), "the journal of releases could not be written");
                        }
                    }
                }
            }
        }
        changes
    }

    /// Assigned releases that are still to be installed.
    pub(crate) fn missing(&self) -> Vec<Installed> {
        self.assignment().map(|assignment| self.journal.missing(&assignment)).unwrap_or_default()
    }

    /// Installs one assigned release: fetch, verify, stage, try, commit. What fails for good is remembered.
    pub(crate) fn install(
        &mut self,
        installed: &Installed,
        body: &Embodiment,
        fetch: &mut dyn Fetch,
    ) -> Result<Change, InstallError> {
        let result = self.stage(installed, body, fetch).and_then(|()| self.try_out(installed));
        if let Err(error) = &result
            && !error.is_temporary()
        {
            let mut journal = self.journal.clone();
            journal.fail(installed, chain(error));
            self.write(journal)?;
        }
        result
    }

    /// Removes what nothing refers to any more.
    pub(crate) fn clean_up(&mut self) -> io::Result<()> {
        let missing = self.missing();
        for part in ["store", "staging"] {
            for entry in fs::read_dir(self.folder.join(part))? {
                let path = entry?.path();
                let digest = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                let needed = digest.is_some_and(|digest: Digest| {
                    self.journal.refers_to(&digest) || missing.iter().any(|installed| installed.envelope == digest)
                });
                if !needed {
                    self.files.remove_folder(&path)?;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, journal: Journal) -> Result<(), InstallError> {
        let json = serde_json::to_vec_pretty(&journal).expect("a journal has string keys");
        self.replace("active.json", &json)?;
        self.journal = journal;
        Ok(())
    }

    fn replace(&mut self, name: &str, bytes: &[u8]) -> Result<(), InstallError> {
        let path = self.folder.join(name);
        self.files.replace(&path, bytes).map_err(|source| InstallError::Io { path, source })
    }

    fn stored(&self, envelope: &Digest) -> PathBuf {
        self.folder.join("store").join(envelope.to_string())
    }

    /// Brings a release into `store`, verified, unless it is there.
    fn stage(&mut self, installed: &Installed, body: &Embodiment, fetch: &mut dyn Fetch) -> Result<(), InstallError> {
        let assignment = self.assignment().ok_or(TrustError::NotAssigned { release: installed.release.clone() })?;
        let stored = self.stored(&installed.envelope);
        if stored.exists() {
            let envelope = read(&stored.join(ENVELOPE_FILE))?;
            let manifest = self.trust.accept_release(&envelope, &assignment, body)?;
            return Ok(package::verify_files(&stored, &manifest)?);
        }
        let staging = self.folder.join("staging").join(installed.envelope.to_string());
        let failed = |source| InstallError::Io { path: staging.clone(), source };
        self.files.create_folder(&staging).map_err(failed)?;
        let path = staging.join(ENVELOPE_FILE);
        self.download(&path, installed.envelope, None, fetch)?;
        let envelope = read(&path)?;
        let manifest = self.trust.accept_release(&envelope, &assignment, body)?;
        if manifest.release != installed.release {
            return Err(TrustError::NotAssigned { release: manifest.release }.into());
        }
        for file in &manifest.files {
            self.download(&staging.join(&file.name), file.digest, Some(file.bytes), fetch)?;
        }
        let payload = self.payload(&envelope)?;
        let manifest_path = staging.join(MANIFEST_FILE);
        self.files.replace(&manifest_path, &payload).map_err(failed)?;
        // Every file was verified as it arrived; this also sees what does not belong there.
        if let Err(error) = package::verify_files(&staging, &manifest) {
            self.files.remove_folder(&staging).map_err(failed)?;
            return Err(error.into());
        }
        self.files.rename(&staging, &stored).map_err(failed)
    }

    /// Fetches one blob to `path`, carrying on where an earlier attempt stopped.
    fn download(
        &mut self,
        path: &Path,
        digest: Digest,
        bytes: Option<u64>,
        fetch: &mut dyn Fetch,
    ) -> Result<(), InstallError> {
        if path.exists() {
            return Ok(());
        }
        let what = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let failed = |source| InstallError::Io { path: path.to_owned(), source };
        let mut hasher = blake3::Hasher::new();
        let mut have = match fs::File::open(&part) {
            Ok(file) => hash_file(&mut hasher, file).map_err(failed)?,
            Err(_) => 0,
        };
        let download = fetch.open(digest, have)?;
        let bytes_max = bytes.unwrap_or(ENVELOPE_BYTES_MAX);
        let total = download.bytes_total;
        if total > bytes_max || bytes.is_some_and(|bytes| bytes != total) {
            return Err(InstallError::TooLarge { what: what(), bytes: total, bytes_max });
        }
        for received in download.parts {
            let received = received?;
            have += received.len() as u64;
            if have > total {
                break;
            }
            hasher.update(&received);
            self.files.append(&part, &received).map_err(failed)?;
        }
        if have == 0 {
            self.files.append(&part, &[]).map_err(failed)?;
        }
        if have != total || hasher.finalize().as_bytes() != digest.as_bytes() {
            // Nothing of it can be trusted to carry on from.
            self.files.remove_file(&part).map_err(failed)?;
            return Err(InstallError::Bytes { what: what() });
        }
        self.files.sync_file(&part).map_err(failed)?;
        self.files.rename(&part, path).map_err(failed)
    }

    /// The exact bytes that the publisher signed.
    fn payload(&self, envelope: &[u8]) -> Result<Vec<u8>, InstallError> {
        let refused = |source| TrustError::Envelope { what: "release", source };
        let envelope = Envelope::parse(envelope, ENVELOPE_BYTES_MAX as usize).map_err(refused)?;
        let keys: Vec<_> = self.trust.root().publishers.iter().map(|publisher| publisher.key).collect();
        Ok(envelope.verify(RELEASE_TYPE, &keys, 1).map_err(refused)?)
    }

    /// Counts the attempt on disk, loads the release, and commits to it.
    fn try_out(&mut self, installed: &Installed) -> Result<Change, InstallError> {
        let skill = installed.release.skill.clone();
        let mut journal = self.journal.clone();
        if !journal.begin_trial(installed) {
            return Err(InstallError::Crashed);
        }
        self.write(journal)?;
        let release = self.load(installed)?;
        let mut journal = self.journal.clone();
        let previous = journal.skills.get(&skill).and_then(|slot| slot.current.clone());
        journal.commit(&skill);
        self.write(journal)?;
        Ok(Change::Active { skill, release: Arc::new(release), previous })
    }

    /// Loads a stored release after checking its signature and every byte once more.
    fn load(&self, installed: &Installed) -> Result<LoadedRelease, InstallError> {
        let folder = self.stored(&installed.envelope);
        let bytes = |what: &str| InstallError::Bytes { what: what.to_owned() };
        let envelope = read(&folder.join(ENVELOPE_FILE))?;
        if Digest::of(&envelope) != installed.envelope {
            return Err(bytes(ENVELOPE_FILE));
        }
        let manifest: ReleaseManifest = verify_release(&envelope, self.trust.root())?;
        if read(&folder.join(MANIFEST_FILE))? != self.payload(&envelope)? || manifest.release != installed.release {
            return Err(bytes(MANIFEST_FILE));
        }
        Ok(LoadedRelease::load(&folder, installed.envelope)?)
    }
}

fn read_journal(path: &Path) -> Result<Journal, StoreError> {
    let malformed = |reason: String| StoreError::Journal { path: path.to_owned(), reason };
    match fs::read(path) {
        Ok(bytes) => {
            let journal: Journal = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
            if journal.version != JOURNAL_VERSION {
                return Err(malformed(format!("it has version {}", journal.version)));
            }
            Ok(journal)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Journal::default()),
        Err(source) => Err(StoreError::Io { path: path.to_owned(), source }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InstallError> {
    let failed = |source| InstallError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(ENVELOPE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn hash_file(hasher: &mut blake3::Hasher, mut file: fs::File) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(total);
        }
        hasher.update(&buffer[..read]);
        total += read as u64;
    }
}
