//! Drawing tokens from logits, replayably.
//!
//! The order of operations is that of vLLM: bias, stop ids masked while too few tokens are
//! generated, penalties, temperature, top-k, top-p, min-p, draw. Log-probabilities are those of
//! the logits as the model gave them.
//!
//! A draw is an exponential race: token `i` with probability `p` arrives at time `E / p`, where
//! `E` is exponentially distributed, and the first to arrive is drawn; that is the Gumbel-max
//! trick in other words. `E` is a hash of (key, index of the draw, token id) alone. So the
//! outcome depends neither on the batch nor on the order in which candidates are looked at, and
//! small noise in the logits changes it only where two arrivals nearly coincide.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

use realm_shared::wire::{MAX_STOP_IDS, MAX_TOP_LOGPROBS, Sampling};

use crate::kernels::{log_sum_exp, max, sum_exp};
use crate::tenant::{Allowed, Draw};

thread_local! {
    /// Logits of which only some may be drawn.
    static MASKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Why a sequence cannot be opened.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplerError {
    /// A parameter is out of range.
    #[error("sampling parameter `{name}` is {value}")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// A token is outside of the vocabulary.
    #[error("{what} names token {token} in a vocabulary of {vocab}")]
    Token {
        /// Where.
        what: &'static str,
        /// The token.
        token: i64,
        /// Tokens of the vocabulary.
        vocab: usize,
    },
}

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// How often a token occurred.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    in_prompt: bool,
    generated: u32,
}

/// The sampling state of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    bias: Vec<(u32, f32)>,
    /// Empty unless there are penalties.
    counts: HashMap<u32, Count>,
    last: Option<u32>,
    /// Logits that were changed, and what they were.
    changed: Vec<(u32, f32)>,
}

impl Sampler {
    /// The state of a sequence whose prompt and output so far are `history` (needed only with
    /// penalties).
    ///
    /// # Errors
    /// If a parameter is out of range or a token outside of the vocabulary.
    pub fn new(
        sampling: Sampling,
        bias: impl Iterator<Item = (i32, f32)>,
        history: &[i32],
        vocab: usize,
    ) -> Result<Sampler, SamplerError> {
        check(&sampling)?;
        let token = |what, token: i32| match u32::try_from(token) {
            Ok(t) if (t as usize) < vocab => Ok(t),
            _ => Err(SamplerError::Token {
                what,
                token: token.into(),
                vocab,
            }),
        };
        for id in &sampling.stop_ids[..sampling.stop_count as usize] {
            token("stop_ids", i32::try_from(*id).unwrap_or(-1))?;
        }
        let bias = bias
            .map(|(id, value)| {
                let finite = value.is_finite();
                let error = SamplerError::Parameter {
                    name: "bias",
                    value: value.into(),
                };
                Ok((token("bias", id)?, finite.then_some(value).ok_or(error)?))
            })
            .collect::<Result<_, _>>()?;
        let mut counts: HashMap<u32, Count> = HashMap::new();
        if sampling.has_penalties() {
            for (i, id) in history.iter().enumerate() {
                let count = counts.entry(token("history", *id)?).or_default();
                if i < sampling.prompt_len as usize {
                    count.in_prompt = true;
                } else {
                    count.generated += 1;
                }
            }
        }
        Ok(Sampler {
            sampling,
            bias,
            counts,
            last: None,
            changed: Vec::new(),
        })
    }

    /// The token drawn last since the sequence was opened; token 0 stands for one that could not
    /// be drawn, or was not drawn yet where the gateway expects one.
    pub fn last(&self) -> Option<u32> {
        self.last
    }

    /// Alternatives to report, if log-probabilities are to be reported at all.
    pub fn top_logprobs(&self) -> Option<usize> {
        usize::try_from(self.sampling.top_logprobs).ok()
    }

    /// Draws the token with number `index`; None if no logit is a number. `logits` are clean and
    /// the same afterwards.
    pub fn draw(&mut self, logits: &mut [f32], index: u32) -> Option<u32> {
        self.draw_from(logits, index, &[], &Allowed::All, None)
    }

