//! The worker's end: reads G in place, since it trusts the gateway, and writes W.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::hello::{self, Deadline, HandshakeError};
use crate::layout::{self, CLASSES, MAX_CLASSES, RING_ENTRIES};
use crate::message::{Message, SlotRef, high, low};
use crate::ring::{Consumer, Full, Producer, Violation};
use crate::segment::{self, OwnMemory, PeerMemory, Pulse};
use crate::slab::{SlotClass, Slots, class_words};
use crate::wake;
use crate::words::Words;

/// Longest sleep without looking at the ring. No wake-up is ever lost, so this bounds only what a
/// fault in the machine below could cost.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// The worker's end of the connection to its gateway.
pub struct WorkerEnd {
    inlet: Inlet,
    pub(crate) outlet: Outlet,
}

/// The half of a worker's end that takes messages in.
pub struct Inlet {
    own: OwnMemory,
    peer: Arc<PeerMemory>,
    epoch: u32,
    input: Slots,
    submits: Consumer,
}

/// The half of a worker's end that answers: apart from the other, so that threads which have something
/// to say can share it.
pub struct Outlet {
    own: OwnMemory,
    peer: Arc<PeerMemory>,
    pub(crate) wake: OwnedFd,
    pub(crate) output: Slots,
    completions: Producer,
}

impl WorkerEnd {
    /// Receives the gateway's offer over `socket`, maps its segments and answers. Blocks up to
    /// `deadline`. `abi` is the version of the messages' meaning, which the gateway must share.
    pub fn accept(
        socket: BorrowedFd<'_>,
        abi: u32,
        deadline: Duration,
    ) -> Result<Self, HandshakeError> {
        let deadline = Deadline::new(deadline);
        let (offer, [peer_fd, own_fd, wake]) = hello::receive_offer(socket, deadline)?;
        let answer = offer.answer(abi);
        if let Err(error) = offer.check_offer(abi) {
            // So that the gateway, too, can say which versions met. It may be gone already.
            let _ = hello::send(socket, &answer, &[], deadline);
            return Err(error);
        }
        let map_error = |segment| {
            move |e: std::io::Error| HandshakeError::Segment {
                segment,
                reason: format!("cannot be mapped: {e}"),
            }
        };
        let checked = |segment, fd: &OwnedFd, bytes: u64, seals| {
            segment::verify(fd.as_fd(), bytes, seals)
                .and_then(|()| match usize::try_from(bytes) {
                    Ok(bytes) if bytes > layout::SLAB => Ok(bytes),
                    _ => Err(format!("{bytes} bytes are too few")),
                })
                .map_err(|reason| HandshakeError::Segment { segment, reason })
        };
        let peer_bytes = checked("G", &peer_fd, offer.gateway_bytes, segment::OWNER_SEALS)?;
        let own_bytes = checked("W", &own_fd, offer.worker_bytes, segment::SEALS)?;
        let peer = PeerMemory::map(peer_fd.as_fd(), peer_bytes).map_err(map_error("G"))?;
        let own = OwnMemory::map(own_fd.as_fd(), own_bytes).map_err(map_error("W"))?;

        let input = read_slots(&peer, CLASSES, "G", peer_bytes)?;
        let output = read_slots(&peer, CLASSES + MAX_CLASSES, "W", own_bytes)?;
        let (ours, theirs) = (hello::fnv(&class_words(&input, &output)), offer.geometry);
        if ours != theirs {
            return Err(HandshakeError::Mismatch {
                what: "geometry",
                ours,
                theirs,
            });
        }
        hello::send(socket, &answer, &[], deadline)?;
        let peer = Arc::new(peer);
        Ok(Self {
            outlet: Outlet {
                own: own.share(),
                peer: peer.clone(),
                wake,
                output,
                completions: Producer::new("completion", RING_ENTRIES, offer.epoch),
            },
            inlet: Inlet {
                own,
                peer,
                epoch: offer.epoch,
                input,
                submits: Consumer::new("submit", RING_ENTRIES, offer.epoch),
            },
        })
    }

    /// Takes the halves apart.
    pub fn split(self) -> (Inlet, Outlet) {
        (self.inlet, self.outlet)
    }

    /// See [`Inlet::try_recv`].
    pub fn try_recv(&mut self) -> Result<Option<Message>, Violation> {
        self.inlet.try_recv()
    }

    /// See [`Inlet::recv_timeout`].
    pub fn recv_timeout(
        &mut self,
        spin: Duration,
        timeout: Duration,
    ) -> Result<Option<Message>, Violation> {
        self.inlet.recv_timeout(spin, timeout)
    }

    #[cfg(test)]
    pub(crate) fn recv_within(
        &mut self,
        spin: Duration,
        timeout: Duration,
        longest_sleep: Duration,
    ) -> Result<Option<Message>, Violation> {
        self.inlet.recv_within(spin, timeout, longest_sleep)
    }

