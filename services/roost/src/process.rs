//! `roost up`, the single roles, and `roost migrate`.

use crate::cli::{ConfigFile, Role, Roles as RoleArgs, Up};
use crate::foundation::{Foundation, store_options};
use crate::{Failure, config, demo, print, roles, tell};
use anyhow::Context as _;
use runtime::config::{ApiToken, QueuePlace, StorePlace, token_digest};
use runtime::health::{Admin, Health};
use runtime::http_server::Server;
use runtime::metrics::Metrics;
use runtime::shutdown::{Roles, stop_on_signals};
use runtime::{Config, Mode, telemetry};
use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// File in `data_dir` with the token that `curl` and the command line may use while `roost up` runs.
const TOKEN_FILE: &str = "admin.token";
/// How long a scrape under way may take once we stop.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// Every role in one process.
pub(crate) fn up(args: &Up) -> Result<ExitCode, Failure> {
    let begun = Instant::now();
    let mut config = config::load(&args.config, args.demo)?;
    config.fits(Mode::Up).map_err(Failure::usage)?;
    telemetry::init(&config.log)?;
    warn(&config);
    threads(&Role::ALL, &config)?.block_on(async {
        let stop = stop_on_signals()?;
        let metrics = Metrics::new();
        let (listener, admin) = listen(&config, &metrics)?;
        let lock = lock(&config)?;
        let simulator = match args.demo {
            true => Some(demo::start(&mut config, listener.local_addr()).await?),
            false => None,
        };
        let addresses = Addresses {
            front: format!("http://{}", demo::reachable(listener.local_addr())),
            admin: format!("http://{}", admin.local_addr()),
            phone: simulator.as_ref().map(simulator::Simulator::url),
        };
        let login = demo::random();
        let (token, own_token) = own_token(&config)?;
        let foundation = Foundation::open(config, &Role::ALL, metrics).await?;
        migrate_when_reachable(&foundation, &stop).await?;
        foundation.watch(&stop);
        let mut running = Roles::new(stop.clone(), foundation.config.tuning.drain);
        running.spawn("admin", serve_admin(admin, &foundation, running.stop()));
        roles::start(&foundation, &Role::ALL, listener, &mut running, Some(login.clone()), Some(own_token)).await?;
        let health = foundation.health.clone();
        tokio::spawn(async move {
            ready(&health).await;
            welcome(begun, &addresses, &login, &token);
        });
        let ended = running.until_stopped().await;
        if let Some(simulator) = simulator {
            simulator.shutdown().await;
        }
        foundation.close().await;
        drop(lock);
        Ok(ended.into())
    })
}

/// Single roles: the rest of the fleet runs elsewhere.
pub(crate) fn roles(first: Role, args: &RoleArgs) -> Result<ExitCode, Failure> {
    let config = config::load(&args.config, false)?;
    config.fits(Mode::Roles).map_err(Failure::usage)?;
    let mut roles = vec![first];
    for role in &args.also {
        if !roles.contains(role) {
            roles.push(*role);
        }
    }
    telemetry::init(&config.log)?;
    warn(&config);
    threads(&roles, &config)?.block_on(async {
        let stop = stop_on_signals()?;
        let metrics = Metrics::new();
        let (listener, admin) = listen(&config, &metrics)?;
        let foundation = Foundation::open(config, &roles, metrics).await?;
        foundation.watch(&stop);
        let mut running = Roles::new(stop, foundation.config.tuning.drain);
        running.spawn("admin", serve_admin(admin, &foundation, running.stop()));
        roles::start(&foundation, &roles, listener, &mut running, None, None).await?;
        let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        tracing::info!(
            roles = names.join(" "),
            version = env!("CARGO_PKG_VERSION"),
            "Roost {} started",
            names.join(" and ")
        );
        tokio::spawn(tell_when_ready(foundation.health.clone(), names.join(" and ")));
        let ended = running.until_stopped().await;
        foundation.close().await;
        Ok(ended.into())
    })
}

/// Brings the database's schema up to this version.
pub(crate) fn migrate(file: &ConfigFile) -> Result<ExitCode, Failure> {
    let config = config::load(file, false)?;
    telemetry::init(&config.log)?;
    threads(&[Role::Ingest], &config)?.block_on(async {
        runtime::tls::install_provider();
        if let StorePlace::Sqlite(_) = config.store.place {
            make_data_dir(&config)?;
        }
        let store = store::Store::open(&store_options(&config, "migrate")).await?;
        let migrated = store.migrate().await;
        store.close().await;
        match migrated {
            Ok(()) => {
                print("The schema is up to date.");
                Ok(ExitCode::SUCCESS)
            }
            Err(error) if error.is_transient() => {
                let away = "the database cannot be reached: start it, or correct [store] url";
                Err(anyhow::Error::from(error).context(away).into())
            }
            Err(error) => Err(anyhow::Error::from(error).context("the schema could not be brought up to date").into()),
        }
    })
}

