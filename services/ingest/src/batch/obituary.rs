//! What is written of that which could not be stored.

use super::{Hook, HookBody, Piece, Work};
use domain::AccountId;
use domain::wire::WebhookHead;
use queue::topics::WEBHOOKS;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use store::StoreError;
use store::dead_letter::{NewDeadLetter, Stage};

/// Why something died: class, finer code, words that quote nothing of it.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    pub(crate) class: &'static str,
    pub(crate) code: Option<String>,
    pub(crate) words: String,
}

impl Cause {
    pub(crate) fn new(class: &'static str, words: impl Into<String>) -> Self {
        Self { class, code: None, words: words.into() }
    }

    /// The database would not take it. Its own message may quote the row's values, so only the constraint's name is kept.
    pub(crate) fn refused(error: &StoreError) -> Self {
        let words = match error.constraint() {
            Some(constraint) => format!("the database refuses it by {constraint}"),
            None => "the database refuses it".to_owned(),
        };
        Self { class: "REFUSED", code: error.code(), words }
    }
}

/// One item of a webhook. Its raw webhook is kept beside it, so that a replay can read it again.
pub(crate) fn of_item(
    head: &WebhookHead,
    item: usize,
    raw: Option<&str>,
    account: Option<AccountId>,
    cause: Cause,
) -> NewDeadLetter {
    NewDeadLetter {
        origin_key: format!("webhook:{}:{item}", head.request_id),
        stage: Stage::Ingest,
        queue: WEBHOOKS.name().to_owned(),
        headers: headers(head, None),
        body: raw.unwrap_or_default().as_bytes().to_vec(),
        content_type: Some("application/json"),
        error_class: cause.class.to_owned(),
        error_code: cause.code,
        error_message: Some(cause.words),
        replayable: true,
        source: Some(head.source.to_string()),
        request_id: Some(head.request_id),
        message: None,
        conversation: None,
        account,
    }
}

/// An item that could not be written.
pub(crate) fn of_work(hook: &Hook, work: &Work, cause: Cause) -> NewDeadLetter {
    let raw = work.raw.as_deref().or(match &work.piece {
        Piece::Message(message) => message.body.as_deref(),
        Piece::Receipt(_) => None,
    });
    of_item(&hook.head, work.item, raw, Some(work.account), cause)
}

/// A webhook as a whole. A body in the object store stays there, under the key in `headers`.
pub(crate) fn of_webhook(head: &WebhookHead, body: &HookBody, cause: Cause) -> NewDeadLetter {
    let (bytes, key) = match body {
        HookBody::Bytes(bytes) => (bytes.to_vec(), None),
        HookBody::Stored(key) => (Vec::new(), Some(key.as_str())),
    };
    NewDeadLetter {
        origin_key: format!("webhook:{}", head.request_id),
        headers: headers(head, key),
        body: bytes,
        ..of_item(head, 0, None, None, cause)
    }
}

/// What is left of a dead letter that the database does not take: that something died, where and why, without the words
/// that came from outside.
pub(crate) fn reduced(letter: &NewDeadLetter, error: &StoreError) -> NewDeadLetter {
    let refusal = Cause::refused(error);
    NewDeadLetter {
        origin_key: letter.origin_key.clone(),
        stage: letter.stage,
        queue: letter.queue.clone(),
        headers: json!({ "reduced": refusal.words, "bytes": letter.body.len() }),
        body: Vec::new(),
        content_type: None,
        error_class: letter.error_class.clone(),
        error_code: None,
        error_message: Some(refusal.words),
        replayable: letter.replayable,
        source: None,
        request_id: letter.request_id,
        message: None,
        conversation: None,
        account: None,
    }
}

/// A queue message that is not what its queue carries.
pub(crate) fn of_bytes(stage: Stage, queue: &str, raw: &[u8], headers: Value, cause: Cause) -> NewDeadLetter {
    NewDeadLetter {
        origin_key: format!("raw:{}", hex::encode(Sha256::digest(raw))),
        stage,
        queue: queue.to_owned(),
        headers,
        body: raw.to_vec(),
        content_type: Some("application/octet-stream"),
        error_class: cause.class.to_owned(),
        error_code: cause.code,
        error_message: Some(cause.words),
        replayable: stage == Stage::Ingest,
        source: None,
        request_id: None,
        message: None,
        conversation: None,
        account: None,
    }
}

fn headers(head: &WebhookHead, body_ref: Option<&str>) -> Value {
    let kept: Map<String, Value> = head.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let mut headers = json!({ "received_at": head.received_at, "headers": kept });
    if let (Some(key), Some(map)) = (body_ref, headers.as_object_mut()) {
        map.insert("body_ref".to_owned(), json!(key));
    }
    headers
}

/// A queue message that cannot be decoded.
pub(crate) fn undecodable(error: &domain::wire::Undecodable) -> Cause {
    Cause::new("UNDECODABLE", error.to_string())
}
