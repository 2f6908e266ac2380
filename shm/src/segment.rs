//! Sealed memfds and their mappings.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{self, FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::thread::futex;

use crate::layout::{ALIGNMENT, COUNTER, SLAB};
use crate::slab::GeometryError;
use crate::words::{OwnWords, Words};

/// Segments that could not be created.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    /// The geometry cannot be laid out.
    #[error("slots of a shared-memory segment: {0}")]
    Geometry(#[from] GeometryError),
    /// The system refused.
    #[error("cannot {action} ({bytes} bytes): {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Size of the segment concerned; 0 where there is none.
        bytes: usize,
        /// What the system answered.
        source: io::Error,
    },
}

/// Seals of W: its size is fixed, and no seal can be added that would lock its writer out.
pub(crate) const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);
/// Seals of G: besides, nobody but who has mapped it already can write to it.
pub(crate) const OWNER_SEALS: SealFlags = SEALS.union(SealFlags::FUTURE_WRITE);

/// Creates an unnamed segment and allocates all of its memory.
pub(crate) fn create(name: &str, bytes: usize) -> Result<OwnedFd, ShmError> {
    let system = |action| {
        move |e: rustix::io::Errno| ShmError::System {
            action,
            bytes,
            source: e.into(),
        }
    };
    let fd = fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(system("create a memfd"))?;
    rustix::io::retry_on_intr(|| fs::fallocate(&fd, FallocateFlags::empty(), 0, bytes as u64))
        .map_err(system("allocate a shared-memory segment"))?;
    Ok(fd)
}

/// Adds seals.
pub(crate) fn seal(fd: BorrowedFd<'_>, seals: SealFlags) -> Result<(), ShmError> {
    fs::fcntl_add_seals(fd, seals).map_err(|e| ShmError::System {
        action: "seal a memfd",
        bytes: 0,
        source: e.into(),
    })
}

/// Whether a received descriptor is a segment of this size with these seals; else what is wrong.
pub(crate) fn verify(fd: BorrowedFd<'_>, bytes: u64, seals: SealFlags) -> Result<(), String> {
    let found = fs::fcntl_get_seals(fd).map_err(|e| format!("not a memfd ({e})"))?;
    if !found.contains(seals) {
        return Err(format!("has seals {found:?}, {seals:?} are needed"));
    }
    let size = fs::fstat(fd)
        .map_err(|e| format!("cannot be examined ({e})"))?
        .st_size;
    if u64::try_from(size) != Ok(bytes) {
        return Err(format!("has {size} bytes, {bytes} were announced"));
    }
    Ok(())
}

/// A shared mapping of a whole segment, unmapped on drop.
struct Map {
    /// Start of `bytes` mapped bytes, on a page.
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Map {}
// SAFETY: through a shared reference the memory is reached by atomics only, but for
// `PeerMemory::bytes`, whose callers promise that nobody writes.
unsafe impl Sync for Map {}

impl Map {
    fn new(fd: BorrowedFd<'_>, bytes: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: no address is given, so no mapping of ours can be replaced.
        let base = unsafe {
            mm::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let base = NonNull::new(base.cast())
            .ok_or_else(|| io::Error::other("the system mapped a segment at address 0"))?;
        Ok(Self { base, bytes })
    }

    /// Words from number `first` on, as atomics.
    ///
    /// Whoever writes them, atomics are what makes the access defined: another process is to this
    /// one like a thread whose stores may come at any time.
    fn words(&self, first: usize, count: usize) -> &[AtomicU64] {
        // Word numbers are computed from this crate's layout and its own bookkeeping, never from
        // what a peer wrote, so this cannot fail; it is what keeps this function sound by itself.
        let words = self.bytes / 8;
        assert!(
            first <= words && count <= words - first,
            "words {first}+{count} of a segment of {words}"
        );
        // SAFETY: within the mapping by the check, aligned since the base is on a page, mapped as
        // long as `self` lives. A read-only mapping is only loaded from: `PeerMemory` offers no
        // store, and Relaxed and Acquire loads of 8 bytes never write on the supported machines.
        unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().cast::<AtomicU64>().add(first), count)
        }
    }

