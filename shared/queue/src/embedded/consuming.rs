//! Consuming from the file: one task per consumer. The same commands and the same meaning as on RabbitMQ; what is held
//! for later stays a row meanwhile and is replaced by its successor in one transaction.

use super::file::{File, Item};
use super::lines::Line;
use super::writer::{NewItem, Writer};
use crate::backoff::{Backoff, Waits};
use crate::delivery::{Command, Desk, Incoming, Key, Settle};
use crate::message::Head;
use crate::stats::{count, count_by};
use crate::topics::Kind;
use crate::{DELIVERY_LIMIT, LONGEST_HOLD};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Reads at most so many bodies at a time.
const FETCH: usize = 64;

/// The task behind one consumer.
pub(super) struct Worker {
    desk: Desk,
    line: Arc<Line>,
    file: File,
    writer: Writer,
    /// The dead letters' name in the file.
    dead: String,
    waits: Waits,
    closing: CancellationToken,
    epoch: u64,
    unacked: BTreeMap<u64, (Head, Bytes)>,
    held: JoinSet<Released>,
    release: CancellationToken,
}

/// A held delivery's task is through: whether it was replaced by its successor.
struct Released {
    tag: u64,
    replaced: bool,
}

impl Worker {
    pub(super) fn new(
        desk: Desk,
        line: Arc<Line>,
        file: File,
        writer: Writer,
        dead: String,
        waits: Waits,
        closing: CancellationToken,
    ) -> Self {
        Self {
            desk,
            line,
            file,
            writer,
            dead,
            waits,
            closing,
            epoch: 0,
            unacked: BTreeMap::new(),
            held: JoinSet::new(),
            release: CancellationToken::new(),
        }
    }

    pub(super) async fn run(mut self) {
        self.line.joined(1);
        self.serve().await;
        self.line.joined(-1);
    }

    /// Until the consumer is closed or dropped, or the queue is closed.
    async fn serve(&mut self) {
        let mut news = self.line.news();
        let mut backoff = Backoff::new(self.waits);
        let mut paused = false;
        let (closing, dropped) = (self.closing.clone(), self.desk.dropped.clone());
        self.begin();
        loop {
            let room = usize::from(self.desk.prefetch).saturating_sub(self.unacked.len());
            let mut wait = None;
            if !paused && room > 0 {
                news.mark_unchanged();
                match self.fetch(room.min(FETCH)).await {
                    Ok(0) => {}
                    Ok(_) => news.mark_changed(),
                    Err(reason) => {
                        warn!(queue = self.desk.target.queue, reason, "The queue's file cannot be read: {reason}");
                        wait = Some(backoff.next());
                    }
                }
            }
            let ready = !paused && usize::from(self.desk.prefetch) > self.unacked.len();
            tokio::select! {
                biased;
                () = dropped.cancelled() => {
                    self.give_back(true).await;
                    return;
                }
                () = closing.cancelled() => {
                    self.give_back(false).await;
                    return;
                }
                command = self.desk.commands.recv() => match command {
                    Some(Command::Settle { which, how, reply }) => {
                        self.settle(which, how).await;
                        let _ = reply.send(());
                    }
                    Some(Command::Dropped(key)) => if key.epoch == self.epoch { self.put_back(key.tag, true); },
                    Some(Command::Pause { reply }) => {
                        self.give_back(false).await;
                        paused = true;
                        let _ = reply.send(());
                    }
                    Some(Command::Resume) => {
                        if paused {
                            self.begin();
                        }
                        paused = false;
                    }
                    Some(Command::Close { reply }) => {
                        self.give_back(false).await;
                        let _ = reply.send(());
                        return;
                    }
                    None => return,
                },
                Some(released) = self.held.join_next() => self.released(released),
                _ = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
                _ = changed(&mut news), if ready && wait.is_none() => {}
            }
        }
    }

    /// A new incarnation: deliveries of the one before are stale.
    fn begin(&mut self) {
        self.epoch += 1;
        self.desk.epoch.store(self.epoch, Ordering::Release);
        self.release = CancellationToken::new();
    }

    /// Delivers up to `limit` items. Returns how many there were.
    async fn fetch(&mut self, limit: usize) -> Result<usize, String> {
        let line = self.line.clone();
        let _fetching = line.fetching.lock().await;
        let (returned, delivered_to) = line.next(limit);
        let mut items = if returned.is_empty() { Vec::new() } else { self.file.by_id(&line.queue, &returned).await? };
        let again = items.len();
        if items.len() < limit {
            items.extend(self.file.after(&line.queue, delivered_to, limit - items.len()).await?);
        }
        line.take(&returned, &items.iter().map(|item| item.id).collect::<Vec<_>>());
        let count = items.len();
        for (index, item) in items.into_iter().enumerate() {
            self.deliver(item, index < again).await;
        }
        Ok(count)
    }

    async fn deliver(&mut self, item: Item, returned: bool) {
        let Item { id, head, body } = item;
        let tag = id.unsigned_abs();
        self.unacked.insert(tag, (head.clone(), body.clone()));
        self.desk.counters.unacked(1);
        if self.line.failures(id) > DELIVERY_LIMIT && self.desk.target.kind != Kind::Dead {
            return self.exhausted(tag, &head, body).await;
        }
        let key = Key { epoch: self.epoch, tag };
        let redelivered = returned || id <= self.line.newest_at_start;
        // Fails when the consumer is gone, which ends this task in a moment.
        let _ = self.desk.deliveries.send(Incoming { key, head, body, redelivered });
    }

