//! A whole system in a temporary folder: configuration, processes, simulator.

use crate::{Api, Port, Process, wait};
use anyhow::{Context, Result};
use domain::Secret;
use simulator::{AccountOptions, Simulator, SimulatorOptions};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::{Store, StoreUrl};
use testkit::database::{create_database, postgres_url, test_options};

/// The Meta app's secret in every test.
pub const APP_SECRET: &str = "an-app-secret-for-tests";
/// The handshake's token in every test.
pub const VERIFY_TOKEN: &str = "a-verify-token-for-tests";
/// The account's access token in every test.
pub const ACCESS_TOKEN: &str = "an-access-token-for-tests";
/// The account's number in every test.
pub const PHONE_NUMBER_ID: &str = "106540352242922";
/// The API token in every test.
pub const API_TOKEN: &str = "an-api-token-for-tests-0123456789";

/// Which database and which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// One process, two files.
    SqliteEmbedded,
    /// One process, a file and a broker.
    SqliteRabbitMq,
    /// One process, a database server and a file.
    PostgresEmbedded,
    /// The fleet.
    PostgresRabbitMq,
}

impl Stack {
    fn postgres(self) -> bool {
        matches!(self, Stack::PostgresEmbedded | Stack::PostgresRabbitMq)
    }

    fn rabbitmq(self) -> bool {
        matches!(self, Stack::SqliteRabbitMq | Stack::PostgresRabbitMq)
    }
}

/// What a test wants of its system.
#[derive(Clone, Debug)]
pub struct SystemOptions {
    /// Database and queue.
    pub stack: Stack,
    /// Processes by name and arguments; empty: one `roost up`.
    pub processes: Vec<(String, Vec<String>)>,
    /// More lines for the configuration, such as a `[tuning]` table.
    pub more_config: String,
    /// Lines inside the account's table.
    pub account_config: String,
    /// The provider.
    pub simulator: SimulatorOptions,
    /// A broker of the test's own instead of the shared one.
    pub amqp_url: Option<String>,
    /// A database of the test's own instead of a fresh one on the shared server.
    pub database_url: Option<String>,
}

impl SystemOptions {
    /// One `roost up` on `stack`, a provider without faults.
    pub fn new(stack: Stack) -> Self {
        let account = AccountOptions::new(PHONE_NUMBER_ID, ACCESS_TOKEN);
        Self {
            stack,
            processes: Vec::new(),
            more_config: String::new(),
            account_config: String::new(),
            simulator: SimulatorOptions {
                app_secret: Secret::new(APP_SECRET),
                accounts: vec![account],
                own_thread: true,
                ..SimulatorOptions::default()
            },
            amqp_url: None,
            database_url: None,
        }
    }

    /// Single roles instead of `roost up`: `("ingest-1", "ingest")`.
    pub fn with_roles(mut self, roles: &[(&str, &str)]) -> Self {
        self.processes = roles
            .iter()
            .map(|(name, roles)| ((*name).to_owned(), roles.split(' ').map(str::to_owned).collect()))
            .collect();
        self
    }
}

/// A running system.
#[derive(Debug)]
pub struct System {
    /// The provider.
    pub simulator: Simulator,
    /// The processes, in the order of the options.
    pub processes: Vec<Process>,
    /// Where its page and API are.
    pub base_url: String,
    /// Where its webhooks arrive.
    pub ingress_url: String,
    /// The very database, for looking at rows.
    pub store: Store,
    /// Its address, for queries of a test's own (`testkit::look`).
    pub store_url: StoreUrl,
    /// The folder with configuration, data and logs.
    pub folder: PathBuf,
    binary: PathBuf,
    admin_urls: Vec<String>,
    _folder: tempfile::TempDir,
    _ports: Vec<Port>,
}

impl System {
    /// Starts everything and waits until it is ready. `binary` is `env!("CARGO_BIN_EXE_roost-under-test")`.
    /// # Errors
    /// When a part cannot be started or does not become ready; the message carries the process's last words.
    pub async fn start(binary: &str, options: SystemOptions) -> Result<Self> {
        Self::begin(binary, options, true).await
    }

    /// Starts the processes one after the other, in the order of the options, and waits for nothing: the database is not
    /// migrated and the broker may be away. [`System::migrate`] and [`System::until_ready`] do the rest.
    /// # Errors
    /// When a process cannot be started, or the database server is away.
    pub async fn start_unready(binary: &str, options: SystemOptions) -> Result<Self> {
        Self::begin(binary, options, false).await
    }

