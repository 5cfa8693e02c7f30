//! Typed columns out of parquet files, whichever of arrow's list types a writer chose.
//!
//! It knows arrow and parquet and nothing of episodes; other files know episodes and nothing of arrow.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use super::error::LeRobotError;

/// Rows decoded at a time where they are small: enough to hide the decoder's overhead.
const BATCH_ROWS_MAX: usize = 1024;

/// Bytes decoded at a time where rows are large.
const BATCH_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One parquet file, read batch by batch.
pub(super) struct Table {
    pub(super) path: PathBuf,
    pub(super) rows: u64,
    reader: ParquetRecordBatchReader,
}

impl Table {
    /// Opens `path` for the named columns, each of which must be there; for all when none is named.
    ///
    /// `row_bytes` is about what a row takes once decoded.
    pub(super) fn open(path: PathBuf, columns: &[&str], row_bytes: usize) -> Result<Self, LeRobotError> {
        let file = File::open(&path).map_err(|source| LeRobotError::read(&path, source))?;
        let damaged = |source| LeRobotError::Parquet { path: path.clone(), source };
        let file_bytes = file.metadata().map_err(|source| LeRobotError::read(&path, source))?.len();
        let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(damaged)?;
        check_extents(builder.metadata(), file_bytes).map_err(damaged)?;
        let schema = Arc::clone(builder.schema());
        for &column in columns {
            if schema.column_with_name(column).is_none() {
                return Err(LeRobotError::NoColumn { path, column: column.to_owned() });
            }
        }
        let wanted = |name: &str| columns.is_empty() || columns.contains(&name);
        let roots = schema.fields().iter().enumerate().filter(|(_, field)| wanted(field.name()));
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots.map(|(root, _)| root));
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        let batch_rows = (BATCH_BYTES_MAX / row_bytes.max(1)).clamp(1, BATCH_ROWS_MAX);
        let reader = guarded(|| builder.with_projection(mask).with_batch_size(batch_rows).build()).map_err(damaged)?;
        Ok(Self { path, rows, reader })
    }

    /// The next rows, or `None` at the end.
    pub(super) fn next_batch(&mut self) -> Result<Option<Batch>, LeRobotError> {
        let next = guarded(|| self.reader.next().transpose().map_err(|error| ParquetError::External(error.into())));
        match next {
            Ok(batch) => Ok(batch.map(|batch| Batch { path: self.path.clone(), batch })),
            Err(source) => Err(LeRobotError::Parquet { path: self.path.clone(), source }),
        }
    }
}

/// Runs a step of the parquet decoder, whose own assertions fail on some damaged files: that is the file's fault.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let nonsense = || ParquetError::General("its contents contradict each other".to_owned());
    // The decoder is dropped after an error, so nobody sees a half-made state.
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|_| Err(nonsense()))
}

/// Refuses column chunks outside the file: the decoder takes their place on trust.
fn check_extents(metadata: &ParquetMetaData, file_bytes: u64) -> Result<(), ParquetError> {
    let inside = |column: &ColumnChunkMetaData| {
        let begin = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
        let end = begin.checked_add(column.compressed_size());
        let in_file = |place: i64| u64::try_from(place).is_ok_and(|place| place <= file_bytes);
        in_file(begin) && column.compressed_size() >= 0 && end.is_some_and(in_file)
    };
    if metadata.row_groups().iter().flat_map(|group| group.columns()).all(inside) {
        return Ok(());
    }
    Err(ParquetError::General("a column lies outside the file".to_owned()))
}

/// Consecutive rows of a [`Table`].
#[derive(Debug, Clone)]
pub(super) struct Batch {
    path: PathBuf,
    batch: RecordBatch,
}

