//! The two-finger gripper: a palm on Cartesian velocity control and two fingers that press with limited force.
//!
//! The palm follows its commanded velocity within an acceleration limit and its workspace, whatever stands in its way.
//! Each finger slides on the palm, drawn by a spring whose rest point closes or opens at a limited rate: it gives way
//! to what it grips, and holds by contact and friction alone. It does not know tasks.

use rapier3d::prelude::{
    ColliderBuilder, ColliderHandle, CoefficientCombineRule, ImpulseJointHandle, JointAxis, MotorModel, PhysicsWorld,
    Group, InteractionGroups, InteractionTestMode, PrismaticJointBuilder, RigidBodyBuilder, RigidBodyHandle, Vector,
};

use crate::{angle::direction, observation::OPENING_MAX};

/// Highest acceleration of the palm, metres a second squared.
const ACCELERATION_MAX: f32 = 4.0;

/// Radius of the round back of a finger, metres: the closed fingers are a round rod that pushes alike in every direction.
const FINGER_RADIUS: f32 = 0.014;

/// Half the height of a finger, metres.
const FINGER_HALF_HEIGHT: f32 = 0.030;

/// Straight pieces of a finger's round back: so many that it is round within a quarter of a millimetre.
const FINGER_FACETS: u16 = 10;

/// Height of a finger's centre above the tool centre point: the fingers reach 12 mm below it.
const FINGER_ABOVE: f32 = 0.018;

/// Where the tool centre point may go: above the table by more than the fingers reach below it.
const WORKSPACE: [(f32, f32); 3] = [(-0.30, 0.30), (-0.30, 0.30), (0.015, 0.25)];

/// Mass of a finger with its slide, kilograms.
const FINGER_MASS: f32 = 0.08;

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
const PAD_FRICTION: f32 = 1.0;

/// Which body is the palm and which are the fingers.
#[derive(Debug)]
pub(super) struct Gripper {
    palm: RigidBodyHandle,
    fingers: [Finger; 2],
    velocity: [f32; 3],
    rest: f32,
}

#[derive(Debug)]
struct Finger {
    body: RigidBodyHandle,
    collider: ColliderHandle,
    joint: ImpulseJointHandle,
}

impl Gripper {
    /// Puts a gripper into `world`: its tool centre point at `position`, open to the fraction `opening`.
    pub(super) fn new(world: &mut PhysicsWorld, position: [f32; 3], opening: f32) -> Self {
        let palm = RigidBodyBuilder::kinematic_velocity_based().translation(vector(position));
        let palm = world.insert_body(palm);
        let rest = 0.5 * OPENING_MAX * opening;
        let fingers = [1.0, -1.0].map(|side| Finger::new(world, palm, position, side, rest));
        Self { palm, fingers, velocity: [0.0; 3], rest }
    }

    /// Sets the drives for the next `dt` seconds: the palm's velocity and the fraction of the opening.
    pub(super) fn drive(&mut self, world: &mut PhysicsWorld, velocity: [f32; 3], opening: f32, dt: f32) {
        let position = self.position(world);
        let gain = ACCELERATION_MAX * dt;
        for axis in 0..3 {
            let (low, high) = WORKSPACE[axis];
            let wanted = velocity[axis].clamp((low - position[axis]) / dt, (high - position[axis]) / dt);
            let change = (wanted - self.velocity[axis]).clamp(-gain, gain);
            self.velocity[axis] = (self.velocity[axis] + change)
                .clamp((low - position[axis]).min(0.0) / dt, (high - position[axis]).max(0.0) / dt);
        }
        world.bodies[self.palm].set_linvel(vector(self.velocity), true);

        let wanted = opening * (0.5 * OPENING_MAX + SQUEEZE) - SQUEEZE;
        let change = (wanted - self.rest).clamp(-FINGER_SPEED * dt, FINGER_SPEED * dt);
        if change != 0.0 {
            self.rest += change;
            for finger in &self.fingers {
                finger.draw_to(world, self.rest);
            }
        }
    }

    /// The tool centre point.
    pub(super) fn position(&self, world: &PhysicsWorld) -> [f32; 3] {
        world.bodies[self.palm].translation().into()
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
            world
                .contact_pair(finger.collider, collider)
                .is_some_and(|pair| pair.total_impulse_magnitude() > 0.0)
        })
    }
}

impl Finger {
    fn new(world: &mut PhysicsWorld, palm: RigidBodyHandle, position: [f32; 3], side: f32, rest: f32) -> Self {
        let from_palm = Vector::new(0.0, 0.0, FINGER_ABOVE);
        let at = vector(position) + from_palm + Vector::new(0.0, side * rest, 0.0);
        let body = RigidBodyBuilder::dynamic().translation(at).gravity_scale(0.0).can_sleep(false);
        let shape = ColliderBuilder::convex_hull(&finger_corners(side))
            .expect("a half disc's corners span a body")
            .mass(FINGER_MASS)
            .friction(PAD_FRICTION)
            .friction_combine_rule(CoefficientCombineRule::Multiply)
            .collision_groups(InteractionGroups::new(FINGERS, !FINGERS, InteractionTestMode::And));
        let (body, collider) = world.insert(body, shape);
        let slide = PrismaticJointBuilder::new(Vector::new(0.0, side, 0.0))
            .local_anchor1(from_palm)
            .limits([0.0, 0.5 * OPENING_MAX])
            .motor_model(MotorModel::ForceBased)
            .motor_position(rest, STIFFNESS, DAMPING)
            .motor_max_force(FORCE_MAX)
            .contacts_enabled(false);
        let joint = world.insert_impulse_joint(palm, body, slide);
        Self { body, collider, joint }
    }

    fn draw_to(&self, world: &mut PhysicsWorld, rest: f32) {
        if let Some(joint) = world.impulse_joints.get_mut(self.joint, false) {
            joint.data.set_motor_position(JointAxis::LinX, rest, STIFFNESS, DAMPING);
        }
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
