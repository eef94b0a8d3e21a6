//! The simulator seen from outside: over raw sockets, and by a receiver of webhooks of our own.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod accounting;
mod control;
mod faults;
mod graph;
mod load;
mod phone;
mod receiver;
mod socket;
mod webhooks;

use simulator::{Simulator, SimulatorOptions};
use std::time::Duration;

/// The number and token of `SimulatorOptions::default()`.
const NUMBER: &str = "106540352242922";
const TOKEN: &str = "simulated-token";
const RITA: &str = "351912000333";

/// A deadline nobody should come near.
const SOON: Duration = Duration::from_secs(15);

async fn simulator() -> Simulator {
    Simulator::start(SimulatorOptions::default()).await.unwrap()
}

/// A text with our correlation.
fn text(to: &str, text: &str, correlation: &str) -> String {
    serde_json::json!({"messaging_product": "whatsapp", "recipient_type": "individual", "to": to, "type": "text",
        "text": {"body": text}, "biz_opaque_callback_data": correlation})
    .to_string()
}
