//! What a robot accepts, and the attacks it must not.

use std::collections::BTreeMap;

use super::*;
use crate::embodiment::{ACTION, Feature, OBSERVATION_STATE};

const NOW: u64 = 1_800_000_000;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn root() -> Root {
    Root {
        tenant: "acme".parse().unwrap(),
        version: 1,
        expires_unix_secs: NOW + 1_000_000,
        root_keys: vec![key(1).public(), key(2).public(), key(3).public()],
        root_threshold: 2,
        publishers: vec![Publisher { key: key(10).public(), skills: vec!["push".parse().unwrap()] }],
        assigners: vec![key(20).public()],
    }
}

fn trust() -> Trust {
    Trust::pin(&root().sign(&[&key(1), &key(3)]), "r1".parse().unwrap(), 4).unwrap()
}

fn body() -> Embodiment {
    Embodiment {
        name: "arm".into(),
        rate_hz: 50.0,
        features: vec![Feature::vector(OBSERVATION_STATE, 2), Feature::vector(ACTION, 1)],
    }
}

fn manifest() -> ReleaseManifest {
    ReleaseManifest {
        tenant: "acme".parse().unwrap(),
        release: "push@2".parse().unwrap(),
        policy: "mlp".into(),
        dtype: "bf16".into(),
        embodiment: body(),
        tasks: vec!["push".parse().unwrap()],
        files: vec![ReleaseFile { name: "model.safetensors".into(), bytes: 3, digest: Digest::of(b"abc") }],
        lineage: Lineage {
            snapshot: None,
            config: serde_json::Value::Null,
            seed: 0,
            code_version: "0".into(),
            metrics: BTreeMap::new(),
            train_secs: 0.0,
        },
        licence: "MIT".into(),
    }
}

fn published(manifest: &ReleaseManifest, publisher: &SigningKey) -> Vec<u8> {
    Envelope::sign(RELEASE_TYPE, &manifest.encode(), &[publisher]).to_json()
}

fn assignment(release: &[u8]) -> Assignment {
    Assignment {
        tenant: "acme".parse().unwrap(),
        robot: "r1".parse().unwrap(),
        sequence: 5,
        root_version: 1,
        issued_unix_secs: NOW,
        expires_unix_secs: NOW + 3600,
        releases: vec![AssignedRelease { release: "push@2".parse().unwrap(), envelope: Digest::of(release) }],
        floors: vec![],
    }
}

#[test]
fn a_published_and_assigned_release_for_this_body_is_accepted() {
    let release = published(&manifest(), &key(10));
    let mut trust = trust();
    let accepted = trust.accept_assignment(&assignment(&release).sign(&key(20)), NOW).unwrap();
    assert_eq!(trust.accepted_sequence(), 5);
    assert_eq!(trust.accept_release(&release, &accepted, &body()).unwrap(), manifest());
}

#[test]
fn a_root_with_too_few_signatures_is_not_pinned() {
    let robot: RobotId = "r1".parse().unwrap();
    assert!(Trust::pin(&root().sign(&[&key(1)]), robot.clone(), 0).is_err());
    assert!(Trust::pin(&root().sign(&[&key(1), &key(9)]), robot, 0).is_err());
}

#[test]
fn the_next_root_needs_the_keys_of_both() {
    let mut next = root();
    next.version = 2;
    next.root_keys = vec![key(4).public(), key(5).public()];
    let mut trust = trust();
    assert!(trust.advance_root(&next.sign(&[&key(4), &key(5)])).is_err(), "the old keys are missing");
    assert!(trust.advance_root(&next.sign(&[&key(1), &key(2)])).is_err(), "the new keys are missing");
    trust.advance_root(&next.sign(&[&key(1), &key(2), &key(4), &key(5)])).unwrap();
    assert_eq!(trust.root().version, 2);
    assert!(trust.advance_root(&root().sign(&[&key(1), &key(2)])).is_err(), "no way back");
}

#[test]
fn nothing_follows_the_last_root_version() {
    let last = Root { version: u32::MAX, ..root() };
    let mut trust = Trust::pin(&last.sign(&[&key(1), &key(3)]), "r1".parse().unwrap(), 0).unwrap();
    for version in [0, u32::MAX] {
        let next = Root { version, ..root() }.sign(&[&key(1), &key(3)]);
        assert!(matches!(trust.advance_root(&next), Err(TrustError::RootVersion { .. })), "{version}");
    }
}

#[test]
fn assignments_of_others_old_ones_and_expired_ones_are_refused() {
    let release = published(&manifest(), &key(10));
    let refused = |change: fn(&mut Assignment), signer: u8| {
        let mut changed = assignment(&release);
        change(&mut changed);
        let mut trust = trust();
        assert!(trust.accept_assignment(&changed.sign(&key(signer)), NOW).is_err(), "{changed:?}");
        assert_eq!(trust.accepted_sequence(), 4, "a refused assignment leaves no trace");
    };
    refused(|_| {}, 10);
    refused(|a| a.robot = "r2".parse().unwrap(), 20);
    refused(|a| a.tenant = "evil".parse().unwrap(), 20);
    refused(|a| a.sequence = 4, 20);
    refused(|a| a.expires_unix_secs = NOW, 20);
    refused(|a| a.releases.push(a.releases[0].clone()), 20);
    refused(|a| a.floors.push(VersionFloor { skill: "push".parse().unwrap(), version: SkillVersion(3) }), 20);
}

#[test]
fn releases_unassigned_unpublished_or_for_another_body_are_refused() {
    let release = published(&manifest(), &key(10));
    let accepted = assignment(&release);
    let trust = trust();
    let other_skill = {
        let mut manifest = manifest();
        manifest.release = "weld@2".parse().unwrap();
        published(&manifest, &key(10))
    };
    let error = trust.accept_release(&other_skill, &assignment(&other_skill), &body()).unwrap_err();
    assert!(matches!(error, TrustError::Envelope { .. }), "the publisher may not publish that skill: {error}");
    let foreign = published(&manifest(), &key(11));
    assert!(matches!(trust.accept_release(&foreign, &assignment(&foreign), &body()), Err(TrustError::Envelope { .. })));
    let retrained = {
        let mut manifest = manifest();
        manifest.lineage.seed = 1;
        published(&manifest, &key(10))
    };
    assert!(matches!(trust.accept_release(&retrained, &accepted, &body()), Err(TrustError::NotAssigned { .. })));
    let mut other_body = body();
    other_body.name = "crane".into();
    assert!(matches!(trust.accept_release(&release, &accepted, &other_body), Err(TrustError::WrongEmbodiment(_))));
    let mut flipped = release;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    assert!(trust.accept_release(&flipped, &accepted, &body()).is_err());
}

#[test]
fn manifests_with_dangerous_files_are_refused() {
    for name in ["../x", "/etc/passwd", "a/b", ".hidden", "", "a\\b", "ä"] {
        let mut manifest = manifest();
        manifest.files[0].name = name.into();
        assert!(ReleaseManifest::decode(&manifest.encode()).is_err(), "{name:?}");
    }
    let mut doubled = manifest();
    doubled.files.push(doubled.files[0].clone());
    assert!(ReleaseManifest::decode(&doubled.encode()).is_err());
}
