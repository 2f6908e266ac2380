//! Shared memory between a gateway and one worker process: bytes, tensors and peers, not requests.
//!
//! The worker is *hostile* to the gateway: it runs tenant code and may be compromised. The gateway
//! is trusted by the worker. Everything here follows from that.
//!
//! # Segments
//!
//! For each incarnation of a worker the gateway creates two memfds, allocates them fully (so that
//! running out of memory is an error now and not a SIGBUS later), maps and seals them, and passes
//! them over a Unix `SEQPACKET` socket. Each byte has exactly one writer.
//!
//! ```text
//!             G: the gateway writes                     W: the worker writes
//!             (worker maps it read-only)                (gateway maps it read-only)
//!
//!        0    head of the submit ring                   head of the completion ring
//!      128    tail of the completion ring               tail of the submit ring
//!      256    "the gateway sleeps"                      "the worker sleeps"
//!      384    bell: the worker's futex word             heartbeat
//!      512    slot classes of both slabs                (unused)
//!      640    1024 entries of the submit ring           1024 entries of the completion ring
//!    69632    input slab                                output slab
//! ```
//!
//! Both are sealed against shrinking, growing and further seals; G is also sealed against future
//! writers, so its memory stays the gateway's alone even though the worker holds the descriptor.
//! Neither has a name, so nothing is left behind when either process is killed.
//!
//! # Rings
//!
//! Two rings with one producer and one consumer each carry 64-byte entries; payloads lie in the
//! slabs and are never moved.
//!
//! ```text
//!   gateway                                                            worker
//!   alloc_input ─► input_mut ─► submit ═══ submit ring (G) ═══► try_recv ─► input
//!   alloc_output ──────────────────┘                                │
//!                                                                   ▼
//!   copy_output ◄─ poll ◄═══════════ completion ring (W) ═══════ complete ◄─ output_mut
//!   free_input, free_output
//! ```
//!
//! # The life of a slot
//!
//! Which slots are in use, in which generation, and how long, is written down in the gateway's
//! private memory alone. The gateway assigns both where a payload is and where its result goes, so
//! a worker can neither forge nor lose a slot, and a dead one leaves nothing to collect: its slots
//! go with its segments when the [`GatewayEnd`] is dropped.
//!
//! ```text
//!              alloc: generation += 1
//!    ┌──────┐ ─────────────────────────► ┌─────────────┐
//!    │ free │                            │ the         │ input:  written in place, once
//!    │      │ ◄───────────────────────── │ gateway's   │ output: copied once, then checked
//!    └──────┘            free            └─────────────┘
//!                                          │         ▲
//!                            submit names  │         │  the answer names it: slot, generation
//!                                   it     ▼         │  and length must be those handed out
//!                                        ┌─────────────┐
//!                                        │ the         │ input:  read in place
//!                                        │ worker's    │ output: written in place
//!                                        └─────────────┘
//! ```
//!
//! A reference to an earlier life of the slot has another generation, and is refused.
//!
//! Every slot is on the account of its [`Owner`], within that owner's [`Quota`]; the last
//! [`RESERVED`] slots of each size go to the gateway alone. So the messages of one tenant can hold
//! up neither those of another nor the gateway's steps.
//!
//! # Waking
//!
//! Publish, full fence, look at the peer's sleep flag, and wake it only if it sleeps; the sleeper
//! sets its flag, fences, and looks at the ring once more. The gateway sleeps on an eventfd, which
//! it registers edge-triggered and *never reads* (the worker holds the same open file and could
//! make a read block). The worker spins for a while and then sleeps on a futex in G.
//!
//! ```text
//!   producer                        sleeper
//!   write entry, head (Release)     asleep = 1
//!   ── fence(SeqCst) ──             ── fence(SeqCst) ──
//!   asleep? ─► wake                 head moved? ─► do not sleep
//! ```
//!
//! At least one of the two sees the other, so no wake-up is lost.
//!
//! Nor does a worker gain from waking without need. It can wake the gateway for nothing only a few
//! times before that is a violation too ([`GatewayEnd::woken`]); and if it always says that it
//! sleeps, each message costs the gateway one system call more.
//!
//! # Reading what a hostile peer writes
//!
//! The gateway loads W only by atomic words, copies each entry once, and checks the copy: indices
//! within the ring and monotonic, sequence number, epoch, slots that it allocated with that
//! generation and length. It never forms a `&[u8]` over W. Whatever does not fit is a
//! [`Violation`] with a readable reason; the owner then kills and replaces the worker.
//!
//! # How that is shown
//!
//! Models under every schedule (`models`, with mutants that must fail), queues and slabs against a
//! reference, hostile workers and scribblers over real segments (`tests`), fuzz targets (`fuzz`
//! beside this crate's sources; the same bodies run in the tests), and Miri over whatever needs no
//! system. `cargo bench -p realm-shm` measures.
//!
//! # Why not shared_memory, ipc-channel or iceoryx2
//!
//! Named segments leak when their creator is killed and cannot be sealed; an ipc-channel receiver
//! can be aborted by its sender; iceoryx2 trusts its peers and crashes on a rewritten offset.

#[cfg(not(all(
    target_endian = "little",
    target_pointer_width = "64",
    target_os = "linux"
)))]
compile_error!("realm-shm needs a 64-bit little-endian Linux");

mod buffer;
#[cfg(all(any(test, fuzzing), not(loom)))]
pub mod fuzz;
mod gateway;
mod hello;
#[cfg(not(loom))]
mod last_word;
mod layout;
mod message;
mod ring;
mod segment;
mod slab;
pub mod socket;
pub mod tensor;
mod wake;
mod words;
mod worker;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

pub use buffer::AlignedBuf;
pub use gateway::GatewayEnd;
pub use hello::{HandshakeError, Peer};
#[cfg(not(loom))]
pub use last_word::LastWord;
pub use layout::RING_ENTRIES;
pub use message::{Message, SlotRef};
pub use ring::{Full, Violation};
pub use segment::{Pulse, ShmError};
pub use slab::{Geometry, GeometryError, Owner, Quota, RESERVED, SlabError, SlotClass};
pub use worker::{Inlet, Outlet, WorkerEnd};
