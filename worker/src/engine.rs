//! A loaded model and its sequence slots: what OPEN and STEP act on.

mod load;
mod scores;

use std::collections::VecDeque;
use std::path::PathBuf;

use realm_shared::control::ModelInfo;
use realm_shared::wire::Sampling;
use realm_shared::wire::result::LATE;

use crate::batch::{Batch, BatchError, Limits, Step};
use crate::config::{DType, Quantization};
use crate::decoder::{Draw, Forward, ForwardError, HEAD_ROWS};
use crate::kernels::Threads;
use crate::sampler::{Sampler, SamplerError};
use crate::slot::{Slot, consider_all};
use crate::tenant::Steering;

use scores::{Job, Position, Scores};

pub use load::LoadError;
pub use scores::Outcome;

/// Sequence slots, by default.
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
    /// Random numbers instead of a checkpoint, which need not be there: to measure a config.
    pub random_weights: bool,
    /// Type of the forward pass; by default that of the checkpoint.
    pub dtype: Option<DType>,
    /// What the matrices of a model on a GPU are held in instead.
    pub quantization: Option<Quantization>,
    /// Compute threads; by default as many as there are cores.
    pub threads: Option<u32>,
    /// Bytes for the KV arena; by default a quarter of what is available, and on a device
    /// `gpu_memory_fraction`.
    pub kv_memory: Option<u64>,
    /// Part of the memory of a device that its KV arena takes, of what is free once the model is loaded; by default
    /// 0.9.
    pub gpu_memory_fraction: Option<f64>,
    /// Most tokens of a sequence; by default what the model has, if the arena can hold it.
    pub max_context: Option<usize>,
    /// Most sequences at once; by default 256.
    pub max_sequences: Option<usize>,
}

impl Options {
    fn max_sequences(&self) -> usize {
        self.max_sequences.unwrap_or(MAX_SEQUENCES)
    }
}

