//! Where everything lies in a segment. G and W have the same layout. Everything else in the crate
//! builds on these constants; this module knows nothing of it.

/// Entries of a ring.
pub const RING_ENTRIES: u64 = 1024;

/// Words of one line. 128 bytes, because adjacent 64-byte cache lines are fetched in pairs and the
/// two sides write neighbouring lines.
pub(crate) const LINE_WORDS: usize = 16;
/// Words of one ring entry (64 bytes).
pub(crate) const ENTRY_WORDS: usize = 8;

/// Word: how many entries the segment's owner has published on its ring.
pub(crate) const HEAD: usize = 0;
/// Word: how many entries the segment's owner has taken from its peer's ring.
pub(crate) const TAIL: usize = LINE_WORDS;
/// Word: 1 while the segment's owner sleeps or is about to.
pub(crate) const ASLEEP: usize = 2 * LINE_WORDS;
/// Word: in G the futex word on which the worker sleeps, in W the heartbeat.
pub(crate) const COUNTER: usize = 3 * LINE_WORDS;
/// First of the words with the slot classes (in G only): input, then output.
pub(crate) const CLASSES: usize = 4 * LINE_WORDS;
/// Most slot classes of one slab.
pub(crate) const MAX_CLASSES: usize = LINE_WORDS / 2;
/// First word of the ring's entries.
pub(crate) const ENTRIES: usize = 5 * LINE_WORDS;

/// Alignment of slots and of the tensors inside them, bytes.
pub(crate) const ALIGNMENT: usize = 64;
/// Granule of segments, bytes. The largest page size of the supported machines, so that a segment
/// is a whole number of pages everywhere.
pub(crate) const PAGE: usize = 65536;
/// First byte of the slab, on a page of 4 KiB.
pub(crate) const SLAB: usize = (ENTRIES * 8 + RING_ENTRIES as usize * 64).next_multiple_of(4096);

/// First word of the entry with index `index`. `capacity` is a power of two.
pub(crate) fn entry(index: u64, capacity: u64) -> usize {
    ENTRIES + (index & (capacity - 1)) as usize * ENTRY_WORDS
}

const _: () = {
    assert!(RING_ENTRIES.is_power_of_two());
    assert!((ENTRIES * 8).is_multiple_of(64) && SLAB.is_multiple_of(ALIGNMENT));
    assert!(SLAB == 69632, "the diagram in lib.rs");
};
