//! The line: sequences that wait for a slot and blocks.

use std::collections::BTreeMap;

use super::live::Live;
use super::shares::{Party, Queues, Shares};
use crate::batching::sequence::SequenceId;

/// Sequences that wait, and what decides whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: BTreeMap<SequenceId, Live>,
    /// The names of those in `waiting`, by party.
    queues: Queues,
    /// There may be suspects among them.
    pub(super) suspects: bool,
    pub(super) shares: Shares,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn get(&self, id: SequenceId) -> Option<&Live> {
        self.waiting.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Live> {
        self.waiting.get_mut(&id)
    }

    pub(super) fn insert(&mut self, id: SequenceId, live: Live) {
        self.queues.entry(live.party()).or_default().insert(id);
        self.suspects |= live.is_suspect();
        self.waiting.insert(id, live);
    }

    pub(super) fn remove(&mut self, id: SequenceId) -> Option<Live> {
        let live = self.waiting.remove(&id)?;
        if let Some(queue) = self.queues.get_mut(&live.party()) {
            queue.remove(&id);
            if queue.is_empty() {
                self.queues.remove(&live.party());
            }
        }
        Some(live)
    }

    pub(super) fn pop_first(&mut self) -> Option<(SequenceId, Live)> {
        let (&id, _) = self.waiting.first_key_value()?;
        Some((id, self.remove(id)?))
    }

    /// The oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SequenceId, &Live)> {
        self.waiting.iter().map(|(&id, live)| (id, live))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (SequenceId, &mut Live)> {
        self.waiting.iter_mut().map(|(&id, live)| (id, live))
    }

    /// Counts who is at work, beside what runs.
    pub(super) fn count<'a>(&mut self, running: impl Iterator<Item = &'a Live>) {
        self.shares.count(running, &self.queues);
    }

    /// Every party that waits, and its sequences, the oldest first.
    pub(super) fn parties(
        &self,
    ) -> impl Iterator<Item = (Party, impl Iterator<Item = (SequenceId, &Live)>)> {
        self.queues.iter().map(|(&party, queue)| {
            let sequences = queue.iter().copied();
            let live = sequences.filter_map(|id| Some((id, self.waiting.get(&id)?)));
            (party, live)
        })
    }

    /// Takes the sequence out that starts.
    pub(super) fn start(&mut self, id: SequenceId) -> Option<Live> {
        let live = self.remove(id)?;
        self.shares.start(live.party(), &self.queues);
        Some(live)
    }
}
