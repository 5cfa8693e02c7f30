//! Per-dimension statistics and the MEAN_STD normaliser made of them.
//!
//! Statistics are computed exactly (Welford, f64) over a whole dataset and are part of the skill: a
//! statistic that is missing or not a number is an error here, never a pass-through. The formulas are
//! LeRobot's: `(x - mean) / (std + eps)` and back `x * std + mean`, always in f32.
//! It does not know what the dimensions mean or where the statistics are stored.

/// LeRobot's guard against a division by zero.
pub const EPS: f32 = 1e-8;

/// Statistics of one vector, a value per dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Arithmetic mean.
    pub mean: Vec<f64>,
    /// Standard deviation of the population.
    pub std: Vec<f64>,
    /// Least value.
    pub min: Vec<f64>,
    /// Greatest value.
    pub max: Vec<f64>,
    /// How many vectors were seen.
    pub count: u64,
}

/// Why statistics cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StatsError {
    /// Statistics of nothing.
    #[error("statistics need at least one step; the dataset has none")]
    Empty,
    /// A value that is not a number.
    #[error("dimension {dimension} holds {value} at step {step}; remove the episode or repair the recording")]
    NotFinite {
        /// Which dimension.
        dimension: usize,
        /// Which step of those given.
        step: u64,
        /// The value.
        value: f32,
    },
    /// A statistic that is not a number or has no sense.
    #[error(
        "statistic {statistic:?} of dimension {dimension} is {value}; a skill without sound statistics is never run"
    )]
    Unsound {
        /// `mean` or `std`.
        statistic: &'static str,
        /// Which dimension.
        dimension: usize,
        /// The value.
        value: f64,
    },
    /// Lists of different lengths.
    #[error("statistic {statistic:?} has {found} values; {expected} dimensions need one each")]
    Length {
        /// `mean` or `std`.
        statistic: &'static str,
        /// How many there are.
        found: usize,
        /// How many are needed.
        expected: usize,
    },
}

impl Stats {
    /// Computes the statistics of `values`, a row-major `[steps, dimensions]`.
    pub fn of(values: &[f32], dimensions: usize) -> Result<Self, StatsError> {
        let mut seen = Welford::new(dimensions);
        for row in values.chunks_exact(dimensions) {
            seen.push(row)?;
        }
        seen.finish()
    }

    /// The same with every standard deviation raised to at least `std_min`.
    ///
    /// A dimension that hardly moved in the data would otherwise turn a hair's breadth on the robot into
    /// an input a thousand deviations away from everything the policy was trained on.
    pub fn with_std_min(mut self, std_min: f64) -> Self {
        for std in &mut self.std {
            *std = std.max(std_min);
        }
        self
    }

    /// Number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.mean.len()
    }

    /// The dimensions of `range` alone: one feature of a flattened observation.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            mean: self.mean[range.clone()].to_vec(),
            std: self.std[range.clone()].to_vec(),
            min: self.min[range.clone()].to_vec(),
            max: self.max[range].to_vec(),
            count: self.count,
        }
    }
}

/// Welford's running mean and variance: exact in one pass, without catastrophic cancellation.
struct Welford {
    count: u64,
    mean: Vec<f64>,
    /// Sum of squared distances from the mean.
    m2: Vec<f64>,
    min: Vec<f64>,
    max: Vec<f64>,
}

impl Welford {
    fn new(dimensions: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; dimensions],
            m2: vec![0.0; dimensions],
            min: vec![f64::INFINITY; dimensions],
            max: vec![f64::NEG_INFINITY; dimensions],
        }
    }

    fn push(&mut self, row: &[f32]) -> Result<(), StatsError> {
        let step = self.count;
        self.count += 1;
        for (dimension, &value) in row.iter().enumerate() {
            if !value.is_finite() {
                return Err(StatsError::NotFinite { dimension, step, value });
            }
            let value = f64::from(value);
            let delta = value - self.mean[dimension];
            self.mean[dimension] += delta / self.count as f64;
            self.m2[dimension] += delta * (value - self.mean[dimension]);
            self.min[dimension] = self.min[dimension].min(value);
            self.max[dimension] = self.max[dimension].max(value);
        }
        Ok(())
    }

    fn finish(self) -> Result<Stats, StatsError> {
        if self.count == 0 {
            return Err(StatsError::Empty);
        }
        let std = self.m2.iter().map(|m2| (m2 / self.count as f64).sqrt()).collect();
        Ok(Stats { mean: self.mean, std, min: self.min, max: self.max, count: self.count })
    }
}

