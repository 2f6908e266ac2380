//! A loaded model and its sequence slots: what OPEN and STEP act on.

mod load;

use std::path::PathBuf;

use realm_shared::control::ModelInfo;
use realm_shared::wire::Sampling;
use realm_shared::wire::result::{LATE, NOTE_BYTES};

use crate::batch::{Batch, BatchError, Limits, Step};
use crate::config::DType;
use crate::decoder::{Forward, ForwardError, HEAD_ROWS};
use crate::kernels::Threads;
use crate::sampler::{Logprobs, Sampler, SamplerError, Scored, clean};
use crate::slot::{Drawn, Slot, consider_all, note};
use crate::tenant::Steering;

pub use load::LoadError;

/// Sequence slots.
const MAX_SEQUENCES: usize = 256;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The one inside the program.
    Embedded,
    /// A directory as the Hugging Face hub lays it out.
    Directory(PathBuf),
}

/// How a model is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Type of the forward pass; by default that of the checkpoint.
    pub dtype: Option<DType>,
    /// Compute threads; by default as many as there are cores, one less on matrix units.
    pub threads: Option<u32>,
    /// Compute every row as if it were alone, where what is fastest would not: `bf16` on matrix
    /// units. All else is so in any case.
    pub batch_invariant: bool,
    /// Bytes for the KV arena; by default a quarter of what is available, and on a device
    /// `gpu_memory_fraction`.
    pub kv_memory: Option<u64>,
    /// Part of the memory of a device that its KV arena takes, of what is free once the model is loaded; by default
    /// 0.9.
    pub gpu_memory_fraction: Option<f64>,
    /// Most tokens of a sequence; by default what the model has, if the arena can hold it.
    pub max_context: Option<usize>,
}

/// Why a message cannot be executed. None of these can be caused by a request; they end the
/// worker.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The step contradicts itself.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A slot beyond the last one.
    #[error("OPEN of slot {slot} of {}", MAX_SEQUENCES)]
    Slot {
        /// Its number.
        slot: u64,
    },
    /// A slot that needs to be open is not, or has drawn nothing yet.
    #[error("step, row {row}: slot {slot} {reason}")]
    State {
        /// The row.
        row: usize,
        /// The slot.
        slot: usize,
        /// What it lacks.
        reason: &'static str,
    },
    /// The model cannot go on.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A slot cannot be opened like this.
    #[error("slot {slot}: {source}")]
    Sampler {
        /// The slot.
        slot: usize,
        /// Why.
        source: SamplerError,
    },
}

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

/// A model with its arena and its sequence slots.
pub struct Engine {
    model: Box<dyn Forward>,
    info: ModelInfo,
    limits: Limits,
    threads: Threads,
    slots: Vec<Option<Slot>>,
    logits: Vec<f32>,
    outcome: Outcome,
}

impl Engine {
    /// What the gateway must know of it.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// How many numbers a hidden state has.
    pub fn hidden_size(&self) -> usize {
        self.model.hidden_size()
    }

    /// What steps are checked against.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Forgets every sequence, for a gateway that knows none of them.
    ///
    /// # Errors
    /// If the system refuses a new KV arena.
    pub fn reset(&mut self) -> Result<(), ForwardError> {
        self.slots.fill_with(|| None);
        self.model.forget()
    }

    /// Sets the state of a slot: how its tokens are drawn, and what steers that, if something does.
    ///
    /// # Errors
    /// If there is no such slot, or the state makes no sense.
    pub fn open(
        &mut self,
        slot: u64,
        sampling: Sampling,
        bias: impl Iterator<Item = (i32, f32)>,
        history: &[i32],
        steering: Option<Steering>,
    ) -> Result<(), StepError> {
        let vocab = self.limits.vocab;
        let (index, state) = self.slot(slot)?;
        let sampler = Sampler::new(sampling, bias, history, vocab);
        let sampler = sampler.map_err(|source| StepError::Sampler {
            slot: index,
            source,
        })?;
        *state = Some(Slot::new(sampler, steering));
        Ok(())
    }

