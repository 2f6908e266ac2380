//! What goes to a worker and what comes back: the tensors of a step and of its result.

use std::sync::Arc;

use realm_shared::wire::Fault;
use realm_shared::wire::result::NOTE_BYTES;

use super::sequence::{SequenceId, TokenLogprobs};

/// One step: the tensors of [`realm_shared::wire::step`], each flat and ready to be copied into
/// the slab, and the slots to open before it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StepPlan {
    /// Number of the step. Rises by one from plan to plan, also across workers.
    pub number: u64,
    /// Slots to open before the step, and for whom; [`super::Scheduler::sequence`] says with what.
    pub opens: Vec<(u32, SequenceId)>,
    /// The sequence of each row; `R` of them.
    pub ids: Vec<SequenceId>,
    /// `i32[R]`, see `wire::step::SLOTS`.
    pub slots: Vec<i32>,
    /// `i32[R + 1]`, see `wire::step::STARTS`.
    pub starts: Vec<i32>,
    /// `i32[R]`, see `wire::step::CONTEXT`.
    pub context: Vec<i32>,
    /// `i32[R]`, see `wire::step::FLAGS`.
    pub flags: Vec<i32>,
    /// `i32[R]`, see `wire::step::INDEX`.
    pub index: Vec<i32>,
    /// `i32[T]`, see `wire::step::TOKENS`.
    pub tokens: Vec<i32>,
    /// `i32[R, width]`, see `wire::step::BLOCKS`.
    pub blocks: Vec<i32>,
    /// Blocks per row in `blocks`.
    pub width: usize,
    /// `i32[P]`, see `wire::step::TARGETS`; empty or as long as `tokens`.
    pub targets: Vec<i32>,
    /// The step's `top` argument: alternatives per reported token, `K`.
    pub top: usize,
}

/// The tensors of [`realm_shared::wire::result`], borrowed from a private copy of the slot.
#[derive(Debug, Clone, Copy)]
pub struct StepResult<'a> {
    /// Number of the step that it answers.
    pub number: u64,
    /// `i32[R]`
    pub tokens: &'a [i32],
    /// `f32[R]`
    pub logprobs: &'a [f32],
    /// `i32[R, K]`
    pub top_ids: &'a [i32],
    /// `f32[R, K]`
    pub top_logprobs: &'a [f32],
    /// `f32[P]`
    pub prompt_logprobs: &'a [f32],
    /// `i32[P, K]`
    pub prompt_top_ids: &'a [i32],
    /// `f32[P, K]`
    pub prompt_top_logprobs: &'a [f32],
    /// `u8[R, N]`
    pub notes: &'a [u8],
}

/// A worker answered with something that its step cannot have given. It is broken or hostile:
/// replace it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResultError {
    /// No step is in flight.
    #[error("the worker answered step {number}, but no step is in flight")]
    Unasked {
        /// Number answered.
        number: u64,
    },
    /// Not the oldest step in flight.
    #[error("the worker answered step {number}, but step {expected} is the oldest in flight")]
    OutOfOrder {
        /// Number answered.
        number: u64,
        /// Number of the oldest step in flight.
        expected: u64,
    },
    /// A tensor has the wrong number of elements.
    #[error("`{tensor}` of step {number} has {len} elements; the step has {expected}")]
    Shape {
        /// Number of the step.
        number: u64,
        /// The tensor, as named in `wire::result`.
        tensor: &'static str,
        /// Elements it has.
        len: usize,
        /// Elements it must have.
        expected: usize,
    },
    /// A token is outside the vocabulary, was not asked for, or is missing.
    #[error("`{tensor}[{index}]` of step {number} is {token}; expected {expected}")]
    Token {
        /// Number of the step.
        number: u64,
        /// The tensor.
        tensor: &'static str,
        /// Index of the element.
        index: usize,
        /// Its value.
        token: i32,
        /// What it may be.
        expected: Expected,
    },
    /// A program failed in a way that there is not.
    #[error("`NOTES[{row}]` of step {number} begins with {kind}, which is no fault")]
    Note {
        /// Number of the step.
        number: u64,
        /// Row of the step.
        row: usize,
        /// What it begins with.
        kind: u8,
    },
    /// A log-probability is not one.
    #[error("`{tensor}[{index}]` of step {number} is {value}; a log-probability is at most 0")]
    Logprob {
        /// Number of the step.
        number: u64,
        /// The tensor.
        tensor: &'static str,
        /// Index of the element.
        index: usize,
        /// Its value.
        value: f32,
    },
}

/// What a token in a result may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A token below this vocabulary size.
    Below(u32),
    /// -1: the row was not asked to draw.
    Nothing,
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Below(vocab_size) => write!(f, "a token below {vocab_size}"),
            Self::Nothing => write!(f, "-1 (no token was to be drawn)"),
        }
    }
}

