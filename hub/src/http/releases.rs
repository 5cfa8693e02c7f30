//! Skills and their signed releases: list, show, publish.

use std::path::{Path as FilePath, PathBuf};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use utoipa::ToSchema;
use zunft_protocol::dsse::Envelope;
use zunft_protocol::ids::{Digest, ReleaseId, SkillName, SkillVersion};
use zunft_protocol::limits::{RELEASE_FILE_BYTES_MAX, RELEASE_FILES_MAX, RELEASE_MANIFEST_BYTES_MAX};
use zunft_protocol::release::{RELEASE_TYPE, ReleaseManifest, verify_release};
use zunft_skills::package::{ENVELOPE_FILE, MANIFEST_FILE};

use super::Api;
use super::error::{ApiError, ErrorCode};
use super::extract::{BodyPieces, Path, Query, read_body};
use super::page::{Page, PageQuery, parse_cursor};
use crate::causes::with_causes;
use crate::metadata::ReleaseRecord;

/// Largest body of `POST /v1/releases`: an envelope is its manifest in base64.
const RELEASE_BODY_BYTES_MAX: usize = 2 * RELEASE_MANIFEST_BYTES_MAX;

/// Bytes of a file that are read from the store at once.
const DOWNLOAD_PART_BYTES: u64 = 1024 * 1024;

/// Most files that wait for their manifest: a few releases' worth.
const STAGED_FILES_MAX: usize = 4 * RELEASE_FILES_MAX;

/// One skill.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct SkillView {
    /// Its name.
    #[schema(value_type = String)]
    pub skill: SkillName,
    /// Its newest release, for example `pick-place@7`.
    pub newest: Option<String>,
    /// How many releases it has.
    pub releases: u64,
}

/// One release.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseView {
    /// Its name and version, for example `pick-place@7`.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// Digest of its signed envelope.
    #[schema(value_type = String)]
    pub envelope: Digest,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When it was published, in milliseconds since 1970.
    pub published_unix_ms: u64,
    /// Kind of policy, for example `mlp`.
    pub policy: String,
    /// The tasks that it knows.
    pub tasks: Vec<String>,
    /// Name of the body that it fits.
    pub embodiment: String,
}

/// One release with all that its publisher signed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ReleaseDetail {
    /// What the hub knows of it.
    #[serde(flatten)]
    pub release: ReleaseView,
    /// The signed manifest: files with digests, embodiment, tasks, and as `lineage` the snapshot, configuration,
    /// seed and metrics that it comes from.
    #[schema(value_type = Object)]
    pub manifest: ReleaseManifest,
}

/// What became of a release that was posted.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum PublishAnswer {
    /// It is published.
    Published {
        /// The release.
        #[serde(flatten)]
        release: ReleaseView,
    },
    /// Send these with `PUT /v1/blobs/{digest}`, then post again.
    Missing {
        /// Digests of the files.
        #[schema(value_type = Vec<String>)]
        blobs: Vec<Digest>,
    },
}

/// Whether a signed manifest holds.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Whether a publisher that this hub's root trusts for the skill signed it.
    pub trusted: bool,
    /// Why not.
    pub reason: Option<String>,
    /// The release it names, where it can be read.
    #[schema(value_type = Option<String>)]
    pub release: Option<ReleaseId>,
    /// Whether this hub has published exactly this envelope.
    pub published: bool,
}

impl From<ReleaseRecord> for ReleaseView {
    fn from(record: ReleaseRecord) -> Self {
        Self {
            release: record.release,
            envelope: record.envelope,
            bytes: record.bytes,
            published_unix_ms: record.published_unix_ms,
            policy: record.manifest.policy,
            tasks: record.manifest.tasks.iter().map(ToString::to_string).collect(),
            embodiment: record.manifest.embodiment.name,
        }
    }
}

async fn all(api: &Api) -> Result<Vec<ReleaseRecord>, ApiError> {
    let records = api.hub.metadata().releases(&api.tenant).await;
    records.map_err(|error| ApiError::internal("list the releases", &error))
}

/// Lists skills by name.
#[utoipa::path(get, path = "/v1/skills", tag = "skills", operation_id = "list_skills", params(PageQuery),
    responses((status = 200, description = "Skills by name", body = Page<SkillView>)))]
