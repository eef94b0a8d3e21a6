//! What every run stands on: a private PostgreSQL and a private RabbitMQ that keep what they are told, Roost's own
//! configuration, and a database in which every contact has written once.

use crate::cpu::Watched;
use crate::preload;
use crate::process::{self, Process, free_address};
use crate::rows::{MESSAGES, Rows};
use crate::webhooks::{self, ACCOUNTS};
use anyhow::{Context, Result, ensure};
use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, PgConnection};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use testkit::amqp::PrivateRabbitMq;
use testkit::servers::PrivatePostgres;

/// As in production: a commit is on the disk before it is answered.
const POSTGRES: &[&str] = &[
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "wal_compression=lz4",
    "max_wal_size=4GB",
    "checkpoint_timeout=15min",
    "shared_buffers=2GB",
    "max_connections=100",
];
/// A smaller write-ahead log: the default of 512 MB is kept in memory too.
const RABBITMQ: &str = "raft.wal_max_size_bytes = 64000000\n";

/// The Meta app's secret.
pub(crate) const APP_SECRET: &str = "the-secret-of-the-bench";
/// The accounts' access token.
pub(crate) const ACCESS_TOKEN: &str = "the-token-of-the-bench";

/// The queues of the plain designs.
pub(crate) const PLAIN_WEBHOOKS: &str = "plain.webhooks";
/// References for the plain sender.
pub(crate) const PLAIN_OUTBOUND: &str = "plain.outbound";
/// What the plain sender reports.
pub(crate) const PLAIN_RESULTS: &str = "plain.results";

/// The servers and a folder.
#[derive(Debug)]
pub(crate) struct Bed {
    postgres: PrivatePostgres,
    rabbitmq: PrivateRabbitMq,
    folder: tempfile::TempDir,
    seeded: bool,
    databases: u32,
}

/// Where a Roost keeps things.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// This database, and the broker.
    Servers(String),
    /// Files in this folder.
    Files(PathBuf),
}

/// A Roost that runs.
#[derive(Debug)]
pub(crate) struct Role {
    /// The process.
    pub(crate) process: Process,
    /// Where its webhooks arrive, if it is ingress.
    pub(crate) listen: SocketAddr,
}

