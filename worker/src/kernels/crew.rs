//! A pool of threads for regions of microseconds.
//!
//! ```text
//!   caller                                    helper
//!   region = work                             gate says region n is open?
//!   gate = (n, open, 0 inside)   ── Release ──► gate: 0 → 1 inside      (Acquire)
//!   work()                                    work()
//!   gate: closed                              gate: 1 → 0 inside        (Release)
//!   until 0 inside: spin         ◄── Acquire ──
//! ```
//!
//! A helper that comes too late finds the gate closed and goes back to waiting; nobody waits for
//! it. One that is inside holds the caller until it leaves, so what the region borrows outlives
//! its use.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a helper watches the gate before it sleeps: about the time between two regions of a
/// step, and far less than the time between two steps of an idle model.
const WATCH: Duration = Duration::from_micros(50);

/// Low half of the gate: how many helpers are inside.
const INSIDE: u64 = (1 << 32) - 1;
/// Whether a helper may go in.
const OPEN: u64 = 1 << 32;
/// Whether helpers are to end.
const END: u64 = 1 << 33;
/// One region further.
const REGION: u64 = 1 << 34;

/// What a region runs: a function and what it is called with.
#[derive(Clone, Copy)]
struct Region {
    call: unsafe fn(*const (), usize),
    work: *const (),
}

struct Shared {
    gate: AtomicU64,
    region: UnsafeCell<Region>,
}

// SAFETY: `region` is written by the caller of `run` while the gate is closed and nobody is
// inside, and read by helpers that are inside; `Crew::caller` makes callers take turns. The work
// it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

struct Helper {
    asleep: Arc<AtomicBool>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// Helpers that wait for regions.
pub(super) struct Crew {
    shared: Arc<Shared>,
    helpers: Vec<Helper>,
    caller: Mutex<()>,
}

impl Crew {
    /// Starts up to `helpers` threads; fewer if the system refuses.
    pub(super) fn new(helpers: u32) -> Crew {
        unsafe fn nothing(_: *const (), _: usize) {}
        let region = UnsafeCell::new(Region {
            call: nothing,
            work: std::ptr::null(),
        });
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            region,
        });
        let start = |i: u32| {
            let (shared, asleep) = (shared.clone(), Arc::new(AtomicBool::new(false)));
            let flag = asleep.clone();
            let builder = std::thread::Builder::new().name(format!("compute {i}"));
            let handle = builder
                .spawn(move || help(&shared, &flag, i as usize))
                .ok()?;
            Some(Helper {
                asleep,
                thread: handle.thread().clone(),
                handle: Some(handle),
            })
        };
        let helpers = (1..=helpers).map_while(start).collect();
        Crew {
            shared,
            helpers,
            caller: Mutex::new(()),
        }
    }

    /// Calls `work` on this thread, and on every helper that is there before it returns here, each with its number:
    /// this one's is 0.
    pub(super) fn run<F: Fn(usize) + Sync>(&self, work: &F) {
        unsafe fn call<F: Fn(usize)>(work: *const (), number: usize) {
            // SAFETY: the `work` of `run`, which does not return while a helper is inside.
            unsafe { (*work.cast::<F>())(number) }
        }
        // One region at a time. A panic of an earlier caller left the gate closed.
        let _turn = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let region = Region {
            call: call::<F>,
            work: std::ptr::from_ref(work).cast(),
        };
        // SAFETY: it is our turn, and the gate has been closed and empty since the last one.
        unsafe { *self.shared.region.get() = region };
        let number = (self.shared.gate.load(Ordering::Relaxed) / REGION).wrapping_add(1);
        self.shared
            .gate
            .store(number.wrapping_mul(REGION) | OPEN, Ordering::Release);
        self.wake();
        // Also on a panic, which must not end the borrow of `work` while a helper is inside.
        let _close = Close(&self.shared.gate);
        work(0);
    }

    fn wake(&self) {
        // Pairs with the fence in `help`: either the helper sees the gate's new state before it
        // sleeps, or this sees that it is asleep.
        fence(Ordering::SeqCst);
        for helper in &self.helpers {
            if helper.asleep.load(Ordering::Relaxed) {
                helper.thread.unpark();
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.gate.store(END, Ordering::Release);
        self.wake();
        for helper in &mut self.helpers {
            if let Some(handle) = helper.handle.take() {
                // A helper that panicked has ended the process.
                let _ = handle.join();
            }
        }
    }
}

/// Closes the gate and waits until nobody is inside.
struct Close<'a>(&'a AtomicU64);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0u32;
        while self.0.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            // A helper that lost its core inside needs this one.
            if spins.is_multiple_of(256) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}

/// Leaves the region. If the work panics the process ends: its tasks can never be complete.
struct Leave<'a>(&'a AtomicU64);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// The life of a helper.
fn help(shared: &Shared, asleep: &AtomicBool, number: usize) {
    let mut done = 0;
    loop {
        let gate = wait(shared, asleep, done);
        if gate & END != 0 {
            return;
        }
        done = gate / REGION;
        // Only into the region that was seen: its number is part of what is compared.
        let mut seen = gate;
        while seen & OPEN != 0 && seen / REGION == done {
            let entered = shared.gate.compare_exchange_weak(
                seen,
                seen + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            );
            match entered {
                Ok(_) => {
                    let _leave = Leave(&shared.gate);
                    // SAFETY: we are inside, so the region is set and stays.
                    let Region { call, work } = unsafe { *shared.region.get() };
                    // SAFETY: both were set together by `run`.
                    unsafe { call(work, number) };
                    break;
                }
                Err(now) => seen = now,
            }
        }
    }
}

/// Waits for an open region after number `done`, or the end; returns the gate.
fn wait(shared: &Shared, asleep: &AtomicBool, done: u64) -> u64 {
    let ready = |gate: u64| gate & END != 0 || (gate & OPEN != 0 && gate / REGION != done);
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            let gate = shared.gate.load(Ordering::Relaxed);
            if ready(gate) {
                return gate;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() < WATCH {
            continue;
        }
        asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !ready(shared.gate.load(Ordering::Relaxed)) {
            std::thread::park();
        }
        asleep.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_region_is_over_when_run_returns() {
        let crew = Crew::new(3);
        for round in 0..2000 {
            let (entered, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
            crew.run(&|_| {
                entered.fetch_add(1, Ordering::Relaxed);
                if round % 100 == 0 {
                    // Long enough for helpers to fall asleep in between.
                    std::thread::sleep(Duration::from_micros(200));
                }
                left.fetch_add(1, Ordering::Relaxed);
            });
            let (entered, left) = (entered.into_inner(), left.into_inner());
            assert_eq!(entered, left);
            assert!((1..=4).contains(&entered));
        }
    }

    #[test]
    fn callers_take_turns() {
        let crew = Crew::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mine = AtomicBool::new(false);
                        crew.run(&|_| mine.store(true, Ordering::Relaxed));
                        assert!(mine.into_inner());
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 600);
    }

    #[test]
    fn a_panic_of_the_caller_closes_the_region() {
        let crew = Crew::new(2);
        let caller = std::thread::current().id();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            crew.run(&|_| assert!(std::thread::current().id() != caller, "the caller panics"));
        }));
        assert!(result.is_err());
        let ran = AtomicUsize::new(0);
        crew.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert!(ran.into_inner() >= 1);
    }
}
