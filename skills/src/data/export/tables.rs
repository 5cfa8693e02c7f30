//! The files of a LeRobotDataset v3: parquet tables with the metadata that LeRobot's readers look for, and JSON.
//!
//! It knows arrow and parquet and nothing of manifests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::{Map, Value, json};
use zunft_protocol::embodiment::Embodiment;

use super::stats::{QUANTILES, Statistics};
use super::{DATA_FILE_BYTES, ExportError, FILES_PER_CHUNK};

/// Values of one column, step after step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    Bool(Vec<bool>),
}

impl Values {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::Bool(values) => values.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> f64 {
        match self {
            Self::F32(values) => f64::from(values[index]),
            Self::F64(values) => values[index],
            Self::I64(values) => values[index] as f64,
            Self::Bool(values) => f64::from(u8::from(values[index])),
        }
    }

    fn extend(&mut self, more: &Self) {
        match (self, more) {
            (Self::F32(values), Self::F32(more)) => values.extend_from_slice(more),
            (Self::F64(values), Self::F64(more)) => values.extend_from_slice(more),
            (Self::I64(values), Self::I64(more)) => values.extend_from_slice(more),
            (Self::Bool(values), Self::Bool(more)) => values.extend_from_slice(more),
            _ => unreachable!("a column has one type over all episodes: they share an embodiment"),
        }
    }

    fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "float32",
            Self::F64(_) => "float64",
            Self::I64(_) => "int64",
            Self::Bool(_) => "bool",
        }
    }

    fn array(&self) -> ArrayRef {
        match self {
            Self::F32(values) => Arc::new(Float32Array::from_iter_values(values.iter().copied())),
            Self::F64(values) => Arc::new(Float64Array::from_iter_values(values.iter().copied())),
            Self::I64(values) => Arc::new(Int64Array::from_iter_values(values.iter().copied())),
            Self::Bool(values) => Arc::new(BooleanArray::from(values.clone())),
        }
    }
}

/// One column of an episode's rows.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// Values a step.
    pub(super) width: usize,
    /// A list even where it has one value.
    pub(super) vector: bool,
    pub(super) values: Values,
}

impl Column {
    /// LeRobot keeps a vector of one value as a plain column.
    fn is_list(&self) -> bool {
        self.vector && self.width > 1
    }

    fn array(&self) -> ArrayRef {
        let values = self.values.array();
        if !self.is_list() {
            return values;
        }
        let field = Arc::new(Field::new("element", values.data_type().clone(), true));
        Arc::new(FixedSizeListArray::new(field, self.width as i32, values, None))
    }

    /// How `datasets` types the column.
    fn huggingface(&self) -> Value {
        let value = json!({ "dtype": self.values.dtype(), "_type": "Value" });
        if self.is_list() { json!({ "feature": value, "length": self.width, "_type": "List" }) } else { value }
    }
}

/// An episode's rows.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) columns: Vec<Column>,
}

impl Rows {
    fn batch(&self) -> Result<RecordBatch, ParquetError> {
        let arrays: Vec<(&str, ArrayRef)> =
            self.columns.iter().map(|column| (column.name.as_str(), column.array())).collect();
        let batch =
            RecordBatch::try_from_iter_with_nullable(arrays.into_iter().map(|(name, array)| (name, array, true)))?;
        let features: Map<String, Value> =
            self.columns.iter().map(|column| (column.name.clone(), column.huggingface())).collect();
        let metadata = json!({ "info": { "features": features } }).to_string();
        let schema = Schema::clone(&batch.schema()).with_metadata([("huggingface".to_owned(), metadata)]);
        Ok(batch.with_schema(Arc::new(schema))?)
    }
}

/// What `meta/episodes` says of an episode besides its statistics.
#[derive(Debug, Clone, Copy)]
pub(super) struct EpisodeRow<'a> {
    pub(super) index: u64,
    pub(super) task: &'a str,
    /// Its first row, counted over the dataset.
    pub(super) begin: u64,
    pub(super) steps: u64,
}

/// What is kept of an episode until `meta/episodes` is written.
#[derive(Debug)]
struct EpisodeMeta {
    task: String,
    begin: u64,
    steps: u64,
    file: u64,
    statistics: Vec<Statistics>,
}

/// A parquet file that is open.
struct OpenTable {
    path: PathBuf,
    writer: ArrowWriter<File>,
}

