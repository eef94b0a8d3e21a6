//! What the tests of sending begin with: an account, a few conversations with an open window, and short ways to accept,
//! claim and report.

use domain::wire::{AttemptReport, SendEvent, SendRef};
use domain::{
    Account, AccountId, AttemptOutcome, Channel, Content, MessageId, OnUnknown, Origin, Secret, SendState, Status,
    Timestamp,
};
use std::time::Duration;
use store::accept::{AcceptOutcome, AcceptedRow, NewSend, accept};
use store::result::{Applied, Pace, Times};
use store::send::{self, Claimed, Claims, SendRow};
use store::{Store, Tx, account};
use testkit::rows::{self, NOON, Seeded};
use testkit::{Database, TestDatabase, fresh_store};

/// No jitter, no scaling.
pub(crate) const PACE: Pace = Pace { scale: 1.0, random: || 0.5 };

pub(crate) fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A configured WhatsApp account.
pub(crate) fn configured(name: &str, external_id: &str) -> Account {
    Account {
        name: name.parse().unwrap(),
        channel: Channel::WhatsApp,
        source: "meta".parse().unwrap(),
        external_id: external_id.to_owned(),
        parent_external_id: Some("waba-1".into()),
        portfolio_id: None,
        display_address: None,
        api_base: "http://127.0.0.1:1/v25.0".into(),
        access_token: Secret::new("token"),
        rate_per_second: 80.0,
        pair_interval: seconds(6),
        pair_burst: 3,
        window: Some(seconds(24 * 3600)),
        on_unknown: OnUnknown::Hold,
    }
}

/// A database with one account and some conversations, each with a window that the last inbound opened.
pub(crate) struct World {
    pub(crate) db: TestDatabase,
    pub(crate) account: AccountId,
    pub(crate) conversations: Vec<Seeded>,
}

impl World {
    pub(crate) async fn with(database: Database, conversations: usize) -> World {
        let db = fresh_store(database).await.unwrap();
        let mut tx = db.store.begin().await.unwrap();
        let directory = account::mirror(&mut tx, &[configured("sales", "1001")], NOON).await.unwrap();
        let account = directory.id_named(&"sales".parse().unwrap()).unwrap();
        let mut seeded = Vec::new();
        for n in 0..conversations {
            let (name, digits) = (format!("Person {n}"), format!("97150000{n:04}"));
            let one = rows::conversation(&mut tx, account, &name, &digits, NOON).await.unwrap();
            rows::inbound(&mut tx, &one, &format!("wamid.in.{n}"), "hello", NOON).await.unwrap();
            seeded.push(one);
        }
        tx.commit().await.unwrap();
        World { db, account, conversations: seeded }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.db.store
    }

    pub(crate) async fn now(&self) -> Timestamp {
        self.db.store.read().await.unwrap().database_now().await.unwrap()
    }

    /// Accepts a text into the conversation with this number.
    pub(crate) async fn accept(&self, conversation: usize, body: &str) -> MessageId {
        self.accept_as(conversation, body, |new| new).await.id
    }

    pub(crate) async fn accept_as(
        &self,
        conversation: usize,
        body: &str,
        change: impl for<'a> FnOnce(NewSend<'a>) -> NewSend<'a>,
    ) -> AcceptedRow {
        let content = Content::Text { body: body.to_owned() };
        let new = change(new_send(&self.conversations[conversation], &content));
        let mut tx = self.db.store.begin().await.unwrap();
        let outcome = accept(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        match outcome {
            AcceptOutcome::Created(row) => row,
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// Dispatches due heads and returns their messages, sorted.
    pub(crate) async fn dispatch(&self) -> Vec<MessageId> {
        self.dispatch_at(self.now().await, 64).await
    }

    pub(crate) async fn dispatch_at(&self, now: Timestamp, limit: i64) -> Vec<MessageId> {
        let mut tx = self.db.store.begin().await.unwrap();
        let refs: Vec<SendRef> = send::dispatch(&mut tx, self.account, limit, now).await.unwrap();
        tx.commit().await.unwrap();
        let mut messages: Vec<MessageId> = refs.into_iter().map(|one| one.message).collect();
        messages.sort();
        messages
    }

    pub(crate) async fn claim(&self, token: &str, messages: &[MessageId]) -> Vec<Claimed> {
        let mut tx = self.db.store.begin().await.unwrap();
        let now = tx.database_now().await.unwrap();
        let tokens = [(self.account, "hash".to_owned())];
        let claims = Claims { lease_token: token, lease_until: now + seconds(20), now, messages, tokens: &tokens };
        let mut claimed = send::claim(&mut tx, &claims).await.unwrap();
        tx.commit().await.unwrap();
        claimed.sort_by_key(|row| row.message_id);
        claimed
    }

    /// Dispatches and claims everything that may go.
    pub(crate) async fn take(&self, token: &str) -> Vec<Claimed> {
        let messages = self.dispatch().await;
        self.claim(token, &messages).await
    }

    pub(crate) async fn report(&self, events: &[SendEvent]) -> Applied {
        let mut tx = self.db.store.begin().await.unwrap();
        let database_now = tx.database_now().await.unwrap();
        let times = Times { now: NOON + seconds(60), database_now };
        let applied = store::result::apply(&mut tx, events, times, PACE).await.unwrap();
        tx.commit().await.unwrap();
        applied
    }

    pub(crate) async fn send_of(&self, message: MessageId) -> Option<SendRow> {
        let mut tx = self.db.store.read().await.unwrap();
        send::of(&mut tx, &[message]).await.unwrap().pop()
    }

    pub(crate) async fn state_of(&self, message: MessageId) -> Option<SendState> {
        self.send_of(message).await.map(|row| row.state)
    }

    pub(crate) async fn message(&self, message: MessageId) -> Message {
        let mut tx = self.db.store.read().await.unwrap();
        message_of(&mut tx, message).await
    }

    /// Every promise that can be asked of the database.
    pub(crate) async fn keeps_its_promises(&self) {
        let mut tx = self.db.store.read().await.unwrap();
        let broken = store::promises::audit(&mut tx, store::promises::PROMISES).await.unwrap();
        assert_eq!(broken, []);
    }
}

pub(crate) fn new_send<'a>(to: &Seeded, content: &'a Content) -> NewSend<'a> {
    NewSend {
        conversation: to.conversation,
        content,
        text: None,
        client_message_id: None,
        request_hash: None,
        reply_to: None,
        origin: Origin::Agent,
        created_by: None,
        bulk: false,
        deadline: seconds(24 * 3600),
        now: NOON + seconds(10),
        send_at: None,
        hold: None,
        traceparent: None,
    }
}

