//! What a process holds.

use nix::unistd::Pid;

/// Counts of what could leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) descriptors: usize,
    /// Descriptors of shared memory among them.
    pub(crate) memfds: usize,
    /// Mappings of shared memory.
    pub(crate) mappings: usize,
    pub(crate) threads: usize,
    /// Child processes, dead ones that nobody reaped included.
    pub(crate) children: usize,
}

impl Census {
    pub(crate) fn of(pid: Pid) -> Self {
        let entries = |dir: &str| -> Vec<_> {
            let dir = std::fs::read_dir(format!("/proc/{pid}/{dir}")).expect("the process runs");
            dir.flatten().map(|entry| entry.path()).collect()
        };
        let descriptors = entries("fd");
        let is_memfd = |path: &std::path::PathBuf| {
            std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"))
        };
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("readable");
        Census {
            descriptors: descriptors.len(),
            memfds: descriptors.iter().filter(|fd| is_memfd(fd)).count(),
            mappings: maps.lines().filter(|l| l.contains("/memfd:")).count(),
            threads: entries("task").len(),
            children: children(pid).len(),
        }
    }

    /// Nothing is more than it was.
    pub(crate) fn is_within(&self, before: &Census) -> bool {
        self.descriptors <= before.descriptors
            && self.memfds <= before.memfds
            && self.mappings <= before.mappings
            && self.threads <= before.threads
            && self.children <= before.children
    }
}

/// The child processes of a process.
pub(crate) fn children(pid: Pid) -> Vec<Pid> {
    // They are listed by the thread that spawned them.
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids = lists.flat_map(|list| {
        let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.map(Pid::from_raw).collect::<Vec<_>>()
    });
    pids.collect()
}

pub(crate) fn is_running(pid: Pid) -> bool {
    // A zombie of a dead parent is reaped by init; until then it has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty())
}