/// A log-softmax in low precision may end a little above 0.
const ROUNDING: f32 = 1e-2;

/// One family of log-probabilities in a result: of the tokens drawn, or of prompt tokens.
pub(super) struct Scores<'a> {
    number: u64,
    names: [&'static str; 3],
    logprobs: &'a [f32],
    top_ids: &'a [i32],
    top_logprobs: &'a [f32],
    width: usize,
}

impl<'a> StepResult<'a> {
    /// Why the program of a row failed. The shape must have been checked.
    pub(super) fn note(&self, row: usize) -> Result<(Fault, Arc<str>), ResultError> {
        let note = self.notes.get(row * NOTE_BYTES..(row + 1) * NOTE_BYTES);
        let (kind, text) = note.and_then(<[u8]>::split_first).unwrap_or((&0, &[]));
        let fault = Fault::from_number(*kind).ok_or(ResultError::Note {
            number: self.number,
            row,
            kind: *kind,
        })?;
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok((fault, String::from_utf8_lossy(text).into()))
    }

    /// Log-probabilities of the tokens drawn, `width` alternatives each.
    pub(super) fn drawn(&self, width: usize) -> Scores<'a> {
        Scores {
            number: self.number,
            names: ["LOGPROBS", "TOP_IDS", "TOP_LOGPROBS"],
            logprobs: self.logprobs,
            top_ids: self.top_ids,
            top_logprobs: self.top_logprobs,
            width,
        }
    }

    /// Log-probabilities of prompt tokens, `width` alternatives each.
    pub(super) fn prompt(&self, width: usize) -> Scores<'a> {
        Scores {
            number: self.number,
            names: ["PROMPT_LOGPROBS", "PROMPT_TOP_IDS", "PROMPT_TOP_LOGPROBS"],
            logprobs: self.prompt_logprobs,
            top_ids: self.prompt_top_ids,
            top_logprobs: self.prompt_top_logprobs,
            width,
        }
    }
}

impl Scores<'_> {
    /// Checks that there are `count` entries.
    pub(super) fn check_shape(&self, count: usize) -> Result<(), ResultError> {
        let [logprobs, top_ids, top_logprobs] = self.names;
        let all = count * self.width;
        check_len(self.number, logprobs, self.logprobs.len(), count)?;
        check_len(self.number, top_ids, self.top_ids.len(), all)?;
        check_len(self.number, top_logprobs, self.top_logprobs.len(), all)
    }

    /// Checks entry `index` and its first `top` alternatives. The shape must have been checked.
    pub(super) fn check_entry(
        &self,
        index: usize,
        top: usize,
        vocab_size: u32,
    ) -> Result<(), ResultError> {
        let [logprobs, top_ids, top_logprobs] = self.names;
        check_logprob(self.number, logprobs, index, self.logprobs[index])?;
        let row = index * self.width;
        for at in row..row + top {
            let token = self.top_ids[at];
            if token == -1 {
                break;
            }
            check_token(self.number, top_ids, at, token, vocab_size)?;
            check_logprob(self.number, top_logprobs, at, self.top_logprobs[at])?;
        }
        Ok(())
    }

    /// Entry `index` with its first `top` alternatives. Both must have been checked.
    pub(super) fn entry(&self, index: usize, top: usize) -> TokenLogprobs {
        let row = index * self.width..index * self.width + top;
        let ids = self.top_ids[row.clone()].iter();
        TokenLogprobs {
            logprob: self.logprobs[index],
            top: ids
                .zip(&self.top_logprobs[row])
                .map_while(|(&id, &logprob)| Some((u32::try_from(id).ok()?, logprob)))
                .collect(),
        }
    }
}

/// Checks the number of elements of a tensor.
pub(super) fn check_len(
    number: u64,
    tensor: &'static str,
    len: usize,
    expected: usize,
) -> Result<(), ResultError> {
    if len == expected {
        return Ok(());
    }
    Err(ResultError::Shape {
        number,
        tensor,
        len,
        expected,
    })
}

/// Checks that a token is in the vocabulary.
pub(super) fn check_token(
    number: u64,
    tensor: &'static str,
    index: usize,
    token: i32,
    vocab_size: u32,
) -> Result<(), ResultError> {
    if u32::try_from(token).is_ok_and(|token| token < vocab_size) {
        return Ok(());
    }
    Err(ResultError::Token {
        number,
        tensor,
        index,
        token,
        expected: Expected::Below(vocab_size),
    })
}

fn check_logprob(
    number: u64,
    tensor: &'static str,
    index: usize,
    value: f32,
) -> Result<(), ResultError> {
    // Written so that NaN fails too.
    if value <= ROUNDING {
        return Ok(());
    }
    Err(ResultError::Logprob {
        number,
        tensor,
        index,
        value,
    })
}
