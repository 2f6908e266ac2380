//! One worker incarnation: spawned or attached, greeted, loaded, and ended.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Pid;
use realm_shared::control::{Control, MAX_CONTROL_BYTES, ModelInfo, PROGRAM_LOG};
use realm_shm::{GatewayEnd, Geometry, Quota, SlotClass};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, Interest};
use tokio::process::{Child, ChildStderr, Command};

use super::link::MAX_TABLE;
use crate::config::{ModelSpec, Workers};
use crate::readable::watch;

/// How long a fresh process may take to answer the handshake. It does so before anything else.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a process may say nothing while it loads its model. It reports every tensor.
const LOAD_SILENCE: Duration = Duration::from_secs(300);
/// How long a killed process is waited for.
const REAP: Duration = Duration::from_secs(5);
/// Lines of a worker's standard error that are kept to explain its end.
const LAST_WORDS: usize = 8;
/// Longest line of it in bytes.
const MAX_LINE: usize = 4096;

/// Why a worker could not be used, or can no longer be.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The binary is not where it should be.
    #[error(
        "cannot start the worker {path}: {source}; build it with `cargo xtask build`, or name it with --worker"
    )]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nobody listens where a worker should be attached.
    #[error(
        "no worker listens at {path}: {source}; start one with `realm-worker serve --socket {path}`"
    )]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Shared memory or sockets could not be had.
    #[error("cannot set up a worker: {0}")]
    Setup(#[from] std::io::Error),
    /// Segments could not be made.
    #[error("cannot set up the shared memory of a worker: {0}")]
    Memory(#[from] realm_shm::ShmError),
    /// It does not speak our language.
    #[error("the worker did not complete the handshake: {0}")]
    Handshake(#[from] realm_shm::HandshakeError),
    /// It says itself why it cannot go on.
    #[error("{0}")]
    Failed(String),
    /// It broke the protocol.
    #[error("the worker broke the protocol: {0}")]
    Violation(String),
    /// It was not to be given what it should do.
    #[error("the worker could not be reached: {0}")]
    Unreached(String),
    /// It is gone.
    #[error("the worker ended: {0}")]
    Ended(String),
    /// It is gone, by a fault of its own: nobody ended it.
    #[error("the worker ended: {0}")]
    Crashed(String),
    /// It is there and does nothing.
    #[error("the worker did not answer a step within {} s", .0.as_secs())]
    Hung(Duration),
    /// It does not say how far it is with loading.
    #[error("the worker said nothing for {} s while it loaded the model", .0.as_secs())]
    Silent(Duration),
    /// Its process does not run.
    #[error("the worker's process has stood still for {} s", .0.as_secs())]
    Still(Duration),
}

impl WorkerError {
    /// Whether a fresh worker of the same command would fail the same way.
    pub fn is_permanent(&self) -> bool {
        match self {
            WorkerError::Failed(_) => true,
            // Others pass, such as a lack of file descriptors or memory.
            WorkerError::Spawn { source, .. } => {
                matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::PermissionDenied
                )
            }
            _ => false,
        }
    }

    /// All that [`kind`](Self::kind) may be.
    pub(super) const KINDS: [&'static str; 7] = [
        "setup",
        "handshake",
        "failed",
        "violation",
        "hung",
        "absent",
        "died",
    ];

    /// In a word, for metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            WorkerError::Spawn { .. } | WorkerError::Setup(_) | WorkerError::Memory(_) => "setup",
            WorkerError::Handshake(_) => "handshake",
            WorkerError::Failed(_) => "failed",
            WorkerError::Violation(_) => "violation",
            WorkerError::Hung(_) | WorkerError::Silent(_) | WorkerError::Still(_) => "hung",
            WorkerError::Absent { .. } => "absent",
            WorkerError::Unreached(_) | WorkerError::Ended(_) | WorkerError::Crashed(_) => "died",
        }
    }

    /// Whether what it did may be why it ended. One that was killed, by an operator or by a system without memory,
    /// shows nothing. How a spawned one ended is seen; one that was attached to says so, if it can.
    pub(super) fn is_crash(&self) -> bool {
        matches!(self, WorkerError::Crashed(_) | WorkerError::Violation(_))
    }

    /// Whether it ended of what it did, not by somebody who ended it.
    pub(super) fn is_its_own(&self) -> bool {
        self.is_crash() || matches!(self, WorkerError::Hung(_))
    }

    /// Whether the process may still be there, and of no use to anyone.
    fn is_its_fault(&self) -> bool {
        matches!(
            self,
            WorkerError::Violation(_)
                | WorkerError::Unreached(_)
                | WorkerError::Hung(_)
                | WorkerError::Silent(_)
                | WorkerError::Still(_)
        )
    }
}

