//! The hub's HTTP API, as commands use it: blocking calls with a token, and the parts of the answers that they read.
//!
//! It reads fewer fields than the hub sends, so that an older command line works with a newer hub.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zunft_protocol::ids::{EpisodeId, RobotId, SnapshotId};

use crate::exit::{ExitCode, Failure};

/// How long the hub may take to answer; uploads and downloads of packages included.
const CALL_SECS_MAX: u64 = 120;

/// How long connecting may take: loopback or a LAN.
const CONNECT_SECS_MAX: u64 = 10;

/// Largest JSON answer that is read: a page of a thousand long items.
const JSON_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Items of a page: the most that the hub gives.
const PAGE_ITEMS: usize = 1000;

/// A hub that can be asked.
#[derive(Clone)]
pub(crate) struct HubApi {
    agent: ureq::Agent,
    base: String,
    token: String,
}

impl fmt::Debug for HubApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token stays out of logs.
        f.debug_struct("HubApi").field("base", &self.base).finish_non_exhaustive()
    }
}

/// Why the hub gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Nobody answers.
    #[error("no hub answers at {base}; start one with `zunft hub serve`, or give its address with --hub")]
    Unreachable {
        base: String,
        #[source]
        source: Box<ureq::Error>,
    },
    /// The connection broke.
    #[error("the hub at {base} broke off its answer to {call}")]
    Broken {
        base: String,
        call: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hub said no.
    #[error("the hub refused {call}: {message}{}", field.as_ref().map(|field| format!(" (field {field})")).unwrap_or_default())]
    Refused { call: String, status: u16, message: String, field: Option<String> },
    /// The hub said something else.
    #[error("the hub answered {call} with something else; is what listens at {base} a hub of this version?")]
    Malformed {
        base: String,
        call: String,
        #[source]
        source: serde_json::Error,
    },
    /// A release that no package can have.
    #[error("the hub describes {release} in a way that cannot be")]
    Release {
        release: String,
        #[source]
        source: zunft_protocol::release::ReleaseManifestError,
    },
    /// What came could not be kept.
    #[error("could not write {}", path.display())]
    Disk {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// There is no token.
    #[error("could not read the hub's token from {}; give its place with --token-file (it is pki/admin.token in the hub's data directory)", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let code = match &error {
            // The request can be corrected by whoever typed it.
            ApiError::Refused { status: 400 | 404 | 409 | 413 | 422, .. } | ApiError::Token { .. } => ExitCode::Input,
            ApiError::Disk { .. } => ExitCode::Internal,
            ApiError::Refused { .. }
            | ApiError::Release { .. }
            | ApiError::Unreachable { .. }
            | ApiError::Broken { .. }
            | ApiError::Malformed { .. } => ExitCode::Unavailable,
        };
        Self::new(code, error)
    }
}

/// What the hub says when it says no.
#[derive(Deserialize)]
struct Refusal {
    message: String,
    field: Option<String>,
}

/// One page of a list.
#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

/// A robot as the hub knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RobotView {
    pub(crate) robot: RobotId,
    pub(crate) site: String,
    pub(crate) connected: bool,
    #[serde(default)]
    pub(crate) last_seen_unix_ms: Option<u64>,
    #[serde(default)]
    pub(crate) agent_version: Option<String>,
    #[serde(default)]
    pub(crate) episodes_waiting: Option<u64>,
    #[serde(default)]
    pub(crate) spool_bytes: Option<u64>,
    #[serde(default)]
    pub(crate) releases: Vec<RobotRelease>,
    #[serde(default)]
    pub(crate) assigned: Vec<String>,
    #[serde(default)]
    pub(crate) upload_policy: RobotUploadPolicy,
}

/// Whose upload policy holds on a robot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RobotUploadPolicy {
    #[serde(default)]
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) revision: u64,
    #[serde(default)]
    pub(crate) applied_revision: Option<u64>,
}

