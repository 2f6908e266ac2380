//! Tokens that are drawn on the device.

use realm_cuda_emulator::Emulator;
use realm_shared::wire::Sampling;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::Step;
use realm_worker::config::DType;
use realm_worker::engine::{Engine, Options, Outcome};
use serde_json::json;

use super::model::{Model, VOCAB, config};

const PROMPT: usize = 20;
const DRAWS: usize = 40;
const BLOCKS: usize = 4;
/// Most alternatives that a sequence asks for.
const TOP: usize = 5;

/// How a sequence draws.
struct Way {
    sampling: Sampling,
    bias: Vec<(i32, f32)>,
}

fn ways() -> Vec<Way> {
    let base = Sampling {
        key: 77,
        prompt_len: PROMPT as u32,
        ..Sampling::default()
    };
    let way = |sampling: Sampling| Way {
        sampling,
        bias: Vec::new(),
    };
    // Zeros change nothing, but are more than a slot has room for on the device.
    let many = (0..2000).map(|i| (i % VOCAB as i32, 0.0)).collect();
    let mut stop_ids = [0; 8];
    stop_ids[..2].copy_from_slice(&[7, 8]);
    vec![
        way(Sampling {
            temperature: 0.0,
            ..base
        }),
        way(Sampling {
            temperature: 1.5,
            top_p: 0.9,
            top_logprobs: TOP as i32,
            ..base
        }),
        way(Sampling {
            top_k: 6,
            min_p: 0.05,
            top_logprobs: 0,
            ..base
        }),
        way(Sampling {
            presence_penalty: 1.0,
            frequency_penalty: 0.5,
            repetition_penalty: 1.3,
            ..base
        }),
        Way {
            sampling: base,
            bias: vec![(3, 9.0), (4, 8.0), (7, 30.0)],
        },
        Way {
            sampling: Sampling {
                min_tokens: 10,
                stop_count: 2,
                stop_ids,
                ..base
            },
            bias: vec![(7, 50.0), (8, 49.0)],
        },
        Way {
            sampling: base,
            bias: many,
        },
    ]
}

/// What steps gave in which sequences draw as they do, `ahead` of what is asked for.
fn outcomes(engine: &mut Engine, ways: &[Way], ahead: usize) -> Vec<Outcome> {
    let count = ways.len();
    let prompt = |s: usize| (0..PROMPT).map(move |i| ((s * 41 + i * 13) % VOCAB) as i32);
    for (s, way) in ways.iter().enumerate() {
        let history: Vec<i32> = prompt(s).collect();
        let bias = way.bias.iter().copied();
        let opened = engine.open(s as u64, way.sampling, bias, &history, None);
        opened.expect("valid");
    }
    let slots: Vec<i32> = (0..count as i32).collect();
    let blocks: Vec<i32> = (0..(count * BLOCKS) as i32).collect();
    let mut outcomes = Vec::new();
    for turn in 0..DRAWS {
        let first = turn == 0;
        let len = if first { PROMPT } else { 1 };
        let tokens: Vec<i32> = match first {
            true => (0..count).flat_map(prompt).collect(),
            false => vec![-1; count],
        };
        let starts: Vec<i32> = (0..=count).map(|s| (s * len) as i32).collect();
        let context = if first { 0 } else { PROMPT + turn - 1 };
        let flags = if first {
            SAMPLE
        } else {
            SAMPLE | INPUT_SAMPLED
        };
        let step = Step {
            slots: &slots,
            starts: &starts,
            context: &vec![context as i32; count],
            flags: &vec![flags; count],
            index: &vec![turn as i32; count],
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: TOP,
        };
        engine.launch(step).expect("valid");
        if turn >= ahead {
            outcomes.push(engine.finish().expect("finishes").clone());
        }
    }
    while engine.has_finished().expect("asked") {
        outcomes.push(engine.finish().expect("finishes").clone());
    }
    outcomes
}

#[test]
fn tokens_are_drawn_as_on_the_cpu_before_anybody_asks_for_them() {
    let config = config("LlamaForCausalLM", json!({}));
    let model = Model::new(&config, DType::F32);
    let options = Options {
        threads: Some(1),
        kv_memory: Some(8 << 20),
        max_sequences: Some(8),
        ..Options::default()
    };
    let (source, ways) = (model.source(), ways());
    let mut cpu = Engine::load(&source, &options, &mut |_, _| {}).expect("loads");
    let expected = outcomes(&mut cpu, &ways, 0);
    assert_eq!(expected.len(), DRAWS);
    let device = Emulator::new();
    let mut device =
        Engine::load_on(&source, &options, device, "cuda:0", &mut |_, _| {}).expect("loads");
    for ahead in [0, 1, 3] {
        let given = outcomes(&mut device, &ways, ahead);
        assert_eq!(given.len(), DRAWS);
        for (turn, (a, b)) in given.iter().zip(&expected).enumerate() {
            assert_eq!(a.tokens, b.tokens, "turn {turn}, {ahead} ahead");
            assert_eq!(a.top_ids, b.top_ids, "turn {turn}, {ahead} ahead");
            let of = |outcome: &Outcome| [&outcome.logprobs[..], &outcome.top_logprobs].concat();
            for (a, b) in of(a).iter().zip(of(b)) {
                assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} and {b}");
            }
        }
    }
    // It is not all the same token, and what was asked of them shows.
    let drawn = |s: usize| -> Vec<i32> { expected.iter().map(|o| o.tokens[s]).collect() };
    assert!(drawn(1).iter().any(|token| *token != drawn(1)[0]));
    assert!(drawn(4).contains(&7));
    let stops = drawn(5);
    assert!(stops[..10].iter().all(|token| ![7, 8].contains(token)));
    assert_eq!(stops[10], 7);
}
