//! Data for training and reports: a snapshot directory, or a LeRobot dataset turned into a temporary one.

use std::path::Path;

use tempfile::TempDir;
use zunft_skills::data::{SnapshotDir, SnapshotDirWriter};

use super::{ReadingArgs, import};
use crate::exit::{ExitCode, Failure, OrFail as _};

/// An open snapshot.
pub(crate) struct TrainingData {
    pub(crate) snapshot: SnapshotDir,
    /// A LeRobot dataset, as what it was found.
    pub(crate) lerobot: bool,
    /// Removed when this is dropped.
    _imported: Option<TempDir>,
}

/// Opens `path`, whichever of the two it is.
pub(crate) fn open(path: &Path, reading: &ReadingArgs) -> Result<TrainingData, Failure> {
    refuse_absent(path)?;
    if !path.join("meta").join("info.json").is_file() {
        return Ok(TrainingData { snapshot: SnapshotDir::open(path).or_input()?, lerobot: false, _imported: None });
    }
    let dataset = import::open_dataset(path, reading)?;
    let folder = tempfile::Builder::new().prefix("zunft-import-").tempdir().or_internal()?;
    let out = folder.path().join("snapshot");
    import::write_local(&dataset, path, SnapshotDirWriter::create(&out).or_internal()?)?;
    Ok(TrainingData { snapshot: SnapshotDir::open(&out).or_internal()?, lerobot: true, _imported: Some(folder) })
}

/// Data that is not there at all has an exit code of its own.
pub(super) fn refuse_absent(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let error = format!(
        "there is nothing at {}; give a snapshot (from `zunft data import`) or a LeRobot v3 dataset",
        path.display()
    );
    Err(Failure::new(ExitCode::DataAbsent, error))
}
