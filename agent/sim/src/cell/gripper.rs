//! The two-finger gripper: a palm on Cartesian velocity control and two fingers that press with limited force.
//!
//! The palm follows its commanded velocity within an acceleration limit and its workspace, whatever stands in its way.
//! Each finger slides on the palm, drawn by a spring whose rest point closes or opens at a limited rate: it gives way
//! to what it grips, and holds by contact and friction alone. It does not know tasks.

use rapier3d::prelude::{
    CoefficientCombineRule, ColliderBuilder, ColliderHandle, Group, InteractionGroups, InteractionTestMode,
    PhysicsWorld, RigidBodyBuilder, RigidBodyHandle, Vector,
};

use crate::{angle::direction, observation::OPENING_MAX};

/// Highest acceleration of the palm, metres a second squared.
const ACCELERATION_MAX: f32 = 4.0;

/// Radius of the round back of a finger, metres: the closed fingers are a round rod that pushes alike in every direction.
const FINGER_RADIUS: f32 = 0.014;

/// Half the height of a finger, metres.
const FINGER_HALF_HEIGHT: f32 = 0.030;

/// Straight pieces of a finger's round back: so many that it is round within a twentieth of a millimetre.
const FINGER_FACETS: u16 = 20;

/// Height of a finger's centre above the tool centre point: the fingers reach 2 cm below it.
const FINGER_ABOVE: f32 = 0.010;

/// Where the tool centre point may go: above the table by more than the fingers reach below it.
const WORKSPACE: [(f32, f32); 3] = [(-0.30, 0.30), (-0.30, 0.30), (0.023, 0.25)];

/// Mass of a finger with its drive, kilograms.
const FINGER_MASS: f32 = 0.2;

/// Stiffness of a finger's drive, newtons a metre: it also centres what is gripped against the palm's jerks.
const STIFFNESS: f32 = 300.0;

/// Damping of a finger's drive, newton seconds a metre: about critical for a finger alone.
const DAMPING: f32 = 10.0;

/// Most force of one finger, newtons.
const FORCE_MAX: f32 = 20.0;

/// How far the spring's rest point goes past the middle when closed: 5 N on nothing, 12 N on a 5 cm object.
const SQUEEZE: f32 = 0.015;

/// How fast the rest point moves, metres a second.
const FINGER_SPEED: f32 = 0.2;

/// The collision group of the fingers, which stop each other by their slides and not by touching.
const FINGERS: Group = Group::GROUP_1;

/// Friction of the finger pads, as a factor on the friction of what they touch.
const PAD_FRICTION: f32 = 0.5;

/// The palm, which is carried as numbers, and the two fingers, which are bodies.
#[derive(Debug)]
pub(super) struct Gripper {
    position: [f32; 3],
    velocity: [f32; 3],
    fingers: [Finger; 2],
    rest: f32,
}

/// A finger on its slide: free along y, carried by the palm in every other way.
#[derive(Debug)]
struct Finger {
    body: RigidBodyHandle,
    collider: ColliderHandle,
    side: f32,
}

impl Gripper {
    /// Puts a gripper into `world`: its tool centre point at `position`, open to the fraction `opening`.
    pub(super) fn new(world: &mut PhysicsWorld, position: [f32; 3], opening: f32) -> Self {
        let rest = 0.5 * OPENING_MAX * opening;
        let fingers = [1.0, -1.0].map(|side| Finger::new(world, position, side, rest));
        Self { position, velocity: [0.0; 3], fingers, rest }
    }

    /// Sets the drives for the next physics step of `dt` seconds: the palm's velocity and the fraction of the opening.
    pub(super) fn drive(&mut self, world: &mut PhysicsWorld, velocity: [f32; 3], opening: f32, dt: f32) {
        let velocity_before = self.velocity[1];
        let gain = ACCELERATION_MAX * dt;
        for axis in 0..3 {
            let (low, high) = WORKSPACE[axis];
            let change = (velocity[axis] - self.velocity[axis]).clamp(-gain, gain);
            self.velocity[axis] = (self.velocity[axis] + change)
                .clamp((low - self.position[axis]) / dt, (high - self.position[axis]) / dt);
        }
        let wanted = opening * (0.5 * OPENING_MAX + SQUEEZE) - SQUEEZE;
        self.rest += (wanted - self.rest).clamp(-FINGER_SPEED * dt, FINGER_SPEED * dt);
        for finger in &self.fingers {
            finger.carry(world, self.velocity, velocity_before);
            finger.draw(world, self.position[1], self.velocity[1], self.rest, dt);
        }
        for axis in 0..3 {
            self.position[axis] += self.velocity[axis] * dt;
        }
    }

