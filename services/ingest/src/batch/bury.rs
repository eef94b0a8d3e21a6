//! Keeping what died. A dead letter may be the last that is left of what somebody said, so it is never dropped: while the
//! database is away it is held like everything else. One that the database refuses is kept without the words it may be
//! refused for, if those are in the raw webhook that is kept beside it; else it goes back to the broker's dead letters with
//! its bytes, from where it is tried again.

use super::obituary::reduced;
use super::{Hook, HookBody};
use crate::Context;
use crate::hold::{Away, NotWritten, patiently};
use domain::wire::{Body, Frame, WebhookBatch, WebhookFrame, Wire};
use queue::topics::{DEAD, WEBHOOKS};
use queue::{Dead, Envelope};
use runtime::reconnect::Reconnect;
use store::StoreError;
use store::dead_letter::{self, NewDeadLetter};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// Where the bytes of a dead letter are beside itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// In the row of the raw webhook: the letter may be reduced to what it is about.
    InTheWebhook,
    Nowhere,
}

/// Keeps dead letters as rows: together, or, if the database refuses that, each alone, and reduced where that is allowed.
/// Returns those that are refused in every form.
/// # Errors
/// [`Away`]: any of them may not be written; all of them may be written again.
pub(crate) async fn insert<'a>(
    context: &Context,
    stop: &CancellationToken,
    letters: &'a [NewDeadLetter],
    bytes: Bytes,
) -> Result<Vec<(&'a NewDeadLetter, StoreError)>, Away> {
    let write = async |letters: &[NewDeadLetter]| match patiently(context, stop, || put(context, letters)).await {
        Ok(()) => Ok(None),
        Err(NotWritten::Away) => Err(Away::Database),
        Err(NotWritten::Refused(error)) => Ok(Some(error)),
    };
    if letters.is_empty() || write(letters).await?.is_none() {
        return Ok(Vec::new());
    }
    let mut refused = Vec::new();
    for letter in letters {
        let Some(mut error) = write(std::slice::from_ref(letter)).await? else { continue };
        if bytes == Bytes::InTheWebhook {
            let reason = &letter.error_class;
            warn!(%error, reason, "A dead letter is refused; it is kept without what came from outside");
            match write(&[reduced(letter, &error)]).await? {
                None => continue,
                Some(again) => error = again,
            }
        }
        refused.push((letter, error));
    }
    Ok(refused)
}

async fn put(context: &Context, letters: &[NewDeadLetter]) -> Result<(), StoreError> {
    let mut tx = context.deps.store.begin().await?;
    dead_letter::insert(&mut tx, letters, context.deps.clock.now()).await?;
    tx.commit().await
}

/// Keeps the dead letters of items, whose webhooks are kept.
pub(super) async fn items(context: &Context, stop: &CancellationToken, letters: &[NewDeadLetter]) -> Result<(), Away> {
    for (letter, error) in insert(context, stop, letters, Bytes::InTheWebhook).await? {
        to_broker(context, stop, letter, letter.body.clone().into(), &error).await?;
    }
    Ok(())
}

/// Keeps dead letters of queue messages that hold no webhooks.
pub(super) async fn messages(
    context: &Context,
    stop: &CancellationToken,
    letters: &[NewDeadLetter],
) -> Result<(), Away> {
    for (letter, error) in insert(context, stop, letters, Bytes::Nowhere).await? {
        to_broker(context, stop, letter, letter.body.clone().into(), &error).await?;
    }
    Ok(())
}

/// Keeps the dead letter of a webhook that has no row of its own.
pub(super) async fn webhook(
    context: &Context,
    stop: &CancellationToken,
    hook: &Hook,
    letter: NewDeadLetter,
) -> Result<(), Away> {
    let letters = [letter];
    for (letter, error) in insert(context, stop, &letters, Bytes::Nowhere).await? {
        let body = match &hook.body {
            HookBody::Bytes(bytes) => Body::Inline(bytes.clone()),
            HookBody::Stored(key) => Body::Stored(key.clone()),
        };
        let frame = Frame::Webhook(WebhookFrame { head: hook.head.clone(), body });
        to_broker(context, stop, letter, WebhookBatch(vec![frame]).to_bytes(), &error).await?;
    }
    Ok(())
}

/// Publishes to the broker's dead letters, until it is there.
async fn to_broker(
    context: &Context,
    stop: &CancellationToken,
    letter: &NewDeadLetter,
    body: bytes::Bytes,
    refusal: &StoreError,
) -> Result<(), Away> {
    error!(error = %refusal, reason = letter.error_class, "A dead letter cannot be written; it goes to the broker's");
    let now = context.deps.clock.now();
    let dead = Dead {
        origin: WEBHOOKS.name().to_owned(),
        reason_code: letter.error_class.clone(),
        reason: letter.error_message.clone().unwrap_or_default(),
        died_at: now,
        by_broker: None,
        envelope: Envelope::holding(1),
        published_at: now,
        body,
    };
    let tuning = &context.deps.tuning;
    let mut waits = Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
    while let Err(error) = context.deps.queue.publisher().publish(&DEAD, None, &dead).await {
        warn!(%error, "A dead letter waits for the broker");
        tokio::select! {
            // Everything of the batch is given back; this is found again.
            () = stop.cancelled() => return Err(Away::Database),
            () = tokio::time::sleep(waits.next_wait()) => {}
        }
    }
    Ok(())
}
