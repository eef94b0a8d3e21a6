//! A minute of kills, duplicates, batches, provider faults and unruly receipts; then every promise is checked. The run
//! proves nothing unless enough happened, so it counts what it injected and fails when that was too little.

use crate::ROOST;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use roost_tests::{Api, PHONE_NUMBER_ID, Stack, System, SystemOptions, wait};
use simulator::{FaultMix, LoadPlan, LoadReport, Stats, StatusPlan};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testkit::look::texts;

const MINUTE: Duration = Duration::from_secs(60);
const LEAST_KILLS: usize = 40;
const LEAST_AMBIGUOUS: u64 = 20;
/// After the faults end everything holds again within two minutes without a hand (design: promise 10).
const CONVERGES_WITHIN: Duration = Duration::from_secs(120);
/// Conversations that are answered.
const CUSTOMERS: usize = 24;

/// The machinery of production on shorter clocks.
const SHORT_CLOCKS: &str = "
[tuning]
call_timeout_ms = 1000
lease_ms = 2500
evidence_window_ms = 2000
witness_timeout_ms = 10000
keeper_interval_ms = 200
keeper_lease_ms = 2000
receipts_interval_ms = 500
redispatch_ms = 2000
reconnect_first_ms = 50
reconnect_most_ms = 500
retry_scale = 0.02
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_kills_of_random_roles_break_no_promise_on_postgres_rabbitmq() {
    let roles = [
        ("ingress", "ingress"),
        ("ingest-1", "ingest"),
        ("ingest-2", "ingest"),
        ("sender-1", "sender"),
        ("sender-2", "sender"),
        ("inbox", "inbox"),
    ];
    survive(SystemOptions::new(Stack::PostgresRabbitMq).with_roles(&roles), 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_kills_of_the_one_process_break_no_promise_on_sqlite_embedded() {
    survive(SystemOptions::new(Stack::SqliteEmbedded), 11).await;
}

async fn survive(mut options: SystemOptions, seed: u64) {
    options.more_config = SHORT_CLOCKS.into();
    options.simulator.statuses = StatusPlan::unruly();
    options.simulator.latency = Duration::from_millis(20);
    options.simulator.seed = seed;
    let mut system = System::start(ROOST, options).await.unwrap();
    let conversations = open_conversations(&system).await;

    system.simulator.set_faults(FaultMix::named("chaos").expect("a mix of that name"));
    let load = system.simulator.start_load(LoadPlan {
        per_second: 25.0,
        duplicates: 0.2,
        batched: 0.2,
        seed,
        ..LoadPlan::default()
    });
    let stop = Arc::new(AtomicBool::new(false));
    let answering: Vec<_> = conversations
        .iter()
        .map(|(phone, id)| tokio::spawn(answer(system.api(), *id, phone.clone(), stop.clone(), seed)))
        .collect();
    let kills = kill_for(MINUTE, &mut system, seed).await;
    stop.store(true, Ordering::Relaxed);
    let load = load.stop().await;
    let mut accepted_sends = 0;
    for task in answering {
        accepted_sends += task.await.unwrap();
    }
    let under_faults = system.simulator.stats();
    system.simulator.set_faults(FaultMix::default());

    converge(&system).await;
    let survived = Survived { seed, kills, load, stats: under_faults, accepted_sends };
    survived.assert_enough();
    check(&system, accepted_sends).await;
    eprintln!("{survived}");
}

/// What a run has been through.
struct Survived {
    seed: u64,
    /// By process.
    kills: BTreeMap<String, usize>,
    load: LoadReport,
    /// When the faults ended.
    stats: Stats,
    accepted_sends: usize,
}

impl Survived {
    fn assert_enough(&self) {
        let kills: usize = self.kills.values().sum();
        assert!(kills >= LEAST_KILLS, "only {kills} kills: this run proves little\n{self}");
        let ambiguous = self.stats.calls.ambiguous;
        assert!(ambiguous >= LEAST_AMBIGUOUS, "only {ambiguous} ambiguous answers: this run proves little\n{self}");
        let LoadReport { duplicates, batches, forged, .. } = self.load;
        assert!(duplicates.min(batches).min(forged) > 0, "this run proves little\n{self}");
    }

    /// Answers that were neither an acceptance nor ambiguous, by their names.
    fn refusals(&self) -> BTreeMap<&str, u64> {
        let refused = |name: &str| name.starts_with("error_") || name.starts_with("http_") || name == "html_503";
        self.stats.calls.by_verdict.iter().filter(|(name, _)| refused(name)).map(|(name, n)| (&**name, *n)).collect()
    }
}

/// One line, so that a green run says what it was worth.
impl fmt::Display for Survived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, kills, load, stats: Stats { calls, webhooks, .. }, accepted_sends } = self;
        let list = |counts: &mut dyn Iterator<Item = (&str, u64)>| -> String {
            counts.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
        };
        let refusals = self.refusals();
        write!(
            f,
            "chaos, seed {seed}: survived {} kills ({}); {} ambiguous answers to {} calls ({} of them taken), {} refusals ({}); \
             {} messages in with {} duplicates, {} batches, {} out of order, {} forgeries, {} webhook tries unanswered or \
             refused; {accepted_sends} messages out",
            kills.values().sum::<usize>(),
            list(&mut kills.iter().map(|(name, n)| (name.as_str(), *n as u64))),
            calls.ambiguous,
            calls.calls,
            calls.ambiguous_accepted,
            refusals.values().sum::<u64>(),
            list(&mut refusals.iter().map(|(name, n)| (*name, *n))),
            load.sent.len(),
            load.duplicates,
            load.batches,
            load.reordered,
            load.forged,
            webhooks.failed_tries,
        )
    }
}

