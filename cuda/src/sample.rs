//! Drawing tokens from logits, as the worker's sampler for CPUs does it.

use bytemuck::{NoUninit, Pod, Zeroable};

use crate::catalogue::{Source, source};
use crate::launch::{Check, run};
use crate::{Element, Kernel, LaunchError, Launcher, Memory, Unit};

const SOURCE: Source = source!("sample.cu");
const SAMPLE: &str = "sample";
const COUNT_TOKENS: &str = "count_tokens";
/// Of a row's block.
const THREADS: u32 = 1024;
const COUNT_THREADS: usize = 256;

/// Most stop ids of a row.
pub const STOP_IDS: usize = 8;
/// Most alternatives that a row reports.
pub const MOST_TOP: usize = 20;
/// Set in the count of a token that is in the prompt; the other bits say how often it was generated.
pub const IN_PROMPT: u32 = 1 << 31;

pub(crate) fn kernels() -> Vec<Kernel> {
    Kernel::of_all(SOURCE, &[SAMPLE, COUNT_TOKENS])
}

/// What is added to the logit of a token.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Bias {
    /// The token; one outside of the vocabulary has no effect.
    pub token: u32,
    /// What is added.
    pub value: f32,
}

/// How one row is sampled, as the device reads it. Whoever fills it in vouches for its addresses: each is that of
/// device memory as long as said, or 0.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Row {
    /// Key of the random numbers.
    pub key: u64,
    /// A count per token of the vocabulary, to which the drawn one is added; 0 without penalties.
    pub counts: u64,
    /// A bit per token that may be drawn, in `allowed_words` words; 0 if all may.
    pub allowed: u64,
    /// `bias_count` of [`Bias`], added in their order.
    pub bias: u64,
    /// How many.
    pub bias_count: u32,
    /// How many words; tokens beyond them cannot be drawn.
    pub allowed_words: u32,
    /// Number of the draw.
    pub index: u32,
    /// Whose draw it is; -1 draws nothing.
    pub slot: i32,
    /// A token whose log-probability is wanted; -1 if none.
    pub target: i32,
    /// Alternatives wanted; -1 if not even the drawn token's log-probability is.
    pub top: i32,
    /// What logits are multiplied with, see [`scale`].
    pub scale: f32,
    /// Smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// See [`min_p_floor`].
    pub min_p_floor: f32,
    /// Tokens kept by rank; 0 keeps all.
    pub top_k: u32,
    /// Subtracted once from the logit of what was generated.
    pub presence: f32,
    /// Subtracted per occurrence.
    pub frequency: f32,
    /// Divides positive and multiplies negative logits of what is counted.
    pub repetition: f32,
    /// How many of `stop_ids` cannot be drawn: 0 once enough tokens are generated.
    pub stop_count: u32,
    /// Tokens that end the sequence.
    pub stop_ids: [u32; STOP_IDS],
}

impl Default for Row {
    /// Neither draws nor scores anything: what pads a batch.
    fn default() -> Row {
        Row {
            slot: -1,
            target: -1,
            top: -1,
            scale: 1.0,
            top_p: 1.0,
            min_p_floor: f32::NEG_INFINITY,
            repetition: 1.0,
            ..Row::zeroed()
        }
    }
}

/// [`Row::scale`] of a temperature: 0, at which the likeliest token is taken, is 0.
pub fn scale(temperature: f32) -> f32 {
    if temperature == 0.0 {
        return 0.0;
    }
    (1.0 / temperature).min(f32::MAX)
}

/// [`Row::min_p_floor`] of a fraction of the best token's probability; 0 keeps all.
pub fn min_p_floor(min_p: f32) -> f32 {
    if min_p > 0.0 {
        min_p.ln()
    } else {
        f32::NEG_INFINITY
    }
}

/// What became of a row, as the device writes it.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sampled {
    /// The token drawn; -1 if none was.
    pub token: i32,
    /// 0 if no logit is a number: the weights are broken, or what was computed overflowed.
    pub numbers: i32,
    /// Log-probability of the token, if any are wanted.
    pub logprob: f32,
    /// That of the target, if there is one.
    pub target_logprob: f32,
    /// Alternatives found: fewer than wanted if fewer have a probability.
    pub top_count: i32,
    /// They, best first.
    pub top_tokens: [u32; MOST_TOP],
    /// Their log-probabilities.
    pub top_logprobs: [f32; MOST_TOP],
}

