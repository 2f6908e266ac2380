//! Loops over tasks on several threads.
//!
//! They run on a [`Crew`], whose regions end when the *tasks* are done: a thread that the system has
//! taken off its core cannot hold them up, while OpenMP waits for every thread to arrive. On a busy
//! machine of two cores that is the difference between one and a hundred milliseconds per step.
//!
//! Every thread begins with a share of its own of the numbers, in order, the same for as many tasks, so that the rows
//! of one computation are in the cache of the core that needs them for the next; then it helps the others from the end
//! of theirs.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::crew::Crew;

/// Cores that the system lets us use.
pub fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores.clamp(1, 1024) as u32
}

/// Ranges that every thread gets, so that all end together.
const SHARES: usize = 4;

/// The threads of a computation.
#[derive(Clone)]
pub struct Threads {
    count: u32,
    crew: Arc<Crew>,
}

impl Threads {
    /// `count` threads, this one among them; at least one. libtorch is told to use as many of its own.
    pub fn new(count: u32) -> Threads {
        super::cpu::settle();
        let count = count.clamp(1, 1024);
        tch::set_num_threads(count as i32);
        Threads {
            count,
            crew: Arc::new(Crew::new(count - 1)),
        }
    }

    /// Their number.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Calls `task` once for every number below `tasks`, on any thread: most of those that one calls ascend, one by one.
    pub(super) fn run<F: Fn(usize) + Sync>(&self, tasks: usize, task: F) {
        if self.count == 1 || tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        let count = tasks.min(self.count as usize);
        let share = |i: usize| Share::new(i * tasks / count..(i + 1) * tasks / count);
        let shares: Vec<_> = (0..count).map(share).collect();
        self.crew.run(&|number: usize| {
            // Where there are fewer tasks than threads, some only help.
            if let Some(share) = shares.get(number) {
                while let Some(i) = share.first() {
                    task(i);
                }
            }
            for other in 0..count {
                while let Some(i) = shares[(number + other) % count].last() {
                    task(i);
                }
            }
        });
    }

    /// Calls `task` with every number below `count` once, of which it gets up to `most` on end: as many as leave some
    /// for every thread.
    pub(super) fn run_in_ranges(
        &self,
        count: usize,
        most: usize,
        task: impl Fn(Range<usize>) + Sync,
    ) {
        let fair = count.div_ceil(SHARES * self.count as usize);
        let length = fair.clamp(1, most);
        self.run(count.div_ceil(length), |i| {
            task(i * length..count.min((i + 1) * length));
        });
    }

    /// Calls `f` once for every item, on any thread.
    pub fn for_each<T: Send>(&self, items: &mut [T], f: impl Fn(&mut T) + Sync) {
        let count = items.len();
        let shared = Disjoint::new(items);
        self.run(count, |i| {
            // SAFETY: each number is handed out once, so no other reference to item `i` exists.
            let item = unsafe { shared.slice(i..i + 1) };
            item.iter_mut().for_each(&f);
        });
    }
}

/// The tasks of a thread that are left: the first of them in the low half, and the one behind the last.
///
/// Alone in its cache line, as long as nobody helps.
#[repr(align(64))]
struct Share(AtomicU64);

impl Share {
    fn new(tasks: Range<usize>) -> Share {
        let [first, end] = [tasks.start, tasks.end].map(|n| n as u64);
        debug_assert!(end >> 32 == 0);
        Share(AtomicU64::new(first | end << 32))
    }

    /// Takes the first task.
    fn first(&self) -> Option<usize> {
        self.take(|first, end| (first, first + 1..end))
    }

    /// Takes the last one.
    fn last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, first..end - 1))
    }

    /// Takes one of the tasks between two numbers, and leaves others.
    fn take(&self, split: impl Fn(u32, u32) -> (u32, Range<u32>)) -> Option<usize> {
        let mut now = self.0.load(Ordering::Relaxed);
        loop {
            let (first, end) = (now as u32, (now >> 32) as u32);
            if first >= end {
                return None;
            }
            let (task, left) = split(first, end);
            let then = u64::from(left.start) | u64::from(left.end) << 32;
            let order = Ordering::Relaxed;
            // Relaxed: it only hands out numbers; the region's end synchronizes.
            match self.0.compare_exchange_weak(now, then, order, order) {
                Ok(_) => return Some(task as usize),
                Err(other) => now = other,
            }
        }
    }
}

/// A slice that tasks write to in parts that do not overlap.
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut T` to other threads, no more than `&mut [T]` could; that the parts
// are disjoint is the promise of `slice`'s callers.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Disjoint {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrow: PhantomData,
        }
    }

    /// The part of the slice in `range`, which is checked to lie inside.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Sets one value, which is checked to lie inside.
    ///
    /// # Safety
    /// No other task may touch it meanwhile.
    #[inline(always)]
    pub(super) unsafe fn put(&self, at: usize, value: T) {
        assert!(at < self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise.
        unsafe { *self.start.add(at) = value };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_share_is_taken_from_both_ends() {
        let share = Share::new(3..6);
        assert_eq!(share.first(), Some(3));
        assert_eq!(share.last(), Some(5));
        assert_eq!(share.last(), Some(4));
        assert_eq!((share.first(), share.last()), (None, None));
        assert_eq!(Share::new(0..0).last(), None);
    }

    #[test]
    fn every_item_is_visited_once() {
        for count in [1, 2, 5] {
            let threads = Threads::new(count);
            for round in 1..200 {
                let mut items = vec![0; round];
                threads.for_each(&mut items, |x| *x += 1);
                assert!(items.iter().all(|x| *x == 1));
            }
            threads.for_each(&mut [0; 0], |_| panic!("nothing to visit"));
            for numbers in [0, 1, 7, 100, 1000] {
                let visits: Vec<_> = (0..numbers).map(|_| AtomicUsize::new(0)).collect();
                threads.run_in_ranges(numbers, 16, |range| {
                    assert!((1..=16).contains(&range.len()));
                    for visits in &visits[range] {
                        visits.fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(visits.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }
}
