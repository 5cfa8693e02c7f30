//! Episodes: what the fleet lived through, and bringing in what was recorded elsewhere.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::episode::{Manifest, Outcome};
use zunft_protocol::ids::{ChunkId, EpisodeId, ReleaseId, RobotId, TaskName};
use zunft_protocol::limits::{CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX};
use zunft_skills::data::ActorKind;

use super::Api;
use super::error::{ApiError, ErrorCode};
use super::extract::{Path, Query, read_body};
use super::page::{Page, limit, parse_cursor};
use super::staging::STAGED_BYTES_MAX;
use crate::metadata::{EpisodeFilter, EpisodeRecord};

/// Which episodes to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EpisodeQuery {
    /// Of this task.
    #[param(value_type = Option<String>)]
    pub task: Option<TaskName>,
    /// Of this robot.
    #[param(value_type = Option<String>)]
    pub robot: Option<RobotId>,
    /// `success`, `failure` or `unknown`.
    #[param(value_type = Option<String>)]
    pub outcome: Option<Outcome>,
    /// `human`, `script` or `release`.
    #[param(value_type = Option<String>)]
    pub actor: Option<ActorKind>,
    /// Where this release acted, for example `pick-place@7`.
    #[param(value_type = Option<String>)]
    pub release: Option<ReleaseId>,
    /// Most items to return: 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; the first page without it.
    pub cursor: Option<String>,
}

impl EpisodeQuery {
    fn filter(&self) -> Result<EpisodeFilter, ApiError> {
        Ok(EpisodeFilter {
            tasks: self.task.iter().cloned().collect(),
            robots: self.robot.iter().cloned().collect(),
            outcomes: self.outcome.iter().copied().collect(),
            actors: self.actor.iter().copied().collect(),
            releases: self.release.iter().cloned().collect(),
            arrived_after: parse_cursor(self.cursor.as_deref())?,
            ..EpisodeFilter::default()
        })
    }
}

/// One episode, without its steps.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EpisodeView {
    /// Its id: the hash of its manifest.
    #[schema(value_type = String)]
    pub id: EpisodeId,
    /// Counts the episodes of this hub in the order of arrival, from 1.
    pub arrival: u64,
    /// Whose.
    pub robot: String,
    /// Where.
    pub site: String,
    /// Which of the robot's recordings.
    pub ordinal: u64,
    /// What it was about.
    pub task: String,
    /// Id of the body.
    pub embodiment: String,
    /// Who acted: `human`, `script` or `release`.
    #[schema(value_type = String)]
    pub actor: ActorKind,
    /// Which release acted, if one did.
    pub release: Option<String>,
    /// `success`, `failure` or `unknown`.
    #[schema(value_type = String)]
    pub outcome: Outcome,
    /// `terminated`, `truncated` or `aborted`.
    #[schema(value_type = String)]
    pub ending: crate::metadata::EndingKind,
    /// Steps.
    pub steps: u64,
    /// Stored bytes of its chunks.
    pub bytes: u64,
    /// Estimate of when it began, nanoseconds since 1970.
    pub begin_wall_ns: i64,
    /// When it became durable here.
    pub stored_unix_ms: u64,
}

impl From<EpisodeRecord> for EpisodeView {
    fn from(record: EpisodeRecord) -> Self {
        Self {
            id: record.id,
            arrival: record.arrival,
            robot: record.robot.to_string(),
            site: record.site.to_string(),
            ordinal: record.ordinal,
            task: record.task.to_string(),
            embodiment: record.embodiment.to_string(),
            actor: record.actor,
            release: record.release.map(|release| release.to_string()),
            outcome: record.outcome,
            ending: record.ending,
            steps: record.steps,
            bytes: record.bytes,
            begin_wall_ns: record.begin_wall_ns,
            stored_unix_ms: record.stored_unix_ms,
        }
    }
}

/// One episode with its manifest.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct EpisodeDetail {
    /// What the hub knows of it.
    #[serde(flatten)]
    pub episode: EpisodeView,
    /// Everything about it but its steps, as JSON: streams, chunks, embodiment, clock.
    #[schema(value_type = Object)]
    pub manifest: Manifest,
}

/// How many episodes of a task ended how.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct TaskCount {
    /// Episodes of the task.
    pub episodes: u64,
    /// Of them, successes.
    pub success: u64,
    /// Of them, failures.
    pub failure: u64,
    /// Of them, those about which nobody said.
    pub unknown: u64,
}

