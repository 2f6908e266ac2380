//! That the device draws the tokens that the worker's sampler draws.

use std::collections::BTreeSet;
use std::ops::Range;

use half::bf16;

use super::agreement::Comparison;
use super::number::{Number, Random, for_all_types};
use super::sampler::{self, Sampling};
use super::scratch::Array;
use super::{Fault, Outcome, Scale, Scratch};
use crate::sample::{
    Bias, CountTokens, IN_PROMPT, MOST_TOP, Row, Sample, Sampled, min_p_floor, scale as scale_of,
};
use crate::{Device, Element};

/// What the device makes of rows: the results, the tokens of the slots, and the counts.
struct Drawn {
    sampled: Vec<Sampled>,
    drawn: Vec<i32>,
    counts: Vec<Option<Vec<u32>>>,
}

fn sample<T: Number, D: Device>(
    on: &Scratch<'_, D>,
    logits: &[T],
    vocab: usize,
    rows: &[Sampling],
) -> Result<Drawn, Fault> {
    on.check_margins()?;
    let mut device_rows = Vec::new();
    let mut device_counts: Vec<Option<Array<u32>>> = Vec::new();
    for sampling in rows {
        let mut counts = vec![0; vocab];
        for (token, in_prompt, generated) in &sampling.counts {
            counts[*token as usize] = generated | if *in_prompt { IN_PROMPT } else { 0 };
        }
        let counts = match sampling.counts.is_empty() {
            true => None,
            false => Some(on.array(&counts)?),
        };
        let allowed = match &sampling.allowed {
            None => None,
            Some(words) => Some(on.array(words)?),
        };
        let bias = |(token, value): &(u32, f32)| Bias {
            token: *token,
            value: *value,
        };
        let bias = on.array(&sampling.bias.iter().map(bias).collect::<Vec<_>>())?;
        device_rows.push(Row {
            counts: counts.as_ref().map_or(0, Array::address),
            allowed: allowed.as_ref().map_or(0, Array::address),
            allowed_words: sampling.allowed.as_ref().map_or(0, Vec::len) as u32,
            bias: bias.address(),
            bias_count: sampling.bias.len() as u32,
            scale: scale_of(sampling.temperature),
            min_p_floor: min_p_floor(sampling.min_p),
            ..sampling.row
        });
        device_counts.push(counts);
    }
    let (device_rows, device_logits) = (on.array(&device_rows)?, on.array(logits)?);
    let adjusted = on.unwritten::<f32>(rows.len() * vocab)?;
    let out = on.unwritten::<Sampled>(rows.len())?;
    let drawn = on.array(&vec![-5; rows.len()])?;
    let sample = Sample {
        element: T::ELEMENT,
        count: rows.len(),
        vocab,
        slots: rows.len(),
        logits: device_logits.memory(),
        adjusted: adjusted.memory(),
        rows: device_rows.memory(),
        out: out.memory(),
        drawn: drawn.memory(),
    };
    sample.launch(on.device)?;
    let counts = device_counts.iter();
    let counts = counts.map(|counts| counts.as_ref().map(|counts| on.values(counts)).transpose());
    Ok(Drawn {
        sampled: on.values(&out)?,
        drawn: on.values(&drawn)?,
        counts: counts.collect::<Result<_, _>>()?,
    })
}

