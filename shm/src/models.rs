//! Models of the ring and of falling asleep, run by loom under every schedule with up to three
//! preemptions. `cargo xtask test` runs them; by hand it is
//! `RUSTFLAGS="--cfg loom" cargo test -p realm-shm --lib --release --target-dir target/loom`.
//!
//! Whatever has a deadline in the crate has none here, so a lost wake-up is a deadlock, which loom
//! reports; and entries lie in plain cells, so a missing order between their writer and their
//! reader is a race, which loom reports too. That they do notice is shown by the [`Fault`]s at the
//! end: with any one order or wake-up taken away, a model fails.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering::Relaxed;

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::layout::{ASLEEP, COUNTER, HEAD, TAIL};
use crate::message::Message;
use crate::ring::{Consumer, Producer};
use crate::slab::{Owner, Quota, Slab, SlotClass, Slots};
use crate::wake;
use crate::words::Words;
use crate::words::heap::{Fault, Heap};

const EPOCH: u32 = 1;

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

fn numbered(n: u64) -> Message {
    Message {
        kind: 1,
        args: [n, !n],
        ..Message::default()
    }
}

/// What is broken in the segments of the two sides of a model, if anything.
type Faults = [Option<Fault>; 2];
const NONE: Faults = [None; 2];

fn first(fault: Fault) -> Faults {
    [Some(fault), None]
}

fn second(fault: Fault) -> Faults {
    [None, Some(fault)]
}

/// The segments of two sides.
fn segments(capacity: u64, faults: Faults) -> (Arc<Heap>, Arc<Heap>) {
    let [a, b] = faults.map(|fault| Arc::new(Heap::with_fault(capacity, fault)));
    (a, b)
}

/// A futex: sleeping and looking at the value are one step to whoever wakes.
#[derive(Default)]
struct Futex {
    bucket: Mutex<()>,
    waiters: Condvar,
}

impl Futex {
    fn wait(&self, memory: &Heap, value: u32) {
        let guard = self.bucket.lock().unwrap();
        if memory.load(COUNTER, Relaxed) as u32 == value {
            drop(self.waiters.wait(guard).unwrap());
        }
    }

    fn wake(&self) {
        let _guard = self.bucket.lock().unwrap();
        self.waiters.notify_one();
    }
}

/// An edge-triggered readiness source: fires once after each write.
#[derive(Default)]
struct Edge {
    fired: Mutex<bool>,
    waiters: Condvar,
}

impl Edge {
    fn wait(&self) {
        let mut fired = self.fired.lock().unwrap();
        while !std::mem::take(&mut *fired) {
            fired = self.waiters.wait(fired).unwrap();
        }
    }

    fn write(&self) {
        *self.fired.lock().unwrap() = true;
        self.waiters.notify_one();
    }
}

