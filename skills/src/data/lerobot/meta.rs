//! `meta/tasks.parquet` and `meta/episodes/**`: which tasks there are, and where each episode's rows lie.

use std::fs;
use std::path::{Path, PathBuf};

use zunft_protocol::embodiment::Feature;
use zunft_protocol::ids::TaskName;

use super::LEROBOT_EPISODE_VALUES_MAX;
use super::columns::Table;
use super::error::LeRobotError;
use super::info::Info;
use super::task_names::task_name;

/// Bytes of a row of these tables: a few integers, a name.
const ROW_BYTES: usize = 256;

/// Names of the column with a task's text: it is the index of a pandas frame, which LeRobot names in some versions and
/// leaves unnamed in others.
const TASK_TEXT_COLUMNS: [&str; 2] = ["task", "__index_level_0__"];

/// Where one episode lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EpisodeMeta {
    pub(super) index: u64,
    pub(super) steps: u64,
    pub(super) chunk_index: u64,
    pub(super) file_index: u64,
    /// Number of its first row, counted over the whole dataset.
    pub(super) first_row: u64,
}

/// A task's name and the text it was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeRobotTask {
    /// The name here.
    pub name: TaskName,
    /// The text in the dataset.
    pub text: String,
}

/// The tasks, by their `task_index`.
pub(super) fn read_tasks(root: &Path) -> Result<Vec<LeRobotTask>, LeRobotError> {
    let mut table = Table::open(root.join("meta/tasks.parquet"), &[], ROW_BYTES)?;
    let mut tasks: Vec<LeRobotTask> = Vec::new();
    while let Some(batch) = table.next_batch()? {
        let texts = batch.texts(batch.first_of(&TASK_TEXT_COLUMNS)?)?;
        for (task_index, text) in batch.integers("task_index")?.into_iter().zip(texts) {
            let path = || table.path.clone();
            if task_index != tasks.len() as i64 {
                let (row, expected) = (tasks.len() as u64, tasks.len() as i64);
                return Err(LeRobotError::RowOrder {
                    path: path(),
                    row,
                    column: "task_index",
                    found: task_index,
                    expected,
                });
            }
            let name = task_name(&text).map_err(|source| LeRobotError::TaskName {
                path: path(),
                text: text.clone(),
                source,
            })?;
            if let Some(first) = tasks.iter().find(|task| task.name == name) {
                return Err(LeRobotError::TaskCollision {
                    path: path(),
                    first: first.text.clone(),
                    second: text,
                    name,
                });
            }
            tasks.push(LeRobotTask { name, text });
        }
    }
    Ok(tasks)
}

/// The episodes in order, checked against `info.json`.
pub(super) fn read_episodes(root: &Path, info: &Info) -> Result<Vec<EpisodeMeta>, LeRobotError> {
    let dir = root.join("meta/episodes");
    let mut episodes = Vec::new();
    let mut next_row = 0;
    for path in parquet_files(&dir)? {
        read_episode_file(path, info, &mut episodes, &mut next_row)?;
    }
    let count = |what: &str, found, expected| {
        let (path, what) = (dir.clone(), what.to_owned());
        Err(LeRobotError::Count { path, what, found, expected_by: "meta/info.json", expected })
    };
    if episodes.len() as u64 != info.episodes {
        return count("episodes", episodes.len() as u64, info.episodes);
    }
    if next_row != info.frames {
        return count("frames", next_row, info.frames);
    }
    Ok(episodes)
}

fn read_episode_file(
    path: PathBuf,
    info: &Info,
    episodes: &mut Vec<EpisodeMeta>,
    next_row: &mut u64,
) -> Result<(), LeRobotError> {
    const COLUMNS: [&str; 6] =
        ["episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"];
    let step_values: usize = info.embodiment.step_features().map(Feature::values).sum();
    let mut table = Table::open(path, &COLUMNS, ROW_BYTES)?;
    let mut row_in_file = 0;
    while let Some(batch) = table.next_batch()? {
        let [indices, lengths, chunks, files, begins, ends] = {
            let mut columns = [const { Vec::new() }; 6];
            for (column, name) in columns.iter_mut().zip(COLUMNS) {
                *column = batch.integers(name)?;
            }
            columns
        };
        for row in 0..batch.rows() {
            let path = || table.path.clone();
            let index = episodes.len() as u64;
            let order = |column, found, expected| LeRobotError::RowOrder {
                path: path(),
                row: row_in_file,
                column,
                found,
                expected,
            };
            if indices[row] != index as i64 {
                return Err(order("episode_index", indices[row], index as i64));
            }
            if lengths[row] == 0 {
                return Err(LeRobotError::EmptyEpisode { path: path(), episode: index });
            }
            let steps = natural(lengths[row]).ok_or_else(|| order("length", lengths[row], 1))?;
            if steps.saturating_mul(step_values as u64) > LEROBOT_EPISODE_VALUES_MAX {
                return Err(LeRobotError::EpisodeTooLarge { path: path(), episode: index, steps, step_values });
            }
            if begins[row] != *next_row as i64 {
                return Err(order("dataset_from_index", begins[row], *next_row as i64));
            }
            let end = *next_row + steps;
            if ends[row] != end as i64 {
                return Err(order("dataset_to_index", ends[row], end as i64));
            }
            let chunk_index = natural(chunks[row]).ok_or_else(|| order("data/chunk_index", chunks[row], 0))?;
            let file_index = natural(files[row]).ok_or_else(|| order("data/file_index", files[row], 0))?;
            episodes.push(EpisodeMeta { index, steps, chunk_index, file_index, first_row: *next_row });
            *next_row = end;
            row_in_file += 1;
        }
    }
    Ok(())
}

fn natural(value: i64) -> Option<u64> {
    u64::try_from(value).ok()
}

/// The parquet files below `dir` in the order of their names, which is that of their numbers.
fn parquet_files(dir: &Path) -> Result<Vec<PathBuf>, LeRobotError> {
    let mut files = Vec::new();
    for chunk in entries(dir)? {
        if chunk.is_dir() {
            files.extend(entries(&chunk)?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "parquet")));
        }
    }
    if files.is_empty() {
        return Err(LeRobotError::Missing { path: dir.join("chunk-000/file-000.parquet") });
    }
    Ok(files)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, LeRobotError> {
    let read = |source| LeRobotError::read(dir, source);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(read)? {
        paths.push(entry.map_err(read)?.path());
    }
    // Zero-padded to three digits: shorter names first keeps chunk-999 before chunk-1000.
    paths.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    Ok(paths)
}
