//! `meta/info.json`: which version, which features, where the data files are.
//!
//! Unknown keys are ignored, as LeRobot does; what this program relies on is checked here once.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use zunft_protocol::embodiment::{ACTION, Dtype, Embodiment, Encoding, Feature, IMAGES_PREFIX, OBSERVATION_PREFIX};

use super::error::LeRobotError;

/// Columns that every dataset has and that are no features of a body.
const BOOKKEEPING: [&str; 5] = ["timestamp", "frame_index", "episode_index", "index", "task_index"];

/// Columns about the outcome of a step.
pub(super) const REWARD: &str = "next.reward";
pub(super) const SUCCESS: &str = "next.success";
pub(super) const DONE: &str = "next.done";
pub(super) const TRUNCATED: &str = "next.truncated";

#[derive(Debug, Deserialize)]
struct RawInfo {
    codebase_version: String,
    fps: f64,
    features: BTreeMap<String, RawFeature>,
    total_episodes: u64,
    total_frames: u64,
    data_path: String,
    #[serde(default)]
    robot_type: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawFeature {
    dtype: String,
    shape: Vec<u32>,
    #[serde(default)]
    names: serde_json::Value,
}

/// Only the version: read first, since the rest may differ.
#[derive(Deserialize)]
struct RawVersion {
    codebase_version: String,
}

/// What `meta/info.json` says, checked.
#[derive(Debug)]
pub(super) struct Info {
    pub(super) fps: f64,
    pub(super) episodes: u64,
    pub(super) frames: u64,
    /// Observations by name, then the action.
    pub(super) embodiment: Embodiment,
    /// Columns of the outcome that the dataset declares.
    pub(super) outcome_columns: Vec<&'static str>,
    /// Features left out.
    pub(super) skipped: Vec<String>,
    template: PathTemplate,
}

impl Info {
    pub(super) fn read(root: &Path, skip_unsupported: bool) -> Result<Self, LeRobotError> {
        let path = root.join("meta/info.json");
        let text = std::fs::read(&path).map_err(|source| LeRobotError::read(&path, source))?;
        Self::parse(path, &text, skip_unsupported)
    }

    fn parse(path: PathBuf, text: &[u8], skip_unsupported: bool) -> Result<Self, LeRobotError> {
        let malformed = |source| LeRobotError::Info { path: path.clone(), source };
        let RawVersion { codebase_version } = serde_json::from_slice(text).map_err(malformed)?;
        check_version(&path, &codebase_version)?;
        let raw: RawInfo = serde_json::from_slice(text).map_err(malformed)?;
        debug_assert_eq!(raw.codebase_version, codebase_version);
        if !(raw.fps.is_finite() && raw.fps > 0.0) {
            return Err(LeRobotError::InfoField {
                path,
                field: "fps".to_owned(),
                found: raw.fps.to_string(),
                expected: "a positive number",
            });
        }
        let template = PathTemplate::parse(&raw.data_path)
            .ok_or_else(|| LeRobotError::PathTemplate { path: path.clone(), template: raw.data_path.clone() })?;
        let (features, skipped) = features(&path, &raw, skip_unsupported)?;
        let outcome_columns =
            [REWARD, SUCCESS, DONE, TRUNCATED].into_iter().filter(|&name| raw.features.contains_key(name)).collect();
        let name = raw.robot_type.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned());
        let embodiment = Embodiment { name, rate_hz: raw.fps, features };
        embodiment.check().map_err(|source| LeRobotError::Embodiment { path: path.clone(), source })?;
        Ok(Self {
            fps: raw.fps,
            episodes: raw.total_episodes,
            frames: raw.total_frames,
            embodiment,
            outcome_columns,
            skipped,
            template,
        })
    }

    /// Path of a data file under the dataset's root.
    pub(super) fn data_file(&self, chunk_index: u64, file_index: u64) -> PathBuf {
        self.template.path(chunk_index, file_index)
    }
}

fn check_version(path: &Path, found: &str) -> Result<(), LeRobotError> {
    let (path, version) = (path.to_owned(), found.to_owned());
    let major = found.strip_prefix('v').and_then(|rest| rest.split('.').next()).and_then(|major| major.parse().ok());
    match major {
        Some(3_u32) => Ok(()),
        Some(0..3) => Err(LeRobotError::OlderVersion { path, found: version }),
        Some(_) => Err(LeRobotError::NewerVersion { path, found: version }),
        None => Err(LeRobotError::InfoField {
            path,
            field: "codebase_version".to_owned(),
            found: version,
            expected: "a version such as v3.0",
        }),
    }
}

/// The features of the body: observations by name, then the action; and the names of those left out.
fn features(path: &Path, raw: &RawInfo, skip_unsupported: bool) -> Result<(Vec<Feature>, Vec<String>), LeRobotError> {
    let mut features = Vec::new();
    let mut action = None;
    let mut skipped = Vec::new();
    for (name, feature) in &raw.features {
        let is_action = name == ACTION;
        if !is_action && !name.starts_with(OBSERVATION_PREFIX) {
            if ![REWARD, SUCCESS, DONE, TRUNCATED].contains(&name.as_str()) && !BOOKKEEPING.contains(&name.as_str()) {
                skipped.push(name.clone());
            }
            continue;
        }
        match feature.dtype.as_str() {
            "float32" | "float64" if is_action => action = Some(feature.named(name)),
            "float32" | "float64" => features.push(feature.named(name)),
            "image" if let Some(camera) = feature.camera(name, raw.fps) => features.push(camera),
            _ if skip_unsupported && !is_action => skipped.push(name.clone()),
            dtype => {
                return Err(LeRobotError::Unsupported {
                    path: path.to_owned(),
                    feature: name.clone(),
                    dtype: dtype.to_owned(),
                });
            }
        }
    }
    let missing = |missing| LeRobotError::NoFeature { path: path.to_owned(), missing };
    if features.iter().all(Feature::is_stream) {
        return Err(missing("observation"));
    }
    features.push(action.ok_or_else(|| missing("action"))?);
    Ok((features, skipped))
}

