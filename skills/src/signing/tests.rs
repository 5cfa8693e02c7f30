//! Keys on disk and signatures over packages.

use zunft_protocol::release::{Publisher, Root, verify_release};

use super::*;
use crate::package::testing::{info, skill};
use crate::package::write;
use crate::runtime::SkillRuntime;

#[test]
fn signed_package_is_accepted_under_its_publishers_root_only() {
    let folder = tempfile::tempdir().unwrap();
    let (path, key_path) = (folder.path().join("toy-3"), folder.path().join("publisher.p8"));
    let manifest = write(&path, &skill(), &info()).unwrap();
    generate_key(&key_path).unwrap();
    let key = read_key(&key_path).unwrap();
    let envelope = sign_package(&path, &key).unwrap();

    let root = |key: &SigningKey| Root {
        tenant: info().tenant,
        version: 1,
        expires_unix_secs: 2_000_000_000,
        root_keys: vec![key.public()],
        root_threshold: 1,
        publishers: vec![Publisher { key: key.public(), skills: vec![] }],
        assigners: vec![key.public()],
    };
    assert_eq!(verify_release(&envelope, &root(&key)).unwrap(), manifest);
    let stranger = SigningKey::from_seed(&[9; 32]);
    assert!(verify_release(&envelope, &root(&stranger)).is_err());
    assert_eq!(fs::read(path.join(ENVELOPE_FILE)).unwrap(), envelope);
    SkillRuntime::load(&path).unwrap();
}

#[test]
fn altered_package_is_not_signed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("toy-3");
    write(&path, &skill(), &info()).unwrap();
    fs::write(path.join("config.json"), b"{}").unwrap();
    let error = sign_package(&path, &SigningKey::from_seed(&[1; 32])).unwrap_err();
    assert!(matches!(error, SignError::Package(PackageError::Size { .. })), "{error:?}");
    assert!(!path.join(ENVELOPE_FILE).exists());
}

#[test]
fn key_is_private_and_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.p8");
    let made = generate_key(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(read_key(&path).unwrap().public(), made.public());
    assert!(matches!(generate_key(&path), Err(KeyError::Exists { .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(read_key(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, b"not a key").unwrap();
    assert!(matches!(read_key(&path), Err(KeyError::Rejected { .. })));
}
