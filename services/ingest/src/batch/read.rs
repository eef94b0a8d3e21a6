//! Reading webhooks: pure, and nothing in a body can end the process. A frame that cannot be read, or whose parser
//! panics, becomes one dead letter; its neighbours do not notice.

use super::obituary::{Cause, of_item, of_webhook};
use super::{Hook, HookBody, Piece, Work, trace_id};
use bytes::Bytes;
use domain::wire::WebhookHead;
use domain::{Account, AccountId, AccountKey, Inbound, Item, Source, SourceName};
use providers::{Arrived, BadItem, Malformed, SourceKind};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use store::account::Directory;
use store::dead_letter::NewDeadLetter;
use tracing::warn;

/// Knows who signs and whose accounts there are.
#[derive(Debug)]
pub(crate) struct Reader {
    kinds: HashMap<SourceName, &'static dyn SourceKind>,
    accounts: Arc<Directory>,
}

/// A webhook's bytes and where they are kept.
#[derive(Debug)]
pub(crate) enum RawBody {
    /// In the frame.
    Inline(Bytes),
    /// Read from the object store, where they stay.
    Fetched { key: String, bytes: Bytes },
    /// The object store does not have them, or cannot give them back, for this reason.
    Lost { key: String, class: &'static str, reason: String },
}

impl RawBody {
    pub(crate) fn len(&self) -> usize {
        match self {
            RawBody::Inline(bytes) | RawBody::Fetched { bytes, .. } => bytes.len(),
            RawBody::Lost { .. } => 0,
        }
    }
}

impl Reader {
    pub(crate) fn new(sources: &[Source], accounts: Arc<Directory>) -> Self {
        let kind = |source: &Source| providers::source_kind(&source.kind).map(|kind| (source.name.clone(), kind));
        Self { kinds: sources.iter().filter_map(kind).collect(), accounts }
    }

    /// Reads webhooks into what is to be written.
    pub(crate) fn read(&self, frames: Vec<(WebhookHead, RawBody)>) -> (Vec<Hook>, Vec<Work>) {
        let (mut hooks, mut work) = (Vec::with_capacity(frames.len()), Vec::with_capacity(frames.len()));
        for (head, raw) in frames {
            let at = hooks.len();
            hooks.push(self.read_one(at, head, raw, &mut work));
        }
        (hooks, work)
    }

    fn read_one(&self, at: usize, head: WebhookHead, raw: RawBody, work: &mut Vec<Work>) -> Hook {
        let (body, bytes) = match raw {
            RawBody::Inline(bytes) => (HookBody::Bytes(bytes.clone()), bytes),
            RawBody::Fetched { key, bytes } => (HookBody::Stored(key), bytes),
            RawBody::Lost { key, class, reason } => {
                let words = format!("its body cannot be read from the object store: {reason}");
                return whole(head, HookBody::Stored(key), Cause::new(class, words));
            }
        };
        let Some(kind) = self.kinds.get(&head.source) else {
            let words = format!("no source in the configuration is called `{}`", head.source);
            return whole(head, body, Cause::new("UNKNOWN_SOURCE", words));
        };
        let arrived = Arrived { headers: &head.headers, body: &bytes, received_at: head.received_at };
        let items = match catch_unwind(AssertUnwindSafe(|| kind.parse(&arrived))) {
            Ok(Ok(items)) => items,
            Ok(Err(malformed)) => return whole(head, body, unreadable(&malformed)),
            Err(_) => {
                let trace = trace_id(&head);
                warn!(request.id = %head.request_id, trace.id = trace, "The parser of `{}` panicked; the webhook is set aside", kind.kind());
                return whole(head, body, Cause::new("PANIC", "the parser failed on it"));
            }
        };
        let mut hook = Hook { head, body, items: items.len(), dead: Vec::new() };
        for (n, item) in items.into_iter().enumerate() {
            match self.place(at, n, item, &hook.head) {
                Ok(Some(placed)) => work.push(placed),
                Ok(None) => {}
                Err(dead) => hook.dead.push(*dead),
            }
        }
        hook
    }

