//! Training samples: an observation with the chunk of actions that followed it, and batches of them.
//!
//! A chunk that reaches past its episode's end repeats the last action and marks the rest as padding.
//! Which samples a step sees is a pure function of (seed, step), so that a run can be resumed to the same
//! bits. It does not know networks.

use rand::RngExt as _;
use rand::seq::SliceRandom as _;

use crate::data::Dataset;
use crate::normalizer::Normalizer;
use crate::seeded;

/// All samples of some episodes of a dataset.
#[derive(Debug)]
pub struct Windows<'a> {
    dataset: &'a Dataset,
    observation_normalizer: &'a Normalizer,
    action_normalizer: &'a Normalizer,
    chunk_size: usize,
    samples: Vec<Sample>,
}

/// Where a sample is: its step, the end of its episode, its task.
#[derive(Debug, Clone, Copy)]
struct Sample {
    step: usize,
    episode_end: usize,
    task: usize,
}

/// Normalised samples, row-major, ready to become tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Number of samples.
    pub size: usize,
    /// `[size, observation_dim]`.
    pub observations: Vec<f32>,
    /// `[size, task_count]`, one-hot.
    pub tasks: Vec<f32>,
    /// `[size, chunk_size, action_dim]`.
    pub actions: Vec<f32>,
    /// `[size, chunk_size]`: 0 where the episode had ended, 1 elsewhere.
    pub weights: Vec<f32>,
}

impl<'a> Windows<'a> {
    /// Samples of chunks of `chunk_size` actions that begin at every step of `episodes` (by index).
    pub fn new(
        dataset: &'a Dataset,
        episodes: &[usize],
        chunk_size: usize,
        observation_normalizer: &'a Normalizer,
        action_normalizer: &'a Normalizer,
    ) -> Self {
        let samples = episodes.iter().map(|&episode| &dataset.episodes[episode]).flat_map(|episode| {
            let (episode_end, task) = (episode.steps.end, episode.task);
            episode.steps.clone().map(move |step| Sample { step, episode_end, task })
        });
        let samples = samples.collect();
        Self { dataset, observation_normalizer, action_normalizer, chunk_size, samples }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Gathers the samples of `indices`, in that order.
    pub fn batch(&self, indices: &[u32]) -> Batch {
        let Dataset { observation_dim, action_dim, .. } = *self.dataset;
        let task_count = self.dataset.tasks.len();
        let mut batch = Batch {
            size: indices.len(),
            observations: Vec::with_capacity(indices.len() * observation_dim),
            tasks: vec![0.0; indices.len() * task_count],
            actions: Vec::with_capacity(indices.len() * self.chunk_size * action_dim),
            weights: Vec::with_capacity(indices.len() * self.chunk_size),
        };
        for (row, &index) in indices.iter().enumerate() {
            let Sample { step, episode_end, task } = self.samples[index as usize];
            batch.tasks[row * task_count + task] = 1.0;
            let begin = step * observation_dim;
            batch.observations.extend_from_slice(&self.dataset.observations[begin..begin + observation_dim]);
            for ahead in 0..self.chunk_size {
                let begin = (step + ahead).min(episode_end - 1) * action_dim;
                batch.actions.extend_from_slice(&self.dataset.actions[begin..begin + action_dim]);
                batch.weights.push(if step + ahead < episode_end { 1.0 } else { 0.0 });
            }
        }
        self.observation_normalizer.normalize(&mut batch.observations);
        self.action_normalizer.normalize(&mut batch.actions);
        batch
    }
}

impl Batch {
    /// Adds Gaussian noise of this standard deviation to the normalised observations: what a robot sees
    /// when it has strayed a little from the demonstrations.
    pub fn add_observation_noise(&mut self, std: f32, seed: u64, step: u64) {
        let mut rng = seeded::rng(seed, "observation noise", step);
        for pair in self.observations.chunks_mut(2) {
            // Box-Muller: two normal draws of two uniform ones.
            let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
            let radius = std * (-2.0 * u.ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * v).sin_cos();
            for (value, direction) in pair.iter_mut().zip([cos, sin]) {
                *value += radius * direction;
            }
        }
    }

