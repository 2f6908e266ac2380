//! A ring with one producer and one consumer, each of which distrusts the other's index.
//!
//! The producer owns the segment that holds the entries and the head; the consumer keeps its tail
//! in its own segment. Both count entries since the beginning and never wrap back, so
//! `head - tail` is the number of entries in flight. Each side caches the other's index and looks
//! at it again only when the ring seems full (producer) or empty (consumer).

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::layout::{self, HEAD, TAIL};
use crate::message::{self, Message, SlotRef};
use crate::slab::SlabError;
use crate::words::{OwnWords, Words};

/// The ring has no free entry: the peer takes messages more slowly than they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring is full; take what the peer answered, then publish again")]
pub struct Full;

/// The peer wrote something that no correct peer writes. Its segments are not to be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A ring index went backwards or further than the ring reaches.
    #[error("{ring} ring: the peer moved its index from {from} to {to}, allowed is up to {limit}")]
    Index {
        /// Which ring.
        ring: &'static str,
        /// Where the index was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Where it could have gone at most.
        limit: u64,
    },
    /// An entry was published before it was written, or rewritten afterwards.
    #[error("{ring} ring: entry {expected} carries sequence number {found}")]
    Sequence {
        /// Which ring.
        ring: &'static str,
        /// Number of the entry.
        expected: u64,
        /// Number found in it.
        found: u64,
    },
    /// An entry of another incarnation.
    #[error("{ring} ring: entry {entry} is of epoch {found}, the segments are of epoch {expected}")]
    Epoch {
        /// Which ring.
        ring: &'static str,
        /// Number of the entry.
        entry: u64,
        /// Epoch of the segments.
        expected: u32,
        /// Epoch found in the entry.
        found: u32,
    },
    /// Bits that must be 0 are not.
    #[error("{ring} ring: entry {entry} sets reserved bits")]
    Reserved {
        /// Which ring.
        ring: &'static str,
        /// Number of the entry.
        entry: u64,
    },
    /// A message names a slot that the gateway did not hand out like this.
    #[error("a message of kind {kind} names a wrong {slab} slot: {source}")]
    Slot {
        /// Kind of the message.
        kind: u16,
        /// `"input"` or `"output"`.
        slab: &'static str,
        /// What is wrong with the slot.
        source: SlabError,
    },
    /// The worker wakes the gateway again and again without having published anything.
    #[error("{0} wake-ups in a row brought no message")]
    Wakes(u32),
    /// A message names bytes that the slab does not have.
    #[error("{slab} slot {} with {} bytes does not exist", slot.index, slot.len)]
    Range {
        /// `"input"` or `"output"`.
        slab: &'static str,
        /// The slot named.
        slot: SlotRef,
    },
}

/// The side that publishes.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: &'static str,
    capacity: u64,
    epoch: u32,
    head: u64,
    /// The peer's tail when last looked at.
    tail: u64,
}

impl Producer {
    /// `capacity` is a power of two.
    pub(crate) fn new(ring: &'static str, capacity: u64, epoch: u32) -> Self {
        Self {
            ring,
            capacity,
            epoch,
            head: 0,
            tail: 0,
        }
    }

    /// Publishes a message; false if the ring is full.
    pub(crate) fn push(
        &mut self,
        own: &impl OwnWords,
        peer: &impl Words,
        message: &Message,
    ) -> Result<bool, Violation> {
        if self.head.wrapping_sub(self.tail) == self.capacity && self.unread(peer)? == self.capacity
        {
            return Ok(false);
        }
        let at = layout::entry(self.head, self.capacity);
        for (i, word) in message::encode(self.head, self.epoch, message)
            .into_iter()
            .enumerate()
        {
            own.store(at + i, word, Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        // Release: the entry, and the payload it names, are written before the head is.
        own.store(HEAD, self.head, Release);
        Ok(true)
    }

    /// Messages that the consumer has not taken.
    pub(crate) fn unread(&mut self, peer: &impl Words) -> Result<u64, Violation> {
        // Acquire: the consumer's reads of the entries to be overwritten came before this tail.
        let tail = peer.load(TAIL, Acquire);
        if tail.wrapping_sub(self.tail) > self.head.wrapping_sub(self.tail) {
            let (from, to, limit) = (self.tail, tail, self.head);
            return Err(Violation::Index {
                ring: self.ring,
                from,
                to,
                limit,
            });
        }
        self.tail = tail;
        Ok(self.head.wrapping_sub(tail))
    }

    /// Messages published so far.
    pub(crate) fn published(&self) -> u64 {
        self.head
    }
}

/// The side that takes.
#[derive(Debug)]
pub(crate) struct Consumer {
    ring: &'static str,
    capacity: u64,
    epoch: u32,
    tail: u64,
    /// The peer's head when last looked at.
    head: u64,
}

impl Consumer {
    /// `capacity` is a power of two.
    pub(crate) fn new(ring: &'static str, capacity: u64, epoch: u32) -> Self {
        Self {
            ring,
            capacity,
            epoch,
            tail: 0,
            head: 0,
        }
    }

    /// Whether there is an entry to take.
    pub(crate) fn ready(&mut self, peer: &impl Words) -> Result<bool, Violation> {
        if self.head == self.tail {
            // Acquire: pairs with the producer's Release, so the entries below head are complete.
            let head = peer.load(HEAD, Acquire);
            if head.wrapping_sub(self.tail) > self.capacity {
                let limit = self.tail.wrapping_add(self.capacity);
                let (from, to) = (self.head, head);
                return Err(Violation::Index {
                    ring: self.ring,
                    from,
                    to,
                    limit,
                });
            }
            self.head = head;
        }
        Ok(self.head != self.tail)
    }

    /// Takes the next entry, if there is one. It is copied once and the copy is checked.
    pub(crate) fn pop(
        &mut self,
        own: &impl OwnWords,
        peer: &impl Words,
    ) -> Result<Option<Message>, Violation> {
        if !self.ready(peer)? {
            return Ok(None);
        }
        let (ring, number) = (self.ring, self.tail);
        let at = layout::entry(number, self.capacity);
        let entry = message::decode(std::array::from_fn(|i| peer.load(at + i, Relaxed)));
        if entry.sequence != number {
            return Err(Violation::Sequence {
                ring,
                expected: number,
                found: entry.sequence,
            });
        }
        if entry.epoch != self.epoch {
            let (expected, found) = (self.epoch, entry.epoch);
            return Err(Violation::Epoch {
                ring,
                entry: number,
                expected,
                found,
            });
        }
        if entry.reserved != 0 {
            return Err(Violation::Reserved {
                ring,
                entry: number,
            });
        }
        self.tail = number.wrapping_add(1);
        // Release: the entry was copied before the producer may overwrite it.
        own.store(TAIL, self.tail, Release);
        Ok(Some(entry.message))
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
