//! Leases of the keeper's jobs: each job runs in one ingest process at a time.

use crate::tx::on_backend;
use crate::{At, Result, Tx};
use domain::Timestamp;

const LEASE_TAKE: &str = "INSERT INTO keeper_leases (job, holder, lease_until) VALUES ($1, $2, $3)
    ON CONFLICT (job) DO UPDATE SET holder = excluded.holder, lease_until = excluded.lease_until
     WHERE keeper_leases.holder = excluded.holder OR keeper_leases.lease_until <= $4";

/// Takes or prolongs the lease of `job` until `until`. `false`: another process has it. Both times are the database's.
/// # Errors
/// Only when the database cannot be reached.
pub async fn take(tx: &mut Tx, job: &str, holder: &str, until: Timestamp, now: Timestamp) -> Result<bool> {
    let rows = on_backend!(tx, conn => sqlx::query(LEASE_TAKE)
        .bind(job).bind(holder).bind(At(until)).bind(At(now)).execute(conn).await?.rows_affected());
    Ok(rows == 1)
}

const LEASE_RELEASE: &str = "DELETE FROM keeper_leases WHERE job = $1 AND holder = $2";

/// Gives the lease of `job` up, so that another process need not wait for its end.
/// # Errors
/// Only when the database cannot be reached; the lease then ends by itself.
pub async fn release(tx: &mut Tx, job: &str, holder: &str) -> Result<()> {
    on_backend!(tx, conn => { sqlx::query(LEASE_RELEASE).bind(job).bind(holder).execute(conn).await?; });
    Ok(())
}
