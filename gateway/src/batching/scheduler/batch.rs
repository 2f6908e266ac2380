//! Planning: who computes how much in a step.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::SequenceView;
use super::attached::{Attached, Running};
use super::live::Live;
use crate::batching::blocks::{BlockTable, Found};
use crate::batching::plan::StepPlan;
use crate::batching::sequence::SequenceId;

/// A step that decodes keeps one part in so many of its tokens for prefill, so that a batch full of
/// decodes cannot keep a prompt from being read.
const PREFILL_SHARE: usize = 4;

/// How many times as long as without prefill a step may take that also decodes, so that the time
/// between two tokens of a stream stays flat when a long prompt arrives.
const STRETCH: f64 = 1.8;

/// The same where many wait for their first token, and few for their next one.
const MOST_STRETCH: f64 = 16.0;

/// How many that wait for their next token each counts for that waits for its first, beyond one of
/// them. Where requests arrive together, the sooner all of them are read the better the batch; a
/// lone one is to disturb nobody.
const CROWD: f64 = 32.0;

/// Tokens that a step which also decodes keeps for prefill.
pub(super) fn prefill_share(budget: usize) -> usize {
    (budget / PREFILL_SHARE).max(1)
}

/// Which sequences compute how many positions in a step, and which of them start with it.
#[derive(Default)]
pub(super) struct Batch {
    /// The first so many rows decode.
    pub(super) decodes: usize,
    pub(super) rows: Vec<(SequenceId, usize)>,
    pub(super) opens: Vec<(u32, SequenceId)>,
}

impl Batch {
    pub(super) fn add(&mut self, id: SequenceId, count: usize) -> usize {
        self.rows.push((id, count));
        count
    }
}

/// The block table of a step: as many rows as it has sequences, as wide as the widest of them.
///
/// It counts with the widest of all that run and of the sequence next in line, whether or not
/// they are in this step: so they always find a row when it is their turn.
struct Table {
    /// Most entries.
    most: usize,
    /// Blocks of the widest row that may come in.
    width: usize,
    /// Whether a prompt is to be read, for which a row must be left.
    prefills: bool,
}

impl Table {
    /// For what runs, and for the sequence that would be admitted next.
    fn new(worker: &Attached, waiting: &BTreeMap<SequenceId, Live>, most: usize) -> Self {
        let running = worker.running.values();
        let next = waiting.values().next().filter(|next| worker.has_room(next));
        let widest = running.clone().map(|running| running.table.len()).max();
        let next_width = next.map_or(0, |next| worker.blocks.needed(next.known()));
        Self {
            most,
            width: widest.unwrap_or(0).max(next_width),
            prefills: next.is_some() || running.clone().any(|r| r.remaining() > 1),
        }
    }

    /// Most rows: at least a decode and a part of a prompt.
    fn rows(&self) -> usize {
        (self.most / self.width.max(1)).max(2)
    }

    /// Makes room for one more row of this width. False if it does not fit beside `rows` others.
    fn widen(&mut self, width: usize, rows: usize) -> bool {
        let widened = Self {
            width: self.width.max(width),
            ..*self
        };
        let fits = rows < widened.rows();
        if fits {
            *self = widened;
        }
        fits
    }
}

