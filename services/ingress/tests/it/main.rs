//! Ingress from outside: raw bytes in, frames on a real queue out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod door;
mod harness;
mod pressure;
