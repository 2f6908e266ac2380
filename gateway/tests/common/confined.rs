//! What the system says of a worker's confinement.

use nix::unistd::Pid;

/// Filters of system calls that a worker has which serves.
const FILTERS: &str = "4";

/// Every thread of a worker that serves is without privileges to gain, and under all filters.
pub(crate) fn assert_confined(worker: Pid) {
    let tasks = std::fs::read_dir(format!("/proc/{worker}/task")).expect("it runs");
    let mut threads = 0;
    for task in tasks.flatten() {
        // One may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        for (key, value) in [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Seccomp_filters", FILTERS),
        ] {
            let mut lines = status.lines().filter_map(|line| line.split_once(':'));
            let line = lines.find(|(name, _)| *name == key);
            let found = line.map(|(_, value)| value.trim());
            assert_eq!(found, Some(value), "{key} of {status}");
        }
        threads += 1;
    }
    assert!(threads > 3, "{threads} threads");
}
