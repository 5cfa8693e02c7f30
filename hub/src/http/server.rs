//! Accepts connections and serves them until told to stop: bounded in number, dropped where they stall.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// Most connections at once; further ones wait in the listener's backlog.
///
/// A person's browser opens six, an import one; this leaves room for a team and its scripts.
const CONNECTIONS_MAX: usize = 256;

/// How long a request's head may take, and a connection without a request lie idle.
const HEAD_SECS_MAX: u64 = 30;

/// How long a client may take no byte of an answer.
const WRITE_IDLE_SECS_MAX: u64 = 30;

/// How long answers may take to finish once the hub stops.
const GRACE_SECS: u64 = 5;

/// Pause after a failure to accept, such as too many open files.
const ACCEPT_RETRY_MILLIS: u64 = 100;

/// Serves `router` on `listener` until `stop`, then lets answers finish for a few seconds.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tracker = TaskTracker::new();
    loop {
        let Some(accepted) = stop.run_until_cancelled(accept(&listener, &permits)).await else {
            break;
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = serve_connection(stream, router.clone(), stop.clone());
                tracker.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MILLIS)).await;
            }
        }
    }
    drop(listener);
    tracker.close();
    if tokio::time::timeout(Duration::from_secs(GRACE_SECS), tracker.wait()).await.is_err() {
        warn!(connections = tracker.len(), "connections cut off at stop");
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.expect("this semaphore is never closed");
    let (stream, _peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, permit))
}

async fn serve_connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    let io = TokioIo::new(Box::pin(WriteGuard::new(stream, Duration::from_secs(WRITE_IDLE_SECS_MAX))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(HEAD_SECS_MAX))
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

/// A stream whose writes fail when the peer takes nothing for `idle_max`.
struct WriteGuard<T> {
    inner: T,
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
    idle_max: Duration,
}

impl<T> WriteGuard<T> {
    fn new(inner: T, idle_max: Duration) -> Self {
        Self { inner, deadline: Box::pin(tokio::time::sleep(Duration::ZERO)), waiting: false, idle_max }
    }

    /// Passes progress through; without any, waits at most until the deadline.
    fn guard<R>(&mut self, context: &mut Context<'_>, progress: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if progress.is_ready() {
            self.waiting = false;
            return progress;
        }
        if !self.waiting {
            self.waiting = true;
            let idle_max = self.idle_max;
            self.deadline.as_mut().reset(Instant::now() + idle_max);
        }
        ready!(self.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for WriteGuard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for WriteGuard<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.guard(context, progress)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_flush(context);
        self.guard(context, progress)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.inner).poll_shutdown(context);
        self.guard(context, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.guard(context, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_nobody_takes_is_given_up() {
        let (ours, _theirs) = tokio::io::duplex(16);
        let error = WriteGuard::new(ours, Duration::from_millis(5)).write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
