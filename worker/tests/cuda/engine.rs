//! Whole engines.

use realm_cuda::Device;
use realm_cuda_emulator::Emulator;
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::Step;
use realm_worker::config::DType;
use realm_worker::engine::{Engine, Options};
use serde_json::{Value, json};

use super::model::{Model, VOCAB, config};

/// Tokens of a prompt that go into one step.
const CHUNK: usize = 50;
/// Blocks of each slot.
const BLOCKS: usize = 12;

pub(super) fn options() -> Options {
    Options {
        threads: Some(1),
        kv_memory: Some(8 << 20),
        // Each size of steps is run and captured.
        max_sequences: Some(8),
        ..Options::default()
    }
}

pub(super) fn on_device<D: Device + 'static>(
    model: &Model,
    options: &Options,
    device: D,
) -> Result<Engine, String> {
    let source = model.source();
    let loaded = Engine::load_on(&source, options, device, "cuda:0", &mut |_, _| {});
    loaded.map_err(|error| error.to_string())
}

/// A sequence: the step it comes with, its prompt, and how many tokens it draws.
struct Sequence {
    joins: usize,
    prompt: Vec<i32>,
    draws: usize,
}

fn sequences() -> Vec<Sequence> {
    let prompt = |seed: usize, len: usize| -> Vec<i32> {
        let token = |i: usize| ((seed * 31 + i * 17) % VOCAB) as i32;
        (0..len).map(token).collect()
    };
    let of = |(seed, (joins, len, draws))| Sequence {
        joins,
        prompt: prompt(seed, len),
        draws,
    };
    let all = [
        (0, 120, 64),
        (0, 3, 70),
        (1, 1, 20),
        (5, 51, 30),
        (6, 16, 9),
        (40, 33, 20),
    ];
    all.into_iter().enumerate().map(of).collect()
}

/// What every sequence draws greedily, and in how many rows of single tokens steps came.
fn answers(engine: &mut Engine, sequences: &[Sequence]) -> (Vec<Vec<i32>>, Vec<usize>) {
    let mut drawn = vec![Vec::new(); sequences.len()];
    let mut computed = vec![0; sequences.len()];
    let mut sizes = Vec::new();
    for turn in 0.. {
        let live: Vec<usize> = (0..sequences.len())
            .filter(|s| sequences[*s].joins <= turn && drawn[*s].len() < sequences[*s].draws)
            .collect();
        if live.is_empty() {
            break;
        }
        let (mut starts, mut tokens) = (vec![0], Vec::new());
        let (mut slots, mut context, mut flags) = (Vec::new(), Vec::new(), Vec::new());
        let (mut index, mut blocks) = (Vec::new(), Vec::new());
        for &s in &live {
            let prompt = &sequences[s].prompt;
            if computed[s] == 0 {
                let greedy = Sampling {
                    temperature: 0.0,
                    ..Sampling::default()
                };
                let opened = engine.open(s as u64, greedy, std::iter::empty(), &[], None);
                opened.expect("valid");
            }
            context.push(computed[s] as i32);
            if computed[s] < prompt.len() {
                let end = prompt.len().min(computed[s] + CHUNK);
                tokens.extend(&prompt[computed[s]..end]);
                flags.push(if end == prompt.len() { SAMPLE } else { 0 });
                computed[s] = end;
            } else {
                tokens.push(-1);
                flags.push(SAMPLE | INPUT_SAMPLED);
                computed[s] += 1;
            }
            starts.push(tokens.len() as i32);
            slots.push(s as i32);
            index.push(drawn[s].len() as i32);
            // Scattered, and everybody's own.
            blocks.extend((0..BLOCKS).map(|b| (b * sequences.len() + s) as i32));
        }
        if tokens.len() == live.len() {
            sizes.push(live.len());
        }
        let step = Step {
            slots: &slots,
            starts: &starts,
            context: &context,
            flags: &flags,
            index: &index,
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        let out = engine.step(step).expect("valid");
        for (row, s) in live.iter().enumerate() {
            if flags[row] & SAMPLE != 0 {
                drawn[*s].push(out.tokens[row]);
            }
        }
    }
    (drawn, sizes)
}

#[test]
fn sequences_that_come_and_go_are_what_they_are_on_the_cpu() {
    let config = config("Qwen2ForCausalLM", json!({}));
    let model = Model::new(&config, DType::F32);
    let mut cpu = Engine::load(&model.source(), &options(), &mut |_, _| {}).expect("loads");
    let mut device = on_device(&model, &options(), Emulator::new()).expect("loads");
    let info = device.info();
    assert_eq!(
        (info.device.as_str(), info.dtype.as_str()),
        ("cuda:0", "f32")
    );
    assert_eq!(info.max_context, 512);
    assert!(info.max_step_tokens > cpu.info().max_step_tokens);
    assert_eq!(info.weight_bytes, 4 * info.parameters);
    let sequences = sequences();
    let (expected, _) = answers(&mut cpu, &sequences);
    let (drawn, sizes) = answers(&mut device, &sequences);
    for (s, (drawn, expected)) in drawn.iter().zip(&expected).enumerate() {
        assert_eq!(drawn.len(), sequences[s].draws);
        assert_eq!(drawn, expected, "sequence {s}");
    }
    // Sizes that are filled up to one another, and others.
    for size in [1, 2, 3, 5] {
        assert!(sizes.contains(&size), "{sizes:?}");
    }
    // Nothing of it is left behind.
    device.reset().expect("resets");
    let some = &sequences[..2];
    let (again, _) = answers(&mut device, some);
    assert_eq!(again, expected[..2]);
}

#[test]
fn logprobs_of_a_prompt_agree_with_the_cpus() {
    let config = config("LlamaForCausalLM", json!({"tie_word_embeddings": true}));
    let model = Model::new(&config, DType::F32);
    let prompt: Vec<i32> = (0..300).map(|i| i * 13 % VOCAB as i32).collect();
    let targets: Vec<i32> = prompt[1..].iter().copied().chain([-1]).collect();
    let blocks: Vec<i32> = (0..19).collect();
    let score = |engine: &mut Engine| {
        let sampling = Sampling {
            top_logprobs: 0,
            ..Sampling::default()
        };
        let opened = engine.open(0, sampling, std::iter::empty(), &[], None);
        opened.expect("valid");
        let step = Step {
            slots: &[0],
            starts: &[0, 300],
            context: &[0],
            flags: &[0],
            index: &[0],
            tokens: &prompt,
            blocks: &blocks,
            targets: &targets,
            top: 0,
        };
        engine.step(step).expect("valid").prompt_logprobs.clone()
    };
    let mut cpu = Engine::load(&model.source(), &options(), &mut |_, _| {}).expect("loads");
    let mut device = on_device(&model, &options(), Emulator::new()).expect("loads");
    let (expected, scored) = (score(&mut cpu), score(&mut device));
    assert!(expected[..299].iter().all(|x| *x < 0.0));
    for (a, b) in scored.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} and {b}");
    }
}