/// A message, as far as these tests look at it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) status: Status,
    pub(crate) provider_id: Option<String>,
    pub(crate) unknown: bool,
    pub(crate) error: Option<(String, String)>,
}

pub(crate) async fn message_of(tx: &mut Tx, message: MessageId) -> Message {
    const MESSAGE: &str = "SELECT status, provider_message_id, outcome_unknown, error_class, error_code FROM messages
        WHERE id = $1";
    type Row = (String, Option<String>, bool, Option<String>, Option<String>);
    let row: Row = match tx {
        Tx::Postgres(tx) => sqlx::query_as(MESSAGE).bind(message.get()).fetch_one(tx.conn()).await.unwrap(),
        Tx::Sqlite(tx) => sqlx::query_as(MESSAGE).bind(message.get()).fetch_one(&mut **tx).await.unwrap(),
    };
    Message { status: Status::parse(&row.0).unwrap(), provider_id: row.1, unknown: row.2, error: row.3.zip(row.4) }
}

/// Runs a statement written here; no parameters.
pub(crate) async fn execute(store: &Store, sql: &'static str) {
    let mut tx = store.begin().await.unwrap();
    match &mut tx {
        Tx::Postgres(tx) => {
            sqlx::query(sql).execute(tx.conn()).await.unwrap();
        }
        Tx::Sqlite(tx) => {
            sqlx::query(sql).execute(&mut **tx).await.unwrap();
        }
    }
    tx.commit().await.unwrap();
}

pub(crate) async fn number(store: &Store, sql: &'static str) -> i64 {
    match &mut store.read().await.unwrap() {
        Tx::Postgres(tx) => sqlx::query_scalar(sql).fetch_one(tx.conn()).await.unwrap(),
        Tx::Sqlite(tx) => sqlx::query_scalar(sql).fetch_one(&mut **tx).await.unwrap(),
    }
}

/// What a sender reports of a claim.
pub(crate) fn report_of(claim: &Claimed, outcome: AttemptOutcome) -> AttemptReport {
    AttemptReport {
        message: claim.message_id,
        conversation: claim.conversation_id,
        account: claim.channel_account_id,
        generation: claim.generation,
        attempt: claim.attempt,
        worker: "sender-1".into(),
        started_at: NOON + seconds(20),
        finished_at: NOON + seconds(21),
        outcome,
        provider_message_id: (outcome == AttemptOutcome::Accepted)
            .then(|| format!("wamid.out.{}.{}", claim.message_id, claim.attempt)),
        http_status: Some(200),
        code: (outcome == AttemptOutcome::Rejected).then(|| "131026".to_owned()),
        reason: (outcome == AttemptOutcome::Rejected).then(|| "Message undeliverable".to_owned()),
        retry_after_ms: None,
        throttle_scope: None,
        give_up_after: None,
        traceparent: None,
    }
}

pub(crate) fn finished(claim: &Claimed, outcome: AttemptOutcome) -> SendEvent {
    SendEvent::Finished(Box::new(report_of(claim, outcome)))
}

pub(crate) fn lease_expired(claim: &Claimed, token: &str) -> SendEvent {
    SendEvent::LeaseExpired {
        message: claim.message_id,
        account: claim.channel_account_id,
        generation: claim.generation,
        attempt: claim.attempt,
        lease_token: token.to_owned(),
        at: NOON + seconds(50),
    }
}