/// Samples rows of logits and compares all of it with what the worker's sampler gives.
fn compare<T: Number, D: Device>(
    on: &Scratch<'_, D>,
    logits: &[T],
    vocab: usize,
    rows: &[Sampling],
    comparison: &mut Comparison,
) -> Result<Drawn, Fault> {
    let outcome = sample(on, logits, vocab, rows)?;
    for (i, sampling) in rows.iter().enumerate() {
        let at = || format!("{}, vocabulary of {vocab}, row {i}", T::ELEMENT.name());
        let logits = logits[i * vocab..][..vocab].iter();
        let clean = sampler::clean(&logits.map(|x| x.value()).collect::<Vec<_>>());
        let numbers = clean.iter().any(|x| *x > f32::NEG_INFINITY);
        let (got, row) = (&outcome.sampled[i], &sampling.row);
        let expected = match row.slot >= 0 && numbers {
            true => sampler::draw(sampling, &clean),
            false => None,
        };
        comparison.same(u32::try_from(got.token).ok(), expected, || {
            format!("{}, token drawn by {sampling:?}", at())
        });
        comparison.same(got.numbers != 0, numbers, || format!("{}, numbers", at()));
        if let Ok(slot) = usize::try_from(row.slot) {
            let drawn = expected.map_or(0, u32::cast_signed);
            comparison.same(outcome.drawn[slot], drawn, || format!("{}, its slot", at()));
        }
        if let Some(counts) = &outcome.counts[i] {
            for (token, in_prompt, generated) in &sampling.counts {
                let count = counts[*token as usize];
                let now = generated + u32::from(expected == Some(*token));
                let got = (count & IN_PROMPT != 0, count & !IN_PROMPT);
                comparison.same(got, (*in_prompt, now), || {
                    format!("{}, in the prompt and count of token {token}", at())
                });
            }
        }
        if !numbers {
            continue;
        }
        let exact = sampler::logprobs(&clean);
        let mut close = |got: f32, token: u32| {
            let exact = exact[token as usize];
            comparison.within(f64::from(got), exact, 2e-6 + exact.abs() * 1e-6, || {
                format!("{}, log-probability of token {token}", at())
            });
            comparison.fact(got.is_finite(), || {
                format!("{}, token {token}: {got}", at())
            });
        };
        if let Some(token) = expected.filter(|_| row.top >= 0) {
            close(got.logprob, token);
        }
        if row.target >= 0 {
            close(got.target_logprob, row.target.cast_unsigned());
        }
        let top = sampler::top(&clean, row.top.max(0) as usize);
        for (token, logprob) in top.iter().zip(got.top_logprobs) {
            close(logprob, *token);
        }
        let found = got.top_tokens.get(..got.top_count as usize);
        comparison.same(found, Some(&top[..]), || {
            format!("{}, likeliest tokens", at())
        });
    }
    Ok(outcome)
}

/// Logits as models have them: a few likely tokens, and many unlikely ones.
fn logits<T: Number>(random: &mut Random, vocab: usize) -> Vec<T> {
    let spread = random.pick([0.01, 1.0, 3.0, 8.0]);
    (0..vocab)
        .map(|_| T::of(random.normal() * spread + 5.0))
        .collect()
}

fn sampling(random: &mut Random, vocab: usize, slot: usize) -> Sampling {
    let token = |random: &mut Random| random.below(vocab) as u32;
    let mut sampling = Sampling {
        temperature: random.pick([0.0, 1e-30, 0.3, 0.7, 1.0, 1.0, 1.5, 1e6]),
        min_p: random.pick([0.0, 0.0, 0.02, 0.5, 1.0]),
        ..Sampling::default()
    };
    let row = &mut sampling.row;
    row.slot = slot as i32;
    row.key = random.bits();
    row.index = random.below(1000) as u32;
    let size = vocab as u32;
    row.top_k = random.pick([0, 0, 0, 1, 2, 40, 1000, size - 1, size, 1 << 31]);
    row.top_p = random.pick([1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.99, 0.9999]);
    row.top = random.pick([-1, 0, 1, 5, MOST_TOP as i32]);
    let target = token(random).cast_signed();
    row.target = random.pick([-1, target]);
    if random.below(3) == 0 {
        row.stop_count = 1 + random.below(8) as u32;
        row.stop_ids = std::array::from_fn(|_| token(random));
    }
    if random.below(3) == 0 {
        row.presence = random.pick([0.0, 0.5, -2.0]);
        row.frequency = random.pick([0.0, 0.1, -0.3]);
        row.repetition = random.pick([1.0, 1.3, 0.5]);
        let counted: std::collections::BTreeSet<u32> =
            (0..random.below(300)).map(|_| token(random)).collect();
        let counts = counted.into_iter().map(|token| {
            let generated = random.below(3) as u32;
            (token, generated == 0 || random.below(2) == 0, generated)
        });
        sampling.counts = counts.collect();
    }
    if random.below(3) == 0 {
        // Some tokens more than once.
        let some: Vec<u32> = (0..20).map(|_| token(random)).collect();
        let bias = |random: &mut Random| {
            (
                some[random.below(20)],
                random.pick([-100.0, 5.0, 0.3, 30.0]),
            )
        };
        sampling.bias = (0..random.below(100)).map(|_| bias(random)).collect();
    }
    if random.below(4) == 0 {
        let words = vocab.div_ceil(32) - random.below(2).min(vocab / 64);
        let dense = random.below(2) == 0;
        let word = |random: &mut Random| {
            let bits = random.bits();
            let sparse = bits & (bits >> 20) & (bits >> 40);
            (if dense { bits } else { sparse }) as u32
        };
        sampling.allowed = Some((0..words).map(|_| word(random)).collect());
    }
    sampling
}