impl Bed {
    /// Starts the servers.
    pub(crate) async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("roost-bench.").tempdir()?;
        let (postgres, rabbitmq) =
            tokio::try_join!(PrivatePostgres::start_with(POSTGRES), PrivateRabbitMq::start_with(RABBITMQ))?;
        Ok(Self { postgres, rabbitmq, folder, seeded: false, databases: 0 })
    }

    /// Versions of PostgreSQL and RabbitMQ.
    pub(crate) async fn versions(&self) -> Result<(String, String)> {
        let mut conn = self.connect("postgres").await?;
        let postgres: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut conn).await?;
        let postgres = postgres.split_whitespace().next().unwrap_or_default().to_owned();
        let rabbitmq = self.rabbitmq.ctl(&["version"]).await?;
        Ok((postgres, rabbitmq.trim().to_owned()))
    }

    /// The broker's URL.
    pub(crate) fn amqp(&self) -> String {
        self.rabbitmq.url()
    }

    /// A folder for files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whose processor time to take.
    pub(crate) fn watched(&self, ours: &[&Process]) -> Watched {
        let ours = ours.iter().map(|process| process.id()).collect();
        Watched { ours, broker: self.rabbitmq.id(), database: self.postgres.id() }
    }

    /// URL of a database.
    pub(crate) fn database(&self, name: &str) -> String {
        let url = self.postgres.url();
        let (server, _) = url.rsplit_once('/').unwrap_or((&url, ""));
        format!("{server}/{name}")
    }

    async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnectOptions::from_str(&self.database(database))?.connect().await?)
    }

    async fn admin(&self, statement: String) -> Result<()> {
        let mut conn = self.connect("postgres").await?;
        // The names in it are ours; identifiers cannot be bound.
        sqlx::query(AssertSqlSafe(statement)).execute(&mut conn).await?;
        conn.close().await?;
        Ok(())
    }

    /// A copy of the database in which every contact has written once, right after a checkpoint.
    pub(crate) async fn fresh_database(&mut self) -> Result<String> {
        if !self.seeded {
            self.seed().await?;
            self.seeded = true;
        }
        self.databases += 1;
        let name = format!("run_{}", self.databases);
        self.admin(format!("CREATE DATABASE {name} TEMPLATE seed")).await?;
        self.admin("CHECKPOINT".to_owned()).await?;
        Ok(name)
    }

    /// Drops a database that was measured on.
    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        self.admin(format!("DROP DATABASE {name} WITH (FORCE)")).await
    }

    /// Makes the database that the others are copies of, by Roost's own hands.
    async fn seed(&mut self) -> Result<()> {
        self.admin("CREATE DATABASE seed".to_owned()).await?;
        let place = Place::Servers(self.database("seed"));
        let config = self.configure("migrate", &place, None, &[], free_address()?, free_address()?)?;
        let mut migrate = Process::start("migrate", command(&["migrate", "--config", &text(&config)])?, self.folder())?;
        ensure!(migrate.ended(Duration::from_secs(60)).await?.success(), "no schema:\n{}", migrate.last_words());
        let messages = webhooks::first_messages();
        preload::for_roost(preload::rabbitmq(&self.amqp()), &messages).await?;
        let mut ingest = self.roost(&["ingest"], &place, None, &[]).await?;
        let mut rows = Rows::postgres(&self.database("seed")).await?;
        rows.wait_for(MESSAGES, messages.len(), &mut ingest.process).await?;
        ingest.process.stop().await?;
        rows.vacuum().await?;
        rows.close().await?;
        self.delete_queues().await
    }

    /// Deletes every queue that runs use, so that each begins with empty ones.
    pub(crate) async fn delete_queues(&self) -> Result<()> {
        let connection = Connection::connect(&self.amqp(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let of_accounts = (0..ACCOUNTS).map(|account| format!("roost.outbound.{}", webhooks::account_name(account)));
        let ours = ["roost.webhooks", "roost.results", "roost.dead", PLAIN_WEBHOOKS, PLAIN_OUTBOUND, PLAIN_RESULTS];
        for queue in ours.into_iter().map(str::to_owned).chain(of_accounts) {
            // One that does not exist is deleted already, says the broker.
            channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        connection.close(200, "done".into()).await?;
        Ok(())
    }

    /// Starts Roost with these roles (or `up`) and waits until it is ready. `api` is the provider's address.
    pub(crate) async fn roost(
        &self,
        roles: &[&str],
        place: &Place,
        api: Option<SocketAddr>,
        tuning: &[(&str, u64)],
    ) -> Result<Role> {
        let name = roles.join("-");
        let (listen, admin) = (free_address()?, free_address()?);
        let config = self.configure(&name, place, api, tuning, listen, admin)?;
        let config = text(&config);
        let arguments: Vec<&str> = roles.iter().copied().chain(["--config", config.as_str()]).collect();
        let mut process = Process::start(&name, command(&arguments)?, self.folder())?;
        process.wait_until_ready(admin).await?;
        Ok(Role { process, listen })
    }

    fn configure(
        &self,
        name: &str,
        place: &Place,
        api: Option<SocketAddr>,
        tuning: &[(&str, u64)],
        listen: SocketAddr,
        admin: SocketAddr,
    ) -> Result<PathBuf> {
        let mut config = String::new();
        match place {
            Place::Servers(database) => {
                writeln!(config, "data_dir = \"{}\"", self.folder().join("data").display())?;
                writeln!(config, "[store]\nurl = \"{database}\"\n[queue]\nurl = \"{}\"", self.amqp())?;
            }
            Place::Files(folder) => writeln!(config, "data_dir = \"{}\"", folder.display())?,
        }
        writeln!(config, "[http]\nlisten = \"{listen}\"\nadmin_listen = \"{admin}\"\n[log]\nformat = \"json\"")?;
        writeln!(config, "[tuning]")?;
        for (key, value) in tuning {
            writeln!(config, "{key} = {value}")?;
        }
        writeln!(config, "[[sources]]\nname = \"meta\"\nkind = \"meta\"\napp_secret = [\"env:BENCH_APP_SECRET\"]")?;
        let api = api.map_or_else(|| "http://127.0.0.1:9".to_owned(), |api| format!("http://{api}"));
        for account in 0..ACCOUNTS {
            let (name, id) = (webhooks::account_name(account), webhooks::phone_number_id(account));
            writeln!(config, "[[accounts]]\nname = \"{name}\"\nchannel = \"WHATSAPP\"\nsource = \"meta\"")?;
            writeln!(config, "phone_number_id = \"{id}\"\naccess_token = \"env:BENCH_ACCESS_TOKEN\"")?;
            writeln!(config, "api_base = \"{api}\"\nrate_per_second = 1000\npair_interval_ms = 0")?;
        }
        let file = self.folder().join(format!("{name}.toml"));
        std::fs::write(&file, config).with_context(|| file.display().to_string())?;
        Ok(file)
    }
}

/// A command line of Roost's, with the secrets that the configuration refers to.
fn command(arguments: &[&str]) -> Result<std::process::Command> {
    let mut command = process::roost(arguments)?;
    command.env("BENCH_APP_SECRET", APP_SECRET).env("BENCH_ACCESS_TOKEN", ACCESS_TOKEN);
    Ok(command)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
