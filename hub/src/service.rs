//! A whole hub in one process: robots' port, trainer and HTTP API, started and stopped in order.
//!
//! A shell: it builds, binds, and stops. The parts decide.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;
use zunft_protocol::ids::{ReleaseId, SkillName, SkillVersion, SnapshotId, TenantId};
use zunft_skills::data::EpisodeSource;

use crate::config::HubConfig;
use crate::http;
use crate::hub::{Change, Handle, Hub, StartError};
use crate::registry::PublishError;
use crate::trainer::{Publication, RobotSet, RunId, Trainer, TrainerHandle, Workshop, WorkshopError};

/// Why a hub with its API does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The hub itself.
    #[error(transparent)]
    Hub(#[from] StartError),
    /// The API's port.
    #[error("cannot listen for HTTP on {address}; stop what uses the port, or set http.listen to another")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The API itself.
    #[error("the HTTP API cannot be built")]
    Http(#[from] http::RouterError),
}

/// A running hub with its trainer and API.
pub struct Service {
    hub: Handle,
    trainer: TrainerHandle,
    http_addr: SocketAddr,
    /// Ends the API first, so that nobody asks for runs that nobody would train.
    stop_http: CancellationToken,
    http: TaskTracker,
    stop_trainer: CancellationToken,
    training: TaskTracker,
}

impl Service {
    /// Starts everything.
    pub async fn start(config: HubConfig) -> Result<Self, ServiceError> {
        let hub = Hub::start(config).await?;
        let bound = bind(&hub).await;
        let (listener, http_addr) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                hub.shutdown().await;
                return Err(error);
            }
        };
        let data_dir = hub.config().data_dir.clone();
        let workshop = HubWorkshop { hub: hub.clone(), runtime: tokio::runtime::Handle::current() };
        let trainer = Trainer::new(hub.metadata().clone(), data_dir.join("runs"), Arc::new(workshop));
        let handle = trainer.handle();
        let (stop_http, stop_trainer) = (CancellationToken::new(), CancellationToken::new());
        let uploads = data_dir.join("uploads");
        let router = match http::router(hub.clone(), handle.clone(), uploads, stop_http.clone()) {
            Ok(router) => router,
            Err(error) => {
                hub.shutdown().await;
                return Err(error.into());
            }
        };
        let (http, training) = (TaskTracker::new(), TaskTracker::new());
        http.spawn(http::serve(listener, router, stop_http.clone()));
        training.spawn(trainer.run(stop_trainer.clone()));
        http.close();
        training.close();
        info!(%http_addr, "HTTP API is up");
        Ok(Self { hub, trainer: handle, http_addr, stop_http, http, stop_trainer, training })
    }

    /// The hub.
    pub fn hub(&self) -> &Handle {
        &self.hub
    }

    /// The trainer.
    pub fn trainer(&self) -> &TrainerHandle {
        &self.trainer
    }

    /// Where the API listens: the port is real even where the configuration said 0.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Stops in order: the API, the trainer with a checkpoint, the hub.
    pub async fn shutdown(self) {
        self.stop_http.cancel();
        self.http.wait().await;
        self.stop_trainer.cancel();
        self.training.wait().await;
        self.hub.shutdown().await;
    }
}

async fn bind(hub: &Handle) -> Result<(TcpListener, SocketAddr), ServiceError> {
    let address = hub.config().http.listen;
    let failed = |source| ServiceError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// The hub as its trainer sees it.
#[derive(Debug)]
struct HubWorkshop {
    hub: Handle,
    runtime: tokio::runtime::Handle,
}

impl Workshop for HubWorkshop {
    fn open_snapshot(&self, tenant: &TenantId, id: SnapshotId) -> Result<Box<dyn EpisodeSource>, WorkshopError> {
        Ok(Box::new(self.runtime.block_on(self.hub.snapshot_source(tenant, id))?))
    }

    fn next_version(&self, tenant: &TenantId, skill: &SkillName) -> Result<SkillVersion, WorkshopError> {
        Ok(self.runtime.block_on(self.hub.next_version(tenant, skill))?)
    }

    fn publish(&self, tenant: &TenantId, _release: &ReleaseId, folder: &Path) -> Result<Publication, WorkshopError> {
        match self.runtime.block_on(self.hub.publish(tenant, folder)) {
            Ok(_record) => Ok(Publication::Published),
            Err(PublishError::Version { .. }) => Ok(Publication::Taken),
            Err(error) => Err(error.into()),
        }
    }

    fn assign(&self, tenant: &TenantId, release: &ReleaseId, robots: &RobotSet) -> Result<(), WorkshopError> {
        self.runtime.block_on(self.hub.assign(tenant, &robots.clone().into(), release))?;
        Ok(())
    }

    fn run_changed(&self, tenant: &TenantId, run: RunId) {
        self.hub.announce(Change::Run { tenant: tenant.clone(), run: run.to_string() });
    }
}