/// Ingress alone does best on few threads (`docs/performance.md`); everything else takes one for each core.
fn threads(roles: &[Role], config: &Config) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match (roles == [Role::Ingress], config.tuning.ingress_threads) {
        (true, 1) => tokio::runtime::Builder::new_current_thread(),
        (alone, threads) => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            if alone {
                builder.worker_threads(threads);
            }
            builder
        }
    };
    builder.enable_all().build()
}

fn listen(config: &Config, metrics: &Metrics) -> Result<(Server, Server), Failure> {
    let bind = |address, key: &str| {
        Server::bind(address, config.http.limits.clone(), metrics.clone()).map_err(|error| {
            Failure::Usage(format!(
                "{error}: choose another address with {key} in [http] (or ROOST_HTTP_{}), or stop what has this one.",
                key.to_uppercase()
            ))
        })
    };
    Ok((bind(config.http.listen, "listen")?, bind(config.http.admin_listen, "admin_listen")?))
}

/// Metrics, and health with its reasons.
fn serve_admin(
    admin: Server,
    foundation: &Foundation,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), Infallible>> + Send + use<> {
    let pages = Admin::new(foundation.health.clone(), foundation.metrics.clone());
    async move {
        admin.serve(pages, stop, ADMIN_DRAIN).await;
        Ok(())
    }
}

fn warn(config: &Config) {
    for warning in &config.warnings {
        tell(&format!("Warning: {warning}"));
    }
}

/// SQLite and the embedded queue belong to one process: the first one holds the lock file, a second is told so.
fn lock(config: &Config) -> Result<Option<File>, Failure> {
    make_data_dir(config)?;
    let files =
        matches!(config.store.place, StorePlace::Sqlite(_)) || matches!(config.queue.place, QueuePlace::Embedded(_));
    if !files {
        return Ok(None);
    }
    let path = config.data_dir.join("roost.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| unusable_data_dir(config, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(Failure::Usage(format!(
            "Another Roost already runs on {}: stop it first, or set data_dir to another folder.",
            config.data_dir.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Customers' words are in it: nobody else on the machine may look.
fn make_data_dir(config: &Config) -> Result<(), Failure> {
    let path = &config.data_dir;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| unusable_data_dir(config, &error))
}

fn unusable_data_dir(config: &Config, error: &std::io::Error) -> Failure {
    Failure::Usage(format!(
        "The folder {} cannot be used ({error}): set data_dir to one that this user may write to.",
        config.data_dir.display()
    ))
}

/// A token for this run, kept where only the owner of `data_dir` can read it.
fn own_token(config: &Config) -> Result<(std::path::PathBuf, ApiToken), Failure> {
    use std::io::Write as _;
    let token = demo::random();
    let path = config.data_dir.join(TOKEN_FILE);
    // A file left over from an earlier run may have been made readable since: begin anew.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    file.write_all(token.as_bytes())?;
    let own = ApiToken { name: "roost-up".to_owned(), sha256: token_digest(&token), role: domain::Role::Admin };
    Ok((path, own))
}

/// `up` migrates by itself; a database server may still be on its way.
async fn migrate_when_reachable(foundation: &Foundation, stop: &CancellationToken) -> Result<(), Failure> {
    let store = foundation.store()?;
    let tuning = &foundation.config.tuning;
    let mut waits = runtime::reconnect::Reconnect::new(tuning.reconnect_first, tuning.reconnect_most);
    loop {
        match store.migrate().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_transient() => {
                let wait = waits.next_wait();
                tracing::warn!(%error, "The database is away; asking again");
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return Ok(()),
                }
            }
            Err(error) => {
                return Err(anyhow::Error::from(error).context("the schema could not be brought up to date").into());
            }
        }
    }
}

async fn ready(health: &Health) {
    while !health.is_ready() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whoever started it wants to know when it can do its job.
async fn tell_when_ready(health: Health, names: String) {
    ready(&health).await;
    tracing::info!("Roost {names}: ready");
}

struct Addresses {
    front: String,
    admin: String,
    phone: Option<String>,
}

fn welcome(begun: Instant, addresses: &Addresses, login: &str, token: &std::path::Path) {
    let Addresses { front, admin, phone } = addresses;
    print(&format!("\nRoost {} is ready ({} ms).\n", env!("CARGO_PKG_VERSION"), begun.elapsed().as_millis()));
    print(&format!("  Inbox             {front}/inbox"));
    print(&format!("  Log in, once      {front}/login/once/{login}"));
    if let Some(phone) = phone {
        print(&format!("  Customer's phone  {phone}/"));
    }
    print(&format!("  API token         in {}", token.display()));
    print(&format!("  Metrics, health   {admin}/metrics  {admin}/readyz\n"));
    match phone {
        Some(_) => print("Open the login link and the phone side by side: write as the customer, answer in the inbox."),
        None => print(&format!(
            "Point your providers at {front}/webhooks/<source>. `roost up --demo` adds a simulated one."
        )),
    }
    print("Ctrl+C stops.\n");
}
