//! Room: who gets a slot and blocks, and who gives way.
//!
//! Sequences give way to those of a better class, and to those of a tenant that has less than its
//! part where their own has more than its own: never so much that it is left with less, so that
//! nobody takes turns in pushing each other out. Only for what already runs does the youngest of
//! all give way, whosever it is, so that the oldest gets what it needs in the end.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::SequenceView;
use super::attached::{Attached, Running};
use super::line::Line;
use super::live::Live;
use super::shares::{Party, Shares};
use crate::batching::blocks::{BlockTable, Found};
use crate::batching::sequence::SequenceId;

/// What there is too little of.
#[derive(Debug, Clone, Copy)]
enum Short {
    Slots,
    Blocks,
}

// === For sequences that start ===

impl Attached {
    /// Whether a waiting sequence can be admitted. While others run there must be a free block
    /// left for each of them: a sequence that pushes others out, or is pushed out at once, only
    /// costs.
    pub(super) fn has_room(&self, live: &Live) -> bool {
        self.room(live).is_some()
    }

    /// The same, and what it would find.
    fn room(&self, live: &Live) -> Option<Found> {
        if live.is_in_flight() || self.slots.free() == 0 {
            return None;
        }
        let found = self.found(live);
        let fits = self.taken(live, found) + self.running.len() <= self.blocks.free();
        fits.then_some(found)
    }

    /// Blocks that would not be free any more if a sequence that finds these started.
    fn taken(&self, live: &Live, found: Found) -> usize {
        self.blocks.needed(live.known()) - found.blocks + found.idle
    }

    /// Whether a sequence that waits may start, as far as its tenant's part of the blocks goes.
    pub(super) fn may_hold(&self, live: &Live, shares: &Shares) -> bool {
        let tenant = live.party().tenant;
        shares.most_blocks(tenant, self.blocks.total()) >= self.blocks.total()
            || self.may_grow(
                live.party(),
                self.taken(live, self.found(live)) + 1,
                0,
                shares,
            )
    }

    /// Gives a waiting sequence a slot and blocks for all its tokens, if there is room for it on
    /// the worker and on the way there.
    pub(super) fn admit(
        &mut self,
        id: SequenceId,
        line: &mut Line,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) -> Option<&Running> {
        let live = line.get(id)?;
        let found = self.room(live)?.blocks;
        if !reserve(&live.view()) {
            return None;
        }
        let live = line.start(id)?;
        let extent = self.extent(&live);
        let slot = self.slots.take()?;
        // What is opened need not be closed before.
        self.closed.retain(|&closed| closed != slot);
        let mut table = BlockTable::new(live.party().tenant);
        for name in live.names().iter().take(found) {
            let shared = self.blocks.share(&mut table, name);
            debug_assert!(shared);
        }
        let named = table.len();
        self.found += named * self.blocks.size();
        let covered = self.blocks.cover(&mut table, live.known());
        debug_assert!(covered);
        let running = Running {
            began: (live.known(), named * self.blocks.size()),
            live,
            slot,
            table,
            extent,
            computed: named * self.blocks.size(),
            parked: false,
            late: false,
            named,
            served: (0, 0),
        };
        Some(self.running.entry(id).or_insert(running))
    }

    /// Makes way for the sequence whose turn it is to start, if there is no room for it. Whoever
    /// gives way loses little by it, so that nothing is read in vain for ever.
    /// Returns how many did.
    pub(super) fn make_way(&mut self, next: SequenceId, line: &mut Line) -> u64 {
        let Some(live) = line.get(next).filter(|live| !live.is_suspect()) else {
            return 0;
        };
        let (party, shares) = (live.party(), &line.shares);
        let (mut slots, mut free) = (self.slots.free(), self.blocks.free());
        let taken = self.taken(live, self.found(live));
        let mut giving = Vec::new();
        while slots == 0 || taken + self.running.len() > free + giving.len() {
            let short = if slots == 0 {
                Short::Slots
            } else {
                Short::Blocks
            };
            let more = match short {
                Short::Slots => 1,
                Short::Blocks => taken,
            };
            let (has, part) = self.holding(party, short, shares);
            let within = (has + more) as f64 <= part;
            let may = |of: Party, running: &Running| {
                running.may_wait() && (within || of.priority > party.priority)
            };
            let Some(id) = self.beyond(party, short, &giving, shares, may) else {
                return 0;
            };
            slots += 1;
            let running = self.running.get(&id);
            free += running.map_or(0, |running| running.table.len());
            giving.push(id);
        }
        giving.iter().for_each(|&id| self.preempt(id, line));
        giving.len() as u64
    }
}

// === For sequences that grow ===

