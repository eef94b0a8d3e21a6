//! `roost simulator`: the fake provider as a process of its own.

use crate::cli::Simulator as Options;
use crate::{Failure, print};
use domain::Secret;
use simulator::{AccountOptions, PhoneOptions, Simulator, SimulatorOptions, StartError};
use std::process::ExitCode;

/// Runs until it is stopped.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let stop = runtime::shutdown::stop_on_signals()?;
        let accounts = options.phone_number_id.iter().map(|id| AccountOptions::new(id, &options.access_token));
        let started = Simulator::start(SimulatorOptions {
            listen: options.listen,
            app_secret: Secret::new(&*options.app_secret),
            accounts: accounts.collect(),
            webhook_urls: vec![options.webhook_url.clone()],
            phone: Some(PhoneOptions::default()),
            ..SimulatorOptions::demo()
        })
        .await;
        let simulator = started.map_err(|error| match error {
            StartError::Listen { .. } => {
                Failure::Usage(format!("{error}: choose another address with --listen, or stop what has this one."))
            }
            error => Failure::usage(error),
        })?;
        print(&format!("The simulator serves the Graph API and a customer's phone at {}", simulator.url()));
        print(&format!("Its webhooks go to {}", options.webhook_url));
        stop.cancelled().await;
        simulator.shutdown().await;
        Ok(ExitCode::SUCCESS)
    })
}
