//! What the demo measured: the table at its end, the same as JSON, and whether it is as it must be.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use zunft_sim::Task;

use crate::exit::{ExitCode, Failure};
use crate::output::{bytes, count, table};

/// Everything that the demo reports.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) seed: u64,
    pub(super) robots: u16,
    /// Held-out starts of each task behind every success figure.
    pub(super) held_out_starts_per_task: u32,
    /// By the tasks' names.
    pub(super) tasks: BTreeMap<&'static str, TaskFigures>,
    /// Episodes that agents confirmed to have on disk.
    pub(super) episodes_recorded: u64,
    /// Those of them that the hub holds.
    pub(super) episodes_durable: u64,
    pub(super) episodes_lost: u64,
    /// Further episodes on the hub: cut off when a process was killed, and kept as far as they went.
    pub(super) episodes_cut_off: u64,
    pub(super) bytes_uploaded: u64,
    /// From the last demonstration to the first release active on every robot.
    pub(super) seconds_last_episode_to_active_on_all: f64,
    /// Of every action asked for through an agent's socket, there and back.
    pub(super) act_latency_ms_p50: f64,
    pub(super) act_latency_ms_p99: f64,
    pub(super) robots_on_second_release: u16,
    /// Processes that died and were started again.
    pub(super) restarts: u64,
    pub(super) seconds: f64,
    #[serde(skip)]
    pub(super) act_latencies: Vec<Duration>,
}

/// Shares of held-out starts in which one task was done.
#[derive(Debug, Default, Serialize)]
pub(super) struct TaskFigures {
    /// Mean over robots of what each one's own skill reaches over the whole range.
    pub(super) success_alone: f64,
    pub(super) success_fleet: f64,
    pub(super) success_second_release: f64,
    pub(super) success_expert: f64,
}

impl Figures {
    pub(super) fn new(seed: u64, robots: u16, starts: u32) -> Self {
        Self {
            seed,
            robots,
            held_out_starts_per_task: starts,
            tasks: Task::ALL.iter().map(|task| (task.name(), TaskFigures::default())).collect(),
            episodes_recorded: 0,
            episodes_durable: 0,
            episodes_lost: 0,
            episodes_cut_off: 0,
            bytes_uploaded: 0,
            seconds_last_episode_to_active_on_all: 0.0,
            act_latency_ms_p50: 0.0,
            act_latency_ms_p99: 0.0,
            robots_on_second_release: 0,
            restarts: 0,
            seconds: 0.0,
            act_latencies: Vec::new(),
        }
    }

    pub(super) fn of(&mut self, task: Task) -> &mut TaskFigures {
        self.tasks.entry(task.name()).or_default()
    }

    /// A figure's mean over the tasks, for a sentence.
    pub(super) fn mean(&self, figure: impl Fn(&TaskFigures) -> f64) -> String {
        let sum: f64 = self.tasks.values().map(figure).sum();
        percent(sum / self.tasks.len() as f64)
    }

    /// Fixes the percentiles.
    pub(super) fn sum_up(&mut self, seconds: f64) {
        self.act_latencies.sort_unstable();
        self.act_latency_ms_p50 = percentile_ms(&self.act_latencies, 0.50);
        self.act_latency_ms_p99 = percentile_ms(&self.act_latencies, 0.99);
        self.seconds = seconds;
    }

    /// The table, and what lies around it.
    pub(super) fn text(&self, kept: Option<&Path>) -> String {
        let rows: Vec<Vec<String>> = Task::ALL
            .iter()
            .filter_map(|task| self.tasks.get(task.name()).map(|figures| (task, figures)))
            .map(|(task, figures)| {
                let figures = [
                    figures.success_alone,
                    figures.success_fleet,
                    figures.success_second_release,
                    figures.success_expert,
                ];
                std::iter::once(task.name().to_owned()).chain(figures.map(percent)).collect()
            })
            .collect();
        let titles = ["success on held-out starts", "one robot alone", "fleet", "2nd release", "expert"];
        let mut text = format!("\n{}\n", table(&titles, 1, &rows));
        let rows = [
            ("episodes", self.episodes_text()),
            ("uploaded", bytes(self.bytes_uploaded)),
            (
                "from last demonstration to skill active on every robot",
                format!("{:.1} s", self.seconds_last_episode_to_active_on_all),
            ),
            (
                "an action through the agent's socket, p50 and p99",
                format!("{:.2} ms, {:.2} ms", self.act_latency_ms_p50, self.act_latency_ms_p99),
            ),
            ("robots on the second release", format!("{} of {}", self.robots_on_second_release, self.robots)),
            ("the whole demo", format!("{:.0} s", self.seconds)),
        ];
        for (name, value) in rows {
            text.push_str(&format!("{name:<56}{value}\n"));
        }
        text.push_str(&match kept {
            Some(path) => {
                format!(
                    "\nEverything is in {0}. Run that hub again: zunft hub serve --config {0}/hub.toml\n",
                    path.display()
                )
            }
            None => "\nNext: your own hub with `zunft hub init`, or your own data with `zunft data import --help`.\n"
                .to_owned(),
        });
        text
    }

    fn episodes_text(&self) -> String {
        let mut text = format!(
            "{} recorded, {} durable, {} lost",
            self.episodes_recorded, self.episodes_durable, self.episodes_lost
        );
        if self.episodes_cut_off > 0 {
            text.push_str(&format!(", {} cut off and kept", self.episodes_cut_off));
        }
        if self.restarts > 0 {
            text.push_str(&format!(" ({})", count(self.restarts, "restart")));
        }
        text
    }

    /// Fails when the demo did not keep what it promises.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let error = if self.episodes_lost > 0 {
            format!(
                "{} lost; run again with --keep DIR and report it with the logs",
                count(self.episodes_lost, "episode")
            )
        } else if self.robots_on_second_release < self.robots {
            format!(
                "the second release is active on {} of {} robots; run again with --keep DIR and read the agents' logs",
                self.robots_on_second_release, self.robots
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(ExitCode::Failed, error))
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The smallest latency that so many of all are not above, in milliseconds; `sorted` upwards.
fn percentile_ms(sorted: &[Duration], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(index.max(1) - 1).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let latencies: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!((percentile_ms(&latencies, 0.50), percentile_ms(&latencies, 0.99)), (50.0, 99.0));
        assert_eq!((percentile_ms(&latencies[..1], 0.99), percentile_ms(&[], 0.5)), (1.0, 0.0));
    }

    #[test]
    fn json_has_the_promised_keys() {
        let json = serde_json::to_value(Figures::new(1, 8, 50)).unwrap();
        for key in [
            "robots",
            "episodes_recorded",
            "episodes_durable",
            "episodes_lost",
            "bytes_uploaded",
            "seconds_last_episode_to_active_on_all",
            "act_latency_ms_p50",
            "act_latency_ms_p99",
            "held_out_starts_per_task",
            "robots_on_second_release",
            "seed",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for task in Task::ALL {
            for figure in ["success_alone", "success_fleet", "success_second_release", "success_expert"] {
                assert!(json["tasks"][task.name()][figure].is_number(), "{task} {figure}");
            }
        }
    }

    #[test]
    fn lost_episodes_and_stragglers_fail_the_demo() {
        let mut figures = Figures::new(1, 8, 50);
        figures.robots_on_second_release = 8;
        assert!(figures.verdict().is_ok());
        figures.episodes_lost = 1;
        assert!(figures.verdict().is_err());
        figures.episodes_lost = 0;
        figures.robots_on_second_release = 7;
        assert!(figures.verdict().is_err());
    }
}