/// A worker that completed the handshake, beside its rings.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    process: Process,
    control: AsyncFd<OwnedFd>,
    /// For control messages, which are awaited anew at every turn of the driver.
    buffer: Box<[u8]>,
}

/// Whose a worker is.
#[derive(Debug)]
enum Process {
    /// Ours: it ends with us, and is reaped here.
    Spawned {
        child: Child,
        last_words: Arc<Mutex<VecDeque<String>>>,
    },
    /// Somebody else's, who starts another when it ends. Its process is known if it is of this
    /// user and in a namespace that can be seen from here.
    Attached { pid: Option<Pid> },
}

impl WorkerProcess {
    /// Spawns a worker or attaches to one, as the model says, and greets it.
    pub(super) async fn start(
        model: &ModelSpec,
        settings: &Workers,
        epoch: u32,
    ) -> Result<(Self, GatewayEnd), WorkerError> {
        let (process, socket) = match &model.attach {
            None => spawn(model, settings)?,
            Some(path) => attach(path)?,
        };
        let (gate, socket) = tokio::task::spawn_blocking(move || {
            let gate = GatewayEnd::create(epoch, &geometry(), realm_shared::ABI_VERSION)?;
            gate.offer(socket.as_fd(), HANDSHAKE_DEADLINE)?;
            Ok::<_, WorkerError>((gate, socket))
        })
        .await
        .map_err(|e| WorkerError::Violation(format!("handshake task: {e}")))??;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(std::io::Error::from)?;
        let worker = WorkerProcess {
            process,
            control: watch(socket)?,
            buffer: vec![0; MAX_CONTROL_BYTES].into(),
        };
        Ok((worker, gate))
    }

    /// Process id, for logs.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Spawned { child, .. } => child.id(),
            Process::Attached { pid } => pid.and_then(|pid| u32::try_from(pid.as_raw()).ok()),
        }
    }

    /// The control socket once more, for what the gateway sends.
    pub(super) fn orders(&self) -> std::io::Result<OwnedFd> {
        self.control.get_ref().try_clone()
    }

    /// Waits until the model is loaded, reporting bytes read and to be read.
    pub(super) async fn wait_ready(
        &mut self,
        progress: impl Fn(u64, u64),
    ) -> Result<ModelInfo, WorkerError> {
        loop {
            let said = tokio::time::timeout(LOAD_SILENCE, self.next_control()).await;
            let said = said.map_err(|_| WorkerError::Silent(LOAD_SILENCE))?;
            match said? {
                Control::Loading { done, total } => progress(done, total),
                Control::Ready(info) => return check(info),
                Control::Failed { message } => return Err(WorkerError::Failed(message)),
                Control::Crashed { how } => return Err(WorkerError::Crashed(how)),
            }
        }
    }

    /// The next control message, or why there will be none. Cancel-safe.
    pub(super) async fn next_control(&mut self) -> Result<Control, WorkerError> {
        let WorkerProcess {
            control, buffer, ..
        } = self;
        let received = control
            .async_io(Interest::READABLE, |fd| {
                realm_shm::socket::recv(fd.as_fd(), buffer)
            })
            .await;
        match received {
            Ok(0) | Err(_) => Err(self.end_reason().await),
            Ok(n) => serde_json::from_slice(&self.buffer[..n])
                .map_err(|e| WorkerError::Violation(format!("control message: {e}"))),
        }
    }

    /// Why a worker that cannot be reached is gone, if it is.
    pub(super) async fn why_gone(&mut self) -> Option<WorkerError> {
        if !hung_up(self.control.get_ref()) {
            return None;
        }
        // It may have said something before.
        loop {
            match self.next_control().await {
                Ok(Control::Crashed { how }) => return Some(WorkerError::Crashed(how)),
                Ok(_) => {}
                Err(why) => return Some(why),
            }
        }
    }

    /// Lets go of the worker. One that was spawned is ended, if it still runs, and reaped. One
    /// that was attached keeps its model for whoever comes next, unless the end was its fault:
    /// then it is killed, if it can be, so that whoever started it starts another.
    pub(super) async fn end(self, why: Option<&WorkerError>) {
        match self.process {
            Process::Spawned { child, .. } => reap(child).await,
            Process::Attached { pid: Some(pid) } if why.is_some_and(WorkerError::is_its_fault) => {
                // The process is the one that holds the other end, for as long as that is open.
                if !hung_up(self.control.get_ref())
                    && let Err(error) = nix::sys::signal::kill(pid, Signal::SIGKILL)
                {
                    tracing::warn!(%error, %pid, "cannot kill a worker");
                }
            }
            Process::Attached { .. } => {}
        }
    }

    /// After a hang-up: how the process ended.
    async fn end_reason(&mut self) -> WorkerError {
        let Process::Spawned { child, last_words } = &mut self.process else {
            return WorkerError::Ended("it hung up; its log says why".to_owned());
        };
        // The socket closes a moment before the process is gone.
        let status = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
        let crashed = matches!(&status, Ok(Ok(status)) if is_crash(*status));
        let how = match status {
            Ok(Ok(status)) => describe(status),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it closed its control socket".to_owned(),
        };
        let words = last_words.lock().unwrap_or_else(|e| e.into_inner());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let how = match words[..] {
            [] => how,
            _ => format!("{how}; it last said: {}", words.join(" | ")),
        };
        match crashed {
            true => WorkerError::Crashed(how),
            false => WorkerError::Ended(how),
        }
    }
}

