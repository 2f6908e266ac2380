//! The service manager that started this process, if one did: systemd, which is told when the worker
//! serves, and, if it wants that, that its engine still takes turns.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Whoever is to be told. The socket is made at once, as a confined process can make none.
pub(crate) struct Manager {
    socket: Option<UnixDatagram>,
    /// How often it is told that all is well.
    interval: Option<Duration>,
    told: Instant,
}

impl Manager {
    /// The one that the environment names.
    ///
    /// # Errors
    /// If it names one that cannot be told anything.
    pub(crate) fn find() -> io::Result<Manager> {
        let socket = env::var_os("NOTIFY_SOCKET").map(|name| connect(&name));
        let watchdog = env::var("WATCHDOG_USEC").ok();
        let microseconds = watchdog.and_then(|text| text.parse().ok());
        Ok(Manager {
            socket: socket.transpose()?,
            // It asks for twice as often as would do.
            interval: microseconds.map(|all| Duration::from_micros(all) / 2),
            told: Instant::now(),
        })
    }

    /// None.
    pub(crate) fn absent() -> Manager {
        Manager {
            socket: None,
            interval: None,
            told: Instant::now(),
        }
    }

    /// The worker serves.
    pub(crate) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The engine takes turns. To be called more often than need be.
    pub(crate) fn alive(&mut self) {
        if self
            .interval
            .is_some_and(|interval| self.told.elapsed() >= interval)
        {
            self.told = Instant::now();
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket {
            // One that has not heard for too long starts another worker.
            let _ = socket.send(state.as_bytes());
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    // Not to wait for one that does not listen.
    socket.set_nonblocking(true)?;
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    socket.connect_addr(&address)?;
    Ok(socket)
}
