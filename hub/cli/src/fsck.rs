//! `zunft fsck`: checks a stopped hub's experience, and sets right what can be.

use std::fmt::Write as _;

use clap::Args;
use zunft_hub::fsck::{self, Report};

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
    #[command(flatten)]
    json: JsonArgs,
}

pub(crate) fn run(args: &FsckArgs) -> Result<(), Failure> {
    let config = args.config.load()?;
    let report = runtime()?.block_on(fsck::run(&config, args.repair)).or_input()?;
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
    text
}
