//! Where a network's parameters come from: a seed or a file, by name.
//!
//! Initial values are a function of (seed, name) alone, so that two runs in one process, or a layer added
//! elsewhere, change nothing; burn's own generator is one for the whole process and is never used.

use std::collections::BTreeSet;

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt as _;

use crate::seeded;
use crate::weights::{Weights, WeightsError};

/// A source of parameters.
pub enum Parameters<'a> {
    /// Fresh ones.
    Seed(u64),
    /// Stored ones, in PyTorch's names and layout.
    Stored {
        /// The file.
        weights: &'a Weights,
        /// Names that were asked for.
        used: BTreeSet<String>,
    },
}

impl<'a> Parameters<'a> {
    /// Stored parameters, every one of which the network must use.
    pub fn stored(weights: &'a Weights) -> Self {
        Self::Stored { weights, used: BTreeSet::new() }
    }

    /// A linear layer called `name`.
    ///
    /// Fresh ones are drawn as PyTorch does: weight and bias uniform in `±1/sqrt(d_input)`.
    pub fn linear(
        &mut self,
        name: &str,
        d_input: usize,
        d_output: usize,
        device: &Device,
    ) -> Result<Linear, WeightsError> {
        let bound = 1.0 / (d_input as f32).sqrt();
        let weight = self.values(&format!("{name}.weight"), &[d_output, d_input], bound)?;
        let bias = self.values(&format!("{name}.bias"), &[d_output], bound)?;
        // burn stores the transpose of PyTorch's weight.
        let weight = TensorData::new(transposed(&weight, d_output, d_input), [d_input, d_output]);
        Ok(Linear {
            weight: Param::from_data(weight, device),
            bias: Some(Param::from_data(TensorData::new(bias, [d_output]), device)),
        })
    }

    /// Refuses stored parameters that no layer asked for.
    pub(super) fn finish(self) -> Result<(), WeightsError> {
        let Self::Stored { weights, used } = self else { return Ok(()) };
        match weights.iter().find(|(name, _)| !used.contains(*name)) {
            Some((name, _)) => Err(WeightsError::Unexpected { tensor: name.to_owned() }),
            None => Ok(()),
        }
    }

    fn values(&mut self, name: &str, shape: &[usize], bound: f32) -> Result<Vec<f32>, WeightsError> {
        match self {
            Self::Seed(seed) => {
                let count = shape.iter().product();
                let mut rng = seeded::rng(*seed, name, 0);
                Ok((0..count).map(|_| rng.random_range(-bound..bound)).collect())
            }
            Self::Stored { weights, used } => {
                used.insert(name.to_owned());
                Ok(weights.tensor(name, shape)?.to_vec())
            }
        }
    }
}

/// Adds a linear layer to `weights`, the inverse of [`Parameters::linear`].
pub(super) fn store_linear(weights: &mut Weights, name: &str, layer: &Linear) {
    let [d_input, d_output] = layer.weight.val().dims();
    let weight = values_of(layer.weight.val());
    weights.insert(format!("{name}.weight"), &[d_output, d_input], transposed(&weight, d_input, d_output));
    if let Some(bias) = &layer.bias {
        weights.insert(format!("{name}.bias"), &[d_output], values_of(bias.val()));
    }
}

fn values_of<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().as_slice::<f32>().expect("parameters are f32").to_vec()
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}
