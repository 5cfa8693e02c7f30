//! What a robot's body senses and commands: named features with type, shape, units, limits and rate.
//!
//! The names are LeRobot's (`observation.state`, `observation.images.<camera>`, `action`).
//! An embodiment is identified by the hash of its deterministic encoding.

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::ids::EmbodimentId;
use crate::limits::{
    EMBODIMENT_BYTES_MAX, FEATURE_VALUES_MAX, FEATURES_MAX, IMAGE_VALUES_MAX, SHAPE_DIMS_MAX, STEP_BYTES_MAX,
};

/// Name of the feature that the robot commands.
pub const ACTION: &str = "action";

/// Prefix of the features that the robot senses.
pub const OBSERVATION_PREFIX: &str = "observation.";

/// Prefix of the cameras' names.
pub const IMAGES_PREFIX: &str = "observation.images.";

/// Name of the proprioceptive state, where a robot has one vector for it.
pub const OBSERVATION_STATE: &str = "observation.state";

/// Type of a feature's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned byte.
    U8,
}

impl Dtype {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
            Self::U8 => 1,
        }
    }
}

/// How a camera's images are stored: as bytes of varying length, just as they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// Each sample is a whole JPEG file.
    Jpeg,
    /// Each sample is one access unit; some need those before them, back to a key frame.
    H264,
}

/// One named quantity that a robot senses or commands: at every step, or as a stream of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// LeRobot's name, for example `observation.state`.
    pub name: String,
    /// Type of the values.
    pub dtype: Dtype,
    /// Shape of one step's value, for example `[39]`.
    pub shape: Vec<u32>,
    /// What each value is called, for a vector; empty where unnamed.
    #[serde(default)]
    pub names: Vec<String>,
    /// Unit of each value (SI, radians), one for all, or empty where unknown.
    #[serde(default)]
    pub units: Vec<String>,
    /// Least allowed value of each dimension; empty where unbounded.
    #[serde(default)]
    pub min: Vec<f64>,
    /// Greatest allowed value of each dimension; empty where unbounded.
    #[serde(default)]
    pub max: Vec<f64>,
    /// Nominal rate of samples, where it is not that of the steps: the feature is then a stream of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_hz: Option<f64>,
    /// For a camera that is a stream of its own: how its images are stored. The shape is `[height, width, channels]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
}

impl Feature {
    /// A vector of `len` f32 values without names, units or limits.
    pub fn vector(name: &str, len: u32) -> Self {
        Self {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: vec![len],
            names: Vec::new(),
            units: Vec::new(),
            min: Vec::new(),
            max: Vec::new(),
            rate_hz: None,
            encoding: None,
        }
    }

    /// The RGB camera `observation.images.<camera>`, a stream of its own.
    pub fn camera(camera: &str, height: u32, width: u32, rate_hz: f64, encoding: Encoding) -> Self {
        Self {
            dtype: Dtype::U8,
            shape: vec![height, width, 3],
            rate_hz: Some(rate_hz),
            encoding: Some(encoding),
            ..Self::vector(&format!("{IMAGES_PREFIX}{camera}"), 0)
        }
    }

    /// Whether its samples are a stream of their own, and no part of a step.
    pub fn is_stream(&self) -> bool {
        self.rate_hz.is_some() || self.encoding.is_some()
    }

    /// Values in one step. Trust it only after [`Embodiment::check`].
    pub fn values(&self) -> usize {
        self.shape.iter().map(|&dim| dim as usize).product()
    }

    /// Bytes of one step, or of one sample that is not encoded.
    pub fn bytes(&self) -> usize {
        self.values() * self.dtype.bytes()
    }
}

