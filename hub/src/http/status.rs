//! The hub in a few numbers, and a stream of what changes.

use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use utoipa::ToSchema;

use super::Api;
use super::error::ApiError;
use crate::hub::Change;
use crate::metadata::EpisodeFilter;

/// The hub in a few numbers.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct HubStatus {
    /// Version of the hub.
    pub version: String,
    /// Whose data this token opens.
    pub tenant: String,
    /// Where robots connect (QUIC over UDP).
    pub quic_addr: String,
    /// Robots known.
    pub robots: u64,
    /// Of them, connected now.
    pub robots_connected: u64,
    /// Episodes stored.
    pub episodes: u64,
    /// The hub's time, in milliseconds since 1970.
    pub now_unix_ms: u64,
}

/// Shows the hub in a few numbers.
#[utoipa::path(get, path = "/v1/status", tag = "hub", operation_id = "hub_status",
    responses((status = 200, description = "The numbers", body = HubStatus)))]
pub(super) async fn status(State(api): State<Api>) -> Result<Json<HubStatus>, ApiError> {
    let robots = api.hub.robots(&api.tenant).await.map_err(|error| ApiError::internal("list the robots", &error))?;
    let episodes = api.hub.metadata().episode_count(&api.tenant, &EpisodeFilter::default()).await;
    Ok(Json(HubStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tenant: api.tenant.to_string(),
        quic_addr: api.hub.quic_addr().to_string(),
        robots: robots.len() as u64,
        robots_connected: robots.iter().filter(|robot| robot.connected).count() as u64,
        episodes: episodes.map_err(|error| ApiError::internal("count the episodes", &error))?,
        now_unix_ms: crate::clock::unix_millis(),
    }))
}

/// Streams changes as server-sent events, from now on.
///
/// Each event is named `change` and holds JSON with a `kind` of `robot`, `episode`, `release`, `assignment` or
/// `run`, and what changed. An event `lagged` says that this reader was too slow and should list again.
#[utoipa::path(get, path = "/v1/events", tag = "hub", operation_id = "stream_events",
    responses((status = 200, description = "The stream; it ends when the hub stops", body = String,
        content_type = "text/event-stream")))]
pub(super) async fn events(State(api): State<Api>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let tenant = api.tenant.clone();
    let changes = futures::stream::unfold(api.hub.changes(), |mut changes| async move {
        match changes.recv().await {
            Ok(change) => Some((Some(change), changes)),
            Err(RecvError::Lagged(_)) => Some((None, changes)),
            Err(RecvError::Closed) => None,
        }
    });
    let events = changes.filter_map(move |change| std::future::ready(event(&tenant, change)));
    let events = events.take_until(api.stop.clone().cancelled_owned());
    Sse::new(events.map(Ok)).keep_alive(KeepAlive::default())
}

/// What a reader is told of a change; nothing of another tenant's.
fn event(tenant: &zunft_protocol::ids::TenantId, change: Option<Change>) -> Option<Event> {
    let Some(change) = change else {
        return Some(Event::default().event("lagged").data("{}"));
    };
    let whose = match &change {
        Change::Robot { tenant, .. }
        | Change::Episode { tenant, .. }
        | Change::Release { tenant, .. }
        | Change::Assignment { tenant, .. }
        | Change::UploadPolicy { tenant, .. }
        | Change::Run { tenant, .. } => tenant,
    };
    let text = serde_json::to_string(&change).expect("a change has a JSON form");
    (whose == tenant).then(|| Event::default().event("change").data(text))
}