    async fn begin(binary: &str, options: SystemOptions, wait_until_ready: bool) -> Result<Self> {
        runtime::tls::install_provider();
        let guard = tempfile::Builder::new().prefix("roost-system-").tempdir()?;
        let folder = guard.path().to_owned();
        let names: Vec<(String, Vec<String>)> = match options.processes.as_slice() {
            [] => vec![("up".to_owned(), vec!["up".to_owned()])],
            named => named.to_vec(),
        };
        let database_url = match (&options.database_url, options.stack.postgres()) {
            (Some(url), _) => url.clone(),
            (None, true) => create_database(&postgres_url()?).await?,
            (None, false) => format!("sqlite://{}", folder.join("roost.db").display()),
        };
        let mut ports = vec![Port::take()?];
        let simulator_port = ports.first().map_or(0, |port| port.number);
        let common = common_config(&options, &folder, &database_url, simulator_port)?;

        let serves = |args: &[String], role: &str| args.iter().any(|arg| arg == role || arg == "up");
        let mut ingress_urls = Vec::new();
        let (mut base_url, mut admin_urls, mut started) = (None, Vec::new(), Vec::new());
        for (name, args) in &names {
            let taken = (Port::take()?, Port::take()?);
            let (listen, admin) = (taken.0.number, taken.1.number);
            ports.extend([taken.0, taken.1]);
            let file = folder.join(format!("{name}.toml"));
            std::fs::write(&file, format!("{}{}", http_config(&folder, listen, admin), common))?;
            admin_urls.push(format!("http://127.0.0.1:{admin}"));
            if serves(args, "ingress") {
                ingress_urls.push(format!("http://127.0.0.1:{listen}"));
            }
            if serves(args, "inbox") {
                base_url.get_or_insert(format!("http://127.0.0.1:{listen}"));
            }
            started.push((name, args, file));
        }
        let single_roles = !names.iter().any(|(_, args)| args.iter().any(|arg| arg == "up"));
        if single_roles && wait_until_ready {
            let (name, ..) = started.first().context("at least one process")?;
            migrate(Path::new(binary), name, &folder).await?;
        }
        let mut processes = Vec::new();
        for (name, args, file) in started {
            let file = file.to_string_lossy().into_owned();
            let mut words: Vec<&str> = args.iter().map(String::as_str).collect();
            words.extend(["--config", &file]);
            processes.push(Process::start(name, Path::new(binary), &words, &[], &folder)?);
        }
        let ingress_url = ingress_urls.first().context("a process with ingress")?.clone();
        let simulator = Simulator::start(SimulatorOptions {
            listen: ([127, 0, 0, 1], simulator_port).into(),
            webhook_urls: ingress_urls.iter().map(|url| format!("{url}/webhooks/meta")).collect(),
            ..options.simulator
        })
        .await?;
        if wait_until_ready {
            until_ready(&mut processes, &admin_urls).await?;
        }
        let url: StoreUrl = database_url.parse()?;
        let store = Store::open(&test_options(url.clone())).await?;
        let base_url = base_url.unwrap_or_else(|| ingress_url.clone());
        Ok(Self {
            simulator,
            processes,
            base_url,
            ingress_url,
            store,
            folder,
            store_url: url,
            binary: binary.into(),
            admin_urls,
            _folder: guard,
            _ports: ports,
        })
    }

    /// A client of its API with the token of every test.
    pub fn api(&self) -> Api {
        Api::new(&self.base_url, API_TOKEN)
    }

    /// `roost migrate` with the configuration of the first process.
    /// # Errors
    /// When it fails; the message carries its last words.
    pub async fn migrate(&self) -> Result<()> {
        let first = self.processes.first().context("at least one process")?;
        migrate(&self.binary, &first.name, &self.folder).await
    }

    /// Waits until every process says that it is ready.
    /// # Errors
    /// When one does not within a minute, or ends; the message carries its last words.
    pub async fn until_ready(&mut self) -> Result<()> {
        until_ready(&mut self.processes, &self.admin_urls).await
    }

    /// What the process of that name answers to `GET /readyz` on its admin listener: which parts are not ready, and why.
    /// Empty: it is ready.
    /// # Errors
    /// When it does not answer, or there is no such process.
    pub async fn not_ready(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let at = self.processes.iter().position(|process| process.name == name).context("a process of that name")?;
        let admin = self.admin_urls.get(at).context("its admin listener")?;
        let answer = client()?.get(format!("{admin}/readyz")).send().await?;
        let ready = answer.status().is_success();
        let mut page: serde_json::Value = serde_json::from_slice(&answer.bytes().await?)?;
        anyhow::ensure!(page.get("ready") == Some(&ready.into()), "{name}: status and body disagree: {page}");
        match page.get_mut("notReady") {
            Some(reasons) => Ok(serde_json::from_value(reasons.take())?),
            None => Ok(BTreeMap::new()),
        }
    }

