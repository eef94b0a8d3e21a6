//! What a person decides about a message of ours: that it arrived although no provider says so, that it goes again, that it
//! does not go at all. Each is one message in one transaction; what is decided twice, or too late, changes nothing and says
//! where the message stands instead.
//!
//! A message that goes again opens a new generation: its old provider id stays with its attempts, so that late words about
//! the old generation are still recognised as such, and it enters the lane at the end. Every path locks the conversation,
//! then the message, then its row in `sends`.

use crate::column::rows;
use crate::feed::{self, Change};
use crate::send::{self, SendRow};
use crate::set::Both;
use crate::tx::on_backend;
use crate::{At, Result, Tx, attempt, receipt};
use domain::{AccountId, AttemptOutcome, ConversationId, Direction, MessageId, SendState, Status, Timestamp, UserId};
use std::time::Duration;

/// Class of a message that a person took back before it left.
pub const CANCELLED: &str = "CANCELLED";
/// Its code.
const CANCELLED_CODE: &str = "cancelled";
/// Its words.
const CANCELLED_WORDS: &str = "It was taken back before it was sent.";

/// What became of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// It was carried out. After the commit: wake the readers, dispatch the account.
    Done {
        /// The message's conversation.
        conversation: ConversationId,
        /// Its account: its lane may have moved.
        account: AccountId,
        /// To which status the message came.
        status: Status,
    },
    /// The message does not stand where this can be decided; nothing changed.
    WrongState(Standing),
    /// There is nothing to send from any more: the account left the configuration. Nothing changed.
    AccountDisabled,
    /// The conversation has no such message.
    NotFound,
}

/// Where a message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How far it has come.
    pub status: Status,
    /// Where its send stands; `None` once it is over.
    pub state: Option<SendState>,
}

/// How a message goes again.
#[derive(Clone, Copy, Debug)]
pub struct Again<'a> {
    /// People's time.
    pub now: Timestamp,
    /// How long after now it is given up.
    pub deadline: Duration,
    /// W3C trace context of the request that asks for it.
    pub traceparent: Option<&'a str>,
}

rows! {
    /// A message, held until the transaction ends.
    pub struct DecidedRow {
        /// The message.
        pub id: MessageId,
        /// Its conversation.
        pub conversation_id: ConversationId,
        /// Its account; notes have none.
        pub channel_account_id: Option<AccountId>,
        /// Who spoke.
        pub direction: Direction,
        /// How far it has come.
        pub status: Status,
        /// Its present generation.
        pub send_generation: i16,
    }
}

/// A message of ours that somebody decides about, with its row in `sends`; both are held.
struct Subject {
    message: DecidedRow,
    account: AccountId,
    send: Option<SendRow>,
}

impl Subject {
    fn standing(&self) -> Standing {
        Standing { status: self.message.status, state: self.send.as_ref().map(|send| send.state) }
    }

    fn is_held(&self) -> bool {
        self.send.as_ref().is_some_and(|send| send.state == SendState::Held)
    }

    fn done(&self, status: Status) -> Decided {
        Decided::Done { conversation: self.message.conversation_id, account: self.account, status }
    }
}

/// Places in the lane are given out under this lock. SQLite has one writer: reading is holding.
const CONVERSATION_HOLD: Both = Both {
    postgres: "SELECT id FROM conversations WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE",
    sqlite: "SELECT id FROM conversations WHERE id = $1 AND deleted_at IS NULL",
};

macro_rules! message_hold {
    ($lock:literal) => {
        concat!(
            "SELECT id, conversation_id, channel_account_id, direction, status, send_generation FROM messages
    WHERE id = $1 AND conversation_id = $2",
            $lock
        )
    };
}
const MESSAGE_HOLD: Both = Both { postgres: message_hold!(" FOR NO KEY UPDATE"), sqlite: message_hold!("") };

