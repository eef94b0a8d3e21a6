//! Ports that no other test takes, now or later: a process under test is killed and must find its port free again.

use anyhow::{Context, Result};
use std::fs::File;
use std::net::TcpListener;

/// Below the range from which Linux takes the ports of outgoing connections (32768 and up).
const RANGE: std::ops::Range<u16> = 10_000..19_000;

/// A port that is ours until this is dropped.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub number: u16,
    _lock: File,
}

impl Port {
    /// Takes a port that nobody listens on and no other test has taken.
    /// # Errors
    /// When there is none.
    pub fn take() -> Result<Self> {
        let folder = std::env::temp_dir().join("roost-test-ports");
        std::fs::create_dir_all(&folder)?;
        for _ in 0..1000 {
            let number = rand::random_range(RANGE);
            let lock = File::create(folder.join(number.to_string()))?;
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Ok(Self { number, _lock: lock });
            }
        }
        None.context("no free port")
    }
}
