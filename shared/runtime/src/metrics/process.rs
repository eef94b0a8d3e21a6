//! Memory and processor time of this process, read when somebody asks for the metrics.

use opentelemetry::metrics::{AsyncInstrument, Meter};

/// Ticks a second in `/proc/self/stat`: `USER_HZ`, which is 100 on every Linux architecture Roost runs on.
const USER_HZ: f64 = 100.0;

/// Registers `process_resident_memory_bytes` and `process_cpu_seconds_total`, the names every Prometheus client uses.
pub(super) fn register(meter: &Meter) {
    meter
        .u64_observable_gauge("process.resident_memory")
        .with_unit("By")
        .with_description("Resident memory of this process.")
        .with_callback(|observer: &dyn AsyncInstrument<u64>| {
            if let Some(bytes) = resident_memory() {
                observer.observe(bytes, &[]);
            }
        })
        .build();
    meter
        .f64_observable_counter("process.cpu")
        .with_unit("s")
        .with_description("Processor time of this process, user and system.")
        .with_callback(|observer: &dyn AsyncInstrument<f64>| {
            if let Some(seconds) = processor_time() {
                observer.observe(seconds, &[]);
            }
        })
        .build();
}

/// Resident memory in bytes; `None` where there is no `/proc`.
pub fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// User and system time in seconds; `None` where there is no `/proc`.
pub fn processor_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The process's name stands in brackets and may hold spaces; fields are counted after it, `utime` is the 12th.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_has_used_time() {
        assert!(resident_memory().unwrap() > 1_000_000);
        assert!(processor_time().unwrap() >= 0.0);
    }
}
