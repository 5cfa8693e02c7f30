//! What robots gave up for want of room.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::RobotId;
use zunft_protocol::message::EvictionReason;

use super::Api;
use super::error::ApiError;
use super::extract::{Path, Query};
use super::page::{Page, PageQuery, parse_cursor};
use crate::metadata::{EvictionRecord, MetadataError};

/// One episode that a robot gave up before it could be uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) struct EvictionView {
    /// Which recording it was.
    pub(super) recording: String,
    /// Its number among the robot's recordings.
    pub(super) ordinal: u64,
    /// What it was about.
    pub(super) task: String,
    /// `success`, `failure` or `unknown`.
    pub(super) outcome: String,
    /// Whether a person took over in it.
    pub(super) interventions: bool,
    /// Its steps.
    pub(super) steps: u64,
    /// Bytes of its chunks.
    pub(super) bytes: u64,
    /// `quota`: the robot's spool was full; `disk-full`: its file system was.
    pub(super) reason: String,
    /// When the robot first told, in milliseconds since 1970.
    pub(super) told_unix_ms: u64,
}

impl From<EvictionRecord> for EvictionView {
    fn from(record: EvictionRecord) -> Self {
        let tombstone = record.tombstone;
        let reason = match tombstone.reason {
            EvictionReason::Quota => "quota",
            EvictionReason::DiskFull => "disk-full",
        };
        Self {
            recording: tombstone.recording.to_string(),
            ordinal: tombstone.ordinal,
            task: tombstone.task.to_string(),
            outcome: tombstone.outcome.to_string(),
            interventions: tombstone.interventions,
            steps: tombstone.steps,
            bytes: tombstone.bytes,
            reason: reason.to_owned(),
            told_unix_ms: record.told_unix_ms,
        }
    }
}

/// Lists what a robot gave up for want of room: these recordings never become episodes.
#[utoipa::path(get, path = "/v1/robots/{robot}/evictions", tag = "robots", operation_id = "list_evictions",
    params(("robot" = String, Path, description = "Its name"), PageQuery),
    responses((status = 200, description = "By number of the recording", body = Page<EvictionView>),
        (status = 404, description = "No such robot", body = ApiError)))]
pub(super) async fn list(
    State(api): State<Api>,
    Path(robot): Path<RobotId>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<EvictionView>>, ApiError> {
    let limit = page.limit()?;
    let after = parse_cursor(page.cursor.as_deref())?;
    let internal = |error: MetadataError| ApiError::internal("list what the robot gave up", &error);
    if api.hub.robot(&api.tenant, &robot).await.map_err(internal)?.is_none() {
        return Err(ApiError::not_found("robot", robot));
    }
    let found = api.hub.evictions(&api.tenant, &robot, after, limit as u32 + 1).await.map_err(internal)?;
    let page = Page::cut(found, limit, |last| last.cursor().to_string());
    Ok(Json(page.map(EvictionView::from)))
}
