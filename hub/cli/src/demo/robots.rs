//! The robots of the demo: control programs that work in simulated cells through their agents' sockets.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use zunft_client::{CallError, StepError};
use zunft_protocol::ids::RobotId;
use zunft_sim::Start;
use zunft_sim::robot::{Pilot, Report, RobotError, SimRobot};

use super::fleet::{Fleet, RobotMember};
use crate::exit::{ExitCode, Failure};
use crate::interrupt;

/// How often a robot looks for an agent that went away, and the pause between: half a minute in all.
const RECONNECTS_MAX: u32 = 300;
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// One robot with its control program.
pub(super) struct DemoRobot {
    pub(super) index: u16,
    pub(super) robot: RobotId,
    member: RobotMember,
    control: Option<SimRobot>,
}

/// An episode that a robot could not do.
#[derive(Debug, thiserror::Error)]
#[error("{robot} could not work")]
struct WorkError {
    robot: RobotId,
    #[source]
    source: RobotError,
}

/// Connects every robot's control program to its agent.
pub(super) fn connect(fleet: &Fleet) -> Result<Vec<DemoRobot>, Failure> {
    let robots = fleet.members().iter().map(|member| {
        let mut robot =
            DemoRobot { index: member.index, robot: member.robot.clone(), member: member.clone(), control: None };
        robot.reconnect().map(|()| robot)
    });
    robots.collect()
}

impl DemoRobot {
    /// Works from `start`; when the agent goes away in the middle, again once it is back.
    ///
    /// The agent keeps what was recorded until then as a truncated episode.
    pub(super) fn work(&mut self, start: &Start, pilot: &Pilot) -> Result<Report, Failure> {
        loop {
            interrupt::check()?;
            let control = self.control.as_mut().expect("a robot is connected between its episodes");
            match control.run_episode(start, pilot) {
                Ok(report) => return Ok(report),
                Err(error) if connection_lost(&error) => {
                    tracing::warn!(robot = %self.robot, %error, "the agent went away");
                    self.reconnect()?;
                }
                Err(source) => {
                    return Err(Failure::new(ExitCode::Failed, WorkError { robot: self.robot.clone(), source }));
                }
            }
        }
    }

    fn reconnect(&mut self) -> Result<(), Failure> {
        self.control = None;
        for attempt in 1.. {
            interrupt::check()?;
            match SimRobot::connect(&self.member.socket) {
                Ok(control) => {
                    self.control = Some(control);
                    break;
                }
                Err(source) if attempt == RECONNECTS_MAX => {
                    return Err(Failure::new(ExitCode::Failed, WorkError { robot: self.robot.clone(), source }));
                }
                Err(_) => thread::sleep(RECONNECT_INTERVAL),
            }
        }
        Ok(())
    }
}

/// Whether the agent is gone, rather than unwilling.
fn connection_lost(error: &RobotError) -> bool {
    let call = match error {
        RobotError::Call(call) | RobotError::Record(StepError::Connection(call)) => call,
        RobotError::Connect(_) | RobotError::Record(_) | RobotError::Act(_) => return false,
    };
    matches!(call, CallError::Closed | CallError::Failed | CallError::Io(_))
}

/// Lets every robot do its work, so many at a time that each has a processor; the results in the robots' order.
pub(super) fn each<T: Send>(
    robots: &mut [DemoRobot],
    work: impl Fn(&mut DemoRobot) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let at_once = thread::available_parallelism().map_or(1, usize::from).min(robots.len());
    let failed = AtomicBool::new(false);
    let waiting = Mutex::new(robots.iter_mut());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some(robot) = next else { break };
                    let result = work(robot);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((robot.index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}