    fn word(&self, word: usize) -> &AtomicU64 {
        &self.words(word, 1)[0]
    }

    /// The futex word: the low half of the counter, which on a little-endian machine comes first.
    fn futex(&self) -> &AtomicU32 {
        // SAFETY: as in `word`; the counter lies within every segment. Only the kernel looks at
        // the word through this reference.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().cast::<u64>().add(COUNTER).cast()) }
    }

    /// Start of a range within the slab, or `None` if it is not.
    fn slab(&self, range: &Range<usize>) -> Option<NonNull<u8>> {
        let inside = range.start >= SLAB && range.start <= range.end && range.end <= self.bytes;
        // SAFETY: the start is within the mapping or one past its end.
        inside.then(|| unsafe { self.base.add(range.start) })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and, since `self` is borrowed by every reference into it,
        // unused. That unmapping fails is impossible for a range that was mapped whole.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The segment that this side writes.
pub(crate) struct OwnMemory(Arc<Map>);

impl OwnMemory {
    pub(crate) fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let map = Map::new(fd, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self(Arc::new(map)))
    }

    /// Another handle to the segment. Only one of them may ever be asked for bytes.
    pub(crate) fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Bytes of the slab; `None` if the range is outside it.
    pub(crate) fn bytes_mut(&mut self, range: Range<usize>) -> Option<&mut [u8]> {
        let start = self.0.slab(&range)?;
        // SAFETY: within the mapping. This process is the only writer of the segment (G is sealed
        // against others; of W the worker is the writer and the gateway has no writable mapping),
        // has no other mapping of it, and `self` is borrowed exclusively; it is the one handle that is
        // asked for bytes. Others that share the mapping, and a `Pulse`, reach control words, and those
        // are outside the slab. That the peer may read at the same time can only harm the peer.
        Some(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), range.len()) })
    }

    /// What beats this segment's counter.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse(self.0.clone())
    }

    /// Wakes the peer if it waits on this segment's counter.
    pub(crate) fn wake(&self) {
        // It can fail only for a bad address, which a mapped word is not.
        let _ = futex::wake(self.0.futex(), futex::Flags::empty(), 1);
    }
}

/// Shows the gateway that the worker's process runs: from a thread of its own, so that it beats
/// while a step is computed or a model is loaded, and stops when the process is stopped.
pub struct Pulse(Arc<Map>);

impl Pulse {
    /// Beats once. To be called several times a second.
    pub fn beat(&self) {
        self.0.word(COUNTER).fetch_add(1, Ordering::Relaxed);
    }
}

impl Words for OwnMemory {
    fn load(&self, word: usize, order: Ordering) -> u64 {
        self.0.word(word).load(order)
    }
}

impl OwnWords for OwnMemory {
    fn store(&self, word: usize, value: u64, order: Ordering) {
        self.0.word(word).store(value, order);
    }
}

/// The segment that the peer writes.
pub(crate) struct PeerMemory(Map);

impl PeerMemory {
    pub(crate) fn map(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Map::new(fd, bytes, ProtFlags::READ).map(Self)
    }

    /// Copies words from byte `from` on, each exactly once.
    pub(crate) fn copy(&self, from: usize, into: &mut [u64]) {
        let words = self.0.words(from / 8, into.len());
        for (value, word) in into.iter_mut().zip(words) {
            *value = word.load(Ordering::Relaxed);
        }
    }

