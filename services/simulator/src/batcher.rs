//! Statuses that wait a moment for others, to travel in one body.

use crate::postman::{ItemRef, Pending};
use crate::webhook::{Change, body};
use crate::{Shared, locked};
use serde_json::Value;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The most statuses in one body.
const FULL: usize = 8;
/// How long the first one waits for company.
const WAIT: Duration = Duration::from_millis(150);

#[derive(Debug)]
struct Waiting {
    account: usize,
    status: Value,
    item: ItemRef,
    _pending: Pending,
}

/// Gathers statuses of all accounts.
#[derive(Debug, Default)]
pub(crate) struct Batcher(Mutex<Vec<Waiting>>);

impl Batcher {
    pub(crate) fn add(&self, shared: &Arc<Shared>, account: usize, status: Value, item: ItemRef) {
        let count = {
            let mut waiting = locked(&self.0);
            waiting.push(Waiting { account, status, item, _pending: Pending::begin(&shared.postman) });
            waiting.len()
        };
        if count >= FULL {
            self.flush(shared);
        } else if count == 1 {
            let shared = Arc::clone(shared);
            shared.runtime.clone().spawn(async move {
                tokio::time::sleep(WAIT).await;
                shared.batcher.flush(&shared);
            });
        }
    }

    /// Posts what waits: one entry per account, one change per two statuses, so that receivers meet every nesting.
    fn flush(&self, shared: &Arc<Shared>) {
        let waiting = std::mem::take(&mut *locked(&self.0));
        if waiting.is_empty() {
            return;
        }
        let mut entries: Vec<(usize, Vec<Change>)> = Vec::new();
        let mut items = Vec::with_capacity(waiting.len());
        {
            let accounts = locked(&shared.accounts);
            for one in &waiting {
                let Some(account) = accounts.get(one.account) else { continue };
                items.push(one.item.clone());
                let changes = match entries.iter_mut().find(|(of, _)| *of == one.account) {
                    Some((_, changes)) => changes,
                    None => {
                        entries.push((one.account, Vec::new()));
                        match entries.last_mut() {
                            Some((_, changes)) => changes,
                            None => continue,
                        }
                    }
                };
                match changes.last_mut() {
                    Some(change) if change.statuses.len() < 2 => change.statuses.push(one.status.clone()),
                    _ => changes.push(Change { statuses: vec![one.status.clone()], ..Change::of(account) }),
                }
            }
        }
        let entries: Vec<Vec<Change>> = entries.into_iter().map(|(_, changes)| changes).collect();
        shared.postman.post(shared, body(&entries), items);
    }
}
