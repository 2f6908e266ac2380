//! Compilers for gateways that have no worker's binary at hand, such as one in a container of its own:
//! each a process of its own, as it would be a gateway's child elsewhere.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, bail};
use clap::Args;
use realm_shared::causes::told;
use realm_shared::control::{
    COMPILE, COMPILE_MEMORY, COMPILE_SECONDS, FINGERPRINT, USUAL_COMPILE_MEMORY,
    USUAL_COMPILE_SECONDS,
};
use realm_shm::socket;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::listen::{BREATH, bind, caller, say, spawn};

/// What one compilation may take. Whoever asks for it sees to the clock.
#[derive(Debug, Clone, Copy, Args)]
pub struct Limits {
    /// Seconds of processor time that a compilation may take.
    #[arg(long, value_name = "SECONDS", default_value_t = USUAL_COMPILE_SECONDS,
        value_parser = clap::value_parser!(u64).range(COMPILE_SECONDS))]
    pub seconds: u64,
    /// Bytes of memory that it may take.
    #[arg(long, value_name = "BYTES", default_value_t = USUAL_COMPILE_MEMORY,
        value_parser = clap::value_parser!(u64).range(*COMPILE_MEMORY.start()..))]
    pub memory: u64,
}

/// Starts compilers for whoever asks at `path`, for as long as this process lives. It reads nothing of
/// what they are given.
///
/// # Errors
/// If it cannot listen there.
pub fn serve(path: &Path, limits: Limits, require_sandbox: bool) -> anyhow::Result<()> {
    let listener = bind(path)?;
    say(format_args!("compiles at {}", path.display()));
    loop {
        let Ok(caller) = accept_with(&listener, SocketFlags::CLOEXEC) else {
            std::thread::sleep(BREATH);
            continue;
        };
        // A caller without a thread is hung up on.
        let _ = spawn("compiler", move || visit(&caller, limits, require_sandbox));
    }
}

fn visit(socket: &OwnedFd, limits: Limits, require_sandbox: bool) {
    let run = || {
        let child = start(socket, limits, require_sandbox)?;
        let status = wait(child, socket)?;
        socket::send(socket.as_fd(), &status.into_raw().to_le_bytes())?;
        anyhow::Ok(())
    };
    if let Err(error) = run() {
        let caller = caller(socket.as_fd());
        say(format_args!("{caller} called: {}", told(error.as_ref())));
    }
}

/// Starts the compiler that is asked for.
fn start(socket: &OwnedFd, limits: Limits, require_sandbox: bool) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("cannot find itself")?);
    command.arg("compile").env_clear();
    let (stdin, stdout, stderr) = (end(socket)?, end(socket)?, end(socket)?);
    match stdin.0.as_slice() {
        COMPILE => {}
        FINGERPRINT => drop(command.arg("--fingerprint")),
        _ => bail!("it asks for what is not understood"),
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
    command.stdin(stdin.1).stdout(stdout.1).stderr(stderr.1);
    command.spawn().context("cannot start a compiler")
}

/// A message, and an end of a pipe that came with it.
fn end(socket: &OwnedFd) -> anyhow::Result<(Vec<u8>, Stdio)> {
    let mut message = [0; 32];
    let (length, carried) = socket::recv_with(socket.as_fd(), &mut message)?;
    if length == 0 {
        bail!("it hung up");
    }
    let carried = carried.context("a message without a descriptor")?;
    Ok((message[..length].to_vec(), carried.into()))
}

/// Waits until a process has ended, or has lost whoever it works for, and is ended for that.
fn wait(mut child: Child, socket: &OwnedFd) -> io::Result<ExitStatus> {
    let pid = Pid::from_child(&child);
    let ended = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| {
        let mut fds = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP),
        ];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        Ok(!fds[0].revents().is_empty())
    });
    if !matches!(ended, Ok(true)) {
        child.kill()?;
    }
    child.wait()
}
