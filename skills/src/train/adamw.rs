//! AdamW and the moving average of the weights, in one pass over plain arrays.
//!
//! "Decoupled Weight Decay Regularization" (Loshchilov and Hutter, 2019, arXiv:1711.05101), with PyTorch's
//! defaults. Fused, because a tensor operation for each term would read and write every parameter a dozen
//! times. The arrays lie in main memory also when a GPU computes the gradients.

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPS: f64 = 1e-8;

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

    /// Moves every parameter against `scale` times its gradient, on `threads` threads.
    ///
    /// Each value depends on its own history alone, so the result does not depend on the threads.
    pub(super) fn apply(&mut self, how: &AdamWStep, gradients: &[Vec<f32>], scale: f32, threads: usize) {
        let update = Update::of(how, scale);
        let mut shares: Vec<Vec<Part<'_>>> = (0..threads).map(|_| Vec::new()).collect();
        let mut ema = self.ema.iter_mut();
        let moments = self.exp_avg.iter_mut().zip(&mut self.exp_avg_sq);
        for ((values, (exp_avg, exp_avg_sq)), gradients) in self.values.iter_mut().zip(moments).zip(gradients) {
            let len = values.len().div_ceil(threads);
            let mut averages = ema.next().map(|averages| averages.chunks_mut(len));
            let moments = exp_avg.chunks_mut(len).zip(exp_avg_sq.chunks_mut(len));
            let chunks = values.chunks_mut(len).zip(moments).zip(gradients.chunks(len));
            for (share, ((values, (exp_avg, exp_avg_sq)), gradients)) in shares.iter_mut().zip(chunks) {
                let ema = averages.as_mut().and_then(Iterator::next).unwrap_or_default();
                share.push(Part { values, exp_avg, exp_avg_sq, ema, gradients });
            }
        }
        std::thread::scope(|scope| {
            let mut shares = shares.into_iter();
            let first = shares.next();
            for share in shares {
                scope.spawn(move || share.into_iter().for_each(|part| update.apply(part)));
            }
            first.into_iter().flatten().for_each(|part| update.apply(part));
        });
    }
}

/// The same stretch of every array.
struct Part<'a> {
    values: &'a mut [f32],
    exp_avg: &'a mut [f32],
    exp_avg_sq: &'a mut [f32],
    /// Empty where none is kept.
    ema: &'a mut [f32],
    gradients: &'a [f32],
}

/// The numbers of one step.
#[derive(Clone, Copy)]
struct Update {
    scale: f32,
    /// What weight decay leaves of a value.
    keep: f32,
    step_size: f32,
    eps: f32,
    ema_rate: f32,
}

impl Update {
    fn of(how: &AdamWStep, scale: f32) -> Self {
        let time = (how.step + 1) as f64;
        let correction_1 = 1.0 - f64::from(BETA_1).powf(time);
        let correction_2 = (1.0 - f64::from(BETA_2).powf(time)).sqrt();
        // Early weights are far from the later ones: they shall be forgotten sooner.
        let ema_decay = how.ema_decay.min((1.0 + time) / (10.0 + time));
        Self {
            scale,
            keep: (1.0 - how.lr * how.weight_decay) as f32,
            // Both corrections are moved out of the loop: one root and one division a value remain.
            step_size: (how.lr * correction_2 / correction_1) as f32,
            eps: (EPS * correction_2) as f32,
            ema_rate: (1.0 - ema_decay) as f32,
        }
    }

    fn apply(self, part: Part<'_>) {
        let moments = part.exp_avg.iter_mut().zip(part.exp_avg_sq);
        for ((value, (m, v)), gradient) in part.values.iter_mut().zip(moments).zip(part.gradients) {
            let gradient = gradient * self.scale;
            *m += (1.0 - BETA_1) * (gradient - *m);
            *v = BETA_2 * *v + (1.0 - BETA_2) * gradient * gradient;
            *value = *value * self.keep - self.step_size * *m / (v.sqrt() + self.eps);
        }
        for (average, value) in part.ema.iter_mut().zip(part.values) {
            *average += self.ema_rate * (*value - *average);
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
            optimized.apply(&how, &[gradients.to_vec()], 1.0, 2);
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
