//! What a hostile worker may try.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

use super::*;
use crate::layout::{ENTRIES, HEAD, SLAB};

/// The usual generator of Marsaglia's; good enough to scribble with.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 8) as usize % end
    }
}

/// What a worker does that answers with tensors in `output`, and in one of `rarity` steps
/// overwrites something in its segment instead.
fn scribble(worker: &mut WorkerEnd, output: SlotRef, random: &mut Random, rarity: usize) {
    let words = worker.outlet.output.segment_bytes() / 8;
    if random.below(rarity) != 0 {
        if random.below(4) == 0 {
            let bytes = worker.output_mut(output).unwrap();
            let mut writer = TensorWriter::new(bytes, 1).unwrap();
            writer.tensor::<i32>(&[5, 5]).unwrap().fill(7);
        }
        let message = Message {
            kind: 1,
            output,
            ..Message::default()
        };
        if worker.complete(&message).is_err() {
            thread::yield_now();
        }
        return;
    }
    let own = worker.own();
    let near = own.load(HEAD, Relaxed).wrapping_add(random.next() >> 8 & 3);
    match random.below(6) {
        // Nonsense anywhere: indices, flags, entries, slots.
        0 => own.store(random.below(words), random.next(), Relaxed),
        // Nonsense in a control word.
        1 => own.store(random.below(ENTRIES), random.next(), Relaxed),
        // An index that is just right or just wrong.
        2 => own.store(
            if random.below(2) == 0 { HEAD } else { TAIL },
            near,
            Relaxed,
        ),
        // A slot that is right, wrong, or changed while it is read.
        3 => {
            let at = layout::entry(near, RING_ENTRIES) + random.below(layout::ENTRY_WORDS);
            own.store(at, random.next() & 3, Relaxed);
        }
        // Tensors that are right, wrong, or changed while they are read.
        4 => {
            let at = worker.outlet.output.range(output).unwrap().start / 8;
            own.store(at + random.below(16), random.next() % 300, Relaxed);
        }
        _ => own.store(
            SLAB / 8 + random.below(words - SLAB / 8),
            random.next(),
            Relaxed,
        ),
    }
}

/// Lets workers scribble while the gateway polls `polls` times and starts over, with new segments,
/// after each violation. What the gateway lets through must be right all the same.
fn poll_scribblers(polls: u64) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut polled, mut accepted, mut tensors, mut violations) = (0u64, 0u64, 0u64, 0u64);
    let start = Instant::now();
    // On a busy machine a scribbler may come late.
    while polled < polls || violations < 10 && start.elapsed() < PATIENCE {
        let (mut gateway, mut worker) = connected();
        let output = gateway.alloc_output(4000, Owner::GATEWAY).unwrap();
        // Some work honestly for long before they do not, some do not from the start.
        let rarity = 1 << random.below(12);
        let mut own_random = Random(random.next());
        let stop = AtomicBool::new(false);
        // A failed assertion must not leave the thread running.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        thread::scope(|scope| {
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    scribble(&mut worker, output, &mut own_random, rarity);
                }
            });
            let _stop = Stop(stop);
            let mut copy = AlignedBuf::new();
            let mut idle = 0u32;
            // Not all with one worker, which may wait for its processor the longest time.
            for n in 0..polls.min(20_000) {
                polled += 1;
                match gateway.poll() {
                    Ok(Some(message)) => {
                        accepted += 1;
                        for slot in [message.input, message.output] {
                            assert!(
                                slot.is_none()
                                    || (slot.index, slot.generation)
                                        == (output.index, output.generation)
                            );
                            assert!(slot.is_none() || slot.len <= output.len);
                        }
                        if !message.output.is_none() {
                            let len = message.output.len as usize;
                            gateway.copy_output(message.output, len, &mut copy).unwrap();
                            tensors += u64::from(TensorReader::new(&copy).is_ok());
                        }
                    }
                    Ok(None) => {
                        idle += 1;
                        // On one processor the scribbler would otherwise hardly ever run.
                        if idle.is_multiple_of(64) {
                            thread::yield_now();
                        }
                    }
                    Err(violation) => {
                        violations += 1;
                        assert!(!violation.to_string().is_empty());
                        assert_eq!(gateway.poll(), Err(violation));
                        break;
                    }
                }
                if n % 16 == 0 {
                    let _ = gateway.submit(&numbered(n));
                    let _ = gateway.arm();
                    gateway.heartbeat();
                }
            }
        });
    }
    println!(
        "{polled} polls: {accepted} accepted, {tensors} with tensors, {violations} violations"
    );
    assert!(
        accepted > 0 && tensors > 0 && violations > 0,
        "{accepted} accepted, {tensors} with tensors, {violations} violations"
    );
}

