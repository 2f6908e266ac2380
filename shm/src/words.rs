//! Memory as 64-bit words: what the rings are written over.
//!
//! Over shared memory the words are atomics in a mapping. In tests they lie on the heap, where
//! loom and Miri can watch every access.

use std::sync::atomic::Ordering;

/// Memory that this side may read.
pub(crate) trait Words {
    /// Loads one word. `word` comes from this crate's layout, never from the peer.
    fn load(&self, word: usize, order: Ordering) -> u64;
}

/// Memory of which this side is the only writer.
pub(crate) trait OwnWords: Words {
    /// Stores one word.
    fn store(&self, word: usize, value: u64, order: Ordering);

    /// Puts what this side stored before what it loads next, in the one order that both sides see.
    fn fence(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// A segment on the heap. The control lines are atomics; the ring's entries are plain cells, so
/// that loom and Miri report an entry that is read and written without an order between the two.
#[cfg(test)]
pub(crate) mod heap {
    #![allow(unsafe_code)]
    use super::{OwnWords, Words};
    use crate::layout;
    use std::sync::atomic::Ordering;

    #[cfg(loom)]
    use loom::{cell::UnsafeCell, sync::atomic::AtomicU64};
    #[cfg(not(loom))]
    use std::sync::atomic::AtomicU64;

    #[cfg(not(loom))]
    struct UnsafeCell(std::cell::UnsafeCell<u64>);

    #[cfg(not(loom))]
    impl UnsafeCell {
        fn new(value: u64) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }
        fn with<R>(&self, f: impl FnOnce(*const u64) -> R) -> R {
            f(self.0.get())
        }
        fn with_mut<R>(&self, f: impl FnOnce(*mut u64) -> R) -> R {
            f(self.0.get())
        }
    }

    #[cfg(loom)]
    type Cell = UnsafeCell<u64>;
    #[cfg(not(loom))]
    type Cell = UnsafeCell;

    pub(crate) struct Heap {
        control: [AtomicU64; 4],
        entries: Vec<Cell>,
        #[cfg(loom)]
        fault: Option<Fault>,
    }

    /// A way in which a segment does less than the code over it asks for. The models must notice.
    #[cfg(loom)]
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub(crate) enum Fault {
        /// Loads of this control word order nothing.
        Load(usize),
        /// Stores to this control word order nothing.
        Store(usize),
        /// Stores to this control word are lost.
        Lost(usize),
        /// The fence of the side that owns the segment is left out.
        Fence,
    }

    // SAFETY: entries are reached only through the ring, which orders the writer of an entry
    // before its reader and the reader before the next writer. That this is so is what loom and
    // Miri check.
    unsafe impl Sync for Heap {}
    // SAFETY: it owns all it holds.
    unsafe impl Send for Heap {}

    impl Heap {
        pub(crate) fn new(capacity: u64) -> Self {
            Self {
                control: std::array::from_fn(|_| AtomicU64::new(0)),
                entries: (0..capacity as usize * layout::ENTRY_WORDS)
                    .map(|_| Cell::new(0))
                    .collect(),
                #[cfg(loom)]
                fault: None,
            }
        }

        #[cfg(loom)]
        pub(crate) fn with_fault(capacity: u64, fault: Option<Fault>) -> Self {
            Self {
                fault,
                ..Self::new(capacity)
            }
        }

        #[cfg(loom)]
        fn is(&self, fault: Fault) -> bool {
            self.fault == Some(fault)
        }
    }

    impl Words for Heap {
        fn load(&self, word: usize, order: Ordering) -> u64 {
            match word.checked_sub(layout::ENTRIES) {
                // SAFETY: the pointer is to a live cell; see `Sync` for the absence of races.
                Some(entry) => self.entries[entry].with(|value| unsafe { *value }),
                #[cfg(loom)]
                None if self.is(Fault::Load(word)) => {
                    self.control[word / layout::LINE_WORDS].load(Ordering::Relaxed)
                }
                None => self.control[word / layout::LINE_WORDS].load(order),
            }
        }
    }

    impl OwnWords for Heap {
        fn store(&self, word: usize, value: u64, order: Ordering) {
            match word.checked_sub(layout::ENTRIES) {
                // SAFETY: the pointer is to a live cell; see `Sync` for the absence of races.
                Some(entry) => self.entries[entry].with_mut(|old| unsafe { *old = value }),
                #[cfg(loom)]
                None if self.is(Fault::Lost(word)) => {}
                #[cfg(loom)]
                None if self.is(Fault::Store(word)) => {
                    self.control[word / layout::LINE_WORDS].store(value, Ordering::Relaxed);
                }
                None => self.control[word / layout::LINE_WORDS].store(value, order),
            }
        }

        #[cfg(loom)]
        fn fence(&self) {
            if !self.is(Fault::Fence) {
                loom::sync::atomic::fence(Ordering::SeqCst);
            }
        }
    }
}
