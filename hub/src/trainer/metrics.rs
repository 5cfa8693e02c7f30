//! A run's metrics on disk: one JSON object a line, in the order of the steps.
//!
//! A run that goes on from a checkpoint makes some steps again, with the same numbers: the lines after the
//! checkpoint are dropped first, so that each step appears once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One line of a run's metrics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricLine {
    /// Optimiser steps made.
    pub step: u64,
    /// Loss of the training batches since the line before.
    pub loss: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// L2 norm of the last gradient, before it was shortened.
    pub gradient_norm: f64,
    /// Steps a second since the line before.
    pub steps_per_sec: f64,
    /// Loss of the validation episodes, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss: Option<f64>,
}

/// Appends lines to a run's metrics.
#[derive(Debug)]
pub(super) struct MetricsFile {
    file: File,
    last_step: Option<u64>,
}

impl MetricsFile {
    /// Opens the file at `path`, creating it where there is none.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut metrics = Self { file, last_step: None };
        let lines = read_lines(path)?;
        metrics.last_step = lines.last().map(|line| line.step);
        metrics.rewrite_if_torn(path, &lines)?;
        Ok(metrics)
    }

    /// Appends one line; where the run has gone back to an earlier step, replaces what came after it.
    pub(super) fn append(&mut self, path: &Path, line: &MetricLine) -> io::Result<()> {
        if self.last_step.is_some_and(|last| last >= line.step) {
            let mut lines = read_lines(path)?;
            lines.retain(|earlier| earlier.step < line.step);
            self.rewrite(path, &lines)?;
        }
        self.file.write_all(encode(line).as_bytes())?;
        self.last_step = Some(line.step);
        Ok(())
    }

    fn rewrite_if_torn(&mut self, path: &Path, lines: &[MetricLine]) -> io::Result<()> {
        let whole: usize = lines.iter().map(|line| encode(line).len()).sum();
        if fs::metadata(path)?.len() == whole as u64 { Ok(()) } else { self.rewrite(path, lines) }
    }

    fn rewrite(&mut self, path: &Path, lines: &[MetricLine]) -> io::Result<()> {
        let staging = path.with_extension("part");
        let text: String = lines.iter().map(encode).collect();
        fs::write(&staging, text)?;
        fs::rename(&staging, path)?;
        self.file = OpenOptions::new().append(true).open(path)?;
        Ok(())
    }
}

fn encode(line: &MetricLine) -> String {
    let mut text = serde_json::to_string(line).expect("a line of numbers has a JSON form");
    text.push('\n');
    text
}

/// The whole lines of the file; a line torn by a crash ends them.
fn read_lines(path: &Path) -> io::Result<Vec<MetricLine>> {
    let mut lines = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        match serde_json::from_str(&line?) {
            Ok(line) => lines.push(line),
            Err(_) => break,
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64) -> MetricLine {
        MetricLine { step, loss: 0.5, lr: 1e-3, gradient_norm: 1.0, steps_per_sec: 9.0, validation_loss: None }
    }

    #[test]
    fn each_step_appears_once_after_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = MetricsFile::open(&path).unwrap();
        for step in [10, 20, 30] {
            metrics.append(&path, &line(step)).unwrap();
        }
        drop(metrics);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\":40,\"lo").unwrap();
        let mut metrics = MetricsFile::open(&path).unwrap();
        assert_eq!(read_lines(&path).unwrap().len(), 3);
        // The run goes on from a checkpoint at step 10.
        for step in [20, 30, 40] {
            metrics.append(&path, &line(step)).unwrap();
        }
        let steps: Vec<u64> = read_lines(&path).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [10, 20, 30, 40]);
    }
}