    /// How many actions of the batch are real.
    pub fn real_actions(&self) -> f32 {
        self.weights.iter().sum()
    }

    /// The samples in `parts` consecutive batches of nearly equal size.
    pub fn split(self, parts: usize) -> Vec<Self> {
        let parts = parts.clamp(1, self.size.max(1));
        if parts == 1 {
            return vec![self];
        }
        let part = |i: usize| {
            let rows = i * self.size / parts..(i + 1) * self.size / parts;
            let of = |values: &[f32]| {
                let width = values.len() / self.size;
                values[rows.start * width..rows.end * width].to_vec()
            };
            Self {
                size: rows.len(),
                observations: of(&self.observations),
                tasks: of(&self.tasks),
                actions: of(&self.actions),
                weights: of(&self.weights),
            }
        };
        (0..parts).map(part).collect()
    }
}

/// Decides which samples each step sees: every one once before any a second time, in an order of its own
/// each time.
#[derive(Debug)]
pub struct Sampler {
    seed: u64,
    len: usize,
    batch_size: usize,
    /// The order of one pass through the samples: a cache, never state.
    pass: Option<(u64, Vec<u32>)>,
}

impl Sampler {
    /// Batches of `batch_size` out of `len` samples.
    pub fn new(seed: u64, len: usize, batch_size: usize) -> Self {
        assert!(len > 0 && u32::try_from(len).is_ok(), "the caller has samples, and no more than u32 can index");
        Self { seed, len, batch_size, pass: None }
    }

    /// The samples of `step`.
    pub fn indices(&mut self, step: u64) -> Vec<u32> {
        let begin = step * self.batch_size as u64;
        (begin..begin + self.batch_size as u64).map(|draw| self.index(draw)).collect()
    }

    fn index(&mut self, draw: u64) -> u32 {
        let (pass, position) = (draw / self.len as u64, (draw % self.len as u64) as usize);
        if self.pass.as_ref().is_none_or(|(cached, _)| *cached != pass) {
            let mut order: Vec<u32> = (0..self.len as u32).collect();
            order.shuffle(&mut seeded::rng(self.seed, "order of samples", pass));
            self.pass = Some((pass, order));
        }
        self.pass.as_ref().expect("filled above").1[position]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normalizer::Stats;
    use crate::train::testing;

    #[test]
    fn chunk_at_the_end_of_an_episode_is_padded_and_never_reaches_the_next() {
        let dataset = testing::counting_dataset(&[3, 2]);
        let identity = |dim| {
            Normalizer::of(&Stats { mean: vec![0.0; dim], std: vec![1.0; dim], min: vec![], max: vec![], count: 1 })
        };
        let (observations, actions) =
            (identity(dataset.observation_dim).unwrap(), identity(dataset.action_dim).unwrap());
        let windows = Windows::new(&dataset, &[0, 1], 2, &observations, &actions);
        let batch = windows.batch(&[1, 2, 3]);
        // The action at step i of the dataset is i.
        assert_eq!(batch.actions, [1.0, 2.0, 2.0, 2.0, 3.0, 4.0]);
        assert_eq!(batch.weights, [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]);
        assert_eq!(batch.tasks, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        assert_eq!(batch.clone().split(2)[1], windows.batch(&[2, 3]));
    }

    #[test]
    fn every_sample_is_seen_once_a_pass() {
        let mut sampler = Sampler::new(7, 10, 4);
        let mut seen: Vec<u32> = (0..5).flat_map(|step| sampler.indices(step)).collect();
        assert_ne!(seen[..10], seen[10..]);
        seen[..10].sort_unstable();
        seen[10..].sort_unstable();
        assert_eq!(seen[..10], *(0..10).collect::<Vec<u32>>());
        assert_eq!(seen[..10], seen[10..]);
    }

    #[test]
    fn samples_are_a_function_of_seed_and_step() {
        let indices = |seed, step| Sampler::new(seed, 100, 8).indices(step);
        let mut sampler = Sampler::new(3, 100, 8);
        for step in [40, 3, 12, 13] {
            assert_eq!(sampler.indices(step), indices(3, step));
        }
        assert_ne!(indices(3, 5), indices(4, 5));
    }
}
