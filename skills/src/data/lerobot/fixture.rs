//! A tiny LeRobot dataset that tests write, each in the state that it needs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int64Array,
    LargeListArray, ListArray, RecordBatch, StringArray, StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::json;

/// Which of arrow's lists the vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lists {
    Fixed,
    Small,
    Large,
    FixedDouble,
}

/// One row of `data/`.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) state: Vec<f32>,
    pub(crate) action: Vec<f32>,
    pub(crate) reward: f32,
    pub(crate) success: bool,
    pub(crate) done: bool,
    pub(crate) timestamp: f32,
    pub(crate) frame_index: i64,
    pub(crate) episode_index: i64,
    pub(crate) index: i64,
    pub(crate) task_index: i64,
}

/// One row of `meta/episodes`.
#[derive(Debug, Clone)]
pub(crate) struct EpisodeRow {
    pub(crate) episode_index: i64,
    pub(crate) length: i64,
    pub(crate) file_index: i64,
    pub(crate) begin: i64,
    pub(crate) end: i64,
}

/// Everything that is written.
#[derive(Debug, Clone)]
pub(crate) struct TinyDataset {
    pub(crate) info: serde_json::Value,
    pub(crate) tasks: Vec<(i64, String)>,
    pub(crate) episodes: Vec<EpisodeRow>,
    /// Rows of each data file.
    pub(crate) files: Vec<Vec<Row>>,
    pub(crate) lists: Lists,
    /// For `observation.images.top`: the image's file of each row, over all data files. None when empty.
    pub(crate) images: Vec<Option<Vec<u8>>>,
}

impl TinyDataset {
    /// Three episodes of 3, 2 and 4 steps, two tasks, two data files; the second episode fails.
    pub(crate) fn new() -> Self {
        let mut dataset = Self {
            info: json!({
                "codebase_version": "v3.0", "robot_type": "tiny", "fps": 10, "total_episodes": 3, "total_frames": 9,
                "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "video_path": null,
                "features": {
                    "observation.state": {"dtype": "float32", "shape": [3], "names": ["x", "y", "z"]},
                    "action": {"dtype": "float32", "shape": [2], "names": null},
                    "next.reward": {"dtype": "float32", "shape": [1], "names": null},
                    "next.success": {"dtype": "bool", "shape": [1], "names": null},
                    "next.done": {"dtype": "bool", "shape": [1], "names": null},
                    "timestamp": {"dtype": "float32", "shape": [1], "names": null},
                    "frame_index": {"dtype": "int64", "shape": [1], "names": null},
                    "episode_index": {"dtype": "int64", "shape": [1], "names": null},
                    "index": {"dtype": "int64", "shape": [1], "names": null},
                    "task_index": {"dtype": "int64", "shape": [1], "names": null}
                }
            }),
            tasks: vec![(0, "Pick up the cube.".to_owned()), (1, "reach-v3".to_owned())],
            episodes: Vec::new(),
            files: vec![Vec::new(), Vec::new()],
            lists: Lists::Fixed,
            images: Vec::new(),
        };
        for (episode, (length, file, task)) in [(3, 0, 0), (2, 0, 1), (4, 1, 0)].into_iter().enumerate() {
            dataset.append(episode as i64, length, file, task);
        }
        dataset
    }

    fn append(&mut self, episode_index: i64, length: i64, file: usize, task_index: i64) {
        let begin = self.episodes.last().map_or(0, |episode| episode.end);
        let end = begin + length;
        self.episodes.push(EpisodeRow { episode_index, length, file_index: file as i64, begin, end });
        for frame_index in 0..length {
            let index = begin + frame_index;
            let value = index as f32;
            let last = frame_index + 1 == length;
            self.files[file].push(Row {
                state: vec![value, value + 0.25, -value],
                action: vec![value / 8.0, 1.0],
                reward: value * 2.0,
                success: last && episode_index != 1,
                done: last,
                timestamp: frame_index as f32 / 10.0,
                frame_index,
                episode_index,
                index,
                task_index,
            });
        }
    }