/// Holds everything a decision concerns, or says at once what becomes of it.
async fn hold(
    tx: &mut Tx,
    conversation: ConversationId,
    message: MessageId,
) -> Result<std::result::Result<Subject, Decided>> {
    let (lock_conversation, lock_message) = match tx.is_postgres() {
        true => (CONVERSATION_HOLD.postgres, MESSAGE_HOLD.postgres),
        false => (CONVERSATION_HOLD.sqlite, MESSAGE_HOLD.sqlite),
    };
    let known: Option<i64> = on_backend!(&mut *tx, conn =>
        sqlx::query_scalar(lock_conversation).bind(conversation.get()).fetch_optional(conn).await?);
    if known.is_none() {
        return Ok(Err(Decided::NotFound));
    }
    let row: Option<DecidedRow> = on_backend!(&mut *tx, conn =>
        sqlx::query_as(lock_message).bind(message.get()).bind(conversation.get()).fetch_optional(conn).await?);
    let Some(row) = row else { return Ok(Err(Decided::NotFound)) };
    match (row.direction, row.channel_account_id) {
        (Direction::Outbound, Some(account)) => {
            let send = send::lock(tx, &[message]).await?.pop();
            Ok(Ok(Subject { message: row, account, send }))
        }
        // What a person wrote to us, or a note: there is nothing to decide.
        _ => Ok(Err(Decided::WrongState(Standing { status: row.status, state: None }))),
    }
}

const MESSAGE_ARRIVED: &str = "UPDATE messages SET status = 'SENT', outcome_unknown = false, confirmed_by_user_id = $2,
    sent_at = coalesce(sent_at, $3) WHERE id = $1";
const SEND_DELETE: &str = "DELETE FROM sends WHERE message_id = $1";

/// A HELD message arrived, on this person's word: SENT, and its send is over. The provider's own words still raise it.
/// # Errors
/// Only when the database cannot be reached.
pub async fn it_arrived(
    tx: &mut Tx,
    conversation: ConversationId,
    message: MessageId,
    by: UserId,
    now: Timestamp,
) -> Result<Decided> {
    let subject = match hold(tx, conversation, message).await? {
        Ok(subject) => subject,
        Err(decided) => return Ok(decided),
    };
    if !subject.is_held() {
        return Ok(Decided::WrongState(subject.standing()));
    }
    on_backend!(&mut *tx, conn => {
        sqlx::query(MESSAGE_ARRIVED).bind(message.get()).bind(by.get()).bind(At(now)).execute(&mut *conn).await?;
        sqlx::query(SEND_DELETE).bind(message.get()).execute(&mut *conn).await?;
    });
    let event = Event { status: Status::Sent, generation: subject.message.send_generation, failure: None };
    tell(tx, &subject, event, now).await?;
    Ok(subject.done(Status::Sent))
}

/// A HELD message goes again: it may then arrive twice, which is what the person decided about.
/// # Errors
/// Only when the database cannot be reached.
pub async fn send_again(
    tx: &mut Tx,
    conversation: ConversationId,
    message: MessageId,
    again: Again<'_>,
) -> Result<Decided> {
    let subject = match hold(tx, conversation, message).await? {
        Ok(subject) => subject,
        Err(decided) => return Ok(decided),
    };
    if !subject.is_held() {
        return Ok(Decided::WrongState(subject.standing()));
    }
    go_again(tx, &subject, again).await
}

/// A FAILED message is tried again, whatever it failed for; also one that was taken back or given up. Not while a row of it
/// is left in `sends`: a call may be open. The window is the caller's to check.
/// # Errors
/// Only when the database cannot be reached.
pub async fn retry(tx: &mut Tx, conversation: ConversationId, message: MessageId, again: Again<'_>) -> Result<Decided> {
    let subject = match hold(tx, conversation, message).await? {
        Ok(subject) => subject,
        Err(decided) => return Ok(decided),
    };
    if subject.message.status != Status::Failed || subject.send.is_some() {
        return Ok(Decided::WrongState(subject.standing()));
    }
    go_again(tx, &subject, again).await
}

const ACCOUNT_STATUS: &str = "SELECT status FROM channel_accounts WHERE id = $1";