impl RobotUploadPolicy {
    /// In a few words: whose, and whether the robot keeps to it yet.
    pub(crate) fn words(&self) -> String {
        let whose = match self.source.as_str() {
            "robot" => "own",
            "tenant" => "all robots'",
            _ => "its file's",
        };
        let pending = self.applied_revision.unwrap_or(0) < self.revision;
        format!("{whose}{}", if pending { ", not yet" } else { "" })
    }
}

/// A release on a robot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RobotRelease {
    pub(crate) release: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) reason: String,
}

impl RobotView {
    /// The releases that act.
    pub(crate) fn active(&self) -> Vec<&str> {
        let active = self.releases.iter().filter(|release| release.state == "active");
        active.map(|release| release.release.as_str()).collect()
    }
}

/// What a new robot needs, as the hub makes it.
#[derive(Debug, Deserialize)]
pub(crate) struct RobotFiles {
    pub(crate) robot: RobotId,
    pub(crate) agent_toml: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    pub(crate) ca_pem: String,
    pub(crate) root_dsse_json: String,
    pub(crate) expires_unix_secs: u64,
}

/// A durable episode.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct EpisodeView {
    pub(crate) id: EpisodeId,
    pub(crate) bytes: u64,
}

/// A frozen list of episodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotView {
    pub(crate) id: SnapshotId,
    pub(crate) episodes: u64,
}

/// A training run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunView {
    pub(crate) id: u32,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) progress: RunProgress,
    #[serde(default)]
    pub(crate) release: Option<String>,
    #[serde(default)]
    pub(crate) error: Option<String>,
}

/// How far it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RunProgress {
    #[serde(default)]
    pub(crate) step: u64,
    #[serde(default)]
    pub(crate) steps: u64,
    #[serde(default)]
    pub(crate) loss: Option<f64>,
}

impl RunView {
    /// Whether nothing more happens by itself.
    pub(crate) fn ended(&self) -> bool {
        matches!(self.state.as_str(), "succeeded" | "failed" | "stopped")
    }
}

