//! What the demo shows while it runs: one line a stage, with a bar where there is something to count.

use std::time::Instant;

use indicatif::ProgressBar;

use crate::exit::Failure;
use crate::progress;

/// The clock of the demo and its voice, on standard error.
pub(super) struct Story {
    begun: Instant,
    last: Instant,
}

#[expect(clippy::disallowed_methods, reason = "the demo is a shell: it says how long things took")]
impl Story {
    pub(super) fn begin(robots: u16, seed: u64) -> Self {
        eprintln!("\nZunft: {robots} robots, 3 tasks, one apprentice (seed {seed})\n");
        let now = Instant::now();
        Self { begun: now, last: now }
    }

    /// Does some work under a spinner, which is gone afterwards.
    pub(super) fn stage<T>(
        &mut self,
        label: &str,
        work: impl FnOnce(&ProgressBar) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let spinner = progress::spinner(label);
        let result = work(&spinner);
        spinner.finish_and_clear();
        result
    }

    /// Does some work under a bar that counts to `length`.
    pub(super) fn counted<T>(
        &mut self,
        label: &str,
        length: u64,
        work: impl FnOnce(&ProgressBar) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let bar = progress::bar(length, label);
        let result = work(&bar);
        bar.finish_and_clear();
        result
    }

    /// Says what was done, and how long it took since this last spoke.
    pub(super) fn tell(&mut self, text: &str) {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.last = now;
        eprintln!("  ✓ {text:<86} {seconds:>5.1} s");
    }

    /// Seconds since the beginning.
    pub(super) fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}
