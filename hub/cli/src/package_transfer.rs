//! Skill packages between a folder and the hub: up to be published, down to be looked at or to act.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use zunft_protocol::ids::Digest;
use zunft_protocol::limits::RELEASE_MANIFEST_BYTES_MAX;
use zunft_protocol::release::ReleaseManifest;
use zunft_skills::package::{ENVELOPE_FILE, MANIFEST_FILE};

use crate::api::{ApiError, HubApi};
use crate::exit::{ExitCode, Failure};

/// What the hub says to a release.
#[derive(Debug, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
enum PublishAnswer {
    Published { release: String },
    Missing { blobs: Vec<Digest> },
}

/// The part of a release's description that names its files by digest.
#[derive(Debug, Deserialize)]
struct ReleaseDetail {
    envelope: Digest,
    manifest: ReleaseManifest,
}

/// Publishes the package in `folder`: only files that the hub lacks are sent. Returns the release's name.
///
/// A package that is not signed is signed by the hub's development key.
pub(crate) fn publish(api: &HubApi, folder: &Path, manifest: &ReleaseManifest) -> Result<String, Failure> {
    let signed = folder.join(ENVELOPE_FILE);
    let named = if signed.is_file() { signed } else { folder.join(MANIFEST_FILE) };
    let bytes = read(&named)?;
    // One round to learn what is missing, one to publish; a further one if another publisher's upload was in between.
    for _ in 0..3 {
        match api.post_bytes("/v1/releases", "application/json", &bytes)? {
            PublishAnswer::Published { release } => return Ok(release),
            PublishAnswer::Missing { blobs } => {
                for file in manifest.files.iter().filter(|file| blobs.contains(&file.digest)) {
                    let path = format!("/v1/blobs/{}", file.digest);
                    let (): () = api.put_bytes(&path, &read(&folder.join(&file.name))?)?;
                }
            }
        }
    }
    let error = "the hub goes on to miss files that were just sent; is its disk full?";
    Err(Failure::new(ExitCode::Unavailable, error))
}

/// Fetches a release's package into the new folder `folder`. Nothing of it is trusted before it is read as a package.
pub(crate) fn download(api: &HubApi, release: &str, folder: &Path) -> Result<(), ApiError> {
    let detail: ReleaseDetail = api.get(&format!("/v1/releases/{release}"))?;
    // Names become paths below `folder`: only plain ones pass.
    let refused = |source| ApiError::Release { release: release.to_owned(), source };
    detail.manifest.check().map_err(refused)?;
    let keep = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| ApiError::Disk { path, source })
    };
    fs::create_dir(folder).map_err(|source| ApiError::Disk { path: folder.to_owned(), source })?;
    for file in &detail.manifest.files {
        keep(&file.name, &api.get_bytes(&format!("/v1/blobs/{}", file.digest), file.bytes)?)?;
    }
    let envelope = format!("/v1/blobs/{}", detail.envelope);
    keep(ENVELOPE_FILE, &api.get_bytes(&envelope, RELEASE_MANIFEST_BYTES_MAX as u64 * 2)?)?;
    keep(MANIFEST_FILE, &detail.manifest.encode())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::new(ExitCode::Input, format!("could not read {}: {error}", path.display())))
}
