//! The stages of the demo: what robots, hub and trainer do, and what is counted of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::json;
use zunft_protocol::ids::EpisodeId;
use zunft_sim::rollout::held_out_starts;
use zunft_sim::{Pilot, Purpose, Range, Start, Task};
use zunft_skills::eval::Score;
use zunft_skills::runtime::SkillRuntime;

use super::figures::Figures;
use super::fleet::Fleet;
use super::robots::{self, DemoRobot};
use super::story::Story;
use super::{DemoArgs, SKILL};
use crate::api::{EpisodeView, RobotView, RunView, SnapshotView};
use crate::exit::{ExitCode, Failure, OrFail as _};
use crate::{interrupt, package_transfer, rollout};

/// Without progress for so long, an upload or an installation counts as stuck.
const IDLE_SECS_MAX: u64 = 60;

/// Pause of a robot between two episodes of its daily work: somebody clears its table.
const CLEAR_TABLE: Duration = Duration::from_millis(250);

/// Everything that the stages share.
pub(super) struct Round<'a> {
    fleet: &'a Fleet,
    robots: &'a mut [DemoRobot],
    figures: &'a mut Figures,
    story: &'a mut Story,
    args: &'a DemoArgs,
    /// Episodes that agents confirmed to be whole on their disks.
    recorded: BTreeSet<EpisodeId>,
    /// When the last demonstration was over.
    demonstrated: Option<Instant>,
    alone: Vec<SkillRuntime>,
}

#[expect(clippy::disallowed_methods, reason = "the demo is a shell: it measures how long the loop takes")]
fn now() -> Instant {
    Instant::now()
}

impl<'a> Round<'a> {
    pub(super) fn new(
        fleet: &'a Fleet,
        robots: &'a mut [DemoRobot],
        figures: &'a mut Figures,
        story: &'a mut Story,
        args: &'a DemoArgs,
    ) -> Self {
        Self { fleet, robots, figures, story, args, recorded: BTreeSet::new(), demonstrated: None, alone: Vec::new() }
    }

    /// Experts demonstrate on each robot, only in that robot's part of the range.
    pub(super) fn demonstrate(&mut self) -> Result<(), Failure> {
        let (seed, count, sectors) = (self.args.seed, self.args.demonstrations, self.args.robots);
        let total = u64::from(count) * u64::from(sectors) * Task::ALL.len() as u64;
        let robots = &mut *self.robots;
        let episodes = self.story.counted("experts demonstrate", total, |bar| {
            robots::each(robots, |robot| {
                let mut episodes = Vec::new();
                for task in Task::ALL {
                    let range = Range::sector(task, robot.index, sectors).or_internal()?;
                    for index in 0..count {
                        let start = range.start(seed, Purpose::Demonstration { robot: robot.index }, index);
                        episodes.push(robot.work(&start, &Pilot::Demonstration)?.episode);
                        bar.inc(1);
                    }
                }
                Ok(episodes)
            })
        })?;
        self.recorded.extend(episodes.into_iter().flatten());
        self.demonstrated = Some(now());
        self.story.tell(&format!(
            "experts demonstrated {total} episodes; each robot saw only its own {} of the range",
            ordinal_part(sectors)
        ));
        Ok(())
    }

    /// Waits until the hub holds every episode that was recorded so far.
    pub(super) fn upload(&mut self) -> Result<(), Failure> {
        let (fleet, recorded) = (self.fleet, &self.recorded);
        self.story.counted("uploading", recorded.len() as u64, |bar| {
            fleet.watch("upload", IDLE_SECS_MAX, || {
                let durable = durable(fleet)?;
                let here = recorded.iter().filter(|&id| durable.contains_key(id)).count();
                bar.set_position(here as u64);
                Ok(((here == recorded.len()).then_some(()), here as u64))
            })
        })?;
        self.story.tell(&format!("all {} episodes are durable on the hub", self.recorded.len()));
        Ok(())
    }

