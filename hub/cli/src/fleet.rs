//! `zunft fleet ls`: every robot of a hub and what runs on it.

use clap::{Args, Subcommand};

use crate::api::RobotView;
use crate::args::{HubArgs, JsonArgs};
use crate::exit::Failure;
use crate::output::{Output, bytes, table};

#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// List the robots: whether they are connected, what runs on them, what waits for upload.
    Ls(LsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn run(command: FleetCommand) -> Result<(), Failure> {
    let FleetCommand::Ls(args) = command;
    let robots: Vec<RobotView> = args.hub.connect()?.list("/v1/robots")?;
    Output::new(args.json.json).show(&robots, |robots| {
        if robots.is_empty() {
            return "no robots yet; add one with `zunft robot add NAME`\n".to_owned();
        }
        let rows: Vec<Vec<String>> = robots.iter().map(row).collect();
        table(&["robot", "site", "state", "runs", "shall run", "upload policy", "waiting", "on disk"], 6, &rows)
    })
}

fn row(robot: &RobotView) -> Vec<String> {
    let list = |names: Vec<&str>| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let dash = || "-".to_owned();
    vec![
        robot.robot.to_string(),
        robot.site.clone(),
        if robot.connected { "connected" } else { "away" }.to_owned(),
        list(robot.active()),
        list(robot.assigned.iter().map(String::as_str).collect()),
        robot.upload_policy.words(),
        robot.episodes_waiting.map_or_else(dash, |episodes| episodes.to_string()),
        robot.spool_bytes.map_or_else(dash, bytes),
    ]
}
