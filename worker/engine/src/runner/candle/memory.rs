//! How much memory this process may still take: what the system has, or less where a control group says so.

use std::fs;
use std::path::Path;

/// Bytes, if the system tells.
pub(super) fn available() -> Option<u64> {
    let system =
        fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:")).map(|kib| kib * 1024);
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group(&text, Path::new("/sys/fs/cgroup")));
    system.into_iter().chain(group).min()
}

/// The number after `name` in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// What the control group of a `/proc/self/cgroup` (version 2) and those above it leave. Page cache that can be dropped
/// counts as free.
fn group(text: &str, root: &Path) -> Option<u64> {
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let paths = Path::new(own).ancestors().map(|part| root.join(part));
    paths
        .filter_map(|path| {
            let read = |file: &str| fs::read_to_string(path.join(file)).ok();
            let limit: u64 = read("memory.max")?.trim().parse().ok()?;
            let used: u64 = read("memory.current")?.trim().parse().ok()?;
            let cache = read("memory.stat").and_then(|stat| field(&stat, "inactive_file")).unwrap_or(0);
            Some(limit.saturating_sub(used.saturating_sub(cache)))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_above_counts() {
        let root = std::env::temp_dir().join(format!("penstock-cgroup-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.join("a/memory.max"), "1000\n").unwrap();
        fs::write(root.join("a/memory.current"), "400\n").unwrap();
        fs::write(root.join("a/memory.stat"), "anon 300\ninactive_file 100\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.current"), "7\n").unwrap();
        assert_eq!(group("0::/a/b\n", &root), Some(700));
        assert_eq!(group("1:memory:/a\n", &root), None);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn this_machine_has_some() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
