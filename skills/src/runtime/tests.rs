//! What a loaded skill answers and what it refuses.

use super::*;
use crate::package::testing::skill;

fn runtime() -> SkillRuntime {
    SkillRuntime::of_skill("toy@3".parse().unwrap(), &skill()).unwrap()
}

const OBSERVATION: [f32; 3] = [0.5, 0.2, 5.1];

#[test]
fn runtime_can_move_to_the_control_thread() {
    fn sendable<T: Send + Sync>() {}
    sendable::<SkillRuntime>();
}

#[test]
fn chunk_has_the_configured_shape_and_keeps_the_limits() {
    let mut wild = skill();
    // Answers far outside of what the arm can do.
    wild.action_stats.std = vec![100.0, 100.0];
    let runtime = SkillRuntime::of_skill("toy@3".parse().unwrap(), &wild).unwrap();
    let chunk = runtime.act(&"pick".parse().unwrap(), &OBSERVATION).unwrap();
    assert_eq!(chunk.actions().len(), 3);
    for action in chunk.actions() {
        assert!(action[0].abs() <= 1.0 && action[1].abs() <= 0.5, "{action:?}");
    }
    assert!(chunk.actions().any(|action| action[1].abs() == 0.5));
}

#[test]
fn task_and_observation_decide_the_answer() {
    let runtime = runtime();
    let answer = |task: &str, observation: &[f32]| runtime.act(&task.parse().unwrap(), observation).unwrap();
    assert_eq!(answer("pick", &OBSERVATION), answer("pick", &OBSERVATION));
    assert_ne!(answer("pick", &OBSERVATION), answer("place", &OBSERVATION));
    assert_ne!(answer("pick", &OBSERVATION), answer("pick", &[0.6, 0.2, 5.1]));
}

#[test]
fn unknown_task_is_named_with_the_known_ones() {
    let error = runtime().act(&"weld".parse().unwrap(), &OBSERVATION).unwrap_err();
    assert_eq!(error.to_string(), "toy@3 does not know task weld; it knows pick, place");
}

#[test]
fn observations_that_are_wrong_give_no_action() {
    let runtime = runtime();
    let task = "pick".parse().unwrap();
    assert!(matches!(runtime.act(&task, &[0.0; 2]), Err(ActError::ObservationDim { found: 2, expected: 3, .. })));
    let nan = runtime.act(&task, &[0.0, f32::NAN, 0.0]);
    assert!(matches!(nan, Err(ActError::ObservationNotFinite { index: 1, .. })));
    // A finite observation that overflows inside the network is caught on the way out.
    let huge = runtime.act(&task, &[f32::MAX, -f32::MAX, f32::MAX]);
    assert!(matches!(huge, Err(ActError::ActionNotFinite { .. })), "{huge:?}");
}

#[test]
fn queue_carries_out_n_action_steps_before_it_looks_again() {
    let runtime = runtime();
    let (pick, place) = ("pick".parse().unwrap(), "place".parse().unwrap());
    let chunk = runtime.act(&pick, &OBSERVATION).unwrap();
    let expected: Vec<&[f32]> = chunk.actions().collect();
    let mut queue = ActionQueue::new();
    assert_eq!(queue.next_action(&runtime, &pick, &OBSERVATION).unwrap(), expected[0]);
    let elsewhere = [9.0; 3];
    assert_eq!(queue.next_action(&runtime, &pick, &elsewhere).unwrap(), expected[1]);
    // The third action of the chunk is never used: n_action_steps is 2.
    let fresh = runtime.act(&pick, &elsewhere).unwrap();
    assert_eq!(queue.next_action(&runtime, &pick, &elsewhere).unwrap(), fresh.actions().next().unwrap());
    let placed = runtime.act(&place, &OBSERVATION).unwrap();
    assert_eq!(queue.next_action(&runtime, &place, &OBSERVATION).unwrap(), placed.actions().next().unwrap());
    queue.reset();
    let again = runtime.act(&place, &elsewhere).unwrap();
    assert_eq!(queue.next_action(&runtime, &place, &elsewhere).unwrap(), again.actions().next().unwrap());
}
