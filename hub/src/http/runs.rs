//! Training runs: start, watch, stop, resume.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::{SkillName, SnapshotId};
use zunft_skills::data::Selection;
use zunft_skills::train::TrainConfig;

use super::Api;
use super::error::{ApiError, ErrorCode};
use super::extract::{JsonBody, Path, Query};
use super::page::{Page, PageQuery, parse_cursor};
use super::snapshots::{find as find_snapshot, freeze};
use crate::metadata::EpisodeFilter;
use crate::trainer::{RobotSet, Run, RunId, RunPlan, RunTableError};

/// Largest file of metrics that is returned: a million steps, reported every hundred, have a few megabytes.
const METRICS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A run to be started.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The skill to train.
    #[schema(value_type = String, example = "pick-place")]
    pub skill: SkillName,
    /// The snapshot to train on; or give `query`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub snapshot: Option<SnapshotId>,
    /// Freezes a snapshot of these episodes first, as `POST /v1/snapshots` does; or give `snapshot`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub query: Option<EpisodeFilter>,
    /// Which of the snapshot's episodes: `tasks`, `robots`, `actors`, `outcomes`, `episodes_per_task_max`.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub selection: Selection,
    /// Hyper-parameters, as `zunft train` takes them; absent keys have their defaults.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub config: TrainConfig,
    /// Whether the result becomes the skill's next release. Default: false.
    #[serde(default)]
    pub publish: bool,
    /// Which robots that release is assigned to, `"all"` or a list of names; it implies `publish`.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub assign: Option<RobotSet>,
}

/// What may change when a run is resumed.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// Whether the result becomes the skill's next release; absent: as before.
    #[serde(default)]
    pub publish: Option<bool>,
    /// Which robots that release is assigned to, `"all"` or a list of names; absent: as before.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub assign: Option<RobotSet>,
}

/// From where on metrics are wanted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MetricsQuery {
    /// Only lines of later steps.
    #[serde(default)]
    pub after_step: u64,
}

fn refused(error: RunTableError) -> ApiError {
    match &error {
        RunTableError::Unknown { .. } => ApiError::new(ErrorCode::NotFound, error.to_string()),
        RunTableError::State { .. } => ApiError::new(ErrorCode::Conflict, error.to_string()),
        RunTableError::Full => ApiError::new(ErrorCode::Busy, error.to_string()),
        RunTableError::Metadata(_) | RunTableError::Record { .. } => ApiError::internal("use the runs", &error),
    }
}

/// Puts a run into the queue.
#[utoipa::path(post, path = "/v1/runs", tag = "runs", operation_id = "start_run", request_body = RunRequest,
    responses((status = 201, description = "It waits or trains", body = Run),
        (status = 404, description = "No such snapshot", body = ApiError),
        (status = 422, description = "A configuration that no run can have, or a query that selects nothing", body = ApiError),
        (status = 503, description = "Too many runs wait", body = ApiError)))]
pub(super) async fn start(
    State(api): State<Api>,
    JsonBody(request): JsonBody<RunRequest>,
) -> Result<(StatusCode, Json<Run>), ApiError> {
    request.config.check().map_err(|error| ApiError::refused("config", &error))?;
    check_robots(&api, request.assign.as_ref()).await?;
    let snapshot = match (request.snapshot, &request.query) {
        (Some(id), None) => find_snapshot(&api, id).await?.id,
        (None, Some(query)) => freeze(&api, query).await?.id,
        (Some(_), Some(_)) | (None, None) => {
            let message = "give either snapshot or query; \"query\": {} takes every episode";
            return Err(ApiError::new(ErrorCode::BadRequest, message).in_field("snapshot"));
        }
    };
    let plan = RunPlan {
        skill: request.skill,
        snapshot,
        selection: request.selection,
        config: request.config,
        publish: request.publish,
        assign: request.assign,
    };
    let id = api.trainer.start(&api.tenant, plan).await.map_err(refused)?;
    let run = api.trainer.find(&api.tenant, id).await.map_err(refused)?;
    Ok((StatusCode::CREATED, Json(run)))
}

/// Refuses robots that the hub does not know: better now than after hours of training.
async fn check_robots(api: &Api, robots: Option<&RobotSet>) -> Result<(), ApiError> {
    let Some(RobotSet::Named(robots)) = robots else {
        return Ok(());
    };
    for robot in robots {
        let known = api.hub.robot(&api.tenant, robot).await;
        if known.map_err(|error| ApiError::internal("find the robot", &error))?.is_none() {
            let message = format!("there is no robot {robot} on this hub; add it first, or leave it out");
            return Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("assign"));
        }
    }
    Ok(())
}

