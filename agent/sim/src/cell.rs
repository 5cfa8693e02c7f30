//! The simulated robot cell: a table, what lies on it, a gripper, and the judgement of one episode.
//!
//! The control program steps the cell in lock-step with whoever chooses the actions; the cell reads no clock.
//! A trajectory is a function of its start and its actions, with the same bits on every machine.
//! It does not know who acts, nor how a task is best done.

mod gripper;
mod judge;

use rapier3d::prelude::{
    CoefficientCombineRule, ColliderBuilder, ColliderHandle, IntegrationParameters, PhysicsWorld, RigidBodyBuilder,
    RigidBodyHandle, SpringCoefficients, Vector,
};

use crate::{
    observation::{ACTION_DIM, ACTION_LIMITS, Action, CONTROL_HZ, Observation, Senses},
    random::{Randomness, Stream},
    seam::Seam,
    start::{Scene, Start, Workpiece},
    task::Task,
    vector::{minus, plus},
};
use gripper::Gripper;
pub(crate) use judge::WELD_SPEED;
pub use judge::{EpisodeEnd, steps_max};
use judge::{Judge, Moment};

/// Physics steps in one control step.
const SUBSTEPS: u32 = 3;

/// Length of one control step, seconds.
pub const STEP_INTERVAL_SECS: f32 = 1.0 / CONTROL_HZ;

/// Half the height of a puck, metres.
const PUCK_HALF_HEIGHT: f32 = 0.015;

/// Half the height of an object to carry, metres.
const OBJECT_HALF_HEIGHT: f32 = 0.025;

/// How stiff contacts are.
const CONTACT_SOFTNESS: SpringCoefficients<f32> = SpringCoefficients { natural_frequency: 120.0, damping_ratio: 5.0 };

/// Friction of the table, as a factor on the friction of what lies on it.
const TABLE_FRICTION: f32 = 1.0;

/// Largest error of the seam sensor along each axis, metres.
const SEAM_NOISE: f32 = 0.000_3;

/// Purpose number of the stream of sensor noise.
const NOISE_PURPOSE: u8 = 16;

/// What one control step brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// What the robot senses after the step.
    pub observation: Observation,
    /// Part of the task done in this step: an episode's rewards add up to about 1 when it succeeds.
    pub reward: f32,
    /// How the episode ended, when this step ended it.
    pub end: Option<EpisodeEnd>,
}

/// A simulated cell in the middle of one episode.
pub struct Cell {
    task: Task,
    world: PhysicsWorld,
    gripper: Gripper,
    work: Work,
    judge: Judge,
    noise: Randomness,
    observation: Observation,
    end: Option<EpisodeEnd>,
}

enum Work {
    Object(Object),
    Seam(Seam),
}

struct Object {
    body: RigidBodyHandle,
    collider: ColliderHandle,
    radius: f32,
    goal: [f32; 3],
}

impl Cell {
    /// Sets the cell up for one episode.
    #[must_use]
    pub fn new(start: &Start) -> Self {
        let mut world = PhysicsWorld { gravity: Vector::new(0.0, 0.0, -9.81), ..PhysicsWorld::default() };
        world.integration_parameters = IntegrationParameters {
            dt: STEP_INTERVAL_SECS / SUBSTEPS as f32,
            // The scene is a hand's breadth: contact margins scale with this.
            length_unit: 0.1,
            // Stiff enough that a grip of 12 N sinks less than a millimetre into an object of 100 g.
            contact_softness: CONTACT_SOFTNESS,
            static_contact_softness: CONTACT_SOFTNESS,
            max_ccd_substeps: 0,
            ..IntegrationParameters::default()
        };
        let table = ColliderBuilder::cuboid(0.6, 0.6, 0.05)
            .translation(Vector::new(0.0, 0.0, -0.05))
            .friction(TABLE_FRICTION)
            .friction_combine_rule(CoefficientCombineRule::Multiply);
        world.insert_collider(table, None);
        let work = match &start.scene {
            Scene::Push(piece) => Work::Object(Object::new(&mut world, piece, PUCK_HALF_HEIGHT)),
            Scene::PickPlace(piece) => Work::Object(Object::new(&mut world, piece, OBJECT_HALF_HEIGHT)),
            Scene::WeldSeam(shape) => Work::Seam(Seam::new(shape)),
        };
        let gripper = Gripper::new(&mut world, start.gripper, start.opening);
        let task = start.task();
        let mut cell = Self {
            task,
            judge: Judge::new(task, &work.moment(&world, &gripper)),
            world,
            gripper,
            work,
            noise: Randomness::new(start.noise_seed, Stream { purpose: NOISE_PURPOSE, robot: 0, index: 0 }),
            observation: Observation::default(),
            end: None,
        };
        cell.observation = cell.sense();
        cell
    }

    /// The task that this episode poses.
    #[must_use]
    pub const fn task(&self) -> Task {
        self.task
    }

