//! The metadata in a file beside the hub: what is committed survives a power cut.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::sql::Pool;
use super::{BUSY_MAX, Metadata, MetadataError, READERS, migrations};

/// A database in memory, on one connection: each would have its own.
pub(super) async fn open_memory() -> Result<Metadata, MetadataError> {
    let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
    let pool = SqlitePoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = pool.connect_with(options).await?;
    migrations()
        .run(&pool)
        .await
        .map_err(|source| MetadataError::Migrate { place: "in memory".into(), source: Box::new(source) })?;
    let pool = Pool::Sqlite(pool);
    Ok(Metadata { writer: pool.clone(), readers: pool })
}

/// Opens the file, creating it or bringing it up to date.
pub(super) async fn open(path: &Path) -> Result<Metadata, MetadataError> {
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
        .map_err(|source| MetadataError::Migrate { place: path.display().to_string(), source: Box::new(source) })?;
    let readers = SqlitePoolOptions::new().max_connections(READERS).connect_with(options).await?;
    Ok(Metadata { writer: Pool::Sqlite(writer), readers: Pool::Sqlite(readers) })
}