    /// Empties a slot whose sequence is over.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn close(&mut self, slot: u64) -> Result<(), StepError> {
        *self.slot(slot)?.1 = None;
        Ok(())
    }

    fn slot(&mut self, slot: u64) -> Result<(usize, &mut Option<Slot>), StepError> {
        let index = usize::try_from(slot).unwrap_or(usize::MAX);
        let state = self.slots.get_mut(index).ok_or(StepError::Slot { slot })?;
        Ok((index, state))
    }

    /// Runs one forward pass and draws tokens.
    ///
    /// # Errors
    /// If the step contradicts itself or the state of its slots: nothing is computed then. If a device fails.
    pub fn step(&mut self, step: Step<'_>) -> Result<&Outcome, StepError> {
        let batch = Batch::new(step, &self.limits)?;
        let tokens = self.input_tokens(&batch)?;
        #[cfg(debug_assertions)]
        crate::crash::if_asked(&tokens);
        let positions = self.positions(&batch);
        if !tokens.is_empty() {
            let wanted: Vec<usize> = positions.iter().map(|p| p.token).collect();
            tch::no_grad(|| self.model.forward(&batch, &tokens, &wanted))?;
        }
        self.consider(&batch);
        self.outcome.reset(&batch);
        let parked = self.parked_positions(&batch);
        let (vocab, top) = (self.limits.vocab, batch.top());
        self.logits.resize(HEAD_ROWS * vocab, 0.0);
        for (i, positions) in positions.chunks(HEAD_ROWS).enumerate() {
            let first = i * HEAD_ROWS;
            let logits = &mut self.logits[..positions.len() * vocab];
            tch::no_grad(|| self.model.logits(first..first + positions.len(), logits))?;
            self.keep_hidden(first, positions)?;
            self.sample(positions, top);
        }
        for positions in parked.chunks(HEAD_ROWS) {
            for (position, into) in positions.iter().zip(self.logits.chunks_exact_mut(vocab)) {
                let slot = self.slots[position.slot].as_mut();
                if let Some(kept) = slot.and_then(Slot::unpark) {
                    into.copy_from_slice(&kept.logits);
                }
            }
            self.sample(positions, top);
        }
        Ok(&self.outcome)
    }

    /// Gives the hidden states of some positions, the first of which is `first` of all, to the slots whose
    /// code may ask for them.
    fn keep_hidden(&mut self, first: usize, positions: &[Position]) -> Result<(), ForwardError> {
        for (at, position) in (first..).zip(positions) {
            if position.index.is_some()
                && let Some(slot) = self.slots[position.slot].as_mut()
                && slot.wants_hidden()
            {
                slot.keep_hidden(self.model.hidden(at)?);
            }
        }
        Ok(())
    }

    /// The tokens of a step, with those filled in that never left the worker.
    fn input_tokens(&self, batch: &Batch<'_>) -> Result<Vec<u32>, StepError> {
        // Checked by `Batch`, but for those that are replaced here.
        let mut tokens: Vec<u32> = batch.tokens().iter().map(|token| *token as u32).collect();
        for (r, row) in batch.rows().iter().enumerate() {
            let state = |reason| StepError::State {
                row: r,
                slot: row.slot,
                reason,
            };
            let slot = self.slots[row.slot].as_ref();
            let slot = slot.ok_or_else(|| state("was never opened"))?;
            if row.steered != slot.is_steered() {
                return Err(state("is steered, or is not, other than the step says"));
            }
            if row.parked && !slot.is_parked() {
                return Err(state("keeps no logits"));
            }
            if row.input_sampled {
                tokens[row.first] = slot.last().ok_or_else(|| state("has drawn no token"))?;
            }
        }
        Ok(tokens)
    }

    /// Tokens of a step whose logits are needed.
    fn positions(&self, batch: &Batch<'_>) -> Vec<Position> {
        let mut positions = Vec::new();
        for (r, row) in batch.rows().iter().enumerate() {
            let slot = self.slots[row.slot].as_ref();
            // What is computed after a token that was not drawn yet has no meaning.
            let draws = row.sample && !slot.is_some_and(Slot::is_parked);
            let top = slot.and_then(Slot::top_logprobs);
            for token in row.first..row.first + row.len {
                let draw = draws && token + 1 == row.first + row.len;
                let index = draw.then_some(row.index);
                let target = batch.target(token);
                if index.is_some() || target.is_some() {
                    let top = top.map(|n| n.min(batch.top()));
                    positions.push(Position {
                        row: r,
                        slot: row.slot,
                        token,
                        index,
                        target,
                        top,
                    });
                }
            }
        }
        positions
    }

    /// Tokens that are to be drawn from logits that were kept, and can be now.
    fn parked_positions(&mut self, batch: &Batch<'_>) -> Vec<Position> {
        let mut positions = Vec::new();
        let rows = batch.rows().iter().enumerate();
        for (r, row) in rows.filter(|(_, row)| row.sample) {
            let Some(slot) = self.slots[row.slot].as_ref() else {
                continue;
            };
            let Some(index) = slot.parked_index() else {
                continue;
            };
            if slot.is_late() {
                self.outcome.tokens[r] = LATE;
                continue;
            }
            positions.push(Position {
                row: r,
                slot: row.slot,
                token: row.first,
                index: Some(index),
                target: None,
                top: slot.top_logprobs().map(|n| n.min(batch.top())),
            });
        }
        positions
    }

    /// Asks the code of tenants how to draw.
    fn consider(&mut self, batch: &Batch<'_>) {
        let rows = batch.rows();
        if !rows.iter().any(|row| row.steered && row.sample) {
            return;
        }
        let alone = rows.iter().all(|row| row.steered && row.sample);
        let mut asked = vec![false; self.slots.len()];
        for row in rows.iter().filter(|row| row.steered && row.sample) {
            asked[row.slot] = true;
        }
        let slots = self.slots.iter_mut().zip(asked);
        let slots = slots.filter_map(|(slot, asked)| slot.as_mut().filter(|_| asked));
        consider_all(slots, alone);
    }

    /// Scores and draws from the logits of some positions.
    fn sample(&mut self, positions: &[Position], top: usize) {
        let rows = self.logits.chunks_exact_mut(self.limits.vocab);
        let mut jobs: Vec<Job<'_>> = positions
            .iter()
            .zip(rows)
            .map(|(position, logits)| {
                // A slot draws at most once in a step, so its state moves into one job.
                let slot = position
                    .index
                    .and_then(|_| self.slots[position.slot].take());
                Job {
                    position,
                    logits,
                    slot,
                    scores: Scores::default(),
                }
            })
            .collect();
        self.threads.for_each(&mut jobs, Job::run);
        for Job {
            position,
            slot,
            scores,
            ..
        } in jobs
        {
            if slot.is_some() {
                self.slots[position.slot] = slot;
            }
            self.outcome.set(position, &scores, top);
        }
    }
}

