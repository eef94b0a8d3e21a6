//! Live changes: one reader of the change feed per process, any number of listeners, none of them missing or doubling a
//! change. A listener that joins late or falls behind reads the feed itself until it has caught up.

use domain::Clock;
use runtime::metrics::Metrics;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use store::feed_read::{self, Cursor, FeedRow};
use store::{Store, StoreError};
use tokio::sync::{OnceCell, broadcast};
use tokio_util::sync::CancellationToken;

/// Without a wake-up the feed is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Rows that wait for an older transaction are looked for after this, doubling up to [`HELD_BACK_MOST`].
const HELD_BACK_FIRST: Duration = Duration::from_millis(20);
const HELD_BACK_MOST: Duration = Duration::from_secs(1);
/// After an error.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// Rows read at once.
const PAGE: i64 = 500;
/// Steps a listener may fall behind before it reads the feed itself.
const STEPS: usize = 256;

/// One advance of the feed.
#[derive(Clone, Debug)]
enum Step {
    /// These rows, and with them everything up to `upto`.
    Rows { rows: Arc<[FeedRow]>, upto: Cursor },
    /// The feed is another one now (a restored database): begin anew at `head`.
    Reset { head: Cursor },
}

/// The process's reader.
#[derive(Debug)]
pub(crate) struct Hub {
    store: Store,
    stop: CancellationToken,
    watch: Watch,
    steps: OnceCell<broadcast::Sender<Step>>,
}

/// How late changes are when listeners hear of them, for the metrics.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
}

impl Watch {
    fn saw(&self, rows: &[FeedRow]) {
        let now = self.clock.now();
        for row in rows {
            self.metrics.feed_lag(now.since(row.created_at));
        }
    }
}

impl Hub {
    pub(crate) fn new(store: Store, watch: Watch, stop: CancellationToken) -> Self {
        Self { store, stop, watch, steps: OnceCell::new() }
    }

    /// The reader starts with the first listener, and its place is known before the listener reads anything: what the
    /// reader has passed by then, the listener finds in the feed.
    async fn steps(&self) -> Result<&broadcast::Sender<Step>, StoreError> {
        let start = || async {
            let changes = self.store.changes();
            let mut tx = self.store.read().await?;
            let head = feed_read::head(&mut tx).await?;
            let steps = broadcast::Sender::new(STEPS);
            let watch = self.watch.clone();
            tokio::spawn(follow(self.store.clone(), steps.clone(), head, changes, watch, self.stop.clone()));
            Ok(steps)
        };
        self.steps.get_or_try_init(start).await
    }

    /// Listens from `since`, or from now. `Ok((listener, true))`: `since` cannot be gone on from, the listener begins at
    /// the present and whoever listens should read everything again.
    pub(crate) async fn listen(&self, since: Option<Cursor>) -> Result<(Listener, bool), StoreError> {
        let steps = self.steps().await?.subscribe();
        let mut tx = self.store.read().await?;
        let (at, reset) = match since {
            Some(since) if feed_read::can_resume(&mut tx, since).await? => (since, false),
            Some(_) => (feed_read::head(&mut tx).await?, true),
            None => (feed_read::head(&mut tx).await?, false),
        };
        Ok((Listener { store: self.store.clone(), steps, at, behind: true, stop: self.stop.clone() }, reset))
    }
}

/// Follows the feed until `stop`.
async fn follow(
    store: Store,
    steps: broadcast::Sender<Step>,
    mut at: Cursor,
    mut changes: tokio::sync::watch::Receiver<u64>,
    watch: Watch,
    stop: CancellationToken,
) {
    let mut held_back = HELD_BACK_FIRST;
    loop {
        let wait = match read(&store, at).await {
            Ok(Read::Page(page)) => {
                let moved = page.upto > at;
                at = page.upto;
                if moved {
                    watch.saw(&page.rows);
                    // Nobody listening is no error.
                    let _ = steps.send(Step::Rows { rows: page.rows.into(), upto: at });
                }
                if page.more {
                    continue;
                }
                match page.held_back {
                    true => {
                        let wait = held_back;
                        held_back = (held_back * 2).min(HELD_BACK_MOST);
                        wait
                    }
                    false => {
                        held_back = HELD_BACK_FIRST;
                        LOOK_AGAIN
                    }
                }
            }
            Ok(Read::Gone(head)) => {
                tracing::warn!("the change feed is another one now; listeners begin anew");
                at = head;
                let _ = steps.send(Step::Reset { head });
                LOOK_AGAIN
            }
            Err(error) => {
                tracing::debug!(%error, "the change feed cannot be read just now");
                AFTER_ERROR
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

enum Read {
    Page(feed_read::FeedPage),
    Gone(Cursor),
}

async fn read(store: &Store, at: Cursor) -> Result<Read, StoreError> {
    let mut tx = store.read().await?;
    if !feed_read::can_resume(&mut tx, at).await? {
        return Ok(Read::Gone(feed_read::head(&mut tx).await?));
    }
    Ok(Read::Page(feed_read::after(&mut tx, at, PAGE).await?))
}

/// What a listener hears.
#[derive(Debug, PartialEq)]
pub(crate) enum News {
    /// Changes, in order, none of them heard before.
    Changes(VecDeque<FeedRow>),
    /// Read everything again; changes go on from here.
    Reset,
    /// The process is stopping.
    Over,
}

/// One listener.
#[derive(Debug)]
pub(crate) struct Listener {
    store: Store,
    steps: broadcast::Receiver<Step>,
    at: Cursor,
    behind: bool,
    stop: CancellationToken,
}

impl Listener {
    /// Everything up to here was heard.
    pub(crate) fn at(&self) -> Cursor {
        self.at
    }

    /// Waits for news. May be dropped and called again: what was not returned was not heard.
    /// # Errors
    /// When the feed has to be read and the database cannot be reached; calling it again goes on where it stopped.
    pub(crate) async fn next(&mut self) -> Result<News, StoreError> {
        loop {
            if self.behind {
                let page = match read(&self.store, self.at).await? {
                    Read::Page(page) => page,
                    Read::Gone(head) => {
                        self.at = head;
                        return Ok(News::Reset);
                    }
                };
                (self.at, self.behind) = (page.upto, page.more);
                if !page.rows.is_empty() {
                    return Ok(News::Changes(page.rows.into()));
                }
                continue;
            }
            let step = tokio::select! {
                () = self.stop.cancelled() => return Ok(News::Over),
                step = self.steps.recv() => step,
            };
            match step {
                Ok(Step::Rows { rows, upto }) => {
                    let news: VecDeque<_> = rows.iter().filter(|row| row.cursor() > self.at).cloned().collect();
                    self.at = self.at.max(upto);
                    if !news.is_empty() {
                        return Ok(News::Changes(news));
                    }
                }
                Ok(Step::Reset { head }) => {
                    self.at = head;
                    return Ok(News::Reset);
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                Err(broadcast::error::RecvError::Closed) => return Ok(News::Over),
            }
        }
    }
}
