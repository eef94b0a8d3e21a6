//! The configuration: one TOML file and `ROOST_…` variables, read once at start. Secrets are references, unknown keys are
//! mistakes, settings are held against each other, and everything that is wrong is told at once.

pub mod account;
mod check;
mod document;
mod env;
mod error;
mod http;
mod log;
mod people;
mod places;
mod print;
mod reader;
pub mod source;
mod tuning;

pub use check::Mode;
pub use env::Env;
pub use error::ConfigError;
pub use http::Http;
pub use log::{Log, LogFormat};
pub use people::{ApiToken, User, token_digest};
pub use places::{BlobsPlace, Queue, QueuePlace, Store, StorePlace};
pub use tuning::Tuning;

use document::{Entry, Table, Value};
use domain::{Account, AccountName, Clock, Source, SystemClock, Timestamp};
use error::why_unread;
use reader::{Reading, TableReader};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the configuration is looked for when neither `--config` nor `ROOST_CONFIG` says where.
pub const DEFAULT_FILE: &str = "./roost.toml";
/// Where files are kept unless `data_dir` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "./roost-data";

/// Tables that exist once.
const TABLES: [&str; 6] = ["store", "queue", "http", "media", "log", "tuning"];
/// Tables of which there may be several.
const LISTS: [&str; 4] = ["sources", "accounts", "users", "api_tokens"];
/// Tables that a later version brings.
const LATER_TABLES: [&str; 1] = ["drafts"];

/// Everything a process needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read; `None` when everything is at its default.
    pub file: Option<PathBuf>,
    /// Files of this deployment: databases, media, the CLI's token.
    pub data_dir: PathBuf,
    /// Rows.
    pub store: Store,
    /// Messages between roles.
    pub queue: Queue,
    /// Listeners and their limits.
    pub http: Http,
    /// Large bodies and files.
    pub blobs: BlobsPlace,
    /// Log lines.
    pub log: Log,
    /// Clocks and sizes of the machinery.
    pub tuning: Tuning,
    /// Who signs webhooks.
    pub sources: Vec<Source>,
    /// The numbers that are ours.
    pub accounts: Vec<Account>,
    /// Who may open the page.
    pub users: Vec<User>,
    /// Which programs may use the API.
    pub api_tokens: Vec<ApiToken>,
    /// Where the clock starts (`ROOST_NOW`); `None`: the machine's time.
    pub start: Option<Timestamp>,
    /// What is allowed but unwise, one sentence each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the configuration: from `path`, else from `$ROOST_CONFIG`, else from `./roost.toml` if it is there, else only
    /// from the environment. `demo` allows what is fine for trying things (`ROOST_NOW`, plain http to a simulator), as
    /// `ROOST_TEST=1` does.
    /// # Errors
    /// Everything that is wrong with it, each a sentence that says what to change.
    pub fn load(path: Option<&Path>, demo: bool, env: &Env) -> Result<Self, ConfigError> {
        let named = path.map(Path::to_path_buf).or_else(|| env.get("ROOST_CONFIG").map(PathBuf::from));
        let path = match named {
            Some(path) => Some(path),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()),
        };
        let text = match &path {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                ConfigError::one(match error.kind() {
                    ErrorKind::NotFound => format!(
                        "There is no configuration file {}: correct --config or ROOST_CONFIG, or leave both out to run on defaults.",
                        path.display()
                    ),
                    _ => format!("The configuration {} cannot be read: {}.", path.display(), why_unread(&error)),
                })
            })?,
            None => String::new(),
        };
        Self::parse(path.as_deref(), &text, demo, env)
    }

    /// Reads the text of a configuration file called `path`.
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: Option<&Path>, text: &str, demo: bool, env: &Env) -> Result<Self, ConfigError> {
        let name = path.map(|path| path.display().to_string());
        let root = document::parse(name.as_deref().unwrap_or("the configuration"), text)?;
        let reading = Reading::new(name, env);
        let config = read(root, path, demo, &reading);
        reading.check_variables();
        reading.outcome()?;
        Ok(config)
    }

    /// What `roost up` runs on without a file and without variables: everything in `data_dir`.
    pub fn defaults(data_dir: &Path) -> Self {
        Self {
            file: None,
            data_dir: data_dir.to_owned(),
            store: places::default_store(data_dir),
            queue: places::default_queue(data_dir),
            http: Http::default(),
            blobs: places::default_blobs(data_dir),
            log: Log::default(),
            tuning: Tuning::default(),
            sources: Vec::new(),
            accounts: Vec::new(),
            users: Vec::new(),
            api_tokens: Vec::new(),
            start: None,
            warnings: Vec::new(),
        }
    }

    /// The clock of everything people see.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.start.map_or_else(SystemClock::default, SystemClock::starting_at))
    }

    /// The source of that name.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.name.as_str() == name)
    }

    /// The account of that name.
    pub fn account(&self, name: &AccountName) -> Option<&Account> {
        self.accounts.iter().find(|account| account.name == *name)
    }
}

