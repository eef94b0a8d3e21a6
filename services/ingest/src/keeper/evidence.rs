//! What follows when nobody knows whether a message was sent. The provider's own word settles it as soon as it is heard;
//! this job decides when silence has lasted long enough to mean something.
//!
//! Silence counts only while we would have heard: the *witness* is the provider's first word on another message of the
//! account that it dates later than the attempt. The window is over when every webhook of the source that arrived up to the
//! witness's arrival plus the window is committed and none of them lies among the open dead letters. Our own backlog is not
//! silence. Without a conclusion for ten minutes a person decides.

use super::leased::{Job, JobError};
use crate::Context;
use domain::{AccountId, OnUnknown, Timestamp};
use std::time::Duration;
use store::send::{self, Silence, Verdict};
use store::{Store, heartbeat, receipt};
use tracing::warn;

/// Sends looked at in one turn.
const AT_ONCE: i64 = 500;

/// Ends evidence windows.
pub(super) struct Evidence;

impl Job for Evidence {
    async fn turn(&mut self, context: &Context) -> Result<(), JobError> {
        // Next to always there is none, which costs one read.
        let silent = {
            let mut tx = context.deps.store.read().await?;
            send::silences(&mut tx, 1).await?
        };
        if silent.is_empty() {
            return Ok(());
        }
        let heard = listen(&context.deps.store, context.deps.clock.now()).await?;
        let (hold, resend) = judge(context, &heard);
        let mut accounts = heard.moved.clone();
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

/// What there is to judge by, at one moment.
struct Heard {
    silences: Vec<Silence>,
    /// Every webhook that arrived before this is committed.
    settled_until: Option<Timestamp>,
    database_now: Timestamp,
    /// Accounts in which a receipt that had waited finished a send.
    moved: Vec<AccountId>,
}

async fn listen(store: &Store, now: Timestamp) -> Result<Heard, JobError> {
    let mut tx = store.begin().await?;
    // How far we have listened is asked first: what commits after this can only be more.
    let settled_until = heartbeat::settled_until(&mut tx, now).await?;
    send::note_witnesses(&mut tx).await?;
    let silences = send::silences(&mut tx, AT_ONCE).await?;
    // What came while the call was still open waits under its correlation; the report takes it up, unless that report and
    // the receipt missed each other.
    let unknown: Vec<_> = silences.iter().map(|one| (one.channel_account_id, one.message_id)).collect();
    let settled = receipt::look_for(&mut tx, &unknown, now).await?.applied;
    let silences =
        silences.into_iter().filter(|one| settled.iter().all(|found| found.message != one.message_id)).collect();
    let database_now = tx.database_now().await?;
    tx.commit().await?;
    let moved = settled.iter().filter(|found| found.settled).map(|found| found.account).collect();
    Ok(Heard { silences, settled_until, database_now, moved })
}

fn judge<'a>(context: &Context, heard: &'a Heard) -> (Vec<&'a Silence>, Vec<&'a Silence>) {
    let tuning = &context.deps.tuning;
    let (mut hold, mut resend) = (Vec::new(), Vec::new());
    for silence in &heard.silences {
        let over = is_over(silence, heard.settled_until, tuning.evidence_window);
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
fn is_over(silence: &Silence, settled_until: Option<Timestamp>, window: Duration) -> bool {
    silence.open_dead_letters == 0
        && silence.witness_at.is_some_and(|witness| settled_until.is_some_and(|until| until >= witness + window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::MessageId;
    use rstest::rstest;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_seconds(1_795_339_800) + Duration::from_secs(second)
    }

    #[rstest]
    #[case::heard_enough(Some(10), Some(70), 0, true)]
    #[case::our_own_backlog_is_not_silence(Some(10), Some(69), 0, false)]
    #[case::nobody_can_say_how_far(Some(10), None, 0, false)]
    #[case::no_witness(None, Some(500), 0, false)]
    #[case::it_may_lie_among_the_dead(Some(10), Some(500), 1, false)]
    fn a_window_is_over(
        #[case] witness: Option<u64>,
        #[case] settled: Option<u64>,
        #[case] dead: i64,
        #[case] want: bool,
    ) {
        let silence = Silence {
            message_id: MessageId::new(1),
            channel_account_id: AccountId::new(1),
            source: "meta".into(),
            generation: 0,
            attempt: 1,
            unknown_since: at(0),
            attempted_at: at(0),
            witness_at: witness.map(at),
            open_dead_letters: dead,
        };
        assert_eq!(is_over(&silence, settled.map(at), Duration::from_secs(60)), want);
    }
}