/// Every customer writes once, so that the window is open and the conversation exists.
async fn open_conversations(system: &System) -> HashMap<String, i64> {
    let numbers: Vec<String> = (0..CUSTOMERS).map(|n| format!("35191200{n:04}")).collect();
    for number in &numbers {
        assert!(system.simulator.customer_writes(number, "Customer", "Hello").done().await.acknowledged);
    }
    let api = system.api();
    let all = wait::until("every conversation", MINUTE, async || {
        let found: HashMap<String, i64> = api
            .conversations()
            .await?
            .into_iter()
            .filter_map(|row| Some((row.contact.phone?.trim_start_matches('+').to_owned(), row.id)))
            .filter(|(phone, _)| numbers.contains(phone))
            .collect();
        Ok((found.len() == CUSTOMERS).then_some(found))
    });
    all.await.unwrap()
}

/// Sends 1, 2, 3 … to one conversation, each repeated under its own client id until it is accepted.
async fn answer(api: Api, conversation: i64, phone: String, stop: Arc<AtomicBool>, seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed ^ u64::try_from(conversation).unwrap());
    let mut accepted = 0;
    while !stop.load(Ordering::Relaxed) {
        let text = format!("{}", accepted + 1);
        let client_id = format!("{phone}-{text}");
        // Once begun it must be accepted: a client that was cut off repeats the same intent.
        loop {
            match api.send_text(conversation, &text, &client_id).await {
                Ok((code, _)) if code == 202 => break,
                Ok((code, body)) if code.is_client_error() => panic!("{code} {body}"),
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        accepted += 1;
        tokio::time::sleep(Duration::from_millis(rng.random_range(200..2500))).await;
    }
    accepted
}

/// How often each process was killed.
async fn kill_for(time: Duration, system: &mut System, seed: u64) -> BTreeMap<String, usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    let names: Vec<String> = system.processes.iter().map(|process| process.name.clone()).collect();
    let (begun, mut kills) = (Instant::now(), BTreeMap::new());
    while begun.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..1600))).await;
        let name = names.choose(&mut rng).expect("a process");
        let down_for = Duration::from_millis(rng.random_range(0..400));
        let process = system.process(name);
        process.kill().unwrap();
        *kills.entry(name.clone()).or_default() += 1;
        tokio::time::sleep(down_for).await;
        process.run().unwrap();
    }
    kills
}

