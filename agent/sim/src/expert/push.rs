//! The pushing expert: keep to the line through puck and goal, behind the puck, and go on towards the goal.

use super::ramp;
use crate::{
    observation::{Action, Senses},
    vector::{at_most, dot, flat, length, minus, plus, scaled},
};

/// Height of the tool centre point while pushing, metres.
const LOW: f32 = 0.026;

/// Highest speed of pushing, metres a second.
const PUSH_SPEED: f32 = 0.06;

/// Speed of pushing by the distance left, per second: slower near the goal.
const PUSH_GAIN: f32 = 3.0;

/// Speed of closing a gap, per second.
const GAIN: f32 = 8.0;

/// Distance beside the line at which going on stops, metres; further out the tool backs off to line up anew.
const ASIDE_MAX: f32 = 0.014;

pub(super) fn act(senses: &Senses) -> Action {
    let to_goal = flat(senses.goal);
    let ahead = scaled(to_goal, 1.0 / length(to_goal).max(1e-3));
    let tool = scaled(flat(senses.object), -1.0);
    let aside = minus(tool, scaled(ahead, dot(tool, ahead)));

    let lined_up = 1.5 * ramp(length(aside), 1.5 * ASIDE_MAX, 0.0) - 0.5;
    let push = scaled(at_most(scaled(to_goal, PUSH_GAIN), PUSH_SPEED), lined_up);
    let velocity = plus(push, scaled(aside, -GAIN));
    [velocity[0], velocity[1], GAIN * (LOW - senses.position[2]), 0.0]
}