/// A token of a step whose logits are needed.
struct Position {
    row: usize,
    slot: usize,
    /// Its number within the step.
    token: usize,
    /// Number of the token to draw here, if one is.
    index: Option<u32>,
    /// Token to score here, if one is.
    target: Option<u32>,
    /// Alternatives to report; None where log-probabilities of drawn tokens are not asked for.
    top: Option<usize>,
}

/// The work on one position's logits.
struct Job<'a> {
    position: &'a Position,
    logits: &'a mut [f32],
    slot: Option<Slot>,
    scores: Scores,
}

/// What came of it.
#[derive(Default)]
struct Scores {
    /// If a token was to be drawn.
    drawn: Option<Drawn>,
    /// Log-probability of what was drawn, if asked for.
    drawn_logprob: Option<f32>,
    target_logprob: Option<f32>,
    top: Vec<Scored>,
}

impl Job<'_> {
    /// Draws and scores, and tells a tenant's code what came of it.
    fn run(&mut self) {
        self.scores = self.score();
        let token = self.scores.drawn.as_ref().and_then(|drawn| drawn.token);
        if let (Some(slot), Some(token)) = (&mut self.slot, token) {
            let logprob = self.scores.drawn_logprob.unwrap_or(0.0);
            slot.accept(token, logprob, &self.scores.top);
        }
    }

    fn score(&mut self) -> Scores {
        let Position {
            index, target, top, ..
        } = *self.position;
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

impl Outcome {
    /// Nothing drawn and nothing scored yet.
    fn reset(&mut self, batch: &Batch<'_>) {
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

    fn set(&mut self, position: &Position, scores: &Scores, top: usize) {
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

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