    /// What an item becomes: work, nothing (an event of the account's, which its raw webhook keeps), or a dead letter.
    fn place(
        &self,
        hook: usize,
        item: usize,
        read: Result<Item, BadItem>,
        head: &WebhookHead,
    ) -> Result<Option<Work>, Box<NewDeadLetter>> {
        let die = |raw: Option<&str>, account, cause| Err(Box::new(of_item(head, item, raw, account, cause)));
        let read = match read {
            Ok(read) => read,
            Err(bad) => {
                let account = bad.account.as_ref().and_then(|key| self.account(key, head)).map(|(id, _)| id);
                let cause = Cause { class: "BAD_ITEM", code: Some(bad.code.to_owned()), words: bad.reason };
                return die(Some(&bad.raw), account, cause);
            }
        };
        let piece = match read.kind {
            Inbound::Message(message) => Piece::Message(message),
            Inbound::Receipt(receipt) => Piece::Receipt(receipt),
            _ => return Ok(None),
        };
        let Some(key) = &read.account else {
            return die(read.raw.as_deref(), None, Cause::new("UNKNOWN_ACCOUNT", "it names no account"));
        };
        let Some((account, config)) = self.account(key, head) else {
            let words = format!("{} {} is no account of source `{}`", key.channel, key.external_id, head.source);
            return die(read.raw.as_deref(), None, Cause::new("UNKNOWN_ACCOUNT", words));
        };
        Ok(Some(Work { hook, item, account, config, raw: read.raw, piece }))
    }

    /// The account a payload names, if it is one of the source that signed: one app's secret never writes into another's
    /// account.
    fn account(&self, key: &AccountKey, head: &WebhookHead) -> Option<(AccountId, Arc<Account>)> {
        let id = self.accounts.id_of(key)?;
        let account = self.accounts.account(id).filter(|account| account.source == head.source)?;
        Some((id, account.clone()))
    }
}

/// A webhook that cannot be read at all.
fn whole(head: WebhookHead, body: HookBody, cause: Cause) -> Hook {
    let dead = vec![of_webhook(&head, &body, cause)];
    Hook { head, body, items: 1, dead }
}

fn unreadable(malformed: &Malformed) -> Cause {
    Cause { class: "MALFORMED", code: Some(malformed.code().to_owned()), words: malformed.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::Timestamp;
    use providers::{Forged, Handshake, Webhook};
    use uuid::Uuid;

    /// A parser with a bug that one body in three finds.
    #[derive(Debug)]
    struct Buggy;

    impl SourceKind for Buggy {
        fn kind(&self) -> &'static str {
            "buggy"
        }
        fn kept_headers(&self) -> &'static [&'static str] {
            &[]
        }
        fn handshake(&self, _query: &str, _source: &Source) -> Handshake {
            Handshake::NotConfigured
        }
        fn verify(&self, _hook: &Webhook<'_>, _source: &Source) -> Result<(), Forged> {
            Ok(())
        }
        fn parse(&self, hook: &Arrived<'_>) -> Result<Vec<Result<Item, BadItem>>, Malformed> {
            assert_ne!(hook.body, b"trap");
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_parser_that_panics_loses_its_webhook_to_the_dead_letters_and_no_other() {
        let source: SourceName = "meta".parse().unwrap();
        let reader = Reader {
            kinds: HashMap::from([(source.clone(), &Buggy as &'static dyn SourceKind)]),
            accounts: Arc::default(),
        };
        let frame = |body: &'static [u8]| {
            let head = WebhookHead {
                source: source.clone(),
                received_at: Timestamp::EPOCH,
                request_id: Uuid::now_v7(),
                traceparent: None,
                headers: Vec::new(),
                replay: false,
            };
            (head, RawBody::Inline(Bytes::from_static(body)))
        };
        let (hooks, work) = reader.read(vec![frame(b"one"), frame(b"trap"), frame(b"two")]);
        assert!(work.is_empty());
        let dead: Vec<Vec<&str>> =
            hooks.iter().map(|hook| hook.dead.iter().map(|dead| dead.error_class.as_str()).collect()).collect();
        assert_eq!(dead, [vec![], vec!["PANIC"], vec![]]);
        assert_eq!(hooks[1].dead[0].body, b"trap");
    }
}