impl Attached {
    /// Sees to it that every decode of those to be served has a block to write to, the oldest
    /// first. Where it may have none another sequence makes room, which may be the very one that
    /// asks. Returns how many did.
    ///
    /// Prefill needs no room: a sequence got the blocks of all its tokens when it was admitted.
    pub(super) fn make_room(
        &mut self,
        line: &mut Line,
        served: impl Fn(SequenceId) -> bool,
    ) -> u64 {
        let mut preempted = 0;
        let mut after = Bound::Unbounded;
        while let Some((&id, running)) = self.running.range((after, Bound::Unbounded)).next() {
            if served(id) && running.remaining() == 1 && !self.grow(id, &line.shares) {
                if let Some(victim) = self.victim(id, &line.shares) {
                    self.preempt(victim, line);
                    preempted += 1;
                }
                continue;
            }
            after = Bound::Excluded(id);
        }
        preempted
    }

    /// Covers the next position of a sequence. False if it may not have one more block, or none is
    /// free.
    fn grow(&mut self, id: SequenceId, shares: &Shares) -> bool {
        let Some(running) = self.running.get(&id) else {
            return true;
        };
        let next = running.computed + 1;
        let more = self.blocks.needed(next) > running.table.len();
        if more && !self.may_grow(running.live.party(), 1, 1, shares) {
            return false;
        }
        let running = self.running.get_mut(&id);
        running.is_none_or(|running| self.blocks.cover(&mut running.table, next))
    }

    /// Whether a tenant may have so many more blocks, if so many of its sequences run. One sequence
    /// may have what it needs.
    fn may_grow(&self, party: Party, more: usize, one: usize, shares: &Shares) -> bool {
        let most = shares.most_blocks(party.tenant, self.blocks.total());
        self.blocks.used_by(party.tenant) + more <= most || {
            let own = self.running.values().map(|running| running.live.party());
            own.filter(|own| own.tenant == party.tenant).count() <= one
        }
    }

    /// Who makes room for a sequence that grows: one of its own tenant where that has all it may
    /// have; else one of those beyond their part; else the youngest of the worst class.
    fn victim(&self, asks: SequenceId, shares: &Shares) -> Option<SequenceId> {
        let party = self.running.get(&asks)?.live.party();
        let own = !self.may_grow(party, 1, 1, shares);
        let beyond = || self.beyond(party, Short::Blocks, &[], shares, |_, _| true);
        let all = self.running.iter().map(|(&id, r)| (r.live.party(), id));
        let all = all.filter(|(of, _)| !own || of.tenant == party.tenant);
        let youngest = all.map(|(of, id)| (of.priority, id)).max();
        Some(beyond().filter(|_| !own).unwrap_or(youngest?.1))
    }

    /// Who has most beyond its part, beside those that give way already: of a worse class than the
    /// party that asks, or of a tenant that keeps its part without it.
    fn beyond(
        &self,
        asks: Party,
        short: Short,
        giving: &[SequenceId],
        shares: &Shares,
        may: impl Fn(Party, &Running) -> bool,
    ) -> Option<SequenceId> {
        let used = |running: &Running| match short {
            Short::Slots => 1,
            Short::Blocks => running.table.len(),
        };
        let mut youngest = BTreeMap::new();
        let mut given: BTreeMap<_, usize> = BTreeMap::new();
        for (&id, running) in &self.running {
            let party = running.live.party();
            if giving.contains(&id) {
                *given.entry(party.tenant).or_default() += used(running);
            } else {
                // They come in order of age.
                youngest.insert(party, (id, running));
            }
        }
        let beyond = youngest.into_iter().filter_map(|(party, (id, running))| {
            let (has, part) = self.holding(party, short, shares);
            let gone = given.get(&party.tenant).unwrap_or(&0) + used(running);
            let keeps = has.saturating_sub(gone) as f64 / part;
            let gives =
                party.priority > asks.priority || party.priority == asks.priority && keeps >= 1.0;
            // Percent: floating-point numbers have no order.
            let key = (party.priority, (keeps * 100.0) as u64, id);
            (gives && may(party, running)).then_some(key)
        });
        beyond.max().map(|(_, _, id)| id)
    }

    /// What a party's tenant has of what is short, and what its part of that is.
    fn holding(&self, party: Party, short: Short, shares: &Shares) -> (usize, f64) {
        let (has, total) = match short {
            Short::Slots => (shares.running(party.tenant), self.slots.total()),
            Short::Blocks => (self.blocks.used_by(party.tenant), self.blocks.total()),
        };
        (has, shares.part(party.tenant, total))
    }

    /// Takes a sequence's slot and blocks: it waits from here on.
    pub(super) fn preempt(&mut self, id: SequenceId, line: &mut Line) {
        if let Some(live) = self.evict(id) {
            line.insert(id, live);
        }
    }
}
