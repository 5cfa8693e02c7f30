//! Episodes that are known and on their robots alone, and asking for them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::EpisodeId;

use super::Api;
use super::error::{ApiError, ErrorCode};
use super::extract::{JsonBody, Query};
use super::page::{PAGE_ITEMS_MAX, Page, PageQuery, parse_cursor};
use crate::metadata::{MetadataError, NotedRecord, NotedState};

/// An episode that its robot described and the hub does not hold.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct NotedView {
    /// Its id: the hash of its manifest.
    #[schema(value_type = String)]
    pub id: EpisodeId,
    /// Whose.
    pub robot: String,
    /// Which of the robot's recordings.
    pub ordinal: u64,
    /// What it is about.
    pub task: String,
    /// `success`, `failure` or `unknown`.
    pub outcome: String,
    /// Whether a person took over in it.
    pub interventions: bool,
    /// Its steps.
    pub steps: u64,
    /// Bytes of its chunks.
    pub bytes: u64,
    /// When the robot first described it, in milliseconds since 1970.
    pub noted_unix_ms: u64,
    /// `noted`: nobody asked for it; `requested`: its robot sends it, or will when it connects; `given-up`: its robot had
    /// no room for it any more, and it never comes.
    pub state: String,
}

impl From<NotedRecord> for NotedView {
    fn from(record: NotedRecord) -> Self {
        let state = match record.state {
            NotedState::Noted => "noted",
            NotedState::Requested => "requested",
            NotedState::GivenUp => "given-up",
        };
        Self {
            id: record.id,
            robot: record.robot.to_string(),
            ordinal: record.ordinal,
            task: record.task.to_string(),
            outcome: record.outcome.to_string(),
            interventions: record.interventions,
            steps: record.steps,
            bytes: record.bytes,
            noted_unix_ms: record.noted_unix_ms,
            state: state.to_owned(),
        }
    }
}

/// Episodes to be sent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EpisodeRequest {
    /// Ids of noted episodes, at most 1000.
    #[schema(value_type = Vec<String>)]
    pub episodes: Vec<EpisodeId>,
}

/// Lists episodes that are on their robots alone: described in the mode `metadata-first`, and not arrived since.
#[utoipa::path(get, path = "/v1/noted-episodes", tag = "episodes", operation_id = "list_noted_episodes",
    params(PageQuery), responses((status = 200, description = "By robot and recording", body = Page<NotedView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<NotedView>>, ApiError> {
    let limit = page.limit()?;
    let after = parse_cursor(page.cursor.as_deref())?;
    let found = api.hub.noted_episodes(&api.tenant, after.as_ref(), limit as u32 + 1).await;
    let found = found.map_err(|error| ApiError::internal("list noted episodes", &error))?;
    let page = Page::cut(found, limit, |last| last.cursor().to_string());
    Ok(Json(page.map(NotedView::from)))
}

/// Asks robots for episodes, all of these or none. Connected robots send them now, the others when they connect.
#[utoipa::path(post, path = "/v1/noted-episodes/request", tag = "episodes", operation_id = "request_episodes",
    request_body = EpisodeRequest,
    responses((status = 204, description = "Asked for"),
        (status = 404, description = "One of them is not noted", body = ApiError),
        (status = 422, description = "Too many", body = ApiError)))]
pub(super) async fn request(
    State(api): State<Api>,
    JsonBody(request): JsonBody<EpisodeRequest>,
) -> Result<StatusCode, ApiError> {
    if request.episodes.len() > PAGE_ITEMS_MAX as usize {
        let message = format!("{} episodes are too many; ask for {PAGE_ITEMS_MAX} at a time", request.episodes.len());
        return Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("episodes"));
    }
    match api.hub.request_episodes(&api.tenant, &request.episodes).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(MetadataError::Missing { what, id }) => Err(ApiError::not_found(what, id).in_field("episodes")),
        Err(error) => Err(ApiError::internal("ask for episodes", &error)),
    }
}
