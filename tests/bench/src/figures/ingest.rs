//! Ingest beside a transaction per message and beside `COPY` of the same rows: rows a second, from a queue that was filled
//! before, into the real schema.

use super::{Options, say};
use crate::bed::{Bed, PLAIN_WEBHOOKS, Place};
use crate::plain::ingest::WRITERS;
use crate::preload;
use crate::process::{self, Process};
use crate::report::{Section, Target, cell, short};
use crate::rows::{Filled, MESSAGES, Rows};
use crate::stats::{Run, Runs};
use crate::webhooks::{self, CONTACTS, Webhook};
use anyhow::{Context, Result};
use futures_util::StreamExt;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

/// Size of the pieces that COPY is fed with.
const PIECE: usize = 64 * 1024;

#[derive(Default)]
struct Measured {
    one_writer: Runs,
    two_writers: Runs,
    plain: Runs,
    copy: Runs,
    sqlite: Runs,
}

/// Runs the figure.
pub(crate) async fn run(bed: &mut Bed, options: Options) -> Result<Section> {
    let mut measured = Measured::default();
    let files = seeded_files(bed).await?;
    for round in 1..=options.rounds {
        let traffic = webhooks::traffic(options.messages, u64::from(round) + 100);
        let (run, database) = roost(bed, 1, &traffic).await?;
        told(round, "Roost, 1 writer", &run);
        measured.one_writer.add(run);
        let (rows, columns) = export(bed, &database).await?;
        bed.drop_database(&database).await?;

        let run = copy(bed, &columns, &rows, traffic.len()).await?;
        told(round, "COPY", &run);
        measured.copy.add(run);

        let (run, database) = roost(bed, 2, &traffic).await?;
        told(round, "Roost, 2 writers", &run);
        measured.two_writers.add(run);
        bed.drop_database(&database).await?;

        let run = plain(bed, &traffic).await?;
        told(round, "plain", &run);
        measured.plain.add(run);

        let run = sqlite(bed, &files, &traffic).await?;
        told(round, "Roost on SQLite", &run);
        measured.sqlite.add(run);
    }
    Ok(section(&measured, options))
}

fn told(round: u32, design: &str, run: &Run) {
    let (rate, ours, database) = (run.rate(), run.ours_us(), run.database_us());
    say(&format!(
        "  round {round}: {design}: {rate:.0} rows/s, {ours:.0} µs in process, {database:.0} µs in PostgreSQL"
    ));
}

fn of(filled: Filled, process: &Process) -> Result<Run> {
    let Filled { rows, took, usage } = filled;
    Ok(Run { items: rows, took, usage, resident_mb: Some(process.resident_mb()?), ..Run::default() })
}

/// Roost with so many writers. The database stays, for its rows.
async fn roost(bed: &mut Bed, writers: u64, traffic: &[Webhook]) -> Result<(Run, String)> {
    let database = bed.fresh_database().await?;
    let url = bed.database(&database);
    preload::for_roost(preload::rabbitmq(&bed.amqp()), traffic).await?;
    let mut rows = Rows::postgres(&url).await?;
    let start = rows.start(MESSAGES).await?;
    let mut role = bed.roost(&["ingest"], &Place::Servers(url), None, &[("ingest_writers", writers)]).await?;
    let watched = bed.watched(&[&role.process]);
    let filled = rows.watch(MESSAGES, start, traffic.len(), &watched, &mut [&mut role.process]).await?;
    let run = of(filled, &role.process)?;
    role.process.stop().await?;
    rows.compare(start, traffic.iter().map(|webhook| webhook.wamid.as_str())).await?;
    rows.close().await?;
    bed.delete_queues().await?;
    Ok((run, database))
}

