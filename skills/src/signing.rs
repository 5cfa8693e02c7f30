//! Publisher keys on disk, and signing a package with one.
//!
//! Keys are Ed25519 in PKCS#8, readable by their owner alone. Who is trusted to publish is decided by
//! `zunft_protocol::release`; this module only makes keys and signatures.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use zunft_protocol::dsse::{Envelope, KeyRejected, SigningKey};
use zunft_protocol::release::RELEASE_TYPE;

use crate::package::{ENVELOPE_FILE, Package, PackageError, sync_folder};

/// Largest key file that is read: a PKCS#8 Ed25519 key has under 100 bytes.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Why a key cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A key is there already.
    #[error("{path} exists; a key is never overwritten: releases signed with it could no longer be followed up")]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// The disk.
    #[error("could not access key {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gave no randomness.
    #[error("the system's random generator failed; no key was made")]
    Randomness,
    /// Others can read the key.
    #[error("key {path} has mode {mode:o}; others could sign with it: chmod 600 it, or replace it if it leaked")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error("{path} is no publisher key")]
    Rejected {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyRejected,
    },
}

/// Why a package was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The package itself.
    #[error("the package is not acceptable, so it is not signed")]
    Package(#[from] PackageError),
    /// The disk.
    #[error("could not write {path}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes a new key in the new file `path` (PKCS#8, mode 0600).
pub fn generate_key(path: &Path) -> Result<SigningKey, KeyError> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Randomness)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let failed = |source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::AlreadyExists {
            KeyError::Exists { path }
        } else {
            KeyError::Io { path, source }
        }
    };
    let mut file = options.open(path).map_err(failed)?;
    file.write_all(pkcs8.as_ref()).and_then(|()| file.sync_all()).map_err(failed)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_folder(parent).map_err(failed)?;
    }
    SigningKey::from_pkcs8(pkcs8.as_ref()).map_err(|source| KeyError::Rejected { path: path.to_owned(), source })
}

/// Reads a key that only its owner can read.
pub fn read_key(path: &Path) -> Result<SigningKey, KeyError> {
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut pkcs8 = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, KEY_FILE_BYTES_MAX), &mut pkcs8).map_err(failed)?;
    SigningKey::from_pkcs8(&pkcs8).map_err(|source| KeyError::Rejected { path: path.to_owned(), source })
}

/// Checks the package in `folder`, signs its manifest and puts the envelope beside it.
///
/// Returns the envelope's bytes: their digest is what an assignment names.
pub fn sign_package(folder: &Path, key: &SigningKey) -> Result<Vec<u8>, SignError> {
    let package = Package::read(folder)?;
    let envelope = Envelope::sign(RELEASE_TYPE, &package.manifest_bytes, &[key]).to_json();
    let path = folder.join(ENVELOPE_FILE);
    // Beside the folder, since a package holds no file that its manifest does not list.
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let staging = folder.with_file_name(format!(".{name}.sign.part"));
    crate::package::write_synced(&staging, &envelope)
        .and_then(|()| fs::rename(&staging, &path))
        .and_then(|()| sync_folder(folder))
        .map_err(|source| SignError::Io { path, source })?;
    Ok(envelope)
}

#[cfg(test)]
mod tests;
