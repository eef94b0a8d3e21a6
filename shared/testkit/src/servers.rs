//! Private servers that a test may kill, stop, suspend and start again on the same port and data: the recipe of
//! `tests/with-services`, one server at a time. They live in a temporary folder and end with their handle.

use anyhow::{Context, Result, bail, ensure};
use sqlx::{Connection, PgConnection};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a server may take to answer on a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How long a polite stop may take.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A process in a process group of its own, so that a signal reaches its children too and nothing else. It ends with its
/// handle, and also when this process is killed and cannot drop anything.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Waits for the end of this process, which closes its input, and then kills the group.
    guardian: Child,
    name: &'static str,
    /// Once it is known to be gone its id may belong to another process.
    gone: bool,
}

impl Server {
    /// Starts a process; what it prints goes to `log`.
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &'static str, command: &mut Command, log: &Path) -> Result<Self> {
        let out = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let guardian = Command::new("sh")
            .args(["-c", "read -r _; kill -s KILL -- \"-$1\"", "guardian", &child.id().to_string()])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("sh cannot be started")?;
        Ok(Self { child, guardian, name, gone: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `STOP`, to the process and its children.
    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: &str) -> Result<()> {
        ensure!(!self.gone, "{} is gone", self.name);
        let group = format!("-{}", self.child.id());
        let sent = Command::new("kill").args(["-s", signal, "--", &group]).stderr(Stdio::null()).status()?;
        ensure!(sent.success(), "{} is gone", self.name);
        Ok(())
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.gone {
            return;
        }
        let _ = self.signal("KILL");
        self.dismiss_guardian();
        let _ = self.child.wait();
        self.gone = true;
    }

    /// Before the id is free for others.
    fn dismiss_guardian(&mut self) {
        let _ = self.guardian.kill();
        let _ = self.guardian.wait();
    }

    /// Sends a signal that asks it to stop, and waits until it has.
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&mut self, signal: &str) -> Result<()> {
        ensure!(!self.gone, "{} is gone", self.name);
        // Only the process itself: it stops its children.
        let id = self.child.id().to_string();
        Command::new("kill").args(["-s", signal, "--", &id]).status()?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.is_running()? {
            ensure!(Instant::now() < deadline, "{} does not stop", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether it still runs.
    /// # Errors
    /// When the system cannot tell.
    pub fn is_running(&mut self) -> Result<bool> {
        if !self.gone && self.child.try_wait()?.is_some() {
            self.dismiss_guardian();
            self.gone = true;
        }
        Ok(!self.gone)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port nobody listens on.
/// # Errors
/// When the machine has none left.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether what listens on `port` answers `greeting` with a first byte among `answers`.
pub async fn greets(port: u16, greeting: &[u8], answers: &[u8]) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(greeting).await?;
        stream.read_u8().await
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(byte)) if answers.contains(&byte))
}

/// Waits until `server` answers on `port`.
/// # Errors
/// When it ends or takes too long, with the last lines of its log.
pub async fn wait_until_greets(
    server: &mut Server,
    port: u16,
    greeting: &[u8],
    answers: &[u8],
    log: &Path,
) -> Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    while !greets(port, greeting, answers).await {
        if !server.is_running()? || Instant::now() > deadline {
            let log = std::fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(20).collect();
            bail!(
                "{} does not answer on port {port}:\n{}",
                server.name,
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// A private PostgreSQL.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Server,
    bin: PathBuf,
    port: u16,
    settings: Vec<String>,
    folder: tempfile::TempDir,
}

/// What a test wants of it: what is confirmed survives the server's death, though not the machine's.
const FOR_TESTS: &[&str] = &["fsync=off", "synchronous_commit=on", "full_page_writes=off", "max_connections=100"];

/// `SSLRequest`: PostgreSQL answers one byte, `N` or `S`, to anybody.
const POSTGRES_GREETING: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

impl PrivatePostgres {
    /// Creates and starts one.
    /// # Errors
    /// When PostgreSQL is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with(FOR_TESTS).await
    }

    /// Creates and starts one with these settings (`name=value`) instead of the ones for tests.
    /// # Errors
    /// When PostgreSQL is not installed, or does not start.
    pub async fn start_with(settings: &[&str]) -> Result<Self> {
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let bin = postgres_bin().context(
            "PostgreSQL is not installed (looked for /usr/lib/postgresql/*/bin/initdb): apt-get install postgresql, or tests/run",
        )?;
        let folder = tempfile::Builder::new().prefix("roost-pg.").tempdir()?;
        set_mode(folder.path(), 0o755)?;
        let home = folder.path().join("pg");
        std::fs::create_dir(&home)?;
        if is_root()? {
            ensure!(Command::new("chown").arg("postgres:").arg(&home).status()?.success(), "there is no user postgres");
        }
        let made = as_postgres(&bin.join("initdb"), &home)?
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions", "-D"])
            .arg(home.join("data"))
            .stdout(Stdio::null())
            .status()?;
        ensure!(made.success(), "initdb failed");
        let port = free_port()?;
        let server = Self::serve(&bin, port, &settings, &folder).await?;
        Ok(Self { server, bin, port, settings, folder })
    }

    async fn serve(bin: &Path, port: u16, settings: &[String], folder: &tempfile::TempDir) -> Result<Server> {
        let (home, log) = (folder.path().join("pg"), folder.path().join("pg.log"));
        let mut command = as_postgres(&bin.join("postgres"), &home)?;
        command.arg("-D").arg(home.join("data")).arg("-p").arg(port.to_string());
        command.arg("-c").arg(format!("unix_socket_directories={}", home.display()));
        command.args(["-c", "listen_addresses=127.0.0.1"]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        let mut server = Server::spawn("PostgreSQL", &mut command, &log)?;
        wait_until_greets(&mut server, port, POSTGRES_GREETING, b"NS", &log).await?;
        // It greets before it has recovered from a kill, and refuses everybody until then.
        let deadline = Instant::now() + START_DEADLINE;
        while let Err(error) = PgConnection::connect(&url_at(port)).await {
            ensure!(server.is_running()? && Instant::now() < deadline, "PostgreSQL takes nobody: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        url_at(self.port)
    }

    /// Its port, to put a proxy before it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process id; the backends are its children.
    pub fn id(&self) -> u32 {
        self.server.id()
    }

    /// `kill -9` of the server and all its backends.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Stops it, cutting its clients off.
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&mut self) -> Result<()> {
        self.server.stop("INT").await
    }

    /// Starts it again on the same port and data.
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.server.kill();
        self.server = Self::serve(&self.bin, self.port, &self.settings, &self.folder).await?;
        Ok(())
    }

    /// SIGSTOP for the server and every backend: connections stay open and silent.
    /// # Errors
    /// When it is gone.
    pub fn suspend(&self) -> Result<()> {
        self.signal_all("STOP")
    }

    /// SIGCONT.
    /// # Errors
    /// When it is gone.
    pub fn resume(&self) -> Result<()> {
        self.signal_all("CONT")
    }

    /// Each backend leads a session of its own, so the process group does not reach it.
    fn signal_all(&self, signal: &str) -> Result<()> {
        self.server.signal(signal)?;
        for child in children_of(self.server.id())? {
            // A backend may have ended meanwhile.
            let _ = Command::new("kill").args(["-s", signal, &child.to_string()]).stderr(Stdio::null()).status()?;
        }
        Ok(())
    }
}

fn url_at(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

fn postgres_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, bin)| bin)
}

/// PostgreSQL refuses root.
fn as_postgres(program: &Path, home: &Path) -> Result<Command> {
    let mut command = if is_root()? {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env("HOME", home).current_dir(home);
    Ok(command)
}

pub(crate) fn is_root() -> Result<bool> {
    let id = Command::new("id").arg("-u").output()?;
    Ok(id.stdout.trim_ascii() == b"0")
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

/// The processes whose parent is `parent` (proc(5): field 4 of stat, after the name in brackets).
fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let of = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if of == Some(parent) {
            children.push(id);
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn one(url: &str) -> Result<i64> {
        let mut connection = PgConnection::connect(url).await?;
        Ok(sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connection).await?)
    }

    /// Not a test: the process that the next one kills.
    #[test]
    #[ignore = "run by a_server_ends_with_its_process_however_that_ends"]
    fn child() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let server = Server::spawn("sleep", Command::new("sleep").arg("600"), log.path()).unwrap();
        println!("started {}", server.id());
        std::io::stdin().lines().for_each(drop);
    }

    #[tokio::test]
    async fn a_server_ends_with_its_process_however_that_ends() {
        use std::io::BufRead;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "servers::tests::child", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let started = |line: String| line.split("started ").nth(1).map(str::to_owned);
        let id = lines.map_while(Result::ok).find_map(started).unwrap();
        let alive = || Path::new("/proc").join(&id).join("fd").read_dir().is_ok_and(|mut open| open.next().is_some());
        assert!(alive());
        child.kill().unwrap();
        child.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while alive() {
            assert!(Instant::now() < deadline, "{id} survived");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_private_postgres_keeps_its_data_over_kill_and_stop() {
        let mut server = PrivatePostgres::start().await.unwrap();
        let mut connection = PgConnection::connect(&server.url()).await.unwrap();
        sqlx::raw_sql("CREATE TABLE kept (); INSERT INTO kept DEFAULT VALUES").execute(&mut connection).await.unwrap();
        server.kill();
        assert!(sqlx::query("SELECT 1").execute(&mut connection).await.is_err());
        assert!(one(&server.url()).await.is_err());
        server.start_again().await.unwrap();
        assert_eq!(one(&server.url()).await.unwrap(), 1);
        server.stop().await.unwrap();
        assert!(one(&server.url()).await.is_err());
        server.start_again().await.unwrap();
        assert_eq!(one(&server.url()).await.unwrap(), 1);
        server.suspend().unwrap();
        let url = server.url();
        let asking = tokio::time::timeout(Duration::from_millis(500), one(&url)).await;
        assert!(asking.is_err(), "a suspended server answered");
        server.resume().unwrap();
        assert_eq!(one(&url).await.unwrap(), 1);
    }
}
