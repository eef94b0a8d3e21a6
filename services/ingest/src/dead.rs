//! What could not be processed, wherever it died: kept as rows with bytes and reason, for people to see, replay and discard
//! (the commands for that are still to come). A queue message that died with many webhooks in it is taken apart, so that only
//! the guilty one stays dead.

use crate::Context;
use crate::batch::{BytesOfDead, Cause, HookBody, bury_all, of_bytes, of_webhook, undecodable};
use crate::hold::{self, Away, NotWritten, patiently};
use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, WebhookHead, Wire};
use queue::topics::{DEAD, OUTBOUND, RESULTS, WEBHOOKS};
use queue::{Consumer, Dead, Delivery, Settle};
use serde_json::{Value, json};
use std::time::Duration;
use store::dead_letter::{self, NewDeadLetter, Stage};
use store::webhook_event::{self, NewWebhook, Outcome, RawBody};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Dead letters are rare, or many at once; either way no hurry.
const PREFETCH: u16 = 32;
/// When frames could not be put back: the broker is away, and so are the dead letters.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// What becomes of one dead queue message.
enum Verdict {
    /// Nothing of it is needed: the row it refers to is the truth.
    Drop,
    /// Rows.
    Keep(Vec<NewDeadLetter>, Option<(WebhookHead, HookBody)>),
    /// Each of these again on its own.
    Singly(Vec<Frame>),
}

pub(crate) async fn run(context: Context, stop: CancellationToken) {
    let mut consumer = context.deps.queue.consume(&DEAD, None, PREFETCH).await;
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = consumer.next() => next,
        };
        let Some(delivery) = next else {
            stop.cancelled().await;
            break;
        };
        if let Some(held) = handle(&context, &stop, delivery).await {
            if stop.is_cancelled() {
                return consumer.close(vec![held]).await;
            }
            if !pause(&context, &stop, &mut consumer, held).await {
                break;
            }
        }
    }
    consumer.close(Vec::new()).await;
}

/// Gives back what cannot be written and waits for the database. `false`: stopped before it came back.
async fn pause(
    context: &Context,
    stop: &CancellationToken,
    consumer: &mut Consumer<Dead>,
    held: Delivery<Dead>,
) -> bool {
    consumer.pause(vec![held]).await;
    let back = hold::until_back(context, stop).await;
    if back {
        consumer.resume().await;
    }
    back
}

/// Deals with one dead letter. Returns it when the database was away for too long.
async fn handle(context: &Context, stop: &CancellationToken, delivery: Delivery<Dead>) -> Option<Delivery<Dead>> {
    match judge(&delivery) {
        Verdict::Drop => delivery.settle(Settle::Done).await,
        Verdict::Singly(frames) => {
            info!(frames = frames.len(), "A dead batch of webhooks is taken apart; each goes through again on its own");
            for frame in frames {
                let alone = WebhookBatch(vec![frame]);
                if let Err(error) = context.deps.queue.publisher().publish(&WEBHOOKS, None, &alone).await {
                    warn!(%error, "A webhook of a dead batch cannot be put back; all of it is tried again");
                    delivery.settle(Settle::RetryIn(AGAIN_AFTER)).await;
                    return None;
                }
            }
            delivery.settle(Settle::Done).await;
        }
        Verdict::Keep(letters, webhook) => {
            let kept = patiently(context, stop, || async {
                let now = context.deps.clock.now();
                let mut tx = context.deps.store.begin().await?;
                if let Some((head, body)) = &webhook {
                    keep_webhook(&mut tx, head, body).await?;
                }
                dead_letter::insert(&mut tx, &letters, now).await?;
                tx.commit().await
            });
            let refused = match kept.await {
                Ok(()) => false,
                Err(NotWritten::Away) => return Some(delivery),
                Err(NotWritten::Refused(error)) => {
                    warn!(%error, "A dead letter is refused; trying what of it can be written");
                    match piece_by_piece(context, stop, &letters, webhook.as_ref()).await {
                        Ok(written) => !written,
                        Err(_) => return Some(delivery),
                    }
                }
            };
            if refused {
                error!("A dead letter cannot be written; it stays in the queue");
                delivery.settle(Settle::RetryIn(queue::LONGEST_HOLD)).await;
                return None;
            }
            for letter in &letters {
                context.deps.metrics.dead_letter(&letter.queue, &letter.error_class);
                warn!(
                    queue = letter.queue,
                    reason = letter.error_class,
                    "A message of {} died and is kept as a dead letter",
                    letter.queue
                );
            }
            delivery.settle(Settle::Done).await;
        }
    }
    None
}

