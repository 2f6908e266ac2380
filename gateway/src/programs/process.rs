//! A process that compiles: started here, or by `realm-worker compile --socket`, which does nothing but
//! that for gateways without a worker's binary, such as one in a container of its own.
//!
//! Over such a socket a gateway sends three messages, each with an end of a pipe: for the standard input
//! of the process, its output, and its errors. The first one says what it is for. What comes back when it
//! has ended is how. Whoever hangs up before ends it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use realm_shared::control::{COMPILE, FINGERPRINT};
use realm_shm::socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::CompileLimits;
use crate::readable::watch;

/// Who starts it.
#[derive(Debug)]
pub(super) enum Place {
    /// This gateway, of a worker's binary.
    Here {
        binary: PathBuf,
        limits: CompileLimits,
        /// Whether it is to refuse its service where the system cannot confine it.
        require_sandbox: bool,
    },
    /// Whoever listens at this socket.
    Socket(PathBuf),
}

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// To compile what comes to its standard input.
    Compile,
    /// To say what its code depends on.
    Fingerprint,
}

/// One that runs. Dropped, it is ended.
pub(super) struct Process {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    pub(super) end: End,
}

/// How it ends.
pub(super) enum End {
    Here(Child),
    Elsewhere(AsyncFd<OwnedFd>),
}

impl Place {
    /// What tells that it has changed, if nothing else does.
    pub(super) fn path(&self) -> &Path {
        match self {
            Place::Here { binary, .. } => binary,
            Place::Socket(path) => path,
        }
    }

    pub(super) fn start(&self, task: Task) -> io::Result<Process> {
        let (stdin, input) = pipe::pipe()?;
        let (output, stdout) = pipe::pipe()?;
        let (errors, stderr) = pipe::pipe()?;
        let theirs = [
            input.into_blocking_fd()?,
            output.into_blocking_fd()?,
            errors.into_blocking_fd()?,
        ];
        let end = match self {
            Place::Here {
                binary,
                limits,
                require_sandbox,
            } => End::Here(spawn(binary, *limits, *require_sandbox, task, theirs)?),
            Place::Socket(path) => End::Elsewhere(call(path, task, &theirs)?),
        };
        Ok(Process {
            stdin,
            stdout,
            stderr,
            end,
        })
    }
}

fn spawn(
    binary: &Path,
    limits: CompileLimits,
    require_sandbox: bool,
    task: Task,
    [input, output, errors]: [OwnedFd; 3],
) -> io::Result<Child> {
    let mut command = Command::new(binary);
    command.arg("compile").env_clear();
    if task == Task::Fingerprint {
        command.arg("--fingerprint");
    }
    command
        .args(["--seconds", &limits.seconds.to_string()])
        .args(["--memory", &limits.memory.to_string()]);
    if require_sandbox {
        command.arg("--require-sandbox");
    }
    // Without it the binary may not find its libraries.
    if let Some(path) = std::env::var_os("LD_LIBRARY_PATH") {
        command.env("LD_LIBRARY_PATH", path);
    }
    command
        // A Ctrl-C on the terminal is for the gateway.
        .process_group(0)
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .kill_on_drop(true)
        .spawn()
}

fn call(path: &Path, task: Task, theirs: &[OwnedFd; 3]) -> io::Result<AsyncFd<OwnedFd>> {
    let called = socket::connect(path)?;
    let task = match task {
        Task::Compile => COMPILE,
        Task::Fingerprint => FINGERPRINT,
    };
    for end in theirs {
        socket::send_with(called.as_fd(), task, end.as_fd())?;
    }
    watch(called)
}

impl End {
    /// Ends it, if it has not.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        match self {
            End::Here(child) => child.start_kill(),
            End::Elsewhere(called) => socket::send(called.get_ref().as_fd(), b"end"),
        }
    }

    /// How it ended, when it has.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let called = match self {
            End::Here(child) => return child.wait().await,
            End::Elsewhere(called) => called,
        };
        let mut status = [0; 4];
        let receive = |fd: &OwnedFd| socket::recv(fd.as_fd(), &mut status);
        match called.async_io(Interest::READABLE, receive).await? {
            4 => Ok(ExitStatus::from_raw(i32::from_le_bytes(status))),
            _ => Err(io::Error::other("it hung up")),
        }
    }
}
