//! What a service manager hears of a gateway and of a worker that listens.

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Server;
use nix::sys::signal::Signal;

/// Far longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A service manager, as far as it listens.
struct Manager {
    socket: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary directory");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("binds");
        let patience = socket.set_read_timeout(Some(PATIENCE));
        patience.expect("a socket");
        Manager { socket, folder }
    }

    /// What it sets for those that it starts and wants to hear from ten times a second.
    fn environment(&self) -> [(&str, String); 2] {
        let socket = self.folder.path().join("notify");
        [
            ("NOTIFY_SOCKET", socket.display().to_string()),
            ("WATCHDOG_USEC", "200000".to_owned()),
        ]
    }

    /// Drops what it has not listened to.
    fn forgets(&self) {
        self.socket.set_nonblocking(true).expect("a socket");
        while self.socket.recv(&mut [0; 64]).is_ok() {}
        self.socket.set_nonblocking(false).expect("a socket");
    }

    fn hears(&self) -> String {
        let mut bytes = [0; 64];
        let length = self.socket.recv(&mut bytes).expect("a message in time");
        let text = String::from_utf8_lossy(&bytes[..length]);
        text.trim().to_owned()
    }
}

/// A worker that listens. Ends with the value.
struct Worker(Child);

impl Worker {
    fn start(socket: &Path, environment: &[(&str, String)]) -> Self {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_realm")).with_file_name("realm-worker");
        let child = Command::new(binary)
            .args(["serve", "--model", "embedded", "--threads", "1"])
            .args(["--kv-memory", "67108864", "--socket"])
            .arg(socket)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stderr(Stdio::null())
            .spawn();
        Worker(child.expect("the worker starts; build it with `cargo build -p realm-worker`"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_gateway_says_that_it_listens_lives_and_stops() {
    let manager = Manager::new();
    let environment = manager.environment();
    let environment = environment
        .each_ref()
        .map(|(key, value)| (*key, value.as_str()));
    let server = Server::launch(&[], &environment);
    assert_eq!(manager.hears(), "READY=1");
    for _ in 0..3 {
        assert_eq!(manager.hears(), "WATCHDOG=1");
    }
    server.signal(Signal::SIGTERM);
    while manager.hears() != "STOPPING=1" {}
    assert!(server.wait().success());
}

#[test]
fn a_worker_says_that_it_serves_and_lives() {
    let manager = Manager::new();
    let socket = manager.folder.path().join("tiny.sock");
    let _worker = Worker::start(&socket, &manager.environment());
    assert_eq!(manager.hears(), "READY=1");
    // While it waits for a gateway,
    assert_eq!(manager.hears(), "WATCHDOG=1");
    let server = Server::start(&[&format!("--attach=realm-tiny={}", socket.display())]);
    // and while it has one: after what was said until now.
    manager.forgets();
    for _ in 0..3 {
        assert_eq!(manager.hears(), "WATCHDOG=1");
    }
    server.signal(Signal::SIGTERM);
    assert!(server.wait().success());
}