pub(super) async fn skills(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<SkillView>>, ApiError> {
    let limit = page.limit()?;
    let after: Option<SkillName> = parse_cursor(page.cursor.as_deref())?;
    // By skill, the newest first.
    let records = all(&api).await?;
    let mut skills: Vec<SkillView> = Vec::new();
    for record in records.into_iter().filter(|record| after.as_ref().is_none_or(|after| record.release.skill > *after))
    {
        match skills.last_mut().filter(|last| last.skill == record.release.skill) {
            Some(skill) => skill.releases += 1,
            None => skills.push(SkillView {
                newest: Some(record.release.to_string()),
                skill: record.release.skill,
                releases: 1,
            }),
        }
        if skills.len() > limit {
            break;
        }
    }
    Ok(Json(Page::cut(skills, limit, |last: &SkillView| last.skill.to_string())))
}

/// Lists the releases of a skill, the newest first.
#[utoipa::path(get, path = "/v1/skills/{skill}/releases", tag = "skills", operation_id = "list_releases",
    params(("skill" = String, Path, description = "Its name"), PageQuery),
    responses((status = 200, description = "Releases, newest first", body = Page<ReleaseView>),
        (status = 404, description = "No such skill", body = ApiError)))]
pub(super) async fn list(
    State(api): State<Api>,
    Path(skill): Path<SkillName>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<ReleaseView>>, ApiError> {
    let limit = page.limit()?;
    let before: Option<u32> = parse_cursor(page.cursor.as_deref())?;
    let records: Vec<ReleaseRecord> =
        all(&api).await?.into_iter().filter(|record| record.release.skill == skill).collect();
    if records.is_empty() {
        return Err(ApiError::not_found("skill", skill));
    }
    let below = |version: SkillVersion| before.is_none_or(|before| version.0 < before);
    let views = records.into_iter().filter(|record| below(record.release.version)).take(limit + 1);
    let views = views.map(ReleaseView::from).collect();
    Ok(Json(Page::cut(views, limit, |last: &ReleaseView| last.release.version.to_string())))
}

/// Shows one release with its signed manifest and lineage.
#[utoipa::path(get, path = "/v1/releases/{release}", tag = "skills", operation_id = "show_release",
    params(("release" = String, Path, description = "For example pick-place@7")),
    responses((status = 200, description = "The release", body = ReleaseDetail),
        (status = 404, description = "No such release", body = ApiError)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(release): Path<ReleaseId>,
) -> Result<Json<ReleaseDetail>, ApiError> {
    let record = find(&api, &release).await?.ok_or_else(|| ApiError::not_found("release", &release))?;
    let manifest = record.manifest.clone();
    Ok(Json(ReleaseDetail { release: record.into(), manifest }))
}

async fn find(api: &Api, release: &ReleaseId) -> Result<Option<ReleaseRecord>, ApiError> {
    let found = api.hub.metadata().release(&api.tenant, release).await;
    found.map_err(|error| ApiError::internal("find the release", &error))
}

/// Sends one file of a package that is about to be published.
#[utoipa::path(put, path = "/v1/blobs/{digest}", tag = "skills", operation_id = "upload_blob",
    params(("digest" = String, Path, description = "BLAKE3 of the bytes: 64 hexadecimal digits")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "At most 8 GiB"),
    responses((status = 204, description = "It waits for its manifest"),
        (status = 413, description = "Too large", body = ApiError),
        (status = 422, description = "The bytes have another digest", body = ApiError),
        (status = 503, description = "Too many files wait", body = ApiError)))]
pub(super) async fn upload_blob(
    State(api): State<Api>,
    Path(digest): Path<Digest>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let failed = |error: std::io::Error| ApiError::internal("keep the file", &error);
    let folder = api.uploads.join("blobs");
    tokio::fs::create_dir_all(&folder).await.map_err(failed)?;
    let path = folder.join(digest.to_string());
    if tokio::fs::try_exists(&path).await.map_err(failed)? {
        return Ok(StatusCode::NO_CONTENT);
    }
    if count_entries(&folder).await.map_err(failed)? >= STAGED_FILES_MAX {
        let message = format!(
            "{STAGED_FILES_MAX} files wait for their manifests; post those, or restart the hub to drop the files"
        );
        return Err(ApiError::new(ErrorCode::Busy, message));
    }
    let staging = api.fresh_upload("part");
    let received = receive(body, &staging, digest).await;
    let kept = match received {
        Ok(()) => tokio::fs::rename(&staging, &path).await.map_err(failed),
        Err(refused) => Err(refused),
    };
    if kept.is_err() {
        // What is left is dropped at the next start.
        let _already_refused = tokio::fs::remove_file(&staging).await;
    }
    kept.map(|()| StatusCode::NO_CONTENT)
}