/// Maps raw values to what a network sees and back, dimension by dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalizer {
    mean: Vec<f32>,
    std: Vec<f32>,
}

impl Normalizer {
    /// Makes a normaliser of f32 statistics as a package stores them.
    pub fn new(mean: Vec<f32>, std: Vec<f32>) -> Result<Self, StatsError> {
        if std.len() != mean.len() {
            return Err(StatsError::Length { statistic: "std", found: std.len(), expected: mean.len() });
        }
        for (dimension, (&mean, &std)) in mean.iter().zip(&std).enumerate() {
            if !mean.is_finite() {
                return Err(StatsError::Unsound { statistic: "mean", dimension, value: mean.into() });
            }
            if !(std.is_finite() && std >= 0.0) {
                return Err(StatsError::Unsound { statistic: "std", dimension, value: std.into() });
            }
        }
        Ok(Self { mean, std })
    }

    /// Makes a normaliser of exact statistics, rounded as a package stores them.
    pub fn of(stats: &Stats) -> Result<Self, StatsError> {
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
        Self::new(narrow(&stats.mean), narrow(&stats.std))
    }

    /// Number of dimensions.
    pub fn dimensions(&self) -> usize {
        self.mean.len()
    }

    /// Standard deviation of each dimension.
    pub fn std(&self) -> &[f32] {
        &self.std
    }

    /// Normalises rows of `[dimensions]` values in place.
    pub fn normalize(&self, values: &mut [f32]) {
        for row in values.chunks_exact_mut(self.mean.len()) {
            for ((value, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
                *value = (*value - mean) / (std + EPS);
            }
        }
    }

    /// Turns normalised rows of `[dimensions]` values back into raw ones, in place.
    pub fn unnormalize(&self, values: &mut [f32]) {
        for row in values.chunks_exact_mut(self.mean.len()) {
            for ((value, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
                *value = *value * std + mean;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_exact_far_from_zero() {
        // The naive sum of squares loses every digit of this variance, even in f64.
        let values: Vec<f32> = (0..1000).map(|i| 8_388_600.0 + (i % 2) as f32).collect();
        let stats = Stats::of(&values, 1).unwrap();
        assert_eq!((stats.mean[0], stats.std[0]), (8_388_600.5, 0.5));
        assert_eq!((stats.min[0], stats.max[0], stats.count), (8_388_600.0, 8_388_601.0, 1000));
    }

    #[test]
    fn what_is_normalised_comes_back() {
        let values = [1.0_f32, -4.0, 3.0, 10.0, 2.0, 0.5];
        let normalizer = Normalizer::of(&Stats::of(&values, 2).unwrap()).unwrap();
        let mut changed = values;
        normalizer.normalize(&mut changed);
        assert!(changed.chunks(2).map(|row| row[0]).sum::<f32>().abs() < 1e-6);
        normalizer.unnormalize(&mut changed);
        for (value, again) in values.iter().zip(changed) {
            assert!((value - again).abs() < 1e-5);
        }
    }

    #[test]
    fn constant_dimension_does_not_explode() {
        let stats = Stats::of(&[0.5; 10], 1).unwrap().with_std_min(1e-3);
        let normalizer = Normalizer::of(&stats).unwrap();
        let mut near = [0.5005_f32];
        normalizer.normalize(&mut near);
        assert!((near[0] - 0.5).abs() < 1e-3, "{near:?}");
    }

    #[test]
    fn unsound_statistics_are_refused() {
        assert_eq!(Stats::of(&[], 3), Err(StatsError::Empty));
        let nan = Stats::of(&[0.0, 1.0, 2.0, f32::NAN], 2);
        assert!(matches!(nan, Err(StatsError::NotFinite { dimension: 1, step: 1, .. })));
        for (mean, std) in [(f32::NAN, 1.0), (0.0, f32::INFINITY), (0.0, -1.0)] {
            assert!(Normalizer::new(vec![mean], vec![std]).is_err());
        }
        assert!(Normalizer::new(vec![0.0, 0.0], vec![1.0]).is_err());
    }
}
