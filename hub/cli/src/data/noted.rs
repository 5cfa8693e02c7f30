//! `zunft data noted` and `request`: episodes that a hub knows of and that are on their robots alone.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{NotedArgs, RequestArgs};
use crate::exit::Failure;
use crate::output::{Output, bytes, table};

/// Episodes of one request: the most that the hub takes.
const REQUEST_EPISODES: usize = 1000;

/// An episode as the hub lists it.
#[derive(Debug, Serialize, Deserialize)]
struct NotedView {
    id: String,
    robot: String,
    ordinal: u64,
    task: String,
    outcome: String,
    state: String,
    interventions: bool,
    steps: u64,
    bytes: u64,
}

pub(super) fn list(args: &NotedArgs) -> Result<(), Failure> {
    let noted: Vec<NotedView> = args.hub.connect()?.list("/v1/noted-episodes")?;
    Output::new(args.json.json).show(&noted, |noted| {
        if noted.is_empty() {
            return "no episode is on its robot alone, as far as the hub knows\n".to_owned();
        }
        let row = |noted: &NotedView| {
            let texts = [&noted.id, &noted.robot, &noted.task, &noted.outcome, &noted.state];
            let texts = texts.into_iter().cloned();
            texts.chain([noted.ordinal.to_string(), noted.steps.to_string(), bytes(noted.bytes)]).collect()
        };
        let rows: Vec<Vec<String>> = noted.iter().map(row).collect();
        table(&["episode", "robot", "task", "outcome", "state", "recording", "steps", "size"], 5, &rows)
    })
}

pub(super) fn request(args: &RequestArgs) -> Result<(), Failure> {
    let api = args.hub.connect()?;
    for episodes in args.episodes.chunks(REQUEST_EPISODES) {
        api.post::<()>("/v1/noted-episodes/request", &json!({ "episodes": episodes }))?;
    }
    Ok(())
}
