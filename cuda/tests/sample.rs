//! That the device draws the tokens that the worker's sampler draws.

mod common;
#[path = "common/sampler.rs"]
mod sampler;

use common::{Number, Random, for_all_types};
use realm_cuda::sample::{
    Bias, CountTokens, IN_PROMPT, MOST_TOP, Row, Sample, Sampled, min_p_floor, scale,
};
use realm_cuda_emulator::{Buffer, Emulator};
use sampler::Sampling;

/// What the device makes of rows: the results, the tokens of the slots, and the counts.
struct Outcome {
    sampled: Vec<Sampled>,
    drawn: Vec<i32>,
    counts: Vec<Option<Buffer<u32>>>,
}

fn sample<T: Number>(logits: &[T], vocab: usize, rows: &[Sampling]) -> Outcome {
    let emulator = Emulator::new();
    let counts = rows.iter().map(|sampling| {
        let mut counts = vec![0; vocab];
        for (token, in_prompt, generated) in &sampling.counts {
            counts[*token as usize] = generated | if *in_prompt { IN_PROMPT } else { 0 };
        }
        (!sampling.counts.is_empty()).then(|| Buffer::of(&counts))
    });
    let counts: Vec<_> = counts.collect();
    let allowed = rows
        .iter()
        .map(|sampling| sampling.allowed.as_deref().map(Buffer::of));
    let allowed: Vec<_> = allowed.collect();
    let biases = rows.iter().map(|sampling| {
        let bias = |(token, value): &(u32, f32)| Bias {
            token: *token,
            value: *value,
        };
        Buffer::of(&sampling.bias.iter().map(bias).collect::<Vec<_>>())
    });
    let biases: Vec<_> = biases.collect();
    let device_rows = rows.iter().enumerate().map(|(i, sampling)| Row {
        counts: counts[i].as_ref().map_or(0, |b| b.memory().address()),
        allowed: allowed[i].as_ref().map_or(0, |b| b.memory().address()),
        allowed_words: sampling.allowed.as_ref().map_or(0, Vec::len) as u32,
        bias: biases[i].memory().address(),
        bias_count: sampling.bias.len() as u32,
        scale: scale(sampling.temperature),
        min_p_floor: min_p_floor(sampling.min_p),
        ..sampling.row
    });
    let device_rows = Buffer::of(&device_rows.collect::<Vec<_>>());
    let device_logits = Buffer::of(logits);
    let adjusted = Buffer::<f32>::new(rows.len() * vocab);
    let out = Buffer::<Sampled>::new(rows.len());
    let drawn = Buffer::of(&vec![-5; rows.len()]);
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
    sample.launch(&emulator).expect("launched");
    Outcome {
        sampled: out.values().to_vec(),
        drawn: drawn.values().to_vec(),
        counts,
    }
}

/// Samples rows of logits and sees that all of it is what the worker's sampler gives.
fn check<T: Number>(logits: &[T], vocab: usize, rows: &[Sampling]) {
    let outcome = sample(logits, vocab, rows);
    for (i, sampling) in rows.iter().enumerate() {
        let raw: Vec<f32> = logits[i * vocab..][..vocab]
            .iter()
            .map(|x| x.value())
            .collect();
        let clean = sampler::clean(&raw);
        let numbers = clean.iter().any(|x| *x > f32::NEG_INFINITY);
        let (got, row) = (&outcome.sampled[i], &sampling.row);
        let expected = if row.slot >= 0 && numbers {
            sampler::draw(sampling, &clean)
        } else {
            None
        };
        let token = u32::try_from(got.token).ok();
        assert_eq!(token, expected, "row {i}: {sampling:?}");
        assert_eq!(got.numbers != 0, numbers, "row {i}");
        if row.slot >= 0 {
            let drawn = expected.map_or(0, u32::cast_signed);
            assert_eq!(outcome.drawn[row.slot as usize], drawn, "row {i}");
        }
        if let Some(counts) = &outcome.counts[i] {
            for (token, in_prompt, generated) in &sampling.counts {
                let count = counts.values()[*token as usize];
                let now = generated + u32::from(expected == Some(*token));
                assert_eq!(
                    (count & IN_PROMPT != 0, count & !IN_PROMPT),
                    (*in_prompt, now)
                );
            }
        }
        if !numbers {
            continue;
        }
        let exact = sampler::logprobs(&clean);
        let close = |got: f32, token: u32| {
            let exact = exact[token as usize];
            let margin = 2e-6 + exact.abs() * 1e-6;
            assert!(
                (f64::from(got) - exact).abs() <= margin,
                "{got}, not {exact}"
            );
            assert!(got.is_finite());
        };
        if let Some(token) = expected.filter(|_| row.top >= 0) {
            close(got.logprob, token);
        }
        if row.target >= 0 {
            close(got.target_logprob, row.target.cast_unsigned());
        }
        let top = sampler::top(&clean, row.top.max(0) as usize);
        assert_eq!(got.top_tokens[..got.top_count as usize], top, "row {i}");
        for (token, logprob) in top.into_iter().zip(got.top_logprobs) {
            close(logprob, token);
        }
    }
}

/// Logits as models have them: a few likely tokens, and many unlikely ones.
fn logits<T: Number>(random: &mut Random, vocab: usize) -> Vec<T> {
    let spread = [0.01, 1.0, 3.0, 8.0][random.below(4)];
    (0..vocab)
        .map(|_| T::of(random.normal() * spread + 5.0))
        .collect()
}

