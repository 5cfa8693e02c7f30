//! What the cells, experts and rollouts promise: the same bits everywhere, real contact, experts that succeed.

#![expect(clippy::unwrap_used, reason = "a failed helper fails its test")]

use std::collections::HashSet;

use zunft_sim::{
    Cell, Purpose, Range, StepError, Task, expert,
    observation::{Action, Observation, Senses},
    rollout,
    start::{RangeError, Scene, Start},
};

fn first_start(task: Task) -> Start {
    Range::whole(task).start(7, Purpose::HeldOut, 0)
}

fn expert_pilot(task: Task) -> impl FnMut(&[f32]) -> Action {
    move |observation| expert::act(task, observation.try_into().unwrap())
}

/// FNV-1a over the bits of every observation and reward of an expert's bumped episode.
fn trajectory_hash(task: Task) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |number: f32| {
        for byte in number.to_bits().to_le_bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    rollout::demonstrate(&first_start(task), |step| {
        step.observation.iter().chain(&step.action).for_each(|&number| eat(number));
        eat(step.reward);
    })
    .unwrap();
    hash
}

fn object_position(observation: &Observation) -> [f32; 3] {
    let senses = Senses::from(observation);
    std::array::from_fn(|axis| senses.position[axis] + senses.object[axis])
}

fn flat_distance(left: [f32; 3], right: [f32; 3]) -> f32 {
    ((left[0] - right[0]).powi(2) + (left[1] - right[1]).powi(2)).sqrt()
}

/// A pick-and-place cell in which the expert has just lifted the object well off the table.
fn cell_with_lifted_object() -> Cell {
    let mut cell = Cell::new(&first_start(Task::PickPlace));
    while object_position(cell.observation())[2] < 0.07 {
        let action = expert::act(Task::PickPlace, cell.observation());
        assert_eq!(cell.step(&action).unwrap().end, None, "the episode ended before the object was lifted");
    }
    cell
}

#[test]
fn same_start_and_actions_give_the_same_bits() {
    for task in Task::ALL {
        assert_eq!(trajectory_hash(task), trajectory_hash(task), "{task}");
    }
}

/// A change of physics, starts or experts changes these; then measure the experts' rates again before pinning anew.
#[test]
fn trajectories_are_those_that_were_measured() {
    let hashes = Task::ALL.map(trajectory_hash);
    let pinned = [0xfee4_2a64_4349_19de, 0x6f43_df79_f298_2929, 0x4ce2_dc1e_3906_c7f4];
    assert_eq!(hashes, pinned, "found {hashes:#018x?}");
}

#[test]
fn experts_succeed_on_98_percent_of_the_whole_range() {
    const EPISODES: u32 = 200;
    for task in Task::ALL {
        let successes = rollout::held_out_starts(task, 20, EPISODES)
            .filter(|start| rollout::rollout(start, expert_pilot(task)).unwrap().end.success())
            .count();
        assert!(successes as f32 >= 0.98 * EPISODES as f32, "{task}: {successes} of {EPISODES}");
    }
}

#[test]
fn bumped_demonstrations_still_succeed() {
    const EPISODES: u32 = 60;
    for task in Task::ALL {
        let successes = (0..EPISODES)
            .map(|index| Range::whole(task).start(3, Purpose::Demonstration { robot: 0 }, index))
            .filter(|start| rollout::demonstrate(start, |_| {}).unwrap().end.success())
            .count();
        assert!(successes as f32 >= 0.95 * EPISODES as f32, "{task}: {successes} of {EPISODES}");
    }
}

#[test]
fn doing_nothing_runs_into_the_step_limit() {
    for task in Task::ALL {
        let run = rollout::rollout(&first_start(task), |_| [0.0; 4]).unwrap();
        assert!(!run.end.success() && !run.end.terminated(), "{task} {}", run.end);
        assert!(run.reward.abs() < 0.05, "{task} was rewarded {}", run.reward);
    }
}

#[test]
fn rewards_of_a_success_add_up_to_about_one() {
    for task in Task::ALL {
        let run = rollout::rollout(&first_start(task), expert_pilot(task)).unwrap();
        assert!(run.end.success() && run.end.terminated());
        assert!((0.7..=1.05).contains(&run.reward), "{task} was rewarded {}", run.reward);
    }
}

#[test]
fn sectors_partition_the_range() {
    for task in Task::ALL {
        for robots in [1, 2, 3, 7, 8, 10] {
            let sectors: Vec<_> = (0..robots).map(|robot| Range::sector(task, robot, robots).unwrap()).collect();
            for index in 0..200 {
                let start = Range::whole(task).start(5, Purpose::HeldOut, index);
                assert_eq!(sectors.iter().filter(|sector| sector.contains(&start)).count(), 1);
            }
            for (robot, sector) in (0..robots).zip(&sectors) {
                let start = sector.start(5, Purpose::Demonstration { robot }, 0);
                assert!(sector.contains(&start) && Range::whole(task).contains(&start));
            }
        }
    }
}

