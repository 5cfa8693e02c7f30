//! Snapshots: frozen lists of episodes, which is all that training reads.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::SnapshotId;
use zunft_skills::data::EpisodeSource as _;

use super::Api;
use super::error::ApiError;
use super::extract::{JsonBody, Path, Query};
use super::page::{Page, PageQuery, parse_cursor};
use crate::metadata::{EpisodeFilter, SnapshotRecord};

/// A snapshot to be frozen.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Which episodes: lists `tasks`, `robots`, `sites`, `outcomes`, `endings`, `actors`, `releases`,
    /// `embodiments` and numbers `ordinal_min`, `ordinal_max`, `arrived_after`. Absent ones allow everything.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub query: EpisodeFilter,
}

/// One snapshot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// Its id: the hash of its list.
    #[schema(value_type = String)]
    pub id: SnapshotId,
    /// The query that selected its episodes.
    #[schema(value_type = Object)]
    pub query: serde_json::Value,
    /// How many episodes it lists.
    pub episodes: u64,
    /// When it was frozen.
    pub created_unix_ms: u64,
}

impl From<SnapshotRecord> for SnapshotView {
    fn from(record: SnapshotRecord) -> Self {
        let query = serde_json::from_str(&record.query).unwrap_or(serde_json::Value::String(record.query));
        Self { id: record.id, query, episodes: record.episodes, created_unix_ms: record.created_unix_ms }
    }
}

/// Freezes the episodes that pass a query.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", operation_id = "create_snapshot",
    request_body = SnapshotRequest,
    responses((status = 201, description = "Frozen; the same episodes give the same id", body = SnapshotView),
        (status = 422, description = "The query selects nothing", body = ApiError)))]
pub(super) async fn create(
    State(api): State<Api>,
    JsonBody(request): JsonBody<SnapshotRequest>,
) -> Result<(StatusCode, Json<SnapshotView>), ApiError> {
    Ok((StatusCode::CREATED, Json(freeze(&api, &request.query).await?.into())))
}

/// Freezes episodes; at least one.
pub(super) async fn freeze(api: &Api, query: &EpisodeFilter) -> Result<SnapshotRecord, ApiError> {
    Ok(api.hub.create_snapshot(&api.tenant, query).await?)
}

/// Lists snapshots, the newest first.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", operation_id = "list_snapshots", params(PageQuery),
    responses((status = 200, description = "Snapshots, newest first", body = Page<SnapshotView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<SnapshotView>>, ApiError> {
    let limit = page.limit()?;
    let after: Option<SnapshotId> = parse_cursor(page.cursor.as_deref())?;
    let records = api.hub.metadata().snapshots(&api.tenant).await;
    let records = records.map_err(|error| ApiError::internal("list the snapshots", &error))?;
    let begin = after.map_or(0, |after| records.iter().position(|record| record.id == after).map_or(0, |at| at + 1));
    let views = records.into_iter().skip(begin).take(limit + 1).map(SnapshotView::from).collect();
    Ok(Json(Page::cut(views, limit, |last: &SnapshotView| last.id.to_string())))
}

/// Shows one snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", operation_id = "show_snapshot",
    params(("snapshot" = String, Path, description = "Its id: 64 hexadecimal digits")),
    responses((status = 200, description = "The snapshot", body = SnapshotView),
        (status = 404, description = "No such snapshot", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<SnapshotId>) -> Result<Json<SnapshotView>, ApiError> {
    Ok(Json(find(&api, id).await?.into()))
}

/// Finds a snapshot.
pub(super) async fn find(api: &Api, id: SnapshotId) -> Result<SnapshotRecord, ApiError> {
    let found = api.hub.metadata().snapshot(&api.tenant, id).await;
    let found = found.map_err(|error| ApiError::internal("find the snapshot", &error))?;
    found.ok_or_else(|| ApiError::not_found("snapshot", id))
}

/// Returns a snapshot's list of episodes (deterministic CBOR, which its id is the hash of).
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}/list", tag = "snapshots", operation_id = "download_snapshot",
    params(("snapshot" = String, Path, description = "Its id: 64 hexadecimal digits")),
    responses((status = 200, description = "The list", body = Vec<u8>, content_type = "application/cbor"),
        (status = 404, description = "No such snapshot", body = ApiError)))]
pub(super) async fn download(
    State(api): State<Api>,
    Path(id): Path<SnapshotId>,
) -> Result<impl IntoResponse, ApiError> {
    let source = api.hub.snapshot_source(&api.tenant, id).await?;
    Ok(([(header::CONTENT_TYPE, "application/cbor")], source.snapshot().encode()))
}