fn sampling(random: &mut Random, vocab: usize, slot: usize) -> Sampling {
    let pick = |random: &mut Random, values: &[f32]| values[random.below(values.len())];
    let token = |random: &mut Random| random.below(vocab) as u32;
    let mut sampling = Sampling {
        temperature: pick(random, &[0.0, 1e-30, 0.3, 0.7, 1.0, 1.0, 1.5, 1e6]),
        min_p: pick(random, &[0.0, 0.0, 0.02, 0.5, 1.0]),
        ..Sampling::default()
    };
    let row = &mut sampling.row;
    row.slot = slot as i32;
    row.key = random.bits();
    row.index = random.below(1000) as u32;
    row.top_k = [
        0,
        0,
        0,
        1,
        2,
        40,
        1000,
        vocab as u32 - 1,
        vocab as u32,
        1 << 31,
    ][random.below(10)];
    row.top_p = pick(random, &[1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.99, 0.9999]);
    row.top = [-1, 0, 1, 5, MOST_TOP as i32][random.below(5)];
    row.target = [-1, token(random).cast_signed()][random.below(2)];
    if random.below(3) == 0 {
        row.stop_count = 1 + random.below(8) as u32;
        row.stop_ids = std::array::from_fn(|_| token(random));
    }
    if random.below(3) == 0 {
        row.presence = pick(random, &[0.0, 0.5, -2.0]);
        row.frequency = pick(random, &[0.0, 0.1, -0.3]);
        row.repetition = pick(random, &[1.0, 1.3, 0.5]);
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
                pick(random, &[-100.0, 5.0, 0.3, 30.0]),
            )
        };
        sampling.bias = (0..random.below(100)).map(|_| bias(random)).collect();
    }
    if random.below(4) == 0 {
        let words = vocab.div_ceil(32) - random.below(2).min(vocab / 64);
        let dense = random.below(2) == 0;
        let word = |random: &mut Random| {
            let bits = random.bits();
            (if dense {
                bits
            } else {
                bits & (bits >> 20) & (bits >> 40)
            }) as u32
        };
        sampling.allowed = Some((0..words).map(|_| word(random)).collect());
    }
    sampling
}

#[test]
fn draws_are_those_of_the_cpu() {
    fn of<T: Number>() {
        let mut random = Random(T::ELEMENT.size() as u64);
        // Whole vectors in a row, and none; fewer than there are threads; as many as models have.
        for (vocab, rows) in [
            (8, 40),
            (333, 40),
            (1000, 40),
            (5003, 20),
            (49_152, 6),
            (128_256, 3),
        ] {
            let all = (0..rows).flat_map(|_| logits::<T>(&mut random, vocab));
            let all: Vec<T> = all.collect();
            let rows: Vec<_> = (0..rows).map(|i| sampling(&mut random, vocab, i)).collect();
            check(&all, vocab, &rows);
        }
    }
    for_all_types!(of);
}

#[test]
fn each_filter_is_right_on_its_own() {
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
    let all = logits.repeat(rows.len());
    check(&all, vocab, &rows);
    // They do something at all.
    let outcome = sample(&all, vocab, &rows);
    let token = |i: usize| outcome.sampled[i].token;
    let distinct = |range: std::ops::Range<usize>| {
        let tokens: std::collections::BTreeSet<_> = range.map(token).collect();
        tokens.len()
    };
    assert!(distinct(0..12) > 6);
    assert!((2..=3).contains(&distinct(12..24)));
    assert!((72..84).all(|i| [32, 33, 35].contains(&token(i))));
    assert!((84..96).all(|i| token(i) == 4));
}

#[test]
fn ties_go_to_the_lower_token() {
    let vocab = 4096;
    // All alike but for two groups; bf16 logits are like this.
    let logits: Vec<half::bf16> = (0..vocab)
        .map(|i| half::bf16::from_f32(if i % 3 == 1 { 2.0 } else { 1.0 }))
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
    check(&logits.repeat(rows.len()), vocab, &rows);
}

#[test]
fn broken_numbers_are_survived() {
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
        with(&|l| l.iter_mut().skip(3).for_each(|x| *x = f32::NEG_INFINITY)),
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
    check(&all, vocab, &rows);
}

#[test]
fn what_pads_a_batch_does_nothing() {
    let outcome = sample(
        &[f32::NAN; 64],
        64,
        &[Sampling {
            row: Row::default(),
            ..Sampling::default()
        }],
    );
    assert_eq!(outcome.sampled[0].token, -1);
    assert_eq!(outcome.drawn, [-5]);
}

#[test]
fn tokens_are_counted() {
    let tokens: Vec<i32> = [3, 3, 1, -1, 9, 3, 1, 0, 10]
        .into_iter()
        .cycle()
        .take(900)
        .collect();
    let (device, counts) = (Buffer::of(&tokens), Buffer::of(&[0u32; 10]));
    let count = CountTokens {
        element: realm_cuda::Element::F32,
        length: 900,
        prompt: 3,
        vocab: 10,
        counts: counts.memory(),
        tokens: device.memory(),
    };
    count.launch(&Emulator::new()).expect("launched");
    let expected = [100, IN_PROMPT + 199, 0, IN_PROMPT + 298, 0, 0, 0, 0, 0, 100];
    assert_eq!(counts.values(), expected);
}