/// Hands out a file of a release, or its signed envelope.
#[utoipa::path(get, path = "/v1/blobs/{digest}", tag = "skills", operation_id = "download_blob",
    params(("digest" = String, Path, description = "BLAKE3 of the bytes: 64 hexadecimal digits")),
    responses((status = 200, description = "The bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "No release has such a file", body = ApiError)))]
pub(super) async fn download_blob(
    State(api): State<Api>,
    Path(digest): Path<Digest>,
) -> Result<impl IntoResponse, ApiError> {
    let bytes = api.hub.blob_bytes(&api.tenant, digest).await;
    let bytes = bytes.map_err(|error| ApiError::internal("find the file", &error))?;
    let bytes = bytes.ok_or_else(|| ApiError::not_found("file", digest))?;
    let parts = futures::stream::try_unfold(0, move |begin| {
        let api = api.clone();
        async move {
            let end = bytes.min(begin + DOWNLOAD_PART_BYTES);
            if begin == end {
                return Ok::<_, crate::store::StoreError>(None);
            }
            // A failure cuts the answer off: its length says that something is missing.
            Ok(Some((api.hub.blob_part(&api.tenant, digest, begin..end).await?, end)))
        }
    });
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_LENGTH, bytes.to_string())];
    Ok((headers, Body::from_stream(parts)))
}

async fn receive(body: Body, path: &FilePath, digest: Digest) -> Result<(), ApiError> {
    let failed = |error: std::io::Error| ApiError::internal("keep the file", &error);
    let mut file = tokio::fs::File::create(path).await.map_err(failed)?;
    let mut pieces = BodyPieces::new(body, "the file", RELEASE_FILE_BYTES_MAX);
    let mut hasher = blake3::Hasher::new();
    while let Some(piece) = pieces.next().await? {
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(failed)?;
    }
    file.flush().await.map_err(failed)?;
    let found = Digest::from_bytes(*hasher.finalize().as_bytes());
    if found != digest {
        let message = format!("the bytes have digest {found}, not {digest}; send the file again under its own");
        return Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("digest"));
    }
    Ok(())
}

async fn count_entries(folder: &FilePath) -> std::io::Result<usize> {
    let mut entries = tokio::fs::read_dir(folder).await?;
    let mut count = 0;
    while entries.next_entry().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// A release as it is posted: signed already, or not.
struct Posted {
    manifest: ReleaseManifest,
    manifest_bytes: Vec<u8>,
    envelope: Option<Vec<u8>>,
}

impl Posted {
    fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        let envelope = Envelope::parse(bytes, RELEASE_BODY_BYTES_MAX).ok();
        let refused = |error: &dyn std::error::Error| ApiError::refused("manifest", error);
        let (manifest_bytes, envelope) = match envelope {
            Some(envelope) => (payload(&envelope)?, Some(bytes.to_vec())),
            None => (bytes.to_vec(), None),
        };
        let manifest = ReleaseManifest::decode(&manifest_bytes).map_err(|error| refused(&error))?;
        Ok(Self { manifest, manifest_bytes, envelope })
    }
}

/// The signed bytes, before anybody has verified them: the registry does.
fn payload(envelope: &Envelope) -> Result<Vec<u8>, ApiError> {
    use base64::Engine as _;
    let refused = |message: String| ApiError::new(ErrorCode::Unprocessable, message).in_field("envelope");
    if envelope.payload_type != RELEASE_TYPE {
        return Err(refused(format!("the envelope holds {:?}; a release has {RELEASE_TYPE:?}", envelope.payload_type)));
    }
    let payload = base64::engine::general_purpose::STANDARD.decode(&envelope.payload);
    payload.map_err(|error| refused(format!("the envelope's payload is not base64: {error}")))
}

