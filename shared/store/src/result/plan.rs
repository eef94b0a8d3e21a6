//! Writing what a wave of reports changes: one statement per kind of change.

use super::decide::{Change, Place};
use super::{MessageStanding, Times};
use crate::batch::{json, micros, plain};
use crate::set::{Both, numbers, with_ids};
use crate::{At, Result, Tx, feed};
use domain::{ConversationId, MessageId, Status, Timestamp};
use std::collections::BTreeMap;

/// The changes of a wave, by kind: one statement each.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    sent: Vec<Sent<'a>>,
    failed: Vec<Failed<'a>>,
    unknown: Vec<(MessageId, ConversationId)>,
    again: Vec<Again>,
    requeued: Vec<(MessageId, ConversationId)>,
    finished: Vec<MessageId>,
}

#[derive(Debug)]
struct Sent<'a> {
    message: &'a MessageStanding,
    provider_message_id: String,
    at: Timestamp,
}

#[derive(Debug)]
struct Failed<'a> {
    message: &'a MessageStanding,
    class: &'static str,
    code: String,
    words: String,
    at: Timestamp,
}

#[derive(Debug)]
struct Again {
    message: MessageId,
    wait: std::time::Duration,
    place: Place,
}

impl<'a> Plan<'a> {
    pub(super) fn add(&mut self, message: &'a MessageStanding, change: Change) {
        match change {
            Change::Nothing | Change::Waits => {}
            Change::Settled => self.finished.push(message.id),
            Change::Sent { provider_message_id, at } => {
                self.finished.push(message.id);
                self.sent.push(Sent { message, provider_message_id, at });
            }
            Change::Failed { class, code, words, at } => {
                self.finished.push(message.id);
                self.failed.push(Failed { message, class, code, words, at });
            }
            Change::Again { wait, place } => {
                self.again.push(Again { message: message.id, wait, place });
                if message.status == Status::Sending {
                    self.requeued.push((message.id, message.conversation_id));
                }
            }
            Change::Unknown => self.unknown.push((message.id, message.conversation_id)),
        }
    }

    /// The rows are locked and were judged as they are, so the statements need only name them.
    pub(super) async fn write(&self, tx: &mut Tx, times: Times) -> Result<()> {
        self.write_sent(tx).await?;
        self.write_failed(tx, times).await?;
        self.write_unknown(tx, times).await?;
        self.write_again(tx, times).await?;
        self.write_events(tx, times).await?;
        self.write_feed(tx, times).await?;
        run(tx, SEND_FINISH, &self.finished).await
    }