    /// Like [`draw`](Self::draw), as a tenant's code says; None if no logit that may be drawn is a
    /// number.
    pub fn draw_steered(&mut self, logits: &mut [f32], index: u32, steer: &Draw) -> Option<u32> {
        let (allowed, temperature) = (&steer.allowed, steer.temperature);
        self.draw_from(logits, index, &steer.bias, allowed, temperature)
    }

    fn draw_from(
        &mut self,
        logits: &mut [f32],
        index: u32,
        bias: &[(u32, f32)],
        allowed: &Allowed,
        temperature: Option<f32>,
    ) -> Option<u32> {
        self.change(logits, index, bias);
        let temperature = temperature.unwrap_or(self.sampling.temperature);
        let drawn = match allowed {
            Allowed::All => self.choose(logits, index, temperature),
            allowed => MASKED.with_borrow_mut(|masked| {
                mask(logits, allowed, masked);
                self.choose(masked, index, temperature)
            }),
        };
        // In reverse: a logit may have been changed more than once.
        for (token, value) in self.changed.drain(..).rev() {
            logits[token as usize] = value;
        }
        match drawn {
            Some(token) => self.take(token),
            None => self.skip(),
        }
        drawn
    }

    /// Takes a token that was not drawn, but follows all the same.
    pub fn take(&mut self, token: u32) {
        self.last = Some(token);
        if self.sampling.has_penalties() {
            self.counts.entry(token).or_default().generated += 1;
        }
    }

    /// There is no token. The gateway may have asked already for the one after it, which will have
    /// no meaning.
    pub fn skip(&mut self) {
        self.last = Some(0);
    }

    /// Applies bias, mask and penalties, and remembers what they replaced.
    fn change(&mut self, logits: &mut [f32], index: u32, more_bias: &[(u32, f32)]) {
        let Sampler {
            sampling,
            bias,
            counts,
            changed,
            ..
        } = self;
        changed.clear();
        let mut set = |token: u32, f: &dyn Fn(f32) -> f32| {
            let logit = &mut logits[token as usize];
            changed.push((token, *logit));
            *logit = f(*logit);
        };
        for (token, value) in bias.iter().chain(more_bias) {
            set(*token, &|x| x + value);
        }
        if index < sampling.min_tokens {
            for token in &sampling.stop_ids[..sampling.stop_count as usize] {
                set(*token, &|_| f32::NEG_INFINITY);
            }
        }
        for (token, count) in counts.iter() {
            set(*token, &|x| {
                let r = sampling.repetition_penalty;
                let x = if x > 0.0 { x / r } else { x * r };
                let x = x - sampling.frequency_penalty * count.generated as f32;
                x - if count.generated > 0 {
                    sampling.presence_penalty
                } else {
                    0.0
                }
            });
        }
    }

    fn choose(&self, logits: &[f32], index: u32, temperature: f32) -> Option<u32> {
        let best = max(logits);
        if best == f32::NEG_INFINITY {
            return None;
        }
        let s = &self.sampling;
        if temperature == 0.0 {
            let first = logits.iter().position(|x| *x == best);
            return first.map(|i| i as u32);
        }
        let race = Race::new(s.key, index);
        // Relative to the best, so that no temperature overflows.
        let scale = (1.0 / temperature).min(f32::MAX);
        let scaled = |x: f32| if x == best { 0.0 } else { (x - best) * scale };
        let all = || {
            logits
                .iter()
                .enumerate()
                .map(|(i, x)| (i as u32, scaled(*x)))
        };
        let keeps_all_ranks = s.top_k == 0 || s.top_k as usize >= logits.len();
        if keeps_all_ranks && s.top_p >= 1.0 {
            let floor = if s.min_p > 0.0 {
                s.min_p.ln()
            } else {
                f32::NEG_INFINITY
            };
            return race.winner(all().filter(|(_, z)| *z >= floor));
        }
        let mut kept: Vec<(u32, f32)>;
        let total: f64;
        if keeps_all_ranks {
            total = sum_exp(logits, best, scale);
            // What is less likely than an equal share of the tail cannot be in the nucleus: all
            // of it together is less than the tail.
            let share = f64::from(1.0 - s.top_p) / logits.len() as f64;
            let floor = (share * total).ln() as f32 - 1e-3;
            kept = all().filter(|(_, z)| *z >= floor).collect();
        } else {
            kept = top(all(), s.top_k as usize);
            total = kept.iter().map(|(_, z)| f64::from(*z).exp()).sum();
        }
        if s.top_p < 1.0 {
            let count = nucleus(&mut kept, f64::from(s.top_p) * total);
            kept.truncate(count);
        }
        if s.min_p > 0.0 {
            kept.retain(|(_, z)| *z >= s.min_p.ln());
        }
        race.winner(kept.into_iter())
    }
}

