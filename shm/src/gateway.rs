//! The gateway's end: owns the segments and every slot, and believes nothing it reads from W.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::buffer::AlignedBuf;
use crate::hello::{self, Deadline, HandshakeError, Hello, Peer};
use crate::layout::{CLASSES, COUNTER, RING_ENTRIES};
use crate::message::{Message, SlotRef};
use crate::ring::{Consumer, Full, Producer, Violation};
use crate::segment::{self, OwnMemory, PeerMemory, ShmError};
use crate::slab::{Geometry, Owner, Slab, SlabError, Slots, class_words};
use crate::wake;
use crate::words::{OwnWords, Words};

/// Wake-ups in a row that may bring no message. A correct worker cannot cause more than three: it
/// wakes the gateway at most once per message, from one thread, before it publishes the next. So
/// once the gateway has taken every message, only the wake-up for the last of them may still be on
/// its way, beside one that the system has queued and one that the task has been told of.
const EMPTY_WAKES: u32 = 64;

/// The gateway's end of the connection to one incarnation of a worker.
///
/// A task drives it like this, where `wake` is an edge-triggered readiness source over
/// [`wake_fd`](Self::wake_fd) (such as tokio's `AsyncFd`), registered before the first [`arm`](Self::arm):
///
/// ```text
/// loop {
///     while let Some(message) = end.poll()? { … }
///     if end.arm()? {
///         wait for wake, clear its readiness, never read from it
///         if it was wake that ended the wait { end.woken()? }
///     }
/// }
/// ```
pub struct GatewayEnd {
    own: OwnMemory,
    peer: PeerMemory,
    own_fd: OwnedFd,
    peer_fd: OwnedFd,
    wake: OwnedFd,
    hello: Hello,
    input: Slab,
    output: Slab,
    submits: Producer,
    completions: Consumer,
    /// The counter in G on which the worker sleeps.
    bell: u32,
    /// Whether G says that the gateway sleeps.
    armed: bool,
    /// Wake-ups since the last message.
    empty_wakes: u32,
    /// The first violation found. What the worker writes is not looked at any more after it.
    violation: Option<Violation>,
}

