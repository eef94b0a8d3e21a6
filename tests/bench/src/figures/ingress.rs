//! Ingress beside bare hyper and beside one publish per webhook: requests a second that are answered 200 only once the
//! broker has confirmed them.

use super::{Options, say};
use crate::bed::{APP_SECRET, Bed, PLAIN_WEBHOOKS, Place};
use crate::load::{ClosedLoop, LoadResult, open_loop, signed_post};
use crate::process::{self, Process, free_address};
use crate::report::{Section, Target, cell, latency, short};
use crate::stats::{Run, Runs};
use crate::webhooks::{INGRESS_BODY, for_ingress};
use anyhow::{Result, ensure};
use domain::wire::{Frame, WebhookBatch, Wire};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Keep-alive connections of the closed loop.
const CONNECTIONS: [usize; 2] = [256, 64];
/// And of the open loop.
const OPEN_CONNECTIONS: usize = 128;
/// Requests a second at which latency is compared, besides the plain design's limit.
const RATE: f64 = 10_000.0;
/// The limit of a design: this share of what it did in a closed loop.
const LIMIT: f64 = 0.8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Design {
    Bare,
    Roost,
    Plain,
}

impl Design {
    const ALL: [Design; 3] = [Design::Bare, Design::Roost, Design::Plain];

    fn title(self) -> &'static str {
        match self {
            Design::Bare => "bare hyper, one thread, answers 200",
            Design::Roost => "Roost ingress",
            Design::Plain => "plain: one publish per webhook",
        }
    }

    fn queue(self) -> &'static str {
        if self == Design::Roost { "roost.webhooks" } else { PLAIN_WEBHOOKS }
    }

    async fn start(self, bed: &Bed) -> Result<(Process, SocketAddr)> {
        if self == Design::Roost {
            // Ingress opens no database; the configuration of a fleet names one.
            let role = bed.roost(&["ingress"], &Place::Servers(bed.database("none")), None, &[]).await?;
            return Ok((role.process, role.listen));
        }
        let listen = free_address()?;
        let (address, amqp) = (listen.to_string(), bed.amqp());
        let (name, command) = match self {
            Design::Plain => {
                let arguments = ["plain-ingress", "--listen", &address, "--amqp", &amqp, "--queue", PLAIN_WEBHOOKS];
                ("plain-ingress", process::ourselves(&arguments)?)
            }
            _ => ("bare", process::ourselves(&["bare", "--listen", &address])?),
        };
        let mut process = Process::start(name, command, bed.folder())?;
        process.wait_until_listening(listen).await?;
        Ok((process, listen))
    }
}

/// Everything measured, by design.
#[derive(Default)]
struct Measured {
    closed: [[Runs; 3]; 2],
    at_limit: [Runs; 3],
    at_rate: [Runs; 3],
}

/// Runs the figure.
pub(crate) async fn run(bed: &Bed, options: Options) -> Result<Section> {
    let request = signed_post("/webhooks/meta", APP_SECRET, &for_ingress().body);
    let mut measured = Measured::default();
    for round in 1..=options.rounds {
        for (connections, runs) in CONNECTIONS.into_iter().zip(&mut measured.closed) {
            for (design, runs) in Design::ALL.into_iter().zip(runs) {
                let run = closed(bed, design, connections, &request, options, round == 1).await?;
                say(&format!("  round {round}: {} at {connections}: {:.0}/s", design.title(), run.rate()));
                runs.add(run);
            }
        }
    }
    let [plain_at_256, ..] = &measured.closed;
    let [.., plain] = plain_at_256;
    let limit = plain.median(Run::rate).map_or(RATE, |rate| (rate.median * LIMIT / 500.0).round() * 500.0);
    for round in 1..=options.rounds {
        for (rate, runs) in [(limit, &mut measured.at_limit), (RATE, &mut measured.at_rate)] {
            for (design, runs) in Design::ALL.into_iter().zip(runs).skip(1) {
                let run = open(bed, design, rate, &request, options).await?;
                let p99 = run.p99_ms.unwrap_or_default();
                say(&format!("  round {round}: {} at {rate}/s: p99 {p99:.1} ms", design.title()));
                runs.add(run);
            }
        }
    }
    Ok(section(&measured, limit, options))
}

async fn closed(
    bed: &Bed,
    design: Design,
    connections: usize,
    request: &Arc<[u8]>,
    options: Options,
    look_into_queue: bool,
) -> Result<Run> {
    let (process, address) = design.start(bed).await?;
    let watched = bed.watched(&[&process]);
    let mut load = ClosedLoop::start(address, connections, request.clone()).await?;
    tokio::time::sleep(options.warm_up).await;
    let before = watched.used()?;
    load.count();
    tokio::time::sleep(options.time).await;
    let usage = watched.used()?.since(before);
    let resident_mb = process.resident_mb()?;
    let result = load.stop().await?;
    ensure!(result.refused == 0, "{} refused {} of {} requests", design.title(), result.refused, result.ok);
    drop(process);
    if look_into_queue && design != Design::Bare {
        let kept = webhooks_in(bed, design).await?;
        ensure!(kept >= result.ok, "{} answered 200 to {} and kept {kept}", design.title(), result.ok);
    }
    bed.delete_queues().await?;
    Ok(Run { usage, resident_mb: Some(resident_mb), ..of(&result) })
}

