//! A `realm serve` of our own, on free ports, for client suites to call.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Time from the start of the process to `/ready`.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Time from SIGTERM to the end of the process.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Lines of the server's log to show when something went wrong.
const LOG_LINES: usize = 40;

/// A server that is ready. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    log: PathBuf,
    /// The binary that it runs.
    pub(crate) realm: PathBuf,
    /// `HOST:PORT` of the API.
    pub(crate) api: String,
    /// `HOST:PORT` of the admin listener.
    pub(crate) admin: String,
}

impl Server {
    /// Starts `realm serve` with its defaults and `args`, which logs to `log`; waits until it is ready.
    pub(crate) fn start<S: AsRef<OsStr>>(
        realm: &Path,
        log: PathBuf,
        args: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<Self> {
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(realm);
        command
            .args(["serve", "--port", "0", "--admin-addr", "127.0.0.1:0"])
            .args(args);
        // Tests are about the defaults, whatever this shell is set up for.
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REALM_"))
        {
            command.env_remove(name);
        }
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {}", realm.display()))?;
        let mut server = Server {
            process,
            log,
            realm: realm.to_owned(),
            api: String::new(),
            admin: String::new(),
        };
        let deadline = Instant::now() + START_TIMEOUT;
        while !server.is_ready() {
            if let Some(status) = server.process.try_wait()? {
                bail!(
                    "realm serve ended with {status}; the end of its log:\n{}",
                    server.log_end()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "realm serve is not ready after {START_TIMEOUT:?}; the end of its log:\n{}",
                    server.log_end()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The last lines that the server logged.
    pub(crate) fn log_end(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Sends SIGTERM and sees that the server ends by itself, with exit code 0.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).context("cannot send SIGTERM to realm serve")?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            match self.process.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!(
                    "realm serve answered SIGTERM with {status}; the end of its log:\n{}",
                    self.log_end()
                ),
                None if Instant::now() > deadline => {
                    bail!(
                        "realm serve still runs {STOP_TIMEOUT:?} after SIGTERM; the end of its log:\n{}",
                        self.log_end()
                    )
                }
                None => std::thread::sleep(POLL),
            }
        }
    }

    /// Looks for the addresses in the log, then asks whether the model is loaded.
    fn is_ready(&mut self) -> bool {
        if self.api.is_empty() || self.admin.is_empty() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let address = |words: &str| {
                let line = log.lines().find_map(|line| line.split_once(words))?.1;
                line.split_whitespace().next().map(str::to_owned)
            };
            self.api = address("listening on http://").unwrap_or_default();
            self.admin = address("admin on http://").unwrap_or_default();
        }
        !self.api.is_empty()
            && !self.admin.is_empty()
            && answers_ok(&self.admin, "/ready").unwrap_or(false)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail where the process is gone already, which is what is wanted.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether a GET is answered with 200.
fn answers_ok(address: &str, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1) == Some("200"))
}
