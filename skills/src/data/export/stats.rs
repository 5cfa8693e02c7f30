//! Statistics as LeRobot lists them: exact, over one episode or over all.

use serde_json::{Value, json};

use super::tables::Values;

/// LeRobot's quantiles and their names.
pub(super) const QUANTILES: [(&str, f64); 5] =
    [("q01", 0.01), ("q10", 0.10), ("q50", 0.50), ("q90", 0.90), ("q99", 0.99)];

/// Statistics of one column, each list with a number for every value of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Statistics {
    pub(super) min: Vec<f64>,
    pub(super) max: Vec<f64>,
    pub(super) mean: Vec<f64>,
    /// Of the population, as NumPy's.
    pub(super) std: Vec<f64>,
    /// Steps.
    pub(super) count: u64,
    /// For each of [`QUANTILES`].
    pub(super) quantiles: Vec<Vec<f64>>,
}

impl Statistics {
    /// Over `values`, `width` of them a step.
    pub(super) fn of(values: &Values, width: usize) -> Self {
        let count = values.len() / width;
        let mut statistics = Self {
            min: Vec::with_capacity(width),
            max: Vec::with_capacity(width),
            mean: Vec::with_capacity(width),
            std: Vec::with_capacity(width),
            count: count as u64,
            quantiles: vec![Vec::with_capacity(width); QUANTILES.len()],
        };
        let mut sorted = Vec::with_capacity(count);
        for dim in 0..width {
            sorted.clear();
            sorted.extend((0..count).map(|step| values.get(step * width + dim)));
            let (mean, std) = welford(&sorted);
            sorted.sort_unstable_by(f64::total_cmp);
            statistics.min.push(sorted.first().copied().unwrap_or(0.0));
            statistics.max.push(sorted.last().copied().unwrap_or(0.0));
            statistics.mean.push(mean);
            statistics.std.push(std);
            for (list, (_, quantile)) in statistics.quantiles.iter_mut().zip(QUANTILES) {
                list.push(interpolate(&sorted, quantile));
            }
        }
        statistics
    }

    /// As in `meta/stats.json`; `values` says whether least and greatest are numbers, integers or truth values.
    pub(super) fn json(&self, values: &Values) -> Value {
        let bounds = |list: &[f64]| -> Value {
            match values {
                Values::F32(_) | Values::F64(_) => json!(list),
                Values::I64(_) => list.iter().map(|&value| value as i64).collect(),
                Values::Bool(_) => list.iter().map(|&value| value != 0.0).collect(),
            }
        };
        let mut object = json!({
            "min": bounds(&self.min), "max": bounds(&self.max),
            "mean": self.mean, "std": self.std, "count": [self.count],
        });
        for ((name, _), list) in QUANTILES.iter().zip(&self.quantiles) {
            object[*name] = json!(list);
        }
        object
    }
}

/// Mean and standard deviation in one pass without cancellation (Welford 1962).
fn welford(values: &[f64]) -> (f64, f64) {
    let (mut mean, mut squares) = (0.0, 0.0);
    for (i, &value) in values.iter().enumerate() {
        let delta = value - mean;
        mean += delta / (i + 1) as f64;
        squares += delta * (value - mean);
    }
    (mean, (squares / values.len().max(1) as f64).sqrt())
}

/// The quantile of sorted values, between neighbours in proportion, as NumPy's default.
fn interpolate(sorted: &[f64], quantile: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = quantile * last as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_numpys() {
        // numpy: x = [[1, 10], [2, 20], [4, 40], [8, 80]], std of the population, quantiles by linear interpolation.
        let values = Values::F32(vec![1.0, 10.0, 2.0, 20.0, 4.0, 40.0, 8.0, 80.0]);
        let statistics = Statistics::of(&values, 2);
        assert_eq!((&statistics.min[..], &statistics.max[..]), (&[1.0, 10.0][..], &[8.0, 80.0][..]));
        assert_eq!(statistics.mean, [3.75, 37.5]);
        assert!((statistics.std[0] - 2.680_951_323_690_902).abs() < 1e-12);
        assert_eq!(statistics.quantiles[2], [3.0, 30.0]);
        assert!((statistics.quantiles[4][0] - 7.88).abs() < 1e-12);
        assert_eq!(statistics.count, 4);
    }

    #[test]
    fn a_large_offset_does_not_cancel() {
        let values = Values::F64(vec![1e9, 1e9 + 1.0, 1e9 + 2.0]);
        let statistics = Statistics::of(&values, 1);
        assert!((statistics.std[0] - (2.0_f64 / 3.0).sqrt()).abs() < 1e-9, "{statistics:?}");
    }

    #[test]
    fn truth_values_stay_truth_values() {
        let values = Values::Bool(vec![false, true]);
        let json = Statistics::of(&values, 1).json(&values);
        assert_eq!((&json["min"], &json["max"], &json["mean"]), (&json!([false]), &json!([true]), &json!([0.5])));
    }
}
