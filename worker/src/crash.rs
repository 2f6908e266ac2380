//! Crashes on demand, for tests of what becomes of the others. Release builds do not have them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// The token that the environment names.
static TOKEN: LazyLock<Option<i32>> =
    LazyLock::new(|| std::env::var("REALM_TEST_CRASH_TOKEN").ok()?.parse().ok());

/// The file that `REALM_TEST_CRASH_CALL` names. It holds a number of eight bytes, the least significant one
/// first: how many calls the code of tenants makes of the host until one kills this process. 0 is never.
static CALLS: LazyLock<Option<Mutex<File>>> = LazyLock::new(|| {
    let path = std::env::var_os("REALM_TEST_CRASH_CALL")?;
    let file = File::options().read(true).write(true).open(path);
    Some(Mutex::new(file.ok()?))
});

/// How a line begins that `REALM_TEST_CRASH_LOG` names.
static LOG: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("REALM_TEST_CRASH_LOG").ok());

/// How many milliseconds pass before it is one: `REALM_TEST_CRASH_DELAY`.
static DELAY: LazyLock<Option<u64>> =
    LazyLock::new(|| std::env::var("REALM_TEST_CRASH_DELAY").ok()?.parse().ok());

/// Opens what cannot be opened later, when this process is confined.
pub(crate) fn arm() {
    LazyLock::force(&CALLS);
}

/// Ends the process, as a bad access would, if the token that `REALM_TEST_CRASH_TOKEN` names is
/// among a step's inputs.
pub(crate) fn if_asked(inputs: &[i32]) {
    if TOKEN.is_some_and(|token| inputs.contains(&token)) {
        std::process::abort();
    }
}

/// Ends the process, as a bad access would, if the code of a tenant logs a line that begins with
/// `REALM_TEST_CRASH_LOG`.
pub(crate) fn if_logged(line: &str) {
    if LOG.as_ref().is_some_and(|start| line.starts_with(start)) {
        std::thread::sleep(Duration::from_millis(DELAY.unwrap_or(0)));
        std::process::abort();
    }
}

/// Counts a call of the host, and kills the process if it is the one that is to do so. The file says 0 then, so
/// that the next worker lives.
pub(crate) fn at_call() {
    let Some(calls) = &*CALLS else {
        return;
    };
    let calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever writes the file holds its lock, too. Ours goes with the process.
    if calls.lock().is_err() || count_down(&calls).unwrap_or(false) {
        let _ = kill_process(getpid(), Signal::KILL);
    }
    let _ = calls.unlock();
}

/// Whether this call is the last one.
fn count_down(calls: &File) -> std::io::Result<bool> {
    let mut left = [0; 8];
    calls.read_exact_at(&mut left, 0)?;
    let Some(left) = u64::from_le_bytes(left).checked_sub(1) else {
        return Ok(false);
    };
    calls.write_all_at(&left.to_le_bytes(), 0)?;
    Ok(left == 0)
}