/// Counts over the episodes of a query.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct EpisodeSummary {
    /// Episodes.
    pub episodes: u64,
    /// Steps over all.
    pub steps: u64,
    /// Stored bytes of their chunks.
    pub bytes: u64,
    /// By task.
    pub tasks: BTreeMap<String, TaskCount>,
}

/// What became of an imported episode.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum ImportAnswer {
    /// It is stored and survives a power cut; its source is no longer needed.
    Durable {
        /// Its id.
        #[schema(value_type = String)]
        episode: EpisodeId,
    },
    /// Send these with `PUT /v1/chunks/{chunk}`, then the manifest again.
    Missing {
        /// Ids of the chunks.
        #[schema(value_type = Vec<String>)]
        chunks: Vec<ChunkId>,
    },
}

/// Lists episodes in the order of their arrival.
#[utoipa::path(get, path = "/v1/episodes", tag = "episodes", operation_id = "list_episodes", params(EpisodeQuery),
    responses((status = 200, description = "Episodes, oldest arrival first", body = Page<EpisodeView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(query): Query<EpisodeQuery>,
) -> Result<Json<Page<EpisodeView>>, ApiError> {
    let limit = limit(query.limit)? as u32;
    let page = api.hub.episodes(&api.tenant, &query.filter()?, limit).await;
    let page = page.map_err(|error| ApiError::internal("list the episodes", &error))?;
    let next_cursor = page.next.map(|arrival| arrival.to_string());
    Ok(Json(Page { items: page.episodes.into_iter().map(EpisodeView::from).collect(), next_cursor }))
}

/// Shows one episode with its manifest.
#[utoipa::path(get, path = "/v1/episodes/{episode}", tag = "episodes", operation_id = "show_episode",
    params(("episode" = String, Path, description = "Its id: 64 hexadecimal digits")),
    responses((status = 200, description = "The episode", body = EpisodeDetail),
        (status = 404, description = "No such episode", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(id): Path<EpisodeId>) -> Result<Json<EpisodeDetail>, ApiError> {
    let (record, manifest) = find(&api, id).await?;
    Ok(Json(EpisodeDetail { episode: record.into(), manifest }))
}

/// Returns the exact bytes of an episode's manifest (deterministic CBOR, which its id is the hash of).
#[utoipa::path(get, path = "/v1/episodes/{episode}/manifest", tag = "episodes", operation_id = "download_manifest",
    params(("episode" = String, Path, description = "Its id: 64 hexadecimal digits")),
    responses((status = 200, description = "The manifest", body = Vec<u8>, content_type = "application/cbor"),
        (status = 404, description = "No such episode", body = ApiError)))]
pub(super) async fn manifest(State(api): State<Api>, Path(id): Path<EpisodeId>) -> Result<impl IntoResponse, ApiError> {
    let (_record, manifest) = find(&api, id).await?;
    Ok(([(header::CONTENT_TYPE, "application/cbor")], manifest.encode()))
}

async fn find(api: &Api, id: EpisodeId) -> Result<(EpisodeRecord, Manifest), ApiError> {
    let found = api.hub.episode(&api.tenant, id).await;
    let found = found.map_err(|error| ApiError::internal("read the episode", &error))?;
    found.ok_or_else(|| ApiError::not_found("episode", id))
}

/// Counts episodes by task and outcome.
#[utoipa::path(get, path = "/v1/episodes/summary", tag = "episodes", operation_id = "summarise_episodes",
    responses((status = 200, description = "The counts", body = EpisodeSummary)))]
pub(super) async fn summary(State(api): State<Api>) -> Result<Json<EpisodeSummary>, ApiError> {
    let counts = api.hub.metadata().task_counts(&api.tenant).await;
    let counts = counts.map_err(|error| ApiError::internal("count the episodes", &error))?;
    let mut summary = EpisodeSummary::default();
    for count in counts {
        summary.episodes += count.episodes;
        summary.steps += count.steps;
        summary.bytes += count.bytes;
        let task = summary.tasks.entry(count.task.to_string()).or_default();
        task.episodes += count.episodes;
        match count.outcome {
            Outcome::Success => task.success += count.episodes,
            Outcome::Failure => task.failure += count.episodes,
            Outcome::Unknown => task.unknown += count.episodes,
        }
    }
    Ok(Json(summary))
}

