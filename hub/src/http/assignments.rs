//! Which robots shall run which releases.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::{ReleaseId, RobotId};

use super::Api;
use super::error::{ApiError, ErrorCode};
use super::extract::{JsonBody, Query};
use super::page::{Page, PageQuery, parse_cursor};
use crate::hub::AssignTo;
use crate::metadata::AssignmentRecord;
use crate::trainer::RobotSet;

/// A release for some robots.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AssignmentRequest {
    /// Which, for example `pick-place@7`. It takes the place of the skill's present release on each robot.
    #[schema(value_type = String, example = "pick-place@7")]
    pub release: ReleaseId,
    /// `"all"`, or a list of names.
    #[schema(value_type = Object, example = "all")]
    pub robots: RobotSet,
}

/// Which robots were assigned something.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AssignmentAnswer {
    /// Their names. Those that are connected hear of it at once, the others when they connect.
    #[schema(value_type = Vec<String>)]
    pub robots: Vec<RobotId>,
}

/// What one robot shall run.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AssignmentView {
    /// Which robot.
    #[schema(value_type = String)]
    pub robot: RobotId,
    /// Increases with every assignment to it.
    pub sequence: u64,
    /// The complete set, at most one release a skill.
    pub releases: Vec<String>,
    /// When it last changed, in milliseconds since 1970.
    pub updated_unix_ms: u64,
}

impl From<AssignmentRecord> for AssignmentView {
    fn from(record: AssignmentRecord) -> Self {
        Self {
            robot: record.robot,
            sequence: record.sequence,
            releases: record.releases.iter().map(ToString::to_string).collect(),
            updated_unix_ms: record.updated_unix_ms,
        }
    }
}

impl From<RobotSet> for AssignTo {
    fn from(robots: RobotSet) -> Self {
        match robots {
            RobotSet::All(_) => Self::All,
            RobotSet::Named(robots) => Self::Robots(robots),
        }
    }
}

/// Assigns a release to robots.
#[utoipa::path(post, path = "/v1/assignments", tag = "assignments", operation_id = "assign_release",
    request_body = AssignmentRequest,
    responses((status = 200, description = "Assigned", body = AssignmentAnswer),
        (status = 404, description = "No such release", body = ApiError),
        (status = 422, description = "A robot that is not known or has another body, or none", body = ApiError)))]
pub(super) async fn assign(
    State(api): State<Api>,
    JsonBody(request): JsonBody<AssignmentRequest>,
) -> Result<Json<AssignmentAnswer>, ApiError> {
    if matches!(&request.robots, RobotSet::Named(robots) if robots.is_empty()) {
        let message = "no robots are named; name some, or give \"all\"";
        return Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("robots"));
    }
    let robots = api.hub.assign(&api.tenant, &request.robots.into(), &request.release).await?;
    Ok(Json(AssignmentAnswer { robots }))
}

/// Lists what each robot shall run, by robot.
#[utoipa::path(get, path = "/v1/assignments", tag = "assignments", operation_id = "list_assignments", params(PageQuery),
    responses((status = 200, description = "Assignments by robot", body = Page<AssignmentView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<AssignmentView>>, ApiError> {
    let limit = page.limit()?;
    let after: Option<RobotId> = parse_cursor(page.cursor.as_deref())?;
    let records = api.hub.metadata().assignments(&api.tenant).await;
    let records = records.map_err(|error| ApiError::internal("list the assignments", &error))?;
    let records = records.into_iter().filter(|record| after.as_ref().is_none_or(|after| record.robot > *after));
    let views = records.take(limit + 1).map(AssignmentView::from).collect();
    Ok(Json(Page::cut(views, limit, |last: &AssignmentView| last.robot.to_string())))
}