impl OpenTable {
    fn create(path: PathBuf, schema: SchemaRef) -> Result<Self, ExportError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|source| ExportError::Write { path: folder.to_owned(), source })?;
        }
        let file = File::create(&path).map_err(|source| ExportError::Write { path: path.clone(), source })?;
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let writer = ArrowWriter::try_new(file, schema, Some(properties));
        match writer {
            Ok(writer) => Ok(Self { path, writer }),
            Err(source) => Err(ExportError::Table { path, source }),
        }
    }

    /// Adds rows as a row group of their own.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), ExportError> {
        let written = self.writer.write(batch).and_then(|()| self.writer.flush());
        written.map_err(|source| ExportError::Table { path: self.path.clone(), source })
    }

    fn close(self) -> Result<(), ExportError> {
        let path = self.path;
        self.writer.close().map(drop).map_err(|source| ExportError::Table { path, source })
    }
}

/// Writes a dataset below a folder that nobody sees yet.
pub(super) struct TableWriter<'a> {
    root: PathBuf,
    fps: u32,
    embodiment: &'a Embodiment,
    data: Option<OpenTable>,
    files: u64,
    steps: u64,
    episodes: Vec<EpisodeMeta>,
    /// All values, for statistics over all episodes.
    all: Vec<Column>,
}

impl<'a> TableWriter<'a> {
    pub(super) fn create(root: &Path, fps: u32, embodiment: &'a Embodiment) -> Result<Self, ExportError> {
        let failed = |source| ExportError::Write { path: root.to_owned(), source };
        if root.exists() {
            fs::remove_dir_all(root).map_err(failed)?;
        }
        fs::create_dir_all(root.join("meta")).map_err(failed)?;
        Ok(Self {
            root: root.to_owned(),
            fps,
            embodiment,
            data: None,
            files: 0,
            steps: 0,
            episodes: Vec::new(),
            all: Vec::new(),
        })
    }

    /// Adds an episode, in a row group of its own as LeRobot's recorder does.
    pub(super) fn append(&mut self, row: &EpisodeRow<'_>, rows: Rows) -> Result<(), ExportError> {
        debug_assert_eq!(row.index, self.episodes.len() as u64);
        let path = self.data_path(self.files.saturating_sub(1));
        let batch = rows.batch().map_err(|source| ExportError::Table { path, source })?;
        if self.data.as_ref().is_some_and(|data| data.writer.bytes_written() >= DATA_FILE_BYTES)
            && let Some(full) = self.data.take()
        {
            full.close()?;
        }
        let mut data = match self.data.take() {
            Some(data) => data,
            None => {
                self.files += 1;
                OpenTable::create(self.data_path(self.files - 1), batch.schema())?
            }
        };
        data.write(&batch)?;
        self.data = Some(data);
        self.steps += row.steps;
        self.episodes.push(EpisodeMeta {
            task: row.task.to_owned(),
            begin: row.begin,
            steps: row.steps,
            file: self.files - 1,
            statistics: rows.columns.iter().map(|column| Statistics::of(&column.values, column.width)).collect(),
        });
        if self.all.is_empty() {
            self.all = rows.columns;
        } else {
            for (all, column) in self.all.iter_mut().zip(&rows.columns) {
                all.values.extend(&column.values);
            }
        }
        Ok(())
    }

    /// Writes everything that describes the episodes; `info.json` comes last.
    pub(super) fn finish(mut self, tasks: &[&str]) -> Result<(), ExportError> {
        if let Some(data) = self.data.take() {
            data.close()?;
        }
        self.write_tasks(tasks)?;
        self.write_episodes()?;
        let statistics: BTreeMap<&str, Value> = self
            .all
            .iter()
            .map(|column| (column.name.as_str(), Statistics::of(&column.values, column.width).json(&column.values)))
            .collect();
        self.write_json("meta/stats.json", &json!(statistics))?;
        self.write_json("meta/info.json", &self.info(tasks.len()))
    }

