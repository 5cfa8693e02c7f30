//! The HTTP API under `/v1`, its OpenAPI document, and a page to look at the fleet.
//!
//! A shell around [`Handle`] and [`TrainerHandle`]: it reads requests, refuses what cannot be, and answers in one
//! shape. It decides nothing about robots, episodes or releases, and knows no stores. It is not encrypted: it
//! listens on loopback unless configured otherwise.

mod assignments;
mod auth;
mod episodes;
mod error;
mod evictions;
mod extract;
mod metrics;
mod noted;
mod openapi;
mod page;
mod refusals;
mod releases;
mod robots;
mod routes;
mod runs;
mod server;
mod snapshots;
mod staging;
mod status;
mod upload_policies;

use std::future::{Ready, ready};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::{Html, IntoResponse};
use axum::{Json, Router};
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi as _;
use zunft_protocol::ids::TenantId;
use zunft_protocol::release::Root;

use crate::hub::Handle;
use crate::pki::{PkiError, default_tenant};
use crate::trainer::TrainerHandle;
use auth::Guard;
use routes::Routes;
use staging::ChunkStaging;

pub use assignments::{AssignmentAnswer, AssignmentRequest, AssignmentView};
pub use episodes::{EpisodeDetail, EpisodeQuery, EpisodeSummary, EpisodeView, ImportAnswer, TaskCount};
pub use error::{ApiError, ErrorCode};
pub use noted::{EpisodeRequest, NotedView};
pub use page::{Page, PageQuery};
pub use releases::{PublishAnswer, ReleaseDetail, ReleaseView, SkillView, Verification};
pub use robots::{Fleet, RobotFiles, RobotRelease, RobotRequest, RobotUploadPolicy, RobotView};
pub use runs::{MetricsQuery, ResumeRequest, RunRequest};
pub use server::serve;
pub use snapshots::{SnapshotRequest, SnapshotView};
pub use status::HubStatus;
pub use upload_policies::{UploadPolicyBody, UploadPolicyView, WindowBody};

/// The page holds the token while it is open: it talks to nobody but this hub, and nobody frames it.
const DASHBOARD_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every handler can reach.
#[derive(Clone)]
struct Api {
    hub: Handle,
    trainer: TrainerHandle,
    /// Whose data the token opens: the tenant never comes from a request.
    tenant: TenantId,
    chunks: Arc<ChunkStaging>,
    /// Files of packages that wait for their manifests.
    uploads: PathBuf,
    uploads_made: Arc<AtomicU64>,
    /// Whose releases are trusted.
    root: Arc<Root>,
    stop: CancellationToken,
}

impl Api {
    /// A path below `uploads` that no other request uses.
    fn fresh_upload(&self, kind: &str) -> PathBuf {
        let number = self.uploads_made.fetch_add(1, Ordering::Relaxed);
        self.uploads.join(format!("{kind}-{number}"))
    }
}

/// Why the API cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The folder for uploads.
    #[error("cannot use {}", path.display())]
    Uploads {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The tenant's keys.
    #[error("cannot read whose releases are trusted")]
    Root(#[from] PkiError),
}

/// The router of the whole API. `stop` ends its streams.
///
/// `uploads` is a folder for files that wait for their manifest; what an earlier start left there is removed.
pub fn router(
    hub: Handle,
    trainer: TrainerHandle,
    uploads: PathBuf,
    stop: CancellationToken,
) -> Result<Router, RouterError> {
    let failed = |source| RouterError::Uploads { path: uploads.clone(), source };
    match std::fs::remove_dir_all(&uploads) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => std::fs::create_dir_all(&uploads).map_err(failed)?,
    }
    let guard = Arc::new(Guard::new(hub.admin_token(), hub.pki().admin_token_path()));
    let root = Arc::new(hub.pki().tenant(&default_tenant())?.root);
    let api = Api {
        hub,
        trainer,
        tenant: default_tenant(),
        chunks: Arc::new(ChunkStaging::default()),
        uploads,
        uploads_made: Arc::new(AtomicU64::new(0)),
        root,
        stop,
    };
    let guarded = guarded_routes().into_router();
    let guarded = guarded.route_layer(axum::middleware::from_fn_with_state(guard, auth::require_token));
    let open = open_routes().into_router();
    let router = guarded.merge(open).fallback(unknown_path).method_not_allowed_fallback(unknown_method);
    Ok(router.with_state(api))
}

