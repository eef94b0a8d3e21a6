//! The plain way of doing each thing, written fairly: a pool, prepared statements, as many in work at once as helps,
//! pipelined publishing. What Roost's figures are divided by. None of them survives what Roost survives; that only makes
//! them faster.

pub(crate) mod client;
pub(crate) mod ingest;
pub(crate) mod ingress;
pub(crate) mod sender;
