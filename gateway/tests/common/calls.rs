//! Workers that die of a call of their host.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How many calls are left until one kills its worker: a file, which a debug build of the worker counts down.
pub(crate) struct Calls(File);

impl Calls {
    /// More than are ever made.
    pub(crate) const ENDLESS: u64 = u64::MAX;

    pub(crate) fn new(path: &Path) -> Self {
        let calls = Calls(File::create_new(path).expect("created"));
        calls.set(0);
        calls
    }

    /// How many calls are left; none once a worker has died.
    pub(crate) fn left(&self) -> u64 {
        let mut left = [0; 8];
        self.0.read_exact_at(&mut left, 0).expect("read");
        u64::from_le_bytes(left)
    }

    /// The worker dies of the call with this number, counted from 1; of none if it is 0. Returns how many calls
    /// were left by then.
    pub(crate) fn set(&self, left: u64) -> u64 {
        self.0.lock().expect("locked");
        let mut before = [0; 8];
        let _ = self.0.read_at(&mut before, 0);
        let written = self.0.write_all_at(&left.to_le_bytes(), 0);
        self.0.unlock().expect("unlocked");
        written.expect("written");
        u64::from_le_bytes(before)
    }
}