    fn data_path(&self, file: u64) -> PathBuf {
        let (chunk, file) = (file / FILES_PER_CHUNK, file % FILES_PER_CHUNK);
        self.root.join(format!("data/chunk-{chunk:03}/file-{file:03}.parquet"))
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<(), ExportError> {
        let path = self.root.join(name);
        let text = serde_json::to_string_pretty(value).expect("keys are strings and numbers finite or null");
        fs::write(&path, text).map_err(|source| ExportError::Write { path, source })
    }

    /// A pandas frame whose index is the task's text and whose row number is its index.
    fn write_tasks(&self, tasks: &[&str]) -> Result<(), ExportError> {
        let path = self.root.join("meta/tasks.parquet");
        let table = |source| ExportError::Table { path: path.clone(), source };
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..tasks.len() as i64));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(tasks));
        let batch = RecordBatch::try_from_iter([("task_index", numbers), ("task", texts)])
            .map_err(|error| table(error.into()))?;
        let column = |name: &str, pandas: &str, numpy: &str| json!({ "name": name, "field_name": name, "pandas_type": pandas, "numpy_type": numpy, "metadata": null });
        let pandas = json!({
            "index_columns": ["task"],
            "column_indexes": [{
                "name": null, "field_name": null, "pandas_type": "unicode", "numpy_type": "object",
                "metadata": { "encoding": "UTF-8" },
            }],
            "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
            "creator": { "library": "zunft", "version": env!("CARGO_PKG_VERSION") },
            "pandas_version": "2.2.0",
        });
        let schema = Schema::clone(&batch.schema()).with_metadata([("pandas".to_owned(), pandas.to_string())]);
        let batch = batch.with_schema(Arc::new(schema)).map_err(|error| table(error.into()))?;
        let mut file = OpenTable::create(path, batch.schema())?;
        file.write(&batch)?;
        file.close()
    }

    fn write_episodes(&self) -> Result<(), ExportError> {
        let path = self.root.join("meta/episodes/chunk-000/file-000.parquet");
        let episodes = &self.episodes;
        let integers = |of: &dyn Fn(usize, &EpisodeMeta) -> u64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(episodes.iter().enumerate().map(|(i, e)| of(i, e) as i64)))
        };
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("episode_index".into(), integers(&|index, _| index as u64)),
            (
                "tasks".into(),
                lists(
                    episodes.iter().map(|_| 1),
                    Arc::new(StringArray::from_iter_values(episodes.iter().map(|e| &e.task))),
                ),
            ),
            ("length".into(), integers(&|_, e| e.steps)),
            ("data/chunk_index".into(), integers(&|_, e| e.file / FILES_PER_CHUNK)),
            ("data/file_index".into(), integers(&|_, e| e.file % FILES_PER_CHUNK)),
            ("dataset_from_index".into(), integers(&|_, e| e.begin)),
            ("dataset_to_index".into(), integers(&|_, e| e.begin + e.steps)),
        ];
        for (i, column) in self.all.iter().enumerate() {
            let mut add = |name: &str, bounds: bool, of: &dyn Fn(&Statistics) -> &[f64]| {
                let flat = || episodes.iter().flat_map(|e| of(&e.statistics[i]).iter().copied());
                let values: ArrayRef = match (&column.values, bounds) {
                    (Values::I64(_), true) => Arc::new(Int64Array::from_iter_values(flat().map(|v| v as i64))),
                    (Values::Bool(_), true) => Arc::new(BooleanArray::from_iter(flat().map(|v| Some(v != 0.0)))),
                    _ => Arc::new(Float64Array::from_iter_values(flat())),
                };
                let lengths = episodes.iter().map(|_| column.width);
                columns.push((format!("stats/{}/{name}", column.name), lists(lengths, values)));
            };
            add("min", true, &|s| &s.min);
            add("max", true, &|s| &s.max);
            add("mean", false, &|s| &s.mean);
            add("std", false, &|s| &s.std);
            for (quantile, (name, _)) in QUANTILES.iter().enumerate() {
                add(name, false, &|s| &s.quantiles[quantile]);
            }
            let counts = Int64Array::from_iter_values(episodes.iter().map(|e| e.statistics[i].count as i64));
            columns.push((format!("stats/{}/count", column.name), lists(episodes.iter().map(|_| 1), Arc::new(counts))));
        }
        columns.push(("meta/episodes/chunk_index".into(), integers(&|_, _| 0)));
        columns.push(("meta/episodes/file_index".into(), integers(&|_, _| 0)));
        let batch = RecordBatch::try_from_iter(columns)
            .map_err(|error| ExportError::Table { path: path.clone(), source: error.into() })?;
        let mut file = OpenTable::create(path, batch.schema())?;
        file.write(&batch)?;
        file.close()
    }

    fn info(&self, tasks: usize) -> Value {
        let features: Map<String, Value> = self
            .all
            .iter()
            .map(|column| {
                let named = self.embodiment.features.iter().find(|feature| feature.name == column.name);
                let names = named.map(|feature| &feature.names).filter(|names| !names.is_empty());
                let value = json!({ "dtype": column.values.dtype(), "shape": [column.width], "names": names });
                (column.name.clone(), value)
            })
            .collect();
        json!({
            "codebase_version": "v3.0",
            "robot_type": self.embodiment.name,
            "total_episodes": self.episodes.len(),
            "total_frames": self.steps,
            "total_tasks": tasks,
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_BYTES / (1024 * 1024),
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": { "train": format!("0:{}", self.episodes.len()) },
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": null,
            "features": features,
        })
    }
}

fn lists(lengths: impl IntoIterator<Item = usize>, values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("element", values.data_type().clone(), true));
    Arc::new(ListArray::new(field, OffsetBuffer::from_lengths(lengths), values, None))
}
