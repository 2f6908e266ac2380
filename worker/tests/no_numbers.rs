//! Models that give no number for some inputs, and what becomes of the rows beside such an input.

use std::path::Path;

use realm_shared::wire::Sampling;
use realm_shared::wire::result::NO_NUMBER;
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_worker::batch::Step;
use realm_worker::config::DType;
use realm_worker::engine::{Engine, ModelSource, Options, Outcome};
use safetensors::SafeTensors;
use tempfile::TempDir;

/// Its embedding overflows f16, and nothing wider.
const HUGE: i32 = 100;
/// Its embedding is not a number in any type.
const BROKEN: i32 = 101;
const GOOD: [i32; 4] = [5, 6, 8, 7];

/// A copy of a fixture with these two tokens.
fn model() -> TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama2");
    let config = "config.json";
    std::fs::copy(from.join(config), copy.path().join(config)).expect("copied");
    let mut bytes = std::fs::read(from.join("model.safetensors")).expect("fixture");
    let (offset, width) = {
        let tensors = SafeTensors::deserialize(&bytes).expect("fixture");
        let embedding = tensors.tensor("model.embed_tokens.weight").expect("there");
        let offset = embedding.data().as_ptr() as usize - bytes.as_ptr() as usize;
        (offset, embedding.shape()[1] * 4)
    };
    for (token, value) in [(HUGE, 1e5f32), (BROKEN, f32::NAN)] {
        let row = &mut bytes[offset + token as usize * width..][..width];
        for element in row.as_chunks_mut().0 {
            *element = value.to_le_bytes();
        }
    }
    std::fs::write(copy.path().join("model.safetensors"), bytes).expect("written");
    copy
}

fn open(engine: &mut Engine, slot: u64) {
    let sampling = Sampling {
        key: 3,
        top_logprobs: 2,
        ..Sampling::default()
    };
    let opened = engine.open(slot, sampling, std::iter::empty(), &[], None);
    opened.expect("valid");
}

/// Runs both slots in one step, each in a block of its own: prompts whose tokens are scored, or
/// the tokens drawn last.
fn step(engine: &mut Engine, prompts: Option<[[i32; 4]; 2]>) -> Outcome {
    let (len, context, index, flags) = match prompts {
        Some(_) => (4, 0, 0, SAMPLE),
        None => (1, 4, 1, SAMPLE | INPUT_SAMPLED),
    };
    let tokens = prompts.map_or(vec![-1; 2], |prompts| prompts.concat());
    let targets = prompts.map_or(Vec::new(), |prompts| {
        let next = |p: [i32; 4]| [p[1], p[2], p[3], -1];
        prompts.map(next).concat()
    });
    let step = Step {
        slots: &[0, 1],
        starts: &[0, len, 2 * len],
        context: &[context; 2],
        flags: &[flags; 2],
        index: &[index; 2],
        tokens: &tokens,
        blocks: &[0, 1],
        targets: &targets,
        top: 2,
    };
    engine.step(step).expect("valid").clone()
}

/// What was said of slot 1.
fn second(out: &Outcome) -> (i32, Vec<f32>) {
    let scores = [&out.logprobs[1..], &out.top_logprobs[2..]].concat();
    let prompt = out.prompt_logprobs.iter().skip(4);
    (
        out.tokens[1],
        scores.into_iter().chain(prompt.copied()).collect(),
    )
}

#[test]
fn a_row_without_a_number_is_alone() {
    let directory = model();
    for (dtype, token, fails) in [
        (DType::F32, HUGE, false),
        (DType::F32, BROKEN, true),
        (DType::BF16, HUGE, false),
        (DType::BF16, BROKEN, true),
        (DType::F16, HUGE, true),
        (DType::F16, BROKEN, true),
    ] {
        let options = Options {
            dtype: Some(dtype),
            threads: Some(1),
            kv_memory: Some(1 << 20),
            ..Options::default()
        };
        let source = ModelSource::Directory(directory.path().into());
        let mut engine = Engine::load(&source, &options, &mut |_, _| {}).expect("loads");
        let case = format!("token {token} in {dtype}");

        let mut clean = Vec::new();
        for slot in 0..2 {
            open(&mut engine, slot);
        }
        for prompts in [Some([GOOD; 2]), None] {
            clean.push(step(&mut engine, prompts));
        }
        for slot in 0..2 {
            open(&mut engine, slot);
        }
        let mut bad = GOOD;
        bad[2] = token;
        for (prompts, clean) in [Some([bad, GOOD]), None].into_iter().zip(&clean) {
            let out = step(&mut engine, prompts);
            assert_eq!(second(&out), second(clean), "{case}");
            if prompts.is_some() {
                assert_eq!(out.tokens[0] == NO_NUMBER, fails, "{case}");
                assert_eq!(out.prompt_logprobs[2].is_nan(), fails, "{case}");
                assert_eq!(out.logprobs[0] == 0.0, fails, "{case}");
            }
        }
        // What it left in its slot and its block harms nobody who comes after it.
        for slot in 0..2 {
            open(&mut engine, slot);
        }
        for (prompts, clean) in [Some([GOOD; 2]), None].into_iter().zip(&clean) {
            assert_eq!(&step(&mut engine, prompts), clean, "{case}");
        }
    }
}