    /// The process of that name.
    /// # Panics
    /// When there is none: the test names its own processes.
    #[expect(clippy::expect_used, reason = "a test naming a process it did not start is a mistake in the test")]
    pub fn process(&mut self, name: &str) -> &mut Process {
        self.processes.iter_mut().find(|process| process.name == name).expect("a process of that name")
    }

    /// The last lines of every process, for a failure's message.
    pub fn last_lines(&self) -> String {
        let mut text = String::new();
        for process in &self.processes {
            let _ = writeln!(text, "--- {}\n{}", process.name, process.last_lines(15));
        }
        text
    }
}

async fn migrate(binary: &Path, config_of: &str, folder: &Path) -> Result<()> {
    let file = folder.join(format!("{config_of}.toml"));
    let args = ["migrate", "--config", &file.to_string_lossy()];
    let mut migrate = Process::start("migrate", binary, &args, &[], folder)?;
    let status = migrate.ended(Duration::from_secs(60)).await?;
    anyhow::ensure!(status.success(), "roost migrate failed:\n{}", migrate.last_lines(20));
    Ok(())
}

fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

async fn until_ready(processes: &mut [Process], admin_urls: &[String]) -> Result<()> {
    let client = client()?;
    for (process, admin) in processes.iter_mut().zip(admin_urls) {
        let ready = wait::until("readiness", Duration::from_secs(60), async || {
            anyhow::ensure!(process.runs()?, "{} has ended:\n{}", process.name, process.last_lines(30));
            Ok(match client.get(format!("{admin}/readyz")).send().await {
                Ok(answer) if answer.status().is_success() => Some(()),
                _ => None,
            })
        });
        ready.await.with_context(|| format!("{}:\n{}", process.name, process.last_lines(30)))?;
    }
    Ok(())
}

fn http_config(folder: &Path, listen: u16, admin: u16) -> String {
    format!(
        "data_dir = \"{}\"\n[http]\nlisten = \"127.0.0.1:{listen}\"\nadmin_listen = \"127.0.0.1:{admin}\"\n",
        folder.join("data").display()
    )
}

fn common_config(options: &SystemOptions, folder: &Path, database_url: &str, simulator_port: u16) -> Result<String> {
    std::fs::create_dir_all(folder.join("data"))?;
    let secret = |name: &str, value: &str| -> Result<()> { Ok(std::fs::write(folder.join(name), value)?) };
    secret("app_secret", APP_SECRET)?;
    secret("verify_token", VERIFY_TOKEN)?;
    secret("access_token", ACCESS_TOKEN)?;
    secret("api_token_sha256", &hex::encode(runtime::config::token_digest(API_TOKEN)))?;
    let mut text = format!("[store]\nurl = \"{database_url}\"\n[queue]\n");
    if options.stack.rabbitmq() {
        let url = match &options.amqp_url {
            Some(url) => url.clone(),
            None => std::env::var("ROOST_TEST_AMQP_URL")
                .context("this test needs RabbitMQ: run it through tests/run, or set ROOST_TEST_AMQP_URL")?,
        };
        let prefix = format!("t{}.", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        let _ = writeln!(text, "url = \"{url}\"\nprefix = \"{prefix}\"");
    } else {
        text.push_str("url = \"embedded\"\n");
    }
    let file = |name: &str| format!("file:{}", folder.join(name).display());
    let _ = writeln!(
        text,
        "[[sources]]\nname = \"meta\"\nkind = \"meta\"\napp_secret = [\"{}\"]\nverify_token = \"{}\"\n\
         [[accounts]]\nname = \"sales\"\nchannel = \"WHATSAPP\"\nsource = \"meta\"\nphone_number_id = \"{PHONE_NUMBER_ID}\"\n\
         access_token = \"{}\"\napi_base = \"http://127.0.0.1:{simulator_port}\"\n{}\n\
         [[api_tokens]]\nname = \"crm\"\nsha256 = \"{}\"",
        file("app_secret"),
        file("verify_token"),
        file("access_token"),
        options.account_config,
        file("api_token_sha256"),
    );
    text.push_str(&options.more_config);
    Ok(text)
}
