//! Where an episode starts: randomised objects, goals and seams, and which part of them one robot's cell covers.
//!
//! Every start has a *bearing*: the direction in which its work lies. The whole range of a task is the full circle of
//! bearings; a robot's sector is an equal arc of it. So no robot alone sees the whole task, all together do, and what a
//! robot must know about the arcs of the others it can only learn from them.
//!
//! It does not know physics: a [`Start`] is plain numbers.

use std::f32::consts::TAU;

use crate::{
    angle::direction,
    random::{Randomness, Stream},
    task::Task,
};

pub use crate::seam::SeamShape;

/// The most robots that can share a task's range; more would leave each an arc of well under a degree.
pub const ROBOTS_MAX: u16 = 1024;

/// How many bearings a full turn has: whole numbers, so that sectors divide it without rounding.
pub const BEARINGS: u32 = 1 << 24;

/// What a start is drawn for; the streams of different purposes never meet, whatever the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A robot's demonstrations.
    Demonstration {
        /// The robot that demonstrates.
        robot: u16,
    },
    /// A robot's own work with a skill, which may become training data.
    Practice {
        /// The robot that works.
        robot: u16,
    },
    /// Evaluation; never trained on.
    HeldOut,
}

impl Purpose {
    fn stream(self, index: u32) -> Stream {
        let (purpose, robot) = match self {
            Self::Demonstration { robot } => (1, robot),
            Self::Practice { robot } => (2, robot),
            Self::HeldOut => (3, 0),
        };
        Stream { purpose, robot, index }
    }
}

/// The object that is pushed or carried: an upright cylinder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workpiece {
    /// Where its centre stands on the table at the start, metres.
    pub position: [f32; 2],
    /// Radius in metres.
    pub radius: f32,
    /// Mass in kilograms.
    pub mass: f32,
    /// Coefficient of friction of its surface.
    pub friction: f32,
    /// Where its centre shall come to lie on the table, metres.
    pub goal: [f32; 2],
}

/// What lies on the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scene {
    /// A puck to push.
    Push(Workpiece),
    /// An object to carry.
    PickPlace(Workpiece),
    /// A seam to weld.
    WeldSeam(SeamShape),
}

/// One start of an episode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Start {
    /// What lies on the table.
    pub scene: Scene,
    /// Where the tool centre point is, metres.
    pub gripper: [f32; 3],
    /// How far the gripper is open, as a fraction.
    pub opening: f32,
    /// The direction in which the work lies, in parts of [`BEARINGS`] of a turn.
    pub bearing: u32,
    /// Seeds the sensor noise of the episode.
    pub noise_seed: u64,
}

impl Start {
    /// The task that this start poses.
    #[must_use]
    pub const fn task(&self) -> Task {
        match self.scene {
            Scene::Push(_) => Task::Push,
            Scene::PickPlace(_) => Task::PickPlace,
            Scene::WeldSeam(_) => Task::WeldSeam,
        }
    }
}

/// The starts of a task that one cell covers: an arc of bearings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    task: Task,
    sector: u16,
    sectors: u16,
}

impl Range {
    /// Every start of `task`.
    #[must_use]
    pub const fn whole(task: Task) -> Self {
        Self { task, sector: 0, sectors: 1 }
    }

    /// The part of `task` that robot number `robot` of `robots` covers.
    ///
    /// # Errors
    /// When there are no or too many robots, or none of that number.
    pub const fn sector(task: Task, robot: u16, robots: u16) -> Result<Self, RangeError> {
        if robots == 0 || robots > ROBOTS_MAX {
            return Err(RangeError::Robots { robots });
        }
        if robot >= robots {
            return Err(RangeError::Robot { robot, robots });
        }
        Ok(Self { task, sector: robot, sectors: robots })
    }

    /// The task.
    #[must_use]
    pub const fn task(&self) -> Task {
        self.task
    }

    /// Whether `start` is one of this range's: exactly one sector of a division holds each start of the whole.
    #[must_use]
    pub fn contains(&self, start: &Start) -> bool {
        let sector = u64::from(start.bearing) * u64::from(self.sectors) / u64::from(BEARINGS);
        start.task() == self.task && sector == u64::from(self.sector)
    }

