//! What a fuzzer may do to the readers of hostile bytes. The targets of `shm/fuzz` and the tests
//! below run the same three functions; each panics if a reader believes something that is not so.
#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use half::{bf16, f16};

use crate::hello::{self, Deadline, Hello};
use crate::layout::{self, HEAD};
use crate::message::{self, SlotRef};
use crate::segment::OwnMemory;
use crate::tensor::{Scalar, TensorReader};
use crate::words::{OwnWords, Words};
use crate::{
    AlignedBuf, GatewayEnd, Geometry, Message, Owner, Quota, RING_ENTRIES, SlotClass, socket,
};

const ABI: u32 = 0x11;
const EPOCH: u32 = 5;

/// Takes bytes off the front of the fuzzer's input; zeros when it is at its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        std::array::from_fn(|i| now.get(i).copied().unwrap_or(0))
    }

    fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// What a worker and its gateway may do, each step told by the first byte of `data` and whatever
/// follows it: the worker writes anything anywhere in W, the gateway hands out, polls and frees.
/// Every message that is let through must name slots in use, every violation must be final.
pub fn descriptors(data: &[u8]) {
    let classes = vec![SlotClass {
        bytes: 256,
        count: 2,
    }];
    let geometry = Geometry {
        input_slots: classes.clone(),
        output_slots: classes,
        quota: Quota::default(),
    };
    let mut gateway = GatewayEnd::create(EPOCH, &geometry, ABI).expect("two small segments");
    let (_, fd) = gateway.descriptors();
    let bytes = rustix::fs::fstat(fd).expect("a memfd").st_size as usize;
    let worker = OwnMemory::map(fd, bytes).expect("a worker may map its segment");
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    let mut copy = AlignedBuf::new();
    let mut input = Input(data);
    while !input.0.is_empty() {
        match input.byte() {
            // The worker writes a word anywhere.
            0 => {
                let at = u32::from_le_bytes(input.take()) as usize % (bytes / 8);
                worker.store(at, input.word(), Relaxed);
            }
            // The worker publishes an entry made of any bits.
            1 => publish(&worker, std::array::from_fn(|_| input.word())),
            // The worker publishes an entry that is right but for the slots that it names.
            2 => {
                let mut slot = |held: &[SlotRef]| {
                    let [pick, index, generation, len] = input.take();
                    let mut slot = held.get(usize::from(pick)).copied().unwrap_or_default();
                    slot.index ^= u32::from(index);
                    slot.generation ^= u32::from(generation);
                    slot.len ^= u32::from(len);
                    slot
                };
                let message = Message {
                    kind: 1,
                    input: slot(&inputs),
                    output: slot(&outputs),
                    args: [0; 2],
                };
                let head = worker.load(HEAD, Relaxed);
                publish(&worker, message::encode(head, EPOCH, &message));
            }
            3 => {
                if let Ok(slot) = gateway.alloc_input(input.byte().into(), Owner::GATEWAY) {
                    inputs.push(slot);
                }
            }
            4 => {
                if let Ok(slot) = gateway.alloc_output(input.byte().into(), Owner::GATEWAY) {
                    outputs.push(slot);
                }
            }
            5 => {
                let named = |held: &Vec<SlotRef>| held.last().copied().unwrap_or_default();
                let _ = gateway.submit(&Message {
                    kind: 1,
                    input: named(&inputs),
                    output: named(&outputs),
                    args: [0; 2],
                });
            }
            6 => {
                if let Some(slot) = outputs.pop() {
                    gateway.free_output(slot).expect("a slot in use");
                }
            }
            7 => {
                let _ = gateway.arm();
                gateway.heartbeat();
            }
            _ => match gateway.poll() {
                Ok(None) => {}
                Ok(Some(message)) => {
                    for (slot, held) in [(message.input, &inputs), (message.output, &outputs)] {
                        assert!(
                            slot.is_none()
                                || held.iter().any(|h| {
                                    (h.index, h.generation) == (slot.index, slot.generation)
                                        && slot.len <= h.len
                                }),
                            "a message names {slot:?}, which nobody was given"
                        );
                    }
                    if !message.output.is_none() {
                        gateway
                            .copy_output(message.output, message.output.len as usize, &mut copy)
                            .expect("poll has checked the slot");
                        tensors(&copy);
                    }
                }
                Err(violation) => {
                    assert!(!violation.to_string().is_empty());
                    assert_eq!(gateway.poll(), Err(violation.clone()));
                    assert_eq!(gateway.arm(), Err(violation.clone()));
                    assert_eq!(gateway.woken(), Err(violation));
                    return;
                }
            },
        }
    }
}

/// Writes an entry where a worker would and moves the head over it.
fn publish(worker: &OwnMemory, entry: [u64; layout::ENTRY_WORDS]) {
    let head = worker.load(HEAD, Relaxed);
    let at = layout::entry(head, RING_ENTRIES);
    for (i, word) in entry.into_iter().enumerate() {
        worker.store(at + i, word, Relaxed);
    }
    worker.store(HEAD, head.wrapping_add(1), Release);
}

/// Reads `data` as the tensors of a slot. What is handed out must lie inside and have the shape
/// that it is said to have.
pub fn tensors(data: &[u8]) {
    let mut bytes = AlignedBuf::new();
    bytes.resize(data.len());
    bytes.copy_from_slice(data);
    let Ok(reader) = TensorReader::new(&bytes) else {
        return;
    };
    for index in 0..reader.count() + 1 {
        let read = [
            tensor::<u8>(&reader, index, &bytes),
            tensor::<i32>(&reader, index, &bytes),
            tensor::<i64>(&reader, index, &bytes),
            tensor::<u32>(&reader, index, &bytes),
            tensor::<u64>(&reader, index, &bytes),
            tensor::<f32>(&reader, index, &bytes),
            tensor::<bf16>(&reader, index, &bytes),
            tensor::<f16>(&reader, index, &bytes),
        ];
        let types = read.into_iter().filter(|read| *read).count();
        assert_eq!(
            types,
            usize::from(index < reader.count()),
            "a tensor has one type"
        );
    }
}

/// Whether the tensor is one of `T`.
fn tensor<T: Scalar>(reader: &TensorReader<'_>, index: usize, bytes: &[u8]) -> bool {
    let Ok((elements, dims)) = reader.tensor::<T>(index) else {
        return false;
    };
    let shape: usize = dims.iter().map(|dim| *dim as usize).product();
    assert_eq!(shape, elements.len());
    let (all, part) = (bytes.as_ptr_range(), elements.as_ptr_range());
    assert!(all.start <= part.start.cast() && part.end.cast() <= all.end);
    true
}

/// Sends `data` as a worker's answer to an offer, and reads it as a gateway's offer too. Only the
/// one right answer may be taken for it.
pub fn handshake(data: &[u8]) {
    let offer = Hello::offer(EPOCH, ABI, [1 << 20, 2 << 20], 7);
    let (ours, theirs) = socket::pair().expect("a socket pair");
    let sent = socket::send(theirs.as_fd(), data).is_ok();
    drop(theirs);
    let deadline = Deadline::new(Duration::from_secs(60));
    match hello::receive(ours.as_fd(), deadline) {
        Ok(answer) => {
            assert!(sent);
            let right = data == bytemuck::bytes_of(&offer.answer(ABI));
            match answer.check_answer(&offer) {
                Ok(()) => assert!(right, "an answer that is none was accepted"),
                Err(error) => assert!(!right && !error.to_string().is_empty()),
            }
            if let Err(error) = answer.check_offer(ABI) {
                assert!(!error.to_string().is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests;
