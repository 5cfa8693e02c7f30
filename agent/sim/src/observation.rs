//! What a cell's robot senses and commands: one layout for all tasks, state only.
//!
//! Places are relative wherever a task is about a relation, so that what is learned in one place holds in another.
//! What a task does not have (a seam while pushing, an object while welding) reads zero.
//! The task itself is not observed: whoever runs a policy knows what it was asked to do.

use zunft_protocol::embodiment::{ACTION, Embodiment, Feature, OBSERVATION_STATE};

/// Numbers in an observation.
pub const OBSERVATION_DIM: usize = 21;

/// Numbers in an action.
pub const ACTION_DIM: usize = 4;

/// Control steps a second.
pub const CONTROL_HZ: f32 = 20.0;

/// Highest commanded speed along one axis, metres a second: 1 cm a control step.
pub const SPEED_MAX: f32 = 0.20;

/// Clear width between the open fingers, metres.
pub const OPENING_MAX: f32 = 0.10;

/// One observation, laid out as [`OBSERVATION_NAMES`] says.
pub type Observation = [f32; OBSERVATION_DIM];

/// One action, laid out as [`ACTION_NAMES`] says.
pub type Action = [f32; ACTION_DIM];

/// The name and unit of each number of an observation, in order.
pub const OBSERVATION_NAMES: [(&str, &str); OBSERVATION_DIM] = [
    ("gripper.position.x", "m"),
    ("gripper.position.y", "m"),
    ("gripper.position.z", "m"),
    ("gripper.velocity.x", "m/s"),
    ("gripper.velocity.y", "m/s"),
    ("gripper.velocity.z", "m/s"),
    ("gripper.opening", "m"),
    ("object.from_gripper.x", "m"),
    ("object.from_gripper.y", "m"),
    ("object.from_gripper.z", "m"),
    ("goal.from_object.x", "m"),
    ("goal.from_object.y", "m"),
    ("goal.from_object.z", "m"),
    ("object.radius", "m"),
    ("seam.offset.x", "m"),
    ("seam.offset.y", "m"),
    ("seam.offset.z", "m"),
    ("seam.tangent.x", "1"),
    ("seam.tangent.y", "1"),
    ("seam.tangent.z", "1"),
    ("seam.remaining", "m"),
];

/// The name and unit of each number of an action, in order; `gripper.opening` is a fraction of [`OPENING_MAX`].
pub const ACTION_NAMES: [(&str, &str); ACTION_DIM] =
    [("velocity.x", "m/s"), ("velocity.y", "m/s"), ("velocity.z", "m/s"), ("gripper.opening", "1")];

/// The least and greatest value of each number of an action; a cell clips to them.
pub const ACTION_LIMITS: [(f32, f32); ACTION_DIM] =
    [(-SPEED_MAX, SPEED_MAX), (-SPEED_MAX, SPEED_MAX), (-SPEED_MAX, SPEED_MAX), (0.0, 1.0)];

/// The body of every simulated robot, whatever its task.
#[must_use]
pub fn embodiment() -> Embodiment {
    let vector = |name: &str, parts: &[(&str, &str)]| Feature {
        names: parts.iter().map(|(name, _)| (*name).to_owned()).collect(),
        units: parts.iter().map(|(_, unit)| (*unit).to_owned()).collect(),
        ..Feature::vector(name, u32::try_from(parts.len()).expect("a layout has a handful of numbers"))
    };
    let (min, max) = ACTION_LIMITS.iter().map(|&(low, high)| (f64::from(low), f64::from(high))).unzip();
    Embodiment {
        name: "sim-cell".to_owned(),
        rate_hz: f64::from(CONTROL_HZ),
        features: vec![
            vector(OBSERVATION_STATE, &OBSERVATION_NAMES),
            Feature { min, max, ..vector(ACTION, &ACTION_NAMES) },
        ],
    }
}

/// An observation by name, for those who read it in the layout's own terms.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Senses {
    /// The tool centre point, metres.
    pub position: [f32; 3],
    /// Its velocity, metres a second.
    pub velocity: [f32; 3],
    /// Clear width between the fingers, metres.
    pub opening: f32,
    /// The object's centre from the tool centre point, metres.
    pub object: [f32; 3],
    /// The goal from the object's centre, metres.
    pub goal: [f32; 3],
    /// The object's radius, metres.
    pub radius: f32,
    /// The nearest seam point from the torch, as the sensor reads it, metres.
    pub seam: [f32; 3],
    /// Unit vector along the seam at that point.
    pub tangent: [f32; 3],
    /// Length of the seam still ahead, metres.
    pub remaining: f32,
}

impl From<Senses> for Observation {
    fn from(senses: Senses) -> Self {
        let mut observation = [0.0; OBSERVATION_DIM];
        observation[0..3].copy_from_slice(&senses.position);
        observation[3..6].copy_from_slice(&senses.velocity);
        observation[6] = senses.opening;
        observation[7..10].copy_from_slice(&senses.object);
        observation[10..13].copy_from_slice(&senses.goal);
        observation[13] = senses.radius;
        observation[14..17].copy_from_slice(&senses.seam);
        observation[17..20].copy_from_slice(&senses.tangent);
        observation[20] = senses.remaining;
        observation
    }
}

impl From<&Observation> for Senses {
    fn from(observation: &Observation) -> Self {
        let vector = |at: usize| [observation[at], observation[at + 1], observation[at + 2]];
        Self {
            position: vector(0),
            velocity: vector(3),
            opening: observation[6],
            object: vector(7),
            goal: vector(10),
            radius: observation[13],
            seam: vector(14),
            tangent: vector(17),
            remaining: observation[20],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embodiment_is_valid_and_names_every_number() {
        let body = embodiment();
        body.check().unwrap();
        assert_eq!(body.features[0].names.len(), OBSERVATION_DIM);
        assert_eq!(body.features[1].units, ["m/s", "m/s", "m/s", "1"]);
        assert_eq!(body.features[1].max[3], 1.0);
    }

    #[test]
    fn senses_and_observation_are_one_layout() {
        let observation: Observation = std::array::from_fn(|index| index as f32);
        assert_eq!(Observation::from(Senses::from(&observation)), observation);
        assert_eq!(Senses::from(&observation).remaining, 20.0);
    }
}