/// Publishes a release: its signed envelope, or its manifest for the hub to sign with its development key.
///
/// Post first: the answer names the files to send.
#[utoipa::path(post, path = "/v1/releases", tag = "skills", operation_id = "publish_release",
    request_body(content = Object, description = "release.dsse.json or manifest.json of a package, its exact bytes",
        content_type = "application/json"),
    responses((status = 200, description = "Published, or what is missing for that", body = PublishAnswer),
        (status = 409, description = "Not the next version of the skill", body = ApiError),
        (status = 413, description = "Too large", body = ApiError),
        (status = 422, description = "Not a release that robots would accept; the message says why", body = ApiError)))]
pub(super) async fn publish(State(api): State<Api>, body: Body) -> Result<Json<PublishAnswer>, ApiError> {
    let bytes = read_body(body, "the release", RELEASE_BODY_BYTES_MAX).await?;
    let posted = Posted::parse(&bytes)?;
    let failed = |error: std::io::Error| ApiError::internal("put the package together", &error);
    let blob = |digest: &Digest| api.uploads.join("blobs").join(digest.to_string());
    let mut missing = Vec::new();
    for file in &posted.manifest.files {
        if !tokio::fs::try_exists(blob(&file.digest)).await.map_err(failed)? && !missing.contains(&file.digest) {
            missing.push(file.digest);
        }
    }
    // A release that is there already needs no files: the registry compares the manifests.
    let present = find(&api, &posted.manifest.release).await?;
    if let Some(present) = present.filter(|present| present.manifest == posted.manifest) {
        return Ok(Json(PublishAnswer::Published { release: present.into() }));
    }
    if !missing.is_empty() {
        return Ok(Json(PublishAnswer::Missing { blobs: missing }));
    }
    let folder = api.fresh_upload("package");
    let assembled = assemble(&posted, &folder, &blob).await.map_err(failed);
    let published = match assembled {
        Ok(()) => api.hub.publish(&api.tenant, &folder).await.map_err(ApiError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = tokio::fs::remove_dir_all(&folder).await {
        tracing::warn!(%error, "an upload could not be removed; the next start does it");
    }
    let record = published?;
    for file in &posted.manifest.files {
        // Files of one content share a blob; the second removal finds nothing.
        let _gone = tokio::fs::remove_file(blob(&file.digest)).await;
    }
    Ok(Json(PublishAnswer::Published { release: record.into() }))
}

async fn assemble(posted: &Posted, folder: &FilePath, blob: &impl Fn(&Digest) -> PathBuf) -> std::io::Result<()> {
    tokio::fs::create_dir_all(folder).await?;
    for file in &posted.manifest.files {
        // `ReleaseManifest::check` lets only plain file names through.
        tokio::fs::hard_link(blob(&file.digest), folder.join(&file.name)).await?;
    }
    tokio::fs::write(folder.join(MANIFEST_FILE), &posted.manifest_bytes).await?;
    if let Some(envelope) = &posted.envelope {
        tokio::fs::write(folder.join(ENVELOPE_FILE), envelope).await?;
    }
    Ok(())
}

/// Says whether a signed manifest would be accepted, without publishing it.
#[utoipa::path(post, path = "/v1/verify", tag = "skills", operation_id = "verify_release",
    request_body(content = Object, description = "The exact bytes of a release.dsse.json", content_type = "application/json"),
    responses((status = 200, description = "The verdict", body = Verification),
        (status = 413, description = "Too large", body = ApiError)))]
pub(super) async fn verify(State(api): State<Api>, body: Body) -> Result<Json<Verification>, ApiError> {
    let bytes = read_body(body, "the envelope", RELEASE_BODY_BYTES_MAX).await?;
    let named = Posted::parse(&bytes).ok().map(|posted| posted.manifest.release);
    let reason = verify_release(&bytes, &api.root).err().map(|error| with_causes(&error));
    let known = match &named {
        Some(release) => find(&api, release).await?,
        None => None,
    };
    let published = known.is_some_and(|known| known.envelope == Digest::of(&bytes));
    Ok(Json(Verification { trusted: reason.is_none(), reason, release: named, published }))
}
