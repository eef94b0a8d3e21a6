//! A batch of webhooks on its way into the store: read outside the transaction, written in one, taken apart only when the
//! database refuses it.

mod bury;
mod known;
mod obituary;
mod read;
mod resolve;
mod transact;
#[cfg(test)]
pub(crate) mod trap;
mod write;

pub(crate) use bury::{Bytes as BytesOfDead, insert as bury_all};
pub(crate) use known::Known;
pub(crate) use obituary::{Cause, of_bytes, of_webhook, undecodable};
pub(crate) use read::{RawBody, Reader};
pub(crate) use write::Writer;

use bytes::Bytes;
use domain::inbound::InboundMessage;
use domain::wire::{Beat, WebhookHead};
use domain::{Account, AccountId, Identity, Receipt, Scope};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use store::contact::IdentityKey;
use store::dead_letter::NewDeadLetter;

/// A webhook, read.
#[derive(Debug)]
pub(crate) struct Hook {
    pub(crate) head: WebhookHead,
    pub(crate) body: HookBody,
    /// How many items it holds, good and bad.
    pub(crate) items: usize,
    /// What of it can never be stored.
    pub(crate) dead: Vec<NewDeadLetter>,
}

impl Hook {
    /// Holds a webhook's place.
    fn nothing(head: &WebhookHead) -> Self {
        Self { head: head.clone(), body: HookBody::Bytes(Bytes::new()), items: 0, dead: Vec::new() }
    }
}

/// A webhook's bytes, or the key they have in the object store.
#[derive(Clone, Debug)]
pub(crate) enum HookBody {
    Bytes(Bytes),
    Stored(String),
}

/// One item to be written.
#[derive(Debug)]
pub(crate) struct Work {
    /// Which webhook of the batch it came in.
    pub(crate) hook: usize,
    /// Its place there.
    pub(crate) item: usize,
    pub(crate) account: AccountId,
    pub(crate) config: Arc<Account>,
    /// Its own bytes as they arrived.
    pub(crate) raw: Option<String>,
    pub(crate) piece: Piece,
}

/// What an item says, as far as it becomes a row.
#[derive(Debug)]
pub(crate) enum Piece {
    Message(Box<InboundMessage>),
    Receipt(Box<Receipt>),
}

/// The id of the trace a webhook belongs to, for log lines.
fn trace_id(head: &WebhookHead) -> Option<&str> {
    head.traceparent.as_deref().and_then(runtime::traceparent::trace_id)
}

/// What is written together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) hooks: Vec<Hook>,
    /// In the order of arrival; sorted by webhook.
    pub(crate) work: Vec<Work>,
    pub(crate) beats: Vec<Beat>,
    /// What could not even be read as webhooks.
    pub(crate) dead: Vec<NewDeadLetter>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.hooks.is_empty() && self.beats.is_empty() && self.dead.is_empty()
    }

    /// Shares the webhooks out to `writers`, all of one contact's to the same: two writers that touch the same
    /// conversation would only wait for each other. A webhook stays whole; one of several contacts goes by its first.
    pub(crate) fn shared_out(self, writers: usize) -> Vec<Batch> {
        let mut batches: Vec<Batch> = (0..writers.max(1)).map(|_| Batch::default()).collect();
        let count = batches.len();
        let mut shard_of: Vec<Option<usize>> = vec![None; self.hooks.len()];
        for work in &self.work {
            if let Some(shard @ None) = shard_of.get_mut(work.hook) {
                *shard = Some(work.shard(count));
            }
        }
        let mut place: Vec<(usize, usize)> = Vec::with_capacity(self.hooks.len());
        for (hook, shard) in self.hooks.into_iter().zip(shard_of) {
            let shard = shard.unwrap_or(0);
            if let Some(batch) = batches.get_mut(shard) {
                place.push((shard, batch.hooks.len()));
                batch.hooks.push(hook);
            }
        }
        for work in self.work {
            if let Some((shard, hook)) = place.get(work.hook).copied()
                && let Some(batch) = batches.get_mut(shard)
            {
                batch.work.push(Work { hook, ..work });
            }
        }
        if let Some(first) = batches.first_mut() {
            (first.beats, first.dead) = (self.beats, self.dead);
        }
        batches.retain(|batch| !batch.is_empty());
        batches
    }
}