/// Sends a chunk of an episode that is about to be imported.
#[utoipa::path(put, path = "/v1/chunks/{chunk}", tag = "episodes", operation_id = "upload_chunk",
    params(("chunk" = String, Path, description = "BLAKE3 of the bytes: 64 hexadecimal digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "At most 1 MiB"),
    responses((status = 204, description = "It waits for its manifest"),
        (status = 413, description = "Too large", body = ApiError),
        (status = 422, description = "The bytes have another hash", body = ApiError)))]
pub(super) async fn upload_chunk(
    State(api): State<Api>,
    Path(id): Path<ChunkId>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let bytes = read_body(body, "the chunk", CHUNK_BYTES_MAX).await?;
    let found = ChunkId::of(&bytes);
    if found != id {
        let message = format!("the bytes are chunk {found}, not {id}; send them under their own id");
        return Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("chunk"));
    }
    api.chunks.put(id, bytes);
    Ok(StatusCode::NO_CONTENT)
}

/// Returns the stored bytes of a chunk: some consecutive steps of an episode, column by column.
///
/// A manifest's `streams` list the chunks and the columns. The bytes: `ZNC1`, codec u8 (0 as is, 1 zstd), 3 zero
/// bytes, steps u32, payload size u32, then the payload, all little-endian; the payload holds all steps of the
/// first column, then of the second, and so on.
///
/// A camera's stream (its schema has an `encoding`) has codec 2 (JPEG) or 3 (H.264), and the first of the zero bytes is
/// 1 where the chunk begins inside a group of pictures. Its payload holds i64 times, u32 lengths and u8 key frame
/// marks of all images, then the images one after another, as the robot's program gave them.
#[utoipa::path(get, path = "/v1/chunks/{chunk}", tag = "episodes", operation_id = "download_chunk",
    params(("chunk" = String, Path, description = "Its id: 64 hexadecimal digits")),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "No such chunk", body = ApiError)))]
pub(super) async fn download_chunk(
    State(api): State<Api>,
    Path(id): Path<ChunkId>,
) -> Result<impl IntoResponse, ApiError> {
    let found = api.hub.chunk(&api.tenant, id).await;
    let found = found.map_err(|error| ApiError::internal("read the chunk", &error))?;
    let bytes = found.ok_or_else(|| ApiError::not_found("chunk", id))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes))
}

/// Imports an episode: its manifest, after its chunks.
///
/// Post the manifest first: the answer names the chunks to send. Posting an episode that is stored is answered
/// `durable` again.
#[utoipa::path(post, path = "/v1/episodes", tag = "episodes", operation_id = "import_episode",
    request_body(content = Vec<u8>, content_type = "application/cbor", description = "The manifest's exact bytes, at most 8 MiB"),
    responses((status = 200, description = "Stored, or what is missing for that", body = ImportAnswer),
        (status = 409, description = "Its recording has another episode already", body = ApiError),
        (status = 413, description = "Too large", body = ApiError),
        (status = 422, description = "Not a manifest of this hub's tenant", body = ApiError)))]
pub(super) async fn import(State(api): State<Api>, body: Body) -> Result<Json<ImportAnswer>, ApiError> {
    let bytes = read_body(body, "the manifest", MANIFEST_BYTES_MAX).await?;
    let manifest = Manifest::decode(&bytes).map_err(|error| ApiError::refused("manifest", &error))?;
    if manifest.tenant != api.tenant {
        let message = format!("the episode is of tenant {}; this token is for {}", manifest.tenant, api.tenant);
        return Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("manifest.tenant"));
    }
    let id = EpisodeId::of(&bytes);
    let known = api.hub.episode(&api.tenant, id).await;
    if known.map_err(|error| ApiError::internal("look for the episode", &error))?.is_some() {
        return Ok(Json(ImportAnswer::Durable { episode: id }));
    }
    let refs = || manifest.streams.iter().flat_map(|stream| &stream.chunks);
    let total: usize = refs().map(|chunk| chunk.bytes as usize).sum();
    if total > STAGED_BYTES_MAX {
        let message = format!("the episode has {total} bytes; over HTTP at most {STAGED_BYTES_MAX} are taken");
        return Err(ApiError::new(ErrorCode::TooLarge, message).in_field("manifest"));
    }
    let ids: Vec<ChunkId> = refs().map(|chunk| chunk.id).collect();
    let chunks = match api.chunks.collect(&ids) {
        Ok(chunks) => chunks,
        Err(chunks) => return Ok(Json(ImportAnswer::Missing { chunks })),
    };
    let episode = api.hub.import_episode(bytes.to_vec(), chunks).await?;
    api.chunks.forget(&ids);
    Ok(Json(ImportAnswer::Durable { episode }))
}