impl RawFeature {
    fn named(&self, name: &str) -> Feature {
        let mut feature = Feature::vector(name, 0);
        feature.dtype = Dtype::F32;
        feature.shape.clone_from(&self.shape);
        let count = self.shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim as usize));
        // LeRobot allows names in several forms; those that do not name each value are of no use here.
        feature.names = value_names(&self.names).filter(|names| Some(names.len()) == count).unwrap_or_default();
        feature
    }

    /// The camera that this feature is, where its name and shape make one.
    fn camera(&self, name: &str, fps: f64) -> Option<Feature> {
        let camera = name.strip_prefix(IMAGES_PREFIX).filter(|camera| !camera.is_empty())?;
        let &[first, second, third] = self.shape.as_slice() else { return None };
        let channels_first = match value_names(&self.names).as_deref() {
            Some([name, _, _]) => name.starts_with("channel"),
            _ => ![1, 3].contains(&third),
        };
        let [height, width, channels] = if channels_first { [second, third, first] } else { [first, second, third] };
        let mut feature = Feature::camera(camera, height, width, fps, Encoding::Jpeg);
        feature.shape[2] = channels;
        [1, 3].contains(&channels).then_some(feature)
    }
}

/// Names of values from `["x", "y"]` or `{"motors": ["x", "y"]}`.
fn value_names(names: &serde_json::Value) -> Option<Vec<String>> {
    let group = names.as_object().filter(|groups| groups.len() == 1).and_then(|groups| groups.values().next());
    let list = group.unwrap_or(names).as_array()?;
    list.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

/// `data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet`, in the part of Python's format language that
/// LeRobot uses: the two fields, each plain or zero-padded.
#[derive(Debug, PartialEq, Eq)]
struct PathTemplate(Vec<Part>);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Chunk { width: usize },
    File { width: usize },
}

impl PathTemplate {
    fn parse(template: &str) -> Option<Self> {
        let plain = |component| matches!(component, Component::Normal(_));
        // A template is outside input: it must stay inside the dataset.
        if template.is_empty() || !Path::new(template).components().all(plain) {
            return None;
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, tail)) = rest.split_once('{') {
            let (field, tail) = tail.split_once('}')?;
            parts.push(Part::Text(text.to_owned()));
            parts.push(Part::parse(field)?);
            rest = tail;
        }
        parts.push(Part::Text(rest.to_owned()));
        let texts_are_plain = parts.iter().all(|part| !matches!(part, Part::Text(text) if text.contains('}')));
        let names_a_file = parts.iter().any(|part| matches!(part, Part::File { .. }));
        (texts_are_plain && names_a_file).then_some(Self(parts))
    }

    fn path(&self, chunk_index: u64, file_index: u64) -> PathBuf {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Chunk { width } => format!("{chunk_index:0width$}"),
                Part::File { width } => format!("{file_index:0width$}"),
            })
            .collect::<String>()
            .into()
    }
}

impl Part {
    fn parse(field: &str) -> Option<Self> {
        let (name, format) = field.split_once(':').unwrap_or((field, ""));
        let width = match format {
            "" | "d" => 0,
            _ => format.strip_prefix('0')?.strip_suffix('d')?.parse().ok().filter(|width| (1..=20).contains(width))?,
        };
        match name {
            "chunk_index" => Some(Self::Chunk { width }),
            "file_index" => Some(Self::File { width }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_templates_of_lerobot_are_understood_and_others_refused() {
        let path = |template: &str| PathTemplate::parse(template).map(|template| template.path(2, 31));
        let check =
            |template, expected: Option<&str>| assert_eq!(path(template), expected.map(PathBuf::from), "{template}");
        check("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", Some("data/chunk-002/file-031.parquet"));
        check("d/{file_index}.parquet", Some("d/31.parquet"));
        check("d/{file_index:d}_{file_index:06d}.parquet", Some("d/31_000031.parquet"));
        check("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", None);
        check("data/all.parquet", None);
        check("data/{file_index:x}.parquet", None);
        check("data/{file_index.parquet", None);
        check("data/{file_index}}.parquet", None);
        check("../{file_index}.parquet", None);
        check("/data/{file_index}.parquet", None);
        check("", None);
    }

    #[test]
    fn names_of_values_are_kept_where_they_name_each_value() {
        let parse = |text: &str| value_names(&serde_json::from_str(text).unwrap());
        assert_eq!(parse(r#"["x", "y"]"#), Some(vec!["x".to_owned(), "y".to_owned()]));
        assert_eq!(parse(r#"{"motors": ["x"]}"#), Some(vec!["x".to_owned()]));
        assert_eq!(parse("null"), None);
        assert_eq!(parse("[1]"), None);
    }
}
