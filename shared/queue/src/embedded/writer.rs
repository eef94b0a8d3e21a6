//! The only one who writes: a task with the writing connection. Whoever wants to write stands in a fair line before it;
//! it takes everybody who stands there and writes them in one transaction (group commit), so that many publishers share
//! one wait for the disk.

use super::lines::Lines;
use crate::health::{HealthBoard, QueueHealth};
use crate::message::Head;
use bytes::Bytes;
use serde::Serialize;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;
use tracing::{info, warn};

/// So many may stand in line; more wait to get into it.
const LINE: usize = 1_024;
/// One transaction takes at most so many, and about so many bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 8 << 20;
/// How long to wait before deleting again what could not be deleted.
const AGAIN: Duration = Duration::from_secs(1);

/// The bodies stand one after the other in the blob `?2`; json_each keeps the order of the array, so ids follow it.
const ITEMS_INSERT: &str = "
    INSERT INTO items (queue, head, body)
    SELECT value ->> 'queue', value ->> 'head', coalesce(substr(?2, value ->> 'from', value ->> 'length'), x'')
    FROM json_each(?1)";
const ITEMS_DELETE: &str = "DELETE FROM items WHERE id IN (SELECT value FROM json_each(?1))";

/// An item to be written.
#[derive(Clone, Debug)]
pub(super) struct NewItem {
    queue: String,
    head: String,
    body: Bytes,
}

impl NewItem {
    pub(super) fn new(queue: String, head: &Head, body: Bytes) -> Self {
        // Plain data with string keys: this cannot fail, and were it to, the row would be refused as not being JSON.
        Self { queue, head: serde_json::to_string(head).unwrap_or_default(), body }
    }
}

/// What one caller wants written, all or nothing.
#[derive(Debug)]
struct Order {
    insert: Option<NewItem>,
    delete: Vec<i64>,
    reply: oneshot::Sender<Result<(), String>>,
}

/// The way to the writing task.
#[derive(Clone, Debug)]
pub(super) struct Writer(mpsc::Sender<Order>);

impl Writer {
    pub(super) fn start(connection: SqliteConnection, lines: Arc<Lines>, health: Arc<HealthBoard>) -> Self {
        let (orders, orders_in) = mpsc::channel(LINE);
        health.set("file", QueueHealth::Up);
        tokio::spawn(write(connection, orders_in, lines, health));
        Self(orders)
    }

    /// Writes an item. Returns when it is on the disk.
    pub(super) async fn insert(&self, item: NewItem) -> Result<(), String> {
        self.order(Some(item), Vec::new()).await
    }

    /// Deletes items. What cannot be deleted now is deleted later.
    pub(super) async fn delete(&self, ids: Vec<i64>) -> Result<(), String> {
        self.order(None, ids).await
    }

    /// Replaces an item by another, in one transaction.
    pub(super) async fn replace(&self, id: i64, item: NewItem) -> Result<(), String> {
        self.order(Some(item), vec![id]).await
    }

    async fn order(&self, insert: Option<NewItem>, delete: Vec<i64>) -> Result<(), String> {
        let (reply, answered) = oneshot::channel();
        let closed = || "the queue's file is closed".to_owned();
        self.0.send(Order { insert, delete, reply }).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Waits until everybody who stands in line is served.
    pub(super) async fn stop(&self) {
        let _ = self.order(None, Vec::new()).await;
    }
}

async fn write(
    mut connection: SqliteConnection,
    mut orders: mpsc::Receiver<Order>,
    lines: Arc<Lines>,
    health: Arc<HealthBoard>,
) {
    let mut batch = Vec::new();
    // Settled by their consumer and still in the file. They are in nobody's way: no reader goes back to them.
    let mut leftover: BTreeSet<i64> = BTreeSet::new();
    let mut well = true;
    loop {
        let first = tokio::select! {
            order = orders.recv() => match order { Some(order) => Some(order), None => break },
            () = sleep(AGAIN), if !leftover.is_empty() => None,
        };
        batch.extend(first);
        let size = |order: &Order| order.insert.as_ref().map_or(0, |item| item.body.len());
        let mut bytes: usize = batch.iter().map(size).sum();
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Ok(order) = orders.try_recv() else { break };
            bytes += size(&order);
            batch.push(order);
        }
        let outcome = commit(&mut connection, &batch, &leftover).await;
        match &outcome {
            Ok(()) => {
                leftover.clear();
                if !well {
                    info!("The queue's file can be written again");
                    health.set("file", QueueHealth::Up);
                }
            }
            Err(reason) => {
                // A lone deletion is remembered; one that belongs to an insert fails with it.
                leftover
                    .extend(batch.iter().filter(|order| order.insert.is_none()).flat_map(|order| order.delete.iter()));
                if well {
                    warn!(reason, "The queue's file cannot be written: {reason}");
                }
                health.set("file", QueueHealth::Down(reason.clone()));
            }
        }
        well = outcome.is_ok();
        let mut news = BTreeSet::new();
        for Order { insert, reply, .. } in batch.drain(..) {
            if let (Some(item), true) = (insert, well) {
                news.insert(item.queue);
            }
            // The caller may have stopped waiting; the item is written all the same.
            let _ = reply.send(outcome.clone());
        }
        news.iter().for_each(|queue| lines.announce(queue));
    }
    let _ = connection.close().await;
}

