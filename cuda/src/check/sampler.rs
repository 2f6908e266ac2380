//! The worker's sampler for CPUs, sorting instead of selecting: what the device must draw.

use crate::sample::Row;

pub(super) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How a row is sampled, and what it would be in the memory of a device.
#[derive(Debug, Clone)]
pub(super) struct Sampling {
    pub(super) row: Row,
    pub(super) temperature: f32,
    pub(super) min_p: f32,
    pub(super) bias: Vec<(u32, f32)>,
    /// (token, whether it is in the prompt, how often it was generated)
    pub(super) counts: Vec<(u32, bool, u32)>,
    pub(super) allowed: Option<Vec<u32>>,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            row: Row {
                slot: 0,
                ..Row::default()
            },
            temperature: 1.0,
            min_p: 0.0,
            bias: Vec::new(),
            counts: Vec::new(),
            allowed: None,
        }
    }
}

pub(super) fn clean(logits: &[f32]) -> Vec<f32> {
    let clean = |x: &f32| {
        if x.is_nan() {
            f32::NEG_INFINITY
        } else {
            x.min(f32::MAX)
        }
    };
    logits.iter().map(clean).collect()
}

fn max(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The token drawn from clean logits.
pub(super) fn draw(sampling: &Sampling, logits: &[f32]) -> Option<u32> {
    let mut logits = logits.to_vec();
    let row = &sampling.row;
    for (token, value) in &sampling.bias {
        logits[*token as usize] += value;
    }
    for token in &row.stop_ids[..row.stop_count as usize] {
        logits[*token as usize] = f32::NEG_INFINITY;
    }
    for (token, _, generated) in &sampling.counts {
        let x = &mut logits[*token as usize];
        *x = if *x > 0.0 {
            *x / row.repetition
        } else {
            *x * row.repetition
        };
        *x -= row.frequency * *generated as f32;
        *x -= if *generated > 0 { row.presence } else { 0.0 };
    }
    if let Some(allowed) = &sampling.allowed {
        for (token, x) in logits.iter_mut().enumerate() {
            let word = allowed.get(token / 32).copied().unwrap_or(0);
            if word >> (token % 32) & 1 == 0 {
                *x = f32::NEG_INFINITY;
            }
        }
    }
    choose(sampling, &logits)
}

fn choose(sampling: &Sampling, logits: &[f32]) -> Option<u32> {
    let row = &sampling.row;
    let best = max(logits);
    if best == f32::NEG_INFINITY {
        return None;
    }
    if sampling.temperature == 0.0 {
        let first = logits.iter().position(|x| *x == best);
        return first.map(|i| i as u32);
    }
    let scale = (1.0 / sampling.temperature).min(f32::MAX);
    let scaled = |x: f32| if x == best { 0.0 } else { (x - best) * scale };
    let all = logits.iter().enumerate();
    let mut kept: Vec<(u32, f32)> = all.map(|(i, x)| (i as u32, scaled(*x))).collect();
    // What cannot be drawn at all never wins; the sampler keeps it where it does not rank.
    kept.retain(|(_, z)| *z > f32::NEG_INFINITY);
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if row.top_k > 0 {
        kept.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        let p = |z: f32| f64::from(z).exp();
        let total: f64 = kept.iter().map(|(_, z)| p(*z)).sum();
        let goal = f64::from(row.top_p) * total;
        let mut sum = 0.0;
        let reaches = |(_, z): &(u32, f32)| {
            sum += p(*z);
            sum >= goal
        };
        let count = kept.iter().position(reaches);
        kept.truncate(count.map_or(kept.len(), |i| i + 1));
    }
    if sampling.min_p > 0.0 {
        kept.retain(|(_, z)| *z >= sampling.min_p.ln());
    }
    winner(row.key, row.index, &kept)
}

fn winner(key: u64, index: u32, kept: &[(u32, f32)]) -> Option<u32> {
    let step = GOLDEN.wrapping_mul(u64::from(index) + 1);
    let stream = mix(mix(key.wrapping_add(GOLDEN)).wrapping_add(step));
    let mut best = (f64::NEG_INFINITY, None);
    for (token, z) in kept {
        let bits = mix(stream.wrapping_add(GOLDEN.wrapping_mul(u64::from(*token) + 1)));
        let u = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let arrival = f64::from(*z) - (-u.ln()).ln();
        if arrival > best.0 || best.1.is_none() {
            best = (arrival, Some(*token));
        }
    }
    best.1
}

/// Log-probabilities of all tokens, from clean logits.
pub(super) fn logprobs(logits: &[f32]) -> Vec<f64> {
    let best = f64::from(max(logits));
    let total: f64 = logits.iter().map(|x| (f64::from(*x) - best).exp()).sum();
    let log_total = best + total.ln();
    let of = |x: &f32| (f64::from(*x) - log_total).max(f64::from(f32::MIN));
    logits.iter().map(of).collect()
}

/// The `n` likeliest tokens, best first.
pub(super) fn top(logits: &[f32], n: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    tokens.retain(|t| logits[*t as usize] > f32::NEG_INFINITY);
    let value = |t: &u32| logits[*t as usize];
    tokens.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.cmp(b)));
    tokens.truncate(n);
    tokens
}
