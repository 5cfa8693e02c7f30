//! This robot's body: configured, or remembered from the first recording.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use zunft_protocol::embodiment::{Embodiment, EmbodimentError};
use zunft_protocol::limits::CHUNK_BYTES_MAX;

use crate::data_dir::replace_file;

/// Largest embodiment file: 256 features with names and limits are far below.
const EMBODIMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Largest step that fits a chunk of its own, with time, reward and the chunk's header.
const STEP_BYTES_MAX: usize = CHUNK_BYTES_MAX - 64;

/// Why a body is not this robot's.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It contradicts itself.
    #[error(transparent)]
    Impossible(#[from] EmbodimentError),
    /// A step that no chunk could hold.
    #[error(
        "one step or sample of embodiment {name:?} takes {bytes} bytes; at most {STEP_BYTES_MAX} can be recorded: make images cameras with an encoding"
    )]
    StepTooLarge {
        /// Which.
        name: String,
        /// Its size.
        bytes: usize,
    },
    /// Another body than this robot's.
    #[error(
        "this robot's embodiment is {known:?} ({known_id}), not {found:?} ({found_id}); if the robot was rebuilt, set `embodiment` in the config or remove {} and restart the agent",
        remembered.display()
    )]
    Another {
        /// Name of the robot's.
        known: String,
        /// Its id.
        known_id: String,
        /// Name of the one offered.
        found: String,
        /// Its id.
        found_id: String,
        /// The file that remembers.
        remembered: PathBuf,
    },
    /// The file.
    #[error("embodiment file {} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The body, once it is known.
#[derive(Debug)]
pub struct Body {
    remembered: PathBuf,
    known: Mutex<Option<Embodiment>>,
}

impl Body {
    /// Reads the configured file, or else what was remembered at `remembered`.
    pub fn open(configured: Option<&Path>, remembered: PathBuf) -> Result<Self, BodyError> {
        let known = match configured {
            Some(path) => Some(read(path)?),
            None if remembered.exists() => Some(read(&remembered)?),
            None => None,
        };
        Ok(Self { remembered, known: Mutex::new(known) })
    }

    /// The body, where it is known.
    pub fn known(&self) -> Option<Embodiment> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Admits a recording with this body, remembering it if it is the first. Returns whether it was.
    pub fn admit(&self, embodiment: &Embodiment) -> Result<bool, BodyError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            return if known == embodiment { Ok(false) } else { Err(self.another(known, embodiment)) };
        }
        check(embodiment)?;
        let json = serde_json::to_vec_pretty(embodiment).expect("a checked embodiment has finite numbers only");
        replace_file(&self.remembered, &json)
            .map_err(|source| BodyError::File { path: self.remembered.clone(), source })?;
        *known = Some(embodiment.clone());
        Ok(true)
    }

    fn another(&self, known: &Embodiment, found: &Embodiment) -> BodyError {
        // Its id exists only if it is possible at all.
        if let Err(error) = check(found) {
            return error;
        }
        BodyError::Another {
            known: known.name.clone(),
            known_id: known.id().to_string(),
            found: found.name.clone(),
            found_id: found.id().to_string(),
            remembered: self.remembered.clone(),
        }
    }
}

fn check(embodiment: &Embodiment) -> Result<(), BodyError> {
    embodiment.check()?;
    let samples = embodiment.streams().filter(|feature| feature.encoding.is_none()).map(|feature| feature.bytes());
    let bytes = samples.chain([embodiment.step_bytes()]).max().unwrap_or(0);
    if bytes > STEP_BYTES_MAX {
        return Err(BodyError::StepTooLarge { name: embodiment.name.clone(), bytes });
    }
    Ok(())
}

fn read(path: &Path) -> Result<Embodiment, BodyError> {
    let failed = |source| BodyError::File { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > EMBODIMENT_BYTES_MAX {
        return Err(failed(io::Error::other("the file is too large to be an embodiment")));
    }
    let bytes = fs::read(path).map_err(failed)?;
    let embodiment: Embodiment = serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?;
    check(&embodiment)?;
    Ok(embodiment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zunft_protocol::embodiment::{ACTION, Feature};

    fn arm(values: u32) -> Embodiment {
        Embodiment { name: "arm".into(), rate_hz: 20.0, features: vec![Feature::vector(ACTION, values)] }
    }

    #[test]
    fn the_first_recording_s_body_is_the_robot_s_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embodiment.json");
        let body = Body::open(None, path.clone()).unwrap();
        assert_eq!(body.known(), None);
        assert!(body.admit(&arm(4)).unwrap());
        assert!(!body.admit(&arm(4)).unwrap());
        let again = Body::open(None, path).unwrap();
        assert_eq!(again.known(), Some(arm(4)));
        let error = again.admit(&arm(5)).unwrap_err().to_string();
        assert!(error.contains("embodiment.json"), "{error}");
        assert!(matches!(again.admit(&arm(0)), Err(BodyError::Impossible(_))));
    }

    #[test]
    fn bodies_that_no_chunk_can_hold_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let body = Body::open(None, folder.path().join("e.json")).unwrap();
        assert!(matches!(body.admit(&arm(300_000)), Err(BodyError::StepTooLarge { .. })));
        let mut scanner = arm(1);
        scanner.features.push(Feature { rate_hz: Some(10.0), ..Feature::vector("observation.scan", 300_000) });
        assert!(matches!(body.admit(&scanner), Err(BodyError::StepTooLarge { .. })));
        fs::write(folder.path().join("bad.json"), "{}").unwrap();
        assert!(Body::open(Some(&folder.path().join("bad.json")), folder.path().join("e.json")).is_err());
    }
}
