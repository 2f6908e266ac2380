use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};

use super::load::arena_size;
use super::*;
use crate::config::DecoderConfig;
use crate::embedded;

fn engine(threads: u32) -> Engine {
    let options = Options {
        threads: Some(threads),
        kv_memory: Some(16 << 20),
        ..Options::default()
    };
    Engine::load(&ModelSource::Embedded, &options, &mut |_, _| {}).expect("loads")
}

fn sampling(key: u64, top_logprobs: i32) -> Sampling {
    Sampling {
        key,
        top_logprobs,
        ..Sampling::default()
    }
}

fn open(engine: &mut Engine, slot: u64, sampling: Sampling) {
    engine
        .open(slot, sampling, std::iter::empty(), &[], None)
        .expect("valid");
}

/// A step of one row in blocks that are its own by its slot.
fn one<'a>(
    slot: &'a [i32; 1],
    starts: &'a [i32; 2],
    context: &'a [i32; 1],
    flags: &'a [i32; 1],
    index: &'a [i32; 1],
    tokens: &'a [i32],
    blocks: &'a [i32],
) -> Step<'a> {
    Step {
        slots: slot,
        starts,
        context,
        flags,
        index,
        tokens,
        blocks,
        targets: &[],
        top: 0,
    }
}

/// Runs a sequence alone: its prompt, then `n` tokens, re-prefilled from scratch at `resume`.
fn alone(engine: &mut Engine, key: u64, prompt: &[i32], n: usize, resume: usize) -> Vec<i32> {
    let blocks: Vec<i32> = (0..20).collect();
    let mut tokens = prompt.to_vec();
    let mut held = 0;
    open(engine, 0, sampling(key, -1));
    while tokens.len() < prompt.len() + n {
        let made = tokens.len() - prompt.len();
        if made == resume {
            held = 0;
            open(engine, 0, sampling(key, -1));
        }
        let new = &tokens[held..];
        let (starts, context) = ([0, new.len() as i32], [held as i32]);
        let index = [made as i32];
        let step = one(&[0], &starts, &context, &[SAMPLE], &index, new, &blocks);
        let drawn = engine.step(step).expect("valid").tokens[0];
        held = tokens.len();
        tokens.push(drawn);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn sixty_four_sequences_at_once_are_each_what_they_are_alone() {
    const SEQUENCES: usize = 64;
    const TOKENS: usize = 12;
    let prompt =
        |s: usize| -> Vec<i32> { (0..3 + s % 7).map(|i| (40 + s * 3 + i) as i32).collect() };
    let mut engine = engine(2);
    let per_row = 2;
    let mut outputs: Vec<Vec<i32>> = vec![Vec::new(); SEQUENCES];
    for s in 0..SEQUENCES {
        open(&mut engine, s as u64, sampling(s as u64, -1));
    }
    // All prompts in one step, then all decode, each taking its input from the step before.
    for turn in 0..TOKENS {
        let mut tokens = Vec::new();
        let mut starts = vec![0];
        let (mut slots, mut context, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        for s in (0..SEQUENCES).rev() {
            let prompt = prompt(s);
            if turn == 0 {
                tokens.extend(&prompt);
                context.push(0);
            } else {
                tokens.push(-1);
                context.push((prompt.len() + turn - 1) as i32);
            }
            starts.push(tokens.len() as i32);
            slots.push(s as i32);
            blocks.extend((0..per_row).map(|b| (s * per_row + b) as i32));
        }
        let flags = if turn == 0 {
            SAMPLE
        } else {
            SAMPLE | INPUT_SAMPLED
        };
        let step = Step {
            slots: &slots,
            starts: &starts,
            context: &context,
            flags: &[flags; SEQUENCES],
            index: &[turn as i32; SEQUENCES],
            tokens: &tokens,
            blocks: &blocks,
            targets: &[],
            top: 0,
        };
        let drawn = engine.step(step).expect("valid").tokens.clone();
        for (slot, token) in slots.iter().zip(drawn) {
            outputs[*slot as usize].push(token);
        }
    }
    for (s, output) in outputs.iter().enumerate() {
        let replay = alone(&mut engine, s as u64, &prompt(s), TOKENS, s % TOKENS);
        assert_eq!(output, &replay, "sequence {s}");
    }
}

#[test]
fn logprobs_of_prompt_and_output_agree_with_each_other() {
    let mut engine = engine(1);
    let prompt = [100, 200, 300, 400];
    let blocks = [0];
    let mut greedy = sampling(0, 3);
    greedy.temperature = 0.0;
    open(&mut engine, 0, greedy);
    let step = Step {
        targets: &[200, 300, -1, 77],
        top: 5,
        ..one(&[0], &[0, 4], &[0], &[SAMPLE], &[0], &prompt, &blocks)
    };
    let out = engine.step(step).expect("valid").clone();
    // The row asked for 3 of the step's 5 alternatives.
    assert_eq!(
        (out.top_ids.len(), out.top_ids[3..].to_vec()),
        (5, vec![-1, -1])
    );
    assert_eq!(out.tokens[0], out.top_ids[0]);
    assert_eq!(out.logprobs[0], out.top_logprobs[0]);
    assert!(out.top_logprobs[..3].is_sorted_by(|a, b| a >= b));
    // At the last position a token was drawn and another one scored, from the same logits.
    assert_eq!(out.prompt_top_ids[15..], out.top_ids);
    assert!(out.prompt_logprobs[3] <= out.logprobs[0]);
    assert_eq!((out.prompt_logprobs[2], out.prompt_top_ids[10]), (0.0, -1));
    // Scored one at a time, the prompt's tokens have the same log-probabilities.
    for (t, expected) in [(0, out.prompt_logprobs[0]), (1, out.prompt_logprobs[1])] {
        let (token, context, target) = ([prompt[t]], [t as i32], [prompt[t + 1]]);
        let step = Step {
            targets: &target,
            ..one(&[0], &[0, 1], &context, &[0], &[0], &token, &blocks)
        };
        let again = engine.step(step).expect("valid");
        assert_eq!(again.prompt_logprobs, [expected]);
        assert_eq!(again.tokens, [-1]);
    }
    // A slot that asked for none gets none, though its neighbour's alternatives are in the step.
    open(&mut engine, 1, sampling(0, -1));
    let step = Step {
        top: 2,
        ..one(&[1], &[0, 4], &[0], &[SAMPLE], &[0], &prompt, &blocks)
    };
    let out = engine.step(step).expect("valid");
    assert_eq!(
        (out.logprobs[0], out.top_ids.as_slice()),
        (0.0, &[-1, -1][..])
    );
}

#[test]
fn more_positions_than_fit_the_head_at_once_are_all_scored() {
    let mut engine = engine(1);
    open(&mut engine, 0, sampling(0, 0));
    let tokens: Vec<i32> = (0..100).map(|i| 50 + i * 7 % 900).collect();
    let targets: Vec<i32> = tokens[1..].iter().copied().chain([-1]).collect();
    let blocks: Vec<i32> = (0..7).collect();
    let step = Step {
        targets: &targets,
        ..one(&[0], &[0, 100], &[0], &[0], &[0], &tokens, &blocks)
    };
    let whole = engine.step(step).expect("valid").prompt_logprobs.clone();
    assert!(whole[..99].iter().all(|x| *x < 0.0));
    let mut parts: Vec<f32> = Vec::new();
    for first in (0..100).step_by(30) {
        let end = 100.min(first + 30);
        let (starts, context) = ([0, (end - first) as i32], [first as i32]);
        let tokens = &tokens[first..end];
        let step = Step {
            targets: &targets[first..end],
            ..one(&[0], &starts, &context, &[0], &[0], tokens, &blocks)
        };
        parts.extend(&engine.step(step).expect("valid").prompt_logprobs);
    }
    assert_eq!(parts, whole);
}

#[test]
fn slots_must_be_open_and_have_drawn() {
    let mut engine = engine(1);
    let step = one(&[3], &[0, 1], &[0], &[SAMPLE], &[0], &[1], &[0]);
    let error = engine.step(step).expect_err("closed").to_string();
    assert_eq!(error, "step, row 0: slot 3 was never opened");
    open(&mut engine, 3, sampling(0, -1));
    let step = one(
        &[3],
        &[0, 1],
        &[0],
        &[SAMPLE | INPUT_SAMPLED],
        &[0],
        &[-1],
        &[0],
    );
    let error = engine.step(step).expect_err("nothing drawn").to_string();
    assert_eq!(error, "step, row 0: slot 3 has drawn no token");
    let result = engine.open(256, sampling(0, -1), std::iter::empty(), &[], None);
    assert_eq!(
        result.expect_err("beyond").to_string(),
        "OPEN of slot 256 of 256"
    );
}

#[test]
fn the_arena_fits_what_it_is_given() {
    let config = DecoderConfig::parse(embedded::CONFIG).expect("valid");
    let size = |kv_memory, max_context| {
        let options = Options {
            max_context,
            ..Options::default()
        };
        arena_size(&config, 1000, kv_memory, &options)
    };
    let positions = config.max_context;
    assert_eq!(
        size(1 << 40, None).expect("fits"),
        (256 * positions / 16, positions)
    );
    assert_eq!(size(1 << 40, Some(100)).expect("fits"), (256 * 7, 100));
    // Too little for the model's context: what fits is the limit.
    assert_eq!(size(3999, None).expect("fits"), (3, 48));
    let error = size(3999, Some(49)).expect_err("too small").to_string();
    assert!(
        error.contains("3999 bytes holds 48 tokens (62 bytes each)"),
        "{error}"
    );
    assert!(
        error.contains("--max-context 49; raise --kv-memory"),
        "{error}"
    );
    assert!(
        size(999, None)
            .expect_err("too small")
            .to_string()
            .contains("one block")
    );
    let error = size(1 << 40, Some(positions + 1))
        .expect_err("too long")
        .to_string();
    assert!(
        error.contains(&format!("the {positions} positions")),
        "{error}"
    );
}
