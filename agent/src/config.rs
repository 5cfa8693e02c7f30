//! The agent's configuration: one TOML file, with environment variables over single keys.
//!
//! `ZUNFT_AGENT__SPOOL__BYTES_MAX=...` overrides `bytes_max` of `[spool]`. docs/agent.toml shows every key.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};
use zunft_protocol::TaskName;
use zunft_protocol::limits::UPLOAD_BYTES_PER_SECOND_MIN;
use zunft_protocol::upload_policy::{UploadMode, Window, WindowError};

use crate::spool::{SEGMENT_BYTES_MIN, SEGMENTS_MAX};

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder for the spool and the releases. One agent at a time uses it.
    pub data_dir: PathBuf,
    /// Path of the Unix socket for control programs, at most 107 bytes long.
    pub socket: PathBuf,
    /// The tenant's signed root (DSSE, JSON): whose releases and receipts count. Needed with `hub.address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// This robot's embodiment (JSON). Without it the first recording's embodiment is remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embodiment: Option<PathBuf>,
    /// Which hub, and who this robot is.
    pub hub: HubConfig,
    /// What is kept on disk, and how soon it is there.
    pub spool: SpoolConfig,
    /// How episodes are sent.
    pub upload: UploadConfig,
    /// The agent's numbers for others.
    pub metrics: MetricsConfig,
    /// What the agent tells of its work.
    pub telemetry: TelemetryConfig,
}

/// `[telemetry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Where spans of connections and uploads go, by OTLP over HTTP: `http://HOST:PORT` of a collector. Without it they
    /// go nowhere. Only a program that was built with the feature `otlp` can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// TCP address and port at which the numbers are answered in Prometheus' text format, without asking who asks: keep
    /// it on loopback. Without it they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
}

/// `[hub]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// `host:port`. Without it the agent works offline: it records and acts, and uploads nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The name in the hub's certificate. Any other certificate is refused.
    pub server_name: String,
    /// The hub's certificate authority (PEM). Needed with `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// This robot's certificate (PEM): it says which tenant, site and robot this is. Always needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The certificate's private key (PEM). Needed with `address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Milliseconds between two signs of life that are asked of the hub; their round trip is in the status.
    pub ping_interval_ms: u64,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            address: None,
            server_name: "zunft-hub".into(),
            ca: None,
            certificate: None,
            key: None,
            ping_interval_ms: 10_000,
        }
    }
}

/// `[spool]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolConfig {
    /// Most bytes on disk. When they are used, `when_full` says what happens.
    pub bytes_max: u64,
    /// Bytes that stay free on the file system. Below, the spool is full, too.
    pub free_bytes_min: u64,
    /// Bytes of one segment, allocated ahead; two always exist. Larger ones are fewer, smaller ones free sooner.
    pub segment_bytes: u64,
    /// Milliseconds after which a step is on disk. Smaller loses less in a power cut and writes more often.
    pub sync_interval_ms: u64,
    /// Waiting bytes at which the disk is synced before the interval ends.
    pub sync_bytes: u64,
    /// `evict`: give up whole episodes that are not uploaded yet, the least valuable first. `stop`: recording stops
    /// until episodes are uploaded.
    pub when_full: WhenFull,
    /// Tasks whose episodes are never given up.
    pub pinned_tasks: BTreeSet<TaskName>,
    /// File with the key that encrypts what is recorded: 64 hexadecimal digits, readable by the agent alone. Without it,
    /// or where it is empty, the spool is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption_key_file: Option<PathBuf>,
    /// Files with keys from before: they open what was recorded with them, and encrypt nothing.
    pub encryption_key_files_old: Vec<PathBuf>,
}

