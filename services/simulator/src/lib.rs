//! A stand-in for WhatsApp's side of the wire, for the demo, tests and benches.
//!
//! It answers the Graph API's messages endpoint, posts signed webhooks for what customers write and for the fate of
//! what the business sends, goes wrong on demand in every way a provider does, and keeps a log that proves what really
//! happened: second acceptances, overlapping calls, order, rates. `/` is a customer's phone for people; `/_sim/…` is
//! the same control in JSON for other processes (see `control.rs`).
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use simulator::{Fault, Script, Simulator, SimulatorOptions, When};
//! let simulator = Simulator::start(SimulatorOptions::default()).await?;
//! simulator.set_webhook_urls(&["http://127.0.0.1:8080/webhooks/meta".into()])?;
//! simulator.script(Script::once(When::to("351912000333"), Fault::CutAfter { reset: true }));
//! simulator.customer_writes("351912000333", "Rita Lopes", "Is the shop open?").done().await;
//! assert_eq!(simulator.accepted_twice().len(), 0);
//! simulator.shutdown().await;
//! # Ok(()) }
//! ```

mod batcher;
mod control;
mod fault;
mod graph;
mod inbound;
mod ledger;
mod line;
mod load;
mod message;
mod options;
mod phone;
mod postman;
mod rate;
mod script;
mod server;
mod shared;
mod simulator;
mod status;
mod webhook;

pub use fault::{Chance, Fault, FaultMix, code_words};
pub use inbound::{BatchItem, CustomerMessage, Says};
pub use ledger::{AcceptedTwice, AccountRate, Call, CallStats, Overlap};
pub use load::{Load, LoadPlan, LoadReport, LoadSent};
pub use options::{AccountOptions, Customer, PairLimit, PhoneOptions, SimulatorOptions, WebhookOptions};
pub use postman::{Acknowledged, BadWebhookUrl, Delivery, Forgery, ItemRef, Posted, WebhookStats};
pub use script::{Script, When};
pub use server::ConnectionFault;
pub use simulator::{Handshaken, Simulator, StartError, Stats};
pub use status::{StatusPlan, Step, Tick};
pub use webhook::{escaped, signature};

pub(crate) use shared::Shared;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock that outlives a panic of its holder: the data are sums and lists, valid at every step.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
