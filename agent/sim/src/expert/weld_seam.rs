//! The welding expert: to the seam first, then along it at the welding speed, drawn to it by the sensed offset.

use super::ramp;
use crate::{
    cell::WELD_SPEED,
    observation::{Action, SPEED_MAX, Senses},
    vector::{at_most, length, plus, scaled},
};

/// Speed of closing the offset, per second.
const GAIN: f32 = 6.0;

pub(super) fn act(senses: &Senses) -> Action {
    let on_seam = ramp(length(senses.seam), 0.010, 0.003);
    let along = scaled(senses.tangent, WELD_SPEED * on_seam);
    let velocity = at_most(plus(along, scaled(senses.seam, GAIN)), SPEED_MAX);
    [velocity[0], velocity[1], velocity[2], 0.0]
}