    /// The start number `index` for `purpose` under `seed`: always the same one.
    #[must_use]
    pub fn start(&self, seed: u64, purpose: Purpose, index: u32) -> Start {
        let mut randomness = Randomness::new(seed, purpose.stream(index));
        let (first, end) = (self.first_bearing(self.sector), self.first_bearing(self.sector + 1));
        let bearing = first + (randomness.unit() * (end - first) as f32) as u32;
        let radians = bearing as f32 * (TAU / BEARINGS as f32);
        let noise_seed = randomness.word();
        // Pushing and welding begin with the tool ready: the fingers closed to one rod.
        let opening = if self.task == Task::PickPlace { randomness.unit() } else { 0.0 };
        let (scene, gripper) = match self.task {
            Task::Push => push(radians, &mut randomness),
            Task::PickPlace => pick_place(radians, &mut randomness),
            Task::WeldSeam => weld_seam(radians, &mut randomness),
        };
        Start { scene, gripper, opening, bearing, noise_seed }
    }

    /// The least bearing that [`Self::contains`] counts to `sector`.
    fn first_bearing(&self, sector: u16) -> u32 {
        let sectors = u64::from(self.sectors);
        let bearing = (u64::from(sector) * u64::from(BEARINGS)).div_ceil(sectors);
        u32::try_from(bearing).expect("a bearing is at most a full turn")
    }
}

/// A division of a task's range that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The number of robots is out of bounds.
    #[error("cannot divide a task among {robots} robots: give 1 to {ROBOTS_MAX}")]
    Robots {
        /// The number asked for.
        robots: u16,
    },
    /// There is no robot of that number.
    #[error("there is no robot {robot} among {robots}: give 0 to {}", robots - 1)]
    Robot {
        /// The robot asked for.
        robot: u16,
        /// How many there are.
        robots: u16,
    },
}

/// The goal lies at the bearing from the puck; the gripper starts behind the puck and somewhat beside the line.
fn push(bearing: f32, randomness: &mut Randomness) -> (Scene, [f32; 3]) {
    let ahead = direction(bearing);
    let side = direction(bearing + TAU / 4.0);
    let distance = randomness.between(0.09, 0.16);
    let middle = [randomness.within(0.03), randomness.within(0.03)];
    let position = along(middle, ahead, -0.5 * distance);
    let workpiece = Workpiece {
        position,
        radius: randomness.between(0.030, 0.036),
        mass: randomness.between(0.15, 0.30),
        friction: randomness.between(0.2, 0.3),
        goal: along(middle, ahead, 0.5 * distance),
    };
    let hand = along(
        along(position, ahead, -workpiece.radius - randomness.between(0.03, 0.05)),
        side,
        randomness.within(0.03),
    );
    let gripper = [hand[0], hand[1], randomness.between(0.03, 0.05)];
    (Scene::Push(workpiece), gripper)
}

/// The object lies at about the bearing from the gripper, the goal at about the bearing from the object.
fn pick_place(bearing: f32, randomness: &mut Randomness) -> (Scene, [f32; 3]) {
    let ahead = direction(bearing);
    let reach = randomness.between(0.06, 0.12);
    let carry = randomness.between(0.10, 0.16);
    let side = direction(bearing + TAU / 4.0);
    let middle = [randomness.within(0.02), randomness.within(0.02)];
    let position = along(along(middle, side, randomness.within(0.02)), ahead, 0.5 * (reach - carry));
    let workpiece = Workpiece {
        position,
        radius: randomness.between(0.020, 0.026),
        mass: randomness.between(0.08, 0.16),
        friction: randomness.between(0.9, 1.3),
        goal: along(along(position, ahead, carry), side, randomness.within(0.04)),
    };
    let hand = along(along(position, ahead, -reach), side, randomness.within(0.03));
    let gripper = [hand[0], hand[1], randomness.between(0.09, 0.13)];
    (Scene::PickPlace(workpiece), gripper)
}

/// The seam runs along the bearing, about centred on the table; the torch starts behind its first point and above.
fn weld_seam(bearing: f32, randomness: &mut Randomness) -> (Scene, [f32; 3]) {
    let ahead = direction(bearing);
    let side = direction(bearing + TAU / 4.0);
    let length = randomness.between(0.22, 0.30);
    let middle = [randomness.within(0.04), randomness.within(0.04)];
    let origin = along(middle, ahead, -0.5 * length);
    let shape = SeamShape {
        origin: [origin[0], origin[1], randomness.between(0.06, 0.08)],
        length,
        heading: bearing,
        turn: randomness.within(0.5),
        wave: randomness.within(0.3),
        rise: randomness.within(0.02),
    };
    let behind = along(along(origin, ahead, -randomness.between(0.002, 0.010)), side, randomness.within(0.004));
    let gripper = [behind[0], behind[1], shape.origin[2] + randomness.within(0.004)];
    (Scene::WeldSeam(shape), gripper)
}

fn along(from: [f32; 2], ahead: [f32; 2], distance: f32) -> [f32; 2] {
    [from[0] + ahead[0] * distance, from[1] + ahead[1] * distance]
}
