//! Processes under test: this very program again, as one of the plain designs or as Roost.

use crate::cpu;
use anyhow::{Context, Result, bail, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a process may take until it can do its job.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// From SIGTERM to its end; then it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Started under this name the program is Roost, so that what is measured is the binary itself and nothing has to be
/// built twice.
const ROOST: &str = "roost";

/// Whether this process was started as Roost.
pub(crate) fn is_roost() -> bool {
    std::env::args_os().next().is_some_and(|name| name == ROOST)
}

/// A command line of Roost's.
pub(crate) fn roost(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg0(ROOST).args(arguments);
    // Settings of the person who measures are not what is measured.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ROOST_") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// One of this program's hidden subcommands.
pub(crate) fn ourselves(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

/// An address on loopback that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, testkit::servers::free_port()?)))
}

/// A running process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts it in `folder`, where its log goes too.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let out = std::fs::File::create(&log)?;
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in megabytes.
    pub(crate) fn resident_mb(&self) -> Result<f64> {
        cpu::resident_mb(self.id())
    }

    /// What it has printed.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails with its last words when it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has ended ({status}):\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// The last lines of its log.
    pub(crate) fn last_words(&self) -> String {
        let printed = self.printed();
        let lines: Vec<&str> = printed.lines().collect();
        lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
    }

    /// Waits until it accepts connections.
    pub(crate) async fn wait_until_listening(&mut self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while TcpStream::connect(address).await.is_err() {
            self.wait_a_little(deadline).await?;
        }
        Ok(())
    }

    /// Waits until its `/readyz` says so.
    pub(crate) async fn wait_until_ready(&mut self, admin: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        while !get(admin, "/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            self.wait_a_little(deadline).await?;
        }
        Ok(())
    }

    async fn wait_a_little(&mut self, deadline: Instant) -> Result<()> {
        self.check()?;
        ensure!(Instant::now() < deadline, "{} does not get ready:\n{}", self.name, self.last_words());
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let id = self.id().to_string();
        Command::new("kill").args(["-s", "TERM", "--", &id]).status()?;
        self.ended(STOP_DEADLINE).await?;
        Ok(())
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end:\n{}", self.name, self.last_words());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole answer to a GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    tokio::time::timeout(Duration::from_secs(5), ask).await.context("no answer")?
}
