//! The one binary. It reads the configuration, opens queue and store, starts the roles it was asked for, and stops them in
//! order. Everything a role does is in its own crate.

mod cli;
mod config;
mod demo;
mod foundation;
mod front;
mod process;
mod roles;
mod simulate;
mod users;

use clap::Parser as _;
use cli::{Cli, Command, ConfigCommand, UserCommand};
use std::process::ExitCode;

/// Something about the way it was started is wrong (sysexits.h: EX_USAGE): nothing was started.
const EXIT_USAGE: u8 = 64;

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not mistakes.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(Failure::Usage(sentences)) => {
            tell(&sentences);
            ExitCode::from(EXIT_USAGE)
        }
        Err(Failure::Broken(error)) => {
            tell(&format!("roost: {}", in_one_line(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
enum Failure {
    /// The person who started it has to change something; the text says what.
    Usage(String),
    /// Something failed.
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Broken(error.into())
    }
}

impl Failure {
    fn usage(error: impl std::fmt::Display) -> Self {
        Failure::Usage(error.to_string())
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    use cli::Role;
    match command {
        Command::Up(up) => process::up(&up),
        Command::Ingress(roles) => process::roles(Role::Ingress, &roles),
        Command::Ingest(roles) => process::roles(Role::Ingest, &roles),
        Command::Inbox(roles) => process::roles(Role::Inbox, &roles),
        Command::Sender(roles) => process::roles(Role::Sender, &roles),
        Command::Migrate(file) => process::migrate(&file),
        Command::Config(ConfigCommand::Check { config, print }) => config::check(&config, print),
        Command::User(UserCommand::Hash) => users::hash(),
        Command::Simulator(options) => simulate::run(&options),
    }
}

/// An error and its causes, each said once: many of them repeat their cause's words.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| {
        if told.is_empty() {
            cause
        } else if told.ends_with(&cause) {
            told
        } else {
            format!("{told}: {cause}")
        }
    })
}

/// A line for the person at the terminal.
#[expect(clippy::print_stderr, reason = "this is the command line")]
fn tell(text: &str) {
    eprintln!("{text}");
}

/// A line of output, for the person or the next program.
#[expect(clippy::print_stdout, reason = "this is the command line")]
fn print(text: &str) {
    println!("{text}");
}
