//! The whole system as its users run it: the real binary as processes, a real database and broker, and the simulator in
//! the provider's place. Tests start it, talk to it over HTTP, kill parts of it, and ask the database whether the promises
//! still hold.

mod api;
mod ports;
mod process;
mod system;

pub use api::{Api, Conversation, Message};
pub use ports::Port;
pub use process::Process;
pub use system::{ACCESS_TOKEN, API_TOKEN, APP_SECRET, PHONE_NUMBER_ID, Stack, System, SystemOptions, VERIFY_TOKEN};
pub use testkit::wait;
