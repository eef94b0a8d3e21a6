//! The sender beside a plain job loop and beside a bare HTTP client: messages a second to a provider that answers after
//! 50 ms, until the database says SENT.

use super::{Options, say};
use crate::bed::{Bed, PLAIN_OUTBOUND, PLAIN_RESULTS, Place};
use crate::cpu::Usage;
use crate::plain::client::Calls;
use crate::preload;
use crate::process::{self, Process};
use crate::provider::{LATENCY, Provider};
use crate::report::{Section, Target, cell, short};
use crate::rows::{ATTEMPTS, Rows};
use crate::stats::{Run, Runs};
use crate::webhooks::{ACCOUNTS, CONTACTS};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Calls in flight.
const CONCURRENCY: [u64; 2] = [256, 1024];

#[derive(Default)]
struct Measured {
    bare: Runs,
    roost: Runs,
    plain: Runs,
}

/// Runs the figure.
pub(crate) async fn run(bed: &mut Bed, options: Options) -> Result<Section> {
    let mut measured = [Measured::default(), Measured::default()];
    for round in 1..=options.rounds {
        for (concurrency, measured) in CONCURRENCY.into_iter().zip(&mut measured) {
            let run = bare(bed, concurrency, options.sends).await?;
            told(round, "bare client", concurrency, &run);
            measured.bare.add(run);
            let run = roost(bed, concurrency, options.sends).await?;
            told(round, "Roost", concurrency, &run);
            measured.roost.add(run);
            let run = plain(bed, concurrency, options.sends).await?;
            told(round, "plain", concurrency, &run);
            measured.plain.add(run);
        }
    }
    Ok(section(&measured, options))
}

fn told(round: u32, design: &str, concurrency: u64, run: &Run) {
    let (rate, ours, database) = (run.rate(), run.ours_us(), run.database_us());
    say(&format!(
        "  round {round}: {design} at {concurrency}: {rate:.0} sends/s, {ours:.0} µs in process, {database:.0} µs in PostgreSQL"
    ));
}

async fn bare(bed: &Bed, concurrency: u64, calls: usize) -> Result<Run> {
    let provider = Provider::start(bed.folder()).await?;
    let (api, concurrency, count) = (provider.address.to_string(), concurrency.to_string(), calls.to_string());
    let arguments = ["bare-client", "--api", &api, "--concurrency", &concurrency, "--calls", &count];
    let mut process = Process::start("bare-client", process::ourselves(&arguments)?, bed.folder())?;
    let status = process.ended(Duration::from_secs(120)).await?;
    ensure!(status.success(), "the bare client failed:\n{}", process.last_words());
    let said: Calls = serde_json::from_str(process.printed().trim()).context("what the bare client says")?;
    provider.check(calls as u64, false).await?;
    let usage = Usage { ours: Duration::from_micros(said.cpu_us), ..Usage::default() };
    let took = Duration::from_secs_f64(said.seconds);
    Ok(Run { items: said.calls, took, usage, resident_mb: Some(said.resident_mb), ..Run::default() })
}

/// Messages to be sent, one after the other round the conversations, each lane in its order.
const QUEUE_MESSAGES: &str = "INSERT INTO messages (conversation_id, contact_id, lead_id, channel_account_id, direction, channel,
        type, body, search_text, status, origin, occurred_at, created_at, queued_at)
    SELECT c.id, c.contact_id, c.lead_id, c.channel_account_id, 'OUTBOUND', c.channel, 'text', t.body, t.body, 'QUEUED', 'AGENT', now(), now(), now()
      FROM (SELECT *, row_number() OVER (ORDER BY id) AS place, count(*) OVER () AS places FROM conversations) AS c
      CROSS JOIN LATERAL generate_series(c.place, current_setting('bench.sends')::bigint, c.places) AS n
      CROSS JOIN LATERAL (SELECT 'an answer of about as many words as people write, number ' || n AS body) AS t
     ORDER BY n";
const QUEUE_SENDS: &str = "INSERT INTO sends (message_id, conversation_id, channel_account_id, seq, state, due_at, deadline_at, dispatched_at, created_at)
    SELECT id, conversation_id, channel_account_id, row_number() OVER (PARTITION BY conversation_id ORDER BY id),
           current_setting('bench.state'), now(), now() + interval '1 day',
           CASE current_setting('bench.state') WHEN 'DISPATCHED' THEN now() END, now()
      FROM messages WHERE status = 'QUEUED'";

/// A database with `sends` messages to be sent, in this state of their lanes.
async fn with_sends(bed: &mut Bed, sends: usize, state: &str) -> Result<(String, Rows)> {
    let database = bed.fresh_database().await?;
    let mut rows = Rows::postgres(&bed.database(&database)).await?;
    rows.set("bench.sends", &sends.to_string()).await?;
    rows.set("bench.state", state).await?;
    rows.execute(QUEUE_MESSAGES).await?;
    rows.execute(QUEUE_SENDS).await?;
    rows.execute("ANALYZE messages, sends").await?;
    rows.execute("CHECKPOINT").await?;
    Ok((database, rows))
}

