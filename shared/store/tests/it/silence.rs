//! A server that says nothing: suspended, or behind a network that swallows everything. Nobody waits for it for ever, and a
//! connection on which an answer is missing is never used again.

use std::time::{Duration, Instant};
use store::{Store, StoreError, StoreOptions, StoreUrl, Tx};
use testkit::database::test_options;
use testkit::proxy::Proxy;
use testkit::servers::PrivatePostgres;

const CONNECTIONS: u32 = 4;
const STATEMENT: Duration = Duration::from_millis(400);

fn options(url: String) -> StoreOptions {
    StoreOptions {
        max_connections: CONNECTIONS,
        acquire_timeout: Duration::from_secs(1),
        statement_timeout: STATEMENT,
        ..test_options(StoreUrl::Postgres(url))
    }
}

/// Says its error and how long it took.
async fn timed<T>(work: impl Future<Output = Result<T, StoreError>>) -> (Option<StoreError>, Duration) {
    let began = Instant::now();
    // Far beyond every deadline: what is still waiting then waits for ever.
    let outcome = tokio::time::timeout(Duration::from_secs(20), work).await.expect("somebody waits for ever");
    (outcome.err(), began.elapsed())
}

fn is_silence(what: &str, (error, took): (Option<StoreError>, Duration)) {
    let error = error.unwrap_or_else(|| panic!("{what}: a suspended server answered"));
    assert!(error.is_transient(), "{what}: {error:?}");
    assert!(!error.is_items_fault(), "{what}: {error:?}");
    assert!(took < Duration::from_secs(5), "{what}: {took:?}");
}

async fn write(tx: &mut Tx) -> Result<(), StoreError> {
    let Tx::Postgres(tx) = tx else { panic!("PostgreSQL") };
    sqlx::query("INSERT INTO kept DEFAULT VALUES").execute(tx.conn()).await?;
    Ok(())
}

async fn kept(store: &Store) -> i64 {
    let mut tx = store.read().await.unwrap();
    let Tx::Postgres(tx) = &mut tx else { panic!("PostgreSQL") };
    sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(tx.conn()).await.unwrap()
}

/// Every connection there may be, at the same time, each of them answering.
async fn all_connections_work(store: &Store) {
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(store.begin().await.unwrap());
    }
    for tx in &mut all {
        tx.ping().await.unwrap();
    }
    assert_eq!(store.pool_size().0, CONNECTIONS);
}

async fn with_a_table(store: &Store) {
    let mut tx = store.autocommit().await.unwrap();
    let Tx::Postgres(tx) = &mut tx else { panic!("PostgreSQL") };
    sqlx::query("CREATE TABLE kept (id bigint GENERATED ALWAYS AS IDENTITY)").execute(tx.conn()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_ever_for_a_suspended_server_and_everything_works_when_it_goes_on() {
    let server = PrivatePostgres::start().await.unwrap();
    let store = Store::open(&options(server.url())).await.unwrap();
    with_a_table(&store).await;
    all_connections_work(&store).await;
    // One in each state a caller can be in, and one idle.
    let (mut before_a_statement, mut before_commit) = (store.begin().await.unwrap(), store.begin().await.unwrap());
    write(&mut before_commit).await.unwrap();
    let idle_and_dropped = store.begin().await.unwrap();
    server.suspend().unwrap();

    is_silence("a statement", timed(write(&mut before_a_statement)).await);
    is_silence("a commit", timed(before_commit.commit()).await);
    is_silence("a begin on an idle connection", timed(store.begin()).await);
    is_silence("a begin on a new connection", timed(store.begin()).await);
    is_silence("readiness", timed(store.ping()).await);
    is_silence("the schema", timed(store.schema_state()).await);
    drop((before_a_statement, idle_and_dropped));

    server.resume().unwrap();
    all_connections_work(&store).await;
    let before = kept(&store).await;
    let mut tx = store.autocommit().await.unwrap();
    write(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(kept(&store).await, before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_go_back_into_a_black_hole_do_not_use_the_pool_up() {
    let server = PrivatePostgres::start().await.unwrap();
    let proxy = Proxy::start(server.port()).await.unwrap();
    let url = server.url().replace(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()));
    let store = Store::open(&options(url)).await.unwrap();
    with_a_table(&store).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut tx = store.begin().await.unwrap();
        write(&mut tx).await.unwrap();
        open.push(tx);
    }
    proxy.stall(true);
    drop(open);
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.pool_size().0 > 0 {
        assert!(Instant::now() < deadline, "{} connections still wait", store.pool_size().0);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    proxy.stall(false);
    all_connections_work(&store).await;
    assert_eq!(kept(&store).await, 0, "rolled back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_its_caller_gave_up_never_answers_the_next_one() {
    let server = PrivatePostgres::start().await.unwrap();
    let store = Store::open(&options(server.url())).await.unwrap();
    with_a_table(&store).await;
    for _ in 0..3 * CONNECTIONS {
        let mut tx = store.begin().await.unwrap();
        let Tx::Postgres(slow) = &mut tx else { panic!("PostgreSQL") };
        let asked = sqlx::query("SELECT pg_sleep(0.3)").execute(slow.conn());
        assert!(tokio::time::timeout(Duration::from_millis(10), asked).await.is_err());
        drop(tx);
        assert_eq!(kept(&store).await, 0);
    }
    all_connections_work(&store).await;
}
