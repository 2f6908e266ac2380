//! Unix `SEQPACKET` sockets: whole messages, in order, and a hang-up that both sides notice.
//!
//! Used for the handshake and, afterwards, for control messages.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv as receive,
    send as transmit, socketpair,
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

/// Sends one message of 1 to [`MAX_MESSAGE`] bytes. On a non-blocking socket it may fail with
/// [`io::ErrorKind::WouldBlock`]; a peer that is gone is [`io::ErrorKind::BrokenPipe`].
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a control message has 1 to {MAX_MESSAGE} bytes, not {}",
                bytes.len()
            ),
        ));
    }
    // A packet is sent whole or not at all.
    rustix::io::retry_on_intr(|| transmit(fd, bytes, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message and returns its length; 0 when the peer has closed. Descriptors that come
/// with it are dropped. A message longer than `buf` is an error ([`io::ErrorKind::InvalidData`]).
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let room = buf.len();
    let (_, len) = rustix::io::retry_on_intr(|| receive(fd, &mut *buf, RecvFlags::TRUNC))?;
    if len > room {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a control message of {len} bytes does not fit in {room}"),
        ));
    }
    Ok(len)
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
