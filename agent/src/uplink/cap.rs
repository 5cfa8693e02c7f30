//! The bandwidth cap: every UDP byte of the uplink passes one token bucket, retransmissions and handshakes too.
//!
//! [`Cap`] is the handle: it outlives sockets, so that a reconnect is no way around it. What decides is in `bucket`,
//! the socket that obeys is in `socket`.

mod bucket;
mod socket;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::bucket::Bucket;
pub(super) use self::socket::CappedSocket;

/// Largest UDP payload that quinn's path discovery arrives at; what a burst is counted in.
const DATAGRAM_BYTES_MAX: u64 = 1452;

/// The cap in force, shared by all sockets of the uplink.
#[derive(Debug, Clone)]
pub(super) struct Cap(Arc<Mutex<Bucket>>);

impl Cap {
    /// `None`: no cap.
    pub(super) fn new(bytes_per_second: Option<u64>, now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Bucket::new(bytes_per_second, now))))
    }

    /// Another cap from now on; what was sent before still counts.
    pub(super) fn set(&self, bytes_per_second: Option<u64>, now: Instant) {
        self.lock().set_rate(bytes_per_second, now);
    }

    /// When the next datagrams may leave; in the past: now.
    fn ready_at(&self) -> Option<Instant> {
        self.lock().ready_at()
    }

    fn sent(&self, bytes: usize, now: Instant) {
        self.lock().sent(bytes as u64, now);
    }

    /// Datagrams that may leave in one piece without more than a burst being under way.
    fn datagrams_max(&self) -> usize {
        self.lock().burst_bytes().map_or(usize::MAX, |bytes| (bytes / DATAGRAM_BYTES_MAX).max(1) as usize)
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