#[test]
fn scribbling_workers_cause_violations_and_nothing_else() {
    poll_scribblers(300_000);
}

#[test]
#[ignore = "half a minute: cargo test -p realm-shm scribbl -- --ignored --nocapture"]
fn scribbling_workers_for_ten_million_polls() {
    poll_scribblers(10_000_000);
}

#[test]
fn a_worker_that_only_wakes_is_a_violation() {
    let (mut gateway, mut worker) = connected();
    let sleep = Sleep::on(&gateway);
    let eventfd = worker.outlet.wake.try_clone().unwrap();
    let wake = |gateway: &mut GatewayEnd| {
        assert_eq!(gateway.arm(), Ok(true));
        rustix::io::write(&eventfd, &1u64.to_ne_bytes()).unwrap();
        sleep.wait();
        gateway.woken()
    };
    for _ in 0..64 {
        assert_eq!(gateway.poll(), Ok(None));
        assert_eq!(wake(&mut gateway), Ok(()));
    }
    // A message makes up for them.
    worker.complete(&numbered(1)).unwrap();
    assert_eq!(gateway.poll(), Ok(Some(numbered(1))));
    for _ in 0..64 {
        assert_eq!(gateway.poll(), Ok(None));
        assert_eq!(wake(&mut gateway), Ok(()));
    }
    let violation = wake(&mut gateway).unwrap_err();
    assert_eq!(violation, Violation::Wakes(65));
    assert_eq!(gateway.poll(), Err(violation));
}

#[test]
fn the_seals_hold_against_the_worker() {
    let gateway = GatewayEnd::create(EPOCH, &geometry(), ABI).unwrap();
    let (g, w) = gateway.descriptors();
    let map = |fd, protection| {
        // SAFETY: a new mapping at an address of the system's choice, unmapped below.
        unsafe {
            mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )
        }
    };
    let unmap = |at| {
        // SAFETY: the mapping was made above and is not used any more.
        unsafe { munmap(at, 4096).unwrap() }
    };
    assert_eq!(map(g, ProtFlags::READ | ProtFlags::WRITE), Err(Errno::PERM));
    assert_eq!(rustix::io::pwrite(g, b"x", 0), Err(Errno::PERM));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(fallocate(g, punch, 0, 4096), Err(Errno::PERM));
    let readable = map(g, ProtFlags::READ).unwrap();
    // SAFETY: the mapping is not used but by this call.
    let upgraded = unsafe { mprotect(readable, 4096, MprotectFlags::READ | MprotectFlags::WRITE) };
    assert_eq!(upgraded, Err(Errno::ACCESS));
    unmap(readable);

    let writable = map(w, ProtFlags::READ | ProtFlags::WRITE).unwrap();
    unmap(writable);
    for fd in [g, w] {
        assert_eq!(ftruncate(fd, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(fd, 1 << 30), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(fd, SealFlags::WRITE), Err(Errno::PERM));
    }
    // The gateway's own mapping still writes.
    let mut gateway = gateway;
    let slot = gateway.alloc_input(64, Owner::GATEWAY).unwrap();
    gateway.input_mut(slot).unwrap().fill(1);
    gateway.submit(&numbered(1)).unwrap();
}
