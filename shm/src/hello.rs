//! The handshake: one fixed-size message each way, before anything else on the socket.
//!
//! The gateway sends its hello with three descriptors (G, W, eventfd). The worker checks it, maps
//! the segments and answers with its own. A worker of another version answers too, so that both
//! sides can say what is wrong.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, sendmsg,
};

use crate::layout;

const MAGIC: u64 = u64::from_le_bytes(*b"realmshm");
/// Version of this crate's protocol.
const VERSION: u32 = 1;
/// A number that differs between two builds whose segments are laid out differently.
const LAYOUT: u64 = fnv(&[
    layout::RING_ENTRIES,
    layout::LINE_WORDS as u64,
    layout::ENTRY_WORDS as u64,
    layout::HEAD as u64,
    layout::TAIL as u64,
    layout::ASLEEP as u64,
    layout::COUNTER as u64,
    layout::CLASSES as u64,
    layout::MAX_CLASSES as u64,
    layout::ENTRIES as u64,
    layout::ALIGNMENT as u64,
    layout::PAGE as u64,
    layout::SLAB as u64,
    crate::message::FORMAT,
    crate::tensor::FORMAT,
]);

/// FNV-1a over the bytes of `words`.
pub(crate) const fn fnv(words: &[u64]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < words.len() {
        let bytes = words[i].to_le_bytes();
        let mut j = 0;
        while j < bytes.len() {
            hash = (hash ^ bytes[j] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            j += 1;
        }
        i += 1;
    }
    hash
}

/// Role of the side that made the segments.
const OFFERS: u32 = 1;
/// Role of the side that accepts them.
const ACCEPTS: u32 = 2;
/// Descriptors that come with an offer: G, W, eventfd.
pub(crate) const DESCRIPTORS: usize = 3;

/// 64 bytes, little-endian. `magic`, `version` and `abi` stay where they are in every version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Hello {
    magic: u64,
    version: u32,
    abi: u32,
    layout: u64,
    pub(crate) epoch: u32,
    role: u32,
    /// Size of G.
    pub(crate) gateway_bytes: u64,
    /// Size of W.
    pub(crate) worker_bytes: u64,
    /// Hash of the slot classes.
    pub(crate) geometry: u64,
    reserved: u64,
}

/// A handshake that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer said nothing in time.
    #[error("no handshake within {0:?}: the peer is stuck or is not a Realm process")]
    Timeout(Duration),
    /// The peer hung up: it ended, or refused what it was offered (its log says which).
    #[error("the peer closed the connection during the handshake; its log says why")]
    Closed,
    /// The socket failed.
    #[error("cannot {action} during the handshake: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// What came is no hello.
    #[error("the peer does not speak Realm's protocol: {0}")]
    Malformed(String),
    /// The two sides are of different releases.
    #[error(
        "the peer has {what} {theirs:#x}, this side {ours:#x}: gateway and worker must be of the same release"
    )]
    Version {
        /// What differs.
        what: &'static str,
        /// This side's.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// The hello is about other segments than those at hand.
    #[error("the handshake is about other segments: {what} is {theirs:#x}, expected {ours:#x}")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// This side's.
        ours: u64,
        /// The peer's.
        theirs: u64,
    },
    /// A segment received cannot be used.
    #[error("segment {segment}: {reason}")]
    Segment {
        /// `"G"` or `"W"`.
        segment: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process that connected the socket, as this process would name it. `None` where the system
    /// does not tell: the socket is one of a pair made by this process, or the peer lives in a
    /// process namespace that cannot be seen from here.
    pub pid: Option<u32>,
}

impl Hello {
    /// The gateway's hello.
    pub(crate) fn offer(epoch: u32, abi: u32, bytes: [usize; 2], geometry: u64) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            abi,
            layout: LAYOUT,
            epoch,
            role: OFFERS,
            gateway_bytes: bytes[0] as u64,
            worker_bytes: bytes[1] as u64,
            geometry,
            reserved: 0,
        }
    }

    /// The worker's answer to this offer.
    pub(crate) fn answer(&self, abi: u32) -> Self {
        let Self {
            epoch,
            gateway_bytes,
            worker_bytes,
            geometry,
            ..
        } = *self;
        let bytes = [gateway_bytes as usize, worker_bytes as usize];
        Self {
            role: ACCEPTS,
            ..Self::offer(epoch, abi, bytes, geometry)
        }
    }

    /// Whether the two sides can understand one another.
    pub(crate) fn check_version(&self, abi: u32) -> Result<(), HandshakeError> {
        let same = |what, ours: u64, theirs: u64| match ours == theirs {
            true => Ok(()),
            false => Err(HandshakeError::Version { what, ours, theirs }),
        };
        same("protocol version", VERSION.into(), self.version.into())?;
        same("message version", abi.into(), self.abi.into())?;
        same("memory layout", LAYOUT, self.layout)
    }

    /// Whether this is an offer.
    pub(crate) fn check_offer(&self, abi: u32) -> Result<(), HandshakeError> {
        self.check_version(abi)?;
        self.check_equal(&Self {
            role: OFFERS,
            reserved: 0,
            ..*self
        })
    }

    /// Whether this is the answer to `offer`.
    pub(crate) fn check_answer(&self, offer: &Self) -> Result<(), HandshakeError> {
        self.check_version(offer.abi)?;
        self.check_equal(&offer.answer(offer.abi))
    }

    fn check_equal(&self, expected: &Self) -> Result<(), HandshakeError> {
        let fields = |hello: &Self| {
            [
                ("role", hello.role.into()),
                ("epoch", hello.epoch.into()),
                ("size of G", hello.gateway_bytes),
                ("size of W", hello.worker_bytes),
                ("geometry", hello.geometry),
                ("reserved field", hello.reserved),
            ]
        };
        for ((what, ours), (_, theirs)) in fields(expected).into_iter().zip(fields(self)) {
            if ours != theirs {
                return Err(HandshakeError::Mismatch { what, ours, theirs });
            }
        }
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, HandshakeError> {
        if bytes.is_empty() {
            return Err(HandshakeError::Closed);
        }
        let hello: Self = bytemuck::try_pod_read_unaligned(bytes).map_err(|_| {
            HandshakeError::Malformed(format!(
                "a message of other than {} bytes",
                size_of::<Self>()
            ))
        })?;
        match hello.magic == MAGIC {
            true => Ok(hello),
            false => Err(HandshakeError::Malformed(format!(
                "a message that starts with {:#018x} instead of {MAGIC:#018x}",
                hello.magic
            ))),
        }
    }
}

