//! The messages of the rings and the order of the tensors in their slots.
//!
//! Submit ring (gateway → worker), executed strictly in order:
//!
//! | kind | args | input slot | output slot |
//! |---|---|---|---|
//! | [`OPEN`] | `[sequence slot, 0]` | tensors of [`open`] | none |
//! | [`STEP`] | `[step number, top]` | tensors of [`step`] | tensors of [`result`] |
//!
//! Completion ring (worker → gateway):
//!
//! | kind | args | input slot | output slot |
//! |---|---|---|---|
//! | [`STEP_DONE`] | `[step number, nanoseconds on the device]` | as submitted | as submitted |
//!
//! Because the ring is executed in order, a KV block that the gateway frees and hands to another
//! sequence in a later step cannot be written by an earlier one, and a sequence slot needs no
//! closing: the next [`OPEN`] replaces its state.

use bytemuck::{Pod, Zeroable};

/// Sets the sampling state of a sequence slot.
pub const OPEN: u16 = 1;
/// Runs one forward pass and samples.
pub const STEP: u16 = 2;
/// A step's results are in its output slot.
pub const STEP_DONE: u16 = 3;

/// Most end-of-sequence ids in [`Sampling::stop_ids`].
pub const MAX_STOP_IDS: usize = 8;
/// Most alternatives that `top_logprobs` may ask for.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How the tokens of one sequence are drawn. Fixed for the life of the sequence.
///
/// The random numbers of the token with index `i` (0 for the first generated one) are a function
/// of (`key`, `i`, token id) alone, so a sequence that is re-batched or resumed draws what it
/// would have drawn.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sampling {
    /// Key of the random numbers: request seed and choice index, mixed by the gateway.
    pub key: u64,
    /// 0 picks the most likely token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Nucleus: smallest set of tokens whose probability reaches this. 1 keeps all.
    pub top_p: f32,
    /// Tokens below this fraction of the best token's probability are dropped. 0 keeps all.
    pub min_p: f32,
    /// Tokens kept by rank. 0 keeps all.
    pub top_k: u32,
    /// Subtracted once from the logit of every token generated before.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from the logit of every token generated before.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of every token in prompt or output. 1 is off.
    pub repetition_penalty: f32,
    /// While fewer tokens than this are generated, `stop_ids` cannot be drawn.
    pub min_tokens: u32,
    /// Alternatives to report per token; -1 reports no log-probabilities at all.
    pub top_logprobs: i32,
    /// Length of the prompt inside `open::HISTORY` (what follows was generated).
    pub prompt_len: u32,
    /// Valid entries of `stop_ids`.
    pub stop_count: u32,
    /// Tokens that end the sequence.
    pub stop_ids: [u32; MAX_STOP_IDS],
    /// Keeps the size a multiple of the alignment.
    pub reserved: u32,
}

impl Default for Sampling {
    /// Draws from the whole distribution as the model gives it, ends at no token, and reports no
    /// log-probabilities. (All zeros would be a nucleus of nothing and a penalty.)
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            top_logprobs: -1,
            ..Sampling::zeroed()
        }
    }
}

impl Sampling {
    /// Whether drawing depends on the tokens before it. If so, `open::HISTORY` must hold them.
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }
}

/// Tensors of an [`OPEN`] message, in order.
pub mod open {
    /// `u8[size_of::<Sampling>()]`.
    pub const SAMPLING: usize = 0;
    /// `i32[B]`: tokens whose logits are biased.
    pub const BIAS_IDS: usize = 1;
    /// `f32[B]`: what is added to them.
    pub const BIAS_VALUES: usize = 2;
    /// `i32[H]`: prompt and tokens generated so far, if penalties are in use; else empty.
    pub const HISTORY: usize = 3;
    /// Number of tensors.
    pub const COUNT: usize = 4;
}

/// Tensors of a [`STEP`] message, in order. `R` rows (sequences), `T` tokens over all rows.
pub mod step {
    /// `i32[R]`: sequence slot of each row. No slot appears twice.
    pub const SLOTS: usize = 0;
    /// `i32[R + 1]`: where each row's tokens begin in `TOKENS`; the last entry is `T`.
    pub const STARTS: usize = 1;
    /// `i32[R]`: tokens of the sequence already in the KV arena; position of the row's first token.
    pub const CONTEXT: usize = 2;
    /// `i32[R]`: [`SAMPLE`] and [`INPUT_SAMPLED`], or-ed.
    pub const FLAGS: usize = 3;
    /// `i32[R]`: index of the token to be drawn (tokens generated before it).
    pub const INDEX: usize = 4;
    /// `i32[T]`: input tokens. Ignored for a row with [`INPUT_SAMPLED`].
    pub const TOKENS: usize = 5;
    /// `i32[R, B]`: KV blocks of each row in order, padded with 0 on the right.
    pub const BLOCKS: usize = 6;
    /// `i32[P]`: `P = T` where some row wants log-probabilities of its own prompt, else 0. Entry
    /// `t` is the token that follows input token `t`, to be scored by the logits at `t`; -1 asks
    /// for nothing at that position.
    pub const TARGETS: usize = 7;
    /// Number of tensors.
    pub const COUNT: usize = 8;

    /// Draw a token from the logits of the row's last position.
    pub const SAMPLE: i32 = 1;
    /// The row has one token: the one drawn last for this sequence slot, still on the device.
    pub const INPUT_SAMPLED: i32 = 2;
}

/// Tensors of a result, in order. `K` is the step's `top` argument: the most alternatives that a
/// row of the step asks for (0 for none).
pub mod result {
    /// `i32[R]`: token drawn, -1 for a row that was to draw none, or [`NO_NUMBER`].
    pub const TOKENS: usize = 0;
    /// `f32[R]`: its log-probability (of the unmodified distribution), if the row asked; else 0,
    /// as where there is no token.
    pub const LOGPROBS: usize = 1;
    /// `i32[R, K]`: most likely tokens, best first; -1 pads.
    pub const TOP_IDS: usize = 2;
    /// `f32[R, K]`: their log-probabilities.
    pub const TOP_LOGPROBS: usize = 3;
    /// `f32[P]`: log-probability of each entry of `step::TARGETS`; 0 where it is -1, and NaN where
    /// not one logit is a number.
    pub const PROMPT_LOGPROBS: usize = 4;
    /// `i32[P, K]`: most likely tokens at each of those positions, best first; -1 pads.
    pub const PROMPT_TOP_IDS: usize = 5;
    /// `f32[P, K]`: their log-probabilities.
    pub const PROMPT_TOP_LOGPROBS: usize = 6;
    /// Number of tensors.
    pub const COUNT: usize = 7;

    /// In `TOKENS`, for a row that was to draw: not one logit is a number. A later row with
    /// [`INPUT_SAMPLED`](super::step::INPUT_SAMPLED) in the same slot computes something without
    /// meaning, so that a step already in flight does no harm.
    pub const NO_NUMBER: i32 = -2;
}
