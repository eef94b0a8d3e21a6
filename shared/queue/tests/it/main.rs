//! The queue's promises, on both backends where both can keep them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod contract;
mod exactness;
mod file;
mod lines;
mod outages;
mod support;
mod timing;
