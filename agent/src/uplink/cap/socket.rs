//! A UDP socket for quinn that sends no faster than the cap; a thin shell around the runtime's own.
//!
//! quinn calls `poll_writable` before every `try_send` and keeps the datagrams that do not go out, so a full bucket
//! delays packets and loses none.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::Sleep;

use super::Cap;
use crate::uplink::now;

/// See the module.
#[derive(Debug)]
pub(in crate::uplink) struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    cap: Cap,
}

impl CappedSocket {
    /// Sends through `inner` as `cap` allows.
    pub(in crate::uplink) fn new(inner: Arc<dyn AsyncUdpSocket>, cap: Cap) -> Self {
        Self { inner, cap }
    }
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let inner = Arc::clone(&self.inner).create_io_poller();
        Box::pin(CappedPoller { cap: self.cap.clone(), inner, sleep: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let now = now();
        if self.cap.ready_at().is_some_and(|at| at > now) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inner.try_send(transmit)?;
        // One transmit may hold many datagrams; its contents are all of them.
        self.cap.sent(transmit.contents.len(), now);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.cap.datagrams_max())
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Waits for the bucket, then for the socket.
#[derive(Debug)]
struct CappedPoller {
    cap: Cap,
    inner: Pin<Box<dyn UdpPoller>>,
    /// Made when first needed: most robots have no cap.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for CappedPoller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Another connection of this endpoint may have emptied the bucket while we slept: look again.
        while let Some(at) = this.cap.ready_at().filter(|&at| at > now()) {
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
            sleep.as_mut().reset(at.into());
            ready!(sleep.as_mut().poll(context));
        }
        this.inner.as_mut().poll_writable(context)
    }
}
