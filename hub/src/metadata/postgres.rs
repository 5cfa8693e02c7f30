//! The metadata in PostgreSQL: one hub at a time, and only where a commit survives a power cut.
//!
//! The session that writes holds an advisory lock of its database for as long as it lives. So there is one writer, as
//! with SQLite: no two transactions that register episodes ever run at once, and a hub that lost its session cannot
//! write beside the one that took over.

use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};

use super::sql::Pool;
use super::{BUSY_MAX, Metadata, MetadataError, READERS, migrations};
use crate::config::SecretUrl;

/// Which advisory lock: "ZUNFTHUB" as a number.
const LOCK: i64 = i64::from_be_bytes(*b"ZUNFTHUB");

/// PostgreSQL's code for a lock that was waited for in vain.
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Settings without which a commit may be lost in a power cut.
const DURABILITY: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// Connects, checks the server's settings, takes the lock and brings the database up to date.
pub(super) async fn open(url: SecretUrl) -> Result<Metadata, MetadataError> {
    let place = url.to_string();
    let options = PgConnectOptions::from_str(url.expose())
        .map_err(|source| connect_error(&place, source))?
        .application_name("zunft-hub");
    // Ahead of the pools, which would only say that they waited in vain.
    let mut first = options.connect().await.map_err(|source| connect_error(&place, source))?;
    if let Some(setting) = undurable(&mut first).await? {
        return Err(MetadataError::Undurable { place, setting });
    }
    lock(&mut first).await.map_err(|source| match code(&source).as_deref() {
        Some(LOCK_NOT_AVAILABLE) => MetadataError::InUse { place: place.clone() },
        Some(_) | None => MetadataError::Database(source),
    })?;
    first.close().await?;
    let writer = PgPoolOptions::new()
        .max_connections(1)
        // The lock goes with the connection: it stays for as long as it works.
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(BUSY_MAX)
        .after_connect(|connection, _| {
            Box::pin(async move {
                if let Some(setting) = undurable(connection).await? {
                    return Err(sqlx::Error::Configuration(format!("setting {setting} is off").into()));
                }
                lock(connection).await
            })
        })
        .connect_with(options.clone())
        .await?;
    migrations().run(&writer).await.map_err(|source| MetadataError::Migrate { place, source: Box::new(source) })?;
    let readers = PgPoolOptions::new().max_connections(READERS).acquire_timeout(BUSY_MAX).connect_with(options).await?;
    Ok(Metadata { writer: Pool::Postgres(writer), readers: Pool::Postgres(readers) })
}

/// Takes the lock for as long as the connection lives; a hub that was killed a moment ago may have it still.
async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT set_config('lock_timeout', $1, false)")
        .bind(BUSY_MAX.as_millis().to_string())
        .execute(&mut *connection)
        .await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    sqlx::query("RESET lock_timeout").execute(connection).await?;
    Ok(())
}

/// A setting that makes commits of this session lose what they said.
async fn undurable(connection: &mut PgConnection) -> Result<Option<&'static str>, sqlx::Error> {
    for setting in DURABILITY {
        let value: String =
            sqlx::query_scalar("SELECT current_setting($1)").bind(setting).fetch_one(&mut *connection).await?;
        if value == "off" {
            return Ok(Some(setting));
        }
    }
    Ok(None)
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned())
}

/// What an operator does about a connection that is not made.
fn connect_error(place: &str, source: sqlx::Error) -> MetadataError {
    let remedy = match code(&source).as_deref() {
        Some("28000" | "28P01") => "it refuses the user or password in metadata.url",
        Some("3D000") => "create the database: CREATE DATABASE",
        Some("53300") => "it has no connection left; raise its max_connections",
        Some(_) => "its own words follow",
        None => "check host and port in metadata.url, the network and that the server runs",
    };
    MetadataError::Connect { place: place.to_owned(), remedy, source }
}
