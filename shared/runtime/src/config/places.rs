//! `data_dir`, `[store]`, `[queue]` and `[media]`: where things are kept.

use super::account::is_loopback;
use super::reader::TableReader;
use domain::Secret;
use std::path::{Path, PathBuf};
use url::Url;

/// Where rows are kept.
#[derive(Clone, Debug)]
pub enum StorePlace {
    /// A PostgreSQL server: `postgres://…`. A secret, because it may hold a password.
    Postgres(Secret),
    /// An SQLite file.
    Sqlite(PathBuf),
}

/// `[store]`.
#[derive(Clone, Debug)]
pub struct Store {
    /// Where rows are kept.
    pub place: StorePlace,
    /// Most connections a process opens to PostgreSQL.
    pub max_connections: u32,
}

/// Where messages between roles travel.
#[derive(Clone, Debug)]
pub enum QueuePlace {
    /// RabbitMQ: `amqp://…` or `amqps://…`. A secret, because it may hold a password.
    RabbitMq(Secret),
    /// A file of this process.
    Embedded(PathBuf),
}

/// `[queue]`.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Where messages travel.
    pub place: QueuePlace,
    /// Put before every queue's and exchange's name, so that several deployments can share a broker. Empty by default.
    pub prefix: String,
}

/// Where large bodies and files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobsPlace {
    /// A folder.
    Folder(PathBuf),
}

/// The store's file, unless `[store] url` says otherwise.
pub(super) fn default_store(data_dir: &Path) -> Store {
    Store { place: StorePlace::Sqlite(data_dir.join("roost.db")), max_connections: 10 }
}

/// The queue's file, unless `[queue] url` says otherwise.
pub(super) fn default_queue(data_dir: &Path) -> Queue {
    Queue { place: QueuePlace::Embedded(data_dir.join("queue.db")), prefix: String::new() }
}

/// The object store's folder, unless `[media] url` says otherwise.
pub(super) fn default_blobs(data_dir: &Path) -> BlobsPlace {
    BlobsPlace::Folder(data_dir.join("media"))
}

pub(super) fn read_store(table: TableReader<'_, '_>, data_dir: &Path, warnings: &mut Vec<String>) -> Store {
    let mut store = default_store(data_dir);
    if let Some(url) = table.text_or_secret("url") {
        match url.expose() {
            text if text.starts_with("postgres://") || text.starts_with("postgresql://") => match Url::parse(text) {
                Ok(parsed) => {
                    let verified = parsed.query_pairs().any(|(key, value)| key == "sslmode" && value == "verify-full");
                    if parsed.has_host() && !is_loopback(&parsed) && !verified {
                        warnings.push("[store] url: the connection to PostgreSQL is not verified; add sslmode=verify-full.".into());
                    }
                    store.place = StorePlace::Postgres(url);
                }
                Err(_) => table.wrong("url", "must be an address such as \"postgres://roost@db/roost\""),
            },
            text if text.starts_with("sqlite:") => match sqlite_file(text) {
                Some(path) => store.place = StorePlace::Sqlite(path),
                None => table.wrong("url", "must name a file, such as \"sqlite://roost-data/roost.db\"; a database in memory forgets everything"),
            },
            _ => table.wrong("url", "must begin with postgres:// or sqlite:"),
        }
    }
    if let Some(most) = table.whole("max_connections", 2..=1000) {
        store.max_connections = u32::try_from(most).unwrap_or(store.max_connections);
    }
    table.finish();
    store
}

fn sqlite_file(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:"))?;
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    (!path.is_empty() && !path.contains(":memory:")).then(|| PathBuf::from(path))
}

pub(super) fn read_queue(table: TableReader<'_, '_>, data_dir: &Path, warnings: &mut Vec<String>) -> Queue {
    let mut queue = default_queue(data_dir);
    if let Some(url) = table.text_or_secret("url") {
        match url.expose() {
            "embedded" => {}
            text if text.starts_with("amqp://") || text.starts_with("amqps://") => match Url::parse(text) {
                Ok(parsed) if parsed.has_host() => {
                    if parsed.scheme() == "amqp" && !is_loopback(&parsed) {
                        warnings.push("[queue] url: the connection to RabbitMQ is not encrypted; amqps:// is.".into());
                    }
                    queue.place = QueuePlace::RabbitMq(url);
                }
                _ => table.wrong("url", "must be an address such as \"amqp://guest:guest@mq:5672/%2f\""),
            },
            _ => table.wrong("url", "must be \"embedded\", or begin with amqp:// or amqps://"),
        }
    }
    if let Some(prefix) = table.text("prefix") {
        let plain = prefix.len() <= 40 && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if plain {
            queue.prefix = prefix;
        } else {
            table.wrong("prefix", "must be at most 40 letters, digits, dots, dashes and underscores");
        }
    }
    table.finish();
    queue
}

pub(super) fn read_blobs(table: TableReader<'_, '_>, data_dir: &Path) -> BlobsPlace {
    let mut place = default_blobs(data_dir);
    if let Some(url) = table.text("url") {
        match url.strip_prefix("file:") {
            Some(path) => {
                let path = if path.starts_with("///") { path.trim_start_matches("//") } else { path };
                if path.is_empty() || path.starts_with("//") {
                    table.wrong("url", "must name a folder of this machine, such as \"file:./roost-data/media\"");
                } else {
                    place = BlobsPlace::Folder(PathBuf::from(path));
                }
            }
            None if url.starts_with("s3://") => {
                table.wrong("url", "begins with s3://, which is not served by this version yet");
            }
            None => table.wrong("url", "must begin with file:, such as \"file:./roost-data/media\""),
        }
    }
    table.finish();
    place
}