    /// Bytes of the slab; `None` if the range is outside it.
    ///
    /// # Safety
    /// The peer is trusted not to write to the range while the result is borrowed.
    pub(crate) unsafe fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        let start = self.0.slab(&range)?;
        debug_assert!((start.as_ptr() as usize).is_multiple_of(ALIGNMENT));
        // SAFETY: within the mapping; nobody writes by the caller's promise.
        Some(unsafe { std::slice::from_raw_parts(start.as_ptr(), range.len()) })
    }

    /// Sleeps until the peer's counter is not `value`, it is woken, or `timeout` is over; or for
    /// no reason at all. Works on a read-only mapping.
    pub(crate) fn wait(&self, value: u32, timeout: Duration) {
        let Ok(timeout) = timeout.try_into() else {
            return;
        };
        // Every outcome (woken, value changed, timed out, interrupted) means: look again.
        let _ = futex::wait(self.0.futex(), futex::Flags::empty(), value, Some(&timeout));
    }
}

impl Words for PeerMemory {
    fn load(&self, word: usize, order: Ordering) -> u64 {
        self.0.word(word).load(order)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::ring::{Consumer, Producer};
    use std::mem::ManuallyDrop;

    /// One piece of private memory, mapped as the segments are, in the hands of both sides: Miri
    /// has no memfds, but it can watch what is done to memory like this.
    fn segment(bytes: usize) -> (OwnMemory, ManuallyDrop<PeerMemory>) {
        // SAFETY: no address is given, so no mapping can be replaced.
        let base = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let base = NonNull::new(base.unwrap().cast()).unwrap();
        // Only the first of the two unmaps it.
        let peer = ManuallyDrop::new(PeerMemory(Map { base, bytes }));
        (OwnMemory(Arc::new(Map { base, bytes })), peer)
    }

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let bytes = SLAB + 4096;
        let (mut g, g_seen) = segment(bytes);
        let (w, w_seen) = segment(bytes);
        let mut producer = Producer::new("test", 2, 1);
        let mut consumer = Consumer::new("test", 2, 1);
        for n in 0..5u8 {
            let range = SLAB + 64..SLAB + 64 + 21;
            g.bytes_mut(range.clone()).unwrap().fill(n);
            let message = Message {
                args: [n.into(), 0],
                ..Message::default()
            };
            assert_eq!(producer.push(&g, &*w_seen, &message), Ok(true));
            assert_eq!(consumer.pop(&w, &*g_seen), Ok(Some(message)));
            // SAFETY: nobody writes to it while it is looked at.
            assert_eq!(unsafe { g_seen.bytes(range) }.unwrap(), [n; 21]);
            let mut copy = [0; 3];
            g_seen.copy(SLAB + 64, &mut copy);
            assert_eq!(copy[0], u64::from_ne_bytes([n; 8]));
            g.store(COUNTER, n.into(), Ordering::Relaxed);
            assert_eq!(g_seen.0.futex().load(Ordering::Relaxed), n.into());
        }
    }

    #[test]
    fn only_ranges_of_the_slab_are_handed_out() {
        let bytes = SLAB + 4096;
        let (mut own, peer) = segment(bytes);
        for (range, inside) in [
            (SLAB..SLAB, true),
            (SLAB..bytes, true),
            (bytes..bytes, true),
            (SLAB - 1..bytes, false),
            (0..8, false),
            (SLAB..bytes + 1, false),
            (bytes + 1..bytes + 1, false),
            #[expect(clippy::reversed_empty_ranges, reason = "this is what is refused")]
            (SLAB + 8..SLAB, false),
            (usize::MAX..usize::MAX, false),
        ] {
            assert_eq!(own.bytes_mut(range.clone()).is_some(), inside, "{range:?}");
            // SAFETY: nobody writes to it while it is looked at.
            let bytes = unsafe { peer.bytes(range.clone()) };
            assert_eq!(bytes.is_some(), inside, "{range:?}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "printing a panic takes minutes there")]
    #[should_panic(expected = "words 9216+1 of a segment of 9216")]
    fn words_outside_a_segment_are_not_reached() {
        let (own, _peer) = segment(SLAB + 4096);
        own.load((SLAB + 4096) / 8, Ordering::Relaxed);
    }
}
