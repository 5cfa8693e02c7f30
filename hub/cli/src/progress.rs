//! Progress on standard error: a bar on a terminal, nothing elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a spinner turns.
const TICK_INTERVAL: Duration = Duration::from_millis(120);

/// A bar that counts to `length`, labelled.
pub(crate) fn bar(length: u64, label: &str) -> ProgressBar {
    let style = "  {msg:<46} {bar:32.cyan/dim} {pos:>6}/{len} {eta:>4}";
    styled(ProgressBar::with_draw_target(Some(length), target()), style, label)
}

/// A bar for work of unknown length.
pub(crate) fn spinner(label: &str) -> ProgressBar {
    let bar = styled(ProgressBar::with_draw_target(None, target()), "  {spinner:.cyan} {msg} {elapsed:.dim}", label);
    bar.enable_steady_tick(TICK_INTERVAL);
    bar
}

fn styled(bar: ProgressBar, template: &str, label: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("templates are constants");
    bar.set_style(style.progress_chars("━━╌"));
    bar.set_message(label.to_owned());
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}
