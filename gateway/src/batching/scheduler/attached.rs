//! The worker that a scheduler plans for: the sequences that run on it and the steps in flight.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::Stats;
use super::live::{Extent, Live};
use super::pace::Pace;
use crate::batching::blocks::{BlockTable, Blocks, Found, Pool};
use crate::batching::limits::Limits;
use crate::batching::plan::{ResultError, StepResult};
use crate::batching::sequence::{Event, FailReason, FinishReason, SequenceId};

/// A worker with the sequences that run on it.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) limits: Limits,
    pub(super) blocks: Blocks,
    pub(super) slots: Pool,
    /// Slots to be closed: what steered their sequences takes up room on the worker.
    pub(super) closed: VecDeque<u32>,
    pub(super) running: BTreeMap<SequenceId, Running>,
    /// Oldest first.
    pub(super) in_flight: VecDeque<Step>,
    /// When the oldest step in flight is overdue.
    pub(super) deadline: Option<Instant>,
    pub(super) pace: Pace,
    /// Positions that were found in the arena instead of being computed, since the last plan.
    pub(super) found: usize,
}

/// A sequence with a slot and blocks.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) live: Live,
    pub(super) slot: u32,
    pub(super) table: BlockTable,
    pub(super) extent: Extent,
    /// Positions in the arena once every row in flight is computed.
    pub(super) computed: usize,
    /// Its program was late, and nothing of it is in flight: it is to draw from the logits that the
    /// worker kept.
    pub(super) parked: bool,
    /// Its program was late for the token that is to be drawn next.
    pub(super) late: bool,
    /// Blocks from the front that can be shared.
    pub(super) named: usize,
    /// Tokens that it had when it started here, and positions that were found.
    pub(super) began: (usize, usize),
    /// The last row it had: number of the step, and its place in it. Zeros for none.
    pub(super) served: (u64, usize),
}

/// What must be remembered of a step until its result is there.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) number: u64,
    pub(super) rows: Vec<Row>,
    /// Rows that only decode.
    pub(super) decodes: usize,
    /// Tokens of all other rows.
    pub(super) prefill: usize,
    /// Alternatives per reported token.
    pub(super) top: usize,
    /// Entries of the step's targets.
    pub(super) targets: usize,
}

/// One sequence's part in a step.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: SequenceId,
    /// Whether it draws a token.
    pub(super) draws: bool,
    /// Whether a program steers that.
    pub(super) steered: bool,
    /// Positions that it computes.
    pub(super) count: usize,
    /// Position after the last of them.
    pub(super) end: usize,
    /// Alternatives to report of a token drawn; None for no log-probabilities.
    pub(super) top_logprobs: Option<usize>,
    /// Positions whose next prompt token it scores.
    pub(super) scored: Range<usize>,
    /// Where the entry of the first of them is in the step's targets.
    pub(super) first_target: usize,
}

impl Running {
    /// Positions that can be computed now.
    pub(super) fn remaining(&self) -> usize {
        self.live.len().min(self.extent.positions) - self.computed
    }

    /// Whether its next row draws a token and computes one position at most.
    pub(super) fn decodes(&self) -> bool {
        self.parked || self.remaining() == 1 && !self.is_ahead()
    }

    /// Whether no more of it may be in flight. Where it is steered and the program is late, the next
    /// row draws the token that the first one did not; one behind that would compute a wrong position.
    /// And while it is late, what is computed beside is void, and takes from it the time that it needs.
    pub(super) fn is_ahead(&self) -> bool {
        let (_, draws) = self.live.flights();
        self.live.is_steered() && draws > usize::from(!self.late)
    }

    /// Whether to start it again later costs little that is done: it has drawn a token since it
    /// started, or nothing was read of it yet.
    pub(super) fn may_wait(&self) -> bool {
        let (tokens, found) = self.began;
        self.live.known() > tokens || self.computed == found
    }

    /// Lets others share the blocks that are full with what is sent by now. The worker executes
    /// in order: whoever reads them does so in a later step.
    pub(super) fn offer_blocks(&mut self, blocks: &mut Blocks) {
        let names = self.live.names().iter().take(self.computed / blocks.size());
        for (at, name) in names.enumerate().skip(self.named) {
            blocks.name(&self.table, at, *name);
            self.named = at + 1;
        }
    }
}

// === Sequences on the worker ===

