//! The seam: a curve in space that the torch shall follow, and how much of it was followed well.
//!
//! It does not know the robot: it is told where the torch is, once a control step.

use crate::{
    angle::{direction, sine},
    vector::{dot, length, minus, plus, scaled},
};

/// Straight pieces that a seam is made of: at most 3 mm each, so that the corners are far below the path bound.
const PIECES: usize = 100;

/// How far ahead of the last point the nearest one is looked for, in pieces: two control steps at the highest speed.
const PIECES_AHEAD: usize = 12;

/// The parameters of one seam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeamShape {
    /// Where the seam begins, metres.
    pub origin: [f32; 3],
    /// Length, metres.
    pub length: f32,
    /// Direction at the middle, radians.
    pub heading: f32,
    /// How far the direction turns from the middle to each end, radians (constant curvature).
    pub turn: f32,
    /// How far the direction swings beside the turn, radians (one wave along the seam).
    pub wave: f32,
    /// How far the seam rises and falls along its length, metres.
    pub rise: f32,
}

/// A point on the seam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SeamPoint {
    /// Where it is, metres.
    pub(crate) position: [f32; 3],
    /// Unit vector in which the seam goes on.
    pub(crate) tangent: [f32; 3],
    /// Length of the seam before this point, metres.
    pub(crate) travelled: f32,
}

/// A seam as a chain of straight pieces, with the place that the torch has reached.
#[derive(Debug, Clone)]
pub(crate) struct Seam {
    corners: Vec<[f32; 3]>,
    piece_length: f32,
    piece: usize,
    travelled: f32,
}

impl Seam {
    pub(crate) fn new(shape: &SeamShape) -> Self {
        let run = shape.length / PIECES as f32;
        let mut corner = shape.origin;
        let mut corners = Vec::with_capacity(PIECES + 1);
        corners.push(corner);
        for piece in 0..PIECES {
            let part = (piece as f32 + 0.5) / PIECES as f32;
            let swing = std::f32::consts::TAU * part;
            let ahead = direction(shape.heading + shape.turn * (2.0 * part - 1.0) + shape.wave * sine(swing));
            // The height is a wave as well; its slope is what one piece climbs.
            let climb = shape.rise / shape.length * std::f32::consts::TAU * direction(swing)[0];
            let flat = 1.0 / (1.0 + climb * climb).sqrt();
            corner =
                [corner[0] + ahead[0] * flat * run, corner[1] + ahead[1] * flat * run, corner[2] + climb * flat * run];
            corners.push(corner);
        }
        Self { corners, piece_length: run, piece: 0, travelled: 0.0 }
    }

    pub(crate) fn length(&self) -> f32 {
        self.piece_length * PIECES as f32
    }

    /// The place reached so far.
    pub(crate) fn reached(&self) -> SeamPoint {
        self.point(self.piece, self.travelled - self.piece as f32 * self.piece_length)
    }

    /// Goes on to the point nearest to `torch`, never back and never far ahead.
    pub(crate) fn advance(&mut self, torch: [f32; 3]) -> SeamPoint {
        let last = (self.piece + PIECES_AHEAD).min(PIECES - 1);
        let mut nearest = (f32::MAX, self.piece, self.travelled);
        for piece in self.piece..=last {
            let run = self.run_on(piece, torch);
            let travelled = (piece as f32 * self.piece_length + run).max(self.travelled);
            let point = self.point(piece, travelled - piece as f32 * self.piece_length);
            let distance = length(minus(point.position, torch));
            if distance < nearest.0 {
                nearest = (distance, piece, travelled);
            }
        }
        (_, self.piece, self.travelled) = nearest;
        self.reached()
    }

    /// How far along `piece` the projection of `torch` lies.
    fn run_on(&self, piece: usize, torch: [f32; 3]) -> f32 {
        let run = dot(minus(torch, self.corners[piece]), self.tangent(piece));
        run.clamp(0.0, self.piece_length)
    }

    fn tangent(&self, piece: usize) -> [f32; 3] {
        scaled(minus(self.corners[piece + 1], self.corners[piece]), 1.0 / self.piece_length)
    }

    fn point(&self, piece: usize, run: f32) -> SeamPoint {
        let (corner, tangent) = (self.corners[piece], self.tangent(piece));
        SeamPoint {
            position: plus(corner, scaled(tangent, run)),
            tangent,
            travelled: piece as f32 * self.piece_length + run,
        }
    }
}
