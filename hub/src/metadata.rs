//! What the hub knows in SQL: robots, episodes and where their chunks lie, snapshots, runs, releases, assignments.
//!
//! SQLite with a write-ahead log and full synchronisation, or PostgreSQL with settings to the same effect: what is
//! committed survives a power cut. Everything about experience can be rebuilt from the packs. It decides nothing and
//! reads no clock.

mod assignments;
mod counts;
mod cursor;
mod episodes;
mod evictions;
mod inventory;
mod noted;
mod postgres;
mod releases;
mod robots;
mod runs;
mod snapshots;
mod sql;
mod sqlite;
mod unnamed;
mod upload_policies;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use self::sql::{Pool, Transaction};
use crate::config::SecretUrl;
use crate::store::disk_is_full;
pub use assignments::AssignmentRecord;
pub use counts::TaskCount;
pub use cursor::{NotedCursor, RecordingCursor};
pub use episodes::{EndingKind, EpisodeFilter, EpisodePage, EpisodeRecord, Location, PAGE_EPISODES_MAX};
pub(crate) use episodes::{NewChunk, NewEpisode, NewPack, Registered};
pub use evictions::EvictionRecord;
pub(crate) use inventory::{ListedEpisode, Replacement};
pub use noted::{NotedRecord, NotedState};
pub use releases::ReleaseRecord;
pub(crate) use robots::NewReport;
pub use robots::{ReleaseOnRobot, RobotRecord, RobotReport};
pub use runs::{RunRecord, RunState};
pub use snapshots::SnapshotRecord;
pub(crate) use unnamed::KEPT_FOR;
pub use upload_policies::{PolicyScope, UploadPolicies, UploadPolicyRecord};

/// Readers at once; SQLite serves each from its own thread, PostgreSQL from its own process.
const READERS: u32 = 4;

/// Longest wait for another process's lock, for example a backup's, and for a connection.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Why the metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The database.
    #[error("metadata database failed")]
    Database(#[from] sqlx::Error),
    /// A migration.
    #[error("could not bring metadata {place} up to date; a newer hub may have written it: upgrade")]
    Migrate {
        /// The database.
        place: String,
        /// Why.
        #[source]
        source: Box<sqlx::migrate::MigrateError>,
    },
    /// A row that this program cannot have written.
    #[error("metadata column {column} holds {found:?}; rebuild the metadata from the packs")]
    Damaged {
        /// Which column.
        column: &'static str,
        /// What it holds.
        found: String,
    },
    /// Something that is not there.
    #[error("there is no {what} {id} here; list what there is")]
    Missing {
        /// What was looked for.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// A chunk that nobody stored.
    #[error("episode {episode} needs a chunk that is not stored")]
    ChunkMissing {
        /// Which episode.
        episode: zunft_protocol::EpisodeId,
    },
    /// The disk is full.
    #[error("the disk of the metadata database is full; make room")]
    Full,
    /// The server is not there, or refuses.
    #[error("could not connect to {place}: {remedy}")]
    Connect {
        /// The database, without its password.
        place: String,
        /// What to do.
        remedy: &'static str,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// Another hub has it.
    #[error("another hub uses {place}; stop it, or set metadata.url to another database")]
    InUse {
        /// The database.
        place: String,
    },
    /// The server would lose what it committed.
    #[error(
        "PostgreSQL's setting {setting} is off at {place}: a power cut would lose acknowledged episodes; set it to on"
    )]
    Undurable {
        /// The database.
        place: String,
        /// Which setting.
        setting: &'static str,
    },
}

impl MetadataError {
    /// Whether it is for lack of room.
    pub(crate) fn is_full(&self) -> bool {
        let Self::Database(error) = self else {
            return matches!(self, Self::Full);
        };
        // SQLite's and PostgreSQL's code for it.
        let code = error.as_database_error().and_then(|error| error.code());
        disk_is_full(error) || code.is_some_and(|code| code == "13" || code == "53100")
    }

    /// Whether the database answered that it does not take what it was given, rather than that it cannot work.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::Database(_))) && !self.is_full()
    }
}

/// The metadata database.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// One connection, so that writers wait in line instead of failing.
    writer: Pool,
    readers: Pool,
}

impl Metadata {
    /// Opens the database at `url` or, where that is empty, in the file `path`; brings it up to date.
    pub async fn open(url: SecretUrl, path: PathBuf) -> Result<Self, MetadataError> {
        if url.expose().is_empty() { sqlite::open(&path).await } else { postgres::open(url).await }
    }

    /// Opens the database in a file, creating it or bringing it up to date.
    pub async fn open_file(path: &Path) -> Result<Self, MetadataError> {
        sqlite::open(path).await
    }

    /// A database that ends with the process.
    pub(crate) async fn open_memory() -> Result<Self, MetadataError> {
        sqlite::open_memory().await
    }

    /// Finishes what is under way and closes the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// A transaction that may write from its first statement on.
    async fn begin(&self) -> Result<Transaction, MetadataError> {
        Ok(self.writer.begin().await?)
    }
}

fn migrations() -> Migrator {
    let initial = include_str!("../migrations/0001_initial.sql");
    let evictions = include_str!("../migrations/0004_evictions.sql");
    let policies = include_str!("../migrations/0005_upload_policies.sql");
    let noted = include_str!("../migrations/0007_noted_episodes.sql");
    let simple = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let unnamed = include_str!("../migrations/0006_unnamed_chunks.sql");
    Migrator::with_migrations(vec![
        simple(1, "initial", initial),
        simple(4, "evictions", evictions),
        simple(5, "upload policies", policies),
        simple(6, "unnamed chunks", unnamed),
        simple(7, "noted episodes", noted),
    ])
}

/// The word that a unit variant is written as.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        // A variant with fields: the name of its kind.
        Ok(serde_json::Value::Object(map)) => map.keys().next().cloned().unwrap_or_default(),
        Ok(_) | Err(_) => String::new(),
    }
}

/// JSON of our own types.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("our types have string keys")
}

#[cfg(test)]
mod tests;
