use proptest::prelude::*;

use super::*;

fn plain() -> Sampling {
    Sampling::default()
}

fn sampler(sampling: Sampling, bias: &[(i32, f32)], history: &[i32]) -> Sampler {
    Sampler::new(sampling, bias.iter().copied(), history, 1000).expect("valid")
}

/// Draws `n` tokens with indices from 0 on and counts them.
fn counts(sampling: Sampling, logits: &[f32], n: u32) -> Vec<u32> {
    let mut sampler = sampler(sampling, &[], &[]);
    let mut counts = vec![0; logits.len()];
    let mut logits = logits.to_vec();
    for index in 0..n {
        counts[sampler.draw(&mut logits, index).expect("drawn") as usize] += 1;
    }
    counts
}

/// Whether counts are plausible for these probabilities. The limits are quantiles of the
/// chi-square distribution that a right sampler exceeds once in ten thousand seeds; the seeds
/// here are fixed.
fn assert_plausible(counts: &[u32], probabilities: &[f64]) {
    let n = f64::from(counts.iter().sum::<u32>());
    let mut statistic = 0.0;
    let mut freedom = -1i32;
    for (count, p) in counts.iter().zip(probabilities) {
        if *p == 0.0 {
            assert_eq!(*count, 0, "drawn against probability 0");
        } else {
            statistic += (f64::from(*count) - n * p).powi(2) / (n * p);
            freedom += 1;
        }
    }
    // Wilson and Hilferty's approximation of the quantile.
    let k = f64::from(freedom);
    let limit = k * (1.0 - 2.0 / (9.0 * k) + 3.719 * (2.0 / (9.0 * k)).sqrt()).powi(3);
    assert!(
        statistic < limit,
        "chi-square {statistic} with {freedom} degrees: {counts:?}"
    );
}

fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let weights: Vec<f64> = logits
        .iter()
        .map(|x| (f64::from(*x) / temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

const LOGITS: [f32; 8] = [0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.25];

#[test]
fn draws_follow_the_distribution() {
    for key in [0, 1, 7, u64::MAX] {
        for temperature in [0.5, 1.0, 1.7] {
            let sampling = Sampling {
                key,
                temperature,
                ..plain()
            };
            let expected = softmax(&LOGITS, f64::from(temperature));
            assert_plausible(&counts(sampling, &LOGITS, 20_000), &expected);
        }
    }
}

#[test]
fn draws_of_neighbouring_keys_and_indices_are_independent() {
    // The same index under keys 0, 1, 2, ...
    let mut drawn = vec![0; LOGITS.len()];
    // Pairs of draws that follow each other under one key.
    let mut pairs = vec![0; 16];
    let mut logits = LOGITS;
    let mut even = [0.0; 4];
    for key in 0..20_000 {
        let mut s = sampler(Sampling { key, ..plain() }, &[], &[]);
        drawn[s.draw(&mut logits, 3).expect("drawn") as usize] += 1;
        let a = s.draw(&mut even, 0).expect("drawn");
        let b = s.draw(&mut even, 1).expect("drawn");
        pairs[(a * 4 + b) as usize] += 1;
    }
    assert_plausible(&drawn, &softmax(&LOGITS, 1.0));
    assert_plausible(&pairs, &[1.0 / 16.0; 16]);
}

#[test]
fn filters_keep_what_they_should() {
    // Probabilities 0.4, 0.3, 0.2, 0.1, not in order.
    let logits = [0.2f32, 0.4, 0.1, 0.3].map(f32::ln);
    for (changes, expected) in [
        (
            Sampling {
                top_k: 1,
                ..plain()
            },
            [0.0, 1.0, 0.0, 0.0],
        ),
        (
            Sampling {
                top_k: 2,
                ..plain()
            },
            [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        ),
        (
            Sampling {
                top_k: 4,
                ..plain()
            },
            [0.2, 0.4, 0.1, 0.3],
        ),
        (
            Sampling {
                top_k: 99,
                ..plain()
            },
            [0.2, 0.4, 0.1, 0.3],
        ),
        (
            Sampling {
                top_p: 0.0,
                ..plain()
            },
            [0.0, 1.0, 0.0, 0.0],
        ),
        (
            Sampling {
                top_p: 0.39,
                ..plain()
            },
            [0.0, 1.0, 0.0, 0.0],
        ),
        (
            Sampling {
                top_p: 0.41,
                ..plain()
            },
            [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        ),
        (
            Sampling {
                top_p: 0.89,
                ..plain()
            },
            [2.0 / 9.0, 4.0 / 9.0, 0.0, 3.0 / 9.0],
        ),
        (
            Sampling {
                top_p: 0.91,
                ..plain()
            },
            [0.2, 0.4, 0.1, 0.3],
        ),
        (
            Sampling {
                min_p: 0.26,
                ..plain()
            },
            [2.0 / 9.0, 4.0 / 9.0, 0.0, 3.0 / 9.0],
        ),
        (
            Sampling {
                min_p: 1.0,
                ..plain()
            },
            [0.0, 1.0, 0.0, 0.0],
        ),
        // Of three kept by rank, 0.5 of their mass is 4/9 and the next.
        (
            Sampling {
                top_k: 3,
                top_p: 0.5,
                ..plain()
            },
            [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        ),
        (
            Sampling {
                top_k: 3,
                top_p: 0.9,
                min_p: 0.6,
                ..plain()
            },
            [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0],
        ),
    ] {
        let counts = counts(changes, &logits, 4000);
        let kept: Vec<bool> = counts.iter().map(|c| *c > 0).collect();
        assert_eq!(kept, expected.map(|p| p > 0.0), "{changes:?}");
        if kept.iter().filter(|k| **k).count() > 1 {
            assert_plausible(&counts, &expected);
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let mut s = sampler(
        Sampling {
            temperature: 0.0,
            ..plain()
        },
        &[],
        &[],
    );
    assert_eq!(s.draw(&mut [1.0, 3.0, 2.0, 3.0, 3.0], 0), Some(1));
    let top = Logprobs::new(&[1.0, 3.0, 2.0, 3.0, 3.0]).top(4);
    assert_eq!(
        top.iter().map(|t| t.token).collect::<Vec<_>>(),
        [1, 3, 4, 2]
    );
    // Equals at the edge of top-k: the lower ids are in.
    let counts = counts(
        Sampling {
            top_k: 2,
            ..plain()
        },
        &[5.0; 100],
        500,
    );
    assert!(counts[0] > 0 && counts[1] > 0 && counts[2..].iter().all(|c| *c == 0));
}

#[test]
fn penalties_are_those_of_the_hand_calculation() {
    let sampling = Sampling {
        temperature: 0.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        repetition_penalty: 2.0,
        prompt_len: 3,
        ..plain()
    };
    // Prompt 0, 1, 1; generated 1, 2, 2.
    let mut s = sampler(sampling, &[(3, 1.5)], &[0, 1, 1, 1, 2, 2]);
    let mut logits = [4.0, -1.0, 3.0, 1.0, 0.0];
    s.change(&mut logits, 0, &[]);
    // 0: 4/2. 1: -1*2 - 0.25 - 0.5. 2: 3/2 - 2*0.25 - 0.5. 3: biased, never seen.
    assert_eq!(logits, [2.0, -2.75, 0.5, 2.5, 0.0]);
    // A drawn token counts from then on.
    let mut logits = [4.0, -1.0, 3.0, 1.0, 0.0];
    assert_eq!(s.draw(&mut logits, 0), Some(3));
    assert_eq!(
        logits,
        [4.0, -1.0, 3.0, 1.0, 0.0],
        "logits are the same afterwards"
    );
    s.change(&mut logits, 1, &[]);
    assert_eq!(logits[3], 2.5 / 2.0 - 0.25 - 0.5);
}

#[test]
fn without_penalties_no_history_is_kept() {
    let mut s = sampler(plain(), &[], &[1, 2, 3]);
    s.draw(&mut [0.0; 10], 0).expect("drawn");
    assert!(s.counts.is_empty());
}

#[test]
fn bias_forces_and_forbids() {
    let greedy = Sampling {
        temperature: 0.0,
        ..plain()
    };
    assert_eq!(
        sampler(greedy, &[(2, 100.0)], &[]).draw(&mut [9.0, 5.0, -20.0], 0),
        Some(2)
    );
    assert_eq!(
        sampler(greedy, &[(0, -100.0)], &[]).draw(&mut [9.0, 5.0, -20.0], 0),
        Some(1)
    );
    let mut forced = sampler(plain(), &[(2, 100.0)], &[]);
    assert!((0..200).all(|i| forced.draw(&mut [9.0, 5.0, -20.0], i) == Some(2)));
}

#[test]
fn stop_ids_wait_for_the_minimum() {
    let mut sampling = Sampling {
        temperature: 0.0,
        min_tokens: 2,
        stop_count: 2,
        ..plain()
    };
    sampling.stop_ids[..2].copy_from_slice(&[0, 1]);
    let mut s = sampler(sampling, &[(0, 100.0)], &[]);
    let mut logits = [3.0, 2.0, 1.0];
    assert_eq!(s.draw(&mut logits, 0), Some(2));
    assert_eq!(s.draw(&mut logits, 1), Some(2));
    assert_eq!(s.draw(&mut logits, 2), Some(0));
    assert_eq!(logits, [3.0, 2.0, 1.0]);
}

#[test]
fn extremes_neither_panic_nor_poison() {
    for temperature in [0.0, 1e-38, 1.0, 1e38] {
        for (top_k, top_p, min_p) in [(0, 1.0, 0.0), (2, 0.9, 0.1), (0, 0.5, 0.0)] {
            let sampling = Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                ..plain()
            };
            let mut logits = [f32::NAN, 1e30, f32::INFINITY, -1e38, f32::NEG_INFINITY];
            assert!(clean(&mut logits), "there are numbers");
            let token = sampler(sampling, &[(1, 3e38)], &[])
                .draw(&mut logits, 0)
                .expect("drawn");
            assert!(
                token < 4 && token != 0,
                "{token} at temperature {temperature}"
            );
            assert!(
                Logprobs::new(&logits)
                    .top(5)
                    .iter()
                    .all(|t| t.logprob.is_finite())
            );
        }
    }
}

#[test]
fn where_no_logit_is_a_number_nothing_is_drawn() {
    let mut logits = [f32::NAN, f32::NEG_INFINITY];
    assert!(!clean(&mut logits));
    for (temperature, top_k) in [(0.0, 0), (1.0, 0), (1.0, 1)] {
        let sampling = Sampling {
            temperature,
            top_k,
            ..plain()
        };
        let mut s = sampler(sampling, &[], &[]);
        assert_eq!((s.draw(&mut logits, 0), s.last()), (None, Some(0)));
    }
}

#[test]
fn nonsense_is_refused_by_name() {
    let open = |s: Sampling, bias: &[(i32, f32)], history: &[i32]| {
        let sampler = Sampler::new(s, bias.iter().copied(), history, 10);
        sampler.expect_err("invalid").to_string()
    };
    for (sampling, name) in [
        (
            Sampling {
                temperature: -1.0,
                ..plain()
            },
            "`temperature` is -1",
        ),
        (
            Sampling {
                temperature: f32::NAN,
                ..plain()
            },
            "`temperature` is NaN",
        ),
        (
            Sampling {
                top_p: 1.5,
                ..plain()
            },
            "`top_p` is 1.5",
        ),
        (
            Sampling {
                min_p: -0.5,
                ..plain()
            },
            "`min_p` is -0.5",
        ),
        (
            Sampling {
                repetition_penalty: 0.0,
                ..plain()
            },
            "`repetition_penalty` is 0",
        ),
        (
            Sampling {
                presence_penalty: f32::INFINITY,
                ..plain()
            },
            "`presence_penalty` is inf",
        ),
        (
            Sampling {
                stop_count: 9,
                ..plain()
            },
            "`stop_count` is 9",
        ),
        (
            Sampling {
                top_logprobs: 21,
                ..plain()
            },
            "`top_logprobs` is 21",
        ),
    ] {
        let message = open(sampling, &[], &[]);
        assert!(message.contains(name), "{message}");
    }
    assert!(open(plain(), &[(10, 1.0)], &[]).contains("bias names token 10"));
    assert!(open(plain(), &[(1, f32::NAN)], &[]).contains("`bias` is NaN"));
    let penalized = Sampling {
        presence_penalty: 1.0,
        ..plain()
    };
    assert!(open(penalized, &[], &[-1]).contains("history names token -1"));
}

#[test]
fn the_hash_is_what_it_always_was() {
    // A change here would break sequences that are resumed by a newer worker.
    let race = Race::new(42, 7);
    assert_eq!(
        (race.bits(0), race.bits(1)),
        (0x020a_28ed_9e2b_2bc4, 0x17e0_3160_b634_5c52)
    );
}

/// What `choose` does, by definition: sort everything, cut, race.
fn by_definition(s: &Sampling, logits: &[f32], index: u32) -> u32 {
    let best = max(logits);
    let mut all: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .map(|(i, x)| (i as u32, (x - best) * (1.0 / s.temperature)))
        .collect();
    all.sort_by(rank);
    if s.top_k > 0 {
        all.truncate(s.top_k as usize);
    }
    let total: f64 = all.iter().map(|(_, z)| f64::from(*z).exp()).sum();
    let mut mass = 0.0;
    all.retain(|(_, z)| {
        let keep = mass < f64::from(s.top_p) * total || s.top_p >= 1.0 || mass == 0.0;
        mass += f64::from(*z).exp();
        keep
    });
    all.retain(|(_, z)| s.min_p == 0.0 || *z >= s.min_p.ln());
    let race = Race::new(s.key, index);
    let arrival = |(token, z): &(u32, f32)| {
        let u = ((race.bits(*token) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        f64::from(*z) - (-u.ln()).ln()
    };
    all.iter()
        .max_by(|a, b| arrival(a).total_cmp(&arrival(b)))
        .expect("one")
        .0
}

proptest! {
    /// Shortcuts (bounds, thresholds, partial selection) change nothing.
    #[test]
    fn draws_are_what_the_definition_says(
        logits in prop::collection::vec(-12.0f32..12.0, 1..400),
        key: u64,
        index in 0u32..1000,
        temperature in 0.05f32..3.0,
        top_k in prop_oneof![Just(0u32), 1u32..60],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..0.99],
        min_p in prop_oneof![Just(0.0f32), 0.001f32..0.5],
    ) {
        let sampling = Sampling { key, temperature, top_k, top_p, min_p, ..plain() };
        let mut copy = logits.clone();
        let drawn = sampler(sampling, &[], &[]).draw(&mut copy, index).expect("drawn");
        prop_assert_eq!(drawn, by_definition(&sampling, &logits, index));
        prop_assert_eq!(copy, logits);
    }

    /// Dropping candidates early loses none of the best.
    #[test]
    fn the_best_of_many_is_found(
        values in prop::collection::vec(-50.0f32..50.0, 1..3000),
        n in 1usize..60,
    ) {
        let mut all: Vec<(u32, f32)> =
            values.iter().enumerate().map(|(i, x)| (i as u32, x.round())).collect();
        let found = top(all.clone().into_iter(), n);
        all.sort_by(rank);
        all.truncate(n);
        prop_assert_eq!(found, all);
    }
}
