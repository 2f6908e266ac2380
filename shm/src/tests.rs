//! Both ends together, over real segments.
#![cfg(not(miri))] // needs real mappings and sockets

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use rustix::event::epoll;

use crate::layout::{ASLEEP, COUNTER, TAIL};
use crate::tensor::{DType, TensorReader, TensorWriter, required};
use crate::words::{OwnWords, Words};
use crate::*;

mod hostile;

pub(crate) const ABI: u32 = 0x11;
const EPOCH: u32 = 5;
/// Longer than anything here takes on the slowest machine; passing means a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn geometry() -> Geometry {
    let classes = vec![
        SlotClass {
            bytes: 256,
            count: 8,
        },
        SlotClass {
            bytes: 4096,
            count: 4,
        },
    ];
    Geometry {
        input_slots: classes.clone(),
        output_slots: classes,
        quota: Quota::default(),
    }
}

fn connected() -> (GatewayEnd, WorkerEnd) {
    let gateway = GatewayEnd::create(EPOCH, &geometry(), ABI).unwrap();
    let (ours, theirs) = socket::pair().unwrap();
    let worker = thread::scope(|scope| {
        let worker = scope.spawn(|| WorkerEnd::accept(theirs.as_fd(), ABI, PATIENCE).unwrap());
        gateway.offer(ours.as_fd(), PATIENCE).unwrap();
        worker.join().unwrap()
    });
    (gateway, worker)
}

fn numbered(n: u64) -> Message {
    Message {
        kind: 1,
        args: [n, n.wrapping_mul(3)],
        ..Message::default()
    }
}

/// The gateway's sleep, as a task over an edge-triggered readiness source does it.
struct Sleep(std::os::fd::OwnedFd);

impl Sleep {
    fn on(gateway: &GatewayEnd) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(
            &epoll,
            gateway.wake_fd(),
            epoll::EventData::new_u64(0),
            flags,
        )
        .unwrap();
        Self(epoll)
    }

    fn wait(&self) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        let timeout = PATIENCE.try_into().unwrap();
        let fired = epoll::wait(&self.0, &mut events, Some(&timeout)).unwrap();
        assert!(fired > 0, "a wake-up was lost");
    }

    fn next(&self, gateway: &mut GatewayEnd) -> Message {
        loop {
            if let Some(message) = gateway.poll().unwrap() {
                return message;
            }
            if gateway.arm().unwrap() {
                self.wait();
                gateway.woken().unwrap();
            }
        }
    }
}

#[test]
fn ends_may_move_to_and_be_looked_at_from_other_threads() {
    fn threads<T: Send + Sync>() {}
    threads::<GatewayEnd>();
    threads::<WorkerEnd>();
}

#[test]
fn tensors_go_there_and_back() {
    let (mut gateway, mut worker) = connected();
    let bytes = required(&[(DType::I32, 6), (DType::F32, 3)]);
    let input = gateway.alloc_input(bytes, Owner::GATEWAY).unwrap();
    let output = gateway.alloc_output(4000, Owner::GATEWAY).unwrap();
    let mut writer = TensorWriter::new(gateway.input_mut(input).unwrap(), 2).unwrap();
    writer
        .tensor::<i32>(&[2, 3])
        .unwrap()
        .copy_from_slice(&[1, 2, 3, 4, 5, 6]);
    writer
        .tensor::<f32>(&[3])
        .unwrap()
        .copy_from_slice(&[0.5, 1.5, 2.5]);
    assert_eq!(writer.finish(), bytes);
    gateway
        .submit(&Message {
            kind: 2,
            input,
            output,
            args: [1, 2],
        })
        .unwrap();

    let taken = worker.try_recv().unwrap().unwrap();
    assert_eq!(
        taken,
        Message {
            kind: 2,
            input,
            output,
            args: [1, 2]
        }
    );
    let reader = TensorReader::new(worker.input(taken.input).unwrap()).unwrap();
    let sum: i32 = reader.tensor::<i32>(0).unwrap().0.iter().sum();
    let doubled: Vec<f32> = reader
        .tensor::<f32>(1)
        .unwrap()
        .0
        .iter()
        .map(|x| x * 2.0)
        .collect();
    let mut writer = TensorWriter::new(worker.output_mut(taken.output).unwrap(), 2).unwrap();
    writer.tensor::<i32>(&[]).unwrap()[0] = sum;
    writer
        .tensor::<f32>(&[3])
        .unwrap()
        .copy_from_slice(&doubled);
    let used = writer.finish() as u32;
    let output = SlotRef {
        len: used,
        ..taken.output
    };
    worker.complete(&Message { output, ..taken }).unwrap();

    let answer = gateway.poll().unwrap().unwrap();
    assert_eq!(answer.output.len, used);
    let mut copy = AlignedBuf::new();
    gateway
        .copy_output(answer.output, used as usize, &mut copy)
        .unwrap();
    let reader = TensorReader::new(&copy).unwrap();
    assert_eq!(reader.tensor::<i32>(0).unwrap(), (&[21][..], &[][..]));
    assert_eq!(reader.tensor::<f32>(1).unwrap().0, [1.0, 3.0, 5.0]);
    gateway.free_input(answer.input).unwrap();
    gateway.free_output(answer.output).unwrap();
    assert_eq!(gateway.poll(), Ok(None));
}

