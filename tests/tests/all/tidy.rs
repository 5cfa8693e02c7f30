//! House rules that a compiler does not check.

use std::fs;
use std::path::{Path, PathBuf};

/// A file longer than this has more than one subject.
const FILE_LINES_MAX: usize = 800;

const PACKAGES: [&str; 8] = ["protocol", "skills", "agent", "agent/client", "agent/sim", "hub", "hub/cli", "tests"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the repository").to_owned()
}

fn rust_files() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for package in PACKAGES {
        for folder in ["src", "tests", "benches", "examples"] {
            collect(&root().join(package).join(folder), &mut files);
        }
    }
    assert!(files.len() > 30, "the walk found the sources");
    files
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
}

/// Fails with the list of files that `bad` objects to.
fn check(rule: &str, bad: impl Fn(&Path, &str) -> bool) {
    let offenders: Vec<String> = rust_files()
        .iter()
        .filter(|(path, text)| bad(path, text))
        .map(|(path, _)| path.strip_prefix(root()).unwrap_or(path).display().to_string())
        .collect();
    assert!(offenders.is_empty(), "{rule}: {offenders:#?}");
}

#[test]
fn every_file_says_what_it_is() {
    check("a file opens with //!", |_, text| !text.starts_with("//!"));
}

#[test]
fn no_file_is_longer_than_one_subject() {
    check("at most 800 lines", |_, text| text.lines().count() > FILE_LINES_MAX);
}

#[test]
fn no_file_is_named_after_nothing() {
    let vague = ["mod", "utils", "util", "common", "helpers", "helper", "base", "manager", "misc"];
    check("a file is named after its subject", |path, _| {
        path.file_stem().is_some_and(|stem| vague.contains(&stem.to_string_lossy().as_ref()))
    });
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    // Written apart so that this file does not find itself.
    let marks = [["#[ign", "ore"], ["todo", "!("], ["unimplemented", "!("], ["FIX", "ME"], ["XX", "X:"]]
        .map(|mark| mark.concat());
    check("no ignored tests, no stubs", |_, text| marks.iter().any(|mark| text.contains(mark.as_str())));
}

#[test]
fn documents_named_by_the_readme_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for link in readme.split("](").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        if !target.starts_with("http") {
            assert!(root().join(target).exists(), "README.md names {target}, which does not exist");
        }
    }
}
