//! Training learns, resumes to the same bits, and explains what went wrong.

use std::sync::atomic::AtomicBool;

use super::testing::{PointWorld, point_demonstrations};
use super::*;
use crate::eval::{Score, evaluate};
use crate::policy::PolicyConfig;
use crate::policy::mlp::MlpConfig;
use crate::runtime::SkillRuntime;

fn small(steps: u64) -> TrainConfig {
    let policy = MlpConfig { chunk_size: 2, n_action_steps: 1, hidden_dims: vec![32, 32], ..MlpConfig::default() };
    TrainConfig {
        steps,
        batch_size: 32,
        checkpoint_every: 50,
        ema_decay: 0.99,
        observation_noise: 0.01,
        policy: PolicyConfig::Mlp(policy),
        ..TrainConfig::default()
    }
}

fn run(dataset: &Dataset, config: &TrainConfig, folder: Option<&Path>) -> Result<Trained, TrainError> {
    match train(dataset, config, folder, &AtomicBool::new(false), |_| ())? {
        TrainEnd::Finished(trained) => Ok(*trained),
        TrainEnd::Interrupted { step, .. } => panic!("nobody stopped it at step {step}"),
    }
}

/// Stops a run at the first report at or after `step`.
fn run_until(dataset: &Dataset, config: &TrainConfig, folder: &Path, step: u64) -> u64 {
    let stop = AtomicBool::new(false);
    let end = train(dataset, config, Some(folder), &stop, |progress| {
        stop.store(progress.step >= step, Ordering::Relaxed);
    });
    match end.unwrap() {
        TrainEnd::Interrupted { step, checkpoint } => {
            assert!(checkpoint.unwrap().exists());
            step
        }
        TrainEnd::Finished(_) => panic!("it should have been stopped at step {step}"),
    }
}

fn success(skill: &Skill) -> Score {
    let runtime = SkillRuntime::of_skill("point@1".parse().unwrap(), skill).unwrap();
    let mut total = Score::default();
    for task in &skill.tasks {
        // Starts that no demonstration began from.
        let score = evaluate(&runtime, task, &mut PointWorld::new(task), 1000..1050, 60).unwrap();
        total.successes += score.successes;
        total.episodes += score.episodes;
    }
    total
}

#[test]
fn policy_learns_both_tasks_of_a_toy_world_from_demonstrations() {
    let dataset = point_demonstrations(100);
    let hidden_dims = vec![64, 64];
    let policy = MlpConfig { chunk_size: 2, n_action_steps: 1, hidden_dims, ..MlpConfig::default() };
    let config = TrainConfig { batch_size: 64, policy: PolicyConfig::Mlp(policy), ..small(2000) };
    let untrained = run(&dataset, &TrainConfig { steps: 1, optimizer_lr: 1e-12, ..config.clone() }, None).unwrap();
    let trained = run(&dataset, &config, None).unwrap();
    let (before, after) = (success(&untrained.skill), success(&trained.skill));
    assert!(before.rate() < 0.2, "{before:?}");
    assert!(after.rate() >= 0.95, "{after:?}, {:?}", trained.lineage.metrics);
}

#[test]
fn run_that_is_stopped_twice_ends_in_the_same_bits() {
    let dataset = point_demonstrations(4);
    let config = TrainConfig { log_every: 1, ..small(200) };
    let whole = run(&dataset, &config, None).unwrap();

    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run_until(&dataset, &config, folder.path(), 73), 73);
    assert_eq!(run_until(&dataset, &config, folder.path(), 131), 131);
    let resumed = run(&dataset, &config, Some(folder.path())).unwrap();
    assert_eq!(resumed.skill, whole.skill);
    assert_eq!(resumed.lineage.metrics, whole.lineage.metrics);

    // A run that was killed has the last regular checkpoint only: here that of step 150.
    let last = checkpoint::list(folder.path()).unwrap().pop().unwrap();
    std::fs::remove_dir_all(last).unwrap();
    assert_eq!(run(&dataset, &config, Some(folder.path())).unwrap().skill, whole.skill);
}

