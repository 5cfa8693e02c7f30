//! The agent: a daemon on the robot that keeps what the robot lives through and runs what the fleet has learned.
//!
//! ```text
//! control program <-> local <-> spool ------> uplink <-> hub
//!                       |                       |
//!                     policy <--- releases <----+
//! ```
//!
//! It knows nothing of training, and never imports the hub.

mod activity;
pub mod agent;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod embodiment;
mod events;
pub mod identity;
pub mod local;
mod metrics;
pub mod policy;
pub mod releases;
pub mod spool;
pub mod status;
pub mod telemetry;
mod text;
pub mod uplink;

pub use agent::{Agent, Handle, StartError, run, run_until_signal};