impl GatewayEnd {
    /// Creates, allocates, maps and seals the segments for one incarnation of a worker.
    ///
    /// `epoch` differs from incarnation to incarnation; `abi` is the version of the messages'
    /// meaning, which the worker must share.
    pub fn create(epoch: u32, geometry: &Geometry, abi: u32) -> Result<Self, ShmError> {
        let input = Slots::new(&geometry.input_slots)?;
        let output = Slots::new(&geometry.output_slots)?;
        let bytes = [input.segment_bytes(), output.segment_bytes()];
        let map = |bytes| {
            move |source| ShmError::System {
                action: "map a segment",
                bytes,
                source,
            }
        };

        let own_fd = segment::create("realm-gateway", bytes[0])?;
        let own = OwnMemory::map(own_fd.as_fd(), bytes[0]).map_err(map(bytes[0]))?;
        let classes = class_words(&input, &output);
        for (i, class) in classes.into_iter().enumerate() {
            own.store(CLASSES + i, class, Relaxed);
        }
        // Only now: the seal refuses new writable mappings, not those that exist.
        segment::seal(own_fd.as_fd(), segment::OWNER_SEALS)?;

        let peer_fd = segment::create("realm-worker", bytes[1])?;
        let peer = PeerMemory::map(peer_fd.as_fd(), bytes[1]).map_err(map(bytes[1]))?;
        segment::seal(peer_fd.as_fd(), segment::SEALS)?;

        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| {
            ShmError::System {
                action: "create an eventfd",
                bytes: 0,
                source: e.into(),
            }
        })?;
        Ok(Self {
            own,
            peer,
            own_fd,
            peer_fd,
            wake,
            hello: Hello::offer(epoch, abi, bytes, hello::fnv(&classes)),
            input: Slab::new(input, geometry.quota),
            output: Slab::new(output, geometry.quota),
            submits: Producer::new("submit", RING_ENTRIES, epoch),
            completions: Consumer::new("completion", RING_ENTRIES, epoch),
            bell: 0,
            armed: false,
            empty_wakes: 0,
            violation: None,
        })
    }

    /// Offers the segments to the worker at the other end of `socket` and waits for its answer;
    /// when it succeeds, the worker has mapped them. Blocks up to `deadline`. Once per end.
    pub fn offer(
        &self,
        socket: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<Peer, HandshakeError> {
        let deadline = Deadline::new(deadline);
        let descriptors = [self.own_fd.as_fd(), self.peer_fd.as_fd(), self.wake.as_fd()];
        hello::send(socket, &self.hello, &descriptors, deadline)?;
        hello::receive(socket, deadline)?.check_answer(&self.hello)?;
        hello::peer(socket)
    }

    /// Takes a slot of at least `bytes` bytes to write input for the worker in, on the account of
    /// `owner` until it is given back.
    pub fn alloc_input(&mut self, bytes: usize, owner: Owner) -> Result<SlotRef, SlabError> {
        self.input.alloc(bytes, owner)
    }

    /// The `slot.len` bytes of an input slot, aligned to 64 bytes. They hold whatever was there
    /// before. Not to be touched between submitting the slot and the answer to it.
    pub fn input_mut(&mut self, slot: SlotRef) -> Result<&mut [u8], SlabError> {
        let range = self.input.check(slot)?;
        self.own
            .bytes_mut(range)
            .ok_or(SlabError::Unknown { index: slot.index })
    }

    /// Gives an input slot back.
    pub fn free_input(&mut self, slot: SlotRef) -> Result<(), SlabError> {
        self.input.free(slot)
    }

    /// Takes a slot of at least `bytes` bytes for the worker to write its result in, on the
    /// account of `owner` until it is given back.
    pub fn alloc_output(&mut self, bytes: usize, owner: Owner) -> Result<SlotRef, SlabError> {
        self.output.alloc(bytes, owner)
    }

    /// Gives an output slot back. The worker must have answered, or it may still write to it.
    pub fn free_output(&mut self, slot: SlotRef) -> Result<(), SlabError> {
        self.output.free(slot)
    }

    /// Copies the first `len` bytes of an output slot to private memory, reading each word once.
    /// The bytes are whatever the worker wrote: read them with checks.
    pub fn copy_output(
        &self,
        slot: SlotRef,
        len: usize,
        into: &mut AlignedBuf,
    ) -> Result<(), SlabError> {
        let range = self.output.check(slot)?;
        if len > range.len() {
            let (index, allocated) = (slot.index, slot.len);
            return Err(SlabError::Length {
                index,
                len,
                allocated,
            });
        }
        into.resize(len);
        // Slots are whole words, so the last word is within the slot even where `len` is not.
        self.peer.copy(range.start, into.words_mut());
        Ok(())
    }

    /// Publishes a message, and wakes the worker if it sleeps. A worker that always says that it
    /// sleeps costs one system call per message, and no more.
    ///
    /// A worker that falsified the ring's index is reported by the next [`poll`](Self::poll); until
    /// then the ring counts as full.
    pub fn submit(&mut self, message: &Message) -> Result<(), Full> {
        if self.violation.is_some() {
            return Err(Full);
        }
        match self.submits.push(&self.own, &self.peer, message) {
            Ok(true) => {}
            Ok(false) => return Err(Full),
            Err(violation) => {
                self.violation = Some(violation);
                return Err(Full);
            }
        }
        wake::rouse(&self.own, &self.peer, &mut self.bell, || self.own.wake());
        Ok(())
    }

    /// Messages submitted so far, and those of them that the worker has not taken. It executes them
    /// in order, so what came before the last one taken is done with.
    ///
    /// A worker that falsified the ring's index is reported by the next [`poll`](Self::poll).
    pub fn submitted(&mut self) -> (u64, u64) {
        let unread = match self.submits.unread(&self.peer) {
            Ok(unread) => unread,
            Err(violation) => {
                self.violation.get_or_insert(violation);
                0
            }
        };
        (self.submits.published(), unread)
    }

    /// Takes the worker's next message: copied once, then checked. Its slots are
    /// [`SlotRef::NONE`] or slots in use, with at most the length that was allocated.
    ///
    /// After a violation every call returns it again.
    pub fn poll(&mut self) -> Result<Option<Message>, Violation> {
        self.disarm();
        self.guarded(|end| {
            let message = end.completions.pop(&end.own, &end.peer)?;
            if let Some(Message {
                kind,
                input,
                output,
                ..
            }) = message
            {
                for (slab, slots, slot) in [
                    ("input", &end.input, input),
                    ("output", &end.output, output),
                ] {
                    if !slot.is_none() {
                        slots.check(slot).map_err(|source| Violation::Slot {
                            kind,
                            slab,
                            source,
                        })?;
                    }
                }
                end.empty_wakes = 0;
            }
            Ok(message)
        })
    }

    /// Announces that the gateway is about to sleep. True: it may sleep until
    /// [`wake_fd`](Self::wake_fd) fires. False: something has arrived; poll. The announcement ends
    /// with the next [`poll`](Self::poll), so arm again before each sleep.
    pub fn arm(&mut self) -> Result<bool, Violation> {
        self.guarded(|end| {
            end.armed = wake::announce(&end.own, &end.peer, &mut end.completions)?;
            Ok(end.armed)
        })
    }

    /// Fires when the worker publishes while the gateway is armed. Register it edge-triggered and
    /// never read from it: the worker holds the same open file and could make a read block.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// To be called each time [`wake_fd`](Self::wake_fd) has fired. A worker that keeps waking the
    /// gateway for nothing, which costs it a turn of its task each time, is a violation.
    pub fn woken(&mut self) -> Result<(), Violation> {
        self.guarded(|end| {
            end.empty_wakes += 1;
            match end.empty_wakes > EMPTY_WAKES {
                true => Err(Violation::Wakes(end.empty_wakes)),
                false => Ok(()),
            }
        })
    }

    /// The worker's heartbeat: a worker whose process runs keeps
    /// changing it. Any value may be found here.
    pub fn heartbeat(&self) -> u64 {
        self.peer.load(COUNTER, Relaxed)
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            wake::withdraw(&self.own);
        }
    }

    /// Runs `read` unless a violation was found before, and remembers the one it finds.
    fn guarded<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Violation>,
    ) -> Result<T, Violation> {
        if let Some(violation) = &self.violation {
            return Err(violation.clone());
        }
        read(self).inspect_err(|violation| self.violation = Some(violation.clone()))
    }
}

#[cfg(all(any(test, fuzzing), not(loom)))]
impl GatewayEnd {
    /// G, as this side writes it.
    #[cfg(test)]
    pub(crate) fn own(&self) -> &OwnMemory {
        &self.own
    }

    /// G and W, as the worker gets them.
    pub(crate) fn descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        (self.own_fd.as_fd(), self.peer_fd.as_fd())
    }
}

impl std::fmt::Debug for GatewayEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayEnd")
            .field("epoch", &self.hello.epoch)
            .field("submits", &self.submits)
            .field("completions", &self.completions)
            .field("armed", &self.armed)
            .field("violation", &self.violation)
            .finish_non_exhaustive()
    }
}