/// Why an embodiment cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EmbodimentError {
    /// No features, or too many.
    #[error("embodiment {name:?} has {count} features; between 1 and {FEATURES_MAX} are needed")]
    FeatureCount {
        /// The embodiment.
        name: String,
        /// How many.
        count: usize,
    },
    /// A feature that is neither an observation nor the action.
    #[error(
        "feature {feature:?} is neither \"action\" nor does it begin with \"observation.\"; rename it as LeRobot would"
    )]
    FeatureName {
        /// The feature.
        feature: String,
    },
    /// A name or unit that does not print: databases refuse some of these, and people do not see them.
    #[error("{what} {name:?} of the embodiment holds a control character; leave it out")]
    ControlCharacter {
        /// What is named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two features of one name.
    #[error("feature {feature:?} appears twice; give each feature its own name")]
    Duplicate {
        /// The feature.
        feature: String,
    },
    /// A shape without values or with too many.
    #[error(
        "feature {feature:?} has shape {shape:?}; use 1 to {SHAPE_DIMS_MAX} dimensions, none of them 0, and at most {FEATURE_VALUES_MAX} values"
    )]
    Shape {
        /// The feature.
        feature: String,
        /// Its shape.
        shape: Vec<u32>,
    },
    /// A list beside the values that does not match them.
    #[error("feature {feature:?} has {count} {list} for {values} values; give one each, or none")]
    ListLength {
        /// The feature.
        feature: String,
        /// Which list.
        list: &'static str,
        /// Its length.
        count: usize,
        /// Values of the feature.
        values: usize,
    },
    /// A limit that is not a number, or a least value above the greatest.
    #[error("feature {feature:?} has limits that are not numbers or are the wrong way round at index {index}")]
    Limit {
        /// The feature.
        feature: String,
        /// Where.
        index: usize,
    },
    /// A rate that is not a positive number.
    #[error("embodiment {name:?} has rate {rate_hz} Hz; give the nominal control rate as a positive number")]
    Rate {
        /// The embodiment.
        name: String,
        /// The rate.
        rate_hz: f64,
    },
    /// A feature that cannot be a stream of its own as it stands.
    #[error("feature {feature:?} cannot be a stream of its own: {reason}")]
    Stream {
        /// The feature.
        feature: String,
        /// Why, and the remedy.
        reason: &'static str,
    },
    /// A description too large to travel with every episode.
    #[error(
        "the description of embodiment {name:?} takes {bytes} bytes; at most {EMBODIMENT_BYTES_MAX} are allowed: shorten its lists of names and limits"
    )]
    TooLarge {
        /// The embodiment.
        name: String,
        /// Its size, encoded.
        bytes: usize,
    },
    /// A step too large to record.
    #[error("one step of embodiment {name:?} takes {bytes} bytes; at most {STEP_BYTES_MAX} are allowed")]
    StepSize {
        /// The embodiment.
        name: String,
        /// Bytes over all features.
        bytes: usize,
    },
}

/// A robot's body as its policies see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embodiment {
    /// What people call it, for example `sawyer`.
    pub name: String,
    /// Nominal control rate. Steps carry their real times.
    pub rate_hz: f64,
    /// Observations and the action, in the order in which a step carries them.
    pub features: Vec<Feature>,
}

impl Embodiment {
    /// Checks everything that later code relies on.
    pub fn check(&self) -> Result<(), EmbodimentError> {
        let count = self.features.len();
        if count == 0 || count > FEATURES_MAX {
            return Err(EmbodimentError::FeatureCount { name: self.name.clone(), count });
        }
        if !(self.rate_hz.is_finite() && self.rate_hz > 0.0) {
            return Err(EmbodimentError::Rate { name: self.name.clone(), rate_hz: self.rate_hz });
        }
        printable("name", &self.name)?;
        for (i, feature) in self.features.iter().enumerate() {
            check_feature(feature)?;
            check_stream(feature)?;
            if self.features[..i].iter().any(|other| other.name == feature.name) {
                return Err(EmbodimentError::Duplicate { feature: feature.name.clone() });
            }
        }
        let samples = self.streams().filter(|feature| feature.encoding.is_none()).map(Feature::bytes);
        let bytes = samples.chain([self.step_bytes()]).max().unwrap_or(0);
        if bytes > STEP_BYTES_MAX {
            return Err(EmbodimentError::StepSize { name: self.name.clone(), bytes });
        }
        let bytes = cbor::encode(self).len();
        if bytes > EMBODIMENT_BYTES_MAX {
            return Err(EmbodimentError::TooLarge { name: self.name.clone(), bytes });
        }
        Ok(())
    }

    /// The hash that names this embodiment everywhere.
    pub fn id(&self) -> EmbodimentId {
        EmbodimentId::from_bytes(*blake3::hash(&cbor::encode(self)).as_bytes())
    }