/// The sender, with the ingest process that applies its results and frees the next message of each lane.
async fn roost(bed: &mut Bed, concurrency: u64, sends: usize) -> Result<Run> {
    let (database, mut rows) = with_sends(bed, sends, "WAITING").await?;
    let provider = Provider::start(bed.folder()).await?;
    let start = rows.start(ATTEMPTS).await?;
    let place = Place::Servers(bed.database(&database));
    let tuning = [("sender_concurrency", concurrency), ("sender_prefetch", 2 * concurrency)];
    let api = Some(provider.address);
    let mut sender = bed.roost(&["sender"], &place, api, &tuning).await?;
    let mut ingest = bed.roost(&["ingest"], &place, api, &tuning).await?;
    let watched = bed.watched(&[&sender.process, &ingest.process]);
    let processes = &mut [&mut sender.process, &mut ingest.process];
    let filled = rows.watch(ATTEMPTS, start, sends, &watched, processes).await?;
    let resident_mb = Some(sender.process.resident_mb()?);
    let run = Run { items: filled.rows, took: filled.took, usage: filled.usage, resident_mb, ..Run::default() };
    sender.process.stop().await?;
    ingest.process.stop().await?;
    provider.check(sends as u64, true).await?;
    finish(bed, &database, rows, sends).await?;
    Ok(run)
}

async fn plain(bed: &mut Bed, concurrency: u64, sends: usize) -> Result<Run> {
    let (database, mut rows) = with_sends(bed, sends, "DISPATCHED").await?;
    let references = rows.texts("SELECT message_id::text FROM sends ORDER BY message_id").await?;
    preload::publish_each(&bed.amqp(), PLAIN_OUTBOUND, references.into_iter().map(String::into_bytes)).await?;
    let provider = Provider::start(bed.folder()).await?;
    let start = rows.start(ATTEMPTS).await?;
    let (amqp, url) = (bed.amqp(), bed.database(&database));
    let (api, concurrency) = (provider.address.to_string(), concurrency.to_string());
    let queues = ["--queue", PLAIN_OUTBOUND, "--results", PLAIN_RESULTS];
    let places = ["--amqp", &amqp, "--database", &url, "--api", &api, "--concurrency", &concurrency];
    let arguments: Vec<&str> = ["plain-sender"].into_iter().chain(queues).chain(places).collect();
    let mut process = Process::start("plain-sender", process::ourselves(&arguments)?, bed.folder())?;
    let watched = bed.watched(&[&process]);
    let filled = rows.watch(ATTEMPTS, start, sends, &watched, &mut [&mut process]).await?;
    let resident_mb = Some(process.resident_mb()?);
    let run = Run { items: filled.rows, took: filled.took, usage: filled.usage, resident_mb, ..Run::default() };
    drop(process);
    provider.check(sends as u64, false).await?;
    finish(bed, &database, rows, sends).await?;
    Ok(run)
}

/// Every message is SENT and nothing is left in a lane.
async fn finish(bed: &Bed, database: &str, mut rows: Rows, sends: usize) -> Result<()> {
    let sent =
        rows.number("SELECT count(*) FROM messages WHERE status = 'SENT' AND provider_message_id IS NOT NULL").await?;
    let left = rows.number("SELECT count(*) FROM sends").await?;
    ensure!(sent == i64::try_from(sends)? && left == 0, "{sent} of {sends} are SENT, {left} are left in their lanes");
    rows.close().await?;
    bed.delete_queues().await?;
    bed.drop_database(database).await
}

fn section(measured: &[Measured; 2], options: Options) -> Section {
    let mut section = Section::new(
        "sender",
        &["design", "in flight", "sends/s", "µs in process", "µs in PostgreSQL", "µs in broker", "MB"],
    );
    section.parameter(format!(
        "{} messages waiting in {CONTACTS} conversations of {ACCOUNTS} accounts without a limit that matters, {} rounds; a \
         provider (the simulator, in a process of its own) that answers after {} ms and has accepted each exactly once at \
         the end. From the first message SENT to the last, all of them in the database. Roost: a sender process, and an \
         ingest process that applies its results and frees the next message of each conversation (µs in process: both, MB: \
         the sender's). Plain: claim, call, one statement for the outcome, a confirmed status, acknowledge, over a pool of \
         eight connections, all messages in its queue before the clock starts, no order within a conversation.",
        options.sends,
        options.rounds,
        LATENCY.as_millis()
    ));
    for (concurrency, measured) in CONCURRENCY.into_iter().zip(measured) {
        let designs = [
            ("bare HTTP client", &measured.bare),
            ("Roost sender", &measured.roost),
            ("plain job loop", &measured.plain),
        ];
        for (title, runs) in designs {
            let uses = |text: String| if title.starts_with("bare") { "–".to_owned() } else { text };
            section.design(vec![
                title.to_owned(),
                concurrency.to_string(),
                cell(runs.median(Run::rate)),
                short(runs.median(Run::ours_us)),
                uses(short(runs.median(Run::database_us))),
                uses(short(runs.median(Run::broker_us))),
                short(runs.median_of_some(|run| run.resident_mb)),
            ]);
        }
    }
    let [at_256, at_1024] = measured;
    section.figure("256 in flight ÷ bare client", at_256.roost.ratio(&at_256.bare, Run::rate), Target::AtLeast(0.75));
    section.figure(
        "1024 in flight ÷ bare client",
        at_1024.roost.ratio(&at_1024.bare, Run::rate),
        Target::AtLeast(0.42),
    );
    section.figure("1024 in flight ÷ plain", at_1024.roost.ratio(&at_1024.plain, Run::rate), Target::AtLeast(3.0));
    let resident = at_1024.roost.median_of_some(|run| run.resident_mb);
    section.figure("resident memory of the sender with 1024 in flight, MB", resident, Target::AtMost(80.0));
    section
}
