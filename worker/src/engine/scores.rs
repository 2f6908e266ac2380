//! What is done with the logits of a step, and what comes of it.

use realm_cuda::sample::{MOST_TOP, Sampled};
use realm_shared::wire::MAX_TOP_LOGPROBS;
use realm_shared::wire::result::{NO_NUMBER, NOTE_BYTES};

use crate::batch::Batch;
use crate::decoder::Draw;
use crate::sampler::{Logprobs, Scored, clean};
use crate::slot::{Drawn, Slot, note};

const _: () = assert!(MOST_TOP == MAX_TOP_LOGPROBS, "a device reports as many");

/// What a step gave; tensors as [`realm_shared::wire::result`] explains them.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Outcome {
    /// `[R]`
    pub tokens: Vec<i32>,
    /// `[R]`
    pub logprobs: Vec<f32>,
    /// `[R, K]`
    pub top_ids: Vec<i32>,
    /// `[R, K]`
    pub top_logprobs: Vec<f32>,
    /// `[P]`
    pub prompt_logprobs: Vec<f32>,
    /// `[P, K]`
    pub prompt_top_ids: Vec<i32>,
    /// `[P, K]`
    pub prompt_top_logprobs: Vec<f32>,
    /// `[R, N]`
    pub notes: Vec<u8>,
}

/// A token of a step whose logits are needed.
pub(super) struct Position {
    pub(super) row: usize,
    /// Its number within the step.
    pub(super) token: usize,
    /// What to do with them.
    pub(super) draw: Draw,
}

/// The work on one position's logits.
pub(super) struct Job<'a> {
    pub(super) position: &'a Position,
    pub(super) logits: &'a mut [f32],
    pub(super) slot: Option<Slot>,
    pub(super) scores: Scores,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Scores {
    /// If a token was to be drawn.
    drawn: Option<Drawn>,
    /// Log-probability of what was drawn, if asked for.
    drawn_logprob: Option<f32>,
    target_logprob: Option<f32>,
    top: Vec<Scored>,
}

impl Job<'_> {
    /// Draws and scores, and tells a tenant's code what came of it.
    pub(super) fn run(&mut self) {
        self.scores = self.score();
        let token = self.scores.drawn.as_ref().and_then(|drawn| drawn.token);
        if let (Some(slot), Some(token)) = (&mut self.slot, token) {
            let logprob = self.scores.drawn_logprob.unwrap_or(0.0);
            slot.accept(token, logprob, &self.scores.top);
        }
    }

    fn score(&mut self) -> Scores {
        let Draw {
            index, target, top, ..
        } = self.position.draw;
        let numbers = clean(self.logits);
        let drawn = match (&mut self.slot, index) {
            (Some(slot), Some(index)) => Some(slot.draw(self.logits, numbers, index)),
            _ => None,
        };
        let token = drawn.as_ref().and_then(|drawn| drawn.token);
        if !numbers {
            return Scores {
                drawn,
                target_logprob: target.map(|_| f32::NAN),
                ..Scores::default()
            };
        }
        if target.is_none() && top.is_none() {
            return Scores {
                drawn,
                ..Scores::default()
            };
        }
        let logprobs = Logprobs::new(self.logits);
        Scores {
            drawn,
            drawn_logprob: token
                .filter(|_| top.is_some())
                .map(|token| logprobs.of(token)),
            target_logprob: target.map(|token| logprobs.of(token)),
            top: logprobs.top(top.unwrap_or(0)),
        }
    }
}

impl Scores {
    /// What a device made of a draw.
    pub(super) fn of(sampled: &Sampled, draw: &Draw) -> Scores {
        let token = u32::try_from(sampled.token).ok();
        let drawn = Drawn {
            code: token.map_or(NO_NUMBER, |_| sampled.token),
            token,
            failure: None,
        };
        let numbers = sampled.numbers != 0;
        let target_logprob = match numbers {
            true => sampled.target_logprob,
            false => f32::NAN,
        };
        let count = usize::try_from(sampled.top_count).unwrap_or(0);
        let top = sampled.top_tokens.iter().zip(sampled.top_logprobs);
        let top = top.map(|(token, logprob)| Scored {
            token: *token,
            logprob,
        });
        Scores {
            drawn: draw.index.map(|_| drawn),
            drawn_logprob: token.and(draw.top).map(|_| sampled.logprob),
            target_logprob: draw.target.map(|_| target_logprob),
            top: top.take(count).collect(),
        }
    }
}

impl Outcome {
    /// Nothing drawn and nothing scored yet.
    pub(super) fn reset(&mut self, batch: &Batch<'_>) {
        let (rows, targets, top) = (batch.rows().len(), batch.target_count(), batch.top());
        fn fill<T: Copy>(values: &mut Vec<T>, len: usize, value: T) {
            values.clear();
            values.resize(len, value);
        }
        fill(&mut self.tokens, rows, -1);
        fill(&mut self.logprobs, rows, 0.0);
        fill(&mut self.top_ids, rows * top, -1);
        fill(&mut self.top_logprobs, rows * top, 0.0);
        fill(&mut self.prompt_logprobs, targets, 0.0);
        fill(&mut self.prompt_top_ids, targets * top, -1);
        fill(&mut self.prompt_top_logprobs, targets * top, 0.0);
        let notes = match batch.rows().iter().any(|row| row.steered) {
            true => rows * NOTE_BYTES,
            false => 0,
        };
        fill(&mut self.notes, notes, 0);
    }

    pub(super) fn set(&mut self, position: &Position, scores: &Scores, top: usize) {
        let list = |ids: &mut [i32], logprobs: &mut [f32]| {
            for ((id, logprob), scored) in ids.iter_mut().zip(logprobs).zip(&scores.top) {
                (*id, *logprob) = (scored.token as i32, scored.logprob);
            }
        };
        if let Some(drawn) = &scores.drawn {
            let row = position.row;
            self.tokens[row] = drawn.code;
            if let Some(failure) = &drawn.failure {
                note(failure, &mut self.notes[row * NOTE_BYTES..][..NOTE_BYTES]);
            }
            self.logprobs[row] = scores.drawn_logprob.unwrap_or(0.0);
            let part = row * top..(row + 1) * top;
            list(
                &mut self.top_ids[part.clone()],
                &mut self.top_logprobs[part],
            );
        }
        if let Some(logprob) = scores.target_logprob {
            self.prompt_logprobs[position.token] = logprob;
            let part = position.token * top..(position.token + 1) * top;
            list(
                &mut self.prompt_top_ids[part.clone()],
                &mut self.prompt_top_logprobs[part],
            );
        }
    }
}