    /// The features that every step carries, in their order.
    pub fn step_features(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|feature| !feature.is_stream())
    }

    /// The features that are streams of their own, in their order: that of the streams of an episode after `steps`.
    pub fn streams(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|feature| feature.is_stream())
    }

    /// The features of a step that a policy reads.
    pub fn observations(&self) -> impl Iterator<Item = &Feature> {
        self.step_features().filter(|feature| feature.name.starts_with(OBSERVATION_PREFIX))
    }

    /// The feature that a policy writes, where there is one.
    pub fn action(&self) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == ACTION)
    }

    /// The feature of this name.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }

    /// Raw bytes of one step over all features that it carries.
    pub fn step_bytes(&self) -> usize {
        self.step_features().map(Feature::bytes).sum()
    }
}

fn printable(what: &'static str, name: &str) -> Result<(), EmbodimentError> {
    if name.chars().any(char::is_control) {
        return Err(EmbodimentError::ControlCharacter { what, name: name.to_owned() });
    }
    Ok(())
}

fn check_feature(feature: &Feature) -> Result<(), EmbodimentError> {
    let name = || feature.name.clone();
    if feature.name != ACTION && feature.name.strip_prefix(OBSERVATION_PREFIX).is_none_or(str::is_empty) {
        return Err(EmbodimentError::FeatureName { feature: name() });
    }
    printable("feature", &feature.name)?;
    feature.names.iter().try_for_each(|value| printable("value", value))?;
    feature.units.iter().try_for_each(|unit| printable("unit", unit))?;
    // An encoded image is bounded by its bytes.
    let values_max = if feature.encoding.is_some() { IMAGE_VALUES_MAX } else { FEATURE_VALUES_MAX };
    let values = feature.shape.iter().try_fold(1_usize, |product, &dim| {
        product.checked_mul(dim as usize).filter(|&product| product > 0 && product <= values_max)
    });
    let values = match values {
        Some(values) if (1..=SHAPE_DIMS_MAX).contains(&feature.shape.len()) => values,
        _ => return Err(EmbodimentError::Shape { feature: name(), shape: feature.shape.clone() }),
    };
    let lists = [
        ("names", feature.names.len()),
        ("units", feature.units.len()),
        ("minima", feature.min.len()),
        ("maxima", feature.max.len()),
    ];
    for (list, count) in lists {
        let one_unit = list == "units" && count == 1;
        if count != 0 && count != values && !one_unit {
            return Err(EmbodimentError::ListLength { feature: name(), list, count, values });
        }
    }
    for index in 0..feature.min.len().max(feature.max.len()) {
        let min = feature.min.get(index).copied().unwrap_or(f64::MIN);
        let max = feature.max.get(index).copied().unwrap_or(f64::MAX);
        if !(min.is_finite() && max.is_finite() && min <= max) {
            return Err(EmbodimentError::Limit { feature: name(), index });
        }
    }
    Ok(())
}

