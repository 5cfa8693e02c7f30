//! `zunft data export`: a snapshot becomes a LeRobot v3 dataset.

use std::ops::ControlFlow;

use serde::Serialize;
use zunft_skills::data::{ExportError, ExportOptions, ExportSummary, UnknownOutcomes, export_lerobot};

use super::{ExportArgs, Unknown, open};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::output::{Output, count};
use crate::{interrupt, progress};

/// What an export made, as `--json` shows it.
#[derive(Debug, Serialize)]
struct Exported {
    place: String,
    #[serde(flatten)]
    summary: ExportSummary,
}

pub(super) fn run(args: &ExportArgs) -> Result<(), Failure> {
    interrupt::listen();
    let mut data = open(&args.data, &args.reading)?;
    let unknown_outcomes = match args.unknown {
        Unknown::Refuse => UnknownOutcomes::Refuse,
        Unknown::Skip => UnknownOutcomes::Skip,
        Unknown::Failure => UnknownOutcomes::Failure,
    };
    let options = ExportOptions { fps: args.fps, unknown_outcomes };
    let bar = progress::bar(0, "exporting episodes");
    let exported = export_lerobot(&mut data.snapshot, &options, &args.out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if interrupt::check().is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let summary = match exported {
        Err(ExportError::Stopped { .. }) => return Err(Failure::interrupted()),
        Err(error @ (ExportError::Write { .. } | ExportError::Table { .. })) => {
            return Err(Failure::new(ExitCode::Internal, error));
        }
        other => other.or_input()?,
    };
    let exported = Exported { place: args.out.display().to_string(), summary };
    Output::new(args.json.json).show(&exported, text)
}

fn text(exported: &Exported) -> String {
    let ExportSummary { episodes, episodes_skipped, steps, left_out } = &exported.summary;
    let mut text = String::new();
    if *episodes_skipped > 0 {
        text.push_str(&format!("left out: {} without an outcome\n", count(*episodes_skipped, "episode")));
    }
    if !left_out.is_empty() {
        text.push_str(&format!("left out: {}\n", left_out.join(", ")));
    }
    text.push_str(&format!(
        "{} with {} in {place}\n\nOpen it in Python: LeRobotDataset(\"local\", root=\"{place}\")\n",
        count(*episodes, "episode"),
        count(*steps, "step"),
        place = exported.place,
    ));
    text
}