/// Producer and consumer pass messages in order while the ring wraps.
fn passing(faults: Faults) {
    const MESSAGES: u64 = 3;
    model(move || {
        let (p, c) = segments(2, faults);
        let thread = thread::spawn({
            let (p, c) = (p.clone(), c.clone());
            move || {
                let mut producer = Producer::new("model", 2, EPOCH);
                for n in 0..MESSAGES {
                    while !producer.push(&*p, &*c, &numbered(n)).unwrap() {
                        thread::yield_now();
                    }
                }
            }
        });
        let mut consumer = Consumer::new("model", 2, EPOCH);
        for n in 0..MESSAGES {
            let taken = loop {
                match consumer.pop(&*c, &*p).unwrap() {
                    Some(taken) => break taken,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(taken, numbered(n));
        }
        thread.join().unwrap();
    });
}

/// A consumer that sleeps on the producer's bell is always woken.
fn on_a_futex(faults: Faults) {
    model(move || {
        let (p, c) = segments(2, faults);
        let futex = Arc::new(Futex::default());
        let thread = thread::spawn({
            let (p, c, futex) = (p.clone(), c.clone(), futex.clone());
            move || {
                let (mut producer, mut bell) = (Producer::new("model", 2, EPOCH), 0);
                for n in 0..2 {
                    assert!(producer.push(&*p, &*c, &numbered(n)).unwrap());
                    wake::rouse(&*p, &*c, &mut bell, || futex.wake());
                }
            }
        });
        let (mut consumer, mut taken) = (Consumer::new("model", 2, EPOCH), 0);
        while taken < 2 {
            match consumer.pop(&*c, &*p).unwrap() {
                Some(message) => {
                    assert_eq!(message, numbered(taken));
                    taken += 1;
                }
                None => {
                    wake::sleep(&*c, &*p, &mut consumer, |bell| futex.wait(&p, bell)).unwrap();
                }
            }
        }
        thread.join().unwrap();
    });
}

/// A consumer that sleeps on an eventfd is always woken.
fn on_an_eventfd(faults: Faults) {
    model(move || {
        let (p, c) = segments(2, faults);
        let edge = Arc::new(Edge::default());
        let thread = thread::spawn({
            let (p, c, edge) = (p.clone(), c.clone(), edge.clone());
            move || {
                let mut producer = Producer::new("model", 2, EPOCH);
                for n in 0..2 {
                    assert!(producer.push(&*p, &*c, &numbered(n)).unwrap());
                    if wake::peer_sleeps(&*p, &*c) {
                        edge.write();
                    }
                }
            }
        });
        let (mut consumer, mut taken) = (Consumer::new("model", 2, EPOCH), 0);
        loop {
            wake::withdraw(&*c);
            while let Some(message) = consumer.pop(&*c, &*p).unwrap() {
                assert_eq!(message, numbered(taken));
                taken += 1;
            }
            if taken == 2 {
                break;
            }
            if wake::announce(&*c, &*p, &mut consumer).unwrap() {
                edge.wait();
            }
        }
        thread.join().unwrap();
    });
}

/// The one slot goes to the worker and back twice, in two generations; payload and ring order one
/// another in both directions.
fn reusing(faults: Faults) {
    struct Payload(UnsafeCell<u64>);
    // SAFETY: handed back and forth through the rings, which is what the model checks.
    unsafe impl Sync for Payload {}

    model(move || {
        let (g, w) = segments(1, faults);
        let payload = Arc::new(Payload(UnsafeCell::new(0)));
        let thread = thread::spawn({
            let (g, w, payload) = (g.clone(), w.clone(), payload.clone());
            move || {
                let mut submits = Consumer::new("submit", 1, EPOCH);
                let mut completions = Producer::new("completion", 1, EPOCH);
                for _ in 0..2 {
                    let message = loop {
                        match submits.pop(&*w, &*g).unwrap() {
                            Some(message) => break message,
                            None => thread::yield_now(),
                        }
                    };
                    // SAFETY: the slot is the worker's until it answers.
                    let value = payload.0.with(|value| unsafe { *value });
                    assert_eq!(value, u64::from(message.input.generation));
                    assert!(completions.push(&*w, &*g, &message).unwrap());
                }
            }
        });
        let slots = Slots::new(&[SlotClass {
            bytes: 64,
            count: 1,
        }])
        .unwrap();
        let mut slab = Slab::new(slots, Quota::default());
        let mut submits = Producer::new("submit", 1, EPOCH);
        let mut completions = Consumer::new("completion", 1, EPOCH);
        for _ in 0..2 {
            let input = slab.alloc(8, Owner::GATEWAY).unwrap();
            // SAFETY: the slot is the gateway's until it submits it.
            payload
                .0
                .with_mut(|value| unsafe { *value = u64::from(input.generation) });
            assert!(
                submits
                    .push(
                        &*g,
                        &*w,
                        &Message {
                            input,
                            ..numbered(0)
                        }
                    )
                    .unwrap()
            );
            let answer = loop {
                match completions.pop(&*g, &*w).unwrap() {
                    Some(answer) => break answer,
                    None => thread::yield_now(),
                }
            };
            slab.check(answer.input).unwrap();
            slab.free(answer.input).unwrap();
        }
        thread.join().unwrap();
    });
}

#[test]
fn entries_pass_in_order_while_the_ring_wraps() {
    passing(NONE);
}

#[test]
fn a_worker_on_a_futex_is_always_woken() {
    on_a_futex(NONE);
}

#[test]
fn a_gateway_on_an_eventfd_is_always_woken() {
    on_an_eventfd(NONE);
}

#[test]
fn a_slot_is_reused_only_after_its_answer() {
    reusing(NONE);
}

/// Tests that must fail, by a race, a wrong message or a deadlock. Each is run in a process of its
/// own, since loom, when it has found a deadlock, ends the process.
macro_rules! mutants {
    ($($name:ident: $model:ident($faults:expr);)*) => {
        mod mutants {
            use super::*;
            $(
                #[test]
                #[ignore = "must fail, and is run by `every_mutant_is_noticed`"]
                fn $name() {
                    $model($faults);
                }
            )*
        }

        #[test]
        fn every_mutant_is_noticed() {
            let this = std::env::current_exe().unwrap();
            for name in [$(stringify!($name)),*] {
                let run = std::process::Command::new(&this)
                    .args(["--ignored", "--exact"])
                    .arg(format!("models::mutants::{name}"))
                    .output()
                    .unwrap();
                assert!(!run.status.success(), "no model notices {name}");
            }
        }
    };
}

mutants! {
    a_head_stored_without_release: passing(first(Fault::Store(HEAD)));
    a_head_loaded_without_acquire: passing(first(Fault::Load(HEAD)));
    a_tail_stored_without_release: passing(second(Fault::Store(TAIL)));
    a_tail_loaded_without_acquire: passing(second(Fault::Load(TAIL)));
    no_fence_before_ringing_the_bell: on_a_futex(first(Fault::Fence));
    no_fence_before_sleeping_on_the_bell: on_a_futex(second(Fault::Fence));
    a_bell_that_is_not_counted: on_a_futex(first(Fault::Lost(COUNTER)));
    a_sleep_on_the_bell_not_announced: on_a_futex(second(Fault::Lost(ASLEEP)));
    no_fence_before_writing_the_eventfd: on_an_eventfd(first(Fault::Fence));
    no_fence_before_waiting_for_the_eventfd: on_an_eventfd(second(Fault::Fence));
    a_wait_for_the_eventfd_not_announced: on_an_eventfd(second(Fault::Lost(ASLEEP)));
    a_slot_submitted_without_release: reusing(first(Fault::Store(HEAD)));
    a_slot_received_without_acquire: reusing(first(Fault::Load(HEAD)));
    an_answer_published_without_release: reusing(second(Fault::Store(HEAD)));
    an_answer_taken_without_acquire: reusing(second(Fault::Load(HEAD)));
}
