//! The control program of a simulated robot: it works in its cell and records through its agent, as a real one would.
//!
//! World, agent and recording go in lock-step on the caller's thread: observe, act, carry out, record. It knows the
//! agent's socket and nothing of what lies behind it.

use std::{path::Path, time::Duration};

use zunft_client::{
    AbortReason, Begin, BeginActor, CallError, ConnectError, EpisodeId, Outcome, RecordingId, ReleaseId, Robot,
    SkillName, Step, TaskName, Truncation, monotonic_ns,
};

use crate::{
    cell::{self, Cell, EpisodeEnd},
    expert::{self, Bumps},
    observation::{Action, Observation, embodiment},
    start::Start,
    task::Task,
};

/// Who decides what the robot does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pilot {
    /// The scripted expert, in a cell that is bumped as [`Bumps`] says: for demonstrations.
    Demonstration,
    /// The scripted expert, undisturbed.
    Expert,
    /// The active release of a skill, asked through the agent.
    Skill(SkillName),
}

impl Pilot {
    fn actor(&self) -> BeginActor {
        match self {
            Self::Demonstration | Self::Expert => BeginActor::Script,
            Self::Skill(skill) => BeginActor::Skill { skill: skill.clone() },
        }
    }
}

/// What one recorded episode came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The task.
    pub task: Task,
    /// How it ended in the cell.
    pub end: EpisodeEnd,
    /// Control steps taken.
    pub steps: u32,
    /// Sum of the rewards.
    pub reward: f32,
    /// The recording that the agent made.
    pub recording: RecordingId,
    /// The episode that it became, complete on the agent's disk.
    pub episode: EpisodeId,
    /// The release that acted, where a skill did.
    pub release: Option<ReleaseId>,
    /// How long each answer of the skill took, there and back.
    pub act_latencies: Vec<Duration>,
}

/// A simulated robot, connected to its agent.
#[derive(Debug)]
pub struct SimRobot {
    client: Robot,
    clock_ns: u64,
}

/// What the control loop brought, before the recording is closed.
struct Run {
    end: EpisodeEnd,
    steps: u32,
    reward: f32,
    act_latencies: Vec<Duration>,
}

impl SimRobot {
    /// Connects to the agent that listens at `socket`.
    ///
    /// # Errors
    /// When nobody listens there, or no agent of this version.
    pub fn connect(socket: &Path) -> Result<Self, RobotError> {
        Ok(Self::new(Robot::connect(socket)?))
    }

    /// A robot on a connection that is open already.
    #[must_use]
    pub fn new(client: Robot) -> Self {
        Self { client, clock_ns: 0 }
    }

    /// The connection to the agent, between episodes.
    pub fn client(&mut self) -> &mut Robot {
        &mut self.client
    }

    /// Works and records one episode; when this returns, it is complete on the agent's disk.
    ///
    /// # Errors
    /// When the agent refuses or goes away, or the skill's action cannot be carried out. What was recorded until then
    /// is kept as an aborted episode, or as a truncated one where the connection is lost.
    pub fn run_episode(&mut self, start: &Start, pilot: &Pilot) -> Result<Report, RobotError> {
        let task = start.task();
        let name: TaskName = task.name().parse().expect("the tasks' names are names");
        let begin = Begin { task: name.clone(), embodiment: embodiment(), actor: pilot.actor() };
        let begun = self.client.begin(&begin)?;
        let run = match self.control(start, pilot, &name) {
            Ok(run) => run,
            Err(error) => {
                let end = zunft_client::EpisodeEnd::Aborted { reason: AbortReason::Fault };
                // The error that stopped the episode is the one to tell, whether the agent could still close it or not.
                self.client.end(Outcome::Unknown, end).ok();
                return Err(error);
            }
        };
        let ended = self.client.end(outcome(run.end), recorded_end(run.end))?;
        let Run { end, steps, reward, act_latencies } = run;
        Ok(Report {
            task,
            end,
            steps,
            reward,
            recording: ended.recording,
            episode: ended.episode,
            release: begun.release,
            act_latencies,
        })
    }

    fn control(&mut self, start: &Start, pilot: &Pilot, task: &TaskName) -> Result<Run, RobotError> {
        let mut cell = Cell::new(start);
        let mut bumps = (*pilot == Pilot::Demonstration).then(|| Bumps::new(start.task(), start.noise_seed));
        let (mut steps, mut reward) = (0, 0.0);
        let mut act_latencies = Vec::new();
        loop {
            let observed_ns = self.tick();
            let observation = *cell.observation();
            let action = match pilot {
                Pilot::Demonstration | Pilot::Expert => expert::act(start.task(), &observation),
                Pilot::Skill(skill) => {
                    let values = self.client.act(skill, task, steps == 0, &observation)?.values;
                    act_latencies.push(Duration::from_nanos(monotonic_ns().saturating_sub(observed_ns)));
                    cell::admitted(&values)?
                }
            };
            let bump = bumps.as_mut().map_or([0.0; 4], Bumps::next_bump);
            let result = cell.step_disturbed(&action, bump)?;
            self.record(observed_ns, &observation, &action, result.reward)?;
            steps += 1;
            reward += result.reward;
            if let Some(end) = result.end {
                return Ok(Run { end, steps, reward, act_latencies });
            }
        }
    }

    fn record(
        &mut self,
        monotonic_ns: u64,
        observation: &Observation,
        action: &Action,
        reward: f32,
    ) -> Result<(), RobotError> {
        let values = [observation.into(), action.into()];
        self.client.step(&Step { monotonic_ns, reward: Some(reward), intervention: false, values: &values })?;
        Ok(())
    }

    /// The time of an observation: the robot's clock, but later than every one before.
    fn tick(&mut self) -> u64 {
        self.clock_ns = monotonic_ns().max(self.clock_ns + 1);
        self.clock_ns
    }
}

fn outcome(end: EpisodeEnd) -> Outcome {
    if end.success() { Outcome::Success } else { Outcome::Failure }
}

fn recorded_end(end: EpisodeEnd) -> zunft_client::EpisodeEnd {
    match end {
        EpisodeEnd::Succeeded | EpisodeEnd::Failed => zunft_client::EpisodeEnd::Terminated,
        EpisodeEnd::StepLimit { .. } => zunft_client::EpisodeEnd::Truncated { limit: Truncation::StepLimit },
    }
}

/// Why an episode did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum RobotError {
    /// There is no connection to the agent.
    #[error("could not connect to the robot's agent")]
    Connect(#[from] ConnectError),
    /// The agent refused or went away.
    #[error("the agent did not go along")]
    Call(#[from] CallError),
    /// A step could not be recorded.
    #[error("a step could not be recorded")]
    Record(#[from] zunft_client::StepError),
    /// The skill's action cannot be carried out.
    #[error("the skill's action cannot be carried out")]
    Act(#[from] cell::StepError),
}