pub(super) fn draws<D: Device>(on: &Scratch<'_, D>, scale: Scale) -> Outcome {
    fn of<T: Number, D: Device>(
        on: &Scratch<'_, D>,
        scale: Scale,
        comparison: &mut Comparison,
    ) -> Result<(), Fault> {
        let mut random = Random(T::ELEMENT.size() as u64);
        // Whole vectors in a row, and none; fewer than there are threads; as many as models have.
        for (vocab, rows) in [
            (8, 40),
            (333, 40),
            (1000, 40),
            (5003, 20),
            (49_152, scale.pick(6, 64)),
            (128_256, scale.pick(3, 64)),
        ] {
            let all = (0..rows).flat_map(|_| logits::<T>(&mut random, vocab));
            let all: Vec<T> = all.collect();
            let rows: Vec<_> = (0..rows).map(|i| sampling(&mut random, vocab, i)).collect();
            compare(on, &all, vocab, &rows, comparison)?;
        }
        Ok(())
    }
    let mut comparison = Comparison::default();
    for_all_types!(of(on, scale, &mut comparison));
    comparison.outcome()
}

/// Each filter on its own.
pub(super) fn filters<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let mut random = Random(11);
    let vocab = 1003;
    let logits: Vec<f32> = logits(&mut random, vocab);
    let mut rows = Vec::new();
    let mut add = |change: &dyn Fn(&mut Sampling)| {
        for index in 0..12 {
            let mut sampling = Sampling::default();
            sampling.row.index = index;
            sampling.row.slot = rows.len() as i32;
            change(&mut sampling);
            rows.push(sampling);
        }
    };
    add(&|_| {});
    add(&|s| s.row.top_k = 3);
    add(&|s| s.row.top_p = 0.3);
    add(&|s| s.min_p = 0.1);
    add(&|s| (s.row.top_k, s.row.top_p) = (100, 0.5));
    add(&|s| s.bias = vec![(7, 20.0), (7, -3.0), (8, 16.5)]);
    add(&|s| s.allowed = Some(vec![0, 0b1011]));
    add(&|s| {
        s.bias = vec![(3, 1000.0), (4, 999.0)];
        (s.row.stop_count, s.row.stop_ids[0]) = (1, 3);
    });
    let mut comparison = Comparison::default();
    let all = logits.repeat(rows.len());
    let outcome = compare(on, &all, vocab, &rows, &mut comparison)?;
    // They do something at all.
    let tokens = |range: Range<usize>| outcome.sampled[range].iter().map(|s| s.token);
    let distinct = |range| tokens(range).collect::<BTreeSet<_>>().len();
    for (does, what) in [
        (distinct(0..12) > 6, "all tokens"),
        ((2..=3).contains(&distinct(12..24)), "the best three"),
        (
            tokens(72..84).all(|t| [32, 33, 35].contains(&t)),
            "those allowed",
        ),
        (
            tokens(84..96).all(|t| t == 4),
            "the best that does not stop",
        ),
    ] {
        comparison.fact(does, || format!("draws from {what} seem to be from others"));
    }
    comparison.outcome()
}

