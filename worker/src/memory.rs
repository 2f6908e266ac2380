//! How much memory this process may still take.

use std::path::Path;

/// Bytes available: what the system could give without swapping, or what the container's limit
/// leaves if that is less. None where neither is known.
pub fn available() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let system = read(Path::new("/proc/meminfo")).and_then(|text| parse_meminfo(&text));
    let group = read(Path::new("/proc/self/cgroup")).and_then(|text| parse_cgroup(&text));
    let container = group.and_then(|group| {
        let folder = Path::new("/sys/fs/cgroup").join(group.trim_start_matches('/'));
        let number = |name| read(&folder.join(name))?.trim().parse::<u64>().ok();
        Some(number("memory.max")?.saturating_sub(number("memory.current")?))
    });
    match (system, container) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The group of version 2, whose line has no controllers.
fn parse_cgroup(text: &str) -> Option<String> {
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let text = "MemTotal:       100 kB\nMemAvailable:    24 kB\n";
        assert_eq!(parse_meminfo(text), Some(24 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_cgroup("1:cpu:/a\n0::/b/c\n"), Some("/b/c".into()));
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