    /// Trains one skill from everything, which is released at once, and one from each robot's own episodes.
    pub(super) fn train_fleet_and_each_alone(&mut self) -> Result<(), Failure> {
        let snapshot = self.snapshot()?;
        let everyone = self.start_run(SKILL, &snapshot, json!({}), self.args.train_steps, &json!("all"))?;
        let mut runs = Vec::new();
        for member in self.fleet.members() {
            let selection = json!({ "robots": [member.robot] });
            let skill = format!("alone-{}", member.robot);
            // Each robot's share of the steps for its share of the data: as many passes over it as the fleet's skill gets.
            let steps = (self.args.train_steps / u64::from(self.args.robots)).max(1);
            runs.push(self.start_run(&skill, &snapshot, selection, steps, &json!(null))?);
        }
        self.finish_run("training on all episodes", everyone)?;
        self.story.tell(&format!("trained {SKILL}@1 on the episodes of all robots, signed and released it"));

        let first = format!("{SKILL}@1");
        self.wait_active(&first)?;
        self.figures.seconds_last_episode_to_active_on_all =
            self.demonstrated.map_or(0.0, |demonstrated| (now() - demonstrated).as_secs_f64());
        self.story.tell(&format!("{first} is verified, installed and active on all {} robots", self.args.robots));

        for (run, member) in runs.into_iter().zip(self.fleet.members()) {
            let release = self.finish_run(&format!("training on {}'s episodes alone", member.robot), run)?;
            let folder = tempfile::tempdir().or_internal()?;
            let package = folder.path().join("package");
            self.fleet.ask(|api| package_transfer::download(api, &release, &package))?;
            self.alone.push(SkillRuntime::load(&package).or_internal()?);
        }
        self.story.tell(&format!("trained {} skills more, each on one robot's own episodes", self.alone.len()));
        Ok(())
    }

    /// Lets experts and each robot's own skill work on the held-out starts of the whole range.
    pub(super) fn evaluate_alone_and_experts(&mut self) -> Result<(), Failure> {
        let alone = &self.alone;
        let (seed, starts) = (self.args.seed, self.args.starts);
        let pilots: Vec<Option<&SkillRuntime>> = std::iter::once(None).chain(alone.iter().map(Some)).collect();
        let total = pilots.len() as u64 * u64::from(starts) * Task::ALL.len() as u64;
        let scores = self.story.counted("evaluating them", total, |bar| evaluate(&pilots, seed, starts, bar))?;
        for task in Task::ALL {
            let figures = self.figures.of(task);
            figures.success_expert = scores[0][&task].rate();
            // The mean over robots of what each one's own skill reaches.
            let own = &scores[1..];
            figures.success_alone = own.iter().map(|scores| scores[&task].rate()).sum::<f64>() / own.len() as f64;
        }
        self.story.tell(&format!(
            "alone, a robot reaches {} of held-out starts; the experts reach {}",
            self.figures.mean(|task| task.success_alone),
            self.figures.mean(|task| task.success_expert),
        ));
        Ok(())
    }

    pub(super) fn act_with_first_release(&mut self) -> Result<(), Failure> {
        let release = format!("{SKILL}@1");
        let scores = self.act_on_held_out(&release, 0)?;
        for task in Task::ALL {
            self.figures.of(task).success_fleet = scores[&task].rate();
        }
        let reached = self.figures.mean(|task| task.success_fleet);
        self.story.tell(&format!("with {release} the robots reach {reached}, anywhere in the range"));
        Ok(())
    }

    /// Trains on what the robots did with the first release too, while they go on working.
    pub(super) fn release_again_while_robots_work(&mut self) -> Result<(), Failure> {
        let snapshot = self.snapshot()?;
        let second = format!("{SKILL}@2");
        let (seed, sectors) = (self.args.seed, self.args.robots);
        let done = AtomicBool::new(false);
        let worked = Mutex::new(Vec::new());
        let robots = std::mem::take(&mut self.robots);
        let result = thread::scope(|scope| {
            let workers: Vec<_> = robots
                .iter_mut()
                .map(|robot| scope.spawn(|| keep_working(robot, seed, sectors, &done, &worked)))
                .collect();
            let released = self.train_and_release_second(&snapshot, &second);
            done.store(true, Ordering::SeqCst);
            let worked = workers.into_iter().map(|worker| worker.join().expect("workers do not panic"));
            let worked: Result<Vec<()>, Failure> = worked.collect();
            released.and(worked.map(|_| ()))
        });
        self.robots = robots;
        result?;
        let worked = worked.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let episodes = worked.len();
        for report in worked {
            self.recorded.insert(report.episode);
            self.figures.act_latencies.extend(report.act_latencies);
        }
        self.story
            .tell(&format!("{second} took over on all robots; meanwhile they did {episodes} episodes without a stop"));
        Ok(())
    }

    fn train_and_release_second(&mut self, snapshot: &SnapshotView, release: &str) -> Result<(), Failure> {
        let run = self.start_run(SKILL, snapshot, json!({}), self.args.train_steps, &json!("all"))?;
        self.finish_run("training again, with the robots' own successes", run)?;
        self.story.tell(&format!(
            "trained {release} on {} episodes: demonstrations, and what worked for the robots",
            snapshot.episodes
        ));
        self.wait_active(release)
    }

    pub(super) fn act_with_second_release(&mut self) -> Result<(), Failure> {
        let release = format!("{SKILL}@2");
        // Starts that nobody has seen: the second release has learned from the first evaluation's.
        let scores = self.act_on_held_out(&release, self.args.starts)?;
        for task in Task::ALL {
            self.figures.of(task).success_second_release = scores[&task].rate();
        }
        let reached = self.figures.mean(|task| task.success_second_release);
        self.story.tell(&format!("with {release} they reach {reached}, on starts that are new again"));
        Ok(())
    }

