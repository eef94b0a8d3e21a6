//! What a process is called in leases, beats and logs.

use std::fmt::Write;

/// A name no other process has: host, process id and four random letters, because a container's process is number 1 on
/// every restart. At most 80 characters of `a-z A-Z 0-9 . - _`.
pub fn instance_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name_of(host.trim(), std::process::id(), rand::random())
}

fn name_of(host: &str, process: u32, random: u16) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let mut name: String = host.chars().filter(plain).take(60).collect();
    if name.is_empty() {
        name.push_str("host");
    }
    let _ = write!(name, "-{process}-{random:04x}");
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_plain_and_says_where() {
        assert_eq!(name_of("roost-ingress-7d9f", 1, 0xbeef), "roost-ingress-7d9f-1-beef");
        assert_eq!(name_of("büro pc", 42, 7), "bropc-42-0007");
        assert_eq!(name_of("", 42, 7), "host-42-0007");
        assert!(instance_name().len() <= 80);
    }

    #[test]
    fn two_processes_of_the_same_number_have_different_names() {
        let names = (0..50).map(|_| instance_name()).collect::<std::collections::HashSet<_>>();
        assert!(names.len() > 45, "{names:?}");
    }
}