    async fn write_sent(&self, tx: &mut Tx) -> Result<()> {
        if self.sent.is_empty() {
            return Ok(());
        }
        self.fold_echoes(tx).await?;
        match &mut *tx {
            Tx::Postgres(tx) => {
                sqlx::query(MESSAGE_SENT.postgres)
                    .bind(self.sent.iter().map(|sent| sent.message.id.get()).collect::<Vec<_>>())
                    .bind(self.sent.iter().map(|sent| plain(&sent.provider_message_id)).collect::<Vec<_>>())
                    .bind(self.sent.iter().map(|sent| At(sent.at)).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
            }
            Tx::Sqlite(tx) => {
                let rows: Vec<_> = self
                    .sent
                    .iter()
                    .map(|sent| (sent.message.id.get(), plain(&sent.provider_message_id), sent.at.micros()))
                    .collect();
                sqlx::query(MESSAGE_SENT.sqlite).bind(json(&rows)?).execute(&mut **tx).await?;
            }
        }
        // Watermarks (Messenger, Instagram) may have passed a message before its id was known.
        let passed: Vec<MessageId> = self
            .sent
            .iter()
            .filter(|sent| {
                sent.message.delivered_until.max(sent.message.read_until).is_some_and(|until| sent.at <= until)
            })
            .map(|sent| sent.message.id)
            .collect();
        run(tx, MESSAGE_PASSED, &passed).await
    }

    /// An id we learn may belong to the echo of this very message, which arrived first: its events become ours, it goes.
    async fn fold_echoes(&self, tx: &mut Tx) -> Result<()> {
        let echoes: Vec<(i64, i64)> = match &mut *tx {
            Tx::Postgres(tx) => {
                sqlx::query_as(ECHO_FIND.postgres)
                    .bind(self.sent.iter().map(|sent| sent.message.id.get()).collect::<Vec<_>>())
                    .bind(self.sent.iter().map(|sent| plain(&sent.provider_message_id)).collect::<Vec<_>>())
                    .bind(self.sent.iter().map(|sent| sent.message.channel_account_id.get()).collect::<Vec<_>>())
                    .fetch_all(tx.conn())
                    .await?
            }
            Tx::Sqlite(tx) => {
                let rows: Vec<_> = self
                    .sent
                    .iter()
                    .map(|sent| {
                        let account = sent.message.channel_account_id.get();
                        (sent.message.id.get(), plain(&sent.provider_message_id), account)
                    })
                    .collect();
                sqlx::query_as(ECHO_FIND.sqlite).bind(json(&rows)?).fetch_all(&mut **tx).await?
            }
        };
        // Next to none; each is two statements.
        for (ours, echo) in echoes {
            crate::tx::on_backend!(&mut *tx, conn => {
                sqlx::query(ECHO_EVENTS).bind(ours).bind(echo).execute(&mut *conn).await?;
                sqlx::query(ECHO_DELETE).bind(echo).execute(&mut *conn).await?;
            });
        }
        Ok(())
    }

    async fn write_failed(&self, tx: &mut Tx, times: Times) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        match tx {
            Tx::Postgres(tx) => {
                sqlx::query(MESSAGE_FAILED.postgres)
                    .bind(self.failed.iter().map(|failed| failed.message.id.get()).collect::<Vec<_>>())
                    .bind(self.failed.iter().map(|failed| failed.class).collect::<Vec<_>>())
                    .bind(self.failed.iter().map(|failed| plain(&failed.code)).collect::<Vec<_>>())
                    .bind(self.failed.iter().map(|failed| plain(&failed.words)).collect::<Vec<_>>())
                    .bind(self.failed.iter().map(|failed| At(failed.at)).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
                let conversations: Vec<i64> =
                    self.failed.iter().map(|failed| failed.message.conversation_id.get()).collect();
                let query = sqlx::query(CONVERSATION_FAILED.postgres).bind(At(times.now)).bind(conversations);
                query.execute(tx.conn()).await?;
            }
            Tx::Sqlite(tx) => {
                let rows: Vec<_> = self
                    .failed
                    .iter()
                    .map(|f| (f.message.id.get(), f.class, plain(&f.code), plain(&f.words), f.at.micros()))
                    .collect();
                sqlx::query(MESSAGE_FAILED.sqlite).bind(json(&rows)?).execute(&mut **tx).await?;
                let conversations: Vec<i64> =
                    self.failed.iter().map(|failed| failed.message.conversation_id.get()).collect();
                let query = sqlx::query(CONVERSATION_FAILED.sqlite).bind(At(times.now)).bind(json(&conversations)?);
                query.execute(&mut **tx).await?;
            }
        }
        Ok(())
    }

    async fn write_unknown(&self, tx: &mut Tx, times: Times) -> Result<()> {
        let ids: Vec<MessageId> = self.unknown.iter().map(|(message, _)| *message).collect();
        if ids.is_empty() {
            return Ok(());
        }
        match &mut *tx {
            Tx::Postgres(tx) => {
                let query = sqlx::query(SEND_UNKNOWN.postgres).bind(At(times.database_now)).bind(numbers(&ids));
                query.execute(tx.conn()).await?;
            }
            Tx::Sqlite(tx) => {
                let query = sqlx::query(SEND_UNKNOWN.sqlite).bind(At(times.database_now)).bind(json(&ids)?);
                query.execute(&mut **tx).await?;
            }
        }
        run(tx, MESSAGE_UNKNOWN, &ids).await
    }

    async fn write_again(&self, tx: &mut Tx, times: Times) -> Result<()> {
        if self.again.is_empty() {
            return Ok(());
        }
        match &mut *tx {
            Tx::Postgres(tx) => {
                sqlx::query(SEND_AGAIN.postgres)
                    .bind(self.again.iter().map(|again| again.message.get()).collect::<Vec<_>>())
                    .bind(self.again.iter().map(|again| At(times.database_now + again.wait)).collect::<Vec<_>>())
                    .bind(self.again.iter().map(|again| again.place.code()).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
            }
            Tx::Sqlite(tx) => {
                let rows: Vec<_> = self
                    .again
                    .iter()
                    .map(|a| (a.message.get(), (times.database_now + a.wait).micros(), a.place.code()))
                    .collect();
                sqlx::query(SEND_AGAIN.sqlite).bind(json(&rows)?).execute(&mut **tx).await?;
            }
        }
        let requeued: Vec<MessageId> = self.requeued.iter().map(|(message, _)| *message).collect();
        run(tx, MESSAGE_REQUEUED, &requeued).await
    }

    /// The history says what the sender said, and whether it raised the status.
    async fn write_events(&self, tx: &mut Tx, times: Times) -> Result<()> {
        let sent = self.sent.iter().map(|sent| {
            let applied = sent.message.status.rank() < Status::Sent.rank();
            (sent.message, Status::Sent, Some(plain(&sent.provider_message_id)), None, None, applied, sent.at)
        });
        let failed = self.failed.iter().map(|failed| {
            let applied = failed.message.status.rank() < Status::Failed.rank();
            let (code, words) = (Some(plain(&failed.code)), Some(plain(&failed.words)));
            (failed.message, Status::Failed, None, code, words, applied, failed.at)
        });
        // What raised nothing was told before, by the provider itself.
        let events: Vec<_> = sent.chain(failed).filter(|event| event.5).collect();
        if events.is_empty() {
            return Ok(());
        }
        match tx {
            Tx::Postgres(tx) => {
                sqlx::query(EVENT_INSERT.postgres)
                    .bind(At(times.now))
                    .bind(events.iter().map(|event| event.0.id.get()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| event.1.as_str()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| event.2.clone()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| event.3.clone()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| event.4.clone()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| At(event.6)).collect::<Vec<_>>())
                    .execute(tx.conn())
                    .await?;
            }
            Tx::Sqlite(tx) => {
                let rows: Vec<_> =
                    events.iter().map(|e| (e.0.id.get(), e.1.as_str(), &e.2, &e.3, &e.4, micros(Some(e.6)))).collect();
                sqlx::query(EVENT_INSERT.sqlite).bind(At(times.now)).bind(json(&rows)?).execute(&mut **tx).await?;
            }
        }
        Ok(())
    }

    async fn write_feed(&self, tx: &mut Tx, times: Times) -> Result<()> {
        let of = |message: MessageId, conversation: ConversationId, status| feed::Change::MessageStatus {
            conversation,
            message,
            status,
        };
        let mut changes: BTreeMap<MessageId, feed::Change> = BTreeMap::new();
        for sent in &self.sent {
            let status =
                if sent.message.status.rank() < Status::Sent.rank() { Status::Sent } else { sent.message.status };
            changes.insert(sent.message.id, of(sent.message.id, sent.message.conversation_id, status));
        }
        for failed in &self.failed {
            let message = failed.message;
            changes.insert(message.id, of(message.id, message.conversation_id, Status::Failed));
        }
        for (message, conversation) in &self.unknown {
            changes.insert(*message, of(*message, *conversation, Status::Sending));
        }
        for (message, conversation) in &self.requeued {
            changes.insert(*message, of(*message, *conversation, Status::Queued));
        }
        feed::write(tx, &changes.into_values().collect::<Vec<_>>(), times.now).await
    }
}

async fn run(tx: &mut Tx, sql: Both, ids: &[MessageId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    match tx {
        Tx::Postgres(tx) => {
            sqlx::query(sql.postgres).bind(numbers(ids)).execute(tx.conn()).await?;
        }
        Tx::Sqlite(tx) => {
            sqlx::query(sql.sqlite).bind(json(ids)?).execute(&mut **tx).await?;
        }
    }
    Ok(())
}

const SEND_FINISH: Both = with_ids!("DELETE FROM sends WHERE message_id IN ", "$1", "");

macro_rules! message_sent {
    ($set:literal) => {
        concat!(
            "UPDATE messages SET status = CASE WHEN status_rank < 30 THEN 'SENT' ELSE status END,
    provider_message_id = coalesce(provider_message_id, i.provider_id), outcome_unknown = false,
    sent_at = coalesce(sent_at, i.at) FROM ",
            $set,
            " WHERE messages.id = i.message"
        )
    };
}
const MESSAGE_SENT: Both = Both {
    postgres: message_sent!("unnest($1::bigint[], $2::text[], $3::timestamptz[]) AS i(message, provider_id, at)"),
    sqlite: message_sent!(
        "(SELECT value ->> 0 AS message, value ->> 1 AS provider_id, value ->> 2 AS at FROM json_each($1)) AS i"
    ),
};

const MESSAGE_PASSED: Both = with_ids!(
    "UPDATE messages SET status = CASE WHEN sent_at <= c.read_until THEN 'READ' ELSE 'DELIVERED' END,
       delivered_at = coalesce(delivered_at, CASE WHEN sent_at <= c.delivered_until THEN c.delivered_until ELSE c.read_until END),
       read_at = CASE WHEN sent_at <= c.read_until THEN coalesce(read_at, c.read_until) ELSE read_at END
      FROM conversations c WHERE c.id = messages.conversation_id
       AND status_rank < CASE WHEN sent_at <= c.read_until THEN 50 WHEN sent_at <= c.delivered_until THEN 40 ELSE 0 END
       AND messages.id IN ",
    "$1",
    ""
);

macro_rules! echo_find {
    ($set:literal) => {
        concat!(
            "SELECT i.message, m.id FROM ",
            $set,
            " JOIN messages m ON m.provider_message_id = i.provider_id AND m.channel_account_id = i.account
    WHERE m.origin = 'ECHO' AND m.id <> i.message"
        )
    };
}
const ECHO_FIND: Both = Both {
    postgres: echo_find!("unnest($1::bigint[], $2::text[], $3::bigint[]) AS i(message, provider_id, account)"),
    sqlite: echo_find!(
        "(SELECT value ->> 0 AS message, value ->> 1 AS provider_id, value ->> 2 AS account FROM json_each($1)) AS i"
    ),
};
const ECHO_EVENTS: &str = "UPDATE message_status_events SET message_id = $1, applied = false WHERE message_id = $2";
const ECHO_DELETE: &str = "DELETE FROM messages WHERE id = $1";

macro_rules! message_failed {
    ($set:literal) => {
        concat!(
            "UPDATE messages SET status = 'FAILED', outcome_unknown = false, error_class = i.class, error_code = i.code,
    error_message = i.words, failed_at = i.at FROM ",
            $set,
            " WHERE messages.id = i.message AND status_rank < 35"
        )
    };
}
const MESSAGE_FAILED: Both = Both {
    postgres: message_failed!(
        "unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS i(message, class, code, words, at)"
    ),
    sqlite: message_failed!(
        "(SELECT value ->> 0 AS message, value ->> 1 AS class, value ->> 2 AS code, value ->> 3 AS words, value ->> 4 AS at
            FROM json_each($1)) AS i"
    ),
};
const CONVERSATION_FAILED: Both = with_ids!(
    "UPDATE conversations SET last_failed_at = $1, updated_at = $1
      WHERE (last_failed_at IS NULL OR last_failed_at < $1) AND id IN ",
    "$2",
    ""
);

const SEND_UNKNOWN: Both = with_ids!(
    "UPDATE sends SET state = 'UNKNOWN', unknown_since = $1, witness_at = NULL, lease_token = NULL, lease_until = NULL
      WHERE state = 'IN_FLIGHT' AND message_id IN ",
    "$2",
    ""
);
const MESSAGE_UNKNOWN: Both = with_ids!(
    "UPDATE messages SET status = 'SENDING', outcome_unknown = true WHERE status_rank <= 20 AND id IN ",
    "$1",
    ""
);

macro_rules! send_again {
    ($set:literal) => {
        concat!(
            "UPDATE sends SET state = CASE i.place WHEN 1 THEN 'SCHEDULED' ELSE 'WAITING' END,
    seq = CASE i.place WHEN 0 THEN seq WHEN 2 THEN
      (SELECT coalesce(max(l.seq), 0) + 1 FROM sends l WHERE l.conversation_id = sends.conversation_id) END,
    due_at = i.due, lease_token = NULL, lease_until = NULL, dispatched_at = NULL, unknown_since = NULL, witness_at = NULL
  FROM ",
            $set,
            " WHERE sends.message_id = i.message AND sends.state IN ('IN_FLIGHT', 'UNKNOWN', 'HELD')"
        )
    };
}
const SEND_AGAIN: Both = Both {
    postgres: send_again!("unnest($1::bigint[], $2::timestamptz[], $3::smallint[]) AS i(message, due, place)"),
    sqlite: send_again!(
        "(SELECT value ->> 0 AS message, value ->> 1 AS due, value ->> 2 AS place FROM json_each($1)) AS i"
    ),
};
const MESSAGE_REQUEUED: Both = with_ids!(
    "UPDATE messages SET status = 'QUEUED', outcome_unknown = false WHERE status = 'SENDING' AND id IN ",
    "$1",
    ""
);

macro_rules! event_insert {
    ($set:literal) => {
        concat!(
            "INSERT INTO message_status_events (message_id, conversation_id, channel_account_id, provider_message_id, generation,
    status, error_code, error_message, source, applied, occurred_at, received_at)
  SELECT m.id, m.conversation_id, m.channel_account_id, i.provider_id, m.send_generation, i.status, i.code, i.words,
    'SENDER', true, i.at, $1 FROM ",
            $set,
            " JOIN messages m ON m.id = i.message"
        )
    };
}
const EVENT_INSERT: Both = Both {
    postgres: event_insert!(
        "unnest($2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[])
           AS i(message, status, provider_id, code, words, at)"
    ),
    sqlite: event_insert!(
        "(SELECT value ->> 0 AS message, value ->> 1 AS status, value ->> 2 AS provider_id, value ->> 3 AS code,
                 value ->> 4 AS words, value ->> 5 AS at FROM json_each($2)) AS i"
    ),
};
