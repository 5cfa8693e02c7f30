//! Files with a key for the spool: one key each, as 64 hexadecimal digits, for nobody's eyes but the agent's.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::seal::{KEY_BYTES, MasterKey};

/// Longer than any key with spaces around it; a larger file is another one.
const FILE_BYTES_MAX: u64 = 1024;

/// Bits of a file's mode that let others than its owner use it.
const OTHERS: u32 = 0o077;

/// The config key that names the file with the key for new segments.
pub(crate) const CURRENT: &str = "spool.encryption_key_file";

/// The config key that names files with keys for older segments.
pub(crate) const OLD: &str = "spool.encryption_key_files_old";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Nothing is there.
    #[error(
        "key file {} (config key {field}) does not exist; put it back, or, for a spool that was never encrypted, make it: \
         (umask 077; openssl rand -hex 32 > {0})",
        path.display()
    )]
    Missing {
        /// Which file.
        path: PathBuf,
        /// Who names it.
        field: &'static str,
    },
    /// The disk, or permissions.
    #[error("key file {} (config key {field}) cannot be read; give it to the user that runs the agent", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Who names it.
        field: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe, a device.
    #[error("key file {} (config key {field}) is not a file; name the file with the key itself", path.display())]
    NotAFile {
        /// Which path.
        path: PathBuf,
        /// Who names it.
        field: &'static str,
    },
    /// Others may read or write it.
    #[error(
        "key file {} (config key {field}) is open to others than its owner (mode {mode:04o}); close it: chmod 600 {0}",
        path.display()
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Who names it.
        field: &'static str,
        /// Its permissions.
        mode: u32,
    },
    /// Something else than a key.
    #[error(
        "key file {} (config key {field}) holds {found}; a key is {} hexadecimal digits on one line, as \
         `openssl rand -hex {}` prints them",
        path.display(), KEY_BYTES * 2, KEY_BYTES
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Who names it.
        field: &'static str,
        /// What it is instead, without a byte of it.
        found: String,
    },
}

/// Reads the key in `path`, which the config key `field` names.
pub(crate) fn read(path: &Path, field: &'static str) -> Result<MasterKey, KeyFileError> {
    let path = path.to_owned();
    let failed = |path: &Path, source: io::Error| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            return KeyFileError::Missing { path, field };
        }
        KeyFileError::Read { path, field, source }
    };
    // Opening a pipe would wait for its writer.
    let metadata = fs::metadata(&path).map_err(|source| failed(&path, source))?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile { path, field });
    }
    let file = File::open(&path).map_err(|source| failed(&path, source))?;
    let metadata = file.metadata().map_err(|source| failed(&path, source))?;
    if is_open_to_others(&metadata) {
        return Err(KeyFileError::Open { path, field, mode: metadata.mode() & 0o7777 });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|source| failed(&path, source))?;
    parse(&bytes).map_err(|found| KeyFileError::Malformed { path, field, found })
}

/// Whether others than the file's owner may read or write it.
fn is_open_to_others(metadata: &Metadata) -> bool {
    // A credential of systemd's is root's, and an access list gives it to the service's user: that shows as mode 0440.
    let credential = metadata.mode() & 0o777 == 0o440 && metadata.uid() == 0 && metadata.gid() == 0;
    metadata.mode() & OTHERS != 0 && !credential
}

/// Reads 64 hexadecimal digits, or says what is there instead.
fn parse(bytes: &[u8]) -> Result<MasterKey, String> {
    let digits = bytes.trim_ascii();
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("more than {FILE_BYTES_MAX} bytes"));
    }
    if digits.is_empty() {
        return Err("nothing".into());
    }
    if let Some(at) = digits.iter().position(|byte| !byte.is_ascii_hexdigit()) {
        return Err(format!("{} bytes, of which number {} is no hexadecimal digit", digits.len(), at + 1));
    }
    let mut key = [0; KEY_BYTES];
    if digits.len() != KEY_BYTES * 2 {
        return Err(format!("{} hexadecimal digits", digits.len()));
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let value = |digit: u8| (digit as char).to_digit(16).expect("checked above") as u8;
        *byte = value(pair[0]) << 4 | value(pair[1]);
    }
    Ok(MasterKey::from_bytes(key))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const DIGITS: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        let key = MasterKey::from_bytes(std::array::from_fn(|i| i as u8));
        for text in [DIGITS.to_owned(), format!("{DIGITS}\n"), format!("  {}\r\n", DIGITS.to_lowercase())] {
            assert_eq!(parse(text.as_bytes()), Ok(key.clone()), "{text:?}");
        }
        let raw: [u8; KEY_BYTES] = std::array::from_fn(|i| 0xe0 | i as u8);
        for (bytes, found) in [
            (&DIGITS.as_bytes()[..62], "62 hexadecimal digits"),
            (format!("{DIGITS}00").as_bytes(), "66 hexadecimal digits"),
            (format!("{DIGITS}\n{DIGITS}").as_bytes(), "number 65 is no hexadecimal digit"),
            (DIGITS.replace("1F", "1G").as_bytes(), "number 64 is no hexadecimal digit"),
            (&raw[..], "32 bytes, of which number 1"),
            (b"\n", "nothing"),
            (&[b'0'; 2000][..], "more than 1024 bytes"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_the_agent_s_alone_or_no_key_is_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool.key");
        let refused = |path: &Path, said: &[&str]| {
            let error = read(path, CURRENT).unwrap_err();
            let text = crate::text::chain(&error);
            for said in said.iter().chain([&path.to_str().unwrap(), &CURRENT]) {
                assert!(text.contains(said), "{text}");
            }
        };
        refused(&path, &["does not exist", "openssl rand -hex 32"]);
        refused(folder.path(), &["not a file", "name the file"]);
        fs::write(&path, DIGITS).unwrap();
        for mode in [0o644, 0o640, 0o602, 0o777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            refused(&path, &[&format!("mode {mode:04o}"), &format!("chmod 600 {}", path.display())]);
        }
        fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(read(&path, CURRENT).is_ok(), metadata.uid() == 0 && metadata.gid() == 0);
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        read(&path, CURRENT).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, &DIGITS[..63]).unwrap();
        refused(&path, &["holds 63 hexadecimal digits", "64 hexadecimal digits on one line", "openssl rand -hex 32"]);
        let text = read(&path, CURRENT).unwrap_err().to_string();
        assert!(!text.contains(&DIGITS[..8]), "no part of a key is printed: {text}");
    }
}