#[test]
fn slots_are_checked_on_every_use() {
    let (mut gateway, mut worker) = connected();
    let slot = gateway.alloc_output(100, Owner::GATEWAY).unwrap();
    let mut copy = AlignedBuf::new();
    let long = gateway.copy_output(slot, 101, &mut copy);
    assert_eq!(
        long,
        Err(SlabError::Length {
            index: 0,
            len: 101,
            allocated: 100
        })
    );
    gateway.free_output(slot).unwrap();
    assert!(matches!(
        gateway.copy_output(slot, 1, &mut copy),
        Err(SlabError::Free { .. })
    ));
    assert!(matches!(
        gateway.input_mut(slot),
        Err(SlabError::Free { .. })
    ));
    assert!(matches!(
        gateway.free_output(SlotRef::NONE),
        Err(SlabError::Unknown { .. })
    ));

    let beyond = SlotRef {
        index: 0,
        generation: 0,
        len: 257,
    };
    for slot in [
        SlotRef::NONE,
        beyond,
        SlotRef {
            index: 12,
            generation: 0,
            len: 0,
        },
    ] {
        assert_eq!(
            worker.input(slot),
            Err(Violation::Range {
                slab: "input",
                slot
            })
        );
        assert_eq!(
            worker.output_mut(slot),
            Err(Violation::Range {
                slab: "output",
                slot
            })
        );
    }
}

#[test]
fn a_message_with_a_slot_that_was_not_handed_out_is_a_violation_for_good() {
    let lies: [fn(&mut Message); 4] = [
        |m| m.output.generation += 1,
        |m| m.output.len += 1,
        |m| m.output.index += 1,
        |m| {
            m.input = SlotRef {
                index: 0,
                generation: 0,
                len: 0,
            }
        },
    ];
    for lie in lies {
        let (mut gateway, mut worker) = connected();
        let output = gateway.alloc_output(100, Owner::GATEWAY).unwrap();
        let mut message = Message {
            kind: 9,
            output,
            ..Message::default()
        };
        worker.complete(&message).unwrap();
        assert_eq!(gateway.poll(), Ok(Some(message)));
        lie(&mut message);
        worker.complete(&message).unwrap();
        let violation = gateway.poll().unwrap_err();
        assert!(
            matches!(violation, Violation::Slot { kind: 9, .. }),
            "{violation}"
        );
        assert_eq!(gateway.poll(), Err(violation.clone()));
        assert_eq!(gateway.arm(), Err(violation));
        assert_eq!(gateway.submit(&numbered(0)), Err(Full));
    }
}