#[test]
fn held_out_starts_are_never_demonstrated_or_practised() {
    let range = Range::whole(Task::Push);
    let mut seen = HashSet::new();
    for index in 0..300 {
        for purpose in [
            Purpose::HeldOut,
            Purpose::Demonstration { robot: 0 },
            Purpose::Demonstration { robot: 1 },
            Purpose::Practice { robot: 0 },
        ] {
            assert!(seen.insert(range.start(11, purpose, index).noise_seed), "{purpose:?} {index}");
        }
    }
}

#[test]
fn object_stays_where_it_is_until_it_is_touched() {
    let mut cell = Cell::new(&first_start(Task::Push));
    let before = object_position(cell.observation());
    for step in 0..100 {
        let sideways = if step % 40 < 20 { 0.2 } else { -0.2 };
        cell.step(&[sideways, -sideways, 0.0, 0.0]).unwrap();
    }
    let moved = flat_distance(object_position(cell.observation()), before);
    assert!(moved < 0.000_5, "moved {moved} m without contact");
}

#[test]
fn grip_holds_by_friction_and_opening_drops_the_object() {
    let mut cell = cell_with_lifted_object();
    let held = object_position(cell.observation());
    for step in 0..40 {
        let sideways = if step % 20 < 10 { 0.1 } else { -0.1 };
        cell.step(&[sideways, sideways, 0.0, 0.0]).unwrap();
    }
    let slipped = held[2] - object_position(cell.observation())[2];
    assert!(slipped.abs() < 0.01, "the object slipped by {slipped} m");
    for _ in 0..20 {
        cell.step(&[0.0, 0.0, 0.0, 1.0]).unwrap();
    }
    let height = object_position(cell.observation())[2];
    assert!(height < 0.03, "the object hangs in the air at {height} m");
}

#[test]
fn gripper_that_never_closes_lifts_nothing() {
    let run = rollout::rollout(&first_start(Task::PickPlace), |observation| {
        let [x, y, z, _] = expert::act(Task::PickPlace, observation.try_into().unwrap());
        [x, y, z, 1.0]
    });
    assert!(!run.unwrap().end.success());
}

#[test]
fn welding_too_fast_or_beside_the_seam_fails() {
    let start = first_start(Task::WeldSeam);
    let weld = |change: fn(&mut Senses)| {
        rollout::rollout(&start, |observation| {
            let mut senses = Senses::from(&Observation::try_from(observation).unwrap());
            change(&mut senses);
            expert::act(Task::WeldSeam, &senses.into())
        })
        .unwrap()
        .end
    };
    assert!(weld(|_| {}).success());
    assert!(!weld(|senses| senses.tangent = senses.tangent.map(|part| part * 1.5)).success());
    assert!(!weld(|senses| senses.seam[2] += 0.006).success());
}

#[test]
fn bad_actions_are_refused_and_change_nothing() {
    let mut cell = Cell::new(&first_start(Task::Push));
    let before = *cell.observation();
    assert_eq!(cell.step(&[0.0; 3]), Err(StepError::Length { found: 3 }));
    let error = cell.step(&[0.0, f32::INFINITY, 0.0, 0.0]).unwrap_err();
    assert_eq!(error.to_string(), "number 1 of the action is inf: send finite numbers only");
    assert!(matches!(cell.step(&[0.0, 0.0, f32::NAN, 0.0]), Err(StepError::NotFinite { index: 2, .. })));
    assert_eq!(*cell.observation(), before);
}

#[test]
fn finished_episode_refuses_further_steps() {
    let mut cell = Cell::new(&first_start(Task::WeldSeam));
    while cell.step(&[0.0; 4]).unwrap().end.is_none() {}
    assert!(matches!(cell.step(&[0.0; 4]), Err(StepError::Over { .. })));
}

#[test]
fn commands_beyond_the_limits_are_clipped() {
    let start = first_start(Task::Push);
    let after = |action: &[f32]| {
        let mut cell = Cell::new(&start);
        cell.step(action).unwrap().observation
    };
    assert_eq!(after(&[9.0, -9.0, 0.0, 7.0]), after(&[0.2, -0.2, 0.0, 1.0]));
}

#[test]
fn impossible_divisions_are_refused_by_name() {
    assert_eq!(Range::sector(Task::Push, 0, 0), Err(RangeError::Robots { robots: 0 }));
    let error = Range::sector(Task::Push, 8, 8).unwrap_err();
    assert_eq!(error.to_string(), "there is no robot 8 among 8: give 0 to 7");
}

#[test]
fn scene_fits_the_task() {
    for task in Task::ALL {
        let start = first_start(task);
        assert_eq!(start.task(), task);
        assert_eq!(matches!(start.scene, Scene::WeldSeam(_)), task == Task::WeldSeam);
    }
}
