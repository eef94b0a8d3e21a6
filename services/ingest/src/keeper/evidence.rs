//! What follows when nobody knows whether a message was sent. The provider's own word settles it as soon as it is heard;
//! this job decides when silence has lasted long enough to mean something.
//!
//! Silence counts only while we would have heard: the *witness* is the provider's first word on another message of the
//! account that it dates later than the attempt. The window is over when every webhook of the source that arrived up to the
//! witness's arrival plus the window is committed, none of them lies among the open dead letters, and none can lie unread in
//! the queue of the dead. Our own backlog is not silence. Without a conclusion for ten minutes a person decides. By which
//! clocks, see [`store::send::evidence`].
//!
//! The same job settles what is over and does not show it: an acceptance or a receipt had to wait for a later call, and that
//! call was given back ([`store::result::settle`]).

use super::leased::{Job, JobError};
use crate::{Context, results};
use domain::{AccountId, MessageId, OnUnknown, Timestamp};
use queue::topics::DEAD;
use std::time::Duration;
use store::heartbeat;
use store::result::{self, Times};
use store::send::{self, Silence, Verdict};
use tracing::{info, warn};

/// Sends looked at in one turn.
const AT_ONCE: i64 = 500;

/// Ends evidence windows.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// No dead letter lay unread when the turn before asked.
    dead_were_read: bool,
}

impl Job for Evidence {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        // Next to always there is neither, which costs one look.
        let (unsettled, silent) = {
            let mut tx = context.deps.store.read().await?;
            (result::unsettled(&mut tx, AT_ONCE).await?, send::silences(&mut tx, 1).await?)
        };
        if !unsettled.is_empty() {
            settle(context, &unsettled).await?;
        }
        if silent.is_empty() {
            self.dead_were_read = false;
            return Ok(());
        }
        let heard = self.listen(context).await?;
        let (hold, resend) = judge(context, &heard);
        let mut accounts: Vec<AccountId> = Vec::new();
        for (verdict, silences) in [(Verdict::Hold, hold), (Verdict::Resend, resend)] {
            if silences.is_empty() {
                continue;
            }
            let mut tx = context.deps.store.begin().await?;
            let ended = send::conclude(&mut tx, &silences, verdict, context.deps.clock.now()).await?;
            tx.commit().await?;
            for one in &ended {
                let (message, what) =
                    (one.message_id, if verdict == Verdict::Hold { "held for a person" } else { "sent again" });
                warn!(message.id = %message, "No evidence of message {message} within its window: {what}");
            }
            accounts.extend(ended.iter().map(|one| one.channel_account_id));
        }
        if !accounts.is_empty() {
            context.deps.store.wake_readers();
            context.deps.dispatcher.kick(&accounts);
        }
        Ok(())
    }
}

/// Settles sends that are over, and lets their lanes go on.
async fn settle(context: &Context, messages: &[MessageId]) -> Result<(), JobError> {
    let mut tx = context.deps.store.begin().await?;
    let times = Times { now: context.deps.clock.now(), database_now: tx.database_now().await? };
    let settled = result::settle(&mut tx, messages, times).await?;
    tx.commit().await?;
    if settled.changed > 0 {
        info!(count = settled.changed, "{} sends were over before their last call was given back", settled.changed);
    }
    let mut accounts = settled.accounts;
    accounts.extend(results::look(context, &settled.learnt).await?);
    context.deps.store.wake_readers();
    context.deps.dispatcher.kick(&accounts);
    Ok(())
}

/// What there is to judge by, at one moment.
struct Heard {
    silences: Vec<Silence>,
    /// Every webhook that arrived before this is committed.
    settled_until: Option<Timestamp>,
    /// Whether every dead letter is a row by now.
    dead_are_rows: bool,
    database_now: Timestamp,
}