/// See [`SpoolConfig::when_full`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The least valuable episodes go, and the hub is told.
    Evict,
    /// Nothing is deleted.
    Stop,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            bytes_max: 8 * 1024 * 1024 * 1024,
            free_bytes_min: 256 * 1024 * 1024,
            segment_bytes: 16 * 1024 * 1024,
            sync_interval_ms: 100,
            sync_bytes: 1024 * 1024,
            when_full: WhenFull::Evict,
            pinned_tasks: BTreeSet::new(),
            encryption_key_file: None,
            encryption_key_files_old: Vec::new(),
        }
    }
}

/// `[upload]`: for all but the first two keys the hub's operator has a word, too (`uplink/rules.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadConfig {
    /// Seconds between two attempts to reach the hub, at least; doubles with every failure.
    pub reconnect_secs_min: u64,
    /// Seconds between two attempts, at most.
    pub reconnect_secs_max: u64,
    /// What is sent of an episode: `all`, or `metadata-first`: its manifest, and the rest when an operator asks for it.
    pub mode: UploadMode,
    /// Most bytes a second to the hub, counted in UDP payload: retransmissions, reports and handshakes too.
    ///
    /// Held within 5 % over any ten seconds. Without it, QUIC's congestion control alone sets the pace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max: Option<u64>,
    /// The same while a control program asks for actions, and for three seconds after; the lower of the two holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second_max_acting: Option<u64>,
    /// Whether every byte costs: then only episodes whose outcome is known are sent, and those with interventions.
    pub metered: bool,
    /// Tasks whose episodes stay on this robot: they are never offered to a hub.
    pub keep_on_site_tasks: Vec<TaskName>,
    /// Times of day in which episodes are sent; none: at any time. A robot that does not know the time sends.
    pub windows: Vec<WindowConfig>,
}

/// `[[upload.windows]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowConfig {
    /// Local time of day at which it begins, `HH:MM`.
    pub from: String,
    /// Local time of day at which it ends; earlier than `from`: on the next day.
    pub to: String,
}

impl WindowConfig {
    pub(crate) fn window(&self) -> Result<Window, WindowError> {
        Window::parse(&self.from, &self.to)
    }
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            reconnect_secs_min: 1,
            reconnect_secs_max: 60,
            mode: UploadMode::All,
            bytes_per_second_max: None,
            bytes_per_second_max_acting: None,
            metered: false,
            keep_on_site_tasks: Vec::new(),
            windows: Vec::new(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/zunft-agent".into(),
            socket: "/run/zunft-agent.sock".into(),
            root: None,
            embodiment: None,
            hub: HubConfig::default(),
            spool: SpoolConfig::default(),
            upload: UploadConfig::default(),
            metrics: MetricsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there.
    #[error("config file {} does not exist", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// A key that does not exist, or a value of another type.
    #[error("config {} is not acceptable", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What and where.
        #[source]
        source: Box<figment::Error>,
    },
    /// A value that cannot be.
    #[error("config key {key} {problem}")]
    Value {
        /// Which key.
        key: &'static str,
        /// What is wrong, and the remedy.
        problem: String,
    },
}

/// Most keys from before: each is tried on every segment at the start.
const ENCRYPTION_KEYS_OLD_MAX: usize = 16;

