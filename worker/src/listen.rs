//! A worker that somebody else started: it listens for gateways and outlives them.
//!
//! One gateway is served at a time. It comes in through a thread of its own, so that it is
//! answered while the model is loading or the last step of its predecessor runs.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use realm_shared::causes::told;
use realm_shared::control::Control;
use realm_shm::LastWord;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with};

use crate::engine::Engine;
use crate::manager::Manager;
use crate::serve::{Session, Setup, Watch, tell};
use crate::tenant::{Host, Vocabulary};

/// How long a step may run on after its gateway is gone: as long as gateways give one by default.
/// A worker that takes longer hangs, and would keep the next gateway waiting for ever.
const LAST_STEP: Duration = Duration::from_secs(60);
/// Gateways that may knock at the same time.
const BACKLOG: i32 = 16;
/// How often the service manager hears of a worker that waits.
const TURN: Duration = Duration::from_millis(250);
/// Pause after the system refused a connection, for want of descriptors for example.
pub(crate) const BREATH: Duration = Duration::from_millis(100);

/// Has the gateway be told where this process ends by a fault of its own: what it computed may be why, which nobody may
/// think of one that somebody else ends. To be called before Wasmtime is set up.
pub(crate) fn prepare_last_word() -> anyhow::Result<()> {
    let word = |signal| {
        let how = match Signal::try_from(signal) {
            Ok(name) => format!("killed by {name}; its log says more"),
            Err(_) => format!("killed by signal {signal}; its log says more"),
        };
        serde_json::to_vec(&Control::Crashed { how }).unwrap_or_default()
    };
    LastWord::prepare(word).context("cannot handle signals")
}

/// Serves a model to one gateway after the other. Ends when none came for `grace` after the last
/// one went; waits for the first without limit. The socket's file stays: a confined process deletes
/// nothing, and the next worker takes the file for what it is.
///
/// # Errors
/// If it cannot listen, or not load the model.
pub(crate) fn serve(
    path: &Path,
    grace: Duration,
    setup: &Setup,
    host: &Arc<Host>,
) -> anyhow::Result<()> {
    let listener = bind(path)?;
    let mut manager = Manager::find().unwrap_or_else(|error| {
        say(format_args!("cannot reach the service manager: {error}"));
        Manager::absent()
    });
    let prepared = setup.prepare()?;
    let door = Door::open(listener)?;
    let loaded = setup.load(prepared, &|control| door.tell(control));
    let (mut engine, vocabulary) = loaded.inspect_err(|error| {
        door.tell(&Control::Failed {
            message: told(error.as_ref()),
        });
    })?;
    say("the model is loaded");
    manager.ready();
    let mut next = door.wait(None, &mut manager);
    while let Some(session) = next {
        let serve = || serve_one(session, &mut engine, host, &vocabulary, &mut manager);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(serve)) {
            let how = "it panicked; its log says more".to_owned();
            door.tell(&Control::Crashed { how });
            resume_unwind(panic);
        }
        engine.reset()?;
        next = door.wait(Some(grace), &mut manager);
    }
    say("no gateway came within the grace time");
    Ok(())
}

/// Serves a gateway until it is gone, or until it asks for what cannot be: that is its fault, and
/// costs its connection, not the weights.
fn serve_one(
    mut session: Session,
    engine: &mut Engine,
    host: &Arc<Host>,
    vocabulary: &Arc<Vocabulary>,
    manager: &mut Manager,
) {
    let who = caller(session.socket());
    say(format_args!("{who} is attached"));
    // Where no descriptor is left for it, there is none for the watch either.
    let _last_word = LastWord::to(session.socket());
    let served = Watch::start(session.socket(), LAST_STEP).and_then(|watch| {
        let result = session.run(engine, host, vocabulary, &watch, manager);
        session.conclude(&watch, result)
    });
    match served {
        Ok(()) => say(format_args!("{who} is gone")),
        Err(error) => say(format_args!(
            "{who} was sent away: {}",
            told(error.as_ref())
        )),
    }
    session.hang_up();
}

/// Where gateways come in.
struct Door {
    /// Those that completed the handshake.
    sessions: Receiver<Session>,
    guest: Arc<Guest>,
}

/// The control socket of the gateway that came in last.
#[derive(Default)]
struct Guest(Mutex<Option<OwnedFd>>);