#[derive(Serialize)]
struct Line<'a> {
    queue: &'a str,
    head: &'a str,
    /// From 1, as SQL counts.
    from: usize,
    length: usize,
}

async fn commit(connection: &mut SqliteConnection, batch: &[Order], leftover: &BTreeSet<i64>) -> Result<(), String> {
    let mut bodies = Vec::new();
    let mut items = Vec::new();
    for item in batch.iter().filter_map(|order| order.insert.as_ref()) {
        items.push(Line { queue: &item.queue, head: &item.head, from: bodies.len() + 1, length: item.body.len() });
        bodies.extend_from_slice(&item.body);
    }
    let gone: Vec<i64> = batch.iter().flat_map(|order| order.delete.iter()).chain(leftover).copied().collect();
    let insert = (!items.is_empty()).then(|| (serde_json::to_string(&items).unwrap_or_default(), bodies));
    let delete = (!gone.is_empty()).then(|| serde_json::to_string(&gone).unwrap_or_default());
    let written = async {
        match (insert, delete) {
            (None, None) => {}
            // One statement is a transaction of its own.
            (Some((items, bodies)), None) => {
                sqlx::query(ITEMS_INSERT).bind(items).bind(bodies).execute(&mut *connection).await?;
            }
            (None, Some(ids)) => {
                sqlx::query(ITEMS_DELETE).bind(ids).execute(&mut *connection).await?;
            }
            (Some((items, bodies)), Some(ids)) => {
                let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
                sqlx::query(ITEMS_INSERT).bind(items).bind(bodies).execute(&mut *tx).await?;
                sqlx::query(ITEMS_DELETE).bind(ids).execute(&mut *tx).await?;
                tx.commit().await?;
            }
        }
        Ok::<(), sqlx::Error>(())
    };
    written.await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::file::File;
    use super::*;
    use crate::message::Envelope;

    fn item(text: &str) -> NewItem {
        NewItem::new("q".into(), &Head::new(Envelope::holding(1)), Bytes::from(text.to_owned()))
    }

    #[tokio::test]
    async fn a_confirmed_write_waits_for_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (_file, mut connection) = File::open(&folder.path().join("queue.db")).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await.unwrap();
        assert_eq!((journal.as_str(), synchronous), ("wal", 2));
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_while_it_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let (file, mut connection) = File::open(&folder.path().join("queue.db")).await.unwrap();
        sqlx::query("PRAGMA max_page_count = 40").execute(&mut connection).await.unwrap();
        let health = Arc::new(HealthBoard::new());
        let writer = Writer::start(connection, Arc::new(Lines::new(0)), health.clone());
        let page = "x".repeat(4_000);
        let mut stored = 0;
        let reason = loop {
            match writer.insert(item(&page)).await {
                Ok(()) => stored += 1,
                Err(reason) => break reason,
            }
        };
        assert!(reason.contains("full"), "{reason}");
        assert!(matches!(&*health.subscribe().borrow(), QueueHealth::Down(_)));
        assert_eq!(file.count("q").await.unwrap(), stored);

        // What is settled makes room.
        let items = file.after("q", 0, 100).await.unwrap();
        writer.delete(items.iter().map(|item| item.id).collect()).await.unwrap();
        writer.insert(item(&page)).await.unwrap();
        assert_eq!(*health.subscribe().borrow(), QueueHealth::Up);
        assert_eq!(file.count("q").await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_replacement_is_all_or_nothing_and_keeps_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, connection) = File::open(&folder.path().join("queue.db")).await.unwrap();
        let writer = Writer::start(connection, Arc::new(Lines::new(0)), Arc::new(HealthBoard::new()));
        writer.insert(item("")).await.unwrap();
        let old = file.after("q", 0, 10).await.unwrap();
        assert_eq!(old[0].body, Bytes::new());
        writer.replace(old[0].id, item("\u{0}\"é")).await.unwrap();
        let new = file.after("q", 0, 10).await.unwrap();
        assert_eq!(new.len(), 1);
        assert!(new[0].id > old[0].id);
        assert_eq!(new[0].body, Bytes::from("\u{0}\"é"));
    }
}
