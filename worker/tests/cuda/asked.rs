//! What a device is asked for, and when.

use std::sync::{Arc, Mutex};

use realm_cuda::sample::{Row, Sampled};
use realm_cuda_emulator::{Asked, Emulator, Watched};
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::Step;
use realm_worker::config::DType;
use realm_worker::engine::{Engine, Options};
use serde_json::json;

use super::engine::{on_device, options};
use super::model::{Model, config};

/// Sequences at once.
const MOST: usize = 40;
/// Sizes of steps that decode up to so many: 1, 2, 4, 8, 16, 24, 32 and 40.
const SIZES: usize = 8;
/// Keys, and values, of each layer.
const PARTS_OF_ARENA: usize = 2 * 2;

/// An engine, and what its device was asked for.
struct Asking {
    engine: Engine,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Asking {
    fn new() -> Asking {
        let config = config("LlamaForCausalLM", json!({}));
        let model = Model::new(&config, DType::F32);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let list = asked.clone();
        let watch = move |asked| {
            list.lock().expect("no panic").push(asked);
            Ok(())
        };
        let options = Options {
            max_sequences: Some(MOST),
            ..options()
        };
        let device = Watched::new(Emulator::new(), watch);
        let engine = on_device(&model, &options, device).expect("loads");
        Asking { engine, asked }
    }

    /// What it was asked for since this was called last.
    fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().expect("no panic"))
    }

    fn open(&mut self) {
        for slot in 0..MOST as u64 {
            let (sampling, none) = (Sampling::default(), std::iter::empty());
            let opened = self.engine.open(slot, sampling, none, &[], None);
            opened.expect("valid");
        }
    }

    /// Runs a step of `tokens`, as many of each of some sequences, all of which draw.
    fn step(&mut self, sequences: usize, context: usize, tokens: &[i32]) {
        let count = tokens.len() / sequences;
        let numbers = |of: &dyn Fn(usize) -> usize| -> Vec<i32> {
            (0..=sequences).map(|s| of(s) as i32).collect()
        };
        let flags = match tokens[0] {
            -1 => SAMPLE | INPUT_SAMPLED,
            _ => SAMPLE,
        };
        // Each has two blocks.
        let blocks: Vec<i32> = (0..2 * sequences as i32).collect();
        let (slots, starts) = (numbers(&|s| s), numbers(&|s| s * count));
        let step = Step {
            slots: &slots[..sequences],
            starts: &starts,
            context: &vec![context as i32; sequences],
            flags: &vec![flags; sequences],
            index: &vec![context as i32; sequences],
            tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        self.engine.step(step).expect("valid");
    }
}

#[test]
fn all_that_steps_take_is_taken_before_the_arena_takes_the_rest() {
    let asking = Asking::new();
    let asked = asking.take();
    let positions = |of: &dyn Fn(&Asked) -> bool| -> Vec<usize> {
        let found = asked.iter().enumerate().filter(|(_, asked)| of(asked));
        found.map(|(at, _)| at).collect()
    };
    let allocated = positions(&|asked| matches!(asked, Asked::Allocate(_)));
    let landings = positions(&|asked| matches!(asked, Asked::Landing(_)));
    let captured = positions(&|asked| *asked == Asked::Capture);
    let arena = allocated[allocated.len() - PARTS_OF_ARENA];
    let parts = asked[arena..].iter().filter_map(|asked| match asked {
        Asked::Allocate(bytes) => Some(*bytes),
        _ => None,
    });
    let bytes: usize = parts.sum();
    let info = asking.engine.info();
    let tokens = u64::from(info.block_count * info.block_size);
    assert_eq!(bytes as u64, tokens * info.kv_bytes_per_token);
    assert_eq!(landings.len(), 2);
    assert!(landings.iter().all(|at| *at < arena), "{landings:?}");
    // Before it, so that what graphs take is known, and after it, as they name it.
    let before = captured.iter().filter(|at| **at < arena).count();
    assert_eq!((before, captured.len() - before), (SIZES, SIZES));
}

#[test]
fn a_step_takes_nothing_more_of_a_device() {
    let mut asking = Asking::new();
    asking.take();
    asking.open();
    asking.step(MOST, 0, &[7; 3 * MOST]);
    for (turn, sequences) in (1..=MOST).rev().enumerate() {
        asking.step(sequences, 3 + turn, &vec![-1; sequences]);
        if turn == 10 {
            break;
        }
    }
    for sequences in [9, 8, 5, 2, 1] {
        asking.step(sequences, 14, &vec![-1; sequences]);
    }
    let asked = asking.take();
    let takes = |asked: &&Asked| {
        matches!(
            asked,
            Asked::Allocate(_) | Asked::Landing(_) | Asked::Capture
        )
    };
    let taken: Vec<&Asked> = asked.iter().filter(takes).collect();
    assert!(taken.is_empty(), "{taken:?}");
    let replays = asked.iter().filter(|asked| **asked == Asked::Replay);
    assert_eq!(replays.count(), 11 + 5);
}

/// Bytes that are copied to a device for a step, and back: all that reading them from the memory that is shared with a
/// gateway, and writing them there, could save.
#[test]
fn a_step_copies_little() {
    let mut asking = Asking::new();
    asking.open();
    let copied = |asking: &Asking| {
        let asked = asking.take();
        let sum = |of: fn(&Asked) -> Option<usize>| asked.iter().filter_map(of).sum::<usize>();
        let written = sum(|asked| match asked {
            Asked::Write(bytes) => Some(*bytes),
            _ => None,
        });
        let sent = sum(|asked| match asked {
            Asked::Send(bytes) => Some(*bytes),
            _ => None,
        });
        (written, sent)
    };
    asking.take();
    asking.step(MOST, 0, &[7; 12 * MOST]);
    asking.take();
    for (sequences, context) in [(MOST, 12), (1, 13), (MOST, 13)] {
        asking.step(sequences, context, &vec![-1; sequences]);
        // Contexts and starts of as many rows as there could be, tokens, and how each row draws.
        let words = MOST + (MOST + 1) + sequences;
        let written = words * size_of::<i32>() + sequences * size_of::<Row>();
        let sent = sequences * size_of::<Sampled>();
        assert_eq!(copied(&asking), (written, sent), "{sequences} sequences");
    }
    // What ARCHITECTURE.md says of one and of 256 sequences at once of as many.
    let of = |n: usize| {
        (
            4 * (2 * 256 + 1 + n) + n * size_of::<Row>(),
            n * size_of::<Sampled>(),
        )
    };
    assert_eq!([of(1), of(256)], [(2176, 180), (33_796, 46_080)]);
}
