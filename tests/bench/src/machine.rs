//! What it was measured on.

use anyhow::Result;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

/// Cores, memory, processor, disk and versions, in a few sentences.
pub(crate) fn describe(postgres: &str, rabbitmq: &str) -> Result<String> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let processor = line_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "an unknown processor".to_owned());
    let memory_kb: f64 = line_of("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0);
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"');
    let rust = first_line("rustc", "--version").unwrap_or_else(|| "rustc of unknown version".to_owned());
    Ok(format!(
        "{cores} cores ({processor}), {:.0} GB of memory, {system}, an fdatasync of 4 KB takes {} µs. PostgreSQL {postgres} \
         (fsync and synchronous_commit on, wal_compression lz4, max_wal_size 4 GB, shared_buffers 2 GB), RabbitMQ {rabbitmq} \
         (raft.wal_max_size_bytes 64 MB), {rust}, optimised without LTO. Load generator, provider, services, broker and \
         database share the cores; all traffic is loopback TCP.",
        (memory_kb / 1024.0 / 1024.0).round(),
        fdatasync()?.as_micros(),
    ))
}

/// The value of the first line with this key.
fn line_of(file: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

/// The median of a hundred, on the disk that holds the servers' data.
fn fdatasync() -> Result<Duration> {
    let mut file = tempfile::tempfile()?;
    let mut times = Vec::new();
    for _ in 0..100 {
        file.write_all(&[7; 4096])?;
        let begun = Instant::now();
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or_default())
}