    /// See [`Inlet::input`].
    pub fn input(&self, slot: SlotRef) -> Result<&[u8], Violation> {
        self.inlet.input(slot)
    }

    /// See [`Outlet::output_mut`].
    pub fn output_mut(&mut self, slot: SlotRef) -> Result<&mut [u8], Violation> {
        self.outlet.output_mut(slot)
    }

    /// See [`Outlet::complete`].
    pub fn complete(&mut self, message: &Message) -> Result<(), Full> {
        self.outlet.complete(message)
    }

    /// What shows the gateway that this process runs; it outlives this end.
    pub fn pulse(&self) -> Pulse {
        self.inlet.own.pulse()
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn own(&self) -> &OwnMemory {
        &self.inlet.own
    }
}

impl Inlet {
    /// Takes the gateway's next message, if there is one.
    pub fn try_recv(&mut self) -> Result<Option<Message>, Violation> {
        self.submits.pop(&self.own, &*self.peer)
    }

    /// Takes the gateway's next message: looks for it in a loop for `spin`, then sleeps. `None`
    /// after `timeout`.
    pub fn recv_timeout(
        &mut self,
        spin: Duration,
        timeout: Duration,
    ) -> Result<Option<Message>, Violation> {
        self.recv_within(spin, timeout, LONGEST_SLEEP)
    }

    fn recv_within(
        &mut self,
        spin: Duration,
        timeout: Duration,
        longest_sleep: Duration,
    ) -> Result<Option<Message>, Violation> {
        let start = Instant::now();
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(Some(message));
            }
            let waited = start.elapsed();
            if waited >= timeout {
                return Ok(None);
            }
            if waited < spin {
                std::hint::spin_loop();
                continue;
            }
            let sleep = longest_sleep.min(timeout - waited);
            wake::sleep(&self.own, &*self.peer, &mut self.submits, |bell| {
                self.peer.wait(bell, sleep)
            })?;
        }
    }

    /// The `slot.len` bytes of an input slot, aligned to 64 bytes, in place.
    ///
    /// Use them only until the message that named the slot is answered: then the gateway may write
    /// there again.
    pub fn input(&self, slot: SlotRef) -> Result<&[u8], Violation> {
        // SAFETY: the gateway is trusted not to touch a slot between submitting it and the answer.
        let bytes = self
            .input
            .range(slot)
            .and_then(|range| unsafe { self.peer.bytes(range) });
        bytes.ok_or(Violation::Range {
            slab: "input",
            slot,
        })
    }
}

impl Outlet {
    /// The `slot.len` bytes of an output slot, aligned to 64 bytes. They hold whatever was there
    /// before.
    pub fn output_mut(&mut self, slot: SlotRef) -> Result<&mut [u8], Violation> {
        let range = self.output.range(slot);
        let bytes = range.and_then(|range| self.own.bytes_mut(range));
        bytes.ok_or(Violation::Range {
            slab: "output",
            slot,
        })
    }

    /// Publishes a message, and wakes the gateway if it sleeps.
    ///
    /// The gateway is trusted; should its index be nonsense nevertheless, the ring counts as full.
    pub fn complete(&mut self, message: &Message) -> Result<(), Full> {
        match self.completions.push(&self.own, &*self.peer, message) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(Full),
        }
        if wake::peer_sleeps(&self.own, &*self.peer) {
            // It can fail only when the counter is full, which takes 2^64 wake-ups.
            let _ =
                rustix::io::retry_on_intr(|| rustix::io::write(&self.wake, &1u64.to_ne_bytes()));
        }
        Ok(())
    }
}

/// Reads the slot classes of one slab, whose segment is `segment`, from the table in G.
fn read_slots(
    peer: &PeerMemory,
    table: usize,
    segment: &'static str,
    bytes: usize,
) -> Result<Slots, HandshakeError> {
    let classes: Vec<SlotClass> = (table..table + MAX_CLASSES)
        .map(|word| peer.load(word, Relaxed))
        .take_while(|word| *word != 0)
        .map(|word| SlotClass {
            bytes: low(word),
            count: high(word),
        })
        .collect();
    let slots = Slots::new(&classes).map_err(|error| HandshakeError::Segment {
        segment,
        reason: error.to_string(),
    })?;
    match slots.segment_bytes() == bytes {
        true => Ok(slots),
        false => Err(HandshakeError::Segment {
            segment,
            reason: format!(
                "its slots need {} bytes, it has {bytes}",
                slots.segment_bytes()
            ),
        }),
    }
}

impl std::fmt::Debug for WorkerEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerEnd")
            .field("epoch", &self.inlet.epoch)
            .field("submits", &self.inlet.submits)
            .field("completions", &self.outlet.completions)
            .finish_non_exhaustive()
    }
}
