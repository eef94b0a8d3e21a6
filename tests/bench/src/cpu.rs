//! CPU time and memory of a process, from the kernel's own books.

use anyhow::{Context, Result};
use std::time::Duration;

/// Kernel ticks a second; 100 on every Linux we run on (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// User and system time a process has used so far, its dead children not counted.
pub fn used(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The name, in brackets, may hold spaces: count fields after it. utime and stime are fields 14 and 15 (proc(5)).
    let after_name = stat.rsplit_once(')').context("an unreadable stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).context("an unreadable stat");
    Ok(Duration::from_secs_f64((field(11)? + field(12)?) / TICKS))
}

/// The same, summed over every process whose command begins with `name` (the backends of PostgreSQL, `beam.smp`).
pub fn used_by_all(name: &str) -> Duration {
    let mut sum = Duration::ZERO;
    let Ok(entries) = std::fs::read_dir("/proc") else { return sum };
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok()) {
        let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if command.trim_end().starts_with(name) {
            sum += used(pid).unwrap_or_default();
        }
    }
    sum
}

/// Resident memory in megabytes.
pub fn resident_mb(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kb: f64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).context("an unreadable VmRSS")?;
    Ok(kb / 1024.0)
}