impl Evidence {
    /// How far we have listened is asked first, then whether dead letters lie unread, then what there is: what happens in
    /// between can only be more. Each is a transaction of its own, so that rows of `sends` are not held without their
    /// messages for longer than it takes to note a witness.
    async fn listen(&mut self, context: &Context) -> Result<Heard, JobError> {
        let store = &context.deps.store;
        let (settled_until, database_now) = {
            let mut tx = store.begin().await?;
            let settled = heartbeat::settled_until(&mut tx, context.deps.clock.now()).await?;
            (settled, tx.database_now().await?)
        };
        let dead_are_read = no_dead_letter_lies_unread(context).await;
        // What another process had taken from the queue a moment before the turn before this one is a row by now.
        let dead_are_rows = std::mem::replace(&mut self.dead_were_read, dead_are_read) && dead_are_read;
        let mut tx = store.begin().await?;
        send::note_witnesses(&mut tx).await?;
        tx.commit().await?;
        let silences = send::silences(&mut store.read().await?, AT_ONCE).await?;
        let settled_until = settled_until.map(|until| until.min(database_now));
        Ok(Heard { silences, settled_until, dead_are_rows, database_now })
    }
}

/// Whether the queue of the dead is empty. One that cannot be asked may hold anything.
async fn no_dead_letter_lies_unread(context: &Context) -> bool {
    let in_hand = context.deps.queue.stats().topics.get(DEAD.name()).map_or(0, |stats| stats.unacked);
    in_hand == 0 && matches!(context.deps.queue.depth(&DEAD, None).await, Ok(depth) if depth.ready == 0)
}

fn judge<'a>(context: &Context, heard: &'a Heard) -> (Vec<&'a Silence>, Vec<&'a Silence>) {
    let tuning = &context.deps.tuning;
    let (mut hold, mut resend) = (Vec::new(), Vec::new());
    for silence in &heard.silences {
        let over = is_over(silence, heard, tuning.evidence_window);
        let too_long = heard.database_now.since(silence.unknown_since) >= tuning.witness_timeout;
        let on_unknown = context.accounts.account(silence.channel_account_id).map(|account| account.on_unknown);
        match (over, on_unknown) {
            (true, Some(OnUnknown::Resend)) => resend.push(silence),
            (true, _) => hold.push(silence),
            (false, _) if too_long => hold.push(silence),
            (false, _) => {}
        }
    }
    (hold, resend)
}

/// Whether the provider would have spoken by now, and we would have heard it.
fn is_over(silence: &Silence, heard: &Heard, window: Duration) -> bool {
    let listened = |witness: Timestamp| heard.settled_until.is_some_and(|until| until >= witness + window);
    heard.dead_are_rows && silence.open_dead_letters == 0 && silence.witness_at.is_some_and(listened)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_seconds(1_795_339_800) + Duration::from_secs(second)
    }

    #[rstest]
    #[case::heard_enough(Some(10), Some(70), 0, true, true)]
    #[case::our_own_backlog_is_not_silence(Some(10), Some(69), 0, true, false)]
    #[case::nobody_can_say_how_far(Some(10), None, 0, true, false)]
    #[case::no_witness(None, Some(500), 0, true, false)]
    #[case::it_may_lie_among_the_dead(Some(10), Some(500), 1, true, false)]
    #[case::the_dead_may_lie_unread(Some(10), Some(500), 0, false, false)]
    fn a_window_is_over(
        #[case] witness: Option<u64>,
        #[case] settled: Option<u64>,
        #[case] dead: i64,
        #[case] dead_are_rows: bool,
        #[case] want: bool,
    ) {
        let silence = Silence {
            message_id: MessageId::new(1),
            channel_account_id: AccountId::new(1),
            source: "meta".into(),
            generation: 0,
            attempt: 1,
            unknown_since: at(0),
            witness_at: witness.map(at),
            open_dead_letters: dead,
        };
        let settled_until = settled.map(at);
        let heard = Heard { silences: Vec::new(), settled_until, dead_are_rows, database_now: at(600) };
        assert_eq!(is_over(&silence, &heard, Duration::from_secs(60)), want);
    }
}
