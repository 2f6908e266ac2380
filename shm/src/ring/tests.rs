use super::*;
use crate::layout::ENTRIES;
use crate::words::heap::Heap;
use proptest::prelude::*;
use std::collections::VecDeque;

const EPOCH: u32 = 3;

/// Both ends of a ring whose indices stand at `start`, with the segments of producer and consumer.
fn ring(capacity: u64, start: u64) -> (Producer, Consumer, Heap, Heap) {
    let (p, c) = (Heap::new(capacity), Heap::new(capacity));
    p.store(HEAD, start, Relaxed);
    c.store(TAIL, start, Relaxed);
    let producer = Producer {
        head: start,
        tail: start,
        ..Producer::new("test", capacity, EPOCH)
    };
    let consumer = Consumer {
        head: start,
        tail: start,
        ..Consumer::new("test", capacity, EPOCH)
    };
    (producer, consumer, p, c)
}

fn message(n: u64) -> Message {
    let slot = |index| SlotRef {
        index,
        generation: n as u32,
        len: 64,
    };
    Message {
        kind: n as u16,
        input: slot(1),
        output: slot(2),
        args: [n, !n],
    }
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn behaves_like_a_bounded_queue(
        ops in prop::collection::vec(any::<bool>(), 1..200),
        log_capacity in 0u32..4,
        start in prop_oneof![Just(0), u64::MAX - 20..=u64::MAX, any::<u64>()],
    ) {
        let capacity = 1 << log_capacity;
        let (mut producer, mut consumer, p, c) = ring(capacity, start);
        let mut model = VecDeque::new();
        for (n, push) in (0..).zip(ops) {
            if push {
                let fits = (model.len() as u64) < capacity;
                prop_assert_eq!(producer.push(&p, &c, &message(n)), Ok(fits));
                if fits {
                    model.push_back(message(n));
                }
            } else {
                prop_assert_eq!(consumer.ready(&p), Ok(!model.is_empty()));
                prop_assert_eq!(consumer.pop(&c, &p), Ok(model.pop_front()));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "hundreds of cases are too slow there")]
    fn any_memory_is_an_entry_or_a_violation(
        words in prop::collection::vec(any::<u64>(), 16),
        head in prop_oneof![0u64..4, any::<u64>()],
        sequence in prop_oneof![Just(0u64), any::<u64>()],
        epoch in prop_oneof![Just(EPOCH), any::<u32>()],
    ) {
        let (_, mut consumer, p, c) = ring(2, 0);
        for (i, word) in words.into_iter().enumerate() {
            p.store(ENTRIES + i, word, Relaxed);
        }
        p.store(ENTRIES, sequence, Relaxed);
        p.store(ENTRIES + 1, u64::from(epoch), Relaxed);
        p.store(ENTRIES + 7, 0, Relaxed);
        p.store(HEAD, head, Relaxed);
        let valid = (1..=2).contains(&head) && sequence == 0 && epoch == EPOCH;
        match consumer.pop(&c, &p) {
            Ok(Some(_)) => prop_assert!(valid),
            Ok(None) => prop_assert_eq!(head, 0),
            Err(_) => prop_assert!(!valid && head != 0),
        }
    }
}

#[test]
fn a_head_beyond_the_ring_or_backwards_is_a_violation() {
    for head in [15, 9, 0, u64::MAX] {
        let (_, mut consumer, p, c) = ring(4, 10);
        p.store(HEAD, head, Relaxed);
        let found = consumer.pop(&c, &p).unwrap_err();
        let expected = Violation::Index {
            ring: "test",
            from: 10,
            to: head,
            limit: 14,
        };
        assert_eq!(found, expected);
    }
}

#[test]
fn a_tail_beyond_the_head_or_backwards_is_a_violation() {
    for tail in [15, 9, 0, u64::MAX] {
        let (mut producer, _, p, c) = ring(4, 10);
        for n in 0..4 {
            assert_eq!(producer.push(&p, &c, &message(n)), Ok(true));
        }
        c.store(TAIL, tail, Relaxed);
        let found = producer.push(&p, &c, &message(4)).unwrap_err();
        assert_eq!(
            found,
            Violation::Index {
                ring: "test",
                from: 10,
                to: tail,
                limit: 14
            }
        );
    }
}

#[test]
fn a_head_published_without_an_entry_is_a_violation() {
    let (mut producer, mut consumer, p, c) = ring(2, 0);
    assert_eq!(producer.push(&p, &c, &message(0)), Ok(true));
    p.store(HEAD, 2, Relaxed);
    assert!(matches!(consumer.pop(&c, &p), Ok(Some(_))));
    let found = consumer.pop(&c, &p).unwrap_err();
    assert_eq!(
        found,
        Violation::Sequence {
            ring: "test",
            expected: 1,
            found: 0
        }
    );
    assert_eq!(
        found.to_string(),
        "test ring: entry 1 carries sequence number 0"
    );
}

#[test]
fn entries_of_another_epoch_and_reserved_bits_are_violations() {
    let (mut producer, mut consumer, p, c) = ring(2, 0);
    producer.epoch = 4;
    assert_eq!(producer.push(&p, &c, &message(0)), Ok(true));
    let found = consumer.pop(&c, &p).unwrap_err();
    assert_eq!(
        found,
        Violation::Epoch {
            ring: "test",
            entry: 0,
            expected: 3,
            found: 4
        }
    );

    let (mut producer, mut consumer, p, c) = ring(2, 0);
    assert_eq!(producer.push(&p, &c, &message(0)), Ok(true));
    p.store(ENTRIES + 7, 1 << 40, Relaxed);
    let found = consumer.pop(&c, &p).unwrap_err();
    assert_eq!(
        found,
        Violation::Reserved {
            ring: "test",
            entry: 0
        }
    );
}

/// Under Miri, which explores weak memory and reports races, this runs over plain cells.
#[test]
fn two_threads_hand_over_every_message_in_order() {
    const MESSAGES: u64 = if cfg!(miri) { 100 } else { 100_000 };
    let (mut producer, mut consumer, p, c) = ring(4, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..MESSAGES {
                while !producer.push(&p, &c, &message(n)).unwrap() {
                    std::thread::yield_now();
                }
            }
        });
        for n in 0..MESSAGES {
            let taken = loop {
                match consumer.pop(&c, &p).unwrap() {
                    Some(taken) => break taken,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(taken, message(n));
        }
    });
}
