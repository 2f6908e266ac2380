//! Descriptors that can be waited for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Makes the readiness of a descriptor awaitable.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "what its unsafe successor demands (one descriptor, open for as long as it is registered) \
                  holds for every OwnedFd, and this crate is free of unsafe code"
    )]
    AsyncFd::with_interest(fd, Interest::READABLE)
}