impl Batch {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// The first of these columns that is there.
    pub(super) fn first_of<'a>(&self, columns: &[&'a str]) -> Result<&'a str, LeRobotError> {
        let found = columns.iter().find(|column| self.batch.column_by_name(column).is_some());
        found.copied().ok_or_else(|| LeRobotError::NoColumn { path: self.path.clone(), column: columns[0].to_owned() })
    }

    /// A part of the rows.
    pub(super) fn slice(&self, begin: usize, rows: usize) -> Self {
        Self { path: self.path.clone(), batch: self.batch.slice(begin, rows) }
    }

    /// One integer a row.
    pub(super) fn integers(&self, column: &str) -> Result<Vec<i64>, LeRobotError> {
        let array = self.scalar(column, &DataType::Int64)?;
        let values: &Int64Array = array.as_primitive::<Int64Type>();
        Ok(values.values().to_vec())
    }

    /// One truth value a row.
    pub(super) fn booleans(&self, column: &str) -> Result<Vec<bool>, LeRobotError> {
        let array = self.scalar(column, &DataType::Boolean)?;
        let values: &BooleanArray = array.as_boolean();
        Ok((0..values.len()).map(|row| values.value(row)).collect())
    }

    /// One number a row, of either precision.
    pub(super) fn numbers(&self, column: &str) -> Result<Vec<f64>, LeRobotError> {
        let array = leaf(self.column(column)?, &[1]).map_err(|fault| self.fault(column, fault, "one float a row"))?;
        if let Some(values) = array.as_primitive_opt::<Float32Type>() {
            return Ok(values.values().iter().map(|&value| f64::from(value)).collect());
        }
        let values: &Float64Array = array.as_primitive::<Float64Type>();
        Ok(values.values().to_vec())
    }

    /// Appends the values of every row, flattened. float64 is rounded to float32, in which policies compute.
    pub(super) fn floats(&self, column: &str, shape: &[u32], out: &mut Vec<f32>) -> Result<(), LeRobotError> {
        let expected = || format!("floats of shape {shape:?}");
        let array = leaf(self.column(column)?, shape).map_err(|fault| self.fault(column, fault, &expected()))?;
        if let Some(values) = array.as_primitive_opt::<Float32Type>() {
            out.extend_from_slice(values.values());
        } else {
            out.extend(array.as_primitive::<Float64Type>().values().iter().map(|&value| value as f32));
        }
        Ok(())
    }

    /// One text a row.
    pub(super) fn texts(&self, column: &str) -> Result<Vec<String>, LeRobotError> {
        let array = self.column(column)?;
        if array.null_count() > 0 {
            return Err(self.fault(column, Fault::Null, ""));
        }
        if let Some(texts) = array.as_string_opt::<i32>() {
            return Ok(texts.iter().flatten().map(str::to_owned).collect());
        }
        if let Some(texts) = array.as_string_opt::<i64>() {
            return Ok(texts.iter().flatten().map(str::to_owned).collect());
        }
        if let Some(texts) = array.as_string_view_opt() {
            return Ok(texts.iter().flatten().map(str::to_owned).collect());
        }
        Err(self.fault(column, Fault::Type(array.data_type().to_string()), "text"))
    }

    /// One image's file a row, out of LeRobot's pairs of bytes and path.
    pub(super) fn files(&self, column: &str) -> Result<Vec<&[u8]>, LeRobotError> {
        let array = self.column(column)?;
        let found = || Fault::Type(array.data_type().to_string());
        let expected = "image files inside the table, with bytes and path";
        let bytes = array.as_struct_opt().and_then(|fields| fields.column_by_name("bytes"));
        let bytes = bytes.ok_or_else(|| self.fault(column, found(), expected))?;
        if array.null_count() > 0 || bytes.null_count() > 0 {
            return Err(self.fault(column, Fault::Null, ""));
        }
        if let Some(files) = bytes.as_binary_opt::<i32>() {
            return Ok(files.iter().flatten().collect());
        }
        if let Some(files) = bytes.as_binary_opt::<i64>() {
            return Ok(files.iter().flatten().collect());
        }
        Err(self.fault(column, found(), expected))
    }

    fn column(&self, column: &str) -> Result<&ArrayRef, LeRobotError> {
        self.batch
            .column_by_name(column)
            .ok_or_else(|| LeRobotError::NoColumn { path: self.path.clone(), column: column.to_owned() })
    }

    fn scalar(&self, column: &str, expected: &DataType) -> Result<ArrayRef, LeRobotError> {
        let array = self.column(column)?;
        if array.data_type() != expected {
            return Err(self.fault(column, Fault::Type(array.data_type().to_string()), &expected.to_string()));
        }
        if array.null_count() > 0 {
            return Err(self.fault(column, Fault::Null, ""));
        }
        Ok(Arc::clone(array))
    }

    fn fault(&self, column: &str, fault: Fault, expected: &str) -> LeRobotError {
        let (path, column) = (self.path.clone(), column.to_owned());
        match fault {
            Fault::Null => LeRobotError::Null { path, column },
            Fault::Type(found) => LeRobotError::Column { path, column, found, expected: expected.to_owned() },
        }
    }
}

enum Fault {
    Null,
    Type(String),
}

/// Peels lists off `array`, one for each dimension of `shape`, down to an array of floats without nulls.
///
/// LeRobot writes shape `[1]` as a plain column, so dimensions of 1 may be missing at the end.
fn leaf(array: &ArrayRef, shape: &[u32]) -> Result<ArrayRef, Fault> {
    if array.null_count() > 0 {
        return Err(Fault::Null);
    }
    if matches!(array.data_type(), DataType::Float32 | DataType::Float64) && shape.iter().all(|&dim| dim == 1) {
        return Ok(Arc::clone(array));
    }
    let found = || Fault::Type(array.data_type().to_string());
    let items = if let Some(list) = array.as_fixed_size_list_opt() {
        let size = list.value_length().unsigned_abs() as usize;
        Items { lengths_min: size, lengths_max: size, values: list.values().slice(0, list.len() * size) }
    } else if let Some(list) = array.as_list_opt::<i32>() {
        Items::of(list)
    } else if let Some(list) = array.as_list_opt::<i64>() {
        Items::of(list)
    } else {
        return Err(found());
    };
    let Some((&dim, inner)) = shape.split_first() else {
        return Err(found());
    };
    let dim = dim as usize;
    if !array.is_empty() && (items.lengths_min, items.lengths_max) != (dim, dim) {
        let (min, max) = (items.lengths_min, items.lengths_max);
        let lengths = if min == max { min.to_string() } else { format!("{min} to {max}") };
        return Err(Fault::Type(format!("{} with {lengths} items", array.data_type())));
    }
    leaf(&items.values, inner)
}

/// What the lists of one array hold, all in a row.
struct Items {
    lengths_min: usize,
    lengths_max: usize,
    values: ArrayRef,
}

impl Items {
    fn of<O: arrow::array::OffsetSizeTrait>(list: &arrow::array::GenericListArray<O>) -> Self {
        let offsets = list.offsets();
        let lengths = || offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_usize());
        let (begin, end) = (offsets[0].as_usize(), offsets[offsets.len() - 1].as_usize());
        Self {
            lengths_min: lengths().min().unwrap_or(0),
            lengths_max: lengths().max().unwrap_or(0),
            values: list.values().slice(begin, end - begin),
        }
    }
}
