//! The plain way of doing each thing, written fairly: a pool, prepared statements, pipelined publishing. What Roost's
//! figures are divided by.

pub mod ingest;
pub mod ingress;
pub mod sender;