/// Waits until nothing is on its way any more: webhooks delivered, sends ended or held.
async fn converge(system: &System) {
    assert!(system.simulator.settled(CONVERGES_WITHIN).await, "webhooks are still refused\n{}", system.last_lines());
    let under_way = wait::until("every send's end", CONVERGES_WITHIN, async || {
        let states = texts(
            &system.store_url,
            "SELECT state || ' ' || CAST(message_id AS TEXT) FROM sends WHERE state <> 'HELD'",
        )
        .await?;
        Ok(states.is_empty().then_some(()))
    });
    if let Err(error) = under_way.await {
        let stuck = texts(
            &system.store_url,
            "SELECT state || ' message ' || CAST(message_id AS TEXT) || ' attempt ' || CAST(attempt AS TEXT) || ' due ' || CAST(due_at AS TEXT)
               FROM sends WHERE state <> 'HELD'",
        );
        panic!("{error}: {:#?}\n{}", stuck.await.unwrap(), system.last_lines());
    }
    // Receipts that came after: everything the provider was told 200 for is in, and applied.
    let quiet = wait::until("the last receipts", CONVERGES_WITHIN, async || {
        if !system.simulator.settled(Duration::from_secs(1)).await {
            return Ok(None);
        }
        let accepted: HashSet<String> = system.simulator.calls().into_iter().filter_map(|call| call.wamid).collect();
        let read = texts(
            &system.store_url,
            "SELECT provider_message_id FROM messages WHERE direction = 'OUTBOUND' AND status = 'READ'",
        )
        .await?;
        Ok((read.iter().filter(|id| accepted.contains(*id)).count() == accepted.len()).then_some(()))
    });
    if let Err(error) = quiet.await {
        let accepted: Vec<_> = system.simulator.calls().into_iter().filter(|call| call.wamid.is_some()).collect();
        let rows = texts(
            &system.store_url,
            "SELECT coalesce(provider_message_id, '-') || ' ' || CAST(id AS TEXT) || ' ' || status FROM messages WHERE direction = 'OUTBOUND' AND status <> 'READ'",
        );
        panic!("{error}: {} accepted; not READ: {:#?}\n{}", accepted.len(), rows.await.unwrap(), system.last_lines());
    }
}

async fn check(system: &System, accepted_sends: usize) {
    // Forgeries: refused at the door, and nothing of them came in by another way.
    let stats = system.simulator.stats();
    assert!(stats.webhooks.forged_refused > 0, "no forgery was refused: this run proves little");
    assert_eq!(stats.webhooks.forged_accepted, 0, "forged webhooks that were answered 2xx");
    let forged = "SELECT CAST(id AS TEXT) FROM messages WHERE direction = 'INBOUND' AND body = 'forged'";
    assert_eq!(texts(&system.store_url, forged).await.unwrap(), [""; 0], "forged messages that were stored");
    // The provider's limit, counted by the provider over every sliding second.
    assert_eq!(stats.calls.rate_violations, 0, "calls above the account's rate");

    // Inbound: what was answered 200 is stored once.
    let stored =
        texts(&system.store_url, "SELECT provider_message_id FROM messages WHERE direction = 'INBOUND'").await.unwrap();
    let once: HashSet<&String> = stored.iter().collect();
    assert_eq!(once.len(), stored.len(), "doubled");
    let acknowledged: Vec<_> =
        system.simulator.acknowledged().into_iter().filter(|item| item.item.what == "message").collect();
    let lost: Vec<_> = acknowledged.iter().filter(|item| !once.contains(&item.item.id)).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), acknowledged.len());
    assert!(acknowledged.len() > 500, "only {} webhooks: this run proves little", acknowledged.len());
    let dead = texts(
        &system.store_url,
        "SELECT error_class || ': ' || coalesce(error_message, '') FROM dead_letters WHERE state = 'OPEN'",
    )
    .await
    .unwrap();
    assert_eq!(dead, [""; 0], "dead letters");

    // Outbound: one row per accepted intent, one acceptance per generation, in order, one at a time.
    let rows =
        texts(&system.store_url, "SELECT CAST(id AS TEXT) FROM messages WHERE direction = 'OUTBOUND'").await.unwrap();
    assert_eq!(rows.len(), accepted_sends);
    let (twice, overlaps) = (system.simulator.accepted_twice(), system.simulator.overlaps());
    assert!(twice.is_empty(), "second acceptances: {twice:?}");
    assert!(overlaps.is_empty(), "overlapping calls: {overlaps:?}");
    for n in 0..CUSTOMERS {
        let number = format!("35191200{n:04}");
        let order: Vec<u32> =
            system.simulator.order_on(PHONE_NUMBER_ID, &number).iter().map(|text| text.parse().unwrap()).collect();
        assert!(order.windows(2).all(|pair| pair[0] < pair[1]), "{number}: {order:?}");
    }
    // Statuses and everything else the database can be asked.
    let mut tx = system.store.read().await.unwrap();
    assert_eq!(store::promises::audit(&mut tx, store::promises::PROMISES).await.unwrap(), []);
    assert_eq!(store::promises::audit(&mut tx, store::promises::SETTLED).await.unwrap(), []);
}
