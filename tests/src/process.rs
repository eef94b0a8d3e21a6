//! One `roost` process, with its log in a file, that can be killed, stopped, frozen and started again.

use anyhow::{Context, Result, bail};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A `roost` process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages: `ingest-2`.
    pub name: String,
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    folder: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    /// Starts `binary args…` in `folder`.
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, binary: &Path, args: &[&str], env: &[(&str, &str)], folder: &Path) -> Result<Self> {
        let own = |text: &&str| (*text).to_owned();
        let mut process = Self {
            name: name.to_owned(),
            binary: binary.to_owned(),
            args: args.iter().map(own).collect(),
            env: env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            folder: folder.to_owned(),
            log: folder.join(format!("{name}.log")),
            child: None,
        };
        process.run()?;
        Ok(process)
    }

    /// Starts it again after it ended.
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.binary);
        command
            .args(&self.args)
            .env_clear()
            .envs(
                std::env::vars()
                    .filter(|(key, _)| matches!(key.as_str(), "PATH" | "HOME" | "TMPDIR" | "TZ" | "RUST_BACKTRACE")),
            )
            .env("ROOST_TEST", "1")
            .envs(self.env.iter().cloned())
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it still runs.
    /// # Errors
    /// When the system does not tell.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?.is_none(),
            None => false,
        })
    }

    /// What it has printed so far.
    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines it has printed, for a failure's message.
    pub fn last_lines(&self, lines: usize) -> String {
        let printed = self.printed();
        let all: Vec<&str> = printed.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// `kill -9`.
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Sends a signal by name: `TERM`, `STOP`, `CONT`.
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let id = self.id().with_context(|| format!("{} does not run", self.name))?;
        let status = Command::new("kill").arg(format!("-{signal}")).arg(id.to_string()).status()?;
        if !status.success() {
            bail!("{} could not be sent {signal}", self.name);
        }
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    /// # Errors
    /// When it does not end within `within`.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal("TERM")?;
        self.ended(within).await
    }

    /// Waits for its end.
    /// # Errors
    /// When it does not end within `within`.
    pub async fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let child = self.child.as_mut().with_context(|| format!("{name} does not run"))?;
        let status = crate::wait::until(&format!("the end of {name}"), within, async || Ok(child.try_wait()?)).await?;
        self.child = None;
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; either way nothing is left behind.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
