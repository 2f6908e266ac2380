//! Results: checked whole, then taken row by row.

use std::time::{Duration, Instant};

use realm_shared::wire::Fault;
use realm_shared::wire::result::{FAULT, LATE, NO_NUMBER, NOTE_BYTES, STOPPED};

use super::Scheduler;
use super::attached::{Row, Step};
use crate::batching::plan::{Expected, ResultError, StepResult, check_len, check_token};
use crate::batching::sequence::{Event, FailReason, FinishReason, SequenceId};

impl Scheduler {
    /// Takes the answer to the oldest step in flight, which took the worker as long as `busy`.
    /// Returns each sequence's part of that time.
    ///
    /// # Errors
    /// If it cannot be the answer. Nothing has changed then; replace the worker and call
    /// [`worker_lost`](Self::worker_lost).
    pub fn complete(
        &mut self,
        now: Instant,
        busy: Duration,
        result: StepResult<'_>,
    ) -> Result<Vec<(SequenceId, Duration)>, ResultError> {
        let Some(worker) = &mut self.worker else {
            return Err(ResultError::Unasked {
                number: result.number,
            });
        };
        // None that took longer is waited for, whatever the worker says: tenants are billed by it.
        let busy = busy.min(self.config.step_timeout);
        let step = worker.answer(&result, busy)?;
        worker.start_clock(now, self.config.step_timeout);
        let parts = worker.parts(&step, busy);
        for (index, row) in step.rows.iter().enumerate() {
            self.take_row(&step, row, index, &result);
        }
        Ok(parts)
    }

    /// Takes one row's result, wherever its sequence is by now: running, preempted, or ended.
    fn take_row(&mut self, step: &Step, row: &Row, index: usize, result: &StepResult<'_>) {
        let Some(worker) = &self.worker else {
            return;
        };
        let max_context = worker.max_context();
        let Some(live) = self.live_mut(row.id) else {
            self.stats.rows_wasted += 1;
            return;
        };
        live.arrive(row.draws);
        if row.has_no_number(index, result) {
            // Should it be a fault of the moment, the next one computes anew.
            if let Some(worker) = &mut self.worker {
                worker.disown(row.id);
            }
            self.remove(row.id);
            self.end(row.id, Event::Failed(FailReason::NotANumber));
            return;
        }
        // The row that computes the last position is the last one.
        let full = row.end == live.extent(max_context).positions;
        if !row.scored.is_empty() {
            live.set_scored(row.scored.end);
            let scores = result.prompt(step.top);
            let top = row.top_logprobs.unwrap_or(0);
            let entries = row.target_indices().map(|at| scores.entry(at, top));
            let event = Event::PromptLogprobs {
                start: row.scored.start,
                entries: entries.collect(),
            };
            self.events.push_back((row.id, event));
        }
        let mut stopped = false;
        match result.tokens[index] {
            LATE if row.steered => return self.park(row.id),
            STOPPED if row.steered => stopped = true,
            FAULT if row.steered => {
                // Its form was checked with the rest of the step.
                let (fault, message) = result.note(index).unwrap_or((Fault::Trap, "".into()));
                let live = self.live_mut(row.id);
                let reason = live.map(|live| live.misled(fault, message));
                self.remove(row.id);
                if let Some(reason) = reason {
                    self.end(row.id, Event::Failed(reason));
                }
                return;
            }
            token if row.draws => {
                let token = token as u32;
                stopped = self.live_mut(row.id).is_some_and(|live| live.push(token));
                let worker = self.worker.as_mut();
                if let Some(running) = worker.and_then(|worker| worker.running.get_mut(&row.id)) {
                    running.late = false;
                }
                let scores = result.drawn(step.top);
                let logprobs = row.top_logprobs.map(|top| scores.entry(index, top));
                self.stats.tokens_generated += 1;
                self.events
                    .push_back((row.id, Event::Token { token, logprobs }));
            }
            _ => {}
        }
        let reason = match full {
            _ if stopped => FinishReason::Stop,
            true => FinishReason::Length,
            false => return,
        };
        self.remove(row.id);
        self.end(row.id, Event::Finished(reason));
    }
}

impl Scheduler {
    /// The program of a sequence was late, so that its oldest row has drawn nothing. The next one
    /// draws that token instead: what it computes otherwise is void, as the token was not known.
    fn park(&mut self, id: SequenceId) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        let later = worker.in_flight.iter_mut().flat_map(|step| &mut step.rows);
        let mut count = 0;
        for row in later.filter(|row| row.id == id) {
            // It computes one position: parked ones are alone in flight.
            row.end -= 1;
            count += 1;
        }
        if self.waits_for_a_suspect(id)
            && let Some(live) = self.live_mut(id)
        {
            live.acquit_if_computed();
        }
        let Some(worker) = &mut self.worker else {
            return;
        };
        // One that was preempted starts again from what is known.
        if let Some(running) = worker.running.get_mut(&id) {
            running.computed -= count;
            running.parked = count == 0;
            running.late = true;
        }
    }
}

impl Row {
    /// Where in the step's targets its entries are.
    fn target_indices(&self) -> std::ops::Range<usize> {
        self.first_target..self.first_target + self.scored.len()
    }

    /// Whether the model gave no number where this row, the one at `index`, needed one.
    fn has_no_number(&self, index: usize, result: &StepResult<'_>) -> bool {
        let mut scores = self.target_indices().map(|at| result.prompt_logprobs[at]);
        self.draws && result.tokens[index] == NO_NUMBER || scores.any(f32::is_nan)
    }
}

impl Step {
    /// Checks that a result answers this step, and that everything in it that was asked for is
    /// what it claims to be.
    pub(super) fn check(
        &self,
        result: &StepResult<'_>,
        vocab_size: u32,
    ) -> Result<(), ResultError> {
        let number = result.number;
        if number != self.number {
            return Err(ResultError::OutOfOrder {
                number,
                expected: self.number,
            });
        }
        let (drawn, prompt) = (result.drawn(self.top), result.prompt(self.top));
        check_len(number, "TOKENS", result.tokens.len(), self.rows.len())?;
        drawn.check_shape(self.rows.len())?;
        prompt.check_shape(self.targets)?;

        let notes = match self.rows.iter().any(|row| row.steered) {
            true => self.rows.len() * NOTE_BYTES,
            false => 0,
        };
        check_len(number, "NOTES", result.notes.len(), notes)?;

        for (index, (row, &token)) in self.rows.iter().zip(result.tokens).enumerate() {
            if row.draws {
                if row.steered && token == FAULT {
                    result.note(index)?;
                }
                let none =
                    token == NO_NUMBER || row.steered && matches!(token, LATE | STOPPED | FAULT);
                if !none {
                    check_token(number, "TOKENS", index, token, vocab_size)?;
                    if let Some(top) = row.top_logprobs {
                        drawn.check_entry(index, top, vocab_size)?;
                    }
                }
            } else if token != -1 {
                return Err(ResultError::Token {
                    number,
                    tensor: "TOKENS",
                    index,
                    token,
                    expected: Expected::Nothing,
                });
            }
            for at in row.target_indices() {
                if !result.prompt_logprobs[at].is_nan() {
                    prompt.check_entry(at, row.top_logprobs.unwrap_or(0), vocab_size)?;
                }
            }
        }
        Ok(())
    }
}