/// Starts the binary with the control socket as its standard input.
fn spawn(model: &ModelSpec, settings: &Workers) -> Result<(Process, OwnedFd), WorkerError> {
    let path = settings.binary.clone().unwrap_or_else(default_binary);
    let (ours, theirs) = realm_shm::socket::pair()?;
    let mut command = Command::new(&path);
    command.arg("serve").args([
        "--fd",
        "0",
        "--name",
        &model.name,
        "--device",
        &settings.device.to_string(),
    ]);
    if let Some(part) = settings.gpu_memory_fraction {
        command.args(["--gpu-memory-fraction", &part.to_string()]);
    }
    command.arg("--model").arg(model.source.path());
    command.args(["--dtype", settings.dtype.as_str()]);
    if settings.random_weights {
        command.arg("--random-weights");
    }
    if let Some(quantization) = settings.quantization {
        command.args(["--quantization", quantization.as_str()]);
    }
    if let Some(threads) = settings.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    if let Some(cpus) = &settings.cpus {
        command.args(["--cpus", &cpus.to_string()]);
    }
    if let Some(bytes) = settings.kv_memory {
        command.args(["--kv-memory", &bytes.0.to_string()]);
    }
    if let Some(tokens) = settings.max_context {
        command.args(["--max-context", &tokens.to_string()]);
    }
    if let Some(instances) = settings.instances {
        command.args(["--instances", &instances.to_string()]);
    }
    if let Some(stack) = settings.program_stack {
        command.args(["--program-stack", &stack.0.to_string()]);
    }
    if settings.require_sandbox {
        command.arg("--require-sandbox");
    }
    command
        // Threads that wait for work must sleep: gateway and worker share the cores.
        .env("OMP_WAIT_POLICY", "passive")
        // A Ctrl-C on the terminal is for the gateway, which lets running requests finish.
        .process_group(0)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command
        .spawn()
        .map_err(|source| WorkerError::Spawn { path, source })?;
    // `command` still holds the worker's end of the socket; while it does, the worker's exit
    // would not hang up ours.
    drop(command);
    let last_words = Arc::default();
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(forward_log(
            stderr,
            model.name.clone(),
            Arc::clone(&last_words),
        ));
    }
    Ok((Process::Spawned { child, last_words }, ours))
}

/// Connects to a worker that listens.
fn attach(path: &Path) -> Result<(Process, OwnedFd), WorkerError> {
    let socket = realm_shm::socket::connect(path).map_err(|source| WorkerError::Absent {
        path: path.to_owned(),
        source,
    })?;
    let peer = getsockopt(&socket, PeerCredentials).map_err(std::io::Error::from)?;
    let known = peer.pid() > 0 && peer.uid() == nix::unistd::getuid().as_raw();
    let pid = known.then(|| Pid::from_raw(peer.pid()));
    Ok((Process::Attached { pid }, socket))
}

/// Ends a process, if it still runs, and reaps it.
async fn reap(mut child: Child) {
    if let Err(error) = child.start_kill() {
        tracing::warn!(%error, "cannot kill a worker");
    }
    // One that the kernel holds, say in a read from a dead disk, must not hold up its
    // successor; it is reaped whenever it ends.
    if tokio::time::timeout(REAP, child.wait()).await.is_err() {
        tracing::warn!(pid = child.id(), "a killed worker has not ended yet");
        tokio::spawn(async move { child.wait().await });
    }
}

