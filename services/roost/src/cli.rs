//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What a newcomer does first, and what a script needs to know.
const AFTERWORD: &str = "\
To try it:      roost up --demo
On a server:    roost migrate, then roost ingress, ingest, inbox and sender, each with --config FILE
Exit codes:     0 done, 1 it failed, 64 something has to be changed first (nothing was started)";

/// Messaging fleet behind a CRM inbox: webhooks in, messages out, nothing lost, nothing sent twice.
#[derive(Debug, Parser)]
#[command(name = "roost", version, max_term_width = 100, after_help = AFTERWORD)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Every role in one process; without a configuration on SQLite in ./roost-data
    Up(Up),
    /// Provider webhooks into the queue (add more role names to run them in the same process)
    Ingress(Roles),
    /// The queue into the database, and every timer
    Ingest(Roles),
    /// The people's page and API
    Inbox(Roles),
    /// Outbound messages to their providers
    Sender(Roles),
    /// Bring the database's schema up to this version
    Migrate(ConfigFile),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Users of the page
    #[command(subcommand)]
    User(UserCommand),
    /// A provider to try things against: point an account's api_base at it
    Simulator(Simulator),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// Configuration file [default: ./roost.toml, if there is one]
    #[arg(long, value_name = "FILE", env = "ROOST_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Add a simulated provider and a customer's phone, wired to a demo account
    #[arg(long)]
    pub(crate) demo: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Roles {
    /// More roles for the same process
    #[arg(value_name = "ROLE")]
    pub(crate) also: Vec<Role>,
    #[command(flatten)]
    pub(crate) config: ConfigFile,
}

/// A role a process can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Role {
    /// Provider webhooks into the queue.
    Ingress,
    /// The queue into the database, and every timer.
    Ingest,
    /// The people's page and API.
    Inbox,
    /// Outbound messages to their providers.
    Sender,
}

impl Role {
    /// Every role, in the order of the data flow.
    pub(crate) const ALL: [Role; 4] = [Role::Ingress, Role::Ingest, Role::Inbox, Role::Sender];

    /// Its name, as on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Role::Ingress => "ingress",
            Role::Ingest => "ingest",
            Role::Inbox => "inbox",
            Role::Sender => "sender",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether the configuration is good, and if not, what to change
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Also print what is in force, with secrets left out
        #[arg(long)]
        print: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Read a password from standard input and print its argon2id hash for [[users]].password_hash
    Hash,
}

#[derive(Debug, Args)]
pub(crate) struct Simulator {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9099")]
    pub(crate) listen: std::net::SocketAddr,
    /// Where its webhooks go
    #[arg(long, default_value = "http://127.0.0.1:8080/webhooks/meta")]
    pub(crate) webhook_url: String,
    /// Secret its webhooks are signed with
    #[arg(long, env = "ROOST_TEST_SIMULATOR_SECRET", default_value = "simulated-app-secret")]
    pub(crate) app_secret: String,
    /// Token its callers must present
    #[arg(long, env = "ROOST_TEST_SIMULATOR_TOKEN", default_value = "simulated-access-token")]
    pub(crate) access_token: String,
    /// Ids of the phone numbers it serves
    #[arg(long, default_value = "100000000000001")]
    pub(crate) phone_number_id: Vec<String>,
}
