//! The hub's one configuration file, `hub.toml`, and what the environment overrides.
//!
//! `docs/hub.toml` shows every key with its default; a test keeps the two equal. Secrets are never shown: neither by
//! `Debug` nor when the configuration is printed.

mod secret;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};
use zunft_protocol::limits::UPLOAD_BYTES_HELD_MAX;

pub use self::secret::{Secret, SecretUrl};
use crate::services::MANIFEST_MEMORY_MAX;

/// A hundred years.
const ORPHAN_DAYS_MAX: u64 = 36_500;

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// Prefix of environment variables; `__` separates sections: `ZUNFT_HUB__QUIC__LISTEN`.
const ENVIRONMENT_PREFIX: &str = "ZUNFT_HUB__";

/// Everything that an operator can set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HubConfig {
    /// Directory with keys and, unless `metadata` and `store` say otherwise, metadata and experience.
    ///
    /// One hub at a time uses it.
    /// A relative path in a file is relative to that file. Default: `hub-data`.
    pub data_dir: PathBuf,
    /// Where robots connect.
    pub quic: QuicConfig,
    /// Where people and programs connect.
    pub http: HttpConfig,
    /// Where and how experience is kept.
    pub store: StoreConfig,
    /// Where the metadata is kept.
    pub metadata: MetadataConfig,
    /// Bounds on what robots may use.
    pub limits: LimitsConfig,
    /// What it tells of its work.
    pub telemetry: TelemetryConfig,
}

/// Where robots connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuicConfig {
    /// UDP address and port. Port 0 takes any free one. Default: `0.0.0.0:4433`.
    pub listen: SocketAddr,
}

/// Where people and programs connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// TCP address and port of the HTTP API. It is not encrypted: keep it on loopback, or put a TLS proxy before it.
    ///
    /// Default: `127.0.0.1:8480`.
    pub listen: SocketAddr,
}

/// Where and how experience is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Where experience is kept: `s3://BUCKET/PREFIX`, or empty for a local directory. Default: empty.
    pub url: String,
    /// Directory of a local experience store; empty: `store` inside `data_dir`.
    ///
    /// It needs a file system with hard links that obeys fsync.
    pub path: PathBuf,
    /// Largest pack, in bytes: what one group commit writes at most. Default: 64 MiB.
    ///
    /// Larger packs mean fewer files and more memory while committing.
    pub pack_bytes_max: usize,
    /// Shortest time from one commit to the next, in milliseconds; small episodes that come meanwhile share a
    /// pack; from 8 MiB on nobody waits. Default: 50.
    ///
    /// Longer times mean fewer, larger packs, and robots that free their copies later.
    pub commit_interval_millis: u64,
    /// Accept a store that ignores create-only puts (Garage, s3rver). Default: false.
    ///
    /// Objects are named after their content, so two hubs' puts of one name write the same bytes; but whoever else can
    /// write to the bucket could replace an object unnoticed.
    pub accept_unconditional_put: bool,
    /// Days for which chunks stay that were stored ahead of their episode, which never came. Default: 14; 0: for ever.
    ///
    /// They are counted from when a robot last sent or offered them: a robot that is away for longer sends them again.
    pub orphan_days: u32,
    /// How to reach `s3://`.
    pub s3: S3Config,
}

/// How to reach an S3 store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// URL of the server; empty: AWS, in `region`. Default: empty.
    pub endpoint: String,
    /// Region of the bucket. Default: `us-east-1`.
    pub region: String,
    /// Name of the key. Without it AWS's own variables and roles are used. Default: empty.
    pub access_key_id: String,
    /// The key; better in the environment: `ZUNFT_HUB__STORE__S3__SECRET_ACCESS_KEY`. Default: empty.
    pub secret_access_key: Secret,
    /// Accept an endpoint without TLS. Experience and signatures then cross the network readable. Default: false.
    pub allow_http: bool,
}

/// Where the metadata is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetadataConfig {
    /// `postgres://USER:PASSWORD@HOST/DATABASE`, or empty for SQLite inside `data_dir`. Default: empty.
    ///
    /// It needs a database of its own and a direct connection: a pooler between would share out the hub's lock.
    /// Better in the environment: `ZUNFT_HUB__METADATA__URL`.
    pub url: SecretUrl,
}

/// What the hub tells of its work.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Where spans of connections, uploads and training runs go, by OTLP over HTTP: `http://HOST:PORT` of a collector.
    /// Empty: nowhere. Default: empty.
    ///
    /// Only a program that was built with the feature `otlp` can.
    pub otlp_endpoint: String,
}