/// Whether the other side of a connection is gone.
fn hung_up(socket: &OwnedFd) -> bool {
    // A hang-up is reported whatever is asked for.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Most tokens of context that fit a slot when they are told a worker for their penalties.
pub(super) const MAX_CONTEXT: u32 = 1 << 20;
/// Most tokens of a step whose log-probabilities fit an output slot, with all alternatives.
pub(super) const MAX_STEP_TOKENS: u32 = 16 << 10;
/// Most sequences that two steps may open, with two places in the ring left for the steps and some
/// for messages that can wait.
pub(super) const MAX_SEQUENCES: u32 = 380;

/// Slots for step tensors and results. The block table of a step takes up to eight ninths of the
/// largest ([`MAX_TABLE`]). Two steps may open 256 sequences each, every one with the most
/// biases that a request may have (8 KiB), half of them of one tenant; long histories for
/// penalties open one or two at a time, being prefilled.
pub(super) fn geometry() -> Geometry {
    let class = |bytes, count| SlotClass { bytes, count };
    Geometry {
        input_slots: vec![
            class(4 << 10, 512),
            class(16 << 10, 512),
            class(64 << 10, 64),
            class(1 << 20, 8),
            class(9 << 20, 3),
        ],
        output_slots: vec![class(4 << 10, 16), class(64 << 10, 8), class(4 << 20, 4)],
        quota: Quota {
            slots: 256,
            bytes: 6 << 20,
        },
    }
}

/// Refuses numbers that the scheduler could not work with, and uses no more of a worker than its
/// slots and rings bear.
fn check(mut info: ModelInfo) -> Result<ModelInfo, WorkerError> {
    // A step has two rows at least, whatever their width.
    let widest = info.block_size.saturating_mul(MAX_TABLE as u32 / 2);
    info.max_context = info.max_context.min(MAX_CONTEXT).min(widest);
    info.max_step_tokens = info.max_step_tokens.min(MAX_STEP_TOKENS);
    info.max_sequences = info.max_sequences.min(MAX_SEQUENCES);
    let sane = info.vocab_size > 0
        && info.vocab_size <= i32::MAX as u32
        && info.block_size > 0
        && info.block_count > 0
        && info.max_sequences > 0
        && info.max_step_tokens > 0
        // The probe's own token and the one that it asks for.
        && info.max_context > 1;
    if sane {
        Ok(info)
    } else {
        Err(WorkerError::Violation(format!(
            "impossible model description {info:?}"
        )))
    }
}

/// Whether a process ended by itself, and not well.
fn is_crash(status: ExitStatus) -> bool {
    use Signal::{SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP};
    use std::os::unix::process::ExitStatusExt;
    match status.signal().map(Signal::try_from) {
        Some(signal) => signal.is_ok_and(|signal| {
            [SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP].contains(&signal)
        }),
        None => !status.success(),
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.signal(), status.code()) {
        (Some(signal), _) => match Signal::try_from(signal) {
            Ok(name) => format!("killed by {name}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exited with code {code}"),
        (None, None) => status.to_string(),
    }
}

/// `realm-worker` in the folder of the running binary.
pub fn default_binary() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|dir| dir.join("realm-worker")))
        .unwrap_or_else(|| Path::new("realm-worker").to_owned())
}

/// Logs what a worker writes to its standard error, line by line, until it ends. A line is cut
/// at [`MAX_LINE`] bytes, and bytes that are not UTF-8 are replaced: a worker cannot fill our
/// memory, nor block itself on a pipe that nobody reads.
async fn forward_log(
    mut stderr: ChildStderr,
    model: String,
    last_words: Arc<Mutex<VecDeque<String>>>,
) {
    let mut pending = Vec::with_capacity(MAX_LINE);
    let say = |line: &[u8]| {
        let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
        if line.is_empty() {
            return;
        }
        tracing::info!(target: "realm_worker", model, "{line}");
        // What a tenant's code logs is nothing to explain a worker's end to others with.
        if line.starts_with(PROGRAM_LOG) {
            return;
        }
        let mut words = last_words.lock().unwrap_or_else(|e| e.into_inner());
        if words.len() == LAST_WORDS {
            words.pop_front();
        }
        words.push_back(line);
    };
    let mut chunk = [0; MAX_LINE];
    while let Ok(n @ 1..) = stderr.read(&mut chunk).await {
        for &byte in &chunk[..n] {
            pending.push(byte);
            if byte == b'\n' || pending.len() == MAX_LINE {
                say(&pending);
                pending.clear();
            }
        }
    }
    say(&pending);
}