impl Guest {
    /// Takes the place of the last one, or says who has it.
    fn replace(&self, socket: BorrowedFd<'_>) -> anyhow::Result<()> {
        let mut guest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = guest.as_ref()
            && !hung_up(here.as_fd())
        {
            bail!(
                "{} is attached to this worker already",
                caller(here.as_fd())
            );
        }
        *guest = Some(socket.try_clone_to_owned()?);
        Ok(())
    }
}

impl Door {
    /// Lets gateways in from now on, for as long as the process lives.
    fn open(listener: OwnedFd) -> anyhow::Result<Door> {
        let (sender, sessions) = mpsc::channel();
        let guest = Arc::<Guest>::default();
        let door = Door {
            sessions,
            guest: guest.clone(),
        };
        spawn("door", move || {
            loop {
                let Ok(socket) = accept_with(&listener, SocketFlags::CLOEXEC) else {
                    std::thread::sleep(BREATH);
                    continue;
                };
                let (guest, sender) = (guest.clone(), sender.clone());
                // A caller without a thread is hung up on, and calls again.
                let _ = spawn("visit", move || visit(socket, &guest, &sender));
            }
        })?;
        Ok(door)
    }

    /// Waits for a gateway, for as long as is said or without limit.
    fn wait(&self, limit: Option<Duration>, manager: &mut Manager) -> Option<Session> {
        let begun = Instant::now();
        loop {
            manager.alive();
            let left = limit.map_or(TURN, |limit| limit.saturating_sub(begun.elapsed()));
            match self.sessions.recv_timeout(left.min(TURN)) {
                Ok(session) => return Some(session),
                Err(RecvTimeoutError::Timeout) if left > TURN || limit.is_none() => {}
                Err(_) => return None,
            }
        }
    }

    /// Tells the gateway that is attached, if one is. One that is gone will be noticed later.
    fn tell(&self, control: &Control) {
        let guest = self.guest.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = guest.as_ref() {
            let _ = tell(socket.as_fd(), control);
        }
    }
}

/// Shakes hands with a caller; lets it in, or tells it why not.
fn visit(socket: OwnedFd, guest: &Guest, sessions: &Sender<Session>) {
    let who = caller(socket.as_fd());
    let session = match Session::greet(socket) {
        Ok(session) => session,
        Err(error) => return say(format_args!("{who} called: {}", told(error.as_ref()))),
    };
    match guest.replace(session.socket()) {
        Ok(()) => drop(sessions.send(session)),
        Err(taken) => {
            say(format_args!("{who} called, but {taken}"));
            let failed = Control::Failed {
                message: taken.to_string(),
            };
            // It hears the same, with fewer words, when the socket is closed.
            let _ = tell(session.socket(), &failed);
        }
    }
}

/// Whether the other side is gone, or this one has closed the connection.
fn hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// The process at the other end, in words.
pub(crate) fn caller(socket: BorrowedFd<'_>) -> String {
    match getsockopt(&socket, PeerCredentials) {
        // The system gives 0 for a process in a namespace that cannot be seen from here.
        Ok(peer) if peer.pid() > 0 => format!("gateway {}", peer.pid()),
        _ => "a gateway".to_owned(),
    }
}

/// Listens at `path`, open to this user alone. What a dead worker left there is replaced.
pub(crate) fn bind(path: &Path) -> anyhow::Result<OwnedFd> {
    let fail = || format!("cannot listen on {}", path.display());
    let address = SocketAddrUnix::new(path).with_context(fail)?;
    let listener = socket()?;
    remove_stale(path, &address)?;
    let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = rustix::net::bind(&listener, &address);
    rustix::process::umask(mask);
    bound.with_context(fail)?;
    rustix::net::listen(&listener, BACKLOG).with_context(fail)?;
    Ok(listener)
}

fn socket() -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None);
    Ok(socket?)
}

/// Removes the socket of a worker that is dead, and nothing else.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> anyhow::Result<()> {
    let Ok(file) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    let shown = path.display();
    if !file.file_type().is_socket() {
        bail!("{shown} is there and is no socket: choose another --socket");
    }
    match rustix::net::connect(socket()?, address) {
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).with_context(|| format!("cannot replace {shown}"))
        }
        _ => bail!("somebody listens on {shown} already: stop them, or choose another --socket"),
    }
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(body).context("cannot start a thread")?;
    Ok(())
}

/// For whoever reads the log of what they started. Nobody may: the terminal may be gone.
pub(crate) fn say(what: impl Display) {
    let _ = writeln!(io::stderr(), "realm-worker: {what}");
}
