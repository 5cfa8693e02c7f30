//! Simulated robot cells with real contact, scripted experts, and a control program that drives an agent as a real
//! robot's does.
//!
//! All but [`robot`] is pure: a function of seeds and actions, without clock, file or network.

mod angle;
pub mod cell;
pub mod expert;
pub mod observation;
mod random;
pub mod robot;
pub mod rollout;
mod seam;
pub mod start;
pub mod task;
mod vector;

pub use cell::{Cell, EpisodeEnd, StepError, StepResult};
pub use robot::{Pilot, Report, SimRobot};
pub use start::{Purpose, Range, Start};
pub use task::Task;
