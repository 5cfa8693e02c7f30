//! `zunft skill`: packages on disk, and releases on a hub.

mod releases;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use zunft_protocol::ids::Digest;
use zunft_protocol::release::{self, Lineage, ROOT_TYPE, ReleaseManifest, Root};
use zunft_skills::package::{ENVELOPE_FILE, Package};
use zunft_skills::runtime::SkillRuntime;

use crate::args::JsonArgs;
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::{Output, bytes, count, table};

#[derive(Debug, Subcommand)]
pub(crate) enum SkillCommand {
    /// List a hub's skills with their newest releases, or one skill's releases.
    Ls(releases::LsArgs),
    /// Publish a skill package as a release on a hub.
    ///
    /// A package that is not signed yet is signed with the hub's development key. Only files that the hub lacks travel.
    Push(releases::PushArgs),
    /// Let robots run a release: the hub signs an assignment for each, and connected robots install it at once.
    ///
    /// An older release of the skill takes a newer one's place the same way.
    Assign(releases::AssignArgs),
    /// Fetch a release's package from a hub into a new folder.
    Pull(releases::PullArgs),
    /// Show what a skill package holds: the robot and the tasks it is for, and where it comes from.
    Show(ShowArgs),
    /// Check a skill package as a robot would before running it.
    ///
    /// Every file against its digest, the weights and statistics, the golden vectors; with --root also who signed it.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The package: a folder with `manifest.json`.
    package: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The package: a folder with `manifest.json`.
    package: PathBuf,
    /// The tenant's signed root: only what one of its publishers signed passes.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn run(command: SkillCommand) -> Result<(), Failure> {
    match command {
        SkillCommand::Ls(args) => releases::ls(&args),
        SkillCommand::Push(args) => releases::push(&args),
        SkillCommand::Assign(args) => releases::assign(&args),
        SkillCommand::Pull(args) => releases::pull(&args),
        SkillCommand::Show(args) => show(&args),
        SkillCommand::Verify(args) => verify(&args),
    }
}

/// A package, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Shown {
    path: String,
    signed: bool,
    bytes: u64,
    #[serde(flatten)]
    manifest: ReleaseManifest,
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let manifest = read(&args.package)?.manifest;
    let signed = args.package.join(ENVELOPE_FILE).is_file();
    let shown = Shown { path: args.package.display().to_string(), signed, bytes: manifest.bytes(), manifest };
    Output::new(args.json.json).show(&shown, shown_text)
}

fn read(path: &Path) -> Result<Package, Failure> {
    if !path.exists() {
        let error = format!("there is no package at {}; make one with `zunft train start`", path.display());
        return Err(Failure::new(ExitCode::DataAbsent, error));
    }
    Package::read(path).or_input()
}

fn shown_text(shown: &Shown) -> String {
    let manifest = &shown.manifest;
    let tasks: Vec<&str> = manifest.tasks.iter().map(|task| task.as_str()).collect();
    let mut text = [
        format!("{} of {} ({})", manifest.release, manifest.tenant, if shown.signed { "signed" } else { "not signed" }),
        format!("policy      {} in {}, {}", manifest.policy, manifest.dtype, bytes(shown.bytes)),
        format!("tasks       {}", tasks.join(", ")),
        format!("embodiment  {} at {} Hz", manifest.embodiment.name, manifest.embodiment.rate_hz),
        format!("licence     {}", manifest.licence),
    ]
    .join("\n");
    text.push_str(&lineage_text(&manifest.lineage));
    let rows: Vec<Vec<String>> = manifest
        .files
        .iter()
        .map(|file| vec![file.name.clone(), file.digest.to_string()[..16].to_owned(), bytes(file.bytes)])
        .collect();
    text.push_str(&format!("\n\n{}", table(&["file", "digest", "size"], 2, &rows)));
    text
}

fn lineage_text(lineage: &Lineage) -> String {
    let mut lines = Vec::new();
    if let Some(snapshot) = &lineage.snapshot {
        lines.push(format!("snapshot    {snapshot}"));
    }
    lines.push(format!(
        "training    seed {}, {:.0} s, by zunft {}",
        lineage.seed, lineage.train_secs, lineage.code_version
    ));
    lines.extend(lineage.metrics.iter().map(|(name, value)| format!("{name:<11} {value:.4}")));
    format!("\n{}", lines.join("\n"))
}

/// What was checked, as `--json` shows it. That it is shown means that it passed.
#[derive(Debug, Serialize)]
struct Verified {
    release: String,
    files: u64,
    golden_vectors: bool,
    /// Absent where no root was given.
    signature: Option<Signed>,
}

/// A release as a robot is assigned it.
#[derive(Debug, Serialize)]
struct Signed {
    tenant: String,
    envelope: Digest,
}

fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let package = read(&args.package)?;
    let manifest = package.manifest.clone();
    let manifest_bytes = package.manifest_bytes.clone();
    SkillRuntime::of_package(package).map_err(|error| Failure::new(ExitCode::Failed, error))?;
    let signature = match &args.root {
        Some(root) => Some(verify_signature(&args.package, root, &manifest_bytes)?),
        None => None,
    };
    let verified = Verified {
        release: manifest.release.to_string(),
        files: manifest.files.len() as u64,
        golden_vectors: true,
        signature,
    };
    Output::new(args.json.json).show(&verified, |verified| {
        let signature = match &verified.signature {
            Some(signed) => format!("signed for {}", signed.tenant),
            None => "signature not checked (give --root)".to_owned(),
        };
        format!(
            "{} is sound: {} with the right digests, golden vectors answered, {signature}\n",
            verified.release,
            count(verified.files, "file"),
        )
    })
}

fn verify_signature(package: &Path, root: &Path, manifest_bytes: &[u8]) -> Result<Signed, Failure> {
    let root = read_root(root)?;
    let path = package.join(ENVELOPE_FILE);
    let envelope = std::fs::read(&path).map_err(|error| {
        Failure::new(ExitCode::Failed, format!("could not read {}: {error}; the package is not signed", path.display()))
    })?;
    let signed = release::verify_release(&envelope, &root).map_err(|error| Failure::new(ExitCode::Failed, error))?;
    if signed.encode() != manifest_bytes {
        let error = format!("{} signs another manifest than the package's; fetch it again", path.display());
        return Err(Failure::new(ExitCode::Failed, error));
    }
    Ok(Signed { tenant: signed.tenant.to_string(), envelope: Digest::of(&envelope) })
}

/// Reads a root. It is taken as given: whoever names it on the command line vouches for it.
fn read_root(path: &Path) -> Result<Root, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|error| Failure::new(ExitCode::Input, format!("could not read {}: {error}", path.display())))?;
    let envelope = release::parse_envelope("root", &bytes).or_input()?;
    let trust = release::Trust::pin(&envelope, "verify".parse().expect("`verify` is a name"), 0).or_input()?;
    debug_assert_eq!(envelope.payload_type, ROOT_TYPE);
    Ok(trust.root().clone())
}
