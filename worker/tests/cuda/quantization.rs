//! What matrices in fp8 change.

use realm_cuda::compile::Capability;
use realm_cuda_emulator::Emulator;
use realm_shared::wire::Sampling;
use realm_shared::wire::step::SAMPLE;
use realm_worker::batch::Step;
use realm_worker::config::{DType, Quantization};
use realm_worker::engine::{Engine, ModelSource, Options};
use serde_json::{Value, json};

use super::engine::{on_device, options};
use super::model::{HIDDEN, Model, VOCAB, config, variants};
use super::pass::{Bare, difference, steps};

/// Root of the mean square of the differences, relative to that of the numbers.
fn error(a: &[f32], b: &[f32]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let differences = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (differences / squares(&mut b.iter().copied())).sqrt()
}

fn top(logits: &[f32]) -> usize {
    let largest = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    largest.expect("some").0
}

/// Of all steps: the error of the logits, and how many rows of how many have another likeliest token.
fn compare(a: &mut Bare, b: &mut Bare) -> (f64, usize, usize) {
    let (mut all, mut expected) = (Vec::new(), Vec::new());
    for (parts, wanted) in &steps() {
        all.extend(a.step(parts, wanted.as_deref()).0);
        expected.extend(b.step(parts, wanted.as_deref()).0);
    }
    let rows = all.chunks(VOCAB).zip(expected.chunks(VOCAB));
    let other = rows.filter(|(a, b)| top(a) != top(b)).count();
    (error(&all, &expected), other, all.len() / VOCAB)
}

#[test]
fn logits_are_those_of_bf16_within_the_rounding_of_fp8() {
    for (name, config) in variants() {
        let model = Model::new(&config, DType::BF16);
        let mut exact = Bare::on_cpu(&model, DType::F32);
        let mut plain = Bare::on_device(&model, DType::BF16);
        let of_plain = compare(&mut plain, &mut exact);
        let mut exact = Bare::on_cpu(&model, DType::F32);
        let mut fp8 = Bare::quantized(&model, DType::BF16, Some(Quantization::Fp8));
        let of_fp8 = compare(&mut fp8, &mut exact);
        println!("{name}: off f32 by, other tokens, of: bf16 {of_plain:?}, fp8 {of_fp8:?}");
        let (off, other, rows) = of_fp8;
        // Each factor of a product is off by 2.5% or so; residuals and norms add them up.
        assert!(off < 0.2 && off > of_plain.0, "{name}: {off}");
        assert!(other * 4 < rows, "{name}: {other} of {rows}");
    }
}

/// What a trained model writes, from several seeds, until it ends a text.
fn texts(engine: &mut Engine) -> Vec<Vec<i32>> {
    const ENDS: [i32; 2] = [1, 3];
    let text = |key: u64| {
        let sampling = Sampling {
            key,
            ..Sampling::default()
        };
        let opened = engine.open(0, sampling, std::iter::empty(), &[], None);
        opened.expect("valid");
        let mut text = vec![0];
        while text.len() < 100 && !ENDS.contains(&text[text.len() - 1]) {
            let last = text.len() - 1;
            let index = [last as i32];
            let step = Step {
                flags: &[SAMPLE],
                index: &index,
                ..one(&[0, 1], &index, &text[last..])
            };
            text.push(engine.step(step).expect("valid").tokens[0]);
        }
        text
    };
    (0..12).map(text).collect()
}

/// A step of one row.
fn one<'a>(starts: &'a [i32], context: &'a [i32], tokens: &'a [i32]) -> Step<'a> {
    Step {
        slots: &[0],
        starts,
        context,
        flags: &[0],
        index: &[0],
        tokens,
        blocks: &[0, 1, 2, 3, 4, 5, 6],
        targets: &[],
        top: 0,
    }
}

/// Log-probability of each token of some texts but the first, and the likeliest token in its place.
fn score(engine: &mut Engine, texts: &[Vec<i32>]) -> (Vec<f32>, Vec<i32>) {
    let (mut logprobs, mut likeliest) = (Vec::new(), Vec::new());
    for text in texts {
        let sampling = Sampling {
            top_logprobs: 1,
            ..Sampling::default()
        };
        let opened = engine.open(0, sampling, std::iter::empty(), &[], None);
        opened.expect("valid");
        let (tokens, targets) = (&text[..text.len() - 1], &text[1..]);
        let starts = [0, tokens.len() as i32];
        let step = Step {
            targets,
            top: 1,
            ..one(&starts, &[0], tokens)
        };
        let out = engine.step(step).expect("valid");
        logprobs.extend(&out.prompt_logprobs);
        likeliest.extend(&out.prompt_top_ids);
    }
    (logprobs, likeliest)
}