/// The id that receipts of the generation so far carry. Nearly always an attempt has it already; it may also have been
/// learnt from a receipt of an attempt whose report said something else.
const ATTEMPT_KEEP_ID: &str =
    "INSERT INTO send_attempts (message_id, generation, attempt, provider_message_id, outcome, finished_at)
  SELECT m.id, m.send_generation,
         coalesce((SELECT max(a.attempt) FROM send_attempts a WHERE a.message_id = m.id AND a.generation = m.send_generation
                     AND a.provider_message_id IS NULL),
                  (SELECT max(a.attempt) + 1 FROM send_attempts a WHERE a.message_id = m.id
                     AND a.generation = m.send_generation), 1),
         m.provider_message_id, 'ACCEPTED', coalesce(m.sent_at, m.failed_at, $2)
    FROM messages m
   WHERE m.id = $1 AND m.provider_message_id IS NOT NULL
     AND NOT EXISTS (SELECT 1 FROM send_attempts a WHERE a.message_id = m.id AND a.provider_message_id = m.provider_message_id)
  ON CONFLICT (message_id, generation, attempt) DO UPDATE SET provider_message_id = excluded.provider_message_id";

const MESSAGE_AGAIN: &str =
    "UPDATE messages SET status = 'QUEUED', send_generation = $2, outcome_unknown = false, provider_message_id = NULL,
    confirmed_by_user_id = NULL, error_class = NULL, error_code = NULL, error_message = NULL, queued_at = $3,
    sent_at = NULL, delivered_at = NULL, read_at = NULL, failed_at = NULL WHERE id = $1";

/// The end of the lane is where it stands at this moment; a HELD row has no place in it. It is a person's message now, so
/// it does not give way as bulk does.
const SEND_AGAIN: &str =
    "INSERT INTO sends (message_id, conversation_id, channel_account_id, seq, generation, attempt, bulk, state, due_at,
    deadline_at, traceparent, created_at)
  VALUES ($1, $2, $3, (SELECT coalesce(max(l.seq), 0) + 1 FROM sends l WHERE l.conversation_id = $2), $4, 0, false,
    'WAITING', $5, $6, $7, $5)
  ON CONFLICT (message_id) DO UPDATE SET seq = excluded.seq, generation = excluded.generation, attempt = 0, bulk = false,
    state = 'WAITING', due_at = excluded.due_at, deadline_at = excluded.deadline_at, lease_token = NULL,
    lease_until = NULL, dispatched_at = NULL, unknown_since = NULL, witness_at = NULL,
    traceparent = excluded.traceparent";

/// Somebody wrote to the person after what failed.
const CONVERSATION_WRITTEN: &str = "UPDATE conversations SET
    last_outbound_at = CASE WHEN last_outbound_at > $2 THEN last_outbound_at ELSE $2 END,
    version = version + 1, updated_at = $2 WHERE id = $1";

/// Opens the next generation and lets it enter the lane.
async fn go_again(tx: &mut Tx, subject: &Subject, again: Again<'_>) -> Result<Decided> {
    let account: Option<String> = on_backend!(&mut *tx, conn =>
        sqlx::query_scalar(ACCOUNT_STATUS).bind(subject.account.get()).fetch_optional(conn).await?);
    if account.is_none_or(|status| status == "DISABLED") {
        return Ok(Decided::AccountDisabled);
    }
    let due = tx.database_now().await?;
    let (message, conversation) = (subject.message.id.get(), subject.message.conversation_id.get());
    let generation = subject.message.send_generation.saturating_add(1);
    on_backend!(&mut *tx, conn => {
        sqlx::query(ATTEMPT_KEEP_ID).bind(message).bind(At(again.now)).execute(&mut *conn).await?;
        sqlx::query(MESSAGE_AGAIN).bind(message).bind(generation).bind(At(again.now)).execute(&mut *conn).await?;
        sqlx::query(SEND_AGAIN).bind(message).bind(conversation).bind(subject.account.get()).bind(generation)
            .bind(At(due)).bind(At(due + again.deadline)).bind(again.traceparent).execute(&mut *conn).await?;
        sqlx::query(CONVERSATION_WRITTEN).bind(conversation).bind(At(again.now)).execute(&mut *conn).await?;
    });
    tell(tx, subject, Event { status: Status::Queued, generation, failure: None }, again.now).await?;
    Ok(subject.done(Status::Queued))
}

const MESSAGE_CANCEL: &str = "UPDATE messages SET status = 'FAILED', outcome_unknown = false, error_class = $2,
    error_code = $3, error_message = $4, failed_at = $5 WHERE id = $1";

