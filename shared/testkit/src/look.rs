//! Looking at rows: for what a test wants to know and no function of the store tells.

use anyhow::Result;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection};
use std::str::FromStr;
use store::StoreUrl;

/// The first column of every row of `query`, which must be text that is not NULL (`CAST(… AS TEXT)`).
/// # Errors
/// When the database cannot be asked.
pub async fn texts(url: &StoreUrl, query: &'static str) -> Result<Vec<String>> {
    Ok(match url {
        StoreUrl::Postgres(url) => {
            let options = PgConnectOptions::from_str(url)?.options([("search_path", "roost,public")]);
            let mut conn = options.connect().await?;
            let rows = sqlx::query_scalar(query).fetch_all(&mut conn).await?;
            conn.close().await?;
            rows
        }
        StoreUrl::Sqlite(path) => {
            let mut conn = SqliteConnectOptions::new().filename(path).read_only(true).connect().await?;
            let rows = sqlx::query_scalar(query).fetch_all(&mut conn).await?;
            conn.close().await?;
            rows
        }
    })
}
