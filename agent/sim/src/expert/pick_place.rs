//! The pick-and-place expert: above the object, down, grip, up, above the goal, down, let go.

use super::ramp;
use crate::{
    observation::{Action, Senses},
    vector::{at_most, flat, length, plus, scaled},
};

/// Height over the object or goal from which the last way goes straight down, metres.
const HOVER: f32 = 0.06;

/// Clear width between the fingers beyond the object's width at which it counts as gripped, metres.
const GRIPPED: f32 = 0.008;

/// Speed of closing a gap, per second.
const GAIN: f32 = 5.0;

/// Highest speed, metres a second.
const SPEED: f32 = 0.16;

pub(super) fn act(senses: &Senses) -> Action {
    let reach = length(senses.object);
    let closing = ramp(reach, 0.040, 0.022);
    let gripped = ramp(reach, 0.045, 0.030) * ramp(senses.opening - 2.0 * senses.radius, 2.5 * GRIPPED, GRIPPED);
    let placed = ramp(length(senses.goal), 0.020, 0.010);

    let approach = over_then_down(senses.object);
    let carry = carry(senses.goal);
    let velocity = scaled(plus(scaled(approach, 1.0 - gripped), scaled(carry, gripped)), 1.0 - placed);
    [velocity[0], velocity[1], velocity[2], placed.max(1.0 - closing)]
}

/// Above the place `gap` away first, then down to it.
fn over_then_down(gap: [f32; 3]) -> [f32; 3] {
    let aside = flat(gap);
    let hover = HOVER * ramp(length(aside), 0.008, 0.030);
    let across = at_most(scaled(aside, GAIN), SPEED);
    [across[0], across[1], GAIN * (gap[2] + hover)]
}

/// Up, across and down with the gripped object, `gap` from its goal.
fn carry(gap: [f32; 3]) -> [f32; 3] {
    let aside = flat(gap);
    let hover = HOVER * ramp(length(aside), 0.008, 0.030);
    let lifted = ramp(-gap[2], 0.003, 0.025).max(1.0 - hover / HOVER);
    let across = at_most(scaled(aside, GAIN * lifted), SPEED);
    [across[0], across[1], GAIN * (gap[2] + hover)]
}