/// Why a message cannot be executed. None of these can be caused by a request; they end the
/// worker.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The step contradicts itself.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A slot beyond the last one.
    #[error("OPEN of slot {slot} of {count}")]
    Slot {
        /// Its number.
        slot: u64,
        /// How many there are.
        count: usize,
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

/// A model with its arena and its sequence slots.
pub struct Engine {
    model: Box<dyn Forward>,
    info: ModelInfo,
    limits: Limits,
    threads: Threads,
    slots: Vec<Option<Slot>>,
    logits: Vec<f32>,
    /// Of the step that is put together, or was asked for last.
    outcome: Outcome,
    /// Steps that were launched and not asked for yet.
    launched: VecDeque<Launched>,
}

/// A step that is under way.
struct Launched {
    /// What is known of its outcome.
    outcome: Outcome,
    /// What the device draws, by the number of the hidden state.
    on_device: Vec<(usize, Position)>,
    /// Most alternatives that a row asks for.
    top: usize,
}

impl Engine {
    /// An engine of a model that is loaded, with all of its slots empty. What is drawn is drawn on `threads`.
    pub fn new(
        model: Box<dyn Forward>,
        info: ModelInfo,
        limits: Limits,
        threads: Threads,
    ) -> Engine {
        Engine {
            model,
            info,
            limits,
            threads,
            slots: (0..limits.max_sequences).map(|_| None).collect(),
            logits: Vec::new(),
            outcome: Outcome::default(),
            launched: VecDeque::new(),
        }
    }

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
        while !self.launched.is_empty() {
            self.finish()?;
        }
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
        let index = self.slot(slot)?.0;
        let bias: Vec<(i32, f32)> = bias.collect();
        let sampler = Sampler::new(sampling, bias.iter().copied(), history, vocab);
        let sampler = sampler.map_err(|source| StepError::Sampler {
            slot: index,
            source,
        })?;
        // Where code steers, the host draws.
        let mut state = Slot::new(sampler, steering);
        if !state.is_steered()
            && let Some(sampler) = self.model.sampler()
            && sampler.open(index, &sampling, &bias, history)?
        {
            state.move_to_device();
        }
        self.slots[index] = Some(state);
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
        let count = self.slots.len();
        let state = self.slots.get_mut(index);
        let state = state.ok_or(StepError::Slot { slot, count })?;
        Ok((index, state))
    }

    /// Runs one forward pass and draws tokens.
    ///
    /// # Errors
    /// If the step contradicts itself or the state of its slots: nothing is computed then. If a device fails.
    pub fn step(&mut self, step: Step<'_>) -> Result<&Outcome, StepError> {
        self.launch(step)?;
        Ok(self.finish()?)
    }

    /// Begins a step: what a device does of it need not be over then. More steps can be launched before it is
    /// finished.
    ///
    /// # Errors
    /// As for a [`step`](Self::step).
    pub fn launch(&mut self, step: Step<'_>) -> Result<(), StepError> {
        let batch = Batch::new(step, &self.limits)?;
        let tokens = self.input_tokens(&batch)?;
        #[cfg(debug_assertions)]
        crate::crash::if_asked(&tokens);
        let positions = self.positions(&batch);
        if !tokens.is_empty() {
            let wanted: Vec<usize> = positions.iter().map(|p| p.token).collect();
            tch::no_grad(|| self.model.forward(&batch, &tokens, &wanted))?;
        }
        self.draw_on_device(&positions)?;
        self.consider(&batch);
        self.outcome.reset(&batch);
        let parked = self.parked_positions(&batch);
        let (vocab, top) = (self.limits.vocab, batch.top());
        self.logits.resize(HEAD_ROWS * vocab, 0.0);
        let (mut on_device, mut here) = (Vec::new(), Vec::new());
        for (at, position) in positions.into_iter().enumerate() {
            match self.is_on_device(&position) {
                true => on_device.push((at, position)),
                false => here.push((at, position)),
            }
        }
        // Logits are computed, or fetched, for positions that follow each other.
        for run in here.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            for positions in run.chunks(HEAD_ROWS) {
                let first = positions[0].0;
                let logits = &mut self.logits[..positions.len() * vocab];
                tch::no_grad(|| self.model.logits(first..first + positions.len(), logits))?;
                self.keep_hidden(positions)?;
                self.sample(positions.iter().map(|(_, position)| position), top);
            }
        }
        for positions in parked.chunks(HEAD_ROWS) {
            for (position, into) in positions.iter().zip(self.logits.chunks_exact_mut(vocab)) {
                let slot = self.slots[position.draw.slot].as_mut();
                if let Some(kept) = slot.and_then(Slot::unpark) {
                    into.copy_from_slice(&kept.logits);
                }
            }
            self.sample(positions.iter(), top);
        }
        self.launched.push_back(Launched {
            outcome: std::mem::take(&mut self.outcome),
            on_device,
            top,
        });
        Ok(())
    }

    /// What the oldest step gave that is launched and not finished: this waits for it. If there is none, what was
    /// given last.
    ///
    /// # Errors
    /// If a device fails.
    pub fn finish(&mut self) -> Result<&Outcome, ForwardError> {
        if let Some(launched) = self.launched.pop_front() {
            self.outcome = launched.outcome;
            if !launched.on_device.is_empty()
                && let Some(sampler) = self.model.sampler()
            {
                let sampled = sampler.drawn()?;
                for (at, position) in &launched.on_device {
                    let scores = Scores::of(&sampled[*at], &position.draw);
                    self.outcome.set(position, &scores, launched.top);
                }
            }
        }
        Ok(&self.outcome)
    }

    /// Whether a step is launched and not finished that [`finish`](Self::finish) would not wait for.
    ///
    /// # Errors
    /// If a device fails.
    pub fn has_finished(&mut self) -> Result<bool, ForwardError> {
        let Some(launched) = self.launched.front() else {
            return Ok(false);
        };
        match self.model.sampler() {
            Some(sampler) if !launched.on_device.is_empty() => sampler.has_drawn(),
            _ => Ok(true),
        }
    }

    fn is_on_device(&self, position: &Position) -> bool {
        let slot = self.slots[position.draw.slot].as_ref();
        slot.is_some_and(Slot::is_on_device)
    }

    /// Begins what the device draws of a step.
    fn draw_on_device(&mut self, positions: &[Position]) -> Result<(), ForwardError> {
        if !positions.iter().any(|position| self.is_on_device(position)) {
            return Ok(());
        }
        let draws: Vec<Option<Draw>> = positions
            .iter()
            .map(|position| self.is_on_device(position).then_some(position.draw))
            .collect();
        if let Some(sampler) = self.model.sampler() {
            sampler.draw(&draws)?;
        }
        for draw in draws.iter().flatten().filter(|draw| draw.index.is_some()) {
            if let Some(slot) = &mut self.slots[draw.slot] {
                slot.draw_on_device();
            }
        }
        Ok(())
    }

    /// Gives the hidden states of some positions, by their numbers, to the slots whose code may ask for them.
    fn keep_hidden(&mut self, positions: &[(usize, Position)]) -> Result<(), ForwardError> {
        for (at, position) in positions {
            if position.draw.index.is_some()
                && let Some(slot) = self.slots[position.draw.slot].as_mut()
                && slot.wants_hidden()
            {
                slot.keep_hidden(self.model.hidden(*at)?);
            }
        }
        Ok(())
    }

    /// The tokens of a step, with those filled in that never left the worker.
    fn input_tokens(&self, batch: &Batch<'_>) -> Result<Vec<i32>, StepError> {
        // Checked by `Batch`, but for those that are replaced here.
        let mut tokens = batch.tokens().to_vec();
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
                let last = slot.last(row.slot);
                tokens[row.first] = last.ok_or_else(|| state("has drawn no token"))?;
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
                        token,
                        draw: Draw {
                            slot: row.slot,
                            index,
                            target,
                            top,
                        },
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
                token: row.first,
                draw: Draw {
                    slot: row.slot,
                    index: Some(index),
                    target: None,
                    top: slot.top_logprobs().map(|n| n.min(batch.top())),
                },
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
    fn sample<'a>(&mut self, positions: impl Iterator<Item = &'a Position>, top: usize) {
        let rows = self.logits.chunks_exact_mut(self.limits.vocab);
        let mut jobs: Vec<Job<'_>> = positions
            .zip(rows)
            .map(|(position, logits)| {
                // A slot draws at most once in a step, so its state moves into one job.
                let Draw { slot, index, .. } = position.draw;
                let slot = index.and_then(|_| self.slots[slot].take());
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
                self.slots[position.draw.slot] = slot;
            }
            self.outcome.set(position, &scores, top);
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
