//! What robot and hub decide while they talk, apart from sockets, disks and clocks.
//!
//! Each session takes events and the time and returns orders; the shells in agent and hub wait for the events
//! and carry out the orders. A reconnect starts every open upload again at its offer.

pub mod agent;
pub mod hub;
pub mod policy;

use crate::message::{Later, Receipt, Reject, Want};

/// What a hub answers on an upload stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadReply {
    /// Send these chunks.
    Want(Want),
    /// Offer again later.
    Later(Later),
    /// Never in this form.
    Reject(Reject),
    /// Safe.
    Durable(Receipt),
    /// The hub knows of the episode and holds nothing of it.
    Noted,
}
