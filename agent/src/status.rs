//! What the agent says about itself: to control programs, to `zunft-agent status`, and to people.

use std::sync::Arc;

use serde::Serialize;
use zunft_protocol::episode::WallQuality;
use zunft_protocol::ids::{BootId, EmbodimentId, ReleaseId, RobotId, SiteId, TenantId};
use zunft_protocol::message::ReleaseState;

use crate::clock::RobotClock;
use crate::embodiment::Body;
use crate::identity::Identity;
use crate::releases::Releases;
use crate::spool::{Spool, SpoolStatus};
use crate::uplink::{HubStatus, SharedStatus};

/// The whole status. Fields may be added; programs ignore those that they do not know.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Which robot.
    pub robot: RobotId,
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub site: SiteId,
    /// Version of the agent.
    pub version: &'static str,
    /// Process id of the agent.
    pub pid: u32,
    /// This power-up.
    pub boot: BootId,
    /// What the wall clock is worth.
    pub clock: WallQuality,
    /// The robot's body, once it is known.
    pub embodiment: Option<EmbodimentId>,
    /// The way to the hub.
    pub hub: HubStatus,
    /// What is on disk.
    pub spool: SpoolStatus,
    /// The last assignment accepted.
    pub assignment_sequence: u64,
    /// Whether it has expired: what is installed still runs.
    pub assignment_expired: bool,
    /// Every release and how it does.
    pub releases: Vec<ReleaseStatus>,
}

/// One release.
#[derive(Debug, Clone, Serialize)]
pub struct ReleaseStatus {
    /// Which.
    pub release: ReleaseId,
    /// `fetching`, `staged`, `active`, `previous` or `failed`.
    pub state: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Everything that a status is made of.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) identity: Identity,
    pub(crate) clock: Arc<RobotClock>,
    pub(crate) body: Arc<Body>,
    pub(crate) spool: Spool,
    pub(crate) releases: Releases,
    pub(crate) hub: Arc<SharedStatus>,
}

impl Sources {
    pub(crate) fn status(&self) -> Status {
        let expires = self.releases.assignment_expires_unix_secs();
        let releases = self.releases.reports().into_iter().map(|report| ReleaseStatus {
            release: report.release,
            state: state_name(report.state),
            reason: report.reason,
        });
        Status {
            robot: self.identity.robot.clone(),
            tenant: self.identity.tenant.clone(),
            site: self.identity.site.clone(),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            boot: self.clock.boot(),
            clock: self.clock.wall_quality(),
            embodiment: self.body.known().map(|body| body.id()),
            hub: self.hub.status(),
            spool: self.spool.status(),
            assignment_sequence: self.releases.assignment_sequence(),
            assignment_expired: expires.is_some_and(|expires| expires <= self.clock.trusted_unix_secs()),
            releases: releases.collect(),
        }
    }
}

fn state_name(state: ReleaseState) -> &'static str {
    match state {
        ReleaseState::Fetching => "fetching",
        ReleaseState::Staged => "staged",
        ReleaseState::Active => "active",
        ReleaseState::Previous => "previous",
        ReleaseState::Failed => "failed",
    }
}

/// A status as lines for people, from the JSON that an agent answered with.
pub fn describe(status: &serde_json::Value) -> String {
    let text = |pointer: &str| match status.pointer(pointer) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let mut lines = vec![
        format!("robot      {} (tenant {}, site {})", text("/robot"), text("/tenant"), text("/site")),
        format!("agent      {}, process {}, clock {}", text("/version"), text("/pid"), text("/clock")),
        format!("hub        {} {}", text("/hub/state"), text("/hub/address")),
        format!(
            "spool      {} episodes waiting ({} bytes), {} recordings open, {} of {} bytes on disk",
            text("/spool/episodes_waiting"),
            text("/spool/bytes_waiting"),
            text("/spool/recordings_open"),
            text("/spool/bytes"),
            text("/spool/bytes_max")
        ),
        format!(
            "receipts   {} since start, the last at {}",
            text("/hub/episodes_durable"),
            text("/hub/last_receipt_unix_secs")
        ),
    ];
    lines.push(format!(
        "link       {} bytes/s, round trip {} ms (p99 {} ms), uploads {}, {} episodes kept on site",
        text("/hub/bytes_per_second"),
        text("/hub/round_trip_ms_p50"),
        text("/hub/round_trip_ms_p99"),
        if status.pointer("/hub/upload_window_open").and_then(serde_json::Value::as_bool) == Some(true) {
            "allowed now"
        } else {
            "not allowed now"
        },
        text("/hub/episodes_kept_on_site")
    ));
    lines.push(policy(status));
    lines.push(at_rest(status));
    if text("/spool/episodes_evicted") != "0" {
        lines.push(format!(
            "given up   {} episodes for want of room, {} of which the hub does not know yet",
            text("/spool/episodes_evicted"),
            text("/spool/evictions_untold")
        ));
    }
    for (pointer, label) in [("/hub/last_error", "hub error "), ("/spool/refuses", "no steps  ")] {
        if status.pointer(pointer).is_some_and(serde_json::Value::is_string) {
            lines.push(format!("{label} {}", text(pointer)));
        }
    }
    let none = Vec::new();
    for release in status.pointer("/releases").and_then(serde_json::Value::as_array).unwrap_or(&none) {
        let field = |name: &str| release.get(name).and_then(serde_json::Value::as_str).unwrap_or("").to_owned();
        lines.push(
            format!("release    {} {} {}", field("release"), field("state"), field("reason")).trim_end().to_owned(),
        );
    }
    lines.join("\n")
}