    /// Came back too often: into the dead letters, or dropped where the topic says so.
    async fn exhausted(&mut self, tag: u64, head: &Head, body: Bytes) {
        const REASON: &str = "delivery_limit";
        self.desk.counters.dead_lettered(REASON);
        if self.desk.target.kind == Kind::References {
            let _ = self.writer.delete(vec![id(tag)]).await;
            self.forget(tag);
            self.line.settled(id(tag));
            return;
        }
        let words = format!("set aside by the queue: returned unsettled {} times", self.line.failures(id(tag)));
        let head = head.died(&self.desk.target.queue, REASON.into(), words);
        self.replace(tag, Duration::ZERO, NewItem::new(self.dead.clone(), &head, body));
    }

    fn forget(&mut self, tag: u64) -> Option<(Head, Bytes)> {
        let unacked = self.unacked.remove(&tag)?;
        self.desk.counters.unacked(-1);
        Some(unacked)
    }

    fn put_back(&mut self, tag: u64, failed: bool) {
        if self.forget(tag).is_some() {
            self.line.put_back(id(tag), failed);
        }
    }

    async fn settle(&mut self, which: Vec<Key>, how: Settle) {
        let own = |key: &Key| key.epoch == self.epoch && self.unacked.contains_key(&key.tag);
        let tags: BTreeSet<u64> = which.into_iter().filter(own).map(|key| key.tag).collect();
        let counters = self.desk.counters.clone();
        match how {
            Settle::Done => {
                count_by(&counters.done, tags.len());
                let ids: Vec<i64> = tags.iter().map(|tag| id(*tag)).collect();
                if !ids.is_empty() {
                    // What cannot be deleted now is deleted later by the writer; it is settled either way.
                    let _ = self.writer.delete(ids).await;
                }
                for tag in tags {
                    self.forget(tag);
                    self.line.settled(id(tag));
                }
            }
            Settle::GiveBack => {
                count_by(&counters.given_back, tags.len());
                tags.into_iter().for_each(|tag| self.put_back(tag, false));
            }
            Settle::RetryIn(wait) => tags.into_iter().for_each(|tag| self.hold(tag, wait, true)),
            Settle::SnoozeFor(wait) => tags.into_iter().for_each(|tag| self.hold(tag, wait, false)),
            Settle::DeadLetter { reason_code, reason } => {
                for tag in tags {
                    let Some((head, body)) = self.unacked.get(&tag) else { continue };
                    counters.dead_lettered(&reason_code);
                    let head = head.died(&self.desk.target.queue, reason_code.clone(), reason.clone());
                    let item = NewItem::new(self.dead.clone(), &head, body.clone());
                    self.replace(tag, Duration::ZERO, item);
                }
            }
        }
    }

    fn hold(&mut self, tag: u64, wait: Duration, raise_attempt: bool) {
        let Some((head, body)) = self.unacked.get(&tag) else { return };
        count(&self.desk.counters.retried);
        let item = NewItem::new(self.line.queue.clone(), &head.again(raise_attempt), body.clone());
        self.replace(tag, wait, item);
    }

    /// Replaces a delivery by its successor after a while, and tries until it works.
    fn replace(&mut self, tag: u64, wait: Duration, item: NewItem) {
        let (writer, release, waits) = (self.writer.clone(), self.release.clone(), self.waits);
        self.held.spawn(async move {
            if !wait.is_zero() {
                tokio::select! {
                    () = sleep(wait.min(LONGEST_HOLD)) => {}
                    () = release.cancelled() => return Released { tag, replaced: false },
                }
            }
            let mut backoff = Backoff::new(waits);
            loop {
                if writer.replace(id(tag), item.clone()).await.is_ok() {
                    return Released { tag, replaced: true };
                }
                tokio::select! {
                    () = sleep(backoff.next()) => {}
                    () = release.cancelled() => return Released { tag, replaced: false },
                }
            }
        });
    }

    fn released(&mut self, released: Result<Released, tokio::task::JoinError>) {
        match released {
            Ok(Released { tag, replaced: true }) => {
                self.forget(tag);
                self.line.settled(id(tag));
            }
            // Stays unsettled: it is given back with the rest.
            Ok(Released { replaced: false, .. }) => {}
            Err(error) => warn!("A held delivery waits for the next start: {error}"),
        }
    }

    /// Gives everything unsettled back, and makes what was handed out stale.
    async fn give_back(&mut self, failed: bool) {
        self.release.cancel();
        while let Some(released) = self.held.join_next().await {
            self.released(released);
        }
        self.epoch += 1;
        self.desk.epoch.store(self.epoch, Ordering::Release);
        count_by(&self.desk.counters.given_back, self.unacked.len());
        let tags: Vec<u64> = self.unacked.keys().copied().collect();
        tags.into_iter().for_each(|tag| self.put_back(tag, failed));
    }
}

/// Row ids are positive, so tag and id are the same number.
fn id(tag: u64) -> i64 {
    i64::try_from(tag).unwrap_or(i64::MAX)
}

async fn changed(news: &mut watch::Receiver<u64>) {
    if news.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
