//! Robots: who they are, how they are, and what a new one needs.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zunft_protocol::ids::{RobotId, SiteId};

use super::Api;
use super::error::{ApiError, ErrorCode};
use super::extract::{JsonBody, Path, Query};
use super::page::{PAGE_ITEMS_MAX, Page, PageQuery, parse_cursor};
use crate::hub::RobotStatus;
use crate::identity::RobotIdentity;
use crate::metadata::PolicyScope;

/// Largest address that is written into a robot's config: a DNS name and a port.
const HUB_ADDRESS_BYTES_MAX: usize = 260;

/// One robot, as the hub knows it now.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RobotView {
    /// Its name.
    #[schema(value_type = String)]
    pub robot: RobotId,
    /// Where it is.
    #[schema(value_type = String)]
    pub site: SiteId,
    /// Whether it is connected.
    pub connected: bool,
    /// When it last said anything, in milliseconds since 1970.
    pub last_seen_unix_ms: Option<u64>,
    /// When it was added.
    pub created_unix_ms: u64,
    /// Id of its body, once it has said or recorded one.
    pub embodiment: Option<String>,
    /// Version of its agent.
    pub agent_version: Option<String>,
    /// Episodes on it that wait for upload.
    pub episodes_waiting: Option<u64>,
    /// Bytes on its disk for them.
    pub spool_bytes: Option<u64>,
    /// The releases on it.
    pub releases: Vec<RobotRelease>,
    /// The releases that it shall run.
    pub assigned: Vec<String>,
    /// What it may upload.
    pub upload_policy: RobotUploadPolicy,
}

/// Whose upload policy holds on a robot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RobotUploadPolicy {
    /// `robot`: its own at the hub; `tenant`: that of all robots; `config`: its own file's.
    pub source: String,
    /// Number of the last change that concerns it; 0: there was none.
    pub revision: u64,
    /// Number of the last change that it has said to keep to.
    pub applied_revision: Option<u64>,
}

/// One release on a robot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RobotRelease {
    /// Which, for example `pick-place@7`.
    pub release: String,
    /// `fetching`, `staged`, `active`, `previous` or `failed`.
    pub state: String,
    /// Why it failed; empty otherwise.
    pub reason: String,
}

impl From<RobotStatus> for RobotView {
    fn from(status: RobotStatus) -> Self {
        let RobotStatus { record, connected, assignment, upload_policy: (pushed, scope) } = status;
        let report = record.report;
        let releases = report.iter().flat_map(|report| &report.releases).map(|on_robot| RobotRelease {
            release: on_robot.release.to_string(),
            state: on_robot.state.clone(),
            reason: on_robot.reason.clone(),
        });
        let assigned = assignment.iter().flat_map(|assignment| &assignment.releases);
        Self {
            upload_policy: RobotUploadPolicy {
                source: match scope {
                    Some(PolicyScope::Robot(_)) => "robot",
                    Some(PolicyScope::Tenant) => "tenant",
                    None => "config",
                }
                .to_owned(),
                revision: pushed.revision,
                applied_revision: report.as_ref().map(|report| report.upload_policy_revision),
            },
            releases: releases.collect(),
            assigned: assigned.map(ToString::to_string).collect(),
            robot: record.robot,
            site: record.site,
            connected,
            last_seen_unix_ms: record.last_seen_unix_ms,
            created_unix_ms: record.created_unix_ms,
            embodiment: record.embodiment.map(|id| id.to_string()),
            agent_version: report.as_ref().map(|report| report.agent_version.clone()),
            episodes_waiting: report.as_ref().map(|report| report.episodes_waiting),
            spool_bytes: report.as_ref().map(|report| report.spool_bytes),
        }
    }
}

/// The fleet at a glance.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Fleet {
    /// Robots known.
    pub total: u64,
    /// Of them, connected now.
    pub connected: u64,
    /// Episodes that wait for upload, over all robots.
    pub episodes_waiting: u64,
    /// By name, at most 1000.
    pub robots: Vec<RobotView>,
}

/// A robot to be added.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RobotRequest {
    /// Its name: a-z, 0-9, '-', '_' and '.', at most 63.
    #[schema(value_type = String, example = "arm-1")]
    pub robot: RobotId,
    /// Where it is. A robot that is known keeps its site.
    #[schema(value_type = String, example = "bonn")]
    pub site: SiteId,
    /// Where the robot reaches the hub, `HOST:PORT`. Default: the hub's own QUIC address.
    #[schema(example = "hub.example.org:4433")]
    pub hub: Option<String>,
}

/// What a new robot needs. The private key is nowhere else: keep it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RobotFiles {
    /// Its name.
    #[schema(value_type = String)]
    pub robot: RobotId,
    /// `agent.toml`: ready to run beside the other files.
    pub agent_toml: String,
    /// `robot.pem`: its certificate.
    pub certificate_pem: String,
    /// `robot.key`: its private key.
    pub key_pem: String,
    /// `ca.pem`: the authority that certified the hub.
    pub ca_pem: String,
    /// `root.dsse.json`: whose releases and assignments it may trust.
    pub root_dsse_json: String,
    /// Serial number of the certificate.
    pub serial: String,
    /// When the certificate ends, in seconds since 1970.
    pub expires_unix_secs: u64,
}