impl HubApi {
    pub(crate) fn new(base: &str, token: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(CONNECT_SECS_MAX)))
            .timeout_global(Some(Duration::from_secs(CALL_SECS_MAX)))
            // The hub is on loopback or in the LAN: a proxy for the internet does not know it.
            .proxy(None)
            .build();
        Self { agent: config.into(), base: base.trim_end_matches('/').to_owned(), token: token.trim().to_owned() }
    }

    /// A hub with the token that lies in a file.
    pub(crate) fn with_token_file(base: &str, path: &Path) -> Result<Self, ApiError> {
        let token =
            std::fs::read_to_string(path).map_err(|source| ApiError::Token { path: path.to_owned(), source })?;
        Ok(Self::new(base, &token))
    }

    /// Asks for JSON.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let call = format!("GET {path}");
        let request = self.agent.get(format!("{}{path}", self.base)).header("Authorization", self.authorization());
        self.json(&call, request.call())
    }

    /// Sends JSON and reads JSON.
    pub(crate) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).expect("requests have text keys and finite numbers");
        self.post_bytes(path, "application/json", &body)
    }

    /// Sends bytes with POST and reads JSON.
    pub(crate) fn post_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<T, ApiError> {
        let call = format!("POST {path}");
        let request = self
            .agent
            .post(format!("{}{path}", self.base))
            .header("Authorization", self.authorization())
            .header("Content-Type", content_type);
        self.json(&call, request.send(body))
    }

    /// Sends a file's bytes with PUT.
    pub(crate) fn put_bytes<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, ApiError> {
        self.put_typed(path, "application/octet-stream", body)
    }

    /// Sends JSON with PUT and reads JSON.
    pub(crate) fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).expect("requests have text keys and finite numbers");
        self.put_typed(path, "application/json", &body)
    }

    fn put_typed<T: DeserializeOwned>(&self, path: &str, content_type: &str, body: &[u8]) -> Result<T, ApiError> {
        let call = format!("PUT {path}");
        let request = self
            .agent
            .put(format!("{}{path}", self.base))
            .header("Authorization", self.authorization())
            .header("Content-Type", content_type);
        self.json(&call, request.send(body))
    }

    /// Takes something back, and reads JSON.
    pub(crate) fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let call = format!("DELETE {path}");
        let request = self.agent.delete(format!("{}{path}", self.base)).header("Authorization", self.authorization());
        self.json(&call, request.call())
    }

    /// Fetches bytes, at most `bytes_max`.
    pub(crate) fn get_bytes(&self, path: &str, bytes_max: u64) -> Result<Vec<u8>, ApiError> {
        let call = format!("GET {path}");
        let request = self.agent.get(format!("{}{path}", self.base)).header("Authorization", self.authorization());
        self.bytes(&call, request.call(), bytes_max)
    }

    /// Reads a whole list, page by page. `path` may hold a query already.
    pub(crate) fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ApiError> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: Page<T> = self.get(&format!("{path}{separator}limit={PAGE_ITEMS}{cursor}"))?;
            items.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(items),
            }
        }
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.token)
    }

    fn json<T: DeserializeOwned>(
        &self,
        call: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, ApiError> {
        let body = self.bytes(call, response, JSON_BYTES_MAX)?;
        // An answer without content reads as `null`.
        let body = if body.is_empty() { b"null".as_slice() } else { &body };
        serde_json::from_slice(body).map_err(|source| ApiError::Malformed {
            base: self.base.clone(),
            call: call.to_owned(),
            source,
        })
    }

    fn bytes(
        &self,
        call: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        bytes_max: u64,
    ) -> Result<Vec<u8>, ApiError> {
        let mut response =
            response.map_err(|source| ApiError::Unreachable { base: self.base.clone(), source: Box::new(source) })?;
        let mut body = Vec::new();
        let limited = response.body_mut().with_config().limit(bytes_max).reader();
        std::io::BufReader::new(limited).read_to_end(&mut body).map_err(|source| ApiError::Broken {
            base: self.base.clone(),
            call: call.to_owned(),
            source: source.into(),
        })?;
        if response.status().is_success() {
            return Ok(body);
        }
        let status = response.status().as_u16();
        let refusal =
            serde_json::from_slice(&body).unwrap_or(Refusal { message: format!("HTTP status {status}"), field: None });
        let Refusal { message, field } = refusal;
        Err(ApiError::Refused { call: call.to_owned(), status, message, field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::net::TcpListener;

    /// Answers one request with `answer`, and returns what was asked.
    fn hub_that_answers(answer: &'static str) -> (HubApi, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = HubApi::new(&format!("http://{}/", listener.local_addr().unwrap()), " secret\n");
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (api, asked)
    }

    #[test]
    fn answers_are_read_and_the_token_is_sent() {
        let (api, asked) = hub_that_answers(
            "HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n{\"items\":[{\"id\":1,\"state\":\"queued\",\"new\":2}]}",
        );
        let runs: Vec<RunView> = api.list("/v1/runs").unwrap();
        assert_eq!((runs[0].id, runs[0].ended()), (1, false));
        let request = asked.join().unwrap().to_lowercase();
        assert!(request.starts_with("get /v1/runs?limit=1000 ") && request.contains("authorization: bearer secret"));
    }

    #[test]
    fn refusals_keep_the_hubs_own_words() {
        let (api, asked) = hub_that_answers(
            "HTTP/1.1 422 Unprocessable\r\nContent-Length: 62\r\n\r\n{\"code\":\"unprocessable\",\"message\":\"no such task\",\"field\":\"tasks\"}",
        );
        let error = api.get::<serde_json::Value>("/v1/x").unwrap_err();
        asked.join().unwrap();
        assert!(matches!(&error, ApiError::Refused { status: 422, .. }), "{error}");
    }

    #[test]
    fn silence_names_the_remedy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let error = HubApi::new(&base, "t").get::<serde_json::Value>("/v1/robots").unwrap_err();
        assert!(error.to_string().contains("zunft hub serve"), "{error}");
    }
}
