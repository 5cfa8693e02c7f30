//! `zunft skill ls`, `push`, `assign` and `pull`: releases on a hub.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zunft_protocol::ids::{ReleaseId, RobotId, SkillName};

use super::read;
use crate::args::{HubArgs, JsonArgs};
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, bytes, count, table};
use crate::package_transfer;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// List this skill's releases instead of all skills.
    skill: Option<SkillName>,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The package: a folder with `manifest.json`, for example from `zunft train start`.
    package: PathBuf,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AssignArgs {
    /// The release, for example `pick-place@7`.
    release: ReleaseId,
    /// The robots that shall run it.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    robots: Vec<RobotId>,
    /// Every robot of the hub.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The release, for example `pick-place@7`.
    release: ReleaseId,
    /// The folder to write; it must not exist yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Serialize, Deserialize)]
struct SkillRow {
    skill: String,
    newest: Option<String>,
    releases: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ReleaseRow {
    release: String,
    bytes: u64,
    policy: String,
    tasks: Vec<String>,
    embodiment: String,
    published_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct Done {
    release: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    robots: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<String>,
}

pub(super) fn ls(args: &LsArgs) -> Result<(), Failure> {
    let api = args.hub.connect()?;
    let output = Output::new(args.json.json);
    let Some(skill) = &args.skill else {
        let skills: Vec<SkillRow> = api.list("/v1/skills")?;
        return output.show(&skills, |skills| {
            if skills.is_empty() {
                return "no skills yet; publish one with `zunft skill push PACKAGE`\n".to_owned();
            }
            let rows: Vec<Vec<String>> = skills
                .iter()
                .map(|skill| {
                    vec![skill.skill.clone(), skill.newest.clone().unwrap_or_default(), skill.releases.to_string()]
                })
                .collect();
            table(&["skill", "newest", "releases"], 2, &rows)
        });
    };
    let releases: Vec<ReleaseRow> = api.list(&format!("/v1/skills/{skill}/releases"))?;
    output.show(&releases, |releases| {
        let rows: Vec<Vec<String>> = releases
            .iter()
            .map(|release| {
                vec![
                    release.release.clone(),
                    release.policy.clone(),
                    release.embodiment.clone(),
                    release.tasks.join(", "),
                    bytes(release.bytes),
                ]
            })
            .collect();
        table(&["release", "policy", "embodiment", "tasks", "size"], 4, &rows)
    })
}

pub(super) fn push(args: &PushArgs) -> Result<(), Failure> {
    let package = read(&args.package)?;
    let release = package_transfer::publish(&args.hub.connect()?, &args.package, &package.manifest)?;
    let done = Done { release, robots: None, package: None };
    Output::new(args.json.json).show(&done, |done| {
        format!("published {}\n\nLet robots run it: zunft skill assign {} --all\n", done.release, done.release)
    })
}

pub(super) fn assign(args: &AssignArgs) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Answer {
        robots: Vec<String>,
    }
    let robots = if args.all { json!("all") } else { json!(args.robots) };
    let request = json!({ "release": args.release.to_string(), "robots": robots });
    let answer: Answer = args.hub.connect()?.post("/v1/assignments", &request)?;
    let done = Done { release: args.release.to_string(), robots: Some(answer.robots), package: None };
    Output::new(args.json.json).show(&done, |done| {
        let robots = done.robots.as_ref().map_or(0, Vec::len) as u64;
        format!("{} is assigned to {}\n\nWatch it arrive: zunft fleet ls\n", done.release, count(robots, "robot"))
    })
}

pub(super) fn pull(args: &PullArgs) -> Result<(), Failure> {
    if args.out.exists() {
        let error = format!("{} exists; give a new folder with --out", args.out.display());
        return Err(Failure::new(ExitCode::Input, error));
    }
    let fetched = package_transfer::download(&args.hub.connect()?, &args.release.to_string(), &args.out);
    // What did not arrive whole, or is not what its manifest says, does not stay.
    if let Err(failure) = fetched.map_err(Failure::from).and_then(|()| read(&args.out).map(drop)) {
        std::fs::remove_dir_all(&args.out).ok();
        return Err(failure);
    }
    let package = args.out.display().to_string();
    let done = Done { release: args.release.to_string(), robots: None, package: Some(package) };
    Output::new(args.json.json).show(&done, |done| format!("{} is in {}\n", done.release, args.out.display()))
}
