//! One job, done by whoever holds its lease.

use crate::Context;
use dispatch::DispatchError;
use queue::PublishError;
use runtime::blobs::BlobError;
use std::future::Future;
use std::time::Duration;
use store::{StoreError, lease};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Something that is done every so often.
pub(super) trait Job: Send + 'static {
    /// One turn. Doing it twice, or in two processes at once after a lease ran out, must be harmless.
    fn turn(&mut self, context: &Context) -> impl Future<Output = Result<(), JobError>> + Send;
}

/// Why a turn did nothing; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum JobError {
    /// The database is away or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The queue is away.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The object store's disk.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

impl From<DispatchError> for JobError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::Store(error) => JobError::Store(error),
            DispatchError::Publish(error) => JobError::Publish(error),
        }
    }
}

impl JobError {
    /// Whether an outage explains it: nothing to tell, others do.
    fn is_outage(&self) -> bool {
        match self {
            JobError::Store(error) => error.is_transient() || error.is_serialization(),
            JobError::Publish(_) => true,
            JobError::Blobs(_) => false,
        }
    }
}

/// Does `job` every `every` while this process holds its lease.
pub(super) async fn keep(
    context: Context,
    stop: CancellationToken,
    name: &'static str,
    every: Duration,
    mut job: impl Job,
) {
    let mut hold = Hold { name, until: None };
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
        wait = match hold.renew(&context).await {
            Ok(true) => every,
            // Somebody else does it; looking for its end need not be as frequent as the job.
            Ok(false) => every.max(context.deps.tuning.keeper_lease / 4),
            Err(error) => {
                debug!(%error, job = name, "The lease of {name} cannot be asked for");
                every.max(Duration::from_millis(500))
            }
        };
        if !hold.is_held() {
            continue;
        }
        if let Err(error) = job.turn(&context).await {
            if error.is_outage() {
                debug!(%error, job = name, "{name} did nothing this time");
            } else {
                warn!(%error, job = name, "{name} did nothing this time: {error}");
            }
        }
    }
    hold.release(&context).await;
}

/// Our hold on a job's lease.
#[derive(Debug)]
struct Hold {
    name: &'static str,
    /// Until when it is ours for certain: counted from before the database was asked.
    until: Option<Instant>,
}

impl Hold {
    fn is_held(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// Takes the lease, or prolongs it once half of it is over. `false`: somebody else has it.
    async fn renew(&mut self, context: &Context) -> Result<bool, StoreError> {
        let lasts = context.deps.tuning.keeper_lease;
        let asked = Instant::now();
        if self.until.is_some_and(|until| until.saturating_duration_since(asked) > lasts / 2) {
            return Ok(true);
        }
        let mut tx = context.deps.store.begin().await?;
        let now = tx.database_now().await?;
        let ours = lease::take(&mut tx, self.name, &context.deps.instance, now + lasts, now).await?;
        tx.commit().await?;
        if ours && self.until.is_none() {
            debug!(job = self.name, "This process keeps {}", self.name);
        }
        self.until = ours.then(|| asked + lasts);
        Ok(ours)
    }

    /// Lets another process take over at once. A lease that ran out meanwhile may still be in our name: nobody needed it.
    async fn release(&self, context: &Context) {
        if self.until.is_none() {
            return;
        }
        let released = async {
            let mut tx = context.deps.store.begin().await?;
            lease::release(&mut tx, self.name, &context.deps.instance).await?;
            tx.commit().await
        };
        let outcome: Result<Result<(), StoreError>, _> = tokio::time::timeout(Duration::from_secs(2), released).await;
        if !matches!(outcome, Ok(Ok(()))) {
            debug!(job = self.name, "The lease of {} ends by itself", self.name);
        }
    }
}
