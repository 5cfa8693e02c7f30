//! The release store against bad releases, broken downloads and power cuts at every step.

use std::fs;
use std::io;
use std::path::Path;

use zunft_protocol::embodiment::Embodiment;
use zunft_protocol::message::ReleaseState;
use zunft_protocol::release::AssignedRelease;
use zunft_skills::package::MODEL_FILE;

use super::files::{Files, RealFiles};
use super::made::{Made, MemoryFetch, embodiment};
use super::store::{Change, InstallError, Store};

/// Files whose power is cut after so many steps; the step in which it happens is half done.
struct CutFiles {
    steps_left: usize,
}

impl CutFiles {
    fn step(&mut self) -> io::Result<()> {
        if self.steps_left == 0 {
            return Err(io::Error::other("power cut"));
        }
        self.steps_left -= 1;
        Ok(())
    }
}

impl Files for CutFiles {
    fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealFiles.create_folder(path)
    }
    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if self.steps_left == 0 {
            RealFiles.append(path, &bytes[..bytes.len() / 2])?;
        }
        self.step()?;
        RealFiles.append(path, bytes)
    }
    fn sync_file(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealFiles.sync_file(path)
    }
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        RealFiles.rename(from, to)
    }
    fn replace(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if self.steps_left == 0 {
            fs::write(path.with_extension("tmp"), &bytes[..bytes.len() / 2])?;
        }
        self.step()?;
        RealFiles.replace(path, bytes)
    }
    fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealFiles.remove_file(path)
    }
    fn remove_folder(&mut self, path: &Path) -> io::Result<()> {
        self.step()?;
        RealFiles.remove_folder(path)
    }
}

struct Robot {
    folder: tempfile::TempDir,
}

impl Robot {
    fn new(made: &Made) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("root-config.json"), made.root(1)).unwrap();
        Self { folder }
    }

    fn boot<F: Files>(&self, files: F) -> Result<Store<F>, super::StoreError> {
        let root = self.folder.path().join("root-config.json");
        Store::open(files, &self.folder.path().join("releases"), &root, "r1".parse().unwrap())
    }

    /// The version that answers after a restart.
    fn runs(&self) -> Option<u32> {
        let mut store = self.boot(RealFiles).unwrap();
        versions(&store.load_current())
    }
}

fn versions(changes: &[Change]) -> Option<u32> {
    changes.iter().find_map(|change| match change {
        Change::Active { release, .. } => Some(release.release().version.0),
        Change::Withdrawn { .. } => None,
    })
}

/// Accepts an assignment and installs what it asks for.
fn install<F: Files>(
    store: &mut Store<F>,
    assignment: &[u8],
    fetch: &mut MemoryFetch,
    body: &Embodiment,
) -> Result<(), InstallError> {
    store.accept(assignment, 100)?;
    for installed in store.missing() {
        store.install(&installed, body, fetch)?;
    }
    store.clean_up().map_err(|source| InstallError::Io { path: "clean-up".into(), source })
}

/// A robot that runs `push@1`.
fn robot_with_release_1(made: &mut Made) -> (Robot, AssignedRelease) {
    let first = made.publish(1, 0.0);
    let robot = Robot::new(made);
    let mut store = robot.boot(RealFiles).unwrap();
    install(&mut store, &made.assign(1, &[&first]), &mut made.fetch(), &embodiment()).unwrap();
    assert_eq!(robot.runs(), Some(1));
    (robot, first)
}

#[test]
fn assigned_releases_are_installed_and_run_after_a_restart_without_a_hub() {
    let mut made = Made::new();
    let (robot, first) = robot_with_release_1(&mut made);
    let second = made.publish(2, 1.0);
    let mut store = robot.boot(RealFiles).unwrap();
    install(&mut store, &made.assign(2, &[&second]), &mut made.fetch(), &embodiment()).unwrap();
    assert_eq!(robot.runs(), Some(2));
    // An operator goes back: nothing is fetched, since the release before is kept.
    let mut fetch = made.fetch();
    let mut store = robot.boot(RealFiles).unwrap();
    install(&mut store, &made.assign(3, &[&first]), &mut fetch, &embodiment()).unwrap();
    assert_eq!((robot.runs(), fetch.bytes_sent), (Some(1), 0));
    // An attacker cannot.
    let mut store = robot.boot(RealFiles).unwrap();
    assert!(store.accept(&made.assign(2, &[&second]), 100).is_err());
}

#[test]
fn a_release_that_is_not_acceptable_leaves_the_one_before_active() {
    let mut made = Made::new();
    let (robot, _) = robot_with_release_1(&mut made);
    let nan = made.publish_spoiled(2, MODEL_FILE, |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let wrong = made.publish_spoiled(3, MODEL_FILE, |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&7.5_f32.to_le_bytes());
    });
    let mut other = embodiment();
    other.name = "arm".into();
    let foreign = made.publish_for(4, 0.0, other);
    let mut flipped = made.publish(5, 2.0);
    let mut bytes = made.blobs[&flipped.envelope].clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    flipped.envelope = zunft_protocol::Digest::of(&bytes);
    made.blobs.insert(flipped.envelope, bytes);
    for (sequence, release, expected) in [
        (2, &nan, "not a number|NaN|finite|golden"),
        (3, &wrong, "golden"),
        (4, &foreign, "embodiment"),
        (5, &flipped, "signature|DSSE"),
    ] {
        let mut store = robot.boot(RealFiles).unwrap();
        let error =
            install(&mut store, &made.assign(sequence, &[release]), &mut made.fetch(), &embodiment()).unwrap_err();
        assert!(!error.is_temporary());
        let message = crate::text::chain(&error);
        assert!(expected.split('|').any(|part| message.contains(part)), "{message}");
        let reports = store.reports();
        assert!(reports.iter().any(|report| report.state == ReleaseState::Failed && !report.reason.is_empty()));
        assert!(store.missing().is_empty(), "it is not tried again and again");
        assert_eq!(robot.runs(), Some(1));
    }
}

