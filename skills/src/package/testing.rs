//! A small skill with weights of a seed, for tests.

use burn::tensor::Device;
use serde_json::json;
use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};
use zunft_protocol::release::Lineage;

use super::{ReleaseInfo, Skill, policy_shape};
use crate::normalizer::Stats;
use crate::policy::mlp::MlpConfig;
use crate::policy::{Network, Parameters, PolicyConfig};
use crate::weights::WeightDtype;

/// A body with three observed values in two features, one that no policy reads, and two commands.
pub(crate) fn embodiment() -> Embodiment {
    let mut action = Feature::vector(ACTION, 2);
    action.min = vec![-1.0, -0.5];
    action.max = vec![1.0, 0.5];
    let mut camera = Feature::vector("observation.images.top", 12);
    camera.dtype = zunft_protocol::embodiment::Dtype::U8;
    let features = vec![
        Feature::vector(OBSERVATION_STATE, 2),
        camera,
        action,
        Feature::vector("observation.environment_state", 1),
    ];
    Embodiment { name: "toy".into(), rate_hz: 10.0, features }
}

/// A skill for [`embodiment`] with two tasks.
pub(crate) fn skill() -> Skill {
    let policy = PolicyConfig::Mlp(MlpConfig {
        chunk_size: 3,
        n_action_steps: 2,
        hidden_dims: vec![16, 8],
        ..MlpConfig::default()
    });
    let embodiment = embodiment();
    let (shape, _action) = policy_shape(&embodiment, 2).unwrap();
    let network = Network::build(&policy, shape, Parameters::Seed(1), &Device::flex()).unwrap();
    Skill {
        policy,
        embodiment,
        tasks: vec!["pick".parse().unwrap(), "place".parse().unwrap()],
        weights: network.weights(),
        observation_stats: Stats::of(&[0.0, 1.0, 5.0, 2.0, -1.0, 6.0], 3).unwrap(),
        action_stats: Stats::of(&[-0.4, 0.1, 0.4, 0.2], 2).unwrap(),
        golden_inputs: vec![(0, vec![0.5, 0.0, 5.5]), (1, vec![1.5, 0.3, 5.0])],
    }
}

/// `toy@3`.
pub(crate) fn info() -> ReleaseInfo {
    ReleaseInfo {
        tenant: "acme".parse().unwrap(),
        release: "toy@3".parse().unwrap(),
        dtype: WeightDtype::Bf16,
        lineage: Lineage {
            snapshot: None,
            config: json!({ "steps": 1 }),
            seed: 1,
            code_version: "0.1.0".into(),
            metrics: [("train_loss".to_owned(), 0.25)].into(),
            train_secs: 1.5,
        },
        licence: "Apache-2.0".into(),
    }
}
