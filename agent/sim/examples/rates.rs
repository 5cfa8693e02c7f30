//! Prints, for each task, how often the expert succeeds, how many steps it takes, and the time of a control step.

use std::time::Instant;

use zunft_sim::{Task, expert, rollout};

const EPISODES: u32 = 400;

#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement for people")]
fn main() -> Result<(), zunft_sim::StepError> {
    println!("{:<12}{:>9}{:>7}{:>7}{:>10}", "task", "success", "steps", "most", "us/step");
    for task in Task::ALL {
        let begin = Instant::now();
        let (mut successes, mut steps, mut most) = (0, 0, 0);
        for start in rollout::held_out_starts(task, 1, EPISODES) {
            let run = rollout::rollout(&start, |observation| {
                expert::act(task, observation.try_into().expect("a cell's observation has its own length"))
            })?;
            successes += u32::from(run.end.success());
            steps += run.steps;
            most = most.max(run.steps);
        }
        let micros = begin.elapsed().as_secs_f64() * 1e6 / f64::from(steps);
        let rate = 100.0 * f64::from(successes) / f64::from(EPISODES);
        println!("{:<12}{rate:>8.1}%{:>7}{most:>7}{micros:>10.1}", task.name(), steps / EPISODES);
    }
    Ok(())
}