/// Whoever waited for this answer waits on, unless another one followed their last message.
const CONVERSATION_UNANSWERED: &str = "UPDATE conversations SET version = version + 1, updated_at = $2,
    needs_reply_since = CASE WHEN needs_reply_since IS NULL AND NOT EXISTS (
        SELECT 1 FROM messages m WHERE m.conversation_id = $1 AND m.occurred_at >= conversations.last_inbound_at
           AND m.direction = 'OUTBOUND' AND m.channel <> 'INTERNAL_NOTE' AND m.status <> 'FAILED')
      THEN last_inbound_at ELSE needs_reply_since END WHERE id = $1";

/// Whether the provider took an earlier attempt, or has said something of the message that waits to be taken up: it is not
/// ours any more, although its row does not show it yet ([`crate::result::settle`]).
async fn is_spoken_for(tx: &mut Tx, subject: &Subject) -> Result<bool> {
    let Some(send) = &subject.send else { return Ok(false) };
    let taken = attempt::of(tx, &[send.message_id]).await?.into_iter();
    let mut taken = taken.filter(|row| row.generation == send.generation && row.outcome == AttemptOutcome::Accepted);
    Ok(taken.next().is_some() || !receipt::waiting_for(tx, &[send.message_id]).await?.is_empty())
}

/// A message that has not left yet (SCHEDULED, WAITING, DISPATCHED) does not go: FAILED, class [`CANCELLED`], and its key
/// stays used. What is IN_FLIGHT or UNKNOWN is on its way, what is HELD may have arrived, and of what waits for another
/// attempt the provider may have taken an earlier one: none of them can be taken back.
/// # Errors
/// Only when the database cannot be reached.
pub async fn cancel(tx: &mut Tx, conversation: ConversationId, message: MessageId, now: Timestamp) -> Result<Decided> {
    let subject = match hold(tx, conversation, message).await? {
        Ok(subject) => subject,
        Err(decided) => return Ok(decided),
    };
    let state = subject.send.as_ref().map(|send| send.state);
    if !matches!(state, Some(SendState::Scheduled | SendState::Waiting | SendState::Dispatched)) {
        return Ok(Decided::WrongState(subject.standing()));
    }
    if is_spoken_for(tx, &subject).await? {
        return Ok(Decided::WrongState(subject.standing()));
    }
    on_backend!(&mut *tx, conn => {
        sqlx::query(MESSAGE_CANCEL).bind(message.get()).bind(CANCELLED).bind(CANCELLED_CODE).bind(CANCELLED_WORDS)
            .bind(At(now)).execute(&mut *conn).await?;
        sqlx::query(SEND_DELETE).bind(message.get()).execute(&mut *conn).await?;
        sqlx::query(CONVERSATION_UNANSWERED).bind(conversation.get()).bind(At(now)).execute(&mut *conn).await?;
    });
    let failure = Some((CANCELLED_CODE, CANCELLED_WORDS));
    let generation = subject.message.send_generation;
    tell(tx, &subject, Event { status: Status::Failed, generation, failure }, now).await?;
    Ok(subject.done(Status::Failed))
}

/// What the history says of a decision.
struct Event {
    status: Status,
    generation: i16,
    failure: Option<(&'static str, &'static str)>,
}

const EVENT_INSERT: &str =
    "INSERT INTO message_status_events (message_id, conversation_id, channel_account_id, generation,
    status, error_code, error_message, source, applied, occurred_at, received_at)
  VALUES ($1, $2, $3, $4, $5, $6, $7, 'OPERATOR', $8, $9, $9)";

/// Writes the decision into the message's history and into the feed. `applied` means that the status was raised, which a
/// message that goes again is not.
async fn tell(tx: &mut Tx, subject: &Subject, event: Event, now: Timestamp) -> Result<()> {
    let (message, conversation) = (subject.message.id, subject.message.conversation_id);
    let applied = event.status != Status::Queued;
    let (code, words) = event.failure.unzip();
    on_backend!(&mut *tx, conn => { sqlx::query(EVENT_INSERT).bind(message.get()).bind(conversation.get())
        .bind(subject.account.get()).bind(event.generation).bind(event.status.as_str()).bind(code).bind(words)
        .bind(applied).bind(At(now)).execute(conn).await?; });
    let changes = [
        Change::Conversation { conversation, contact: None },
        Change::MessageStatus { conversation, message, status: event.status },
    ];
    feed::write(tx, &changes, now).await
}
