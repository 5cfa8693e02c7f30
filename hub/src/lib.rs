//! The hub: takes in what robots live through, keeps it, trains skills from it, and hands out signed releases.
//!
//! [`service::Service::start`] runs everything in one process; [`hub::Hub::start`] leaves out trainer and HTTP API.
//! It never imports the agent.

pub mod assignments;
mod causes;
pub mod clock;
pub mod config;
mod data_dir;
mod durable_file;
#[cfg(test)]
mod fixtures;
pub mod fsck;
pub mod http;
pub mod hub;
pub mod identity;
pub mod ingest;
pub mod metadata;
pub mod pki;
pub mod registry;
pub mod service;
mod services;
pub mod snapshots;
pub mod store;
pub mod trainer;

pub use data_dir::{DATA_DIR_VERSION, DataDirError};
