//! Simulated robot cells with real contact, scripted experts, and a control program that drives an agent as a real
//! robot's does.
//!
//! Everything up to [`rollout`] is pure: a function of seeds and actions, without clock, file or network.

mod angle;
pub mod cell;
pub mod expert;
pub mod observation;
mod random;
pub mod rollout;
mod seam;
pub mod start;
pub mod task;
mod vector;

pub use cell::{Cell, EpisodeEnd, StepError, StepResult};
pub use start::{Purpose, Range, Start};
pub use task::Task;