async fn plain(bed: &mut Bed, traffic: &[Webhook]) -> Result<Run> {
    let database = bed.fresh_database().await?;
    let url = bed.database(&database);
    preload::for_plain(&bed.amqp(), traffic).await?;
    let mut rows = Rows::postgres(&url).await?;
    let start = rows.start(MESSAGES).await?;
    let amqp = bed.amqp();
    let arguments = ["plain-ingest", "--amqp", &amqp, "--queue", PLAIN_WEBHOOKS, "--database", &url];
    let mut process = Process::start("plain-ingest", process::ourselves(&arguments)?, bed.folder())?;
    let watched = bed.watched(&[&process]);
    let filled = rows.watch(MESSAGES, start, traffic.len(), &watched, &mut [&mut process]).await?;
    let run = of(filled, &process)?;
    drop(process);
    rows.compare(start, traffic.iter().map(|webhook| webhook.wamid.as_str())).await?;
    rows.close().await?;
    bed.delete_queues().await?;
    bed.drop_database(&database).await?;
    Ok(run)
}

/// The message rows of a run as COPY writes them, and their columns.
async fn export(bed: &Bed, database: &str) -> Result<(Vec<Vec<u8>>, String)> {
    let mut conn = connect(&bed.database(database)).await?;
    // Everything but what the database makes itself.
    let columns: String = sqlx::query_scalar(
        "SELECT string_agg(column_name::text, ', ' ORDER BY ordinal_position) FROM information_schema.columns
          WHERE table_schema = 'roost' AND table_name = 'messages' AND column_name <> 'id' AND is_generated = 'NEVER'",
    )
    .fetch_one(&mut conn)
    .await?;
    // The first message of every contact is in every database already.
    let statement = format!(
        "COPY (SELECT {columns} FROM messages WHERE id > (SELECT id FROM messages ORDER BY id OFFSET {} LIMIT 1) ORDER BY id) TO STDOUT",
        CONTACTS - 1
    );
    let mut pieces = vec![Vec::with_capacity(PIECE)];
    {
        let mut rows = conn.copy_out_raw(&statement).await?;
        while let Some(row) = rows.next().await {
            let piece = pieces.last_mut().context("a piece")?;
            piece.extend_from_slice(&row?);
            if piece.len() >= PIECE {
                pieces.push(Vec::with_capacity(PIECE));
            }
        }
    }
    conn.close().await?;
    Ok((pieces, columns))
}

/// The ceiling: the same rows, one stream, one commit, the same indexes.
async fn copy(bed: &mut Bed, columns: &str, pieces: &[Vec<u8>], rows: usize) -> Result<Run> {
    let database = bed.fresh_database().await?;
    let mut conn = connect(&bed.database(&database)).await?;
    let watched = bed.watched(&[]);
    let (begun, before) = (Instant::now(), watched.used()?);
    let mut stream = conn.copy_in_raw(&format!("COPY messages ({columns}) FROM STDIN")).await?;
    for piece in pieces {
        stream.send(piece.as_slice()).await?;
    }
    let copied = stream.finish().await?;
    let (took, usage) = (begun.elapsed(), watched.used()?.since(before));
    anyhow::ensure!(copied == rows as u64, "COPY took {copied} rows of {rows}");
    conn.close().await?;
    bed.drop_database(&database).await?;
    Ok(Run { items: copied, took, usage, ..Run::default() })
}

async fn connect(url: &str) -> Result<PgConnection> {
    Ok(PgConnectOptions::from_str(url)?.options([("search_path", "roost,public")]).connect().await?)
}

/// A folder with SQLite files in which every contact has written once.
async fn seeded_files(bed: &Bed) -> Result<PathBuf> {
    let folder = bed.folder().join("files");
    let messages = webhooks::first_messages();
    make_folder(&folder)?;
    preload::for_roost(preload::embedded(&folder), &messages).await?;
    let mut up = bed.roost(&["up"], &Place::Files(folder.clone()), None, &[]).await?;
    let mut rows = Rows::sqlite(&folder.join("roost.db")).await?;
    rows.wait_for(MESSAGES, messages.len(), &mut up.process).await?;
    rows.close().await?;
    up.process.stop().await?;
    Ok(folder)
}