#[test]
fn two_runs_at_once_do_not_disturb_each_other() {
    let dataset = point_demonstrations(4);
    let alone = run(&dataset, &small(30), None).unwrap();
    let others = [1, 2].map(|seed| TrainConfig { seed, ..small(30) });
    std::thread::scope(|scope| {
        for config in &others {
            scope.spawn(|| run(&dataset, config, None).unwrap());
        }
        assert_eq!(run(&dataset, &small(30), None).unwrap().skill, alone.skill);
    });
    assert_ne!(run(&dataset, &others[0], None).unwrap().skill.weights, alone.skill.weights);
}

#[test]
fn checkpoint_of_another_run_is_refused_by_what_differs() {
    let dataset = point_demonstrations(4);
    let folder = tempfile::tempdir().unwrap();
    run(&dataset, &small(10), Some(folder.path())).unwrap();
    let refused = |dataset: &Dataset, config: &TrainConfig, what: &str| {
        let error = run(dataset, config, Some(folder.path())).unwrap_err();
        let TrainError::Checkpoint(CheckpointError::OtherRun { what: found, .. }) = &error else { panic!("{error:?}") };
        assert_eq!(found, what);
    };
    refused(&dataset, &TrainConfig { seed: 9, ..small(10) }, "seed");
    refused(&point_demonstrations(5), &small(10), "selection of episodes");
    run(&dataset, &TrainConfig { log_every: 3, ..small(10) }, Some(folder.path())).unwrap();
}

#[test]
fn damaged_checkpoint_is_refused_and_the_one_before_goes_on() {
    let dataset = point_demonstrations(4);
    let config = small(100);
    let folder = tempfile::tempdir().unwrap();
    let whole = run(&dataset, &config, Some(folder.path())).unwrap();
    let checkpoints = checkpoint::list(folder.path()).unwrap();
    assert_eq!(checkpoints.len(), 2);
    let state = checkpoints[1].join("training_state.safetensors");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let error = run(&dataset, &config, Some(folder.path())).unwrap_err();
    assert!(matches!(&error, TrainError::Checkpoint(CheckpointError::Damaged { .. })), "{error:?}");
    std::fs::remove_dir_all(&checkpoints[1]).unwrap();
    assert_eq!(run(&dataset, &config, Some(folder.path())).unwrap().skill, whole.skill);
}

#[test]
fn loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint() {
    let dataset = point_demonstrations(4);
    let folder = tempfile::tempdir().unwrap();
    // A rate that throws the weights out of f32's range, but not before the first checkpoint.
    let config = TrainConfig {
        optimizer_lr: 1e30,
        optimizer_weight_decay: 0.0,
        scheduler_warmup_steps: 0,
        checkpoint_every: 1,
        ema_decay: 0.0,
        ..small(50)
    };
    let error = run(&dataset, &config, Some(folder.path())).unwrap_err();
    let TrainError::NotFinite { checkpoint: Some(checkpoint), step, .. } = &error else { panic!("{error:?}") };
    assert!(checkpoint.exists() && *step >= 1, "{error}");
    assert!(error.to_string().contains("optimizer_lr"));
}

#[test]
fn data_that_are_no_numbers_are_refused() {
    let mut dataset = point_demonstrations(2);
    dataset.actions[3] = f32::NAN;
    let error = run(&dataset, &small(5), None).unwrap_err();
    assert!(matches!(&error, TrainError::Data { what: "actions", source: StatsError::NotFinite { .. } }), "{error:?}");
}

#[test]
fn validation_episodes_are_reported_and_not_trained_on() {
    let dataset = point_demonstrations(10);
    let config = TrainConfig { validation_fraction: 0.25, log_every: 100, ..small(100) };
    let mut losses = Vec::new();
    let end = train(&dataset, &config, None, &AtomicBool::new(false), |progress| losses.push(progress.validation_loss));
    let TrainEnd::Finished(trained) = end.unwrap() else { panic!("nobody stopped it") };
    assert_eq!(losses, [trained.lineage.metrics.get("validation_loss").copied()]);
    assert!(losses[0].unwrap() < 1.0);
    let everything = TrainConfig { validation_fraction: 0.99, ..small(10) };
    assert!(matches!(run(&dataset, &everything, None), Err(TrainError::NoTrainingEpisodes { episodes: 20 })));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn device_that_was_not_built_in_is_named_with_the_remedy() {
    let config = TrainConfig { device: TrainDevice::Cuda, ..small(5) };
    let error = run(&point_demonstrations(2), &config, None).unwrap_err();
    assert!(error.to_string().contains("--features cuda"), "{error}");
}
