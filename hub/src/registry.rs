//! Signed releases: what may be published, and handing it to robots.
//!
//! A release is checked to the last byte before anything of it is stored, and never changes afterwards. Whether a robot
//! shall run it is for assignments.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use zunft_protocol::dsse::Envelope;
use zunft_protocol::ids::{Digest, ReleaseId, SkillVersion, TenantId};
use zunft_protocol::limits::RELEASE_MANIFEST_BYTES_MAX;
use zunft_protocol::release::{RELEASE_TYPE, ReleaseManifest, TrustError, verify_release};
use zunft_skills::package::{ENVELOPE_FILE, Package, PackageError};
use zunft_skills::runtime::{LoadError, SkillRuntime};

use crate::clock;
use crate::metadata::{Metadata, MetadataError, ReleaseRecord};
use crate::pki::TenantKeys;
use crate::store::{Store, StoreError, blob_key};

/// Why a release is not published. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The package is not complete and unaltered.
    #[error("the skill package is refused")]
    Package(#[from] PackageError),
    /// The package cannot be run.
    #[error("the skill package cannot be run")]
    Load(#[from] LoadError),
    /// The signature does not hold, or is by someone who may not publish.
    #[error("the skill package's signature is refused")]
    Trust(#[from] TrustError),
    /// The signature is of another manifest.
    #[error("{ENVELOPE_FILE} signs another manifest than manifest.json; sign the package again")]
    Envelope,
    /// No such tenant.
    #[error("tenant {tenant} does not exist on this hub")]
    NoTenant {
        /// Which.
        tenant: TenantId,
    },
    /// Made for another tenant.
    #[error("the skill package is of tenant {found}, not of {expected}; package it for that tenant")]
    Tenant {
        /// Its tenant.
        found: TenantId,
        /// The tenant it is published for.
        expected: TenantId,
    },
    /// Not the next version, or one that exists with other bytes.
    #[error(
        "release {release} cannot be published: the next version of the skill is {expected}, and releases never change"
    )]
    Version {
        /// The release.
        release: ReleaseId,
        /// The version that it should have.
        expected: SkillVersion,
    },
    /// A file cannot be read.
    #[error("could not read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store.
    #[error("the release could not be stored")]
    Store(#[from] StoreError),
    /// The metadata.
    #[error("the release could not be registered")]
    Metadata(#[from] MetadataError),
}

/// A package that was checked and signed, in memory.
struct Publication {
    manifest: ReleaseManifest,
    envelope: Vec<u8>,
    files: Vec<(Digest, Bytes)>,
}

/// Publishes the package in `folder` for the tenant whose keys these are.
///
/// Publishing the same bytes again changes nothing.
pub(crate) async fn publish(
    store: &Store,
    metadata: &Metadata,
    keys: std::sync::Arc<TenantKeys>,
    folder: &Path,
) -> Result<ReleaseRecord, PublishError> {
    let tenant = keys.root.tenant.clone();
    let folder = folder.to_owned();
    // Reading, hashing and running the golden vectors take seconds for a large skill.
    let publication = tokio::task::spawn_blocking(move || read_publication(&folder, &keys)).await;
    let publication = publication.expect("checking a package does not panic")?;
    let release = publication.manifest.release.clone();
    if let Some(present) = metadata.release(&tenant, &release).await? {
        if present.manifest == publication.manifest {
            return Ok(present);
        }
        let expected = metadata.next_version(&tenant, &release.skill).await?;
        return Err(PublishError::Version { release, expected });
    }
    let envelope = Digest::of(&publication.envelope);
    let mut blobs = vec![(envelope, publication.envelope.len() as u64)];
    store.put(&blob_key(&tenant, envelope), publication.envelope.into()).await?;
    for (digest, bytes) in publication.files {
        blobs.push((digest, bytes.len() as u64));
        store.put(&blob_key(&tenant, digest), bytes.into()).await?;
    }
    let record = ReleaseRecord {
        release: release.clone(),
        envelope,
        bytes: publication.manifest.bytes(),
        manifest: publication.manifest,
        published_unix_ms: clock::unix_millis(),
    };
    if !metadata.add_release(&tenant, &record, &blobs).await? {
        let expected = metadata.next_version(&tenant, &release.skill).await?;
        return Err(PublishError::Version { release, expected });
    }
    Ok(record)
}

fn read_publication(folder: &Path, keys: &TenantKeys) -> Result<Publication, PublishError> {
    let package = Package::read(folder)?;
    let (manifest, manifest_bytes) = (package.manifest.clone(), package.manifest_bytes.clone());
    // A release that does not load or does not meet its own golden vectors would fail on every robot.
    SkillRuntime::of_package(package)?;
    if manifest.tenant != keys.root.tenant {
        return Err(PublishError::Tenant { found: manifest.tenant, expected: keys.root.tenant.clone() });
    }
    let envelope = match read_envelope(folder)? {
        Some(envelope) => envelope,
        None => Envelope::sign(RELEASE_TYPE, &manifest_bytes, &[&keys.publisher]).to_json(),
    };
    if verify_release(&envelope, &keys.root)? != manifest {
        return Err(PublishError::Envelope);
    }
    let mut files = Vec::with_capacity(manifest.files.len());
    for file in &manifest.files {
        let path = folder.join(&file.name);
        let bytes = std::fs::read(&path).map_err(|source| PublishError::Read { path: path.clone(), source })?;
        let found = Digest::of(&bytes);
        // It was checked above, but the folder is not ours: what is stored is what was hashed.
        if found != file.digest {
            return Err(PackageError::Digest { path, found, expected: file.digest }.into());
        }
        files.push((found, bytes.into()));
    }
    Ok(Publication { manifest, envelope, files })
}

fn read_envelope(folder: &Path) -> Result<Option<Vec<u8>>, PublishError> {
    use std::io::Read as _;
    let path = folder.join(ENVELOPE_FILE);
    let file = match std::fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PublishError::Read { path, source }),
        Ok(file) => file,
    };
    let mut bytes = Vec::new();
    file.take(2 * RELEASE_MANIFEST_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| PublishError::Read { path, source })?;
    Ok(Some(bytes))
}