/// `roost up` on files, all roles in one process.
async fn sqlite(bed: &Bed, seeded: &Path, traffic: &[Webhook]) -> Result<Run> {
    let folder = bed.folder().join("run");
    make_folder(&folder)?;
    for name in ["roost.db", "queue.db"] {
        std::fs::copy(seeded.join(name), folder.join(name)).with_context(|| name.to_owned())?;
    }
    preload::for_roost(preload::embedded(&folder), traffic).await?;
    let mut rows = Rows::sqlite(&folder.join("roost.db")).await?;
    let start = rows.start(MESSAGES).await?;
    let mut up = bed.roost(&["up"], &Place::Files(folder.clone()), None, &[]).await?;
    let watched = bed.watched(&[&up.process]);
    let filled = rows.watch(MESSAGES, start, traffic.len(), &watched, &mut [&mut up.process]).await?;
    let run = of(filled, &up.process)?;
    rows.compare(start, traffic.iter().map(|webhook| webhook.wamid.as_str())).await?;
    rows.close().await?;
    up.process.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    Ok(run)
}

fn make_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(folder).with_context(|| folder.display().to_string())
}

fn section(measured: &Measured, options: Options) -> Section {
    let mut section =
        Section::new("ingest", &["design", "rows/s", "µs in process", "µs in PostgreSQL", "µs in broker", "MB"]);
    section.parameter(format!(
        "{} webhooks with one text message each, random ids, from {CONTACTS} contacts who have written before (80 % from a \
         fifth of them), on the queue before the clock starts: {} in a queue message for Roost, as its ingress publishes \
         them, one in a queue message for the plain design. Real schema and indexes, raw bodies and change feed included, \
         {} rounds; each run on a fresh copy of the database right after a checkpoint, from the first committed row seen to \
         the last; ids compared one by one after each run. The plain design has {WRITERS} connections and as many handlers, six \
         statements a transaction. COPY writes only the message rows, one stream, one commit.",
        options.messages,
        preload::BATCH,
        options.rounds
    ));
    let designs = [
        ("COPY of the message rows", &measured.copy),
        ("Roost, 1 writer", &measured.one_writer),
        ("Roost, 2 writers", &measured.two_writers),
        ("plain: a transaction per message", &measured.plain),
        ("Roost on SQLite, embedded queue", &measured.sqlite),
    ];
    for (title, runs) in designs {
        let uses = |uses: bool, text: String| if uses { text } else { "–".to_owned() };
        let (is_copy, is_sqlite) = (title.starts_with("COPY"), title.contains("SQLite"));
        section.design(vec![
            title.to_owned(),
            cell(runs.median(Run::rate)),
            uses(!is_copy, short(runs.median(Run::ours_us))),
            uses(!is_sqlite, short(runs.median(Run::database_us))),
            uses(!is_copy && !is_sqlite, short(runs.median(Run::broker_us))),
            short(runs.median_of_some(|run| run.resident_mb)),
        ]);
    }
    let Measured { one_writer, two_writers, plain, copy, sqlite } = measured;
    section.figure("1 writer ÷ COPY", one_writer.ratio(copy, Run::rate), Target::AtLeast(0.35));
    section.figure("2 writers ÷ COPY", two_writers.ratio(copy, Run::rate), Target::AtLeast(0.6));
    section.figure("2 writers ÷ plain", two_writers.ratio(plain, Run::rate), Target::AtLeast(15.0));
    section.figure("SQLite ÷ PostgreSQL, 1 writer", sqlite.ratio(one_writer, Run::rate), Target::AtLeast(0.6));
    let resident = two_writers.median_of_some(|run| run.resident_mb);
    section.figure("resident memory of ingest, MB", resident, Target::AtMost(40.0));
    section
}