/// The error of a model that a device does not take.
fn refusal(config: &Value, options: &Options, device: Emulator) -> String {
    let model = Model::new(config, DType::F32);
    on_device(&model, options, device).err().expect("it loads")
}

#[test]
fn what_kernels_are_not_made_for_is_refused_by_name() {
    for (field, value, supported) in [
        ("head_dim", 80, "64, 96, 128, 256, on a GPU"),
        ("hidden_size", 132, "multiples of 8, on a GPU"),
        ("intermediate_size", 100, "multiples of 8, on a GPU"),
        ("max_position_embeddings", 1 << 21, "up to 1048576"),
    ] {
        let config = config("LlamaForCausalLM", json!({field: value}));
        let error = refusal(&config, &options(), Emulator::new());
        let found = format!("`{field}` is {value}, which is not supported");
        assert!(error.contains(&found), "{error}");
        assert!(error.contains(supported), "{error}");
    }
}

#[test]
fn a_device_without_room_says_for_what() {
    let config = config("LlamaForCausalLM", json!({}));
    let of = |bytes: usize| Emulator::new().with_memory(bytes);
    let full = |bytes| refusal(&config, &options(), of(bytes));
    let error = full(100_000);
    assert!(
        error.starts_with("cuda:0 cannot hold the weights: "),
        "{error}"
    );
    assert!(
        error.ends_with(
            "100000 of its 100000 are free; a smaller model, or a smaller --dtype, takes less"
        ),
        "{error}"
    );
    let error = full(4 << 20);
    assert!(
        error.starts_with("cuda:0 cannot hold what steps work in: "),
        "{error}"
    );
    assert!(error.contains("of its 4194304 are free"), "{error}");
    let all = 128 << 20;
    let greedy = Options {
        kv_memory: Some(1 << 30),
        // Fewer could not fill as much.
        max_sequences: None,
        ..options()
    };
    let error = refusal(&config, &greedy, of(all));
    assert!(
        error.starts_with("cuda:0 cannot hold the KV arena: "),
        "{error}"
    );
    assert!(error.ends_with("lower --kv-memory"), "{error}");
    // By default it takes a part of what is free, and leaves some.
    let frugal = Options {
        kv_memory: None,
        ..options()
    };
    let error = refusal(&config, &frugal, of(all));
    assert!(error.contains("KV memory of 0 bytes"), "{error}");
    let model = Model::new(&config, DType::F32);
    let fraction = |part| {
        let options = Options {
            gpu_memory_fraction: Some(part),
            // With fewer, all that they can fill is less than the part.
            max_sequences: Some(40),
            ..frugal.clone()
        };
        let engine = on_device(&model, &options, Emulator::new()).expect("loads");
        engine.info().block_count
    };
    let (more, less) = (fraction(0.02), fraction(0.002));
    assert!(more / less == 10 || more / less == 9, "{more} and {less}");
}