impl Attached {
    /// Plans a step, if there is one to plan, and says how many sequences went back to waiting
    /// for lack of blocks.
    pub(super) fn plan(
        &mut self,
        waiting: &mut BTreeMap<SequenceId, Live>,
        number: u64,
        max_table: usize,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) -> (Option<StepPlan>, u64) {
        let mut batch = Batch::default();
        let mut preempted = 0;
        let suspect = self.suspect(waiting);
        if suspect.is_some_and(|id| !self.is_alone(id)) {
            // What is in flight of others must arrive first.
            return (None, 0);
        }
        if suspect
            .is_none_or(|id| !self.try_alone(id, &mut batch, waiting, reserve, &mut preempted))
        {
            preempted += self.make_room(waiting, |_| true);
            let table = Table::new(self, waiting, max_table);
            self.add_decodes(&mut batch, &table);
            self.add_prefill(&mut batch, table, waiting, reserve);
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
    fn add_decodes(&self, batch: &mut Batch, table: &Table) {
        let (mut tokens, mut rows) = (self.limits.max_step_tokens as usize, table.rows());
        if table.prefills {
            tokens -= prefill_share(tokens);
            rows -= 1;
        }
        let most = tokens.min(rows);
        let decodes = self.running.iter().filter(|(_, r)| r.remaining() == 1);
        let mut decodes: Vec<_> = decodes.map(|(&id, r)| (r.served, id)).collect();
        if decodes.len() > most {
            decodes.sort_unstable();
            decodes.truncate(most);
        }
        batch
            .rows
            .extend(decodes.into_iter().map(|(_, id)| (id, 1)));
        batch.decodes = batch.rows.len();
    }

    /// Adds chunks of prompts with what the decodes leave: first of the sequences that run, then
    /// of waiting ones, both in order of age.
    fn add_prefill(
        &mut self,
        batch: &mut Batch,
        mut table: Table,
        waiting: &mut BTreeMap<SequenceId, Live>,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) {
        let budget = self.limits.max_step_tokens as usize;
        let prefills = self.running.iter().filter(|(_, r)| r.remaining() > 1);
        let prefills: Vec<_> = prefills.map(|(&id, _)| id).collect();
        let mut left = match batch.decodes {
            0 => budget,
            _ if !table.prefills => return,
            decodes => {
                let others = (self.crowd(decodes, waiting) - 1.0).max(0.0);
                let stretch = 1.0 + CROWD * others / decodes as f64;
                let stretch = stretch.clamp(STRETCH, MOST_STRETCH);
                let bears = self.pace.prefill_beside(decodes, stretch);
                bears.min(budget - decodes)
            }
        };
        for id in prefills {
            if left == 0 || batch.rows.len() == table.rows() {
                return;
            }
            left -= self.add_chunk(batch, id, left);
        }
        while left > 0
            && let Some((&id, next)) = waiting.first_key_value()
            // A suspect joins nobody.
            && !next.is_suspect()
            && table.widen(self.blocks.needed(next.known()), batch.rows.len())
            // Its opening needs a step to go with.
            && (!batch.rows.is_empty() || !self.is_coming(id, next, self.found(next).blocks))
            && let Some((id, running)) = self.admit(waiting, reserve)
        {
            batch.opens.push((running.slot, id));
            left -= self.add_chunk(batch, id, left);
        }
    }

    /// How many wait for their first token, of those that there is a slot for. A prompt too long for
    /// any step beside so many decodes counts as the part of it that one reads: to hurry it would
    /// disturb the streams for long, and help but one.
    fn crowd(&self, decodes: usize, waiting: &BTreeMap<SequenceId, Live>) -> f64 {
        let most = self.pace.bears(decodes, MOST_STRETCH) as f64;
        let running = self.running.values().map(Running::remaining);
        let waiting = waiting.values().take(self.slots.free()).map(Live::known);
        let unread = running.filter(|&left| left > 1).chain(waiting);
        unread.map(|left| (most / left as f64).min(1.0)).sum()
    }

    /// Adds what fits of a prompt, unless it is to wait for another one that begins alike; returns
    /// how many tokens that is.
    fn add_chunk(&mut self, batch: &mut Batch, id: SequenceId, left: usize) -> usize {
        let waits = self.catch_up(id);
        match self.running.get(&id).filter(|_| !waits) {
            Some(running) => batch.add(id, running.remaining().min(left)),
            None => 0,
        }
    }

    /// Whether a waiting sequence can be admitted. While others run there must be a free block
    /// left for each of them: a sequence that pushes others out, or is pushed out at once, only
    /// costs. Tokens in flight must arrive first: they are to be prefilled too.
    pub(super) fn has_room(&self, live: &Live) -> bool {
        self.room(live).is_some()
    }

    /// The same, and what it would find.
    fn room(&self, live: &Live) -> Option<Found> {
        if live.is_in_flight() || self.slots.free() == 0 {
            return None;
        }
        let found = self.found(live);
        let taken = self.blocks.needed(live.known()) - found.blocks + found.idle;
        (taken + self.running.len() <= self.blocks.free()).then_some(found)
    }

    /// Gives the oldest waiting sequence a slot and blocks for all its tokens, if there is room
    /// for it on the worker and on the way there.
    pub(super) fn admit(
        &mut self,
        waiting: &mut BTreeMap<SequenceId, Live>,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) -> Option<(SequenceId, &Running)> {
        let oldest = waiting.first_entry()?;
        let live = oldest.get();
        let found = self.room(live)?.blocks;
        if !reserve(&live.view()) {
            return None;
        }
        let extent = self.extent(live);
        let slot = self.slots.take()?;
        let mut table = BlockTable::default();
        for name in live.names().iter().take(found) {
            let shared = self.blocks.share(&mut table, name);
            debug_assert!(shared);
        }
        let named = table.len();
        self.found += named * self.blocks.size();
        let covered = self.blocks.cover(&mut table, live.known());
        debug_assert!(covered);
        let (id, live) = oldest.remove_entry();
        let running = Running {
            live,
            slot,
            table,
            extent,
            computed: named * self.blocks.size(),
            named,
            served: (0, 0),
        };
        Some((id, self.running.entry(id).or_insert(running)))
    }
}
