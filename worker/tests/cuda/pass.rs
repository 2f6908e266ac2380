//! Forward passes alone.

use half::{bf16, f16};
use realm_cuda_emulator::Emulator;
use realm_shared::wire::step::{PARKED, SAMPLE, STEERED};
use realm_worker::batch::{Batch, Limits, Step};
use realm_worker::config::{DType, DecoderConfig, Quantization};
use realm_worker::cuda::{self, Room, Work, element, upload};
use realm_worker::decoder::{Decoder, Forward, HEAD_ROWS, load_weights};
use realm_worker::kernels::{Packable, Threads};
use realm_worker::weights::Weights;

use super::model::{HIDDEN, Model, VOCAB, config, variants};

const LIMITS: Limits = Limits {
    vocab: VOCAB,
    max_context: 512,
    block_count: 40,
    max_sequences: 6,
    max_step_tokens: 400,
};

/// A model without slots and sampling.
pub(super) struct Bare(Box<dyn Forward>);

/// What a step gave: logits `[wanted, vocab]` and hidden states `[wanted, hidden]`.
pub(super) type Given = (Vec<f32>, Vec<f32>);

/// A row to run: its tokens, position of the first, KV blocks.
pub(super) type Part<'a> = (Vec<i32>, usize, &'a [i32]);

fn files(model: &Model) -> (DecoderConfig, Weights) {
    let text = std::fs::read_to_string(model.path().join("config.json")).expect("there");
    let config = DecoderConfig::parse(&text).expect("valid");
    (config, Weights::open(model.path()).expect("valid"))
}

impl Bare {
    pub(super) fn on_cpu(model: &Model, dtype: DType) -> Bare {
        fn decoder<T: Packable>(model: &Model) -> Box<dyn Forward> {
            let (config, weights) = files(model);
            let threads = Threads::new(1);
            let weights = load_weights::<T>(&config, &weights, &threads, &mut |_| {});
            let (blocks, tokens) = (LIMITS.block_count, LIMITS.max_step_tokens);
            let decoder = Decoder::new(config, weights.expect("valid"), threads, blocks, tokens);
            Box::new(decoder.expect("fits"))
        }
        Bare(match dtype {
            DType::F32 => decoder::<f32>(model),
            DType::BF16 => decoder::<bf16>(model),
            DType::F16 => decoder::<f16>(model),
        })
    }

    pub(super) fn on_device(model: &Model, dtype: DType) -> Bare {
        Bare::quantized(model, dtype, None)
    }

    pub(super) fn quantized(
        model: &Model,
        dtype: DType,
        quantization: Option<Quantization>,
    ) -> Bare {
        let (config, weights) = files(model);
        let device = Emulator::new();
        let room = Room {
            rows: LIMITS.max_sequences,
            tokens: LIMITS.max_step_tokens,
            row_blocks: LIMITS.max_context / 16,
        };
        let weights = upload(&device, dtype, quantization, &config, &weights, &mut |_| {});
        let weights = weights.expect("fits");
        let dtype = element(dtype);
        let work = Work::new(&device, &config, dtype, quantization, room).expect("fits");
        let decoder = cuda::Decoder::new(device, config, dtype, weights, work).expect("fits");
        let decoder = decoder.with_arena(LIMITS.block_count).expect("fits");
        Bare(Box::new(decoder))
    }

    /// One step; `wanted` are numbers of its tokens, or all.
    pub(super) fn step(&mut self, parts: &[Part<'_>], wanted: Option<&[usize]>) -> Given {
        let slots: Vec<i32> = (0..parts.len() as i32).collect();
        let context: Vec<i32> = parts.iter().map(|p| p.1 as i32).collect();
        let zeros = vec![0; parts.len()];
        // A row without tokens waits for what its program says.
        let flags = parts.iter().map(|p| match p.0.is_empty() {
            true => SAMPLE | STEERED | PARKED,
            false => 0,
        });
        let tokens: Vec<i32> = parts.iter().flat_map(|p| p.0.clone()).collect();
        let mut starts = vec![0];
        for part in parts {
            starts.push(starts[starts.len() - 1] + part.0.len() as i32);
        }
        let width = parts.iter().map(|p| p.2.len()).max().unwrap_or(0);
        let mut blocks = vec![0; width * parts.len()];
        for (row, part) in blocks.chunks_mut(width).zip(parts) {
            row[..part.2.len()].copy_from_slice(part.2);
        }
        let step = Step {
            slots: &slots,
            starts: &starts,
            context: &context,
            flags: &flags.collect::<Vec<i32>>(),
            index: &zeros,
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        let batch = Batch::new(step, &LIMITS).expect("valid");
        let all: Vec<usize> = (0..tokens.len()).collect();
        let wanted = wanted.unwrap_or(&all);
        self.0.forward(&batch, &tokens, wanted).expect("runs");
        let mut logits = vec![0.0; wanted.len() * VOCAB];
        let mut hidden = Vec::new();
        for first in (0..wanted.len()).step_by(HEAD_ROWS) {
            let end = wanted.len().min(first + HEAD_ROWS);
            let into = &mut logits[first * VOCAB..end * VOCAB];
            self.0.logits(first..end, into).expect("runs");
        }
        for row in 0..wanted.len() {
            hidden.extend_from_slice(&self.0.hidden(row).expect("runs")[..HIDDEN]);
        }
        (logits, hidden)
    }
}

/// Largest difference, relative to the largest number.
pub(super) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    assert!(scale > 0.1 || b.is_empty(), "numbers that say nothing");
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs() / scale);
    // Not `f32::max`, which ignores what is not a number.
    differences.fold(0.0, |most, x| if x <= most { most } else { x })
}

