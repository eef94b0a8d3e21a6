//! A line to PostgreSQL on which nobody waits for ever. A server that is suspended, or cut off by a network that swallows
//! what it is given, answers nothing: its own `statement_timeout` least of all. So every statement has a deadline of ours,
//! and a line on which the end of a statement was not heard is dropped, never given to somebody else.

use crate::Result;
use futures_util::future::{self, BoxFuture};
use futures_util::stream::{self, BoxStream, Stream};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgQueryResult, PgRow, PgStatement, PgTypeInfo, Postgres};
use sqlx::{Either, Execute, Executor, SqlStr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Sleep, sleep, timeout};

type Answer<T> = std::result::Result<T, sqlx::Error>;

/// A connection of the pool; what statements run on.
#[derive(Debug)]
pub struct Line {
    /// `None` only while it is dropped.
    conn: Option<PoolConnection<Postgres>>,
    /// Longest wait for the end of a statement.
    patience: Duration,
    /// A statement was begun whose end was not heard: nobody knows what the server will say next.
    unheard: bool,
    /// `BEGIN` was said, and not how it ends.
    in_transaction: bool,
}

/// The server did not answer in time; inside an `sqlx::Error`, since that is what an executor says.
#[derive(Debug, thiserror::Error)]
#[error("the database does not answer")]
struct Silence;

fn silence() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, Silence))
}

/// Whether this is what a line says when its patience is at an end.
pub(crate) fn is_silence(error: &sqlx::Error) -> bool {
    let sqlx::Error::Io(error) = error else { return false };
    let Some(inner) = error.get_ref() else { return false };
    inner.is::<Silence>()
}

/// What the server itself says leaves the line usable.
fn is_heard<T>(answer: &Answer<T>) -> bool {
    !matches!(answer, Err(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)))
}

impl Line {
    /// Takes a line out of the pool, which has a deadline of its own for that.
    pub(crate) async fn take(pool: &PgPool, patience: Duration) -> Result<Self> {
        let conn = Some(pool.acquire().await?);
        Ok(Self { conn, patience, unheard: false, in_transaction: false })
    }

    /// Says `BEGIN …`.
    pub(crate) async fn begin(&mut self, how: &'static str) -> Result<()> {
        self.in_transaction = true;
        self.execute(how).await?;
        Ok(())
    }

    /// Says `COMMIT` or `ROLLBACK`, unless every statement commits by itself.
    pub(crate) async fn end(&mut self, how: &'static str) -> Result<()> {
        if self.in_transaction {
            self.execute(how).await?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// The connection, for one statement; from here on its end is not heard until somebody says so.
    fn ask(&mut self) -> Answer<(&mut PgConnection, &mut bool, Duration)> {
        let Line { conn, patience, unheard, .. } = self;
        let conn = conn.as_deref_mut().ok_or(sqlx::Error::PoolClosed)?;
        *unheard = true;
        Ok((conn, unheard, *patience))
    }
}

/// One answer, as long as patience lasts.
async fn hear<T>(answer: impl Future<Output = Answer<T>>, unheard: &mut bool, patience: Duration) -> Answer<T> {
    let answer = timeout(patience, answer).await.unwrap_or_else(|_| Err(silence()));
    *unheard = !is_heard(&answer);
    answer
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        let (patience, in_transaction) = (self.patience, self.in_transaction);
        match Handle::try_current() {
            Ok(runtime) if !self.unheard => {
                runtime.spawn(async move {
                    if in_transaction && !matches!(timeout(patience, conn.execute("ROLLBACK")).await, Ok(Ok(_))) {
                        return hang_up(conn);
                    }
                    // The pool asks for a sign of life first, and has no deadline for it.
                    let _ = timeout(patience, conn.return_to_pool()).await;
                });
            }
            _ => hang_up(conn),
        }
    }
}

/// Closes the connection at once, without a goodbye that nobody would answer: what is not carried out is dropped.
fn hang_up(mut conn: PoolConnection<Postgres>) {
    drop(conn.return_to_pool());
}

impl<'c> Executor<'c> for &'c mut Line {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Answer<Either<PgQueryResult, PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.ask() {
            Ok((conn, unheard, patience)) => {
                let (rows, until) = (conn.fetch_many(query), Box::pin(sleep(patience)));
                Box::pin(Heard { rows, until, unheard })
            }
            Err(error) => Box::pin(stream::iter([Err(error)])),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Answer<Option<PgRow>>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self.ask() {
            Ok((conn, unheard, patience)) => Box::pin(hear(conn.fetch_optional(query), unheard, patience)),
            Err(error) => Box::pin(future::ready(Err(error))),
        }
    }

    fn prepare_with<'e>(self, sql: SqlStr, parameters: &'e [PgTypeInfo]) -> BoxFuture<'e, Answer<PgStatement>>
    where
        'c: 'e,
    {
        match self.ask() {
            Ok((conn, unheard, patience)) => Box::pin(hear(conn.prepare_with(sql, parameters), unheard, patience)),
            Err(error) => Box::pin(future::ready(Err(error))),
        }
    }
}

/// The answers to one statement, as long as patience lasts.
struct Heard<'e> {
    rows: BoxStream<'e, Answer<Either<PgQueryResult, PgRow>>>,
    until: Pin<Box<Sleep>>,
    unheard: &'e mut bool,
}

impl Stream for Heard<'_> {
    type Item = Answer<Either<PgQueryResult, PgRow>>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let heard = self.get_mut();
        let Poll::Ready(next) = heard.rows.as_mut().poll_next(context) else {
            return heard.until.as_mut().poll(context).map(|()| Some(Err(silence())));
        };
        match &next {
            None => *heard.unheard = false,
            Some(answer @ Err(_)) => *heard.unheard = !is_heard(answer),
            Some(Ok(_)) => {}
        }
        Poll::Ready(next)
    }
}
