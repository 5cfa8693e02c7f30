//! The pushing expert: go down behind the puck as seen from the goal, then push towards the goal, correcting sideways.

use super::ramp;
use crate::{
    observation::{Action, SPEED_MAX, Senses},
    vector::{at_most, dot, flat, length, minus, plus, scaled},
};

/// Height of the tool centre point while pushing, metres.
const LOW: f32 = 0.020;

/// Height at which the fingers clear the puck, metres.
const HIGH: f32 = 0.075;

/// Distance of the closed fingers' middle from the puck's rim when they come down behind it, metres.
const BEHIND: f32 = 0.028;

/// Speed of pushing, metres a second.
const PUSH_SPEED: f32 = 0.10;

/// Speed of closing a gap, per second.
const GAIN: f32 = 6.0;

pub(super) fn act(senses: &Senses) -> Action {
    let to_goal = flat(senses.goal);
    let ahead = scaled(to_goal, 1.0 / length(to_goal).max(1e-3));
    let tool = scaled(flat(senses.object), -1.0);
    let run_up = dot(tool, ahead);
    let aside = minus(tool, scaled(ahead, run_up));
    let behind = scaled(ahead, -(senses.radius + BEHIND));
    let gap = minus(behind, tool);

    // Near the place behind the puck, or in line and touching it from behind: low. Anywhere else: high.
    let aligned = ramp(length(aside), 0.022, 0.010) * ramp(run_up, -senses.radius, -senses.radius - 0.010);
    let near = ramp(length(gap), 0.040, 0.018);
    let height = HIGH + (LOW - HIGH) * aligned * near;
    let down = ramp(senses.position[2], LOW + 0.022, LOW + 0.008);

    let approach = at_most(scaled(gap, GAIN), SPEED_MAX);
    let push = plus(scaled(ahead, PUSH_SPEED), scaled(aside, -GAIN));
    // Too low to pass over the puck and not behind it: up first.
    let free = ramp(senses.position[2], HIGH - 0.030, HIGH - 0.010).max(near);
    let pushing = down * aligned;
    let velocity = plus(scaled(approach, (1.0 - pushing) * free), scaled(push, pushing));
    [velocity[0], velocity[1], GAIN * (height - senses.position[2]), 0.0]
}
