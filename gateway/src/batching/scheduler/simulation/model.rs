//! The simulated language model, and what it makes of a sequence on its own.

use realm_shared::wire::Sampling;

use crate::batching::sequence::{Sequence, TokenLogprobs};

/// Tokens of the simulated model.
pub(in super::super) const VOCAB: u32 = 40;

pub(in crate::batching::scheduler) fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What is written at a position, given the fold of all cells before it.
pub(super) fn cell(before: u64, token: u32, position: usize) -> u64 {
    mix(mix(before, u64::from(token)), position as u64)
}

pub(super) fn score(state: u64, token: u32) -> f32 {
    -((mix(state, u64::from(token)) % 1000) as f32) / 100.0
}

/// Whether the model gives no number here, as one that overflows its type.
pub(super) fn overflows(state: u64) -> bool {
    mix(state, 0xbad).is_multiple_of(256)
}

/// The `count` best tokens, best first.
pub(super) fn best(state: u64, count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<_> = (0..VOCAB)
        .map(|token| (token, score(state, token)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

fn stop_ids(sampling: &Sampling) -> &[u32] {
    &sampling.stop_ids[..sampling.stop_count as usize]
}

pub(super) fn draw(
    state: u64,
    sampling: &Sampling,
    bias: &[(u32, f32)],
    history: &[u32],
    index: u32,
) -> u32 {
    let mut hash = mix(mix(state, sampling.key), u64::from(index));
    for &(token, value) in bias {
        hash = mix(hash, mix(u64::from(token), u64::from(value.to_bits())));
    }
    if sampling.has_penalties() {
        hash = mix(hash, u64::from(sampling.prompt_len));
        hash = history
            .iter()
            .fold(hash, |hash, &token| mix(hash, u64::from(token)));
    }
    let mut token = (hash % u64::from(VOCAB)) as u32;
    while index < sampling.min_tokens && stop_ids(sampling).contains(&token) {
        token = (token + 1) % VOCAB;
    }
    token
}

/// What a program plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    Draw,
    Stop,
    Fail,
}

/// What the program of a steered sequence plans for the token with this number.
pub(super) fn plan_of(sampling: &Sampling, index: u32) -> Plan {
    match mix(mix(sampling.key, 0x57ee), u64::from(index)) % 32 {
        0 => Plan::Stop,
        1 => Plan::Fail,
        _ => Plan::Draw,
    }
}

/// What a sequence must come to, computed in one line, without blocks, batches or limits.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) prompt: Vec<TokenLogprobs>,
    pub(super) tokens: Vec<(u32, Option<TokenLogprobs>)>,
    pub(super) stops: bool,
    /// Its program fails.
    pub(super) fails: bool,
    /// It fails behind these scores and tokens, for want of a number.
    pub(super) overflows: bool,
}

pub(super) fn reference(sequence: &Sequence) -> Reference {
    let mut sampling = sequence.sampling;
    sampling.prompt_len = sequence.prompt.len() as u32;
    let top = sampling.top_logprobs.max(0) as usize;
    let logprobs = |state, token| TokenLogprobs {
        logprob: score(state, token),
        top: best(state, top),
    };
    let (mut state, mut history) = (0, Vec::new());
    let mut result = Reference {
        prompt: Vec::new(),
        tokens: Vec::new(),
        stops: false,
        fails: false,
        overflows: false,
    };
    for (position, &token) in sequence.prompt.iter().enumerate() {
        if position > 0 && sequence.prompt_logprobs {
            if overflows(state) {
                result.overflows = true;
                return result;
            }
            result.prompt.push(logprobs(state, token));
        }
        state = mix(state, cell(state, token, position));
        history.push(token);
    }
    for index in 0..sequence.max_tokens {
        if overflows(state) {
            result.overflows = true;
            break;
        }
        if sequence.steering.is_some() {
            let plan = plan_of(&sampling, index);
            (result.stops, result.fails) = (plan == Plan::Stop, plan == Plan::Fail);
            if plan != Plan::Draw {
                break;
            }
        }
        let token = draw(state, &sampling, &sequence.bias, &history, index);
        let reported = (sampling.top_logprobs >= 0).then(|| logprobs(state, token));
        result.tokens.push((token, reported));
        if index >= sampling.min_tokens && stop_ids(&sampling).contains(&token) {
            result.stops = true;
            break;
        }
        state = mix(state, cell(state, token, history.len()));
        history.push(token);
    }
    result
}
