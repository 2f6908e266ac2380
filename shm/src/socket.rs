//! Unix `SEQPACKET` sockets: whole messages, in order, and a hang-up that both sides notice.
//!
//! Used for the handshake and, afterwards, for control messages.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    recv as receive, recvmsg, send as transmit, sendmsg, socket_with, socketpair,
};

/// Most bytes of one message.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Two connected sockets, closed on exec.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// A socket that is connected to whoever listens at a path: non-blocking, and closed on exec. It does
/// not wait where a stopped process lets callers queue, but fails.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends one message of 1 to [`MAX_MESSAGE`] bytes. On a non-blocking socket it may fail with
/// [`io::ErrorKind::WouldBlock`]; a peer that is gone is [`io::ErrorKind::BrokenPipe`].
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    check_length(bytes)?;
    // A packet is sent whole or not at all.
    rustix::io::retry_on_intr(|| transmit(fd, bytes, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Like [`send`], with a descriptor that the peer gets a duplicate of.
pub fn send_with(fd: BorrowedFd<'_>, bytes: &[u8], carried: BorrowedFd<'_>) -> io::Result<()> {
    check_length(bytes)?;
    let carried = [carried];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    rustix::io::retry_on_intr(|| {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&carried)) {
            return Err(rustix::io::Errno::INVAL);
        }
        let bytes = [IoSlice::new(bytes)];
        sendmsg(fd, &bytes, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Like [`recv`], with the descriptor that came with the message, if one did. Of several, which
/// nobody sends, the others are closed.
pub fn recv_with(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(fd, &mut [IoSliceMut::new(buf)], &mut control, flags)
    })?;
    let carried = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(too_long(None, buf.len()));
    }
    Ok((received.bytes, carried))
}

/// Receives one message and returns its length; 0 when the peer has closed. Descriptors that come
/// with it are dropped. A message longer than `buf` is an error ([`io::ErrorKind::InvalidData`]).
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let room = buf.len();
    let (_, len) = rustix::io::retry_on_intr(|| receive(fd, &mut *buf, RecvFlags::TRUNC))?;
    if len > room {
        return Err(too_long(Some(len), room));
    }
    Ok(len)
}

fn check_length(bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a control message has 1 to {MAX_MESSAGE} bytes, not {}",
                bytes.len()
            ),
        ));
    }
    Ok(())
}

/// A message that has no room in `room` bytes, of so many where that is known.
fn too_long(len: Option<usize>, room: usize) -> io::Error {
    let of = len.map_or_else(String::new, |len| format!(" of {len} bytes"));
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a control message{of} does not fit in {room}"),
    )
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    #[cfg_attr(miri, ignore = "needs real sockets")]
    fn messages_keep_their_boundaries() {
        let (a, b) = pair().unwrap();
        let mut buf = [0; 16];
        send(a.as_fd(), b"one").unwrap();
        send(a.as_fd(), b"three").unwrap();
        assert_eq!(recv(b.as_fd(), &mut buf).unwrap(), 3);
        assert_eq!(recv(b.as_fd(), &mut buf).unwrap(), 5);
        assert_eq!(&buf[..5], b"three");
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut buf).unwrap(), 0);
        assert_eq!(
            send(b.as_fd(), b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real sockets")]
    fn a_descriptor_travels_with_its_message() {
        let (a, b) = pair().unwrap();
        let (c, d) = pair().unwrap();
        let mut buf = [0; 16];
        send_with(a.as_fd(), b"take it", c.as_fd()).unwrap();
        send(a.as_fd(), b"none").unwrap();
        let (len, carried) = recv_with(b.as_fd(), &mut buf).unwrap();
        assert_eq!(&buf[..len], b"take it");
        let carried = carried.expect("came along");
        send(carried.as_fd(), b"hello").unwrap();
        assert_eq!(recv(d.as_fd(), &mut buf).unwrap(), 5);
        assert!(matches!(recv_with(b.as_fd(), &mut buf), Ok((4, None))));
        send(a.as_fd(), &[1; 17]).unwrap();
        let error = recv_with(b.as_fd(), &mut buf).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert!(matches!(recv_with(b.as_fd(), &mut buf), Ok((0, None))));
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real sockets")]
    fn too_long_is_an_error_on_either_side() {
        let (a, b) = pair().unwrap();
        send(a.as_fd(), &[1; MAX_MESSAGE]).unwrap();
        let error = recv(b.as_fd(), &mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        for bytes in [0, MAX_MESSAGE + 1] {
            let error = send(a.as_fd(), &vec![0; bytes]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