impl Attached {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            blocks: Blocks::new(limits.block_size, limits.block_count),
            slots: Pool::new(limits.max_sequences),
            closed: VecDeque::new(),
            running: BTreeMap::new(),
            in_flight: VecDeque::new(),
            deadline: None,
            pace: Pace::default(),
            found: 0,
        }
    }

    pub(super) fn max_context(&self) -> usize {
        self.limits.max_context as usize
    }

    pub(super) fn extent(&self, live: &Live) -> Extent {
        live.extent(self.max_context())
    }

    /// How a sequence that has not started here must end before it does, if it must.
    pub(super) fn verdict(&self, live: &Live) -> Option<Event> {
        let extent = self.extent(live);
        if live.prompt_len() > extent.tokens
            || self.blocks.needed(extent.positions) > self.blocks.total()
        {
            return Some(Event::Failed(FailReason::TooLong));
        }
        // It came from a worker with a longer context.
        (live.known() > extent.positions).then_some(Event::Finished(FinishReason::Length))
    }

    pub(super) fn live(&self, id: SequenceId) -> Option<&Live> {
        self.running.get(&id).map(|running| &running.live)
    }

    pub(super) fn live_mut(&mut self, id: SequenceId) -> Option<&mut Live> {
        self.running.get_mut(&id).map(|running| &mut running.live)
    }

    /// Blocks that the arena holds already of a sequence that is to start.
    pub(super) fn found(&self, live: &Live) -> Found {
        self.blocks.find(live.usable_names())
    }

    /// Takes over the blocks that follow what is computed of a running sequence and that others
    /// have computed since it started. Whether an older one is about to compute the next: then it
    /// is to wait for that, so that nobody computes it twice. The choices of a request arrive
    /// together, and so do requests that begin alike.
    pub(super) fn catch_up(&mut self, id: SequenceId) -> bool {
        let size = self.blocks.size();
        let Some(running) = self.running.get_mut(&id) else {
            return false;
        };
        let mut at = running.computed / size;
        while let Some(name) = running.live.usable_names().get(at)
            && self.blocks.replace(&mut running.table, at, name)
        {
            at += 1;
            self.found += at * size - running.computed;
            running.computed = at * size;
        }
        let running = self.running.get(&id);
        running.is_some_and(|running| self.is_coming(id, &running.live, at))
    }

    /// Whether a sequence that is older than this one and runs is about to compute block `at` of
    /// it, so that it need not be computed again. One of a worse class may take its time.
    pub(super) fn is_coming(&self, id: SequenceId, live: &Live, at: usize) -> bool {
        let end = (at + 1) * self.blocks.size();
        let mut older = self.running.range(..id).map(|(_, older)| older);
        live.usable_names().get(at).is_some_and(|name| {
            older.any(|o| {
                let soon = o.computed < end && o.live.party().priority <= live.party().priority;
                soon && o.live.names().get(at) == Some(name)
            })
        })
    }

    /// Sees to it that nobody takes over what a running sequence computed, or found.
    pub(super) fn disown(&mut self, id: SequenceId) {
        if let Some(running) = self.running.get_mut(&id) {
            self.blocks.unname(&running.table);
            running.named = running.table.len();
        }
    }

    /// Takes a sequence off the worker; its slot and blocks are free.
    pub(super) fn evict(&mut self, id: SequenceId) -> Option<Live> {
        let mut running = self.running.remove(&id)?;
        self.slots.give(running.slot);
        if running.live.is_steered() {
            self.closed.push_back(running.slot);
        }
        running.offer_blocks(&mut self.blocks);
        self.blocks.release(running.table);
        Some(running.live)
    }

    pub(super) fn into_sequences(self) -> impl Iterator<Item = (SequenceId, Live)> {
        let running = self.running.into_iter();
        running.map(|(id, running)| (id, running.live))
    }

    pub(super) fn measure(&self, stats: &mut Stats) {
        stats.running = self.running.len();
        stats.steps_in_flight = self.in_flight.len();
        stats.blocks_total = self.blocks.total();
        stats.blocks_used = self.blocks.total() - self.blocks.free();
    }
}

// === Steps in flight ===

impl Attached {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes the oldest step out of flight, if this is an answer to it. It took the worker as long
    /// as `busy`.
    pub(super) fn answer(
        &mut self,
        result: &StepResult<'_>,
        busy: Duration,
    ) -> Result<Step, ResultError> {
        let Some(step) = self.in_flight.pop_front() else {
            return Err(ResultError::Unasked {
                number: result.number,
            });
        };
        if let Err(error) = step.check(result, self.limits.vocab_size) {
            self.in_flight.push_front(step);
            return Err(error);
        }
        self.deadline = None;
        self.pace.learn(step.decodes, step.prefill, busy);
        Ok(step)
    }

    /// What part of a step's time was for each of its sequences: a decode counts as much as the
    /// tokens of prefill that it takes as long as.
    pub(super) fn parts(&self, step: &Step, busy: Duration) -> Vec<(SequenceId, Duration)> {
        let row = self.pace.row_cost(step.decodes);
        let weights = step
            .rows
            .iter()
            .enumerate()
            .map(|(at, of)| match at < step.decodes {
                true => row,
                // One that is parked computes nothing, and may be alone.
                false => of.count.max(1) as f64,
            });
        let all: f64 = weights.clone().sum();
        let parts = weights.map(|weight| busy.mul_f64(weight / all));
        step.rows.iter().map(|row| row.id).zip(parts).collect()
    }

    /// Gives the oldest step in flight its deadline, unless it has one: the worker computes one
    /// step at a time, so a step's time begins when the one before it is answered.
    pub(super) fn start_clock(&mut self, now: Instant, timeout: Duration) {
        if !self.in_flight.is_empty() && self.deadline.is_none() {
            self.deadline = now.checked_add(timeout);
        }
    }
}
