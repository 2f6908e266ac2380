//! Writing: a batch as the tensors of a step.

use realm_shared::wire::step;

use super::attached::{Attached, Row, Running, Step};
use super::batch::Batch;
use crate::batching::plan::StepPlan;
use crate::batching::sequence::SequenceId;

/// An entry of a step's targets that asks for nothing.
const NO_TARGET: i32 = -1;

impl Attached {
    /// Turns a batch into the tensors of a step, which is in flight from here on.
    pub(super) fn write(&mut self, batch: Batch, number: u64) -> StepPlan {
        let (rows, tokens) = (batch.rows.len(), batch.rows.iter().map(|row| row.1).sum());
        let prefill = batch.rows[batch.decodes..].iter().map(|row| row.1).sum();
        let blocks = batch.rows.iter().filter_map(|(id, count)| {
            let running = self.running.get(id)?;
            Some(self.blocks.needed(running.computed + count))
        });
        let width = blocks.max().unwrap_or(0);
        let mut plan = StepPlan {
            number,
            opens: batch.opens,
            ids: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            starts: Vec::with_capacity(rows + 1),
            context: Vec::with_capacity(rows),
            flags: Vec::with_capacity(rows),
            index: Vec::with_capacity(rows),
            tokens: Vec::with_capacity(tokens),
            blocks: Vec::with_capacity(rows * width),
            width,
            targets: Vec::new(),
            top: 0,
        };
        plan.starts.push(0);
        let mut flights = Vec::with_capacity(rows);
        for (id, count) in batch.rows {
            if let Some(running) = self.running.get_mut(&id) {
                flights.push(running.write(id, count, &mut plan));
                running.offer_blocks(&mut self.blocks);
            }
        }
        if !plan.targets.is_empty() {
            plan.targets.resize(tokens, NO_TARGET);
        }
        self.in_flight.push_back(Step {
            number,
            rows: flights,
            decodes: batch.decodes,
            prefill,
            top: plan.top,
            targets: plan.targets.len(),
        });
        plan
    }
}

impl Running {
    /// Appends a row that computes the next `count` positions.
    fn write(&mut self, id: SequenceId, count: usize, plan: &mut StepPlan) -> Row {
        let (start, end) = (self.computed, self.computed + count);
        let len = self.live.len();
        let draws = end == len && len < self.extent.tokens;
        let first = plan.tokens.len();

        let mut flags = if draws { step::SAMPLE } else { 0 };
        let steered = self.live.is_steered();
        if steered {
            flags |= step::STEERED;
        }
        if std::mem::take(&mut self.parked) {
            flags |= step::PARKED;
        }
        for position in start..end {
            let token = self.live.token(position);
            // Only the last token can be unknown, so the row has no other.
            if token.is_none() {
                flags |= step::INPUT_SAMPLED;
            }
            plan.tokens.push(token.map_or(0, |token| token as i32));
        }
        self.served = (plan.number, plan.ids.len());
        plan.ids.push(id);
        plan.slots.push(self.slot as i32);
        plan.starts.push(plan.tokens.len() as i32);
        plan.context.push(start as i32);
        plan.flags.push(flags);
        plan.index.push((len - self.live.prompt_len()) as i32);

        // The blocks behind `end` that a prefill owns already are left out: they would make
        // every row of the step wider.
        let padded = plan.blocks.len() + plan.width;
        let table = self.table.as_slice().iter().take(plan.width);
        plan.blocks.extend(table.map(|&block| block as i32));
        plan.blocks.resize(padded, 0);

        let scored = self.live.unscored(start..end);
        if !scored.is_empty() {
            plan.targets.resize(first, NO_TARGET);
            plan.targets.extend((start..end).map(|position| {
                let next = self.live.token(position + 1);
                match scored.contains(&position) {
                    true => next.map_or(NO_TARGET, |token| token as i32),
                    false => NO_TARGET,
                }
            }));
        }
        let top_logprobs = self.live.top_logprobs();
        if draws || !scored.is_empty() {
            plan.top = plan.top.max(top_logprobs.unwrap_or(0));
        }

        self.computed = end;
        self.live.depart(draws);
        Row {
            id,
            draws,
            steered,
            count,
            end,
            top_logprobs,
            first_target: first + scored.start.saturating_sub(start),
            scored,
        }
    }
}
