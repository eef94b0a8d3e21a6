//! One consumer per account: references come in, acknowledgements go out, both from one task.

use crate::Shared;
use crate::desk::Taken;
use domain::AccountId;
use queue::Settle;
use queue::topics::OUTBOUND;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Deliveries held for one account: as many as the references may be, shared among the accounts. Each carries 1 to 16 of them,
/// and under way they carry few: what a batch of results frees. That the references are no flood is dispatch's care, which
/// has no more than two seconds of an account's rate on their way.
fn prefetch(references: usize, accounts: usize) -> u16 {
    u16::try_from(references / accounts.max(1)).unwrap_or(u16::MAX).max(8)
}

/// Takes an account's references until `stop` is cancelled, then gives back what is not acknowledged: rows that are claimed
/// cannot be claimed by whoever gets their references, and the others are free.
pub(crate) async fn run(shared: Arc<Shared>, account: AccountId, stop: CancellationToken) {
    let Some(configured) = shared.directory.account(account) else { return };
    let prefetch = prefetch(shared.deps.tuning.sender_prefetch, shared.directory.iter().count());
    let mut consumer = shared.deps.queue.consume(&OUTBOUND, Some(&configured.name), prefetch).await;
    let (settle, mut settled) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(first) = settled.recv() => {
                let mut tickets = vec![first];
                while let Ok(next) = settled.try_recv() {
                    tickets.push(next);
                }
                consumer.settle_tickets(tickets).await;
            }
            delivery = consumer.next() => {
                let Some(delivery) = delivery else { break };
                match delivery.item {
                    Ok(refs) if !refs.items.is_empty() => {
                        let messages = refs.items.iter().map(|one| one.message);
                        shared.desk.add(account, Taken::all(messages, delivery.ticket, &settle));
                    }
                    Ok(_) => delivery.ticket.settle(Settle::Done).await,
                    Err(undecodable) => {
                        // The row is the truth: it is published again in a minute.
                        let reason = undecodable.to_string();
                        warn!(reason, account = %configured.name, "A reference cannot be read");
                        delivery.ticket.settle(Settle::DeadLetter { reason_code: "UNDECODABLE".to_owned(), reason }).await;
                    }
                }
            }
        }
    }
    consumer.close(Vec::new()).await;
}

#[cfg(test)]
mod tests {
    use super::prefetch;

    #[test]
    fn accounts_share_the_prefetch_and_none_is_left_without() {
        assert_eq!((prefetch(512, 1), prefetch(512, 4), prefetch(512, 1000)), (512, 128, 8));
        assert_eq!(prefetch(usize::MAX, 1), u16::MAX);
    }
}
