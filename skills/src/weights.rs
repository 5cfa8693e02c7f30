//! A network's parameters as named tensors, in PyTorch's names and layout, and their safetensors form.
//!
//! In memory they are f32. On disk they are bf16 for our releases and f32 for checkpoints and imports.
//! It does not know which network they belong to.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};

/// How numbers of a weight file are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// The upper half of an f32: our releases, at half the bytes.
    Bf16,
    /// As trained: checkpoints and imports.
    F32,
}

impl WeightDtype {
    /// The name that manifests use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// One named array.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f32>,
}

/// Named arrays in the order of their names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights(BTreeMap<String, WeightTensor>);

/// Why weights cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// Not a safetensors file.
    #[error("not a safetensors file: {reason}")]
    Malformed {
        /// What the parser found.
        reason: String,
    },
    /// Numbers of another type.
    #[error("tensor {tensor:?} is stored as {dtype}; only bf16 and f32 are read")]
    Dtype {
        /// Which.
        tensor: String,
        /// The type found.
        dtype: String,
    },
    /// A value that is not a number.
    #[error("tensor {tensor:?} holds {value} at index {index}; train again or restore the file")]
    NotFinite {
        /// Which.
        tensor: String,
        /// Where.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Not there.
    #[error("tensor {tensor:?} is missing; the file is of another architecture or version")]
    Missing {
        /// Which.
        tensor: String,
    },
    /// There, but not needed.
    #[error("tensor {tensor:?} belongs to no part of the network; the file is of another architecture or version")]
    Unexpected {
        /// Which.
        tensor: String,
    },
    /// Of another shape than the configuration says.
    #[error("tensor {tensor:?} has shape {found:?}; the configuration needs {expected:?}")]
    Shape {
        /// Which.
        tensor: String,
        /// The shape found.
        found: Vec<usize>,
        /// The shape needed.
        expected: Vec<usize>,
    },
}

impl Weights {
    /// No weights.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an array.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values fill the shape");
        self.0.insert(name.into(), WeightTensor { shape: shape.to_vec(), values });
    }

    /// The array of this name and shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<&[f32], WeightsError> {
        let tensor = self.0.get(name).ok_or_else(|| WeightsError::Missing { tensor: name.to_owned() })?;
        if tensor.shape != shape {
            return Err(WeightsError::Shape {
                tensor: name.to_owned(),
                found: tensor.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(&tensor.values)
    }

    /// All arrays by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &WeightTensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.0.values().map(|tensor| tensor.values.len()).sum()
    }

    /// The safetensors file of these weights.
    pub fn to_safetensors(&self, dtype: WeightDtype) -> Vec<u8> {
        let stored: Vec<(&str, &[usize], Vec<u8>)> = self
            .0
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice(), to_bytes(&tensor.values, dtype)))
            .collect();
        let kind = match dtype {
            WeightDtype::Bf16 => Dtype::BF16,
            WeightDtype::F32 => Dtype::F32,
        };
        let views = stored.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(kind, shape.to_vec(), bytes).expect("the bytes fill the shape");
            (*name, view)
        });
        safetensors::serialize(views, None).expect("names and shapes have a JSON form")
    }

    /// Reads a safetensors file of bf16 or f32 arrays, refusing any that is not a number.
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, WeightsError> {
        let malformed = |error: SafeTensorError| WeightsError::Malformed { reason: error.to_string() };
        let file = SafeTensors::deserialize(bytes).map_err(malformed)?;
        let mut weights = Self::new();
        for (name, view) in file.tensors() {
            let values = from_bytes(&name, view.dtype(), view.data())?;
            if let Some((index, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
                return Err(WeightsError::NotFinite { tensor: name, index, value });
            }
            weights.insert(name, view.shape(), values);
        }
        Ok(weights)
    }

    /// The same weights as they come back from a file of this type.
    pub fn rounded(&self, dtype: WeightDtype) -> Self {
        let round = |value: &f32| match dtype {
            WeightDtype::Bf16 => f32_of_bf16(bf16_of_f32(*value)),
            WeightDtype::F32 => *value,
        };
        let tensors = self.0.iter().map(|(name, tensor)| {
            let values = tensor.values.iter().map(round).collect();
            (name.clone(), WeightTensor { shape: tensor.shape.clone(), values })
        });
        Self(tensors.collect())
    }
}