    /// Compares what the agents confirmed with what the hub holds.
    pub(super) fn take_stock(&mut self) -> Result<(), Failure> {
        let durable = durable(self.fleet)?;
        let here = self.recorded.iter().filter(|&id| durable.contains_key(id)).count() as u64;
        self.figures.episodes_recorded = self.recorded.len() as u64;
        self.figures.episodes_durable = here;
        self.figures.episodes_lost = self.figures.episodes_recorded - here;
        self.figures.episodes_cut_off = durable.len() as u64 - here;
        self.figures.bytes_uploaded = durable.values().sum();
        self.figures.restarts = self.fleet.restarts();
        let second = format!("{SKILL}@2");
        let robots: Vec<RobotView> = self.fleet.ask(|api| api.list("/v1/robots"))?;
        let on_second = robots.iter().filter(|robot| robot.active().contains(&second.as_str())).count();
        self.figures.robots_on_second_release = on_second as u16;
        Ok(())
    }

    /// Freezes every success that the hub holds.
    fn snapshot(&self) -> Result<SnapshotView, Failure> {
        self.fleet.ask(|api| api.post("/v1/snapshots", &json!({ "query": { "outcomes": ["success"] } })))
    }

    fn start_run(
        &self,
        skill: &str,
        snapshot: &SnapshotView,
        selection: serde_json::Value,
        steps: u64,
        assign: &serde_json::Value,
    ) -> Result<u32, Failure> {
        let request = json!({
            "skill": skill,
            "snapshot": snapshot.id,
            "selection": selection,
            "publish": true,
            "assign": assign,
            "config": {
                "seed": self.args.seed,
                "steps": steps,
                "batch_size": 256,
                "ema_decay": 0.99,
                "policy": { "type": "mlp", "hidden_dims": [128, 128] },
            },
        });
        Ok(self.fleet.ask(|api| api.post::<RunView>("/v1/runs", &request))?.id)
    }

    /// Waits for a run under a bar; returns the release that it became.
    fn finish_run(&mut self, label: &str, run: u32) -> Result<String, Failure> {
        let fleet = self.fleet;
        let path = format!("/v1/runs/{run}");
        let ended = self.story.counted(label, self.args.train_steps, |bar| {
            fleet.watch("training", IDLE_SECS_MAX, || {
                let run: RunView = fleet.ask(|api| api.get(&path))?;
                if run.progress.steps > 0 {
                    bar.set_length(run.progress.steps);
                }
                bar.set_position(run.progress.step);
                let step = run.progress.step;
                Ok((run.ended().then_some(run), step))
            })
        })?;
        match (ended.state.as_str(), ended.release) {
            ("succeeded", Some(release)) => Ok(release),
            (state, _) => {
                let why = ended.error.unwrap_or_default();
                Err(Failure::new(ExitCode::Failed, format!("training run {run} {state}: {why}")))
            }
        }
    }

    /// Waits until a release acts on every robot.
    fn wait_active(&mut self, release: &str) -> Result<(), Failure> {
        let fleet = self.fleet;
        let expected = fleet.members().len();
        let what = format!("installing {release}");
        self.story.counted(&what, expected as u64, |bar| {
            fleet.watch(&what, IDLE_SECS_MAX, || {
                let robots: Vec<RobotView> = fleet.ask(|api| api.list("/v1/robots"))?;
                refuse_failed(&robots, release)?;
                let active = robots.iter().filter(|robot| robot.active().contains(&release)).count();
                bar.set_position(active as u64);
                Ok(((active == expected).then_some(()), active as u64))
            })
        })
    }

    /// Lets the robots work on held-out starts of the whole range, through their agents.
    fn act_on_held_out(&mut self, release: &str, first: u32) -> Result<BTreeMap<Task, Score>, Failure> {
        let (seed, starts, sectors) = (self.args.seed, self.args.starts, self.args.robots);
        let pilot = Pilot::Skill(SKILL.parse().expect("the skill's name is a name"));
        let total = u64::from(starts) * Task::ALL.len() as u64;
        let robots = &mut *self.robots;
        let reports = self.story.counted(&format!("robots act with {release}"), total, |bar| {
            robots::each(robots, |robot| {
                let mut reports = Vec::new();
                // Dealt out like cards: every robot works on the whole range.
                let own = u32::from(robot.index);
                for task in Task::ALL {
                    for index in (own..starts).step_by(usize::from(sectors)) {
                        let start = Range::whole(task).start(seed, Purpose::HeldOut, first + index);
                        let report = robot.work(&start, &pilot)?;
                        let acted = report.release.as_ref().map(ToString::to_string);
                        if acted.as_deref() != Some(release) {
                            let acted = acted.unwrap_or_else(|| "nothing".to_owned());
                            let error = format!("{} acted with {acted} instead of {release}", robot.robot);
                            return Err(Failure::new(ExitCode::Failed, error));
                        }
                        reports.push(report);
                        bar.inc(1);
                    }
                }
                Ok(reports)
            })
        })?;
        let mut scores: BTreeMap<Task, Score> = BTreeMap::new();
        for report in reports.into_iter().flatten() {
            let score = scores.entry(report.task).or_default();
            score.episodes += 1;
            score.successes += u64::from(report.end.success());
            self.recorded.insert(report.episode);
            self.figures.act_latencies.extend(report.act_latencies);
        }
        Ok(scores)
    }
}