/// Keeps the webhook, then what died of it. `false`: the database takes its bytes in no form.
async fn piece_by_piece(
    context: &Context,
    stop: &CancellationToken,
    letters: &[NewDeadLetter],
    webhook: Option<&(WebhookHead, HookBody)>,
) -> Result<bool, Away> {
    let mut bytes = BytesOfDead::Nowhere;
    if let Some((head, body)) = webhook {
        let kept = patiently(context, stop, || async {
            let mut tx = context.deps.store.begin().await?;
            keep_webhook(&mut tx, head, body).await?;
            tx.commit().await
        });
        match kept.await {
            Ok(()) => bytes = BytesOfDead::InTheWebhook,
            Err(NotWritten::Away) => return Err(Away::Database),
            Err(NotWritten::Refused(_)) => {}
        }
    }
    Ok(bury_all(context, stop, letters, bytes).await?.is_empty())
}

async fn keep_webhook(tx: &mut store::Tx, head: &WebhookHead, body: &HookBody) -> store::Result<()> {
    let webhook = NewWebhook {
        request_id: head.request_id,
        source: head.source.as_str(),
        received_at: head.received_at,
        headers: &head.headers,
        body: match body {
            HookBody::Bytes(bytes) => RawBody::Bytes(bytes),
            HookBody::Stored(key) => RawBody::Stored(key),
        },
        items: 1,
        outcome: Outcome::Dead,
    };
    webhook_event::upsert(tx, &[webhook]).await.map(drop)
}

fn judge(delivery: &Delivery<Dead>) -> Verdict {
    let dead = match &delivery.item {
        Ok(dead) => dead,
        Err(error) => {
            let headers = json!({ "message_id": delivery.envelope.message_id });
            let letter = of_bytes(Stage::Ingest, DEAD.name(), &delivery.raw, headers, undecodable(error));
            return Verdict::Keep(vec![letter], None);
        }
    };
    let is_of =
        |topic: &str| dead.origin == topic || dead.origin.strip_prefix(topic).is_some_and(|rest| rest.starts_with('.'));
    if is_of(OUTBOUND.name()) {
        return Verdict::Drop;
    }
    let cause = || Cause { class: "DIED", code: Some(dead.reason_code.clone()), words: dead.reason.clone() };
    if is_of(RESULTS.name()) {
        let letter = of_bytes(Stage::Result, &dead.origin, &dead.body, headers(dead), cause());
        return Verdict::Keep(vec![letter], None);
    }
    if !is_of(WEBHOOKS.name()) {
        let letter = of_bytes(Stage::Ingest, &dead.origin, &dead.body, headers(dead), cause());
        return Verdict::Keep(vec![letter], None);
    }
    let mut frames = match WebhookBatch::from_bytes(&dead.body) {
        Ok(WebhookBatch(frames)) => frames,
        Err(error) => {
            let letter = of_bytes(Stage::Ingest, &dead.origin, &dead.body, headers(dead), undecodable(&error));
            return Verdict::Keep(vec![letter], None);
        }
    };
    if frames.len() > 1 {
        return Verdict::Singly(frames);
    }
    match frames.pop() {
        Some(Frame::Webhook(WebhookFrame { head, body })) => {
            let body = match body {
                Body::Inline(bytes) => HookBody::Bytes(bytes),
                Body::Stored(key) => HookBody::Stored(key),
            };
            Verdict::Keep(vec![of_webhook(&head, &body, cause())], Some((head, body)))
        }
        // A sign of life that could not be written is worth nothing later.
        Some(Frame::Beat(_)) | None => Verdict::Drop,
    }
}

fn headers(dead: &Dead) -> Value {
    json!({
        "message_id": dead.envelope.message_id,
        "attempt": dead.envelope.attempt,
        "published_at": dead.published_at,
        "died_at": dead.died_at,
        "by_broker": dead.by_broker,
    })
}
