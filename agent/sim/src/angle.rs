//! Trigonometry with the same bits on every machine.
//!
//! The standard library's `sin` is the platform's; the physics engine's software version is not.

use rapier3d::na::ComplexField;

/// The unit vector at `radians` from the x axis, counter-clockwise.
pub(crate) fn direction(radians: f32) -> [f32; 2] {
    let (sine, cosine) = <f32 as ComplexField>::sin_cos(radians);
    [cosine, sine]
}

/// The sine of `radians`.
pub(crate) fn sine(radians: f32) -> f32 {
    <f32 as ComplexField>::sin(radians)
}