#[test]
fn a_flipped_byte_on_the_way_or_on_disk_is_seen() {
    let mut made = Made::new();
    let (robot, _) = robot_with_release_1(&mut made);
    let second = made.publish(2, 1.0);
    let mut fetch = made.fetch();
    for blob in fetch.blobs.values_mut() {
        if let Some(byte) = blob.last_mut() {
            *byte ^= 1;
        }
    }
    let mut store = robot.boot(RealFiles).unwrap();
    let error = install(&mut store, &made.assign(2, &[&second]), &mut fetch, &embodiment()).unwrap_err();
    assert!(matches!(error, InstallError::Bytes { .. }), "{error}");
    assert_eq!(robot.runs(), Some(1));
    install(&mut store, &made.assign(3, &[&second]), &mut made.fetch(), &embodiment()).unwrap();
    let model = robot.folder.path().join("releases/store").join(second.envelope.to_string()).join(MODEL_FILE);
    let mut bytes = fs::read(&model).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    fs::write(&model, bytes).unwrap();
    assert_eq!(robot.runs(), Some(1), "the release before takes over");
}

#[test]
fn a_download_carries_on_where_it_broke() {
    let mut made = Made::new();
    let (robot, _) = robot_with_release_1(&mut made);
    let second = made.publish(2, 1.0);
    let mut whole = made.fetch();
    let whole_bytes: usize = {
        let scratch = Robot::new(&made);
        let mut store = scratch.boot(RealFiles).unwrap();
        install(&mut store, &made.assign(1, &[&second]), &mut whole, &embodiment()).unwrap();
        whole.bytes_sent
    };
    let mut store = robot.boot(RealFiles).unwrap();
    let mut fetch = made.fetch();
    fetch.bytes_left = whole_bytes / 2;
    let error = install(&mut store, &made.assign(2, &[&second]), &mut fetch, &embodiment()).unwrap_err();
    assert!(error.is_temporary(), "{error}");
    let mut store = robot.boot(RealFiles).unwrap();
    fetch.bytes_left = usize::MAX;
    for installed in store.missing() {
        store.install(&installed, &embodiment(), &mut fetch).unwrap();
    }
    assert_eq!(robot.runs(), Some(2));
    assert_eq!(fetch.bytes_sent, whole_bytes, "no byte is fetched twice");
}

#[test]
fn a_skill_that_is_no_longer_assigned_is_withdrawn() {
    let mut made = Made::new();
    let (robot, _) = robot_with_release_1(&mut made);
    let mut store = robot.boot(RealFiles).unwrap();
    let (_, changes) = store.accept(&made.assign(2, &[]), 100).unwrap();
    assert!(matches!(&changes[..], [Change::Withdrawn { .. }]));
    store.clean_up().unwrap();
    assert_eq!(robot.runs(), None);
    assert_eq!(fs::read_dir(robot.folder.path().join("releases/store")).unwrap().count(), 0);
}

#[test]
fn roots_advance_in_their_chain_and_survive_a_restart() {
    let mut made = Made::new();
    let (robot, _) = robot_with_release_1(&mut made);
    let mut store = robot.boot(RealFiles).unwrap();
    assert!(store.advance_root(&made.root(3)).is_err(), "a version is missing in between");
    assert!(store.advance_root(&made.root(2)).unwrap());
    assert!(!store.advance_root(&made.root(2)).unwrap());
    assert_eq!(robot.boot(RealFiles).unwrap().trust().root().version, 2);
    assert_eq!(robot.runs(), Some(1));
}

#[test]
fn after_a_power_cut_at_any_step_exactly_one_verified_release_runs() {
    let mut made = Made::new();
    let (template, _) = robot_with_release_1(&mut made);
    let second = made.publish(2, 1.0);
    let assignment = made.assign(2, &[&second]);
    let mut finished = false;
    for steps in 0..10_000 {
        let robot = Robot::new(&made);
        copy(&template.folder.path().join("releases"), &robot.folder.path().join("releases"));
        let cut = robot
            .boot(CutFiles { steps_left: steps })
            .map_err(|_| ())
            .and_then(|mut store| install(&mut store, &assignment, &mut made.fetch(), &embodiment()).map_err(|_| ()));
        let after = robot.runs().expect("one release runs");
        assert!(after == 1 || after == 2, "after {steps} steps");
        // The power is back: the robot ends with what is assigned, if it had heard of it.
        let mut store = robot.boot(RealFiles).unwrap();
        store.load_current();
        for installed in store.missing() {
            store.install(&installed, &embodiment(), &mut made.fetch()).unwrap();
        }
        let heard = store.trust().accepted_sequence() == 2;
        assert_eq!(robot.runs(), Some(if heard { 2 } else { 1 }), "after {steps} steps");
        if cut.is_ok() {
            finished = true;
            break;
        }
    }
    assert!(finished, "the installation ends");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