fn read(mut root: Table, path: Option<&Path>, demo: bool, reading: &Reading<'_>) -> Config {
    let trying = demo || reading.env.get("ROOST_TEST") == Some("1");
    let tables = TABLES.map(|name| (name, take_table(&mut root, name, reading)));
    let [store, queue, http, media, log, tuning] =
        tables.map(|(name, (table, line))| TableReader::single(reading, name, table, line));
    let [sources, accounts, users, api_tokens] = LISTS.map(|name| take_list(&mut root, name, reading));
    refuse_strange_tables(&mut root, reading);

    let top = TableReader::single(reading, "", root, 0);
    let data_dir = match top.text("data_dir") {
        Some(dir) if dir.trim().is_empty() => {
            top.wrong("data_dir", "must name a folder");
            PathBuf::from(DEFAULT_DATA_DIR)
        }
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(DEFAULT_DATA_DIR),
    };
    top.finish();

    let mut config = Config::defaults(&data_dir);
    config.file = path.map(Path::to_path_buf);
    config.log = log::read(log);
    config.store = places::read_store(store, &data_dir, &mut config.warnings);
    config.queue = places::read_queue(queue, &data_dir, &mut config.warnings);
    config.blobs = places::read_blobs(media, &data_dir);
    config.http = http::read(http);
    config.tuning = Tuning::read(tuning);
    config.start = read_start(trying, reading);

    let source_names = names(&sources);
    let listed = |list: &str, named_by: &str, (index, (table, line)): (usize, (Table, usize))| {
        TableReader::listed(reading, list, index, table, line, named_by)
    };
    let sources = sources.into_iter().enumerate();
    config.sources = sources.filter_map(|entry| source::read(listed("sources", "name", entry))).collect();
    let accounts = accounts.into_iter().enumerate();
    config.accounts = accounts.filter_map(|entry| account::read(listed("accounts", "name", entry), trying)).collect();
    let users = users.into_iter().enumerate();
    config.users = users.filter_map(|entry| people::read_user(listed("users", "email", entry))).collect();
    let tokens = api_tokens.into_iter().enumerate();
    config.api_tokens = tokens.filter_map(|entry| people::read_token(listed("api_tokens", "name", entry))).collect();

    // The CRM's old address belongs to the only app there is.
    let mut meta = config.sources.iter_mut().filter(|source| source.kind == "meta");
    if let (Some(only), None) = (meta.next(), meta.next()) {
        only.crm_alias = true;
    }
    check::check(&config, reading);
    check::check_account_sources(&config, &source_names, reading);
    config
}

/// The `name`s of a list of tables.
fn names(list: &[(Table, usize)]) -> BTreeSet<String> {
    let name = |(table, _): &(Table, usize)| match table.get("name") {
        Some(Entry { value: Value::Text(name), .. }) => Some(name.clone()),
        _ => None,
    };
    list.iter().filter_map(name).collect()
}

fn take_table(root: &mut Table, name: &str, reading: &Reading<'_>) -> (Table, usize) {
    match root.remove(name) {
        None => (Table::new(), 0),
        Some(Entry { line, value: Value::Table(table) }) => (table, line),
        Some(Entry { line, value: other }) => {
            let what = match other {
                Value::List(_) => format!("write [{name}], not [[{name}]]: there is one"),
                other => format!("`{name}` must be a table, [{name}], not {}", other.kind()),
            };
            reading.problem(format!("{}{what}.", reading.at(line)));
            (Table::new(), line)
        }
    }
}

fn take_list(root: &mut Table, name: &str, reading: &Reading<'_>) -> Vec<(Table, usize)> {
    let Some(Entry { line, value }) = root.remove(name) else { return Vec::new() };
    let entries = match value {
        Value::List(entries) => entries,
        _ => Vec::new(),
    };
    let count = entries.len();
    let tables = entries
        .into_iter()
        .filter_map(|entry| match entry.value {
            Value::Table(table) => Some((table, entry.line)),
            _ => None,
        })
        .collect::<Vec<_>>();
    if tables.len() != count || count == 0 {
        reading.problem(format!("{}write [[{name}]], with two brackets, once for each of them.", reading.at(line)));
    }
    tables
}

/// Whatever is still a table is none of ours.
fn refuse_strange_tables(root: &mut Table, reading: &Reading<'_>) {
    let is_table = |value: &Value| match value {
        Value::Table(_) => true,
        Value::List(entries) => matches!(entries.first(), Some(Entry { value: Value::Table(_), .. })),
        _ => false,
    };
    let strange =
        root.iter().filter(|(_, entry)| is_table(&entry.value)).map(|(name, _)| name.clone()).collect::<Vec<_>>();
    for name in strange {
        let Some(entry) = root.remove(&name) else { continue };
        let at = reading.at(entry.line);
        if LATER_TABLES.contains(&name.as_str()) {
            reading.problem(format!("{at}[{name}] is not served by this version yet: take it out."));
            continue;
        }
        let written = |name: &str| if LISTS.contains(&name) { format!("[[{name}]]") } else { format!("[{name}]") };
        let hint = match reader::nearest(&name, TABLES.into_iter().chain(LISTS)) {
            Some(near) => format!("did you mean {}?", written(near)),
            None => {
                format!("there are {}.", TABLES.into_iter().chain(LISTS).map(written).collect::<Vec<_>>().join(", "))
            }
        };
        reading.problem(format!("{at}there is no table [{name}]; {hint}"));
    }
}

/// `ROOST_NOW`: a clock that starts elsewhere would spoil real data, so it needs `--demo` or `ROOST_TEST=1`.
fn read_start(trying: bool, reading: &Reading<'_>) -> Option<Timestamp> {
    let text = reading.env.get("ROOST_NOW")?;
    if !trying {
        reading.problem("ROOST_NOW moves the clock and is only for trying things: unset it, or start with --demo.");
        return None;
    }
    let start = text.parse().ok();
    if start.is_none() {
        reading.problem(format!("ROOST_NOW must be a time such as 2026-11-22T09:30:00Z, not {text:?}."));
    }
    start
}
