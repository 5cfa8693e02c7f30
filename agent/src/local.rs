//! The local socket: control programs record, act and ask. docs/local-socket.md is its specification.
//!
//! One OS thread a connection, blocking, no async runtime: what a control loop waits for is this thread and
//! nothing else. It never touches disk or network; the spool and the policies have threads of their own.

mod acting;
mod connection;
mod encoder;
mod recording;
mod refusal;
mod samples;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use self::connection::Connection;
use crate::activity::Activity;
use crate::clock::RobotClock;
use crate::embodiment::Body;
use crate::events::Events;
use crate::releases::Releases;
use crate::spool::Spool;
use crate::status::Status;

/// Control programs that may be connected at once: each has a thread, and a robot runs a handful.
pub const CONNECTIONS_MAX: usize = 64;

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An agent answers there.
    #[error("an agent already listens at {}; stop it, or give this one a socket of its own", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} exists and is no socket; remove it or choose another path", path.display())]
    NotASocket {
        /// Where.
        path: PathBuf,
    },
    /// The system.
    #[error("could not listen at {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What connections work with.
pub(crate) struct Services {
    pub(crate) spool: Spool,
    pub(crate) releases: Releases,
    pub(crate) body: Arc<Body>,
    pub(crate) clock: Arc<RobotClock>,
    pub(crate) events: Arc<Events>,
    pub(crate) activity: Arc<Activity>,
    /// Answers STATUS.
    pub(crate) status: Box<dyn Fn() -> Status + Send + Sync>,
}

struct Shared {
    services: Services,
    stopping: AtomicBool,
    connections: Mutex<BTreeMap<u64, (UnixStream, JoinHandle<()>)>>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, (UnixStream, JoinHandle<()>)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The socket while it is open.
pub(crate) struct LocalServer {
    path: PathBuf,
    listener: UnixListener,
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

impl LocalServer {
    /// Serves whoever connects to `listener`, which is bound to `path`.
    pub(crate) fn start(path: &Path, listener: UnixListener, services: Services) -> Result<Self, ListenError> {
        let shared =
            Arc::new(Shared { services, stopping: AtomicBool::new(false), connections: Mutex::new(BTreeMap::new()) });
        let for_thread = Arc::clone(&shared);
        let failed = |source| ListenError::Io { path: path.to_owned(), source };
        let accepting = listener.try_clone().map_err(failed)?;
        let acceptor = std::thread::Builder::new()
            .name("local".into())
            .spawn(move || accept(&accepting, &for_thread))
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), listener, shared, acceptor })
    }

    /// Accepts no more programs, lets every connection seal what it has open, and waits for them.
    pub(crate) fn stop(self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes the acceptor, which then sees that it shall stop.
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::error!(%error, "the local socket does not close");
        }
        if self.acceptor.join().is_err() {
            tracing::error!("the local socket's thread failed");
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "the socket could not be removed");
        }
        let connections = std::mem::take(&mut *self.shared.connections());
        for (stream, _) in connections.values() {
            // One that has closed already needs no more.
            drop(stream.shutdown(Shutdown::Both));
        }
        for (_, thread) in connections.into_values() {
            drop(thread.join());
        }
    }
}

/// Opens the socket, in place of one that a dead agent left behind.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    use std::os::unix::fs::FileTypeExt as _;
    let failed = |source| ListenError::Io { path: path.to_owned(), source };
    if let Ok(metadata) = path.symlink_metadata() {
        if !metadata.file_type().is_socket() {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        if UnixStream::connect(path).is_ok() {
            return Err(ListenError::InUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    // The owner and the group may record and act; who else may is the folder's affair.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for number in 0.. {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: those who are connected go on.
                tracing::warn!(%error, "a control program could not connect");
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
        };
        shared.connections().retain(|_, (_, thread)| !thread.is_finished());
        if shared.connections().len() >= CONNECTIONS_MAX {
            connection::turn_away(stream);
            continue;
        }
        if let Err(error) = serve(number, stream, shared) {
            tracing::warn!(%error, "a control program could not be served");
        }
    }
}

fn serve(number: u64, stream: UnixStream, shared: &Arc<Shared>) -> io::Result<()> {
    let handle = stream.try_clone()?;
    let for_thread = Arc::clone(shared);
    // Holds the list until the thread is in it, so that a stop cannot miss it.
    let mut connections = shared.connections();
    let thread = std::thread::Builder::new().name("client".into()).spawn(move || {
        Connection::new(stream, &for_thread.services, &for_thread.stopping).run();
    })?;
    connections.insert(number, (handle, thread));
    Ok(())
}
