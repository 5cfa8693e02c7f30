//! What robots may upload: for all robots of the tenant, and for one.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::{RobotId, TaskName};
use zunft_protocol::upload_policy::{HubPolicy, UploadMode, Window};

use super::Api;
use super::error::ApiError;
use super::extract::{JsonBody, Path};
use crate::metadata::{MetadataError, PolicyScope, UploadPolicyRecord};

/// What robots may upload. It replaces mode, caps, metering and windows of a robot's own file, all together: what is left out
/// is free. Tasks that stay on site add up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UploadPolicyBody {
    /// What is sent without being asked for: `all`, or `metadata-first`.
    #[schema(value_type = String, example = "all")]
    pub mode: UploadMode,
    /// Most bytes a second to the hub, counted in UDP payload; at least 4096. Without it there is no cap.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 1_250_000)]
    pub bytes_per_second_max: Option<u64>,
    /// The same while a control program asks for actions; the lower of the two holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max_acting: Option<u64>,
    /// Whether every byte costs: then only episodes whose outcome is known are sent, and those with interventions.
    pub metered: bool,
    /// Times of day in which episodes are sent; none: at any time.
    #[schema(value_type = Vec<WindowBody>)]
    pub windows: Vec<Window>,
    /// Tasks whose episodes stay on site, beside those that the robot's own file names, which no hub can set free.
    #[schema(value_type = Vec<String>)]
    pub keep_on_site_tasks: BTreeSet<TaskName>,
}

/// A time of day, local to the robot. Where `to` is the earlier one, it ends on the next day.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct WindowBody {
    /// `HH:MM`: its first minute.
    #[schema(example = "22:00")]
    pub from: String,
    /// `HH:MM`: the first minute after it.
    #[schema(example = "06:00")]
    pub to: String,
}

impl From<UploadPolicyBody> for HubPolicy {
    fn from(body: UploadPolicyBody) -> Self {
        Self {
            mode: body.mode,
            bytes_per_second_max: body.bytes_per_second_max,
            bytes_per_second_max_acting: body.bytes_per_second_max_acting,
            metered: body.metered,
            windows: body.windows,
            keep_on_site_tasks: body.keep_on_site_tasks,
        }
    }
}

impl From<HubPolicy> for UploadPolicyBody {
    fn from(policy: HubPolicy) -> Self {
        Self {
            mode: policy.mode,
            bytes_per_second_max: policy.bytes_per_second_max,
            bytes_per_second_max_acting: policy.bytes_per_second_max_acting,
            metered: policy.metered,
            windows: policy.windows,
            keep_on_site_tasks: policy.keep_on_site_tasks,
        }
    }
}

/// An upload policy as it last was set or cleared.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadPolicyView {
    /// For which robot; none: for all that have no policy of their own.
    #[schema(value_type = Option<String>)]
    pub robot: Option<RobotId>,
    /// Number of the change: it grows with every change in the tenant. 0: nothing was ever said.
    pub revision: u64,
    /// What is allowed; none: there is no policy here.
    pub policy: Option<UploadPolicyBody>,
    /// When it changed, in milliseconds since 1970.
    pub updated_unix_ms: Option<u64>,
}

impl UploadPolicyView {
    fn new(scope: PolicyScope, record: Option<UploadPolicyRecord>) -> Self {
        let robot = match scope {
            PolicyScope::Tenant => None,
            PolicyScope::Robot(robot) => Some(robot),
        };
        Self {
            robot,
            revision: record.as_ref().map_or(0, |record| record.revision),
            updated_unix_ms: record.as_ref().map(|record| record.updated_unix_ms),
            policy: record.and_then(|record| record.policy).map(UploadPolicyBody::from),
        }
    }
}

/// Shows what all robots may upload that have no policy of their own.
#[utoipa::path(get, path = "/v1/upload-policy", tag = "robots", operation_id = "show_upload_policy",
    responses((status = 200, description = "As it last was set or cleared", body = UploadPolicyView)))]
pub(super) async fn show(State(api): State<Api>) -> Result<Json<UploadPolicyView>, ApiError> {
    read(&api, PolicyScope::Tenant).await
}

/// Sets what all robots may upload that have no policy of their own. Connected robots obey at once.
#[utoipa::path(put, path = "/v1/upload-policy", tag = "robots", operation_id = "set_upload_policy",
    request_body = UploadPolicyBody,
    responses((status = 200, description = "Set", body = UploadPolicyView),
        (status = 422, description = "Beyond what is allowed", body = ApiError)))]
