//! What a robot's body senses and commands: named features with type, shape, units, limits and rate.
//!
//! The names are LeRobot's (`observation.state`, `observation.images.<camera>`, `action`).
//! An embodiment is identified by the hash of its deterministic encoding.

use serde::{Deserialize, Serialize};

use crate::cbor;
use crate::ids::EmbodimentId;
use crate::limits::{FEATURE_VALUES_MAX, FEATURES_MAX, SHAPE_DIMS_MAX, STEP_BYTES_MAX};

/// Name of the feature that the robot commands.
pub const ACTION: &str = "action";

/// Prefix of the features that the robot senses.
pub const OBSERVATION_PREFIX: &str = "observation.";

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

/// One named quantity that a robot senses or commands at every step.
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
        }
    }

    /// Values in one step. Trust it only after [`Embodiment::check`].
    pub fn values(&self) -> usize {
        self.shape.iter().map(|&dim| dim as usize).product()
    }

    /// Bytes of one step.
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
        let mut bytes = 0;
        for (i, feature) in self.features.iter().enumerate() {
            check_feature(feature)?;
            if self.features[..i].iter().any(|other| other.name == feature.name) {
                return Err(EmbodimentError::Duplicate { feature: feature.name.clone() });
            }
            bytes += feature.bytes();
        }
        if bytes > STEP_BYTES_MAX {
            return Err(EmbodimentError::StepSize { name: self.name.clone(), bytes });
        }
        Ok(())
    }

    /// The hash that names this embodiment everywhere.
    pub fn id(&self) -> EmbodimentId {
        EmbodimentId::from_bytes(*blake3::hash(&cbor::encode(self)).as_bytes())
    }

    /// The features that a policy reads.
    pub fn observations(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|feature| feature.name.starts_with(OBSERVATION_PREFIX))
    }

    /// The feature that a policy writes, where there is one.
    pub fn action(&self) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == ACTION)
    }

    /// The feature of this name.
    pub fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }

    /// Raw bytes of one step over all features.
    pub fn step_bytes(&self) -> usize {
        self.features.iter().map(Feature::bytes).sum()
    }
}

fn check_feature(feature: &Feature) -> Result<(), EmbodimentError> {
    let name = || feature.name.clone();
    if feature.name != ACTION && feature.name.strip_prefix(OBSERVATION_PREFIX).is_none_or(str::is_empty) {
        return Err(EmbodimentError::FeatureName { feature: name() });
    }
    let values = feature.shape.iter().try_fold(1_usize, |product, &dim| {
        product.checked_mul(dim as usize).filter(|&product| product > 0 && product <= FEATURE_VALUES_MAX)
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
    }
}
