//! `zunft robot upload-policy`: what robots may upload, how fast and when, said at the hub.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use zunft_protocol::ids::{RobotId, TaskName};
use zunft_protocol::upload_policy::{HubPolicy, UploadMode, Window};

use crate::api::RobotView;
use crate::args::{HubArgs, JsonArgs};
use crate::exit::Failure;
use crate::output::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum UploadPolicyCommand {
    /// Set what all robots may upload, or one.
    ///
    /// It takes the place of what was set before, and of mode, caps, metering and windows in the robots' own files, as a
    /// whole: what is not given is free. Tasks that stay on site add to those of the files. A robot's own policy goes
    /// before that of all robots. Connected robots obey at once, the others when they connect; it holds across their
    /// restarts.
    Set(SetArgs),
    /// Show what is set, and what holds on a robot.
    Show(ScopeArgs),
    /// Clear what is set: for one robot, what is set for all holds again; for all robots, their own files.
    Clear(ScopeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ScopeArgs {
    /// One robot [default: all robots].
    robot: Option<RobotId>,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is allowed")]
struct PolicyArgs {
    /// Send manifests only, and the rest of an episode when somebody asks for it (`zunft data request`).
    #[arg(long)]
    metadata_first: bool,
    /// Most bytes a second to the hub, counted in UDP payload; at least 4096.
    #[arg(long, value_name = "BYTES")]
    bytes_per_second: Option<u64>,
    /// The same while the robot acts.
    #[arg(long, value_name = "BYTES")]
    bytes_per_second_acting: Option<u64>,
    /// Every byte costs: send only episodes whose outcome is known, and those with interventions.
    #[arg(long)]
    metered: bool,
    /// A time of day in which episodes are sent, local to the robot, for example 22:00-06:00; may be given often.
    #[arg(long = "window", value_name = "FROM-TO", value_parser = window)]
    windows: Vec<Window>,
    /// A task whose episodes stay on site; may be given often.
    #[arg(long = "keep-on-site", value_name = "TASK")]
    keep_on_site: Vec<TaskName>,
}

fn window(text: &str) -> Result<Window, String> {
    let (from, to) = text.split_once('-').ok_or("use two times of day, for example 22:00-06:00")?;
    Window::parse(from, to).map_err(|error| error.to_string())
}

/// An upload policy as the hub shows it.
#[derive(Debug, Serialize, Deserialize)]
struct PolicyView {
    robot: Option<RobotId>,
    revision: u64,
    policy: Option<HubPolicy>,
    updated_unix_ms: Option<u64>,
}

/// What is shown of one robot.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    view: PolicyView,
    /// For one robot: whose policy holds on it, and whether it keeps to it yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    on_robot: Option<crate::api::RobotUploadPolicy>,
}

impl ScopeArgs {
    fn path(&self) -> String {
        self.robot
            .as_ref()
            .map_or_else(|| "/v1/upload-policy".to_owned(), |robot| format!("/v1/robots/{robot}/upload-policy"))
    }

    /// `all robots`, or the one.
    fn whom(&self) -> String {
        self.robot.as_ref().map_or_else(|| "all robots".to_owned(), |robot| format!("robot {robot}"))
    }
}

pub(crate) fn run(command: UploadPolicyCommand) -> Result<(), Failure> {
    match command {
        UploadPolicyCommand::Set(args) => set(args),
        UploadPolicyCommand::Show(args) => show(&args),
        UploadPolicyCommand::Clear(args) => clear(&args),
    }
}

fn set(SetArgs { scope, policy }: SetArgs) -> Result<(), Failure> {
    let policy = HubPolicy {
        mode: if policy.metadata_first { UploadMode::MetadataFirst } else { UploadMode::All },
        bytes_per_second_max: policy.bytes_per_second,
        bytes_per_second_max_acting: policy.bytes_per_second_acting,
        metered: policy.metered,
        windows: policy.windows,
        keep_on_site_tasks: policy.keep_on_site.into_iter().collect::<BTreeSet<_>>(),
    };
    let view: PolicyView = scope.hub.connect()?.put(&scope.path(), &policy)?;
    Output::new(scope.json.json).show(&view, |view| format!("{}: {}\n", scope.whom(), words(view)))
}

fn show(scope: &ScopeArgs) -> Result<(), Failure> {
    let api = scope.hub.connect()?;
    let view: PolicyView = api.get(&scope.path())?;
    let on_robot = match &scope.robot {
        Some(robot) => Some(api.get::<RobotView>(&format!("/v1/robots/{robot}"))?.upload_policy),
        None => None,
    };
    Output::new(scope.json.json).show(&Shown { view, on_robot }, |shown| {
        let mut text = format!("{}: {}\n", scope.whom(), words(&shown.view));
        if let Some(on_robot) = &shown.on_robot {
            text.push_str(&format!("in force: {} (revision {})\n", on_robot.words(), on_robot.revision));
        }
        text
    })
}

fn clear(scope: &ScopeArgs) -> Result<(), Failure> {
    let view: PolicyView = scope.hub.connect()?.delete(&scope.path())?;
    Output::new(scope.json.json).show(&view, |view| format!("{}: {}\n", scope.whom(), words(view)))
}

/// A policy in a line.
fn words(view: &PolicyView) -> String {
    let Some(policy) = &view.policy else {
        let cleared = if view.revision > 0 { format!(" (cleared, revision {})", view.revision) } else { String::new() };
        return format!("no upload policy{cleared}");
    };
    let mut parts = vec![format!("revision {}", view.revision)];
    if policy.mode == UploadMode::MetadataFirst {
        parts.push("metadata first".to_owned());
    }
    parts.push(match policy.bytes_per_second_max {
        Some(rate) => format!("at most {rate} bytes/s"),
        None => "no cap".to_owned(),
    });
    parts.extend(policy.bytes_per_second_max_acting.map(|rate| format!("at most {rate} bytes/s while acting")));
    if policy.metered {
        parts.push("metered".to_owned());
    }
    parts.extend(policy.windows.iter().map(|window| format!("in {window}")));
    parts.extend(policy.keep_on_site_tasks.iter().map(|task| format!("{task} stays on site")));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_one_line() {
        let view = |revision, policy| PolicyView { robot: None, revision, policy, updated_unix_ms: None };
        assert_eq!(words(&view(0, None)), "no upload policy");
        assert_eq!(words(&view(3, None)), "no upload policy (cleared, revision 3)");
        let policy = HubPolicy {
            mode: UploadMode::MetadataFirst,
            bytes_per_second_max: None,
            bytes_per_second_max_acting: Some(9000),
            metered: true,
            windows: vec![window("22:00-6:00").unwrap()],
            keep_on_site_tasks: ["weld".parse().unwrap()].into(),
        };
        let said = "revision 4, metadata first, no cap, at most 9000 bytes/s while acting, metered, in 22:00-06:00, weld stays on site";
        assert_eq!(words(&view(4, Some(policy))), said);
    }

    #[test]
    fn what_is_no_window_is_refused_with_the_remedy() {
        for (text, remedy) in
            [("22:00", "22:00-06:00"), ("22:00-25:00", "25:00"), ("1:00-1:00", "leave the window out")]
        {
            assert!(window(text).unwrap_err().contains(remedy), "{text}");
        }
    }
}