/// Which store the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorePlace {
    /// A directory.
    Local(PathBuf),
    /// A part of a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// Before the name of every object; may be empty.
        prefix: String,
    },
}

/// Bounds on what robots may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Most robots connected at once; the next one is told to come back later. Default: 10000.
    pub connections_max: usize,
    /// Most bytes of experience that wait in memory for a commit, over all robots. Default: 256 MiB.
    ///
    /// Manifests of long episodes count four times. When it is reached, robots are told to offer again later. It is at
    /// least 64 MiB, and 32 MiB more than `store.pack_bytes_max`. One robot gets a quarter of it, and at least 64 MiB.
    pub ingest_bytes_max: usize,
    /// Most bytes of one episode; a larger one is rejected and stays on its robot. Default: 64 GiB.
    ///
    /// It costs no memory: chunks of long episodes are written down while the rest comes.
    pub episode_bytes_max: u64,
    /// Seconds that a robot may take for its handshake, and again for its hello. Default: 10.
    ///
    /// Longer lets robots with worse links connect, and peers that never speak hold a connection longer.
    pub greeting_secs: u64,
    /// Seconds in which at least 4 KiB, or all that is left of a message, must move on a stream in use. Default: 120.
    ///
    /// It must be longer than a bulk upload may starve behind labelled ones. Until it ends, a robot that stands still
    /// holds its part of `ingest_bytes_max`.
    pub stall_secs: u64,
}

impl StoreConfig {
    /// Before when chunks must have been stored that are forgotten now, in milliseconds since 1970; none are at 0.
    pub(crate) fn orphaned_before(&self, now_unix_ms: u64) -> u64 {
        match self.orphan_days {
            0 => 0,
            days => now_unix_ms.saturating_sub(u64::from(days) * DAY_MILLIS),
        }
    }
}

impl LimitsConfig {
    /// See [`Self::greeting_secs`].
    pub(crate) fn greeting(&self) -> Duration {
        Duration::from_secs(self.greeting_secs)
    }

    /// One robot's part of [`Self::ingest_bytes_max`].
    pub(crate) fn robot_bytes_max(&self) -> usize {
        (self.ingest_bytes_max / 4).max(2 * UPLOAD_BYTES_HELD_MAX as usize)
    }

    /// See [`Self::stall_secs`].
    pub(crate) fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_secs)
    }
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            data_dir: "hub-data".into(),
            quic: QuicConfig::default(),
            http: HttpConfig::default(),
            store: StoreConfig::default(),
            metadata: MetadataConfig::default(),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
        }
    }
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::UNSPECIFIED, 4433).into() }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: (Ipv4Addr::LOCALHOST, 8480).into() }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            path: PathBuf::new(),
            pack_bytes_max: 64 * 1024 * 1024,
            commit_interval_millis: 50,
            accept_unconditional_put: false,
            orphan_days: 14,
            s3: S3Config::default(),
        }
    }
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            region: "us-east-1".into(),
            access_key_id: String::new(),
            secret_access_key: Secret::default(),
            allow_http: false,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            ingest_bytes_max: 256 * 1024 * 1024,
            episode_bytes_max: 64 << 30,
            greeting_secs: 10,
            stall_secs: 120,
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there.
    #[error("there is no config file {}; write one or leave out --config for the defaults", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The file or an environment variable says something that the hub does not understand.
    #[error("config is not acceptable; docs/hub.toml shows every key, and ZUNFT_HUB__SECTION__KEY overrides one")]
    Malformed(#[source] Box<figment::Error>),
    /// A number out of its range.
    #[error("config key {key} is {found}; it must be {allowed}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        found: u64,
        /// What would do.
        allowed: &'static str,
    },
    /// A text that does not do.
    #[error("config key {key} is {found:?}; it must be {allowed}")]
    Text {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What would do.
        allowed: &'static str,
    },
}