/// Ties go to the lower token.
pub(super) fn ties<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let vocab = 4096;
    // All alike but for two groups; bf16 logits are like this.
    let logits: Vec<bf16> = (0..vocab)
        .map(|i| bf16::from_f32(if i % 3 == 1 { 2.0 } else { 1.0 }))
        .collect();
    let mut rows = Vec::new();
    for top_k in [1, 2, 1000, 1365, 1366, 2000] {
        for top_p in [1.0, 0.2, 0.0] {
            let mut sampling = Sampling::default();
            let row = &mut sampling.row;
            (row.top_k, row.top_p, row.top, row.slot) = (top_k, top_p, 20, rows.len() as i32);
            row.key = u64::from(top_k);
            rows.push(sampling.clone());
        }
    }
    let mut greedy = Sampling {
        temperature: 0.0,
        ..Sampling::default()
    };
    greedy.row.slot = rows.len() as i32;
    rows.push(greedy);
    let mut comparison = Comparison::default();
    let all = logits.repeat(rows.len());
    compare(on, &all, vocab, &rows, &mut comparison)?;
    comparison.outcome()
}

/// Logits that are no numbers, or infinite.
pub(super) fn broken_numbers<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let vocab = 1000;
    let mut random = Random(12);
    let ordinary: Vec<f32> = random.numbers(vocab);
    let with = |change: &dyn Fn(&mut Vec<f32>)| {
        let mut logits = ordinary.clone();
        change(&mut logits);
        logits
    };
    let cases = [
        vec![f32::NAN; vocab],
        vec![f32::NEG_INFINITY; vocab],
        with(&|l| l[5] = f32::NAN),
        with(&|l| (l[5], l[900]) = (f32::INFINITY, f32::INFINITY)),
        with(&|l| l[3..].fill(f32::NEG_INFINITY)),
        with(&|l| (l[1], l[2]) = (f32::MAX, f32::MIN)),
        with(&|l| (l[1], l[2]) = (-0.0, 0.0)),
        vec![-0.0; vocab],
    ];
    let mut all = Vec::new();
    let mut rows = Vec::new();
    for logits in cases {
        for change in 0..6 {
            let mut sampling = Sampling::default();
            sampling.row.top = 20;
            sampling.row.target = 5;
            sampling.row.slot = rows.len() as i32;
            match change {
                1 => sampling.temperature = 0.0,
                2 => sampling.row.top_k = 10,
                3 => sampling.row.top_p = 0.9,
                4 => sampling.allowed = Some(vec![0; 40]),
                5 => sampling.row.slot = -1,
                _ => {}
            }
            all.extend_from_slice(&logits);
            rows.push(sampling);
        }
    }
    let mut comparison = Comparison::default();
    compare(on, &all, vocab, &rows, &mut comparison)?;
    comparison.outcome()
}

/// What pads a batch does nothing.
pub(super) fn padding<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let padding = Sampling {
        row: Row::default(),
        ..Sampling::default()
    };
    let outcome = sample(on, &[f32::NAN; 64], 64, &[padding])?;
    let mut comparison = Comparison::default();
    comparison.same(outcome.sampled[0].token, -1, || "token drawn".into());
    comparison.same(outcome.drawn[0], -5, || "slot of another row".into());
    comparison.outcome()
}

pub(super) fn token_counts<D: Device>(on: &Scratch<'_, D>, _: Scale) -> Outcome {
    let tokens = [3, 3, 1, -1, 9, 3, 1, 0, 10].into_iter();
    let tokens: Vec<i32> = tokens.cycle().take(900).collect();
    let (device, counts) = (on.array(&tokens)?, on.array(&[0u32; 10])?);
    let count = CountTokens {
        element: Element::F32,
        length: 900,
        prompt: 3,
        vocab: 10,
        counts: counts.memory(),
        tokens: device.memory(),
    };
    count.launch(on.device)?;
    let expected = [100, IN_PROMPT + 199, 0, IN_PROMPT + 298, 0, 0, 0, 0, 0, 100];
    let mut comparison = Comparison::default();
    for (token, (got, expected)) in on.values(&counts)?.into_iter().zip(expected).enumerate() {
        comparison.same(got, expected, || format!("count of token {token}"));
    }
    comparison.outcome()
}
