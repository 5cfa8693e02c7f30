//! `zunft fsck`: checks a stopped hub's experience, and sets right what can be.

use std::fmt::Write as _;

use clap::Args;
use zunft_hub::fsck::{self, Report, Todo};

use crate::args::JsonArgs;
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::hub::{ConfigArgs, runtime};
use crate::output::{Output, bytes, count};

#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Set right what can be: save what is intact in damaged packs, move those to quarantine/, register packs that
    /// the metadata does not know, rebuild it where it is gone. Nothing is deleted from the store.
    #[arg(long)]
    repair: bool,
    /// Then delete what no episode needs: chunks that were stored ahead of their episode, which has not come for
    /// store.orphan_days. Only where everything acknowledged can be read. A running hub does so once a day.
    #[arg(long)]
    sweep: bool,
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn run(args: &FsckArgs) -> Result<(), Failure> {
    let config = args.config.load()?;
    let report = runtime()?.block_on(fsck::run(&config, Todo { repair: args.repair, sweep: args.sweep })).or_input()?;
    Output::new(args.json.json).show(&report, text)?;
    if report.is_sound() {
        return Ok(());
    }
    let remedy =
        if args.repair { "what could be set right is" } else { "`zunft fsck --repair` sets right what can be" };
    Err(Failure::new(ExitCode::Failed, format!("the experience store is not sound; {remedy}")))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        writeln!(text, "{finding}").expect("writing to a String cannot fail");
    }
    writeln!(
        text,
        "verified {} ({}): {}, {}, {}; {} listed",
        count(report.packs, "pack"),
        bytes(report.bytes),
        count(report.chunks, "chunk"),
        count(report.manifests, "manifest"),
        count(report.objects, "other object"),
        count(report.episodes, "episode"),
    )
    .expect("writing to a String cannot fail");
    if let Some(swept) = &report.swept {
        let (chunks, packs) = (count(swept.chunks, "chunk"), count(swept.packs, "pack"));
        writeln!(text, "forgot {chunks} that no episode needs; deleted {packs} ({})", bytes(swept.bytes))
            .expect("writing to a String cannot fail");
    }
    text
}
