//! A Unix socket, blocking: whole packets, or a stream for payloads longer than a packet may be.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use crate::lane::{Lane, Payload, sum};

pub(crate) struct Socket {
    file: File,
    payload: Payload,
    room: Vec<u64>,
}

impl Socket {
    pub(crate) fn new(socket: OwnedFd, payload: Payload) -> Self {
        Socket {
            file: socket.into(),
            room: vec![0; payload.bytes() / 8],
            payload,
        }
    }
}

impl Lane for Socket {
    fn send(&mut self, first: u64) -> anyhow::Result<()> {
        self.payload.set_first(first);
        Ok(self
            .file
            .write_all(bytemuck::cast_slice(self.payload.words()))?)
    }

    fn recv(&mut self) -> anyhow::Result<u64> {
        self.file
            .read_exact(bytemuck::cast_slice_mut(&mut self.room))?;
        Ok(sum(&self.room))
    }
}
