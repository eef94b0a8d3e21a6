//! The provider that is sent to: the simulator, 50 ms away, without receipts.

use crate::bed::{ACCESS_TOKEN, APP_SECRET};
use crate::process::{self, Process, free_address, get};
use crate::webhooks::{ACCOUNTS, phone_number_id};
use anyhow::{Context, Result, ensure};
use domain::Secret;
use serde_json::Value;
use simulator::{AccountOptions, Simulator, SimulatorOptions, StatusPlan};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// How long each answer takes.
pub(crate) const LATENCY: Duration = Duration::from_millis(50);

/// Serves on `listen` until it is killed.
pub(crate) async fn run(listen: SocketAddr) -> Result<()> {
    let accounts = (0..ACCOUNTS).map(|account| AccountOptions::new(phone_number_id(account), ACCESS_TOKEN));
    let options = SimulatorOptions {
        listen,
        app_secret: Secret::new(APP_SECRET),
        accounts: accounts.collect(),
        latency: LATENCY,
        statuses: StatusPlan::silent(),
        ..SimulatorOptions::default()
    };
    let simulator = Simulator::start(options).await?;
    simulator.stopped().await;
    Ok(())
}

/// A provider in a process of its own.
#[derive(Debug)]
pub(crate) struct Provider {
    _process: Process,
    /// Where it answers.
    pub(crate) address: SocketAddr,
}

impl Provider {
    /// Starts it.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        let address = free_address()?;
        let command = process::ourselves(&["provider", "--listen", &address.to_string()])?;
        let mut process = Process::start("provider", command, folder)?;
        process.wait_until_listening(address).await?;
        Ok(Self { _process: process, address })
    }

    /// Fails unless it has accepted exactly so many messages, none of them twice. `in_order`: and no two calls to one
    /// person were open at the same time.
    pub(crate) async fn check(&self, accepted: u64, in_order: bool) -> Result<()> {
        let stats = self.ask("/_sim/stats").await?;
        let count = |name: &str| {
            let count = stats.pointer(&format!("/calls/{name}")).and_then(Value::as_u64);
            count.with_context(|| format!("no {name} in the provider's stats"))
        };
        let (seen, twice, overlaps) = (count("accepted")?, count("accepted_twice")?, count("overlaps")?);
        ensure!(
            seen == accepted && twice == 0 && (overlaps == 0 || !in_order),
            "the provider accepted {seen} messages, {twice} of them twice, and saw {overlaps} calls overlap; {accepted} were to be sent"
        );
        Ok(())
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        let answer = get(self.address, path).await?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str(body)?)
    }
}