async fn open(bed: &Bed, design: Design, rate: f64, request: &Arc<[u8]>, options: Options) -> Result<Run> {
    let (process, address) = design.start(bed).await?;
    let load = open_loop(address, OPEN_CONNECTIONS, rate, options.warm_up, options.time, request.clone()).await?;
    drop(process);
    bed.delete_queues().await?;
    ensure!(load.refused == 0, "{} refused {} requests", design.title(), load.refused);
    Ok(of(&load))
}

fn of(load: &LoadResult) -> Run {
    let ms = |latency: Duration| Some(latency.as_secs_f64() * 1e3);
    let (p50_ms, p99_ms) = (ms(load.quantile(0.5)), ms(load.quantile(0.99)));
    Run { items: load.ok, took: load.took, p50_ms, p99_ms, ..Run::default() }
}

/// How many webhooks the queue holds: everything is taken out and counted.
async fn webhooks_in(bed: &Bed, design: Design) -> Result<u64> {
    let connection = Connection::connect(&bed.amqp(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(design.queue().into(), passive, FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let consumer = channel.basic_consume(design.queue().into(), "count".into(), options, FieldTable::default()).await?;
    let mut deliveries = consumer.take(usize::try_from(queue.message_count())?);
    let mut webhooks = 0;
    while let Some(delivery) = deliveries.next().await {
        webhooks += match design {
            Design::Roost => {
                let WebhookBatch(frames) = WebhookBatch::from_bytes(&delivery?.data.into())?;
                frames.iter().filter(|frame| matches!(frame, Frame::Webhook(_))).count() as u64
            }
            _ => {
                delivery?;
                1
            }
        };
    }
    connection.close(200, "done".into()).await?;
    Ok(webhooks)
}

fn section(measured: &Measured, limit: f64, options: Options) -> Section {
    let mut section = Section::new(
        "ingress",
        &["design", "connections", "requests/s", "p50 / p99 ms", "µs in process", "µs in broker", "MB"],
    );
    section.parameter(format!(
        "A WhatsApp webhook of {INGRESS_BODY} bytes, signed; keep-alive connections, a closed loop for {} s after {} s of \
         warm-up, {} rounds of all designs in turn; a durable quorum queue without a consumer, emptied between runs; in the \
         first round the queue was emptied and counted: it held every webhook that was answered 200. µs are processor time a \
         request. Medians (least–greatest).",
        options.time.as_secs_f64(),
        options.warm_up.as_secs_f64(),
        options.rounds
    ));
    for (connections, runs) in CONNECTIONS.into_iter().zip(&measured.closed) {
        for (design, runs) in Design::ALL.into_iter().zip(runs) {
            section.design(vec![
                design.title().to_owned(),
                connections.to_string(),
                cell(runs.median(Run::rate)),
                latency(runs),
                short(runs.median(Run::ours_us)),
                if design == Design::Bare { "–".to_owned() } else { short(runs.median(Run::broker_us)) },
                short(runs.median_of_some(|run| run.resident_mb)),
            ]);
        }
    }
    for (rate, runs) in [(limit, &measured.at_limit), (RATE, &measured.at_rate)] {
        for (design, runs) in Design::ALL.into_iter().zip(runs).skip(1) {
            let title = format!("{}, open loop at {rate}/s", design.title());
            section.design(vec![title, OPEN_CONNECTIONS.to_string(), cell(runs.median(Run::rate)), latency(runs)]);
        }
    }
    let [[bare, roost, plain], [_, roost_64, plain_64]] = &measured.closed;
    let cost = |run: &Run| run.ours_us() + run.broker_us();
    let p99 = |run: &Run| run.p99_ms.unwrap_or(f64::NAN);
    section.figure("256 connections ÷ bare hyper", roost.ratio(bare, Run::rate), Target::AtLeast(0.4));
    section.figure("256 connections ÷ plain", roost.ratio(plain, Run::rate), Target::AtLeast(1.9));
    section.figure("64 connections ÷ plain", roost_64.ratio(plain_64, Run::rate), Target::AtLeast(1.6));
    section.figure("processor time, ingress and broker, ÷ plain (256)", roost.ratio(plain, cost), Target::AtMost(0.42));
    let [_, roost_at_limit, plain_at_limit] = &measured.at_limit;
    section.figure(
        format!("ack p99 at the plain design's limit ({limit}/s) ÷ plain"),
        roost_at_limit.ratio(plain_at_limit, p99),
        Target::AtMost(0.5),
    );
    let [_, roost_at_rate, plain_at_rate] = &measured.at_rate;
    section.figure(
        format!("ack p99 at {RATE}/s ÷ plain"),
        roost_at_rate.ratio(plain_at_rate, p99),
        Target::AtMost(1.0),
    );
    section.figure(
        "resident memory at 256 connections, MB",
        roost.median_of_some(|run| run.resident_mb),
        Target::AtMost(32.0),
    );
    section
}