pub(super) async fn set(
    State(api): State<Api>,
    JsonBody(body): JsonBody<UploadPolicyBody>,
) -> Result<Json<UploadPolicyView>, ApiError> {
    write(&api, PolicyScope::Tenant, Some(body)).await
}

/// Clears it: robots without a policy of their own go by their own files again.
#[utoipa::path(delete, path = "/v1/upload-policy", tag = "robots", operation_id = "clear_upload_policy",
    responses((status = 200, description = "Cleared", body = UploadPolicyView)))]
pub(super) async fn clear(State(api): State<Api>) -> Result<Json<UploadPolicyView>, ApiError> {
    write(&api, PolicyScope::Tenant, None).await
}

/// Shows one robot's own upload policy. Which one holds on it, `/v1/robots/{robot}` says.
#[utoipa::path(get, path = "/v1/robots/{robot}/upload-policy", tag = "robots", operation_id = "show_robot_upload_policy",
    params(("robot" = String, Path, description = "Its name")),
    responses((status = 200, description = "As it last was set or cleared", body = UploadPolicyView),
        (status = 404, description = "No such robot", body = ApiError)))]
pub(super) async fn show_of_robot(
    State(api): State<Api>,
    Path(robot): Path<RobotId>,
) -> Result<Json<UploadPolicyView>, ApiError> {
    read(&api, known(&api, robot).await?).await
}

/// Sets what one robot may upload, whatever holds for all. A connected robot obeys at once.
#[utoipa::path(put, path = "/v1/robots/{robot}/upload-policy", tag = "robots", operation_id = "set_robot_upload_policy",
    params(("robot" = String, Path, description = "Its name")), request_body = UploadPolicyBody,
    responses((status = 200, description = "Set", body = UploadPolicyView),
        (status = 404, description = "No such robot", body = ApiError),
        (status = 422, description = "Beyond what is allowed", body = ApiError)))]
pub(super) async fn set_of_robot(
    State(api): State<Api>,
    Path(robot): Path<RobotId>,
    JsonBody(body): JsonBody<UploadPolicyBody>,
) -> Result<Json<UploadPolicyView>, ApiError> {
    write(&api, known(&api, robot).await?, Some(body)).await
}

/// Clears it: what holds for all robots, or else the robot's own file, holds again.
#[utoipa::path(delete, path = "/v1/robots/{robot}/upload-policy", tag = "robots",
    operation_id = "clear_robot_upload_policy", params(("robot" = String, Path, description = "Its name")),
    responses((status = 200, description = "Cleared", body = UploadPolicyView),
        (status = 404, description = "No such robot", body = ApiError)))]
pub(super) async fn clear_of_robot(
    State(api): State<Api>,
    Path(robot): Path<RobotId>,
) -> Result<Json<UploadPolicyView>, ApiError> {
    write(&api, known(&api, robot).await?, None).await
}

async fn known(api: &Api, robot: RobotId) -> Result<PolicyScope, ApiError> {
    match api.hub.robot(&api.tenant, &robot).await {
        Ok(Some(_)) => Ok(PolicyScope::Robot(robot)),
        Ok(None) => Err(ApiError::not_found("robot", robot)),
        Err(error) => Err(ApiError::internal("find the robot", &error)),
    }
}

async fn read(api: &Api, scope: PolicyScope) -> Result<Json<UploadPolicyView>, ApiError> {
    let found = api.hub.upload_policy(&api.tenant, &scope).await;
    let found = found.map_err(|error| ApiError::internal("find the upload policy", &error))?;
    Ok(Json(UploadPolicyView::new(scope, found)))
}

async fn write(
    api: &Api,
    scope: PolicyScope,
    body: Option<UploadPolicyBody>,
) -> Result<Json<UploadPolicyView>, ApiError> {
    let policy = body.map(HubPolicy::from);
    if let Some(Err(error)) = policy.as_ref().map(HubPolicy::check) {
        return Err(ApiError::refused(error.key(), &error));
    }
    let internal = |error: MetadataError| ApiError::internal("set the upload policy", &error);
    let record = api.hub.set_upload_policy(&api.tenant, &scope, policy.as_ref()).await.map_err(internal)?;
    Ok(Json(UploadPolicyView::new(scope, Some(record))))
}
