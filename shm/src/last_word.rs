//! The last word of a process that ends by a fault of its own, to a peer that is not its parent: it would see no more of
//! that than a connection which is closed, as when the process is ended from outside.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// The signals that a process gets for what it did itself.
const FAULTS: [c_int; 7] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGTRAP,
];

/// Whom the last word is for, as a descriptor; -1 is nobody.
static PEER: AtomicI32 = AtomicI32::new(NOBODY);
const NOBODY: i32 = -1;

static FAREWELLS: OnceLock<[Farewell; FAULTS.len()]> = OnceLock::new();

/// What is done at a signal.
struct Farewell {
    signal: c_int,
    word: Vec<u8>,
    /// What was done at it before.
    before: libc::sigaction,
}

/// A peer that has the last word of this process, should it end by its fault while the value lives.
#[derive(Debug)]
pub struct LastWord(OwnedFd);

impl LastWord {
    /// Prepares this process, once. `word` makes a message of a signal. To be called before anything else takes these
    /// signals for what it can mend, as Wasmtime does: that passes on what it cannot, and is not passed what it can.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn prepare(word: impl Fn(i32) -> Vec<u8>) -> io::Result<()> {
        let mut farewells = Vec::new();
        for signal in FAULTS {
            farewells.push(Farewell {
                signal,
                word: word(signal),
                before: replace(signal, None)?,
            });
        }
        let farewells = farewells.try_into().map_err(|_| io::ErrorKind::Other)?;
        if FAREWELLS.set(farewells).is_err() {
            return Ok(());
        }
        // SAFETY: `sigaction` is plain data, for which zeros are values: no flags, no signals in the mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let speak: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = speak;
        action.sa_sigaction = speak as libc::sighandler_t;
        // A thread whose stack is full has another one for this.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in FAULTS {
            replace(signal, Some(&action))?;
        }
        Ok(())
    }

    /// Has the peer at the other end of a socket be told. There is one at a time: the last of which this was said.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn to(socket: BorrowedFd<'_>) -> io::Result<LastWord> {
        let socket = socket.try_clone_to_owned()?;
        PEER.store(socket.as_raw_fd(), Ordering::Release);
        Ok(LastWord(socket))
    }
}

impl Drop for LastWord {
    fn drop(&mut self) {
        let own = self.0.as_raw_fd();
        let _ = PEER.compare_exchange(own, NOBODY, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Sets what is done at a signal, if that is to be another thing; what was done before.
fn replace(signal: c_int, action: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let action = action.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: plain data, for which zeros are values.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is null or points to a live value, and `before` to another one. A handler in it is `speak`, which
    // calls nothing that a handler may not call, or what was installed for this signal before.
    match unsafe { libc::sigaction(signal, action, &raw mut before) } {
        0 => Ok(before),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends the last word, and lets come what would have come without it.
///
/// It may interrupt any code. So it allocates nothing and takes no lock: it reads what was made before it was installed,
/// and calls what POSIX lets a handler call.
extern "C" fn speak(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    let farewells = FAREWELLS.get().map_or(&[][..], |all| all.as_slice());
    let Some(farewell) = farewells.iter().find(|each| each.signal == signal) else {
        return;
    };
    // SAFETY: with SA_SIGINFO the system, or a handler that passes the signal on, gives a pointer to a live value. The
    // sender's id lies in it for signals that were sent, and is looked at for no others.
    let (is_fault, sender) = unsafe { ((*info).si_code > 0, || (*info).si_pid()) };
    // SAFETY: it touches no memory.
    let is_own = is_fault || sender() == unsafe { libc::getpid() };
    let peer = PEER.swap(NOBODY, Ordering::AcqRel);
    if is_own && peer != NOBODY {
        let (word, flags) = (&farewell.word, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
        // SAFETY: the word is never changed or freed. Should the descriptor be closed just now, whoever has its number
        // may get a message, or the call fails.
        unsafe { libc::send(peer, word.as_ptr().cast(), word.len(), flags) };
    }
    // SAFETY: the action was in force before for this signal; the place for the present one may be missing.
    unsafe { libc::sigaction(signal, &raw const farewell.before, null_mut()) };
    // What a thread did it does again. What was sent has to be sent again, and comes when this returns.
    if !is_fault {
        // SAFETY: it touches no memory.
        unsafe { libc::raise(signal) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::socket;

    /// How the process below is told to end.
    const HOW: &str = "REALM_TEST_END";

    #[test]
    #[ignore = "a process of its own, which the other test starts"]
    fn ends_as_it_is_told() {
        LastWord::prepare(|signal| format!("ended by {signal}").into_bytes()).unwrap();
        let last_word = LastWord::to(std::io::stdin().as_fd()).unwrap();
        match std::env::var(HOW).as_deref() {
            Ok("abort") => std::process::abort(),
            // SAFETY: it is not; it is a fault.
            Ok("fault") => _ = unsafe { std::ptr::dangling::<u8>().read_volatile() },
            Ok("overflow") => _ = deeper(1),
            Ok("unheard") => {
                drop(last_word);
                std::process::abort()
            }
            _ => {
                socket::send(std::io::stdin().as_fd(), b"ready").unwrap();
                loop {
                    std::thread::park();
                }
            }
        }
    }

    fn deeper(depth: u64) -> u64 {
        let here = std::hint::black_box([depth; 64]);
        match depth {
            u64::MAX => 0,
            _ => deeper(depth + 1) ^ here[63],
        }
    }

    /// What a process says last that ends as it is told, or else is ended by a signal; and what it ended by.
    fn last_words(how: &str, ended_by: Option<i32>) -> (String, Option<i32>) {
        let (ours, theirs) = socket::pair().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "last_word::tests::ends_as_it_is_told",
            ])
            .env(HOW, how)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut said, mut buffer) = (String::new(), [0; 64]);
        while let Ok(length @ 1..) = socket::recv(ours.as_fd(), &mut buffer) {
            said += std::str::from_utf8(&buffer[..length]).unwrap();
            if let (Some(signal), "ready") = (ended_by, &*said) {
                let pid = rustix::process::Pid::from_child(&child);
                let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
                rustix::process::kill_process(pid, signal).unwrap();
            }
        }
        (said, child.wait().unwrap().signal())
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real processes")]
    fn faults_of_its_own_are_told() {
        for (how, signal) in [
            ("abort", libc::SIGABRT),
            ("fault", libc::SIGSEGV),
            // Rust says that the stack is full, and aborts; what is told is what came first.
            ("overflow", libc::SIGSEGV),
        ] {
            let (said, ended) = last_words(how, None);
            assert_eq!(said, format!("ended by {signal}"), "{how}");
            let ends = [Some(signal), Some(libc::SIGABRT)];
            assert!(ends.contains(&ended), "{how}: {ended:?}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real processes")]
    fn what_ends_it_from_outside_is_not_told() {
        for signal in [libc::SIGABRT, libc::SIGILL, libc::SIGTERM, libc::SIGKILL] {
            assert_eq!(
                last_words("wait", Some(signal)),
                ("ready".to_owned(), Some(signal))
            );
        }
        assert_eq!(
            last_words("unheard", None),
            (String::new(), Some(libc::SIGABRT))
        );
    }
}