/// Samples rows of logits. Log-probabilities are those of the logits as they are given.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Type of `logits`.
    pub element: Element,
    /// Rows.
    pub count: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Slots in `drawn`.
    pub slots: usize,
    /// `[count, vocab]`.
    pub logits: Memory,
    /// Room to work in, `[count, vocab]` of `f32`.
    pub adjusted: Memory,
    /// `[count]` of [`Row`]; no two of them draw for one slot.
    pub rows: Memory,
    /// `[count]` of [`Sampled`].
    pub out: Memory,
    /// `[slots]` of `i32`: becomes the token drawn, or 0 where none could be.
    pub drawn: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct SampleParams {
    logits: u64,
    adjusted: u64,
    rows: u64,
    out: u64,
    drawn: u64,
    vocab: i32,
    slots: i32,
}

impl Sample {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(SAMPLE);
        let shape = [self.count, self.vocab];
        // Sums of as many probabilities must fit their integers.
        check.that(self.vocab <= 1 << 20, || {
            format!("a vocabulary of {}", self.vocab)
        })?;
        let params = SampleParams {
            logits: check.holds("logits", self.logits, &shape, self.element.size(), 16)?,
            adjusted: check.holds("adjusted", self.adjusted, &shape, 4, 16)?,
            rows: check.holds("rows", self.rows, &[self.count], size_of::<Row>(), 8)?,
            out: check.holds("out", self.out, &[self.count], size_of::<Sampled>(), 4)?,
            drawn: check.holds("drawn", self.drawn, &[self.slots], 4, 4)?,
            vocab: check.width("vocab", self.vocab, 1)?,
            slots: check.index("slots", self.slots)?,
        };
        let grid = [check.count("count", self.count)?, 1, 1];
        let unit = Unit::new(SOURCE, self.element);
        // SAFETY: the memory holds what the kernel accesses, as was checked; for the addresses in rows, whoever
        // wrote them vouches.
        unsafe { run(on, unit, SAMPLE, grid, THREADS, 0, &params) }
    }
}

/// Adds tokens to the counts that penalties follow from.
#[derive(Debug, Clone, Copy)]
pub struct CountTokens {
    /// Type of the logits that are sampled, by a kernel of the same unit.
    pub element: Element,
    /// How many tokens.
    pub length: usize,
    /// How many of them, from the first on, are the prompt's.
    pub prompt: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// `[vocab]` of `u32`.
    pub counts: Memory,
    /// `[length]` of `i32`; what is no token is not counted.
    pub tokens: Memory,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct CountParams {
    counts: u64,
    tokens: u64,
    length: i32,
    prompt: i32,
    vocab: i32,
    reserved: i32,
}

impl CountTokens {
    /// Launches it.
    ///
    /// # Errors
    /// If the shapes do not fit, or the launcher fails.
    pub fn launch(&self, on: &impl Launcher) -> Result<(), LaunchError> {
        let check = Check(COUNT_TOKENS);
        let params = CountParams {
            counts: check.holds("counts", self.counts, &[self.vocab], 4, 4)?,
            tokens: check.holds("tokens", self.tokens, &[self.length], 4, 4)?,
            length: check.width("length", self.length, 1)?,
            prompt: check.index("prompt", self.prompt)?,
            vocab: check.index("vocab", self.vocab)?,
            reserved: 0,
        };
        let blocks = self.length.div_ceil(COUNT_THREADS);
        let grid = [check.count("length", blocks)?, 1, 1];
        let unit = Unit::new(SOURCE, self.element);
        // SAFETY: the memory holds what the kernel accesses, as was checked; it checks tokens itself.
        unsafe {
            run(
                on,
                unit,
                COUNT_TOKENS,
                grid,
                COUNT_THREADS as u32,
                0,
                &params,
            )
        }
    }
}