/// One robot's daily work in its own cell, until the second release is everywhere.
fn keep_working(
    robot: &mut DemoRobot,
    seed: u64,
    sectors: u16,
    done: &AtomicBool,
    worked: &Mutex<Vec<zunft_sim::robot::Report>>,
) -> Result<(), Failure> {
    let pilot = Pilot::Skill(SKILL.parse().expect("the skill's name is a name"));
    let mut index = 0;
    while !done.load(Ordering::SeqCst) && !interrupt::asked() {
        for task in Task::ALL {
            let range = Range::sector(task, robot.index, sectors).or_internal()?;
            let start = range.start(seed, Purpose::Practice { robot: robot.index }, index);
            let report = robot.work(&start, &pilot)?;
            worked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(report);
            thread::sleep(CLEAR_TABLE);
        }
        index += 1;
    }
    Ok(())
}

/// Every episode that the hub holds, with its bytes.
fn durable(fleet: &Fleet) -> Result<BTreeMap<EpisodeId, u64>, Failure> {
    let episodes: Vec<EpisodeView> = fleet.ask(|api| api.list("/v1/episodes"))?;
    Ok(episodes.into_iter().map(|episode| (episode.id, episode.bytes)).collect())
}

fn refuse_failed(robots: &[RobotView], release: &str) -> Result<(), Failure> {
    for robot in robots {
        if let Some(failed) = robot.releases.iter().find(|found| found.release == release && found.state == "failed") {
            let error = format!("{} could not install {release}: {}", robot.robot, failed.reason);
            return Err(Failure::new(ExitCode::Failed, error));
        }
    }
    Ok(())
}

/// What one thread found: pilot, task, score.
type Scored = Result<Vec<(usize, Task, Score)>, Failure>;

/// Scores of each pilot (none: the expert) in each task, on as many processors as there are.
fn evaluate(
    pilots: &[Option<&SkillRuntime>],
    seed: u64,
    starts: u32,
    bar: &ProgressBar,
) -> Result<Vec<BTreeMap<Task, Score>>, Failure> {
    let jobs: Vec<(usize, Task)> =
        (0..pilots.len()).flat_map(|pilot| Task::ALL.into_iter().map(move |task| (pilot, task))).collect();
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    let parts: Vec<Scored> = thread::scope(|scope| {
        let jobs = &jobs;
        let workers: Vec<_> = (0..threads)
            .map(|first| {
                scope.spawn(move || {
                    let mine = jobs.iter().skip(first).step_by(threads);
                    mine.map(|&(pilot, task)| {
                        let score = score(pilots[pilot], task, seed, starts, bar)?;
                        Ok((pilot, task, score))
                    })
                    .collect()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("evaluations do not panic")).collect()
    });
    let mut scores = vec![BTreeMap::new(); pilots.len()];
    for part in parts {
        for (pilot, task, score) in part? {
            scores[pilot].insert(task, score);
        }
    }
    Ok(scores)
}

fn score(
    skill: Option<&SkillRuntime>,
    task: Task,
    seed: u64,
    starts: u32,
    bar: &ProgressBar,
) -> Result<Score, Failure> {
    let mut score = Score::default();
    let starts: Vec<Start> = held_out_starts(task, seed, starts).collect();
    for start in &starts {
        interrupt::check()?;
        let success = match skill {
            Some(skill) => rollout::skill_succeeds(skill, start).or_internal()?,
            None => rollout::expert_succeeds(start),
        };
        score.episodes += 1;
        score.successes += u64::from(success);
        bar.inc(1);
    }
    Ok(score)
}

/// `eighth`, or `1/7` where there is no short word.
fn ordinal_part(parts: u16) -> String {
    match parts {
        1 => "whole".to_owned(),
        2 => "half".to_owned(),
        3 => "third".to_owned(),
        4 => "quarter".to_owned(),
        8 => "eighth".to_owned(),
        parts => format!("1/{parts}"),
    }
}