/// Copies the logits of the tokens that may be drawn; the others can no longer be.
fn mask(logits: &[f32], allowed: &Allowed, masked: &mut Vec<f32>) {
    masked.clear();
    masked.resize(logits.len(), f32::NEG_INFINITY);
    let mut keep = |token: usize| {
        if let (Some(to), Some(from)) = (masked.get_mut(token), logits.get(token)) {
            *to = *from;
        }
    };
    match allowed {
        Allowed::All => (0..logits.len()).for_each(keep),
        Allowed::Tokens(tokens) => tokens.iter().for_each(|token| keep(*token as usize)),
        Allowed::Mask(words) => {
            // There may be words of nothing behind those of the vocabulary.
            let words = words.iter().take(logits.len().div_ceil(32));
            for (at, word) in words.enumerate() {
                let mut rest = *word;
                while rest != 0 {
                    keep(at * 32 + rest.trailing_zeros() as usize);
                    rest &= rest - 1;
                }
            }
        }
    }
}

fn check(s: &Sampling) -> Result<(), SamplerError> {
    let bad = |name, value: f64| Err(SamplerError::Parameter { name, value });
    for (name, value, low, high) in [
        ("temperature", s.temperature, 0.0, f32::MAX),
        ("top_p", s.top_p, 0.0, 1.0),
        ("min_p", s.min_p, 0.0, 1.0),
        ("presence_penalty", s.presence_penalty, f32::MIN, f32::MAX),
        ("frequency_penalty", s.frequency_penalty, f32::MIN, f32::MAX),
        (
            "repetition_penalty",
            s.repetition_penalty,
            f32::MIN_POSITIVE,
            f32::MAX,
        ),
    ] {
        if !(low..=high).contains(&value) {
            return bad(name, value.into());
        }
    }
    if s.stop_count as usize > MAX_STOP_IDS {
        return bad("stop_count", s.stop_count.into());
    }
    if s.top_logprobs < -1 || s.top_logprobs > MAX_TOP_LOGPROBS as i32 {
        return bad("top_logprobs", s.top_logprobs.into());
    }
    Ok(())
}

/// Makes what a model with broken numbers gave safe to compare: NaN becomes the least likely,
/// infinity the largest number. False if nothing is left: the weights are broken, or what the
/// model computed overflowed its type.
#[must_use]
pub fn clean(logits: &mut [f32]) -> bool {
    for x in logits.iter_mut() {
        *x = if x.is_nan() {
            f32::NEG_INFINITY
        } else {
            x.min(f32::MAX)
        };
    }
    max(logits) != f32::NEG_INFINITY
}

/// Log-probabilities of one position, from clean logits.
pub struct Logprobs<'a> {
    logits: &'a [f32],
    log_total: f32,
}

