//! `zunft robot`: what one robot needs to join a hub, and what robots may upload.

mod upload_policy;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use zunft_protocol::ids::{RobotId, SiteId};

use crate::api::{HubApi, RobotFiles};
use crate::args::{HubArgs, JsonArgs};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::Output;
use upload_policy::UploadPolicyCommand;

#[derive(Debug, Subcommand)]
pub(crate) enum RobotCommand {
    /// Add a robot: its certificate, its key, whom it trusts, and a configuration that is ready to run.
    ///
    /// Copy the folder to the robot and start `zunft-agent run --config agent.toml` there. Adding a robot again makes a
    /// further certificate for it.
    Add(AddArgs),
    /// Say what robots may upload, how fast and when: all of them, or one.
    #[command(subcommand)]
    UploadPolicy(UploadPolicyCommand),
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// The robot's name: a-z, 0-9, '-', '_' and '.'.
    robot: RobotId,
    /// Where the robot is.
    #[arg(long, value_name = "NAME", default_value = "default")]
    site: SiteId,
    /// The folder to write [default: the robot's name].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where the robot reaches the hub, over UDP [default: the hub's own QUIC address].
    #[arg(long, value_name = "HOST:PORT")]
    hub_address: Option<String>,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// The request to the hub.
#[derive(Debug, Serialize)]
pub(crate) struct RobotRequest<'a> {
    pub(crate) robot: &'a RobotId,
    pub(crate) site: &'a SiteId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hub: Option<&'a str>,
}

/// What was written, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Added {
    robot: RobotId,
    config: String,
    expires_unix_secs: u64,
}

pub(crate) fn run(command: RobotCommand) -> Result<(), Failure> {
    match command {
        RobotCommand::Add(args) => run_add(&args),
        RobotCommand::UploadPolicy(command) => upload_policy::run(command),
    }
}

fn run_add(args: &AddArgs) -> Result<(), Failure> {
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from(args.robot.as_str()));
    let api = args.hub.connect()?;
    let request = RobotRequest { robot: &args.robot, site: &args.site, hub: args.hub_address.as_deref() };
    let files = add(&api, &request, &folder)?;
    let added = Added {
        robot: files.robot,
        config: folder.join("agent.toml").display().to_string(),
        expires_unix_secs: files.expires_unix_secs,
    };
    Output::new(args.json.json).show(&added, |added| {
        format!(
            "robot {} can join: its files are in {}\n\nStart its agent: zunft-agent run --config {}\n",
            added.robot,
            folder.display(),
            added.config
        )
    })
}

/// Adds a robot and writes its folder, which must not hold another robot's files.
pub(crate) fn add(api: &HubApi, request: &RobotRequest<'_>, folder: &Path) -> Result<RobotFiles, Failure> {
    if folder.join("robot.key").exists() {
        let error =
            format!("{} holds a robot's key already; give another folder with --out, or remove it", folder.display());
        return Err(Failure::new(ExitCode::Input, error));
    }
    let files: RobotFiles = api.post("/v1/robots", request)?;
    write_folder(folder, &files).map_err(|source| WriteError { path: folder.to_owned(), source }).or_internal()?;
    Ok(files)
}

/// Why a robot's folder was not written.
#[derive(Debug, thiserror::Error)]
#[error("could not write the robot's files into {}", path.display())]
struct WriteError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

fn write_folder(folder: &Path, files: &RobotFiles) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    // The key's owner alone may read it.
    let contents: [(&str, &str, u32); 5] = [
        ("robot.key", &files.key_pem, 0o600),
        ("robot.pem", &files.certificate_pem, 0o644),
        ("ca.pem", &files.ca_pem, 0o644),
        ("root.dsse.json", &files.root_dsse_json, 0o644),
        ("agent.toml", &files.agent_toml, 0o644),
    ];
    for (name, text, mode) in contents {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(folder.join(name))?;
        file.write_all(text.as_bytes())?;
    }
    Ok(())
}
