//! The speed table: each figure beside its ceiling and beside the plain way of doing it, as ratios inside one run.
//!
//! `cargo run --profile bench -p bench` runs everything; it starts its own servers, prints the table, and puts it into
//! `docs/performance.md`. It is not a test: nothing passes or fails by the clock.

mod bed;
mod cpu;
mod figures;
mod load;
mod machine;
mod parse;
mod plain;
mod preload;
mod process;
mod provider;
mod report;
mod rows;
mod stats;
mod webhooks;

use anyhow::Result;
use bed::Bed;
use clap::{Args, Parser, Subcommand, ValueEnum};
use figures::{Options, say};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// As the binary has it, so that Roost is what it is and the plain designs have the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "bench", about = "The speed table", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    table: Table,
}

#[derive(Debug, Args)]
struct Table {
    /// What to measure
    #[arg(value_name = "FIGURE", default_value = "all")]
    figures: Vec<Figure>,
    /// How long a run of load is counted
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often each design runs
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// One short round, to see that everything works; the document is left alone
    #[arg(long)]
    quick: bool,
    /// Only print the table
    #[arg(long)]
    print: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    /// Webhooks in, confirmed
    Ingress,
    /// Rows in the database
    Ingest,
    /// Messages out
    Sender,
    /// All three
    All,
}

impl Figure {
    fn title(self) -> &'static str {
        match self {
            Figure::Ingress => "ingress: provider to queue",
            Figure::Ingest => "ingest: queue to database",
            Figure::Sender => "sender: database to provider",
            Figure::All => "all",
        }
    }
}

/// What this program starts of itself, and what needs no servers.
#[derive(Debug, Subcommand)]
enum Part {
    /// What understanding one webhook costs; starts nothing
    Parse,
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        listen: SocketAddr,
    },
    #[command(hide = true)]
    PlainIngress {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
    },
    #[command(hide = true)]
    PlainIngest {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        database: String,
    },
    #[command(hide = true)]
    PlainSender {
        #[arg(long)]
        amqp: String,
        #[arg(long)]
        queue: String,
        #[arg(long)]
        results: String,
        #[arg(long)]
        database: String,
        #[arg(long)]
        api: SocketAddr,
        #[arg(long)]
        concurrency: u16,
    },
    #[command(hide = true)]
    BareClient {
        #[arg(long)]
        api: SocketAddr,
        #[arg(long)]
        concurrency: usize,
        #[arg(long)]
        calls: usize,
    },
    #[command(hide = true)]
    Provider {
        #[arg(long)]
        listen: SocketAddr,
    },
}

fn main() -> ExitCode {
    if process::is_roost() {
        return roost::main();
    }
    let cli = Cli::parse();
    // One thread: the load generator and the plain designs leave the other core to what they talk to.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match (runtime, cli.part) {
        (Err(error), _) => Err(error.into()),
        (Ok(runtime), Some(part)) => runtime.block_on(be(part)),
        (Ok(runtime), None) => runtime.block_on(async {
            // Whichever ends first: dropping the rest stops every server and process that was started.
            tokio::select! {
                measured = measure(cli.table) => measured,
                signal = interrupted() => signal,
            }
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Fails at the first signal that asks this program to stop.
async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    anyhow::bail!("interrupted; nothing is left behind")
}

async fn be(part: Part) -> Result<()> {
    runtime::tls::install_provider();
    match part {
        Part::Parse => {
            print(&parse::run()?);
            Ok(())
        }
        Part::Bare { listen } => plain::ingress::run(listen, None, "", "").await,
        Part::PlainIngress { listen, amqp, queue } => {
            plain::ingress::run(listen, Some(&amqp), &queue, bed::APP_SECRET).await
        }
        Part::PlainIngest { amqp, queue, database } => plain::ingest::run(&amqp, &queue, &database).await,
        Part::PlainSender { amqp, queue, results, database, api, concurrency } => {
            plain::sender::run(&amqp, (&queue, &results), &database, api, concurrency).await
        }
        Part::BareClient { api, concurrency, calls } => {
            let calls = plain::client::run(api, concurrency, calls).await?;
            print(&serde_json::to_string(&calls)?);
            Ok(())
        }
        Part::Provider { listen } => provider::run(listen).await,
    }
}

async fn measure(table: Table) -> Result<()> {
    runtime::tls::install_provider();
    let options = match table.quick {
        true => Options {
            time: Duration::from_secs(1),
            warm_up: Duration::from_millis(300),
            rounds: 1,
            messages: 10_000,
            sends: 5_000,
        },
        false => Options {
            time: Duration::from_secs(table.seconds.clamp(1, 60)),
            warm_up: Duration::from_secs(1),
            rounds: table.rounds.clamp(1, 20),
            messages: 60_000,
            sends: 20_000,
        },
    };
    let mut bed = Bed::start().await?;
    let (postgres, rabbitmq) = bed.versions().await?;
    let machine = machine::describe(&postgres, &rabbitmq)?;
    print(&machine);
    let to_document = !table.quick && !table.print;
    if to_document {
        report::write("machine", &machine)?;
    }
    let wanted = |figure: Figure| table.figures.contains(&figure) || table.figures.contains(&Figure::All);
    for figure in [Figure::Ingress, Figure::Ingest, Figure::Sender].into_iter().filter(|figure| wanted(*figure)) {
        say(figure.title());
        let section = match figure {
            Figure::Ingest => figures::ingest::run(&mut bed, options).await?,
            Figure::Sender => figures::sender::run(&mut bed, options).await?,
            Figure::Ingress | Figure::All => figures::ingress::run(&bed, options).await?,
        };
        print(&format!("\n{}", section.render()));
        if to_document {
            let path = report::write_section(&section)?;
            say(&format!("written to {}", path.display()));
        }
    }
    Ok(())
}

/// What was found, for the person or the next program.
#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn print(text: &str) {
    println!("{text}");
}