/// Tokens that seem random.
fn tokens(seed: usize, count: usize) -> Vec<i32> {
    let token = |i: usize| ((seed + i) * 7919 % 1009 % VOCAB) as i32;
    (0..count).map(token).collect()
}

/// Steps of every form, and what is wanted of them.
pub(super) fn steps() -> Vec<(Vec<Part<'static>>, Option<Vec<usize>>)> {
    const A: &[i32] = &[7, 3, 30, 11, 5];
    const B: &[i32] = &[0, 39, 1];
    const C: &[i32] = &[21, 20];
    /// Begins as `A` does.
    const D: &[i32] = &[7, 3, 18];
    let (a, b, c) = (tokens(1, 70), tokens(2, 40), tokens(3, 30));
    let part = |all: &[i32], from: usize, to: usize, blocks| (all[from..to].to_vec(), from, blocks);
    // What is shared, and then tokens of its own.
    let d = [&a[..32], &tokens(4, 8)].concat();
    let mut steps = vec![
        // Prompts of some lengths, more tokens than the head takes at once.
        (
            vec![part(&a, 0, 37, A), part(&b, 0, 1, B), part(&c, 0, 20, C)],
            None,
        ),
        // One goes on with its prompt, and tokens in the middle are wanted.
        (
            vec![part(&a, 37, 50, A), part(&b, 1, 2, B), part(&c, 20, 21, C)],
            Some(vec![3, 12, 13]),
        ),
        // Nothing is wanted of one row alone.
        (vec![part(&b, 2, 15, B)], Some(vec![])),
        // Single tokens of which not all are wanted.
        (
            vec![part(&a, 50, 51, A), part(&b, 15, 16, B)],
            Some(vec![1]),
        ),
        // A prompt that goes on behind blocks of another.
        (vec![part(&d, 32, 38, D)], None),
    ];
    // Decoding: captured, replayed over the ends of blocks, and in other sizes.
    for i in 0..14 {
        let mut parts = vec![
            part(&a, 51 + i, 52 + i, A),
            part(&b, 16 + i, 17 + i, B),
            part(&c, 21 + i / 2, 22 + i / 2, C),
        ];
        match i % 5 {
            0..=2 => {}
            3 => parts.truncate(2),
            _ => parts.swap(0, 2),
        }
        match i {
            4 => parts.push(part(&d, 38, 39, D)),
            6 => parts.insert(1, part(&d, 39, 39, D)),
            _ => {}
        }
        steps.push((parts, None));
    }
    steps
}

#[test]
fn every_step_gives_what_it_gives_on_the_cpu() {
    for (name, config) in variants() {
        let model = Model::new(&config, DType::F32);
        let mut cpu = Bare::on_cpu(&model, DType::F32);
        let mut device = Bare::on_device(&model, DType::F32);
        for (i, (parts, wanted)) in steps().iter().enumerate() {
            let (logits, hidden) = device.step(parts, wanted.as_deref());
            let expected = cpu.step(parts, wanted.as_deref());
            let off = [
                difference(&logits, &expected.0),
                difference(&hidden, &expected.1),
            ];
            assert!(off.iter().all(|x| *x <= 1e-4), "{name}, step {i}: {off:?}");
        }
    }
}

#[test]
fn types_are_those_of_the_checkpoint_or_others_within_their_rounding() {
    let config = config("Qwen3ForCausalLM", serde_json::json!({}));
    for (held, dtype, most) in [
        (DType::BF16, DType::BF16, 0.03),
        (DType::F16, DType::F16, 4e-3),
        (DType::F32, DType::F16, 4e-3),
        (DType::BF16, DType::F32, 1e-4),
    ] {
        let model = Model::new(&config, held);
        let mut cpu = Bare::on_cpu(&model, dtype);
        let mut device = Bare::on_device(&model, dtype);
        for (i, (parts, wanted)) in steps().iter().enumerate().take(8) {
            let (logits, hidden) = device.step(parts, wanted.as_deref());
            let expected = cpu.step(parts, wanted.as_deref());
            let off = difference(&logits, &expected.0).max(difference(&hidden, &expected.1));
            assert!(off <= most, "{held} as {dtype}, step {i}: {off}");
        }
    }
}

/// Of more blocks than one part of the device takes.
#[test]
fn a_long_context_is_split_and_combined() {
    let config = config("LlamaForCausalLM", serde_json::json!({}));
    let model = Model::new(&config, DType::F32);
    let mut cpu = Bare::on_cpu(&model, DType::F32);
    let mut device = Bare::on_device(&model, DType::F32);
    let blocks: Vec<i32> = (0..30).map(|i| i * 7 % 40).collect();
    let all = tokens(5, 403);
    for (from, to) in [(0, 390), (390, 400), (400, 401), (401, 402), (402, 403)] {
        let part = [(all[from..to].to_vec(), from, blocks.as_slice())];
        let last = [to - from - 1];
        let (logits, _) = device.step(&part, Some(&last));
        let (expected, _) = cpu.step(&part, Some(&last));
        let off = difference(&logits, &expected);
        assert!(off <= 1e-4, "{from} to {to}: {off}");
    }
}
