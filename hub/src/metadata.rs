//! What the hub knows in SQL: robots, episodes and where their chunks lie, snapshots, runs, releases, assignments.
//!
//! SQLite with a write-ahead log and full synchronisation: what is committed survives a power cut. Everything about
//! experience can be rebuilt from the packs. It decides nothing and reads no clock.

mod assignments;
mod counts;
mod episodes;
mod evictions;
mod releases;
mod robots;
mod runs;
mod snapshots;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row as _, SqlSafeStr as _, Sqlite, Transaction};
use zunft_protocol::ids::IdError;

pub use assignments::AssignmentRecord;
pub use counts::TaskCount;
pub use episodes::{EndingKind, EpisodeFilter, EpisodePage, EpisodeRecord, Location, PAGE_EPISODES_MAX};
pub(crate) use episodes::{NewChunk, NewEpisode, NewPack, Registered};
pub use evictions::EvictionRecord;
pub use releases::ReleaseRecord;
pub(crate) use robots::NewReport;
pub use robots::{ReleaseOnRobot, RobotRecord, RobotReport};
pub use runs::{RunRecord, RunState};
pub use snapshots::SnapshotRecord;

/// Readers at once; SQLite serves each from its own thread.
const READERS: u32 = 4;

/// Longest wait for another process's lock, for example a backup's.
const BUSY_MAX: Duration = Duration::from_secs(10);

/// Why the metadata cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// The database.
    #[error("metadata database failed")]
    Database(#[from] sqlx::Error),
    /// A migration.
    #[error("could not bring metadata {} up to date; a newer hub may have written it: upgrade", path.display())]
    Migrate {
        /// The database.
        path: PathBuf,
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
}

/// The metadata database.
#[derive(Debug, Clone)]
pub struct Metadata {
    /// One connection, so that writers wait in line instead of failing.
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Metadata {
    /// Opens the database, creating it or bringing it up to date.
    pub async fn open(path: &Path) -> Result<Self, MetadataError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_MAX);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        migrations()
            .run(&writer)
            .await
            .map_err(|source| MetadataError::Migrate { path: path.to_owned(), source: Box::new(source) })?;
        let readers = SqlitePoolOptions::new().max_connections(READERS).connect_with(options).await?;
        Ok(Self { writer, readers })
    }

    /// Finishes what is under way and closes the database.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// A transaction that may write from its first statement on.
    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, MetadataError> {
        // A read that turns into a write later would fail at once when another process writes.
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }
}

fn migrations() -> Migrator {
    let initial = include_str!("../migrations/0001_initial.sql");
    let evictions = include_str!("../migrations/0004_evictions.sql");
    let simple = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![simple(1, "initial", initial), simple(4, "evictions", evictions)])
}

/// A row that has one more column to be parsed.
trait Column {
    /// Reads a name.
    fn name<T: std::str::FromStr<Err = IdError>>(&self, column: &'static str) -> Result<T, MetadataError>;
    /// Reads a number that is never negative.
    fn count(&self, column: &'static str) -> Result<u64, MetadataError>;
    /// Reads an id of `N` bytes.
    fn bytes<const N: usize>(&self, column: &'static str) -> Result<[u8; N], MetadataError>;
    /// Reads JSON that this program wrote.
    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, MetadataError>;
    /// Reads one of a few words.
    fn word<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, MetadataError>;
}

impl Column for SqliteRow {
    fn name<T: std::str::FromStr<Err = IdError>>(&self, column: &'static str) -> Result<T, MetadataError> {
        let found: String = self.try_get(column)?;
        found.parse().map_err(|_| MetadataError::Damaged { column, found })
    }

    fn count(&self, column: &'static str) -> Result<u64, MetadataError> {
        let found: i64 = self.try_get(column)?;
        found.try_into().map_err(|_| MetadataError::Damaged { column, found: found.to_string() })
    }

    fn bytes<const N: usize>(&self, column: &'static str) -> Result<[u8; N], MetadataError> {
        let found: Vec<u8> = self.try_get(column)?;
        let len = found.len();
        found.try_into().map_err(|_| MetadataError::Damaged { column, found: format!("{len} bytes") })
    }

    fn json<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, MetadataError> {
        let found: String = self.try_get(column)?;
        serde_json::from_str(&found).map_err(|_| MetadataError::Damaged { column, found })
    }

    fn word<T: serde::de::DeserializeOwned>(&self, column: &'static str) -> Result<T, MetadataError> {
        let found: String = self.try_get(column)?;
        let value = serde_json::Value::String(found.clone());
        serde_json::from_value(value).map_err(|_| MetadataError::Damaged { column, found })
    }
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