impl HubConfig {
    /// Reads `path`, or the defaults where there is none, with the environment's overrides.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(Self::default()));
        if let Some(path) = path {
            if !path.is_file() {
                return Err(ConfigError::Missing { path: path.to_owned() });
            }
            figment = figment.merge(Toml::file_exact(path));
        }
        let environment = Env::prefixed(ENVIRONMENT_PREFIX).split("__");
        let overridden_dir = Figment::from(environment.clone()).find_value("data_dir").is_ok();
        let mut config: Self =
            figment.merge(environment).extract().map_err(|error| ConfigError::Malformed(Box::new(error)))?;
        if let Some(folder) = path.and_then(Path::parent) {
            if !overridden_dir {
                config.data_dir = folder.join(&config.data_dir);
            }
            if !config.store.path.as_os_str().is_empty() {
                config.store.path = folder.join(&config.store.path);
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Checks the ranges of all numbers.
    pub fn check(&self) -> Result<(), ConfigError> {
        let pack_bytes_max = self.store.pack_bytes_max as u64;
        if !(8 << 20..=1 << 30).contains(&pack_bytes_max) {
            let allowed = "between 8388608 (8 MiB) and 1073741824 (1 GiB)";
            return Err(ConfigError::Range { key: "store.pack_bytes_max", found: pack_bytes_max, allowed });
        }
        let found = self.store.commit_interval_millis;
        if found > 1000 {
            return Err(ConfigError::Range { key: "store.commit_interval_millis", found, allowed: "at most 1000" });
        }
        let found = u64::from(self.store.orphan_days);
        if found > ORPHAN_DAYS_MAX {
            return Err(ConfigError::Range { key: "store.orphan_days", found, allowed: "at most 36500" });
        }
        let found = self.limits.connections_max as u64;
        if found == 0 {
            return Err(ConfigError::Range { key: "limits.connections_max", found, allowed: "at least 1" });
        }
        for (key, found) in
            [("limits.greeting_secs", self.limits.greeting_secs), ("limits.stall_secs", self.limits.stall_secs)]
        {
            if !(1..=3600).contains(&found) {
                return Err(ConfigError::Range { key, found, allowed: "between 1 and 3600" });
            }
        }
        let found = self.limits.episode_bytes_max;
        if found < 1 << 20 {
            let allowed = "at least 1048576 (1 MiB)";
            return Err(ConfigError::Range { key: "limits.episode_bytes_max", found, allowed });
        }
        let found = self.limits.ingest_bytes_max as u64;
        // What an episode takes at most, and one that fills a pack, must fit beside its own manifest, or its robot would
        // be put off for ever.
        let held = pack_bytes_max.max(UPLOAD_BYTES_HELD_MAX);
        if found < held + MANIFEST_MEMORY_MAX as u64 || found > 1 << 40 {
            let allowed = "at least 64 MiB, and 33554432 (32 MiB) more than store.pack_bytes_max, and at most 1 TiB";
            return Err(ConfigError::Range { key: "limits.ingest_bytes_max", found, allowed });
        }
        self.store_place()?;
        self.store.s3.check()?;
        let url = self.metadata.url.expose();
        if !(url.is_empty() || url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            let (found, allowed) = (self.metadata.url.to_string(), "empty or postgres://USER:PASSWORD@HOST/DATABASE");
            return Err(ConfigError::Text { key: "metadata.url", found, allowed });
        }
        Ok(())
    }

    /// Where experience is kept.
    pub fn store_place(&self) -> Result<StorePlace, ConfigError> {
        let (url, path) = (&self.store.url, &self.store.path);
        if url.is_empty() {
            let inside = path.as_os_str().is_empty();
            return Ok(StorePlace::Local(if inside { self.data_dir.join("store") } else { path.clone() }));
        }
        if !path.as_os_str().is_empty() {
            let found = path.display().to_string();
            return Err(ConfigError::Text { key: "store.path", found, allowed: "empty where store.url is set" });
        }
        let malformed = || {
            let allowed = "empty or s3://BUCKET or s3://BUCKET/PREFIX";
            ConfigError::Text { key: "store.url", found: url.clone(), allowed }
        };
        let (bucket, prefix) =
            url.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))).ok_or_else(malformed)?;
        let prefix = prefix.trim_end_matches('/');
        if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) || prefix.split('/').any(|part| part == "..") {
            return Err(malformed());
        }
        Ok(StorePlace::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl S3Config {
    fn check(&self) -> Result<(), ConfigError> {
        let refused = |allowed| ConfigError::Text { key: "store.s3.endpoint", found: self.endpoint.clone(), allowed };
        match self.endpoint.split_once("://") {
            None if self.endpoint.is_empty() => {}
            Some(("https", host)) if !host.is_empty() => {}
            Some(("http", host)) if !host.is_empty() => {
                if !self.allow_http {
                    return Err(refused("https://HOST, unless store.s3.allow_http is true"));
                }
            }
            None | Some(_) => return Err(refused("empty or https://HOST[:PORT]")),
        }
        if self.access_key_id.is_empty() != self.secret_access_key.expose().is_empty() {
            let allowed = "set together with store.s3.secret_access_key, or neither";
            return Err(ConfigError::Text {
                key: "store.s3.access_key_id",
                found: self.access_key_id.clone(),
                allowed,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(prefix: &str, table: &toml::Table) -> Vec<String> {
        let mut found = Vec::new();
        for (key, value) in table {
            match value.as_table() {
                Some(table) => found.extend(keys(&format!("{prefix}{key}."), table)),
                None => found.push(format!("{prefix}{key}")),
            }
        }
        found
    }

    #[test]
    fn documented_file_equals_the_defaults() {
        let text = include_str!("../../docs/hub.toml");
        let documented: toml::Table = toml::from_str(text).unwrap();
        let defaults = toml::Table::try_from(HubConfig::default()).unwrap();
        assert_eq!(keys("", &documented), keys("", &defaults), "every key is documented");
        assert_eq!(toml::from_str::<HubConfig>(text).unwrap(), HubConfig::default());
    }

    #[test]
    fn unknown_keys_and_impossible_numbers_name_the_culprit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.toml");
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let error = HubConfig::load(Some(&path)).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            format!("{error} {source}")
        };
        assert!(refused("[quic]\nlisten_on = 1").contains("listen_on"));
        assert!(refused("[quic]\nlisten = \"nowhere\"").contains("quic.listen"));
        assert!(refused("[store]\npack_bytes_max = 1").contains("store.pack_bytes_max"));
        assert!(refused("[limits]\nstall_secs = 0").contains("limits.stall_secs"));
        assert!(refused("[limits]\ningest_bytes_max = 67108864").contains("limits.ingest_bytes_max"));
        // What one episode may take does not shrink with the packs.
        let small =
            |mib: usize| format!("[store]\npack_bytes_max = 8388608\n[limits]\ningest_bytes_max = {}", mib << 20);
        assert!(refused(&small(63)).contains("limits.ingest_bytes_max"));
        std::fs::write(&path, small(64)).unwrap();
        HubConfig::load(Some(&path)).unwrap();
        assert!(matches!(HubConfig::load(Some(&folder.path().join("no"))), Err(ConfigError::Missing { .. })));
    }

    #[test]
    fn paths_in_a_file_are_relative_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.toml");
        std::fs::write(&path, "data_dir = \"d\"\n").unwrap();
        let config = HubConfig::load(Some(&path)).unwrap();
        assert_eq!(config.data_dir, folder.path().join("d"));
        assert_eq!(config.store_place().unwrap(), StorePlace::Local(folder.path().join("d/store")));
    }

    #[test]
    fn stores_are_named_by_url_and_mistakes_name_the_key() {
        let with = |change: fn(&mut HubConfig)| {
            let mut config = HubConfig::default();
            change(&mut config);
            config.check().map(|()| config.store_place().unwrap()).map_err(|error| error.to_string())
        };
        let s3 = |bucket: &str, prefix: &str| Ok(StorePlace::S3 { bucket: bucket.into(), prefix: prefix.into() });
        assert_eq!(with(|config| config.store.url = "s3://b".into()), s3("b", ""));
        assert_eq!(with(|config| config.store.url = "s3://b/p/q/".into()), s3("b", "p/q"));
        for (change, culprit) in [
            ((|config| config.store.url = "b/p".into()) as fn(&mut HubConfig), "store.url"),
            (|config| config.store.url = "s3:///p".into(), "store.url"),
            (|config| (config.store.url, config.store.path) = ("s3://b".into(), "/p".into()), "store.path"),
            (|config| config.store.s3.endpoint = "http://minio:9000".into(), "store.s3.allow_http"),
            (|config| config.store.s3.endpoint = "minio:9000".into(), "store.s3.endpoint"),
            (|config| config.store.s3.access_key_id = "a".into(), "store.s3.access_key_id"),
            (|config| config.metadata.url = "mysql://h/d".into(), "metadata.url"),
        ] {
            let error = with(change).unwrap_err();
            assert!(error.contains(culprit), "{error} names {culprit}");
        }
    }

    #[test]
    fn secrets_are_in_no_output() {
        let mut config = HubConfig::default();
        config.store.s3.secret_access_key = "sesame".into();
        config.metadata.url = "postgres://zunft:sesame@db/zunft".into();
        for shown in [format!("{config:?}"), toml::to_string(&config).unwrap()] {
            assert!(!shown.contains("sesame"), "{shown}");
            assert!(shown.contains("db/zunft"), "{shown}");
        }
        config.metadata.url = "mysql://zunft:sesame@db/zunft".into();
        assert!(!config.check().unwrap_err().to_string().contains("sesame"));
    }
}
