//! Workers that somebody else starts, and that servers are attached to.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait_until;

/// A worker that listens. Ends with the value.
pub(crate) struct Worker {
    child: RefCell<Child>,
    log: Arc<Mutex<String>>,
}

impl Worker {
    pub(crate) fn start(socket: &Path, grace: u32) -> Self {
        Self::start_with(socket, grace, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(socket: &Path, grace: u32, env: &[(&str, &str)]) -> Self {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_realm")).with_file_name("realm-worker");
        let mut child = Command::new(binary)
            .args(["serve", "--model", "embedded", "--threads", "1"])
            .args(["--kv-memory", "67108864", "--grace", &grace.to_string()])
            .arg("--socket")
            .arg(socket)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the worker starts; build it with `cargo build -p realm-worker`");
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::<Mutex<String>>::default();
        let shared = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                println!("{line}");
                *shared.lock().expect("not poisoned") += &(line + "\n");
            }
        });
        Worker {
            child: child.into(),
            log,
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.borrow().id() as i32)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signals the worker");
    }

    pub(crate) fn has_ended(&self) -> Option<ExitStatus> {
        self.child.borrow_mut().try_wait().expect("can wait")
    }

    /// Waits for it to end.
    pub(crate) fn wait(&self) -> ExitStatus {
        let mut status = None;
        wait_until("the worker has ended", || {
            status = self.has_ended();
            status.is_some()
        });
        status.expect("set")
    }

    /// How often its log has this.
    pub(crate) fn says(&self, what: &str) -> usize {
        self.log.lock().expect("not poisoned").matches(what).count()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.get_mut().kill();
        let _ = self.child.get_mut().wait();
    }
}

/// A folder with a place for a socket, and the flag that attaches to it.
pub(crate) fn place() -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().expect("temporary directory");
    let socket = folder.path().join("tiny.sock");
    let attach = format!("--attach=realm-tiny={}", socket.display());
    (folder, socket, attach)
}

/// A place where a worker is started again each time one has ended, as systemd does. Ends with the value.
pub(crate) struct Kept {
    /// The flag that attaches to it.
    pub(crate) attach: String,
    over: Arc<AtomicBool>,
    pid: Arc<Mutex<Pid>>,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Kept {
    pub(crate) fn start(env: &[(&str, &str)]) -> Self {
        let (_folder, socket, attach) = place();
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let env: Vec<(String, String)> = env.iter().map(own).collect();
        let next = move || {
            let env: Vec<_> = env
                .iter()
                .map(|(name, value)| (&**name, &**value))
                .collect();
            Worker::start_with(&socket, 600, &env)
        };
        let first = next();
        let pid = Arc::new(Mutex::new(first.pid()));
        let over = Arc::new(AtomicBool::new(false));
        let (its_pid, its_over) = (pid.clone(), over.clone());
        let thread = spawn(move || {
            let mut worker = first;
            while !its_over.load(Ordering::Acquire) {
                if worker.has_ended().is_some() {
                    worker = next();
                    *its_pid.lock().expect("not poisoned") = worker.pid();
                }
                sleep(Duration::from_millis(10));
            }
        });
        Kept {
            attach,
            over,
            pid,
            thread: Some(thread),
            _folder,
        }
    }

    /// Sends a signal to the worker, and waits until there is another one.
    pub(crate) fn end(&self, signal: Signal) {
        let pid = || *self.pid.lock().expect("not poisoned");
        let old = pid();
        kill(old, signal).expect("signals the worker");
        wait_until("there is another worker", || pid() != old);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