impl<'a> Logprobs<'a> {
    /// Normalizes.
    pub fn new(logits: &'a [f32]) -> Logprobs<'a> {
        Logprobs {
            logits,
            log_total: log_sum_exp(logits),
        }
    }

    /// Of one token. Finite, so that it can be written as JSON.
    pub fn of(&self, token: u32) -> f32 {
        (self.logits[token as usize] - self.log_total).max(f32::MIN)
    }

    /// Of the `n` likeliest tokens, best first.
    pub fn top(&self, n: usize) -> Vec<Scored> {
        let all = self.logits.iter().enumerate().map(|(i, x)| (i as u32, *x));
        let best = top(all, n).into_iter();
        best.map(|(token, _)| Scored {
            token,
            logprob: self.of(token),
        })
        .collect()
    }
}

/// Best first; of equals, the lower token first.
fn rank(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Moves the likeliest candidates to the front, the fewest that together reach `goal`, and tells
/// how many they are: at least one, and all if they do not reach it.
///
/// Half of those in question are set apart by rank and summed until one is left, which for a flat
/// distribution over a large vocabulary is a fraction of the work of sorting it.
fn nucleus(candidates: &mut [(u32, f32)], goal: f64) -> usize {
    // `low` of them are too few; `high` are enough, or all.
    let (mut low, mut high, mut mass) = (0, candidates.len(), 0.0);
    while high - low > 1 {
        let half = (high - low) / 2;
        candidates[low..high].select_nth_unstable_by(half, rank);
        let likelier = candidates[low..low + half].iter();
        let sum: f64 = likelier.map(|(_, z)| f64::from(*z).exp()).sum();
        if mass + sum < goal {
            mass += sum;
            low += half;
        } else {
            high = low + half;
        }
    }
    high
}

/// The `n` best of candidates that come in the order of their tokens, sorted. Candidates below
/// the worst of the `n` best so far are dropped at once, so that a vocabulary costs little more
/// than a comparison each.
fn top(candidates: impl Iterator<Item = (u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let room = 4 * n + 32;
    let mut kept: Vec<(u32, f32)> = Vec::new();
    let mut floor = f32::NEG_INFINITY;
    for candidate in candidates {
        // An equal one with a higher token ranks below what is kept.
        if candidate.1 > floor {
            kept.push(candidate);
            if kept.len() == room {
                kept.select_nth_unstable_by(n - 1, rank);
                kept.truncate(n);
                floor = kept[n - 1].1;
            }
        }
    }
    kept.sort_unstable_by(rank);
    kept.truncate(n);
    kept
}

/// The arrival times of one draw.
struct Race {
    stream: u64,
}

/// Steps of the sequence that SplitMix64 hashes (Steele, Lea and Flood, 2014).
pub(crate) const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Race {
    fn new(key: u64, index: u32) -> Race {
        let step = GOLDEN.wrapping_mul(u64::from(index) + 1);
        Race {
            stream: mix(mix(key.wrapping_add(GOLDEN)).wrapping_add(step)),
        }
    }

    /// 64 random bits of a token.
    fn bits(&self, token: u32) -> u64 {
        mix(self
            .stream
            .wrapping_add(GOLDEN.wrapping_mul(u64::from(token) + 1)))
    }

    /// The token drawn, of candidates with their log-probabilities up to a constant; None if
    /// there are no candidates.
    fn winner(&self, candidates: impl Iterator<Item = (u32, f32)>) -> Option<u32> {
        let mut best = (f64::NEG_INFINITY, None);
        for (token, z) in candidates {
            let bits = self.bits(token);
            // With u = bits / 2^64 the token arrives at -ln(u) / p, so the first arrival has the
            // highest z - ln(-ln u). As -ln u > 1 - u >= 2^-(leading ones + 1), this is a bound
            // that spares all but a few candidates the logarithms.
            let bound = (f64::from(bits.leading_ones()) + 1.0) * std::f64::consts::LN_2;
            if f64::from(z) + bound <= best.0 {
                continue;
            }
            let u = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            let arrival = f64::from(z) - (-u.ln()).ln();
            if arrival > best.0 || best.1.is_none() {
                best = (arrival, Some(token));
            }
        }
        best.1
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