    /// Writes the dataset below `root`.
    pub(crate) fn write(&self, root: &Path) -> PathBuf {
        let root = root.join("dataset");
        for dir in ["meta/episodes/chunk-000", "data/chunk-000"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::write(root.join("meta/info.json"), self.info.to_string()).unwrap();
        let texts = self.tasks.iter().map(|(_, text)| text.as_str());
        let tasks = [
            ("task_index", integers(self.tasks.iter().map(|(index, _)| *index))),
            ("task", Arc::new(StringArray::from_iter_values(texts)) as ArrayRef),
        ];
        write_parquet(&root.join("meta/tasks.parquet"), tasks.to_vec());
        let episodes = &self.episodes;
        let columns = [
            ("episode_index", integers(episodes.iter().map(|episode| episode.episode_index))),
            ("length", integers(episodes.iter().map(|episode| episode.length))),
            ("data/chunk_index", integers(episodes.iter().map(|_| 0))),
            ("data/file_index", integers(episodes.iter().map(|episode| episode.file_index))),
            ("dataset_from_index", integers(episodes.iter().map(|episode| episode.begin))),
            ("dataset_to_index", integers(episodes.iter().map(|episode| episode.end))),
        ];
        write_parquet(&root.join("meta/episodes/chunk-000/file-000.parquet"), columns.to_vec());
        for (file, rows) in self.files.iter().enumerate() {
            write_parquet(&root.join(format!("data/chunk-000/file-{file:03}.parquet")), self.columns(rows));
        }
        root
    }

    fn columns(&self, rows: &[Row]) -> Vec<(&'static str, ArrayRef)> {
        let mut columns = vec![
            ("observation.state", self.vectors(rows.iter().map(|row| &row.state))),
            ("action", self.vectors(rows.iter().map(|row| &row.action))),
            ("next.reward", Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.reward)))),
            ("next.success", Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.success))))),
            ("next.done", Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.done))))),
            ("timestamp", Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.timestamp)))),
            ("frame_index", integers(rows.iter().map(|row| row.frame_index))),
            ("episode_index", integers(rows.iter().map(|row| row.episode_index))),
            ("index", integers(rows.iter().map(|row| row.index))),
            ("task_index", integers(rows.iter().map(|row| row.task_index))),
        ];
        if !self.images.is_empty() {
            let files = rows.iter().map(|row| self.images[row.index as usize].as_deref());
            columns.push(("observation.images.top", image_files(files)));
        }
        columns
    }

    fn vectors<'a>(&self, vectors: impl Iterator<Item = &'a Vec<f32>> + Clone) -> ArrayRef {
        let values = vectors.clone().flatten().copied();
        let floats: ArrayRef = if self.lists == Lists::FixedDouble {
            Arc::new(Float64Array::from_iter_values(values.map(f64::from)))
        } else {
            Arc::new(Float32Array::from_iter_values(values))
        };
        let field = Arc::new(Field::new("element", floats.data_type().clone(), true));
        let lengths = vectors.clone().map(Vec::len);
        match self.lists {
            Lists::Fixed | Lists::FixedDouble => {
                let size = vectors.clone().next().map_or(0, Vec::len) as i32;
                Arc::new(FixedSizeListArray::new(field, size, floats, None))
            }
            Lists::Small => Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), floats, None)),
            Lists::Large => Arc::new(LargeListArray::new(field, OffsetBuffer::from_lengths(lengths), floats, None)),
        }
    }
}

/// LeRobot's pairs of an image's bytes and its path.
fn image_files<'a>(files: impl Iterator<Item = Option<&'a [u8]>>) -> ArrayRef {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(files));
    let paths: ArrayRef = Arc::new(StringArray::from(vec![None::<&str>; bytes.len()]));
    let field = |name, array: &ArrayRef| Arc::new(Field::new(name, array.data_type().clone(), true));
    Arc::new(StructArray::from(vec![(field("bytes", &bytes), bytes), (field("path", &paths), paths)]))
}

fn integers(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    debug_assert!(columns.iter().all(|(_, column)| *column.data_type() != DataType::Null));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}
