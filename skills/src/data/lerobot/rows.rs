//! The rows of one episode after the other, out of files that hold many.
//!
//! Every row is checked to be the one that must follow: its episode, its frame and its number in the dataset.

use std::path::{Path, PathBuf};

use zunft_protocol::embodiment::Feature;

use super::columns::{Batch, Table};
use super::error::LeRobotError;
use super::info::Info;
use super::meta::EpisodeMeta;

/// Reads data files front to back.
pub(super) struct Rows<'a> {
    root: &'a Path,
    info: &'a Info,
    file: Option<DataFile>,
}

/// The file that is being read.
struct DataFile {
    place: (u64, u64),
    table: Table,
    pending: Option<Batch>,
    /// Rows handed out.
    consumed: u64,
}

impl<'a> Rows<'a> {
    pub(super) fn new(root: &'a Path, info: &'a Info) -> Self {
        Self { root, info, file: None }
    }

    /// The next rows of the episode, of which `steps` were handed out before; `None` when it is complete.
    pub(super) fn next(&mut self, episode: &EpisodeMeta, steps: u64) -> Result<Option<Batch>, LeRobotError> {
        let missing = episode.steps - steps;
        if missing == 0 {
            return Ok(None);
        }
        let place = (episode.chunk_index, episode.file_index);
        if self.file.as_ref().is_none_or(|file| file.place != place) {
            self.finish()?;
            self.file = Some(self.open(place)?);
        }
        let file = self.file.as_mut().expect("opened above");
        let Some(batch) = file.peek()? else {
            return Err(LeRobotError::Count {
                path: file.table.path.clone(),
                what: format!("rows of episode {}", episode.index),
                found: steps,
                expected_by: "meta/episodes",
                expected: episode.steps,
            });
        };
        let count = (batch.rows() as u64).min(missing) as usize;
        let head = batch.slice(0, count);
        check_rows(&head, episode, steps, file.consumed)?;
        file.pending = (count < batch.rows()).then(|| batch.slice(count, batch.rows() - count));
        file.consumed += count as u64;
        Ok(Some(head))
    }

    /// Refuses rows that belong to no episode at the end of the file being read.
    pub(super) fn finish(&mut self) -> Result<(), LeRobotError> {
        match self.file.take() {
            Some(file) if file.consumed != file.table.rows => Err(LeRobotError::Count {
                path: file.table.path,
                what: "rows".to_owned(),
                found: file.table.rows,
                expected_by: "meta/episodes",
                expected: file.consumed,
            }),
            _ => Ok(()),
        }
    }

    /// Forgets the file being read, so that nothing more is said about it.
    pub(super) fn stop(&mut self) {
        self.file = None;
    }

    fn open(&self, place: (u64, u64)) -> Result<DataFile, LeRobotError> {
        let path: PathBuf = self.root.join(self.info.data_file(place.0, place.1));
        let mut columns = vec!["timestamp", "frame_index", "episode_index", "index", "task_index"];
        columns.extend(&self.info.outcome_columns);
        columns.extend(self.info.embodiment.features.iter().map(|feature| feature.name.as_str()));
        Ok(DataFile {
            place,
            // An image's file takes less than its pixels.
            table: Table::open(path, &columns, self.info.embodiment.features.iter().map(Feature::bytes).sum())?,
            pending: None,
            consumed: 0,
        })
    }
}

impl DataFile {
    /// The rows that come next, not yet handed out.
    fn peek(&mut self) -> Result<Option<Batch>, LeRobotError> {
        while self.pending.as_ref().is_none_or(|batch| batch.rows() == 0) {
            match self.table.next_batch()? {
                Some(batch) => self.pending = Some(batch),
                None => return Ok(None),
            }
        }
        Ok(self.pending.clone())
    }
}

fn check_rows(batch: &Batch, episode: &EpisodeMeta, steps: u64, consumed: u64) -> Result<(), LeRobotError> {
    let checks =
        [("episode_index", episode.index, 0), ("frame_index", steps, 1), ("index", episode.first_row + steps, 1)];
    for (column, first, stride) in checks {
        for (row, found) in (0_u64..).zip(batch.integers(column)?) {
            let expected = (first + stride * row) as i64;
            if found != expected {
                let (path, row) = (batch.path().to_owned(), consumed + row);
                return Err(LeRobotError::RowOrder { path, row, column, found, expected });
            }
        }
    }
    Ok(())
}