/// What needs the token.
fn guarded_routes() -> Routes {
    Routes::new()
        .get("/v1/status", status::status)
        .get("/metrics", metrics::metrics)
        .get("/v1/events", status::events)
        .get("/v1/robots", robots::list)
        .post("/v1/robots", robots::add)
        .get("/v1/robots/{robot}", robots::show)
        .get("/v1/robots/{robot}/evictions", evictions::list)
        .get("/v1/robots/{robot}/upload-policy", upload_policies::show_of_robot)
        .put("/v1/robots/{robot}/upload-policy", upload_policies::set_of_robot)
        .delete("/v1/robots/{robot}/upload-policy", upload_policies::clear_of_robot)
        .get("/v1/upload-policy", upload_policies::show)
        .put("/v1/upload-policy", upload_policies::set)
        .delete("/v1/upload-policy", upload_policies::clear)
        .get("/v1/fleet", robots::fleet)
        .get("/v1/episodes", episodes::list)
        .post("/v1/episodes", episodes::import)
        .get("/v1/episodes/summary", episodes::summary)
        .get("/v1/episodes/{episode}", episodes::show)
        .get("/v1/episodes/{episode}/manifest", episodes::manifest)
        .get("/v1/chunks/{chunk}", episodes::download_chunk)
        .put("/v1/chunks/{chunk}", episodes::upload_chunk)
        .get("/v1/noted-episodes", noted::list)
        .post("/v1/noted-episodes/request", noted::request)
        .get("/v1/snapshots", snapshots::list)
        .post("/v1/snapshots", snapshots::create)
        .get("/v1/snapshots/{snapshot}", snapshots::show)
        .get("/v1/snapshots/{snapshot}/list", snapshots::download)
        .get("/v1/runs", runs::list)
        .post("/v1/runs", runs::start)
        .get("/v1/runs/{run}", runs::show)
        .get("/v1/runs/{run}/metrics", runs::metrics)
        .post("/v1/runs/{run}/stop", runs::stop)
        .post("/v1/runs/{run}/resume", runs::resume)
        .get("/v1/skills", releases::skills)
        .get("/v1/skills/{skill}/releases", releases::list)
        .get("/v1/releases/{release}", releases::show)
        .post("/v1/releases", releases::publish)
        .put("/v1/blobs/{digest}", releases::upload_blob)
        .get("/v1/blobs/{digest}", releases::download_blob)
        .post("/v1/verify", releases::verify)
        .get("/v1/assignments", assignments::list)
        .post("/v1/assignments", assignments::assign)
}

/// What holds no data: the page asks for the token itself.
fn open_routes() -> Routes {
    Routes::new().get("/", dashboard).get("/v1/openapi.json", openapi_document)
}

fn dashboard() -> Ready<impl IntoResponse> {
    ready(([(CONTENT_SECURITY_POLICY, DASHBOARD_POLICY)], Html(include_str!("http/dashboard.html"))))
}

fn openapi_document() -> Ready<Json<utoipa::openapi::OpenApi>> {
    ready(Json(openapi::Document::openapi()))
}

fn unknown_path(request: Request) -> Ready<ApiError> {
    let path = request.uri().path();
    let message = format!("there is nothing at {path}; /v1/openapi.json lists what there is");
    ready(ApiError::new(ErrorCode::NotFound, message))
}

fn unknown_method(request: Request) -> Ready<ApiError> {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not answer {method}; /v1/openapi.json lists what it answers");
    ready(ApiError::new(ErrorCode::MethodNotAllowed, message))
}

#[cfg(test)]
mod tests;