#[test]
fn a_trained_model_says_much_the_same() {
    let model = Model::trained();
    let on_cpu = |source: &ModelSource| {
        let f32 = Options {
            dtype: Some(DType::F32),
            ..options()
        };
        Engine::load(source, &f32, &mut |_, _| {}).expect("loads")
    };
    let mut exact = on_cpu(&model.source());
    let texts = texts(&mut exact);
    let (expected, likeliest) = score(&mut exact, &texts);
    assert!(expected.len() > 300, "{} tokens", expected.len());
    // It is the embedded model.
    let (embedded, _) = score(&mut on_cpu(&ModelSource::Embedded), &texts);
    let off = difference(&embedded, &expected);
    assert!(off < 1e-4, "{off}");
    let measure = |options: &Options| {
        let bf16 = Options {
            dtype: Some(DType::BF16),
            ..options.clone()
        };
        let mut engine = on_device(&model, &bf16, Emulator::new()).expect("loads");
        let (logprobs, top) = score(&mut engine, &texts);
        let changes = logprobs
            .iter()
            .zip(&expected)
            .map(|(a, b)| f64::from(a - b));
        let count = expected.len() as f64;
        let changes: Vec<f64> = changes.collect();
        let more = -changes.iter().sum::<f64>() / count;
        let off = changes.iter().map(|x| x.abs()).sum::<f64>() / count;
        let other = top.iter().zip(&likeliest).filter(|(a, b)| a != b).count();
        (more, off, other as f64 / count)
    };
    let (plain, fp8) = (measure(&options()), measure(&fp8()));
    let mean = -expected.iter().sum::<f32>() / expected.len() as f32;
    println!(
        "{} tokens of {mean} nats; more, off, other: bf16 {plain:?}, fp8 {fp8:?}",
        expected.len()
    );
    assert!(plain.1 < fp8.1, "{plain:?} and {fp8:?}");
    assert!(fp8.0.abs() < 0.05 && fp8.2 < 0.1, "{fp8:?}");
}

/// A graph was captured of what is computed in memory that later steps use too.
#[test]
fn a_replayed_step_is_one_that_runs() {
    let config = config("LlamaForCausalLM", json!({}));
    let model = Model::new(&config, DType::BF16);
    let mut device = Bare::quantized(&model, DType::BF16, Some(Quantization::Fp8));
    let step = |tokens: &[i32], context| [(tokens.to_vec(), context, &[3, 1][..])];
    device.step(&step(&[5, 6, 7], 0), None);
    let (first, _) = device.step(&step(&[8], 3), None);
    let (other, _) = device.step(&step(&[9], 3), None);
    // Beside a row of which nothing is wanted it is none that was captured.
    let beside = [(vec![8], 3, &[3, 1][..]), (vec![5], 0, &[2][..])];
    let (again, _) = device.step(&beside, Some(&[0]));
    assert_eq!(difference(&again, &first), 0.0);
    assert!(difference(&other, &first) > 0.01);
}

fn fp8() -> Options {
    Options {
        quantization: Some(Quantization::Fp8),
        ..options()
    }
}

#[test]
fn matrices_take_half() {
    for (_, config) in variants() {
        let model = Model::new(&config, DType::BF16);
        let of = |options: &Options| {
            let engine = on_device(&model, options, Emulator::new()).expect("loads");
            engine.info().clone()
        };
        let (plain, fp8) = (of(&options()), of(&fp8()));
        assert_eq!(plain.dtype, "bf16");
        assert_eq!(fp8.dtype, "bf16, fp8 weights");
        assert_eq!(fp8.kv_bytes_per_token, plain.kv_bytes_per_token);
        let field = |name: &str| config[name].as_u64().expect("a number");
        let (hidden, inner) = (HIDDEN as u64, field("intermediate_size"));
        let query = field("num_attention_heads") * field("head_dim");
        let key = field("num_key_value_heads") * field("head_dim");
        // In a layer, where queries, keys and values, and gates and ups, are one matrix.
        let outputs = (query + 2 * key) + hidden + 2 * inner + hidden;
        let values = (query + 2 * key + query + 3 * inner) * hidden;
        let layers = field("num_hidden_layers");
        assert_eq!(
            plain.weight_bytes - fp8.weight_bytes,
            layers * (values - 4 * outputs)
        );
    }
}

fn refusal(config: &Value, options: &Options, device: Emulator) -> String {
    let model = Model::new(config, DType::BF16);
    on_device(&model, options, device).err().expect("refused")
}

#[test]
fn what_cannot_run_in_fp8_is_refused() {
    let llama = config("LlamaForCausalLM", json!({}));
    let a100 = Emulator::new().with_capability(Capability(80));
    assert_eq!(
        refusal(&llama, &fp8(), a100),
        "cuda:0 is of sm_80, and --quantization fp8 needs sm_89 or later; leave it out"
    );
    let f16 = Options {
        dtype: Some(DType::F16),
        ..fp8()
    };
    assert_eq!(
        refusal(&llama, &f16, Emulator::new()),
        "--quantization fp8 runs in bf16, not in f16; add --dtype bf16"
    );
    let model = Model::new(&llama, DType::BF16);
    let on_cpu = Engine::load(&model.source(), &fp8(), &mut |_, _| {});
    assert_eq!(
        on_cpu.err().expect("refused").to_string(),
        "--quantization fp8 is for GPUs; leave it out, or choose one with --device"
    );
    let narrow = json!({"hidden_size": 136, "intermediate_size": 192});
    let narrow = refusal(&config("LlamaForCausalLM", narrow), &fp8(), Emulator::new());
    assert!(
        narrow.contains("hidden_size")
            && narrow.contains("multiples of 16 with --quantization fp8"),
        "{narrow}"
    );
}
