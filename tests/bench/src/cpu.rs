//! CPU time and memory of processes, from the kernel's own books.

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::time::Duration;

/// Kernel ticks a second; 100 on every Linux we run on (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// What one process has used, as `/proc/<pid>/stat` has it (proc(5)).
struct Books {
    parent: u32,
    /// User and system time of the process itself.
    own: f64,
    /// The same of its children that have ended and were waited for.
    ended_children: f64,
}

fn books(pid: u32) -> Result<Books> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
    // The name, in brackets, may hold spaces: count fields after it. Field 3 of the manual is the first here.
    let after_name = stat.rsplit_once(')').context("an unreadable stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let field = |number: usize| {
        let text = fields.get(number - 3).context("a short stat")?;
        text.parse::<f64>().with_context(|| format!("field {number} of stat is {text:?}"))
    };
    let parent = fields.get(1).and_then(|text| text.parse().ok()).context("a stat without a parent")?;
    Ok(Books { parent, own: field(14)? + field(15)?, ended_children: field(16)? + field(17)? })
}

/// User and system time a process has used so far.
pub(crate) fn used(pid: u32) -> Result<Duration> {
    Ok(Duration::from_secs_f64(books(pid)?.own / TICKS))
}

/// The same of a server with all its children, those that have ended included: PostgreSQL's backends come and go.
pub(crate) fn used_by_tree(root: u32) -> Result<Duration> {
    let mut all: HashMap<u32, Books> = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        // One that ends while we look is in its parent's books, now or at the next look.
        if let Ok(books) = books(pid) {
            all.insert(pid, books);
        }
    }
    all.get(&root).context("the server has ended")?;
    let mut ticks = 0.0;
    let mut open = vec![root];
    while let Some(pid) = open.pop() {
        let Some(books) = all.get(&pid) else { continue };
        ticks += books.own + books.ended_children;
        open.extend(all.iter().filter(|(_, child)| child.parent == pid).map(|(pid, _)| *pid));
    }
    Ok(Duration::from_secs_f64(ticks / TICKS))
}

/// Resident memory in megabytes.
pub(crate) fn resident_mb(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kb: f64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).context("an unreadable VmRSS")?;
    Ok(kb / 1024.0)
}

/// Whose time is taken in a run.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// The processes under test.
    pub(crate) ours: Vec<u32>,
    /// The broker.
    pub(crate) broker: u32,
    /// PostgreSQL's postmaster.
    pub(crate) database: u32,
}

/// Time used, by whom.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// The processes under test together.
    pub(crate) ours: Duration,
    /// The broker.
    pub(crate) broker: Duration,
    /// PostgreSQL with all its backends.
    pub(crate) database: Duration,
}

impl Watched {
    /// Used so far.
    pub(crate) fn used(&self) -> Result<Usage> {
        let mut ours = Duration::ZERO;
        for pid in &self.ours {
            ours += used(*pid)?;
        }
        Ok(Usage { ours, broker: used_by_tree(self.broker)?, database: used_by_tree(self.database)? })
    }
}

impl Usage {
    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Usage) -> Usage {
        Usage {
            ours: self.ours.saturating_sub(earlier.ours),
            broker: self.broker.saturating_sub(earlier.broker),
            database: self.database.saturating_sub(earlier.database),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_has_used_time_and_holds_memory() {
        let me = std::process::id();
        let (begun, mut sum) = (std::time::Instant::now(), 0u32);
        while used(me).unwrap() < Duration::from_millis(30) && begun.elapsed() < Duration::from_secs(20) {
            sum = sum.wrapping_add(begun.elapsed().subsec_nanos());
        }
        assert!(used(me).unwrap() >= Duration::from_millis(30), "nothing was counted of {sum}");
        assert!(used_by_tree(me).unwrap() >= used(me).unwrap());
        assert!(resident_mb(me).unwrap() > 1.0);
    }
}
