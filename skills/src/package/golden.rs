//! Golden vectors: inputs, and what the released weights answered to them where they were packaged.
//!
//! A robot asks its own copy the same questions before it trusts it: other bytes, another version of the
//! program or a broken processor show here and not in the arm's motion.

use super::ActError;
use crate::runtime::SkillRuntime;
use crate::weights::{WeightDtype, Weights, WeightsError};

/// How far an answer may be from the golden one, in standard deviations of the action or, for large
/// values, relative to the value.
///
/// Another CPU adds in another order and fuses multiplications: that moves f32 by about 1e-6. A wrong
/// weight, layer or statistic moves it by more than this.
pub const GOLDEN_TOLERANCE: f32 = 1e-4;

/// Inputs and answers. Rows belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Golden {
    /// `observation`, `task` (one-hot) and `action`, a row each a question.
    tensors: Weights,
    count: usize,
    observation_dim: usize,
    task_count: usize,
    answer_len: usize,
}

/// Why golden vectors are not met.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// Vectors of other dimensions than the skill's.
    #[error("golden vectors are of another skill: {what} has {found} values a row, the skill {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its row's length.
        found: usize,
        /// The skill's.
        expected: usize,
    },
    /// The skill cannot answer.
    #[error("golden input {index} cannot be answered")]
    Act {
        /// Which input.
        index: usize,
        /// Why.
        #[source]
        source: ActError,
    },
    /// Another answer.
    #[error(
        "golden input {index}: value {value} of the answer is {found}, it must be {expected} within {tolerance}; the skill does not compute here what it computed where it was packaged, so it is not run"
    )]
    Mismatch {
        /// Which input.
        index: usize,
        /// Which value of the chunk.
        value: usize,
        /// What the skill answers.
        found: f32,
        /// What it should answer.
        expected: f32,
        /// The allowed difference.
        tolerance: f32,
    },
}

const OBSERVATION: &str = "observation";
const TASK: &str = "task";
const ACTION: &str = "action";

impl Golden {
    /// Asks `runtime` each question; an error comes with the question's index.
    pub(super) fn answered(runtime: &SkillRuntime, inputs: &[(usize, Vec<f32>)]) -> Result<Self, (usize, ActError)> {
        let task_count = runtime.tasks().len();
        let (mut observations, mut tasks, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (task, observation)) in inputs.iter().enumerate() {
            assert!(*task < task_count, "golden inputs name tasks of the skill");
            let mut one_hot = vec![0.0; task_count];
            one_hot[*task] = 1.0;
            answers.extend(runtime.predict(&one_hot, observation).map_err(|source| (index, source))?);
            observations.extend_from_slice(observation);
            tasks.extend(one_hot);
        }
        let count = inputs.len();
        let mut tensors = Weights::new();
        let shape = |values: &[f32]| [count, values.len() / count.max(1)];
        tensors.insert(OBSERVATION, &shape(&observations), observations);
        tensors.insert(TASK, &shape(&tasks), tasks);
        tensors.insert(ACTION, &shape(&answers), answers);
        Ok(Self::of_tensors(tensors).expect("the tensors were just made"))
    }

    /// Checks that `runtime` answers as it should.
    pub(crate) fn verify(&self, runtime: &SkillRuntime) -> Result<(), GoldenError> {
        let shape = runtime.shape();
        let chunk = runtime.policy().chunk_size() * shape.action_dim;
        for (what, found, expected) in [
            (OBSERVATION, self.observation_dim, shape.observation_dim),
            (TASK, self.task_count, shape.task_count),
            (ACTION, self.answer_len, chunk),
        ] {
            if found != expected {
                return Err(GoldenError::Shape { what, found, expected });
            }
        }
        for index in 0..self.count {
            let found = runtime
                .predict(self.row(TASK, index), self.row(OBSERVATION, index))
                .map_err(|source| GoldenError::Act { index, source })?;
            let expected = self.row(ACTION, index);
            for (value, (&found, &expected)) in found.iter().zip(expected).enumerate() {
                let scale = runtime.action_scale(value % shape.action_dim).max(expected.abs());
                let tolerance = GOLDEN_TOLERANCE * scale;
                // Written so that what is not a number is a mismatch.
                let close = (found - expected).abs() <= tolerance;
                if !close {
                    return Err(GoldenError::Mismatch { index, value, found, expected, tolerance });
                }
            }
        }
        Ok(())
    }

    pub(super) fn to_safetensors(&self) -> Vec<u8> {
        self.tensors.to_safetensors(WeightDtype::F32)
    }

    pub(super) fn from_safetensors(bytes: &[u8]) -> Result<Self, WeightsError> {
        Self::of_tensors(Weights::from_safetensors(bytes)?)
    }

    fn of_tensors(tensors: Weights) -> Result<Self, WeightsError> {
        let shape_of = |name: &str| {
            let found = tensors.iter().find(|(other, _)| *other == name);
            let tensor = found.ok_or_else(|| WeightsError::Missing { tensor: name.to_owned() })?.1;
            match tensor.shape[..] {
                [count, row] if count > 0 && row > 0 => Ok((count, row)),
                _ => Err(WeightsError::Shape {
                    tensor: name.to_owned(),
                    found: tensor.shape.clone(),
                    expected: vec![1, 1],
                }),
            }
        };
        let (count, observation_dim) = shape_of(OBSERVATION)?;
        let (_, task_count) = shape_of(TASK)?;
        let (_, answer_len) = shape_of(ACTION)?;
        tensors.tensor(TASK, &[count, task_count])?;
        tensors.tensor(ACTION, &[count, answer_len])?;
        Ok(Self { tensors, count, observation_dim, task_count, answer_len })
    }

    fn row(&self, name: &str, index: usize) -> &[f32] {
        let (_, tensor) = self.tensors.iter().find(|(other, _)| *other == name).expect("checked when made");
        let row = tensor.values.len() / self.count;
        &tensor.values[index * row..(index + 1) * row]
    }
}