#[test]
fn a_full_ring_is_reported_and_a_lying_tail_is_a_violation() {
    let (mut gateway, mut worker) = connected();
    for n in 0..RING_ENTRIES {
        gateway.submit(&numbered(n)).unwrap();
    }
    assert_eq!(gateway.submit(&numbered(0)), Err(Full));
    assert_eq!(gateway.poll(), Ok(None));
    assert_eq!(worker.try_recv(), Ok(Some(numbered(0))));
    gateway.submit(&numbered(RING_ENTRIES)).unwrap();
    worker.own().store(TAIL, RING_ENTRIES + 2, Relaxed);
    assert_eq!(gateway.submit(&numbered(0)), Err(Full));
    assert!(matches!(
        gateway.poll(),
        Err(Violation::Index { ring: "submit", .. })
    ));
}

#[test]
fn arming_notices_what_came_before_and_the_eventfd_what_comes_after() {
    let (mut gateway, mut worker) = connected();
    let sleep = Sleep::on(&gateway);
    worker.complete(&numbered(1)).unwrap();
    assert_eq!(gateway.arm(), Ok(false));
    let asleep = |gateway: &GatewayEnd| gateway.own().load(ASLEEP, Relaxed);
    assert_eq!(asleep(&gateway), 0, "who does not sleep must not be woken");
    assert_eq!(gateway.poll(), Ok(Some(numbered(1))));
    assert_eq!(gateway.poll(), Ok(None));
    assert_eq!(gateway.arm(), Ok(true));
    assert_eq!(asleep(&gateway), 1);
    worker.complete(&numbered(2)).unwrap();
    sleep.wait();
    assert_eq!(gateway.poll(), Ok(Some(numbered(2))));
    assert_eq!(asleep(&gateway), 0);
}

#[test]
fn waiting_ends_without_a_message() {
    let (_gateway, mut worker) = connected();
    let short = Duration::from_millis(2);
    assert_eq!(
        worker.recv_timeout(Duration::ZERO, Duration::ZERO),
        Ok(None)
    );
    assert_eq!(worker.recv_timeout(Duration::ZERO, short), Ok(None));
    assert_eq!(worker.recv_timeout(short, short), Ok(None));
}

#[test]
fn heartbeats_are_counted() {
    let (gateway, worker) = connected();
    let before = gateway.heartbeat();
    let pulse = worker.pulse();
    pulse.beat();
    drop(worker);
    pulse.beat();
    assert_eq!(gateway.heartbeat(), before + 2);
}

/// Bursts of changing length in both directions, with neither side spinning, so that each keeps
/// falling asleep at every point of the other's progress. Without the 100 ms recheck: a lost
/// wake-up ends in a failure.
#[test]
fn no_wake_up_is_lost_in_a_hundred_thousand_messages() {
    const MESSAGES: u64 = 100_000;
    let (mut gateway, mut worker) = connected();
    let sleep = Sleep::on(&gateway);
    thread::scope(|scope| {
        scope.spawn(move || {
            for n in 0..MESSAGES {
                // Now and then without spinning at all, mostly for a moment.
                let spin = Duration::from_micros(n % 3 * 5);
                let message = worker.recv_within(spin, PATIENCE, PATIENCE).unwrap();
                assert_eq!(message, Some(numbered(n)), "a wake-up was lost");
                worker.complete(&numbered(!n)).unwrap();
            }
        });
        let (mut sent, mut burst) = (0, 0);
        while sent < MESSAGES {
            burst = (burst * 5 + 3) % 17;
            let end = (sent + 1 + burst).min(MESSAGES);
            for n in sent..end {
                gateway.submit(&numbered(n)).unwrap();
            }
            for n in sent..end {
                assert_eq!(sleep.next(&mut gateway), numbered(!n));
            }
            sent = end;
        }
    });
}

#[test]
fn the_bell_and_the_heartbeat_have_the_same_place_in_their_segments() {
    let (mut gateway, worker) = connected();
    worker.own().store(ASLEEP, 1, Relaxed);
    gateway.submit(&numbered(0)).unwrap();
    gateway.submit(&numbered(1)).unwrap();
    assert_eq!(gateway.own().load(COUNTER, Relaxed), 2);
    worker.own().store(ASLEEP, 0, Relaxed);
    gateway.submit(&numbered(2)).unwrap();
    assert_eq!(
        gateway.own().load(COUNTER, Relaxed),
        2,
        "nobody sleeps, so nobody is woken"
    );
}
