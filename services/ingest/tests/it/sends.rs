//! What tests of results and of the keeper begin with: accepted sends of one account, and a hand that plays the sender.

use crate::support::World;
use domain::wire::{AttemptReport, SendEvent, SendResults};
use domain::{AccountId, AttemptOutcome, Content, MessageId, Origin};
use queue::topics::RESULTS;
use std::time::Duration;
use store::accept::{AcceptOutcome, NewSend, accept};
use store::send::{self, Claimed, Claims};
use testkit::rows::{self, Seeded};

/// An account with conversations.
pub(crate) struct Office {
    pub(crate) account: AccountId,
    pub(crate) conversations: Vec<Seeded>,
}

impl Office {
    pub(crate) async fn of(world: &World, conversations: usize) -> Office {
        let mut tx = world.store.begin().await.unwrap();
        let directory = store::account::mirror(&mut tx, &world.accounts, world.now()).await.unwrap();
        let (account, _) = directory.iter().next().unwrap();
        let mut seeded = Vec::new();
        for n in 0..conversations {
            let digits = format!("9715{n:08}");
            seeded.push(rows::conversation(&mut tx, account, "Person", &digits, world.now()).await.unwrap());
        }
        tx.commit().await.unwrap();
        Office { account, conversations: seeded }
    }

    pub(crate) async fn accept(&self, world: &World, conversation: usize) -> MessageId {
        self.accept_as(world, conversation, |new| new).await
    }

    pub(crate) async fn accept_as(
        &self,
        world: &World,
        conversation: usize,
        change: impl for<'a> FnOnce(NewSend<'a>) -> NewSend<'a>,
    ) -> MessageId {
        let content = Content::Text { body: "hello".into() };
        let new = change(NewSend {
            conversation: self.conversations[conversation].conversation,
            content: &content,
            text: None,
            client_message_id: None,
            request_hash: None,
            reply_to: None,
            origin: Origin::Agent,
            created_by: None,
            bulk: false,
            deadline: Duration::from_secs(3600),
            now: world.now(),
            send_at: None,
            hold: None,
            traceparent: None,
        });
        let mut tx = world.store.begin().await.unwrap();
        let outcome = accept(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        let AcceptOutcome::Created(row) = outcome else { panic!("{outcome:?}") };
        row.id
    }

    /// Dispatches and claims the head of each lane, as a sender whose lease lasts so long.
    pub(crate) async fn claim(&self, world: &World, token: &str, lease: Duration) -> Vec<Claimed> {
        let mut tx = world.store.begin().await.unwrap();
        let now = tx.database_now().await.unwrap();
        let refs = send::dispatch(&mut tx, self.account, 64, now).await.unwrap();
        let messages: Vec<MessageId> = refs.into_iter().map(|one| one.message).collect();
        let claims = Claims { lease_token: token, lease_until: now + lease, now, messages: &messages, tokens: &[] };
        let mut claimed = send::claim(&mut tx, &claims).await.unwrap();
        tx.commit().await.unwrap();
        claimed.sort_by_key(|row| row.message_id);
        claimed
    }
}

/// What a sender says of a claim.
pub(crate) fn report(world: &World, claim: &Claimed, outcome: AttemptOutcome) -> AttemptReport {
    AttemptReport {
        message: claim.message_id,
        conversation: claim.conversation_id,
        account: claim.channel_account_id,
        generation: claim.generation,
        attempt: claim.attempt,
        worker: "sender-1".into(),
        started_at: world.now(),
        finished_at: world.now(),
        outcome,
        provider_message_id: (outcome == AttemptOutcome::Accepted).then(|| format!("wamid.{}", claim.message_id)),
        http_status: Some(200),
        code: None,
        reason: None,
        retry_after_ms: None,
        throttle_scope: None,
        give_up_after: None,
        traceparent: None,
    }
}

pub(crate) async fn publish(world: &World, reports: Vec<AttemptReport>) {
    let items = reports.into_iter().map(|report| SendEvent::Finished(Box::new(report))).collect();
    world.publish_to(&RESULTS, &SendResults { items }).await;
}
