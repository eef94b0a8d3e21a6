//! What is measured, one file each. Designs take turns within a round, so that what else the machine does meets all of them.

pub(crate) mod ingest;
pub(crate) mod ingress;
pub(crate) mod sender;

use std::time::Duration;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Time a run of load is counted.
    pub(crate) time: Duration,
    /// Time before that.
    pub(crate) warm_up: Duration,
    /// How often each design runs.
    pub(crate) rounds: u32,
    /// Messages that ingest takes in.
    pub(crate) messages: usize,
    /// Messages that are sent.
    pub(crate) sends: usize,
}

/// Says on the terminal what is going on.
#[expect(clippy::print_stderr, reason = "a program for a terminal; what it found goes to standard output")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}
