//! Judges an episode: what counts as done, as failed, and how long is allowed.
//!
//! Pure: it is shown what happened in each control step, and knows no physics.

use std::fmt;

use crate::{
    observation::CONTROL_HZ,
    seam::Seam,
    task::Task,
    vector::{length, minus},
};

/// How near its goal a pushed puck must come, metres.
const PUSH_TOLERANCE: f32 = 0.025;

/// How near its goal a carried object must lie, metres.
const PLACE_TOLERANCE: f32 = 0.025;

/// Below this speed an object counts as lying still, metres a second.
const STILL_SPEED: f32 = 0.03;

/// An object whose centre is below this height has fallen from the table, metres.
const FALLEN_HEIGHT: f32 = -0.05;

/// An object this far from its goal is beyond the gripper's reach, metres.
const LOST_DISTANCE: f32 = 0.40;

/// The speed at which a seam is to be welded, metres a second.
pub(crate) const WELD_SPEED: f32 = 0.08;

/// Largest deviation from the welding speed, as a part of it.
const WELD_SPEED_ERROR: f32 = 0.35;

/// Largest distance of the torch from the seam, metres.
const WELD_PATH_ERROR: f32 = 0.006;

/// The part of a seam that may be out of bounds.
const WELD_BAD_PART: f32 = 0.05;

/// A seam counts as ended when less than this is left, metres: the nearest point cannot pass the end.
const WELD_END: f32 = 0.000_5;

/// Control steps after which an episode of `task` is truncated: about twice what an expert needs at most.
#[must_use]
pub const fn steps_max(task: Task) -> u32 {
    match task {
        Task::Push => 160,
        Task::PickPlace => 180,
        Task::WeldSeam => 140,
    }
}

/// How an episode ended: the first two are `terminated`, the last is `truncated`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpisodeEnd {
    /// The task was done.
    Succeeded,
    /// The task can no longer be done.
    Failed,
    /// The steps allowed were used up.
    StepLimit {
        /// How many were allowed.
        steps_max: u32,
    },
}

impl EpisodeEnd {
    /// Whether the task was done.
    #[must_use]
    pub const fn success(self) -> bool {
        matches!(self, Self::Succeeded)
    }

    /// Whether the task itself ended the episode, rather than the step limit.
    #[must_use]
    pub const fn terminated(self) -> bool {
        !matches!(self, Self::StepLimit { .. })
    }
}

impl fmt::Display for EpisodeEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => write!(formatter, "succeeded"),
            Self::Failed => write!(formatter, "failed"),
            Self::StepLimit { steps_max } => write!(formatter, "limit of {steps_max} steps"),
        }
    }
}

/// What the judge is shown of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Moment {
    pub(super) goal_from_object: [f32; 3],
    pub(super) object_speed: f32,
    pub(super) object_height: f32,
    pub(super) held: bool,
    pub(super) remaining: f32,
}

/// The judgement so far.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    task: Task,
    steps: u32,
    distance_start: f32,
    distance: f32,
    bad_length: f32,
    bad_length_max: f32,
}

impl Judge {
    pub(super) fn new(task: Task, moment: &Moment) -> Self {
        let distance = distance(task, moment);
        Self {
            task,
            steps: 0,
            distance_start: distance,
            distance,
            bad_length: 0.0,
            bad_length_max: WELD_BAD_PART * moment.remaining,
        }
    }

    /// Lets the torch go on along `seam`, and counts the length that it passes out of bounds.
    pub(super) fn follow(&mut self, seam: &mut Seam, torch: [f32; 3]) {
        let before = seam.reached();
        let after = seam.advance(torch);
        let run = after.travelled - before.travelled;
        let good_path = length(minus(after.position, torch)) <= WELD_PATH_ERROR;
        let good_speed = (run * CONTROL_HZ - WELD_SPEED).abs() <= WELD_SPEED_ERROR * WELD_SPEED;
        // The last piece is cut off by the end of the seam, whatever the speed.
        let at_end = seam.length() - after.travelled < WELD_END;
        if !(good_path && (good_speed || at_end)) {
            self.bad_length += run;
        }
    }

    /// Judges the moment after a control step: the reward, and the end if this is it.
    pub(super) fn step(&mut self, moment: &Moment) -> (f32, Option<EpisodeEnd>) {
        self.steps += 1;
        let distance = distance(self.task, moment);
        let reward = (self.distance - distance) / self.distance_start;
        self.distance = distance;
        let end = match self.outcome(moment) {
            Some(true) => Some(EpisodeEnd::Succeeded),
            Some(false) => Some(EpisodeEnd::Failed),
            None if self.steps >= steps_max(self.task) => {
                Some(EpisodeEnd::StepLimit { steps_max: steps_max(self.task) })
            }
            None => None,
        };
        (reward, end)
    }

    fn outcome(&self, moment: &Moment) -> Option<bool> {
        let near = |tolerance| length(moment.goal_from_object) <= tolerance;
        let lost = moment.object_height < FALLEN_HEIGHT || self.distance > LOST_DISTANCE;
        match self.task {
            Task::Push if near(PUSH_TOLERANCE) => Some(true),
            Task::PickPlace if near(PLACE_TOLERANCE) && !moment.held && moment.object_speed < STILL_SPEED => Some(true),
            Task::Push | Task::PickPlace => lost.then_some(false),
            Task::WeldSeam if self.bad_length > self.bad_length_max => Some(false),
            Task::WeldSeam => (moment.remaining < WELD_END).then_some(true),
        }
    }
}

fn distance(task: Task, moment: &Moment) -> f32 {
    match task {
        Task::Push | Task::PickPlace => length(moment.goal_from_object),
        Task::WeldSeam => moment.remaining,
    }
}