    /// The tool centre point.
    pub(super) fn position(&self) -> [f32; 3] {
        self.position
    }

    /// The velocity of the tool centre point.
    pub(super) fn velocity(&self) -> [f32; 3] {
        self.velocity
    }

    /// Clear width between the fingers.
    pub(super) fn opening(&self, world: &PhysicsWorld) -> f32 {
        let [left, right] = &self.fingers;
        let apart = world.bodies[left.body].translation().y - world.bodies[right.body].translation().y;
        apart.max(0.0)
    }

    /// Whether a finger bears on `collider`.
    pub(super) fn touches(&self, world: &PhysicsWorld, collider: ColliderHandle) -> bool {
        self.fingers.iter().any(|finger| {
            world.contact_pair(finger.collider, collider).is_some_and(|pair| pair.total_impulse_magnitude() > 0.0)
        })
    }
}

impl Finger {
    fn new(world: &mut PhysicsWorld, palm: [f32; 3], side: f32, rest: f32) -> Self {
        let at = vector(palm) + Vector::new(0.0, side * rest, FINGER_ABOVE);
        let body = RigidBodyBuilder::dynamic()
            .translation(at)
            .enabled_translations(false, true, false)
            .lock_rotations()
            .gravity_scale(0.0)
            .can_sleep(false);
        let shape = ColliderBuilder::convex_hull(&finger_corners(side))
            .expect("a half disc's corners span a body")
            .mass(FINGER_MASS)
            .friction(PAD_FRICTION)
            .friction_combine_rule(CoefficientCombineRule::Multiply)
            .collision_groups(InteractionGroups::new(FINGERS, !FINGERS, InteractionTestMode::And));
        let (body, collider) = world.insert(body, shape);
        Self { body, collider, side }
    }

    /// Takes the finger along with the palm, whose velocity along the slide was `velocity_before`.
    fn carry(&self, world: &mut PhysicsWorld, velocity: [f32; 3], velocity_before: f32) {
        let body = &mut world.bodies[self.body];
        let along = body.linvel().y + velocity[1] - velocity_before;
        body.set_linvel(Vector::new(velocity[0], along, velocity[2]), true);
    }

    /// Draws the finger towards `rest` from the middle of the palm, with limited force, and stops it at the middle.
    fn draw(&self, world: &mut PhysicsWorld, palm: f32, palm_velocity: f32, rest: f32, dt: f32) {
        let body = &mut world.bodies[self.body];
        let out = self.side * (body.translation().y - palm);
        let speed = self.side * (body.linvel().y - palm_velocity);
        let spring = (STIFFNESS * (rest - out) - DAMPING * speed).clamp(-FORCE_MAX, FORCE_MAX);
        // The least force that keeps the finger from passing the middle in this step.
        let stop = FINGER_MASS * (-out / dt - speed) / dt;
        body.reset_forces(true);
        body.add_force(Vector::new(0.0, self.side * spring.max(stop), 0.0), true);
    }
}

/// The corners of an upright half disc: flat towards the other finger, round behind.
fn finger_corners(side: f32) -> Vec<Vector> {
    (0..=FINGER_FACETS)
        .flat_map(|facet| {
            let [x, y] = direction(std::f32::consts::PI * f32::from(facet) / f32::from(FINGER_FACETS));
            [-FINGER_HALF_HEIGHT, FINGER_HALF_HEIGHT]
                .map(|z| Vector::new(FINGER_RADIUS * x, side * FINGER_RADIUS * y, z))
        })
        .collect()
}

fn vector(numbers: [f32; 3]) -> Vector {
    Vector::new(numbers[0], numbers[1], numbers[2])
}
