//! The whole agent: what is started in which order, and stopped in which.

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::activity::{self, Activity};
use crate::clock::RobotClock;
use crate::config::{Config, ConfigError};
use crate::data_dir::{DataDir, DataDirError};
use crate::embodiment::{Body, BodyError};
use crate::events::Events;
use crate::identity::{self, Identity, IdentityError};
use crate::local::{self, ListenError, LocalServer};
use crate::metrics::MetricsServer;
use crate::releases::{Fetch, Releases, StoreError, Surroundings};
use crate::spool::{Spool, SpoolError};
use crate::status::{Sources, Status};
use crate::uplink::{self, Credentials, FetchLink, SharedStatus, Target, TlsError, Uplink, UploadRules};

/// How long a stop in good order may take; afterwards the process ends anyway, and loses nothing synced.
const GRACE: Duration = Duration::from_secs(10);

/// Threads of the async runtime, and of those that read the spool for it: it only moves bytes between the hub and the
/// disk. A second one would wake the first for every packet, which costs more than it carries.
const UPLINK_THREADS: usize = 1;

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Who the robot is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The robot's body.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The spool.
    #[error("the spool in {} cannot be opened", path.display())]
    Spool {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: SpoolError,
    },
    /// The releases.
    #[error(transparent)]
    Releases(#[from] StoreError),
    /// The way to the hub.
    #[error(transparent)]
    Uplink(#[from] TlsError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The port for numbers.
    #[error("could not listen at {address} (config key metrics.listen); is the port in use? choose another")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Threads or signals.
    #[error("the system gave no {what}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The agent.
#[derive(Debug, Clone, Copy)]
pub struct Agent;

/// A running agent. Dropped, it stops.
pub struct Handle {
    local: Option<LocalServer>,
    uplink: Option<(Runtime, CancellationToken, tokio::task::JoinHandle<()>)>,
    releases: Releases,
    spool: Spool,
    sources: Sources,
    metrics: Option<MetricsServer>,
    /// Held to the end: the folder is ours as long as anything may write to it.
    data_dir: DataDir,
}

impl Agent {
    /// Starts an agent in this process; it serves until the handle is stopped.
    pub fn start(config: &Config) -> Result<Handle, StartError> {
        Self::start_with(config, None)
    }

    /// Starts an agent that fetches releases elsewhere than from its hub.
    fn start_with(config: &Config, fetch: Option<Box<dyn Fetch>>) -> Result<Handle, StartError> {
        config.check()?;
        let data_dir = DataDir::open(&config.data_dir)?;
        let certificate = config.hub.certificate.as_deref().expect("checked: a certificate is configured");
        let identity = identity::read(certificate)?;
        let listener = local::listen(&config.socket)?;
        let clock = Arc::new(RobotClock::new());
        let body = Arc::new(Body::open(config.embodiment.as_deref(), data_dir.join("embodiment.json"))?);
        let events = Arc::new(Events::default());
        let acting = Arc::new(Activity::new(activity::now()));
        let hub = Arc::new(SharedStatus::default());
        let spool_folder = data_dir.join("spool");
        let spool = Spool::start(&spool_folder, &config.spool, identity.clone())
            .map_err(|source| StartError::Spool { path: spool_folder, source })?;
        let mut sources = Sources {
            identity: identity.clone(),
            clock: Arc::clone(&clock),
            body: Arc::clone(&body),
            spool: spool.clone(),
            releases: Releases::none(),
            hub,
        };
        // From here on, whatever fails drops the handle, and that stops what was started.
        let mut handle = Handle {
            local: None,
            uplink: None,
            releases: Releases::none(),
            spool: spool.clone(),
            sources: sources.clone(),
            metrics: None,
            data_dir,
        };
        let (from_hub, link) = uplink::fetch_link();
        if let Some(root) = &config.root {
            let surroundings = Surroundings {
                clock: Arc::clone(&clock),
                body: Arc::clone(&body),
                events: Arc::clone(&events),
                fetch: fetch.unwrap_or_else(|| Box::new(from_hub)),
            };
            let folder = handle.data_dir.join("releases");
            handle.releases = Releases::start(&folder, root, identity.robot.clone(), surroundings)?;
        }
        sources.releases = handle.releases.clone();
        handle.sources = sources.clone();
        handle.uplink = start_uplink(config, &sources, Arc::clone(&acting), link)?;
        let for_status = sources.clone();
        let services = local::Services {
            spool,
            releases: handle.releases.clone(),
            body,
            clock,
            events,
            activity: acting,
            status: Box::new(move || for_status.status()),
        };
        handle.metrics = start_metrics(config, &sources)?;
        handle.local = Some(LocalServer::start(&config.socket, listener, services)?);
        let Identity { tenant, site, robot } = identity;
        tracing::info!(%tenant, %site, %robot, socket = %config.socket.display(), "agent runs");
        Ok(handle)
    }
}

impl Handle {
    /// How the agent is.
    pub fn status(&self) -> Status {
        self.sources.status()
    }

    /// Stops in order: no new programs, open recordings sealed, everything on disk, the hub told.
    pub fn stop(mut self) {
        self.stop_all();
    }

    fn stop_all(&mut self) {
        drop(self.metrics.take());
        if let Some(local) = self.local.take() {
            local.stop();
        }
        self.spool.stop();
        if let Some((runtime, stop, uplink)) = self.uplink.take() {
            stop.cancel();
            let stopped = runtime.block_on(async { tokio::time::timeout(GRACE, uplink).await });
            if stopped.is_err() {
                tracing::warn!("the connection to the hub did not close in time");
            }
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        self.releases.stop();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop_all();
    }
}

fn start_metrics(config: &Config, sources: &Sources) -> Result<Option<MetricsServer>, StartError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let sources = sources.clone();
    let started = MetricsServer::start(address, move || sources.status());
    started.map(Some).map_err(|source| StartError::Metrics { address, source })
}

type StartedUplink = Option<(Runtime, CancellationToken, tokio::task::JoinHandle<()>)>;

fn start_uplink(
    config: &Config,
    sources: &Sources,
    activity: Arc<Activity>,
    link: FetchLink,
) -> Result<StartedUplink, StartError> {
    let Some(address) = config.hub.address.clone() else {
        tracing::info!("no hub.address: the agent works offline");
        return Ok(None);
    };
    let needed = |path: &Option<PathBuf>| path.clone().expect("checked: needed with hub.address");
    let credentials = Credentials {
        ca: needed(&config.hub.ca),
        certificate: needed(&config.hub.certificate),
        key: needed(&config.hub.key),
    };
    let server_name = config.hub.server_name.clone();
    let ping_interval_ms = config.hub.ping_interval_ms;
    let target = Target { address, server_name, credentials, ping_interval_ms, upload: config.upload.clone() };
    let rules = UploadRules::open(config.upload.clone(), config.data_dir.join("upload-policy.json"));
    sources.hub.policy(rules.status());
    let services = uplink::Services {
        spool: sources.spool.clone(),
        releases: sources.releases.clone(),
        body: Arc::clone(&sources.body),
        clock: Arc::clone(&sources.clock),
        activity,
        state: Arc::clone(&sources.hub),
    };
    let uplink = Uplink::new(target, services, &sources.identity, link)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(UPLINK_THREADS)
        .max_blocking_threads(UPLINK_THREADS)
        .thread_name("uplink")
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "async runtime", source })?;
    let stop = CancellationToken::new();
    let task = runtime.spawn(uplink.run(rules, stop.clone()));
    Ok(Some((runtime, stop, task)))
}

/// Runs an agent until `wait` returns, then stops it in order.
///
/// Call it from a thread that is not one of an async runtime.
pub fn run(config: &Config, wait: impl FnOnce()) -> Result<(), StartError> {
    let handle = Agent::start(config)?;
    wait();
    tracing::info!("agent stops");
    handle.stop();
    Ok(())
}

/// Runs an agent until SIGTERM or SIGINT. A second signal, or too long a stop, ends the process at once.
pub fn run_until_signal(config: &Config) -> Result<(), StartError> {
    let system = |what| move |source| StartError::System { what, source };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("async runtime"))?;
    let entered = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).map_err(system("signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("signal handler"))?;
    drop(entered);
    run(config, move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        let impatient = std::thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    () = tokio::time::sleep(GRACE * 2) => {}
                }
            });
            std::process::exit(1);
        });
        if let Err(error) = impatient {
            tracing::warn!(%error, "a second signal will not be noticed");
        }
    })
}