/// Lists runs, the newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs", operation_id = "list_runs", params(PageQuery),
    responses((status = 200, description = "Runs, newest first", body = Page<Run>)))]
pub(super) async fn list(State(api): State<Api>, Query(page): Query<PageQuery>) -> Result<Json<Page<Run>>, ApiError> {
    let limit = page.limit()?;
    let before: Option<RunId> = parse_cursor(page.cursor.as_deref())?;
    let runs = api.trainer.list(&api.tenant, before, limit + 1).await.map_err(refused)?;
    Ok(Json(Page::cut(runs, limit, |last: &Run| last.id.to_string())))
}

/// Shows one run.
#[utoipa::path(get, path = "/v1/runs/{run}", tag = "runs", operation_id = "show_run",
    params(("run" = u32, Path, description = "Its number")),
    responses((status = 200, description = "The run", body = Run),
        (status = 404, description = "No such run", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<RunId>) -> Result<Json<Run>, ApiError> {
    api.trainer.find(&api.tenant, id).await.map(Json).map_err(refused)
}

/// Returns a run's metrics, one JSON object a line.
#[utoipa::path(get, path = "/v1/runs/{run}/metrics", tag = "runs", operation_id = "run_metrics",
    params(("run" = u32, Path, description = "Its number"), MetricsQuery),
    responses((status = 200, description = "One line a report, in the order of the steps",
            body = crate::trainer::MetricLine, content_type = "application/jsonl"),
        (status = 404, description = "No such run", body = ApiError)))]
pub(super) async fn metrics(
    State(api): State<Api>,
    Path(id): Path<RunId>,
    Query(query): Query<MetricsQuery>,
) -> Result<impl IntoResponse, ApiError> {
    api.trainer.find(&api.tenant, id).await.map_err(refused)?;
    let path = api.trainer.metrics_path(&api.tenant, id);
    let failed = |error: std::io::Error| ApiError::internal("read the metrics", &error);
    let text = match tokio::fs::metadata(&path).await {
        // It has not begun to train.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.len() > METRICS_BYTES_MAX => {
            let message =
                format!("the metrics have {} bytes; read {} on the hub's machine", found.len(), path.display());
            return Err(ApiError::new(ErrorCode::TooLarge, message));
        }
        Ok(_) => tokio::fs::read_to_string(&path).await.map_err(failed)?,
    };
    let later = |line: &&str| {
        let line: Result<crate::trainer::MetricLine, _> = serde_json::from_str(line);
        line.is_ok_and(|line| line.step > query.after_step)
    };
    let lines: String = text.lines().filter(later).flat_map(|line| [line, "\n"]).collect();
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], lines))
}

/// Asks a run to stop: it writes a checkpoint and can be resumed.
#[utoipa::path(post, path = "/v1/runs/{run}/stop", tag = "runs", operation_id = "stop_run",
    params(("run" = u32, Path, description = "Its number")),
    responses((status = 200, description = "It is stopping, or stopped where it had not begun", body = Run),
        (status = 404, description = "No such run", body = ApiError),
        (status = 409, description = "It has ended", body = ApiError)))]
pub(super) async fn stop(State(api): State<Api>, Path(id): Path<RunId>) -> Result<Json<Run>, ApiError> {
    api.trainer.stop(&api.tenant, id).await.map(Json).map_err(refused)
}

/// Puts a stopped or failed run into the queue again; or publishes one that succeeded without a release.
#[utoipa::path(post, path = "/v1/runs/{run}/resume", tag = "runs", operation_id = "resume_run",
    params(("run" = u32, Path, description = "Its number")), request_body = ResumeRequest,
    responses((status = 200, description = "It waits for its turn and goes on from its last checkpoint", body = Run),
        (status = 404, description = "No such run", body = ApiError),
        (status = 409, description = "It has not ended, or is published", body = ApiError),
        (status = 422, description = "A robot that is not known", body = ApiError),
        (status = 503, description = "Too many runs wait", body = ApiError)))]
pub(super) async fn resume(
    State(api): State<Api>,
    Path(id): Path<RunId>,
    JsonBody(request): JsonBody<ResumeRequest>,
) -> Result<Json<Run>, ApiError> {
    check_robots(&api, request.assign.as_ref()).await?;
    let run = api.trainer.resume(&api.tenant, id, request.publish, request.assign).await;
    run.map(Json).map_err(refused)
}
