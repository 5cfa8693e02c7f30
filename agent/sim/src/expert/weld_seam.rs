//! The welding expert: along the seam at the welding speed, and drawn to it by the sensed offset.

use crate::{
    cell::WELD_SPEED,
    observation::{Action, SPEED_MAX, Senses},
    vector::{at_most, plus, scaled},
};

/// Speed of closing the offset, per second.
const GAIN: f32 = 7.0;

pub(super) fn act(senses: &Senses) -> Action {
    let velocity = at_most(plus(scaled(senses.tangent, WELD_SPEED), scaled(senses.seam, GAIN)), SPEED_MAX);
    [velocity[0], velocity[1], velocity[2], 0.0]
}
