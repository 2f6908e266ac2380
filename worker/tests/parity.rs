//! Small random models of every family against the reference implementation: the fixtures that
//! `fixtures/make_fixtures.py` made.

use std::path::{Path, PathBuf};

use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::{Batch, Limits, Step};
use realm_worker::config::{DType, DecoderConfig};
use realm_worker::decoder::{Decoder, Forward, HEAD_ROWS, load_weights};
use realm_worker::engine::{Engine, ModelSource, Options};
use realm_worker::kernels::{Packable, Threads};
use realm_worker::weights::Weights;
use safetensors::SafeTensors;

const EXACT: [&str; 7] = [
    "llama2",
    "llama3",
    "llama-linear-tied",
    "llama-head-dim",
    "mistral",
    "qwen2",
    "qwen3",
];
const ROUNDED: [&str; 2] = ["llama-f16-sharded", "qwen3-bf16"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

struct Reference {
    prompt: usize,
    tokens: Vec<i32>,
    logits: Vec<f32>,
    /// The logits of the same weights in f32, where the model runs in another type.
    exact: Vec<f32>,
    vocab: usize,
}

fn reference(name: &str) -> Reference {
    let bytes = std::fs::read(folder(name).join("reference.safetensors")).expect("fixture");
    let tensors = SafeTensors::deserialize(&bytes).expect("fixture");
    let words = |name: &str| -> Vec<u32> {
        let data = tensors
            .tensor(name)
            .map(|t| t.data().to_vec())
            .unwrap_or_default();
        data.as_chunks()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect()
    };
    let floats = |name: &str| words(name).into_iter().map(f32::from_bits).collect();
    let text = std::fs::read_to_string(folder(name).join("reference.json")).expect("fixture");
    let about: serde_json::Value = serde_json::from_str(&text).expect("fixture");
    let tokens: Vec<i32> = words("tokens").into_iter().map(|t| t as i32).collect();
    let logits: Vec<f32> = floats("logits");
    let vocab = logits.len() / tokens.len();
    let prompt = about["prompt"].as_u64().expect("fixture") as usize;
    Reference {
        prompt,
        tokens,
        logits,
        exact: floats("exact"),
        vocab,
    }
}

/// The model alone, without slots and sampling.
struct Bare {
    model: Box<dyn Forward>,
    limits: Limits,
}

fn decoder<T: Packable>(
    config: DecoderConfig,
    weights: &Weights,
    limits: &Limits,
    threads: u32,
) -> Box<dyn Forward> {
    let threads = Threads::new(threads);
    let weights = load_weights::<T>(&config, weights, &threads, &mut |_| {}).expect("fits");
    let (blocks, tokens) = (limits.block_count, limits.max_step_tokens);
    Box::new(Decoder::new(config, weights, threads, blocks, tokens).expect("fits"))
}

/// A row to run: tokens, position of the first, KV blocks.
struct Part<'a>(&'a [i32], usize, &'a [i32]);

impl Bare {
    /// On our own kernels.
    fn load(name: &str, threads: u32) -> Bare {
        Bare::new(name, |config, weights, limits| {
            match config.dtype.or(weights.dtype()).expect("known") {
                DType::F32 => decoder::<f32>(config, weights, limits, threads),
                DType::BF16 => decoder::<half::bf16>(config, weights, limits, threads),
                DType::F16 => decoder::<half::f16>(config, weights, limits, threads),
            }
        })
    }

    fn new(
        name: &str,
        decoder: impl FnOnce(DecoderConfig, &Weights, &Limits) -> Box<dyn Forward>,
    ) -> Bare {
        let text = std::fs::read_to_string(folder(name).join("config.json")).expect("fixture");
        let config = DecoderConfig::parse(&text).expect("valid");
        let weights = Weights::open(&folder(name)).expect("valid");
        let limits = Limits {
            vocab: config.vocab,
            max_context: 128,
            block_count: 40,
            max_sequences: 8,
            max_step_tokens: 256,
        };
        let model = decoder(config, &weights, &limits);
        Bare { model, limits }
    }

    /// One step; logits of every token.
    fn step(&mut self, parts: &[Part<'_>]) -> Vec<f32> {
        let slots: Vec<i32> = (0..parts.len() as i32).collect();
        let context: Vec<i32> = parts.iter().map(|p| p.1 as i32).collect();
        let zeros = vec![0; parts.len()];
        let tokens: Vec<i32> = parts.iter().flat_map(|p| p.0).copied().collect();
        let mut starts = vec![0];
        starts.extend(parts.iter().scan(0, |end, p| {
            *end += p.0.len() as i32;
            Some(*end)
        }));
        let width = parts.iter().map(|p| p.2.len()).max().unwrap_or(0);
        let mut blocks = vec![0; width * parts.len()];
        for (row, part) in blocks.chunks_mut(width).zip(parts) {
            row[..part.2.len()].copy_from_slice(part.2);
        }
        let step = Step {
            slots: &slots,
            starts: &starts,
            context: &context,
            flags: &zeros,
            index: &zeros,
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        let batch = Batch::new(step, &self.limits).expect("valid");
        let all: Vec<usize> = (0..tokens.len()).collect();
        let run = self.model.forward(&batch, &tokens, &all);
        run.expect("a CPU does not fail");
        let vocab = self.limits.vocab;
        let mut logits = vec![0.0; tokens.len() * vocab];
        for first in (0..tokens.len()).step_by(HEAD_ROWS) {
            let end = tokens.len().min(first + HEAD_ROWS);
            let into = &mut logits[first * vocab..end * vocab];
            let run = self.model.logits(first..end, into);
            run.expect("a CPU does not fail");
        }
        logits
    }
}

/// Largest difference, relative to the size of the logits.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter()
        .zip(b)
        .fold(0.0f32, |m, (x, y)| m.max((x - y).abs()))
        / scale
}

fn root_mean_square_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    (a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f32>() / a.len() as f32).sqrt()
}

/// Blocks of eight sequences of up to 80 tokens or one of 128, in no order.
const SCATTERED: [i32; 8] = [33, 2, 17, 0, 29, 8, 21, 5];

#[test]
fn f32_logits_are_those_of_the_reference_however_a_prompt_is_cut() {
    for name in EXACT {
        let expected = reference(name);
        let mut whole: Option<Vec<f32>> = None;
        for (chunk, threads) in [(1000, 1), (1, 1), (7, 2), (33, 1)] {
            let mut bare = Bare::load(name, threads);
            let mut logits = Vec::new();
            for (i, tokens) in expected.tokens.chunks(chunk).enumerate() {
                logits.extend(bare.step(&[Part(tokens, i * chunk, &SCATTERED)]));
            }
            let off = difference(&logits, &expected.logits);
            assert!(off < 1e-4, "{name} in chunks of {chunk}: off by {off}");
            // And bit by bit the same however it is cut, on however many threads.
            assert!(
                whole.get_or_insert(logits.clone()) == &logits,
                "{name}, chunks of {chunk}"
            );
        }
    }
}

/// A logit is the product of a hidden state with a row of the head.
#[test]
fn logits_follow_from_hidden_states() {
    for name in EXACT {
        let expected = reference(name);
        let mut bare = Bare::load(name, 1);
        let logits = bare.step(&[Part(&expected.tokens, 0, &SCATTERED)]);
        let (vocab, width) = (expected.vocab, bare.model.hidden_size());
        let weights = Weights::open(&folder(name)).expect("valid");
        let head = weights.tensor("lm_head.weight", &[vocab, width]);
        let head = head.or_else(|_| weights.tensor("model.embed_tokens.weight", &[vocab, width]));
        let mut rows = vec![0.0; vocab * width];
        head.expect("there is one").read::<f32>(0, &mut rows);
        let mut products = Vec::new();
        for token in 0..expected.tokens.len() {
            let hidden = bare.model.hidden(token).expect("a CPU does not fail");
            let rows = rows.chunks_exact(width);
            products
                .extend(rows.map(|row| row.iter().zip(hidden).map(|(a, b)| a * b).sum::<f32>()));
        }
        let off = difference(&products, &logits);
        assert!(off < 1e-4, "{name}: off by {off}");
    }
}

#[test]
fn rounded_logits_are_closer_to_the_exact_ones_than_those_of_the_reference() {
    for name in ROUNDED {
        let expected = reference(name);
        // The reference rounds all activations. Here they stay in f32, but for what goes into
        // products of bf16 on CPUs with fast dot products.
        let rounding = root_mean_square_difference(&expected.logits, &expected.exact);
        let mut whole: Option<Vec<f32>> = None;
        for chunk in [1000, 1, 13] {
            let mut bare = Bare::load(name, 1);
            let mut logits = Vec::new();
            for (i, tokens) in expected.tokens.chunks(chunk).enumerate() {
                logits.extend(bare.step(&[Part(tokens, i * chunk, &SCATTERED)]));
            }
            let off = root_mean_square_difference(&logits, &expected.exact);
            assert!(
                off < rounding,
                "{name} in chunks of {chunk}: {off}, not {rounding}"
            );
            assert!(
                whole.get_or_insert(logits.clone()) == &logits,
                "{name}, chunks of {chunk}"
            );
        }
    }
}

#[test]
fn a_sequence_in_a_mixed_batch_is_what_it_is_alone() {
    for name in EXACT.into_iter().chain(ROUNDED) {
        let expected = reference(name);
        let alone = Bare::load(name, 1).step(&[Part(&expected.tokens, 0, &SCATTERED)]);
        // Its companion decodes token by token after a prompt; a third prefills in odd chunks;
        // a fourth comes and goes.
        let mut bare = Bare::load(name, 1);
        let tokens = &expected.tokens;
        let mirrored: Vec<i32> = tokens.iter().rev().copied().collect();
        let (ours, theirs) = ([30, 1, 12, 7, 3, 25, 39], [4, 6, 9, 10, 11, 13, 14]);
        let (fourth, mut done, mut at) = ([20, 22], 0, 0);
        let mut logits: Vec<f32> = Vec::new();
        for turn in 0.. {
            if done == tokens.len() {
                break;
            }
            let len = if done < expected.prompt {
                11.min(expected.prompt - done)
            } else {
                1
            };
            let part = Part(&tokens[done..done + len], done, &ours);
            let mut parts = Vec::new();
            let step = 5.min(mirrored.len() - at);
            if turn % 3 != 2 && step > 0 {
                parts.push(Part(&mirrored[at..at + step], at, &theirs));
                at += step;
            }
            let skip: usize = parts.iter().map(|p| p.0.len()).sum();
            parts.push(part);
            if turn % 4 == 1 {
                parts.push(Part(&mirrored[..23], 0, &fourth));
            }
            let all = bare.step(&parts);
            logits.extend(&all[skip * expected.vocab..(skip + len) * expected.vocab]);
            done += len;
        }
        assert!(logits == alone, "{name}: the batch changes the logits");
    }
}

/// What `Engine` is told to make it greedy.
fn greedy() -> Sampling {
    Sampling {
        temperature: 0.0,
        top_logprobs: 0,
        ..Sampling::default()
    }
}

#[test]
fn greedy_decoding_gives_the_tokens_of_the_reference() {
    for name in EXACT {
        let expected = reference(name);
        let options = Options {
            threads: Some(1),
            kv_memory: Some(1 << 20),
            max_context: Some(128),
            ..Options::default()
        };
        let source = ModelSource::Directory(folder(name));
        let mut engine = Engine::load(&source, &options, &mut |_, _| {}).expect("valid");
        // Two sequences at once, the second a token behind, tokens staying in the worker.
        let blocks: Vec<i32> = (0..7)
            .map(|i| i * 2)
            .chain((0..7).map(|i| i * 2 + 1))
            .collect();
        for slot in 0..2 {
            engine
                .open(slot, greedy(), std::iter::empty(), &[], None)
                .expect("valid");
        }
        let prompt = &expected.tokens[..expected.prompt];
        let first = |engine: &mut Engine, slot: i32| {
            let blocks = &blocks[slot as usize * 7..][..7];
            let step = Step {
                slots: &[slot],
                starts: &[0, prompt.len() as i32],
                context: &[0],
                flags: &[SAMPLE],
                index: &[0],
                tokens: prompt,
                blocks,
                targets: &[],
                top: 0,
            };
            engine.step(step).expect("valid").tokens[0]
        };
        let mut outputs = [vec![first(&mut engine, 0)], vec![first(&mut engine, 1)]];
        let greedy = expected.tokens.len() - prompt.len();
        while outputs[0].len() < greedy {
            let n = outputs[0].len();
            let context = (prompt.len() + n - 1) as i32;
            let step = Step {
                slots: &[1, 0],
                starts: &[0, 1, 2],
                context: &[context, context],
                flags: &[SAMPLE | INPUT_SAMPLED; 2],
                index: &[n as i32, n as i32],
                tokens: &[-1, -1],
                blocks: &[&blocks[7..], &blocks[..7]].concat(),
                targets: &[],
                top: 0,
            };
            let tokens = &engine.step(step).expect("valid").tokens;
            outputs[1].push(tokens[0]);
            outputs[0].push(tokens[1]);
        }
        for output in outputs {
            assert_eq!(output, expected.tokens[prompt.len()..], "{name}");
        }
    }
}

#[test]
fn transformers_5_spells_the_same_config() {
    let read = |name| std::fs::read_to_string(folder("llama3").join(name)).expect("fixture");
    let old = DecoderConfig::parse(&read("config.json")).expect("valid");
    assert_eq!(
        DecoderConfig::parse(&read("config.transformers5.json")).expect("valid"),
        old
    );
    assert_eq!(old.dtype, Some(DType::F32));
}
