//! The words of Roost: typed ids, time, messages, what a webhook says, what travels between the roles, and the
//! arithmetic of retries, lanes and limits. Nothing here does I/O and nothing is async, so all of it is tested alone.

pub mod account;
pub mod clock;
pub mod contact;
pub mod correlation;
pub mod id;
pub mod inbound;
pub mod limits;
pub mod message;
pub mod outbound;
pub mod retry;
pub mod text;
pub mod time;
pub mod wire;

pub use account::{Account, AccountName, OnUnknown, Secret, Source, SourceName};
pub use clock::{Clock, SystemClock, TestClock};
pub use contact::{Identity, IdentityKind, Scope};
pub use correlation::{Correlation, DeploymentId};
pub use id::*;
pub use inbound::{AccountKey, Inbound, Item, Receipt};
pub use message::{
    AttemptOutcome, Channel, ConversationStatus, Direction, MessageType, Origin, Role, SendState, Status,
};
pub use outbound::{
    Accepted, Call, Content, HttpCall, Outgoing, Recipient, Refused, Reply, SendError, SendJob, Window,
};
pub use time::Timestamp;