fn check_stream(feature: &Feature) -> Result<(), EmbodimentError> {
    let refuse = |reason| Err(EmbodimentError::Stream { feature: feature.name.clone(), reason });
    if !feature.is_stream() {
        return Ok(());
    }
    if feature.name == ACTION {
        return refuse("the action is what a step is about; leave out its rate and encoding");
    }
    if feature.rate_hz.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return refuse("its rate is no positive number of Hz; correct it or leave it out");
    }
    if feature.encoding.is_some() {
        if feature.name.strip_prefix(IMAGES_PREFIX).is_none_or(str::is_empty) {
            return refuse("an encoding is for cameras; name it observation.images.<camera> or leave out the encoding");
        }
        if feature.dtype != Dtype::U8 || feature.shape.len() != 3 || ![1, 3].contains(&feature.shape[2]) {
            return refuse("a camera has dtype u8 and shape [height, width, 3], or 1 for grey; correct them");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sawyer() -> Embodiment {
        Embodiment {
            name: "sawyer".into(),
            rate_hz: 80.0,
            features: vec![Feature::vector(OBSERVATION_STATE, 39), Feature::vector(ACTION, 4)],
        }
    }

    #[test]
    fn id_changes_with_any_feature() {
        let plain = sawyer();
        assert_eq!(plain.check(), Ok(()));
        let mut limited = sawyer();
        limited.features[1].min = vec![-1.0; 4];
        assert_ne!(plain.id(), limited.id());
    }

    #[test]
    fn id_is_frozen() {
        assert_eq!(sawyer().id().to_string(), "1f3c4b8383a6c14c5cb403a4b829c9013f8521ec50dffeb7d379c4f7ff94f70b");
    }

    #[test]
    fn impossible_features_are_refused() {
        let refused = |change: fn(&mut Embodiment)| {
            let mut embodiment = sawyer();
            change(&mut embodiment);
            assert!(embodiment.check().is_err(), "{embodiment:?}");
        };
        refused(|e| e.features.clear());
        refused(|e| e.features[0].name = "state".into());
        refused(|e| e.features[0].name = "observation.".into());
        refused(|e| e.features[0].shape = vec![0]);
        refused(|e| e.features[0].shape = vec![u32::MAX, u32::MAX, u32::MAX]);
        refused(|e| e.features[0].shape = vec![1; 6]);
        refused(|e| e.features[0].names = vec!["x".into()]);
        refused(|e| e.features[1].min = vec![f64::NAN; 4]);
        refused(|e| e.features[1].name = OBSERVATION_STATE.into());
        refused(|e| e.rate_hz = 0.0);
        refused(|e| e.name = "x".repeat(EMBODIMENT_BYTES_MAX));
    }

    #[test]
    fn names_that_do_not_print_are_refused() {
        for unprintable in ["\0", "a\u{1b}[2J", "line\nline", "\u{85}"] {
            let refused = |change: fn(&mut Embodiment, String)| {
                let mut embodiment = sawyer();
                change(&mut embodiment, unprintable.to_owned());
                let error = embodiment.check().unwrap_err();
                assert!(matches!(error, EmbodimentError::ControlCharacter { .. }), "{error}");
                assert!(!error.to_string().contains(char::is_control), "{error}");
            };
            refused(|e, name| e.name = name);
            refused(|e, name| e.features[0].name = format!("{OBSERVATION_PREFIX}{name}"));
            refused(|e, name| e.features[1].names = vec![name; 4]);
            refused(|e, name| e.features[1].units = vec![name]);
        }
        let mut greek = sawyer();
        greek.name = "Arm aus Köln μ".into();
        assert_eq!(greek.check(), Ok(()));
    }

    #[test]
    fn a_camera_and_a_feature_with_a_rate_are_no_part_of_a_step() {
        let mut body = sawyer();
        body.features.push(Feature::camera("wrist", 1080, 1920, 30.0, Encoding::Jpeg));
        body.features.push(Feature { rate_hz: Some(1000.0), ..Feature::vector("observation.force", 6) });
        assert_eq!(body.check(), Ok(()));
        assert_eq!(body.step_bytes(), (39 + 4) * 4);
        let names: Vec<&str> = body.streams().map(|feature| feature.name.as_str()).collect();
        assert_eq!(names, ["observation.images.wrist", "observation.force"]);
        let json = serde_json::to_value(&body.features[2]).unwrap();
        assert_eq!((&json["rate_hz"], &json["encoding"]), (&30.0.into(), &"jpeg".into()));
        assert!(body.observations().all(|feature| !feature.is_stream()));
    }

    #[test]
    fn impossible_streams_are_refused() {
        let refused = |change: fn(&mut Feature)| {
            let mut body = sawyer();
            body.features.push(Feature::camera("wrist", 480, 640, 30.0, Encoding::H264));
            assert_eq!(body.check(), Ok(()));
            change(&mut body.features[2]);
            assert!(matches!(body.check(), Err(EmbodimentError::Stream { .. })), "{body:?}");
        };
        refused(|f| f.rate_hz = Some(0.0));
        refused(|f| f.name = "observation.wrist".into());
        refused(|f| f.dtype = Dtype::F32);
        refused(|f| f.shape = vec![480, 640]);
        refused(|f| f.shape = vec![480, 640, 4]);
        let mut body = sawyer();
        body.features[1].rate_hz = Some(10.0);
        assert!(matches!(body.check(), Err(EmbodimentError::Stream { .. })), "an action of its own rate");
    }
}
