//! What a hostile worker may try.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

use super::*;
use crate::layout::{ENTRIES, HEAD, SLAB};

/// A worker that overwrites its segment at random while the gateway polls.
#[test]
fn a_scribbling_worker_causes_violations_and_nothing_else() {
    let (mut gateway, worker) = connected();
    let output = gateway.alloc_output(4000).unwrap();
    let stop = AtomicBool::new(false);
    let (mut accepted, mut violations) = (0u32, 0u32);
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let mut random = 0x9e37_79b9_7f4a_7c15u64;
            while !stop.load(Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let own = worker.own();
                match random % 8 {
                    // Nonsense anywhere: indices, flags, entries, slots.
                    0 => own.store((random >> 8) as usize % (SLAB / 8 + 512), random, Relaxed),
                    // Nonsense in an index.
                    1 => own.store(if random & 256 == 0 { HEAD } else { TAIL }, random, Relaxed),
                    // Indices that are just right or just wrong.
                    2 => own.store(
                        HEAD,
                        own.load(HEAD, Relaxed).wrapping_add(random >> 8 & 3),
                        Relaxed,
                    ),
                    // A slot that is right, wrong, or changed while it is read.
                    3 => own.store(ENTRIES + (random >> 8) as usize % 8192, random & 3, Relaxed),
                    // What an honest worker does, from wherever the head is now.
                    _ => {
                        let head = own.load(HEAD, Relaxed);
                        let message = Message {
                            kind: 1,
                            output,
                            ..Message::default()
                        };
                        let at = layout::entry(head, RING_ENTRIES);
                        for (i, word) in message::encode(head, EPOCH, &message)
                            .into_iter()
                            .enumerate()
                        {
                            own.store(at + i, word, Relaxed);
                        }
                        own.store(HEAD, head.wrapping_add(1), Ordering::Release);
                    }
                }
            }
        });
        // A failed assertion must not leave the thread running.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(stop);
        let mut copy = AlignedBuf::new();
        let start = Instant::now();
        for n in 0u64.. {
            // On a busy machine the scribbler may come late.
            let seen = accepted > 0 && violations > 0;
            if n >= 200_000 && (seen || start.elapsed() > PATIENCE) {
                break;
            }
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
                        gateway
                            .copy_output(message.output, message.output.len as usize, &mut copy)
                            .unwrap();
                        let _ = TensorReader::new(&copy);
                    }
                }
                Ok(None) => {}
                Err(violation) => {
                    violations += 1;
                    assert!(!violation.to_string().is_empty());
                    gateway.forgive();
                }
            }
            if n % 16 == 0 {
                let _ = gateway.submit(&numbered(n));
                let _ = gateway.arm();
                gateway.heartbeat();
            }
            if n % 64 == 0 {
                // On one processor the scribbler would otherwise hardly ever run.
                thread::yield_now();
            }
        }
    });
    assert!(
        accepted > 0 && violations > 0,
        "{accepted} accepted, {violations} violations"
    );
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
    let slot = gateway.alloc_input(64).unwrap();
    gateway.input_mut(slot).unwrap().fill(1);
    gateway.submit(&numbered(1)).unwrap();
}
