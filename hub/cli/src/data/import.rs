//! `zunft data import`: a LeRobot dataset becomes a snapshot directory, or a hub's episodes.
//!
//! Importing twice gives the same ids, so that an import that was stopped can be run again.

use std::path::Path;

use serde::{Deserialize, Serialize};
use zunft_protocol::episode::Actor;
use zunft_protocol::ids::{ChunkId, RobotId, SiteId, SnapshotId, TenantId};
use zunft_skills::data::{
    ImportOptions, ImportedEpisode, LeRobotDataset, LeRobotOptions, SnapshotDirWriter, import_episode, robot_for,
};

use super::{ImportArgs, ReadingArgs};
use crate::api::HubApi;
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::{Output, count};
use crate::{data, interrupt, progress};

/// What an import made, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Imported {
    /// Absent where the episodes went into a hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<SnapshotId>,
    /// The snapshot's folder, or the hub.
    place: String,
    robot: RobotId,
    episodes: u64,
    steps: u64,
    skipped_columns: Vec<String>,
}

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    interrupt::listen();
    let dataset = open_dataset(&args.dataset, &args.reading)?;
    let robot = args.origin.robot.clone().unwrap_or_else(|| robot_for(&args.dataset));
    let (snapshot, place) = match &args.out {
        Some(out) => {
            let tenant = args.origin.tenant.clone().unwrap_or_else(default_tenant);
            let options = options(tenant, args.origin.site.clone(), robot.clone());
            let writer = SnapshotDirWriter::create(out).or_input()?;
            let query = format!("lerobot {}", args.dataset.display());
            (Some(write(&dataset, writer, &options, &query)?), out.display().to_string())
        }
        None => {
            let api = args.hub.connect()?;
            let status: HubStatus = api.get("/v1/status")?;
            let tenant = args.origin.tenant.clone().unwrap_or(status.tenant);
            let options = options(tenant, args.origin.site.clone(), robot.clone());
            send(&dataset, &api, &options)?;
            (None, "the hub".to_owned())
        }
    };
    let imported = Imported {
        snapshot,
        place,
        robot,
        episodes: dataset.episode_count() as u64,
        steps: dataset.step_count(),
        skipped_columns: dataset.skipped().to_vec(),
    };
    Output::new(args.json.json).show(&imported, imported_text)
}

fn imported_text(imported: &Imported) -> String {
    let mut text = String::new();
    if !imported.skipped_columns.is_empty() {
        text.push_str(&format!("left out: {}\n", imported.skipped_columns.join(", ")));
    }
    text.push_str(&format!(
        "{} with {} in {}\n",
        count(imported.episodes, "episode"),
        count(imported.steps, "step"),
        imported.place,
    ));
    text.push_str(&match &imported.snapshot {
        Some(snapshot) => format!(
            "snapshot {snapshot}\n\nTrain a skill from it: zunft train start SKILL --data {} --out PACKAGE\n",
            imported.place
        ),
        None => "\nTrain a skill from everything there: zunft train start SKILL --on-hub --assign all\n".to_owned(),
    });
    text
}

/// The part of the hub's status that an import needs.
#[derive(Debug, Deserialize)]
struct HubStatus {
    tenant: TenantId,
}

/// Whose episodes imported ones become.
fn options(tenant: TenantId, site: SiteId, robot: RobotId) -> ImportOptions {
    // The format does not say who acted; datasets are demonstrations, most of them by people.
    ImportOptions { tenant, site, robot, actor: Actor::Human }
}

fn default_tenant() -> TenantId {
    "default".parse().expect("`default` is a name")
}

/// Opens a LeRobot dataset; a folder that is not there is data that is absent.
pub(super) fn open_dataset(path: &Path, reading: &ReadingArgs) -> Result<LeRobotDataset, Failure> {
    data::source::refuse_absent(path)?;
    LeRobotDataset::open(path, LeRobotOptions { skip_unsupported: reading.skip_unsupported }).or_input()
}

/// Writes a dataset imported for training alone, under the origin that `zunft data import` takes by default.
pub(super) fn write_local(
    dataset: &LeRobotDataset,
    dataset_dir: &Path,
    writer: SnapshotDirWriter,
) -> Result<SnapshotId, Failure> {
    let site = "default".parse().expect("`default` is a name");
    let options = options(default_tenant(), site, robot_for(dataset_dir));
    write(dataset, writer, &options, &format!("lerobot {}", dataset_dir.display()))
}

fn write(
    dataset: &LeRobotDataset,
    mut writer: SnapshotDirWriter,
    options: &ImportOptions,
    query: &str,
) -> Result<SnapshotId, Failure> {
    each_episode(dataset, options, |episode| {
        writer.add(&episode.manifest_bytes, &episode.chunks).map(drop).or_internal()
    })?;
    writer.finish(query).or_input()
}

/// What the hub says to an episode.
#[derive(Debug, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
enum ImportAnswer {
    Durable {},
    Missing { chunks: Vec<ChunkId> },
}

/// Sends every episode that the hub lacks; each is durable there before the next begins.
fn send(dataset: &LeRobotDataset, api: &HubApi, options: &ImportOptions) -> Result<(), Failure> {
    each_episode(dataset, options, |episode| {
        // One round to learn what is missing, one to commit; a further one if others' uploads pushed chunks out.
        for _ in 0..3 {
            match api.post_bytes("/v1/episodes", "application/cbor", &episode.manifest_bytes)? {
                ImportAnswer::Durable {} => return Ok(()),
                ImportAnswer::Missing { chunks: missing } => {
                    for chunk in &episode.chunks {
                        let id = ChunkId::of(chunk);
                        if missing.contains(&id) {
                            let (): () = api.put_bytes(&format!("/v1/chunks/{id}"), chunk)?;
                        }
                    }
                }
            }
        }
        let error = "the hub goes on to miss chunks that were just sent; try again when it is less busy";
        Err(Failure::new(ExitCode::Unavailable, error))
    })
}

/// Reads the dataset and hands out each episode as it is stored.
fn each_episode(
    dataset: &LeRobotDataset,
    options: &ImportOptions,
    mut take: impl FnMut(ImportedEpisode) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let bar = progress::bar(dataset.episode_count() as u64, "importing episodes");
    for episode in dataset.episodes() {
        interrupt::check()?;
        take(import_episode(dataset.embodiment(), &episode.or_input()?, options).or_input()?)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}
