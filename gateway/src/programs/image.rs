//! Compiled code in memory.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Bytes in sealed memory: whoever maps it sees what was written, and nobody can change it any
/// more, not even who wrote it.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    bytes: u64,
}

/// An image that is being written.
#[derive(Debug)]
pub(super) struct Draft {
    file: File,
    bytes: u64,
}

impl Draft {
    pub(super) fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"realm-program", flags)?);
        Ok(Draft { file, bytes: 0 })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn seal(self) -> io::Result<Image> {
        let Draft { file, bytes } = self;
        let seals = SealFlag::F_SEAL_WRITE
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Image { file, bytes })
    }
}

impl Image {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Calls `each` with all of it, part by part.
    pub(super) fn read(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        loop {
            match self.file.read_at(&mut chunk, at)? {
                0 => return Ok(()),
                n => {
                    each(&chunk[..n])?;
                    at += n as u64;
                }
            }
        }
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.file.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let mut draft = Draft::new().expect("memory");
        draft.write(&[7; CHUNK]).expect("writes");
        draft.write(b"end").expect("writes");
        let image = draft.seal().expect("seals");
        assert_eq!(image.bytes(), CHUNK as u64 + 3);
        let mut read = Vec::new();
        let each = |part: &[u8]| {
            read.extend_from_slice(part);
            Ok(())
        };
        image.read(each).expect("reads");
        assert!(read.len() == CHUNK + 3 && read.ends_with(b"\x07end"));

        let file = File::from(image.into_fd());
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err() && file.set_len(1 << 20).is_err());
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::empty())).is_err());
    }
}