fn to_bytes(values: &[f32], dtype: WeightDtype) -> Vec<u8> {
    match dtype {
        WeightDtype::Bf16 => values.iter().flat_map(|&value| bf16_of_f32(value).to_le_bytes()).collect(),
        WeightDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

fn from_bytes(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, WeightsError> {
    if dtype == Dtype::BF16 {
        let pairs = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        Ok(pairs.map(f32_of_bf16).collect())
    } else if dtype == Dtype::F32 {
        let quads = bytes.chunks_exact(4).map(|quad| [quad[0], quad[1], quad[2], quad[3]]);
        Ok(quads.map(f32::from_le_bytes).collect())
    } else {
        Err(WeightsError::Dtype { tensor: name.to_owned(), dtype: dtype.to_string() })
    }
}

/// Rounds to the nearest bf16, ties to even; what is not a number stays none.
fn bf16_of_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Keep a bit of the payload set, or rounding could turn it into an infinity.
        return (bits >> 16) as u16 | 0x40;
    }
    let half = 0x7fff + ((bits >> 16) & 1);
    ((bits + half) >> 16) as u16
}

fn f32_of_bf16(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_weights() -> Weights {
        let mut weights = Weights::new();
        weights.insert("model.b", &[2], vec![0.5, -3.0]);
        weights.insert("model.a", &[2, 1], vec![1.0, 1e-3]);
        weights
    }

    #[test]
    fn weights_survive_their_files() {
        let weights = some_weights();
        let file = weights.to_safetensors(WeightDtype::F32);
        assert_eq!(Weights::from_safetensors(&file).unwrap(), weights);
        let file = weights.to_safetensors(WeightDtype::Bf16);
        let again = Weights::from_safetensors(&file).unwrap();
        assert_eq!(again, weights.rounded(WeightDtype::Bf16));
        assert!((again.tensor("model.a", &[2, 1]).unwrap()[1] - 1e-3).abs() < 1e-5);
    }

    #[test]
    fn bf16_rounds_to_nearest_with_ties_to_even() {
        for (bits, rounded) in [
            (0x3f80_0000, 0x3f80),
            (0x3f80_7fff, 0x3f80),
            (0x3f80_8000, 0x3f80),
            (0x3f80_8001, 0x3f81),
            (0x3f81_8000, 0x3f82),
            (0xbf80_8001, 0xbf81),
            (0x7f80_0000, 0x7f80),
        ] {
            assert_eq!(bf16_of_f32(f32::from_bits(bits)), rounded, "{bits:#x}");
        }
        assert!(f32_of_bf16(bf16_of_f32(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        let mut weights = some_weights();
        weights.insert("model.c", &[2], vec![0.0, f32::NAN]);
        let read = Weights::from_safetensors(&weights.to_safetensors(WeightDtype::Bf16));
        assert!(matches!(read, Err(WeightsError::NotFinite { index: 1, .. })), "{read:?}");
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let file = some_weights().to_safetensors(WeightDtype::F32);
        for len in 0..file.len() {
            assert!(Weights::from_safetensors(&file[..len]).is_err());
        }
        assert!(Weights::from_safetensors(&[0xff; 64]).is_err());
    }

    #[test]
    fn other_shapes_and_names_are_refused() {
        let weights = some_weights();
        assert!(matches!(weights.tensor("model.a", &[1, 2]), Err(WeightsError::Shape { .. })));
        assert!(matches!(weights.tensor("model.z", &[1]), Err(WeightsError::Missing { .. })));
    }
}
