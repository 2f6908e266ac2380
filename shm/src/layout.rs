//! Where everything lies in a segment. G and W have the same layout.

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

/// A number that differs between two builds whose segments are laid out differently.
pub(crate) const HASH: u64 = fnv(&[
    RING_ENTRIES,
    LINE_WORDS as u64,
    ENTRY_WORDS as u64,
    HEAD as u64,
    TAIL as u64,
    ASLEEP as u64,
    COUNTER as u64,
    CLASSES as u64,
    MAX_CLASSES as u64,
    ENTRIES as u64,
    ALIGNMENT as u64,
    PAGE as u64,
    SLAB as u64,
    crate::message::FORMAT,
    crate::tensor::FORMAT,
]);

/// FNV-1a over the bytes of `words`.
pub(crate) const fn fnv(words: &[u64]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut i = 0;
    while i < words.len() {
        let bytes = words[i].to_le_bytes();
        let mut j = 0;
        while j < bytes.len() {
            hash = (hash ^ bytes[j] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            j += 1;
        }
        i += 1;
    }
    hash
}

const _: () = {
    assert!(RING_ENTRIES.is_power_of_two());
    assert!((ENTRIES * 8).is_multiple_of(64) && SLAB.is_multiple_of(ALIGNMENT));
    assert!(SLAB == 69632, "the diagram in lib.rs");
};
