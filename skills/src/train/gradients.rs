//! Loss and gradients of a batch, shared out over threads.
//!
//! Parameters are plain arrays between the steps, in the order in which burn visits the network's. Every
//! thread differentiates its share of the batch with parameters of its own, and the shares are added in
//! their order: the result depends on the number of shares, never on which thread was faster.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::policy::Network;
use crate::window::Batch;

/// Mean absolute error over the real actions of a batch, and its gradient for every parameter.
pub(super) struct LossAndGradients {
    pub(super) loss: f64,
    pub(super) gradients: Vec<Vec<f32>>,
}

/// Differentiates the loss of `batch` in `shares` parts, in parallel.
pub(super) fn differentiate(network: &Network, batch: Batch, shares: usize, device: &Device) -> LossAndGradients {
    let real_actions = batch.real_actions();
    let mut parts = batch.split(shares).into_iter();
    let first = parts.next().expect("a split has at least one part");
    let share = |part: Batch| differentiate_share(network.clone(), &part, real_actions, device);
    std::thread::scope(|scope| {
        let others: Vec<_> = parts.map(|part| scope.spawn(move || share(part))).collect();
        let mut total = share(first);
        for other in others {
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            total.loss += other.loss;
            for (sum, gradient) in total.gradients.iter_mut().zip(&other.gradients) {
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
            }
        }
        total
    })
}

fn differentiate_share(network: Network, part: &Batch, real_actions: f32, device: &Device) -> LossAndGradients {
    let network = network.train();
    let loss = l1_loss(&network, part, real_actions, &device.clone().autodiff());
    let mut gradients = CollectGradients { gradients: loss.backward(), collected: Vec::new() };
    network.visit(&mut gradients);
    LossAndGradients { loss: loss.into_scalar::<f32>().into(), gradients: gradients.collected }
}

/// The loss of `batch` alone.
pub(super) fn loss_of(network: &Network, batch: &Batch, device: &Device) -> f64 {
    l1_loss(network, batch, batch.real_actions(), device).into_scalar::<f32>().into()
}

/// Sum of the absolute errors of real actions over `real_actions` and the action's dimensions: `[1]`.
fn l1_loss(network: &Network, batch: &Batch, real_actions: f32, device: &Device) -> Tensor<1> {
    let tensor = |values: &[f32]| {
        let data = TensorData::new(values.to_vec(), [batch.size, values.len() / batch.size]);
        Tensor::<2>::from_data(data, device)
    };
    let predicted = network.forward(tensor(&batch.observations), tensor(&batch.tasks));
    let [size, chunk_size, action_dim] = predicted.dims();
    let actions = tensor(&batch.actions).reshape([size, chunk_size, action_dim]);
    let error = (predicted - actions).abs();
    // Most batches have no padding: spare them a pass over the errors, forward and back.
    let padded = batch.weights.contains(&0.0);
    let error = if padded { error * tensor(&batch.weights).unsqueeze_dim::<3>(2) } else { error };
    error.sum() / (real_actions * action_dim as f32)
}

/// The values of every parameter, in the order of visits.
pub(super) fn values_of(network: &Network) -> Vec<Vec<f32>> {
    let mut values = CollectValues(Vec::new());
    network.visit(&mut values);
    values.0
}

/// The network with other values, in the order of visits.
pub(super) fn with_values(network: Network, values: &[Vec<f32>], device: &Device) -> Network {
    network.map(&mut AssignValues { values: values.iter(), device })
}

struct CollectValues(Vec<Vec<f32>>);

impl ModuleVisitor for CollectValues {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(to_vec(param.val()));
    }
}

struct CollectGradients {
    gradients: Gradients,
    collected: Vec<Vec<f32>>,
}

impl ModuleVisitor for CollectGradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let gradient = value.grad_remove(&mut self.gradients);
        self.collected.push(gradient.map_or_else(|| vec![0.0; value.shape().num_elements()], to_vec));
    }
}

struct AssignValues<'a> {
    values: std::slice::Iter<'a, Vec<f32>>,
    device: &'a Device,
}

impl ModuleMapper for AssignValues<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let values = self.values.next().expect("there are values for every parameter").clone();
        param.map(|old| Tensor::from_data(TensorData::new(values, old.shape()), self.device))
    }
}

fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().as_slice::<f32>().expect("networks compute in f32").to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::mlp::MlpConfig;
    use crate::policy::{Parameters, PolicyConfig, PolicyShape};

    fn network_and_batch() -> (Network, Batch) {
        let config = MlpConfig { chunk_size: 2, n_action_steps: 1, hidden_dims: vec![5, 4], ..MlpConfig::default() };
        let shape = PolicyShape { observation_dim: 3, action_dim: 2, task_count: 2 };
        let network = Network::build(&PolicyConfig::Mlp(config), shape, Parameters::Seed(3), &Device::flex()).unwrap();
        let wave = |count: usize, phase: f32| (0..count).map(|i| (i as f32 * 0.7 + phase).sin()).collect();
        let batch = Batch {
            size: 4,
            observations: wave(12, 0.1),
            tasks: vec![1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0],
            actions: wave(16, 1.3),
            weights: vec![1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0],
        };
        (network, batch)
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (network, batch) = network_and_batch();
        let device = Device::flex();
        let values = values_of(&network);
        let analytic = differentiate(&network, batch.clone(), 1, &device);
        assert!((analytic.loss - loss_of(&network, &batch, &device)).abs() < 1e-6);
        // Small enough not to cross a corner of ReLU or |x|, large enough for f32.
        let h = 1e-3_f32;
        for parameter in 0..values.len() {
            for index in (0..values[parameter].len()).step_by(3) {
                let loss_at = |offset: f32| {
                    let mut moved = values.clone();
                    moved[parameter][index] += offset;
                    loss_of(&with_values(network.clone(), &moved, &device), &batch, &device)
                };
                let numeric = (loss_at(h) - loss_at(-h)) / (2.0 * f64::from(h));
                let analytic = f64::from(analytic.gradients[parameter][index]);
                assert!((numeric - analytic).abs() < 1e-3, "parameter {parameter}[{index}]: {analytic} {numeric}");
            }
        }
    }

    #[test]
    fn shares_add_up_to_the_whole_and_padding_does_not_count() {
        let (network, batch) = network_and_batch();
        let device = Device::flex();
        let whole = differentiate(&network, batch.clone(), 1, &device);
        let mut changed = batch.clone();
        // Actions 3 and 7 are padding.
        changed.actions[6..8].fill(100.0);
        let shared = differentiate(&network, changed, 3, &device);
        assert!((whole.loss - shared.loss).abs() < 1e-6);
        for (whole, shared) in whole.gradients.iter().flatten().zip(shared.gradients.iter().flatten()) {
            assert!((whole - shared).abs() < 1e-6);
        }
    }

    #[test]
    fn values_come_back_as_they_were_assigned() {
        let (network, _) = network_and_batch();
        let mut values = values_of(&network);
        values[1][0] = 42.0;
        let changed = with_values(network, &values, &Device::flex());
        assert_eq!(values_of(&changed), values);
    }
}