/// Longest path of a Unix socket on Linux, without its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Config {
    /// Reads `path` and the environment. Relative paths in it are relative to the file's folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        if !path.is_file() {
            return Err(ConfigError::Missing { path: path.to_owned() });
        }
        let figment = Figment::from(Serialized::defaults(Self::default()))
            .merge(Toml::file_exact(path))
            .merge(Env::prefixed("ZUNFT_AGENT__").split("__"));
        let mut config: Self = figment
            .extract()
            .map_err(|source| ConfigError::Malformed { path: path.to_owned(), source: Box::new(source) })?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        config.resolve(absolute.parent().unwrap_or(Path::new("/")));
        config.check()?;
        Ok(config)
    }

    /// Makes relative paths absolute.
    fn resolve(&mut self, folder: &Path) {
        if self.spool.encryption_key_file.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            self.spool.encryption_key_file = None;
        }
        let (hub, spool) = (&mut self.hub, &mut self.spool);
        let keys = spool.encryption_key_file.iter_mut().chain(&mut spool.encryption_key_files_old);
        let optional = [&mut self.root, &mut self.embodiment, &mut hub.ca, &mut hub.certificate, &mut hub.key];
        for path in optional.into_iter().flatten().chain([&mut self.data_dir, &mut self.socket]).chain(keys) {
            *path = folder.join(&*path);
        }
    }

    /// Checks everything that types do not say.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        if self.socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let path = self.socket.display();
            return wrong("socket", format!("is {path}, over {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter path"));
        }
        if self.hub.certificate.is_none() {
            return wrong("hub.certificate", "is missing; make a certificate with `zunft robot add`".into());
        }
        for (key, path) in [("hub.ca", &self.hub.ca), ("hub.key", &self.hub.key), ("root", &self.root)] {
            if self.hub.address.is_some() && path.is_none() {
                return wrong(key, "is missing but hub.address is set; `zunft robot add` writes it".into());
            }
        }
        let SpoolConfig { bytes_max, segment_bytes, sync_interval_ms, .. } = self.spool;
        if segment_bytes < SEGMENT_BYTES_MIN || segment_bytes > u64::from(u32::MAX) {
            return wrong("spool.segment_bytes", format!("is {segment_bytes}; use {SEGMENT_BYTES_MIN} to 4294967295"));
        }
        if bytes_max < segment_bytes * 4 {
            return wrong(
                "spool.bytes_max",
                format!("is {bytes_max}; use at least four segments, {}", segment_bytes * 4),
            );
        }
        if bytes_max / segment_bytes > SEGMENTS_MAX {
            return wrong(
                "spool.segment_bytes",
                format!("is {segment_bytes}; use at least {}", bytes_max / SEGMENTS_MAX),
            );
        }
        if !(1..=60_000).contains(&sync_interval_ms) {
            return wrong("spool.sync_interval_ms", format!("is {sync_interval_ms}; use 1 to 60000"));
        }
        let keys_old = self.spool.encryption_key_files_old.len();
        if keys_old > ENCRYPTION_KEYS_OLD_MAX {
            return wrong(
                "spool.encryption_key_files_old",
                format!("has {keys_old} files; keep at most {ENCRYPTION_KEYS_OLD_MAX}, those that segments still need"),
            );
        }
        if self.hub.ping_interval_ms == 0 {
            return wrong("hub.ping_interval_ms", "is 0; use at least 1".into());
        }
        let UploadConfig { reconnect_secs_min, reconnect_secs_max, .. } = self.upload;
        if reconnect_secs_min == 0 || reconnect_secs_min > reconnect_secs_max {
            return wrong("upload.reconnect_secs_min", "must be at least 1 and at most reconnect_secs_max".into());
        }
        for (key, rate) in [
            ("upload.bytes_per_second_max", self.upload.bytes_per_second_max),
            ("upload.bytes_per_second_max_acting", self.upload.bytes_per_second_max_acting),
        ] {
            if let Some(rate) = rate.filter(|&rate| rate < UPLOAD_BYTES_PER_SECOND_MIN) {
                return wrong(
                    key,
                    format!("is {rate}; use at least {UPLOAD_BYTES_PER_SECOND_MIN}, or leave it out for no cap"),
                );
            }
        }
        if let Some(problem) = self.upload.windows.iter().find_map(|window| window.window().err()) {
            return wrong("upload.windows", problem.to_string());
        }
        Ok(())
    }

    /// The configuration in force, as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has string keys and integers below 2^63")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn documented_file_equals_the_defaults_and_names_every_key() {
        let text = include_str!("../../docs/agent.toml");
        assert_eq!(toml::from_str::<Config>(text).unwrap(), Config::default());
        let mut all = Config::default();
        let path = || Some(PathBuf::from("x"));
        (all.root, all.embodiment) = (path(), path());
        all.hub = HubConfig { address: Some("x".into()), ca: path(), certificate: path(), key: path(), ..all.hub };
        (all.upload.bytes_per_second_max, all.upload.bytes_per_second_max_acting) = (Some(5000), Some(5000));
        all.metrics.listen = Some(([127, 0, 0, 1], 9470).into());
        all.spool.encryption_key_file = path();
        all.upload.windows = vec![WindowConfig { from: "22:00".into(), to: "06:00".into() }];
        for key in all.to_toml().lines().filter_map(|line| line.split_once(" = ")) {
            assert!(text.contains(&format!("{} = ", key.0)), "docs/agent.toml says nothing about {}", key.0);
        }
    }

    #[test]
    fn relative_paths_are_of_the_file_s_folder() {
        let config = load("data_dir = \"data\"\nsocket = \"/tmp/a\"\n[hub]\ncertificate = \"robot.pem\"\n").unwrap();
        assert!(config.data_dir.is_absolute() && config.data_dir.ends_with("data"));
        assert_eq!(config.hub.certificate.unwrap().parent(), config.data_dir.parent());
        assert_eq!(config.socket, Path::new("/tmp/a"));
    }

    #[test]
    fn key_files_are_of_the_file_s_folder_and_an_empty_one_is_none() {
        let spool = |text: &str| load(&format!("[hub]\ncertificate = \"c\"\n[spool]\n{text}")).unwrap().spool;
        assert_eq!(spool("encryption_key_file = \"\"\n").encryption_key_file, None);
        let named = spool("encryption_key_file = \"a.key\"\nencryption_key_files_old = [\"b.key\", \"/c.key\"]\n");
        assert!(named.encryption_key_file.unwrap().is_absolute());
        assert!(named.encryption_key_files_old[0].is_absolute());
        assert_eq!(named.encryption_key_files_old[1], Path::new("/c.key"));
    }

    #[test]
    fn mistakes_name_the_key() {
        let refused = |text: &str, culprit: &str| {
            let error = crate::text::chain(&load(text).unwrap_err());
            assert!(error.contains(culprit), "{error}");
        };
        let hub = "[hub]\ncertificate = \"c\"\n";
        refused("colour = 1\n", "colour");
        refused(&format!("{hub}adress = \"x:1\"\n"), "adress");
        refused("", "hub.certificate");
        refused(&format!("{hub}address = \"x:1\"\n"), "hub.ca");
        refused(&format!("{hub}[spool]\nbytes_max = 1\n"), "spool.bytes_max");
        refused(&format!("{hub}[spool]\nsync_interval_ms = 0\n"), "spool.sync_interval_ms");
        refused(&format!("{hub}[spool]\nwhen_full = \"panic\"\n"), "when_full");
        refused(&format!("{hub}[spool]\npinned_tasks = [\"No Task\"]\n"), "pinned_tasks");
        let many = vec!["\"key\""; 17].join(",");
        refused(&format!("{hub}[spool]\nencryption_key_files_old = [{many}]\n"), "spool.encryption_key_files_old");
        refused(&format!("{hub}[upload]\nreconnect_secs_min = 0\n"), "upload.reconnect_secs_min");
        refused(&format!("{hub}[upload]\nbytes_per_second_max = 10\n"), "upload.bytes_per_second_max");
        refused(&format!("{hub}[[upload.windows]]\nfrom = \"25:00\"\nto = \"6:00\"\n"), "25:00");
        refused(&format!("{hub}[[upload.windows]]\nfrom = \"6:00\"\nto = \"6:00\"\n"), "upload.windows");
        refused(&format!("socket = \"/{}\"\n{hub}", "x".repeat(200)), "socket");
        let missing = Config::load(Path::new("/nowhere/agent.toml")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/agent.toml"), "{missing}");
    }
}