/// What may be uploaded, and who says so.
fn policy(status: &serde_json::Value) -> String {
    let of = |key: &str| status.pointer("/hub/upload_policy").and_then(|policy| policy.get(key));
    let number = |key: &str| of(key).and_then(serde_json::Value::as_u64);
    let list = |key: &str| of(key).and_then(serde_json::Value::as_array).map_or(&[][..], Vec::as_slice);
    let revision = number("revision").unwrap_or(0);
    let mut parts = vec![match of("source").and_then(serde_json::Value::as_str) {
        Some("hub") => format!("of the hub, revision {revision}"),
        // The hub had its say and took it back.
        _ if revision > 0 => format!("of the config, revision {revision}"),
        _ => "of the config".to_owned(),
    }];
    if of("mode").and_then(serde_json::Value::as_str) == Some("metadata-first") {
        let noted = status.pointer("/hub/episodes_noted").and_then(serde_json::Value::as_u64).unwrap_or(0);
        parts.push(format!("metadata first ({noted} episodes here alone)"));
    }
    for (key, when) in [("bytes_per_second_max", ""), ("bytes_per_second_max_acting", " while acting")] {
        parts.extend(number(key).map(|rate| format!("at most {rate} bytes/s{when}")));
    }
    if of("metered").and_then(serde_json::Value::as_bool) == Some(true) {
        parts.push("metered".to_owned());
    }
    let text = |window: &serde_json::Value, key: &str| window[key].as_str().unwrap_or_default().to_owned();
    parts.extend(
        list("windows").iter().map(|window| format!("from {} to {}", text(window, "from"), text(window, "to"))),
    );
    let tasks: Vec<&str> = list("keep_on_site_tasks").iter().filter_map(serde_json::Value::as_str).collect();
    if !tasks.is_empty() {
        parts.push(format!("on site stay {}", tasks.join(" and ")));
    }
    format!("policy     {}", parts.join(", "))
}

/// Whether the spool can be read by who takes the disk.
fn at_rest(status: &serde_json::Value) -> String {
    let count = |pointer: &str| status.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let encrypted = status.pointer("/spool/encrypted").and_then(serde_json::Value::as_bool) == Some(true);
    let mut line = format!("at rest    {}", if encrypted { "encrypted" } else { "not encrypted" });
    if encrypted && count("/spool/segments_in_clear") > 0 {
        line.push_str(&format!(", but for {} segments from before", count("/spool/segments_in_clear")));
    }
    if count("/spool/segments_of_old_keys") > 0 {
        line.push_str(&format!(", {} segments need an old key", count("/spool/segments_of_old_keys")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_which_upload_policy_is_in_force() {
        let check = |policy: serde_json::Value, said: &str| {
            let text = describe(&serde_json::json!({ "hub": { "upload_policy": policy } }));
            assert!(text.lines().any(|line| line == format!("policy     {said}")), "{text}");
        };
        check(serde_json::json!({ "source": "config", "revision": 0 }), "of the config");
        check(serde_json::json!({ "source": "config", "revision": 8 }), "of the config, revision 8");
        let all = serde_json::json!({
            "source": "hub", "revision": 7, "bytes_per_second_max": 9000, "bytes_per_second_max_acting": 5000,
            "metered": true, "windows": [{ "from": "22:00", "to": "06:00" }], "keep_on_site_tasks": ["fold", "weld"]
        });
        let said = "of the hub, revision 7, at most 9000 bytes/s, at most 5000 bytes/s while acting, metered, \
            from 22:00 to 06:00, on site stay fold and weld";
        check(all, said);
    }

    #[test]
    fn a_status_says_what_is_encrypted_and_which_keys_are_needed() {
        let check = |encrypted: bool, clear: u64, old: u64, said: &str| {
            let spool = serde_json::json!({
                "encrypted": encrypted, "segments_in_clear": clear, "segments_of_old_keys": old
            });
            let text = describe(&serde_json::json!({ "spool": spool }));
            assert!(text.lines().any(|line| line == format!("at rest    {said}")), "{text}");
        };
        check(false, 3, 0, "not encrypted");
        check(true, 0, 0, "encrypted");
        check(true, 2, 0, "encrypted, but for 2 segments from before");
        check(true, 2, 1, "encrypted, but for 2 segments from before, 1 segments need an old key");
        check(false, 2, 1, "not encrypted, 1 segments need an old key");
    }
}