/// Lists robots by name.
#[utoipa::path(get, path = "/v1/robots", tag = "robots", operation_id = "list_robots", params(PageQuery),
    responses((status = 200, description = "Robots by name", body = Page<RobotView>)))]
pub(super) async fn list(
    State(api): State<Api>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Page<RobotView>>, ApiError> {
    let limit = page.limit()?;
    let after: Option<RobotId> = parse_cursor(page.cursor.as_deref())?;
    let robots = api.hub.robots(&api.tenant).await.map_err(|error| ApiError::internal("list the robots", &error))?;
    let robots = robots.into_iter().filter(|status| after.as_ref().is_none_or(|after| status.record.robot > *after));
    let robots = robots.take(limit + 1).map(RobotView::from).collect();
    Ok(Json(Page::cut(robots, limit, |last: &RobotView| last.robot.to_string())))
}

/// Shows the whole fleet at a glance: every robot with its connection, waiting episodes and releases.
///
/// The same as listing all robots, in one answer of at most 1000; page through `/v1/robots` beyond.
#[utoipa::path(get, path = "/v1/fleet", tag = "robots", operation_id = "show_fleet",
    responses((status = 200, description = "The fleet", body = Fleet)))]
pub(super) async fn fleet(State(api): State<Api>) -> Result<Json<Fleet>, ApiError> {
    let robots = api.hub.robots(&api.tenant).await.map_err(|error| ApiError::internal("list the robots", &error))?;
    let connected = robots.iter().filter(|robot| robot.connected).count() as u64;
    let total = robots.len() as u64;
    let waiting = robots.iter().filter_map(|robot| Some(robot.record.report.as_ref()?.episodes_waiting)).sum();
    let robots = robots.into_iter().take(PAGE_ITEMS_MAX as usize).map(RobotView::from).collect();
    Ok(Json(Fleet { total, connected, episodes_waiting: waiting, robots }))
}

/// Shows one robot.
#[utoipa::path(get, path = "/v1/robots/{robot}", tag = "robots", operation_id = "show_robot",
    params(("robot" = String, Path, description = "Its name")),
    responses((status = 200, description = "The robot", body = RobotView),
        (status = 404, description = "No such robot", body = ApiError)))]
pub(super) async fn show(State(api): State<Api>, Path(robot): Path<RobotId>) -> Result<Json<RobotView>, ApiError> {
    let found = api.hub.robot(&api.tenant, &robot).await;
    let found = found.map_err(|error| ApiError::internal("find the robot", &error))?;
    found.map(|status| Json(status.into())).ok_or_else(|| ApiError::not_found("robot", robot))
}

/// Adds a robot, or makes a further certificate for one that is known.
#[utoipa::path(post, path = "/v1/robots", tag = "robots", operation_id = "add_robot", request_body = RobotRequest,
    responses((status = 201, description = "Added; these are its files", body = RobotFiles),
        (status = 409, description = "It is known at another site", body = ApiError),
        (status = 422, description = "An address that cannot be one", body = ApiError)))]
pub(super) async fn add(
    State(api): State<Api>,
    JsonBody(request): JsonBody<RobotRequest>,
) -> Result<(axum::http::StatusCode, Json<RobotFiles>), ApiError> {
    let hub = request.hub.unwrap_or_else(|| api.hub.quic_addr().to_string());
    check_address(&hub)?;
    let RobotRequest { robot, site, .. } = request;
    let identity = RobotIdentity { tenant: api.tenant.clone(), site, robot };
    let issued = api.hub.add_robot(&identity).await?;
    let root = String::from_utf8(issued.root.to_json()).expect("JSON is UTF-8");
    let files = RobotFiles {
        agent_toml: agent_toml(&hub),
        robot: identity.robot,
        certificate_pem: issued.certificate_pem,
        key_pem: issued.key_pem,
        ca_pem: issued.ca_pem,
        root_dsse_json: root,
        serial: issued.serial,
        expires_unix_secs: issued.expires_unix_secs,
    };
    Ok((axum::http::StatusCode::CREATED, Json(files)))
}

/// It is written into a TOML string: nothing that could end one.
fn check_address(address: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
    if address.len() <= HUB_ADDRESS_BYTES_MAX && address.chars().all(plain) && port.is_some_and(|port| port > 0) {
        return Ok(());
    }
    let message = format!("{address:?} is not HOST:PORT; give the address at which robots reach the hub over UDP");
    Err(ApiError::new(ErrorCode::Unprocessable, message).in_field("hub"))
}

/// The smallest configuration that runs; everything else has its default.
fn agent_toml(hub: &str) -> String {
    format!(
        "# Put this file beside robot.pem, robot.key, ca.pem and root.dsse.json,\n\
         # then run: zunft-agent run --config agent.toml\n\
         data_dir = \"agent-data\"\n\
         socket = \"agent.sock\"\n\
         root = \"root.dsse.json\"\n\n\
         [hub]\n\
         address = \"{hub}\"\n\
         ca = \"ca.pem\"\n\
         certificate = \"robot.pem\"\n\
         key = \"robot.key\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_reach_the_config() {
        for good in ["127.0.0.1:4433", "hub.example.org:1", "[::1]:4433"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in ["", "hub", ":4433", "hub:0", "hub:99999", "a\"\nb:1", "hub:4433 "] {
            assert_eq!(check_address(bad).unwrap_err().field.as_deref(), Some("hub"), "{bad}");
        }
    }
}