/// The time that a handshake may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    start: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            start: Instant::now(),
            limit,
        }
    }

    /// Runs `operation`, which must not block, whenever the socket is ready for it.
    fn run<T>(
        &self,
        action: &'static str,
        socket: BorrowedFd<'_>,
        ready: PollFlags,
        mut operation: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, HandshakeError> {
        loop {
            let error = match operation() {
                Ok(done) => return Ok(done),
                Err(Errno::AGAIN) => {
                    let left = self.limit.saturating_sub(self.start.elapsed());
                    if left.is_zero() {
                        return Err(HandshakeError::Timeout(self.limit));
                    }
                    // A limit too long for the system to express is no limit.
                    let timeout = left.try_into().ok();
                    match poll(
                        &mut [PollFd::from_borrowed_fd(socket, ready)],
                        timeout.as_ref(),
                    ) {
                        Ok(_) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            match error {
                Errno::INTR => {}
                Errno::PIPE | Errno::CONNRESET => return Err(HandshakeError::Closed),
                error => {
                    return Err(HandshakeError::Socket {
                        action,
                        source: error.into(),
                    });
                }
            }
        }
    }
}

/// Sends a hello, with descriptors if it is an offer.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    hello: &Hello,
    descriptors: &[BorrowedFd<'_>],
    deadline: Deadline,
) -> Result<(), HandshakeError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    deadline.run("send", socket, PollFlags::OUT, || {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Errno::INVAL);
        }
        let iov = [IoSlice::new(bytemuck::bytes_of(hello))];
        sendmsg(
            socket,
            &iov,
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Receives the worker's answer. Descriptors that a hostile worker attaches are closed by the
/// system, since no room is given for them.
pub(crate) fn receive(socket: BorrowedFd<'_>, deadline: Deadline) -> Result<Hello, HandshakeError> {
    // One byte more than a hello has, to notice a longer message.
    let mut bytes = [0; size_of::<Hello>() + 1];
    let len = deadline.run("receive", socket, PollFlags::IN, || {
        recv(socket, &mut bytes, RecvFlags::DONTWAIT).map(|(len, _)| len)
    })?;
    Hello::decode(bytes.get(..len).unwrap_or_default())
}

/// Receives the gateway's offer and its descriptors.
pub(crate) fn receive_offer(
    socket: BorrowedFd<'_>,
    deadline: Deadline,
) -> Result<(Hello, [OwnedFd; DESCRIPTORS]), HandshakeError> {
    let mut bytes = [0; size_of::<Hello>() + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let (len, descriptors) = deadline.run("receive", socket, PollFlags::IN, || {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            flags,
        )?;
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        Ok((received.bytes, descriptors))
    })?;
    let hello = Hello::decode(bytes.get(..len).unwrap_or_default())?;
    let descriptors = descriptors.try_into().map_err(|found: Vec<OwnedFd>| {
        HandshakeError::Malformed(format!(
            "{} descriptors instead of {DESCRIPTORS}",
            found.len()
        ))
    })?;
    Ok((hello, descriptors))
}

/// Asks the system who is at the other end of `socket`.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> Result<Peer, HandshakeError> {
    // Not through rustix, whose process ids cannot be 0: the system reports 0 for a process in
    // another namespace.
    let mut credentials = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to live values, and `len` is the size of the first.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        let source = io::Error::last_os_error();
        return Err(HandshakeError::Socket {
            action: "ask for the peer's process",
            source,
        });
    }
    let pid = u32::try_from(credentials.pid).ok();
    Ok(Peer {
        pid: pid.filter(|pid| *pid != 0 && *pid != std::process::id()),
    })
}

#[cfg(all(test, not(loom)))]
mod tests;
