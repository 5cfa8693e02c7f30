//! Simulated robot cells with real contact, scripted experts, and a control program that drives an agent as a real
//! robot's does.
//!
//! | task | the robot is to | success |
//! |---|---|---|
//! | `push` | push a puck along the table with closed fingers | within 25 mm of the goal |
//! | `pick-place` | grasp a cylinder by friction, carry it, let go of it | lies still and free within 25 mm of the goal |
//! | `weld-seam` | follow a curved seam with the torch | over 95 % of its length within 6 mm and within 35 % of 80 mm/s |
//!
//! One embodiment does all of them ([`observation`]): a tool centre point on velocity control at 20 Hz and two fingers.
//! What a seed means is fixed: starts, physics and noise are the same bits on every machine.
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
