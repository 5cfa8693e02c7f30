//! AdamW and the moving average of the weights, in one pass over plain arrays.
//!
//! "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019, arXiv:1711.05101), with PyTorch's
//! defaults. Fused, because a tensor operation for each term would read and write every parameter a dozen
//! times. The arrays lie in main memory also when a GPU computes the gradients.

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPS: f32 = 1e-8;

/// Parameters with what the optimiser remembers of each: all that a run needs to go on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Optimized {
    /// Values of each parameter, in the order of the network's.
    pub(super) values: Vec<Vec<f32>>,
    /// Moving average of the gradients.
    pub(super) exp_avg: Vec<Vec<f32>>,
    /// Moving average of their squares.
    pub(super) exp_avg_sq: Vec<Vec<f32>>,
    /// Moving average of the values, where one is kept.
    pub(super) ema: Vec<Vec<f32>>,
}

/// How one step is made.
pub(super) struct AdamWStep {
    /// Steps made before this one.
    pub(super) step: u64,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    /// 0: no moving average.
    pub(super) ema_decay: f64,
}

impl Optimized {
    /// Begins with these values and nothing to remember.
    pub(super) fn new(values: Vec<Vec<f32>>, with_ema: bool) -> Self {
        let zeros: Vec<Vec<f32>> = values.iter().map(|values| vec![0.0; values.len()]).collect();
        let ema = if with_ema { values.clone() } else { Vec::new() };
        Self { values, exp_avg: zeros.clone(), exp_avg_sq: zeros, ema }
    }

    /// The values that become the skill.
    pub(super) fn released(&self) -> &[Vec<f32>] {
        if self.ema.is_empty() { &self.values } else { &self.ema }
    }

    /// Moves every parameter against `scale` times its gradient.
    pub(super) fn apply(&mut self, how: &AdamWStep, gradients: &[Vec<f32>], scale: f32) {
        let time = (how.step + 1) as f64;
        let correction_1 = 1.0 - f64::from(BETA_1).powf(time);
        let correction_2 = 1.0 - f64::from(BETA_2).powf(time);
        let step_size = (how.lr / correction_1) as f32;
        let sqrt_correction_2 = correction_2.sqrt() as f32;
        let keep = (1.0 - how.lr * how.weight_decay) as f32;
        for (i, gradients) in gradients.iter().enumerate() {
            let moments = self.exp_avg[i].iter_mut().zip(&mut self.exp_avg_sq[i]);
            for ((value, (m, v)), gradient) in self.values[i].iter_mut().zip(moments).zip(gradients) {
                let gradient = gradient * scale;
                *m += (1.0 - BETA_1) * (gradient - *m);
                *v = BETA_2 * *v + (1.0 - BETA_2) * gradient * gradient;
                let denominator = v.sqrt() / sqrt_correction_2 + EPS;
                *value = *value * keep - step_size * *m / denominator;
            }
        }
        if how.ema_decay > 0.0 {
            // Early weights are far from the later ones: they shall be forgotten sooner.
            let decay = how.ema_decay.min((1.0 + time) / (10.0 + time)) as f32;
            for (averages, values) in self.ema.iter_mut().zip(&self.values) {
                for (average, value) in averages.iter_mut().zip(values) {
                    *average += (1.0 - decay) * (value - *average);
                }
            }
        }
    }
}

/// L2 norm over all gradients.
pub(super) fn norm(gradients: &[Vec<f32>]) -> f64 {
    let squares = |values: &Vec<f32>| {
        // Blocks keep the sum in f32 lanes without losing small terms to large sums.
        values.chunks(1024).map(|block| f64::from(block.iter().map(|g| g * g).sum::<f32>())).sum::<f64>()
    };
    gradients.iter().map(squares).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_pytorch() {
        // torch.optim.AdamW([1.0, -2.0], lr=0.1, weight_decay=0.01), gradients 0.5, -1.0 then 0.25, 3.0.
        let mut optimized = Optimized::new(vec![vec![1.0, -2.0]], true);
        for (step, gradients) in [[0.5, -1.0], [0.25, 3.0]].into_iter().enumerate() {
            let how = AdamWStep { step: step as u64, lr: 0.1, weight_decay: 0.01, ema_decay: 0.9 };
            optimized.apply(&how, &[gradients.to_vec()], 1.0);
        }
        let expected = reference();
        for (value, expected) in optimized.values[0].iter().zip(expected) {
            assert!((f64::from(*value) - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!(optimized.ema[0][0] > optimized.values[0][0] && optimized.ema[0][0] < 1.0);
    }

    /// PyTorch's update, written as its documentation does, in f64.
    fn reference() -> [f64; 2] {
        let mut values = [1.0, -2.0];
        let (mut m, mut v) = ([0.0; 2], [0.0; 2]);
        for (time, gradients) in [(1, [0.5, -1.0]), (2, [0.25, 3.0])] {
            for i in 0..2 {
                let g: f64 = gradients[i];
                values[i] -= 0.1 * 0.01 * values[i];
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let m_hat = m[i] / (1.0 - 0.9_f64.powi(time));
                let v_hat: f64 = v[i] / (1.0 - 0.999_f64.powi(time));
                values[i] -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        values
    }

    #[test]
    fn norm_is_over_all_parameters() {
        assert!((norm(&[vec![3.0], vec![0.0, 4.0]]) - 5.0).abs() < 1e-12);
    }
}