impl Work {
    fn shard(&self, writers: usize) -> usize {
        let mut hasher = DefaultHasher::new();
        match &self.piece {
            Piece::Message(message) => message.identities.first().map(|identity| &identity.value).hash(&mut hasher),
            // All receipts of a message to one writer.
            Piece::Receipt(receipt) => receipt.provider_message_id.hash(&mut hasher),
        }
        usize::try_from(hasher.finish() % u64::try_from(writers.max(1)).unwrap_or(1)).unwrap_or(0)
    }
}

/// The key of an address that was seen on `account`. A key must read back as it was written, and no database keeps NUL.
pub(crate) fn identity_key(identity: &Identity, account: &Account) -> IdentityKey {
    let scope = match identity.scope {
        Scope::Global => "",
        Scope::Portfolio => account.portfolio_scope(),
        Scope::Account => &account.external_id,
    };
    IdentityKey { kind: identity.kind, scope: scope.to_owned(), value: without_nul(&identity.value) }
}

pub(crate) fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{Channel, OnUnknown, Secret, Timestamp};
    use std::time::Duration;
    use uuid::Uuid;

    fn work(hook: usize, item: usize, of: &str) -> Work {
        let receipt = Receipt {
            provider_message_id: of.into(),
            status: None,
            provider_status: "sent".into(),
            occurred_at: None,
            correlation: None,
            error_code: None,
            error_message: None,
            pricing: None,
        };
        let config = Account {
            name: "sales".parse().unwrap(),
            channel: Channel::WhatsApp,
            source: "meta".parse().unwrap(),
            external_id: "106540352242922".into(),
            parent_external_id: None,
            portfolio_id: None,
            display_address: None,
            api_base: String::new(),
            access_token: Secret::new(""),
            rate_per_second: 80.0,
            pair_interval: Duration::ZERO,
            pair_burst: 1,
            window: None,
            on_unknown: OnUnknown::Hold,
        };
        let piece = Piece::Receipt(Box::new(receipt));
        Work { hook, item, account: AccountId::new(1), config: Arc::new(config), raw: None, piece }
    }

    fn hook() -> Hook {
        let head = WebhookHead {
            source: "meta".parse().unwrap(),
            received_at: Timestamp::EPOCH,
            request_id: Uuid::nil(),
            traceparent: None,
            headers: Vec::new(),
            replay: false,
        };
        Hook { head, body: HookBody::Bytes(Bytes::new()), items: 1, dead: Vec::new() }
    }

    #[test]
    fn a_webhook_stays_whole_and_all_of_one_message_go_to_one_writer() {
        let ids: Vec<String> = (0..40).map(|n| format!("wamid.{}", n % 10)).collect();
        let batch = Batch {
            hooks: (0..40).map(|_| hook()).collect(),
            work: ids.iter().enumerate().flat_map(|(n, id)| [work(n, 0, id), work(n, 1, "wamid.other")]).collect(),
            ..Batch::default()
        };
        let shares = batch.shared_out(2);
        assert_eq!(shares.iter().map(|share| share.hooks.len()).sum::<usize>(), 40);
        let mut writer_of = std::collections::HashMap::new();
        for (writer, share) in shares.iter().enumerate() {
            for pair in share.work.chunks(2) {
                assert_eq!((pair[0].hook, pair[0].item, pair[1].item), (pair[1].hook, 0, 1));
                let Piece::Receipt(first) = &pair[0].piece else { unreachable!() };
                assert_eq!(*writer_of.entry(first.provider_message_id.clone()).or_insert(writer), writer);
            }
        }
        assert_eq!(writer_of.len(), 10);
    }
}
