//! RabbitMQ for tests: the shared one, with names of one's own, or a private one that may be killed and filled.

use crate::servers::{Server, free_port, set_mode, wait_until_greets};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const CTL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";
const NODE_CONFIG: &str = "log.file.level = warning\ndisk_free_limit.absolute = 64MB\n";
const DEFINITIONS: &str = r#"{"users":[{"name":"guest","password":"guest","tags":["administrator"]}],"vhosts":[{"name":"/"}],
"permissions":[{"user":"guest","vhost":"/","configure":".*","write":".*","read":".*"}]}"#;

/// The AMQP protocol header; a broker answers with a method frame, whose first byte is 1.
const GREETING: &[u8] = b"AMQP\0\0\x09\x01";

/// The shared broker, for tests that leave it alone.
/// # Errors
/// When `ROOST_TEST_AMQP_URL` is not set.
pub fn amqp_url() -> Result<String> {
    std::env::var("ROOST_TEST_AMQP_URL").context(
        "this test needs RabbitMQ: run it through tests/run, or set ROOST_TEST_AMQP_URL to a broker's amqp:// URL",
    )
}

/// A prefix for the names of queues and exchanges that nobody else uses.
pub fn fresh_prefix() -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("t{}.", random.get(..10).unwrap_or(&random))
}

/// A private RabbitMQ node.
#[derive(Debug)]
pub struct PrivateRabbitMq {
    node: Server,
    /// RabbitMQ would start a daemon of its own, which outlives it.
    _epmd: Server,
    place: Place,
}

#[derive(Debug)]
struct Place {
    folder: tempfile::TempDir,
    port: u16,
    dist_port: u16,
    epmd_port: u16,
}

impl PrivateRabbitMq {
    /// Starts one, which takes about six seconds.
    /// # Errors
    /// When RabbitMQ is not installed, or does not start.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// The same with more lines in its configuration file.
    /// # Errors
    /// When RabbitMQ is not installed, or does not start.
    pub async fn start_with(more_config: &str) -> Result<Self> {
        ensure!(
            Path::new(SERVER).exists(),
            "RabbitMQ is not installed ({SERVER} is missing): apt-get install rabbitmq-server, or tests/run"
        );
        match Self::try_start(more_config).await {
            Ok(started) => Ok(started),
            // Somebody took one of the ports between choosing and using it.
            Err(_) => Self::try_start(more_config).await,
        }
    }

    async fn try_start(more_config: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("roost-mq.").tempdir()?;
        set_mode(folder.path(), 0o755)?;
        let place = Place { port: free_port()?, dist_port: free_port()?, epmd_port: free_port()?, folder };
        std::fs::create_dir(place.path("home"))?;
        std::fs::write(place.path("plugins"), "[].")?;
        std::fs::write(place.path("defs.json"), DEFINITIONS)?;
        let config = format!(
            "listeners.tcp.default = 127.0.0.1:{}\nload_definitions = {}\n{NODE_CONFIG}{more_config}",
            place.port,
            place.path("defs.json").display()
        );
        std::fs::write(place.path("rabbitmq.conf"), config)?;
        let mut epmd = Command::new("epmd");
        epmd.args(["-port", &place.epmd_port.to_string(), "-address", "127.0.0.1"]);
        let epmd = Server::spawn("epmd", &mut epmd, &place.path("epmd.log"))?;
        let node = place.serve().await?;
        Ok(Self { node, _epmd: epmd, place })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url_at(self.place.port)
    }

    /// Its URL by way of a proxy on `port`.
    pub fn url_at(&self, port: u16) -> String {
        format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
    }

    /// Its port, to put a proxy before it.
    pub fn port(&self) -> u16 {
        self.place.port
    }

    /// The node's process id.
    pub fn id(&self) -> u32 {
        self.node.id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.node.kill();
    }

    /// SIGTERM, and waits until it is gone, about six seconds.
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&mut self) -> Result<()> {
        self.node.stop("TERM").await
    }

    /// Starts it again on the same port and data.
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result<()> {
        self.node.kill();
        self.node = self.place.serve().await?;
        Ok(())
    }

    /// SIGSTOP: connections stay open and silent.
    /// # Errors
    /// When it is gone.
    pub fn suspend(&self) -> Result<()> {
        self.node.signal("STOP")
    }

    /// SIGCONT.
    /// # Errors
    /// When it is gone.
    pub fn resume(&self) -> Result<()> {
        self.node.signal("CONT")
    }

    /// Raises or clears a memory alarm: while it lasts the broker takes no publishes.
    /// # Errors
    /// When `rabbitmqctl` fails.
    pub async fn memory_alarm(&self, on: bool) -> Result<()> {
        let mark = if on { "0.0001" } else { "0.4" };
        self.ctl(&["set_vm_memory_high_watermark", mark]).await.map(drop)
    }

    /// Closes every connection, as an operator may.
    /// # Errors
    /// When `rabbitmqctl` fails.
    pub async fn close_all_connections(&self) -> Result<()> {
        self.ctl(&["close_all_connections", "by the operator"]).await.map(drop)
    }

    /// Deletes a queue.
    /// # Errors
    /// When `rabbitmqctl` fails.
    pub async fn delete_queue(&self, name: &str) -> Result<()> {
        self.ctl(&["delete_queue", name]).await.map(drop)
    }

    /// Runs `rabbitmqctl`, one to two seconds a call, and returns what it prints. Retries while the node is booting.
    /// # Errors
    /// When it fails.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut command = self.place.command(CTL);
            command.arg("-q").args(arguments).stdin(Stdio::null());
            let output = tokio::process::Command::from(command).kill_on_drop(true).output().await?;
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            ensure!(
                Instant::now() < deadline,
                "rabbitmqctl {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("HOME", self.path("home"))
            .env("ERL_CRASH_DUMP", self.path("crash"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("plugins"))
            .env("RABBITMQ_NODENAME", format!("roost{}@localhost", self.port))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_MNESIA_BASE", self.path("mnesia"))
            .env("RABBITMQ_LOG_BASE", self.path("log"))
            .env("RABBITMQ_PID_FILE", self.path("pid"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env("RABBITMQ_SERVER_ERL_ARGS", "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none")
            // The script then becomes the node, so that its id is the node's.
            .env("detached", "1")
            .current_dir(self.folder.path());
        command
    }

    async fn serve(&self) -> Result<Server> {
        let log = self.path("rabbitmq.log");
        let mut node = Server::spawn("RabbitMQ", &mut self.command(SERVER), &log)?;
        wait_until_greets(&mut node, self.port, GREETING, &[1], &log).await?;
        Ok(node)
    }
}