    /// What the robot senses now.
    #[must_use]
    pub const fn observation(&self) -> &Observation {
        &self.observation
    }

    /// Carries out `action` for one control step; commands beyond the limits are clipped.
    ///
    /// # Errors
    /// When the action has another length, is not finite, or comes after the episode's end. The cell stays as it was.
    pub fn step(&mut self, action: &[f32]) -> Result<StepResult, StepError> {
        self.step_disturbed(action, [0.0; 4])
    }

    /// Like [`Self::step`], with `bump` on top of the commanded action in what the drives carry out.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_disturbed(&mut self, action: &[f32], bump: Action) -> Result<StepResult, StepError> {
        if let Some(end) = self.end {
            return Err(StepError::Over { end });
        }
        let [x, y, z, opening] = admitted(action)?;
        let velocity = [x + bump[0], y + bump[1], z + bump[2]];
        let opening = (opening + bump[3]).clamp(0.0, 1.0);
        let dt = self.world.integration_parameters.dt;
        for _ in 0..SUBSTEPS {
            self.gripper.drive(&mut self.world, velocity, opening, dt);
            self.world.step();
        }
        if let Work::Seam(seam) = &mut self.work {
            self.judge.follow(seam, self.gripper.position());
        }
        let (reward, end) = self.judge.step(&self.work.moment(&self.world, &self.gripper));
        self.end = end;
        self.observation = self.sense();
        Ok(StepResult { observation: self.observation, reward, end })
    }

    fn sense(&mut self) -> Observation {
        let position = self.gripper.position();
        let mut senses = Senses {
            position,
            velocity: self.gripper.velocity(),
            opening: self.gripper.opening(&self.world),
            ..Senses::default()
        };
        match &self.work {
            Work::Object(object) => {
                let place = object.position(&self.world);
                senses.object = minus(place, position);
                senses.goal = minus(object.goal, place);
                senses.radius = object.radius;
            }
            Work::Seam(seam) => {
                let point = seam.reached();
                let noise = std::array::from_fn(|_| self.noise.within(SEAM_NOISE));
                senses.seam = plus(minus(point.position, position), noise);
                senses.tangent = point.tangent;
                senses.remaining = seam.length() - point.travelled;
            }
        }
        senses.into()
    }
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Cell")
            .field("task", &self.task)
            .field("observation", &self.observation)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Work {
    fn moment(&self, world: &PhysicsWorld, gripper: &Gripper) -> Moment {
        match self {
            Self::Object(object) => Moment {
                goal_from_object: minus(object.goal, object.position(world)),
                object_speed: world.bodies[object.body].linvel().length(),
                held: gripper.touches(world, object.collider),
                object_height: object.position(world)[2],
                remaining: 0.0,
            },
            Self::Seam(seam) => Moment { remaining: seam.length() - seam.reached().travelled, ..Moment::default() },
        }
    }
}

impl Object {
    fn new(world: &mut PhysicsWorld, piece: &Workpiece, half_height: f32) -> Self {
        let at = Vector::new(piece.position[0], piece.position[1], half_height);
        let (body, collider) = world.insert(
            RigidBodyBuilder::dynamic().translation(at).rotation(upright()).can_sleep(false),
            ColliderBuilder::cylinder(half_height, piece.radius).mass(piece.mass).friction(piece.friction),
        );
        Self { body, collider, radius: piece.radius, goal: [piece.goal[0], piece.goal[1], half_height] }
    }

    fn position(&self, world: &PhysicsWorld) -> [f32; 3] {
        world.bodies[self.body].translation().into()
    }
}

/// Turns the physics engine's cylinders, which stand along y, upright along z.
fn upright() -> Vector {
    Vector::new(std::f32::consts::FRAC_PI_2, 0.0, 0.0)
}

/// `action` clipped to the limits, if it is one.
pub(crate) fn admitted(action: &[f32]) -> Result<Action, StepError> {
    let action: Action = action.try_into().map_err(|_| StepError::Length { found: action.len() })?;
    if let Some(index) = action.iter().position(|number| !number.is_finite()) {
        return Err(StepError::NotFinite { index, value: action[index] });
    }
    Ok(std::array::from_fn(|index| {
        let (low, high) = ACTION_LIMITS[index];
        action[index].clamp(low, high)
    }))
}

/// Why a cell refused to step.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum StepError {
    /// The action has another length.
    #[error("the action has {found} numbers, the cell takes {ACTION_DIM}: three velocities and the gripper's opening")]
    Length {
        /// How many numbers came.
        found: usize,
    },
    /// A number of the action is infinite or not a number.
    #[error("number {index} of the action is {value}: send finite numbers only")]
    NotFinite {
        /// Which number.
        index: usize,
        /// What it was.
        value: f32,
    },
    /// The episode is over.
    #[error("the episode is over ({end}): set up a new cell")]
    Over {
        /// How it ended.
        end: EpisodeEnd,
    },
}
