//! Planning: who computes how much in a step.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::attached::{Attached, Running};
use super::live::Live;
use crate::batching::blocks::BlockTable;
use crate::batching::plan::StepPlan;
use crate::batching::sequence::SequenceId;

/// A step that decodes gives prefill one part in so many of its tokens, no more and no less: no
/// more, so that the time between two tokens of a stream stays flat when a long prompt arrives;
/// no less, so that a batch full of decodes cannot keep a prompt from being read.
const PREFILL_SHARE: usize = 4;

/// Tokens that a step which also decodes keeps for prefill.
pub(super) fn prefill_share(budget: usize) -> usize {
    (budget / PREFILL_SHARE).max(1)
}

/// Which sequences compute how many positions in a step, and which of them start with it.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) rows: Vec<(SequenceId, usize)>,
    pub(super) opens: Vec<(u32, SequenceId)>,
}

impl Batch {
    pub(super) fn add(&mut self, id: SequenceId, count: usize) -> usize {
        self.rows.push((id, count));
        count
    }
}

impl Attached {
    /// Plans a step, if there is one to plan, and says how many sequences went back to waiting
    /// for lack of blocks.
    pub(super) fn plan(
        &mut self,
        waiting: &mut BTreeMap<SequenceId, Live>,
        number: u64,
    ) -> (Option<StepPlan>, u64) {
        let mut batch = Batch::default();
        let mut preempted = 0;
        let suspect = self.suspect(waiting);
        if suspect.is_some_and(|id| !self.is_alone(id)) {
            // What is in flight of others must arrive first.
            return (None, 0);
        }
        if suspect.is_none_or(|id| !self.try_alone(id, &mut batch, waiting, &mut preempted)) {
            preempted += self.make_room(waiting, |_| true);
            self.add_decodes(&mut batch);
            self.add_prefill(&mut batch, waiting);
        }
        let plan = (!batch.rows.is_empty()).then(|| self.write(batch, number));
        (plan, preempted)
    }

    /// Sees to it that every decode of those to be served has a block to write to, the oldest
    /// first. Where none is free the youngest sequence makes room, which may be the very one that
    /// asks.
    ///
    /// Prefill needs no room: a sequence got the blocks of all its tokens when it was admitted.
    pub(super) fn make_room(
        &mut self,
        waiting: &mut BTreeMap<SequenceId, Live>,
        served: impl Fn(SequenceId) -> bool,
    ) -> u64 {
        let mut preempted = 0;
        let mut after = Bound::Unbounded;
        while let Some((&id, running)) = self.running.range_mut((after, Bound::Unbounded)).next() {
            if served(id)
                && running.remaining() == 1
                && !self.blocks.cover(&mut running.table, running.computed + 1)
            {
                if let Some((&youngest, _)) = self.running.last_key_value()
                    && let Some(live) = self.evict(youngest)
                {
                    waiting.insert(youngest, live);
                    preempted += 1;
                }
                continue;
            }
            after = Bound::Excluded(id);
        }
        preempted
    }

    /// Adds one token of every sequence that decodes. If the step has not room for all of them,
    /// those that were served longest ago go first, so that all take turns.
    fn add_decodes(&self, batch: &mut Batch) {
        let budget = self.limits.max_step_tokens as usize;
        let prefilling = self.running.values().any(|r| r.remaining() > 1);
        let budget = match prefilling {
            true => budget - prefill_share(budget),
            false => budget,
        };
        let decodes = self.running.iter().filter(|(_, r)| r.remaining() == 1);
        let mut decodes: Vec<_> = decodes.map(|(&id, r)| (r.served, id)).collect();
        if decodes.len() > budget {
            decodes.sort_unstable();
            decodes.truncate(budget);
        }
        batch
            .rows
            .extend(decodes.into_iter().map(|(_, id)| (id, 1)));
    }

    /// Adds chunks of prompts with what the decodes leave: first of the sequences that run, then
    /// of waiting ones, both in order of age.
    fn add_prefill(&mut self, batch: &mut Batch, waiting: &mut BTreeMap<SequenceId, Live>) {
        let budget = self.limits.max_step_tokens as usize;
        let mut left = match batch.rows.len() {
            0 => budget,
            decodes => (budget - decodes).min(prefill_share(budget)),
        };
        let prefills = self.running.iter().filter(|(_, r)| r.remaining() > 1);
        for (&id, running) in prefills {
            if left == 0 {
                return;
            }
            left -= batch.add(id, running.remaining().min(left));
        }
        while left > 0
            // A suspect joins nobody.
            && waiting.first_key_value().is_some_and(|(_, live)| !live.is_suspect())
            && let Some((id, running)) = self.admit(waiting)
        {
            batch.opens.push((running.slot, id));
            left -= batch.add(id, running.remaining().min(left));
        }
    }

    /// Whether a waiting sequence can be admitted. While others run there must be a free block
    /// left for each of them: a sequence that pushes others out, or is pushed out at once, only
    /// costs. Tokens in flight must arrive first: they are to be prefilled too.
    pub(super) fn has_room(&self, live: &Live) -> bool {
        let needed = self.blocks.needed(live.known()) + self.running.len();
        !live.is_in_flight() && needed <= self.blocks.free() && self.slots.free() > 0
    }

    /// Gives the oldest waiting sequence a slot and blocks for all its tokens, if there is room.
    pub(super) fn admit(
        &mut self,
        waiting: &mut BTreeMap<SequenceId, Live>,
    ) -> Option<(SequenceId, &Running)> {
        let oldest = waiting.first_entry()?;
        let live = oldest.get();
        if !self.has_room(live) {
            return None;
        }
        let extent = self.extent(live);
        let slot = self.slots.take()?;
        let mut table = BlockTable::default();
        let covered = self.blocks.cover(&mut table, live.known());
        debug_assert!(covered);
        let (id, live) = oldest.remove_entry();
        let running = Running {
            live,
            slot,
            table,
            extent,
            computed: 0,
            served: (0, 0),
        };
        Some((id, self.running.entry(id).or_insert(running)))
    }
}
