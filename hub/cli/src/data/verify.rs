//! `zunft data verify`: every byte of a snapshot or dataset against what it claims to be.

use serde::Serialize;
use zunft_protocol::chunk::Chunk;
use zunft_protocol::episode::{Manifest, STEPS_STREAM};
use zunft_protocol::ids::{ChunkId, EpisodeId};
use zunft_skills::data::{EpisodeSource as _, SnapshotDir};

use super::{VerifyArgs, open};
use crate::exit::{ExitCode, Failure};
use crate::output::{Output, bytes, count};
use crate::{interrupt, progress};

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Report {
    path: String,
    episodes: u64,
    steps: u64,
    bytes: u64,
    damaged: Vec<Damage>,
}

/// One episode that is not what it claims to be.
#[derive(Debug, Serialize)]
struct Damage {
    episode: EpisodeId,
    reason: String,
}

pub(super) fn run(args: &VerifyArgs) -> Result<(), Failure> {
    interrupt::listen();
    let mut data = open(&args.path, &args.reading)?;
    let mut report = Report { path: args.path.display().to_string(), ..Report::default() };
    let ids: Vec<EpisodeId> = data.snapshot.snapshot().episodes.iter().map(|episode| episode.id).collect();
    let bar = progress::bar(ids.len() as u64, "verifying episodes");
    for id in ids {
        interrupt::check()?;
        match episode(&mut data.snapshot, id) {
            Ok(manifest) => {
                report.episodes += 1;
                report.steps += manifest.steps;
                report.bytes += manifest.bytes();
            }
            Err(reason) => report.damaged.push(Damage { episode: id, reason }),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let damaged = report.damaged.len() as u64;
    Output::new(args.json.json).show(&report, text)?;
    if damaged > 0 {
        let error = format!("{} of {} cannot be used; import or fetch the data again", damaged, report.path);
        return Err(Failure::new(ExitCode::Failed, error));
    }
    Ok(())
}

/// Reads all of an episode; the reason says what does not fit.
fn episode(snapshot: &mut SnapshotDir, id: EpisodeId) -> Result<Manifest, String> {
    let bytes = snapshot.manifest(id).map_err(|error| error.to_string())?;
    if EpisodeId::of(&bytes) != id {
        return Err("its manifest has another hash".to_owned());
    }
    let manifest = Manifest::decode(&bytes).map_err(|error| error.to_string())?;
    for stream in &manifest.streams {
        for listed in &stream.chunks {
            let stored = snapshot.chunk(listed.id).map_err(|error| error.to_string())?;
            if ChunkId::of(&stored) != listed.id || stored.len() != listed.bytes as usize {
                return Err(format!("chunk {} of stream {:?} has another hash or size", listed.id, stream.name));
            }
            // Only numbers can be looked into; images are as the camera gave them.
            if stream.name == STEPS_STREAM {
                let chunk = Chunk::decode(&stored, &stream.schema)
                    .map_err(|error| format!("chunk {} of stream {:?}: {error}", listed.id, stream.name))?;
                if chunk.steps() != listed.steps {
                    return Err(format!("chunk {} holds {} steps, not {}", listed.id, chunk.steps(), listed.steps));
                }
            }
        }
    }
    Ok(manifest)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for damage in &report.damaged {
        text.push_str(&format!("episode {}: {}\n", damage.episode, damage.reason));
    }
    text.push_str(&format!(
        "{}: {}, {} and {} are whole\n",
        report.path,
        count(report.episodes, "episode"),
        count(report.steps, "step"),
        bytes(report.bytes),
    ));
    text
}
