//! Trials: how the sequence that kills workers is found, and nobody else fails with it.
//!
//! Every sequence in flight when a worker died is a suspect. Suspects compute alone, one after
//! the other, the oldest first, until each has computed again what was in flight. One that is in
//! flight alone when a worker dies once more was there both times, and fails; all others go on.
//! So a poisonous sequence costs two workers, however large its company was; three where workers seem
//! to be ended from outside, as by a system without memory.
//!
//! What steers a sequence runs beside the steps, also while none of them is in flight. So sequences
//! that are steered leave the worker while a suspect is on it, and a suspect that is steered stays
//! one until it has its tokens: that its plan is late says nothing.

use std::collections::BTreeSet;

use super::SequenceView;
use super::attached::Attached;
use super::batch::Batch;
use super::line::Line;
use super::live::Live;
use super::shares::Turn;
use crate::batching::sequence::SequenceId;

impl Attached {
    /// The suspect whose turn it is: one that runs, or else the waiting sequence that is next if
    /// it is a suspect and there is room for it. A suspect that must wait for room lets others
    /// compute, as that is what makes the room.
    pub(super) fn suspect(&self, next: Option<(Turn, &Live)>) -> Option<SequenceId> {
        let running = self.running.iter().find(|(_, r)| r.live.is_suspect());
        running.map(|(&id, _)| id).or_else(|| {
            let (turn, next) = next?;
            (next.is_suspect() && self.has_room(next)).then_some(turn.id)
        })
    }

    /// Whether nothing but this sequence is in flight.
    pub(super) fn is_alone(&self, id: SequenceId) -> bool {
        let mut rows = self.in_flight.iter().flat_map(|step| &step.rows);
        rows.all(|row| row.id == id)
    }

    /// Takes off what is steered by code of its own, but for a suspect that is about to compute alone; or all of it if
    /// `another` is to be tried, and nothing is in flight. Returns how many sequences that were.
    pub(super) fn clear_for_trial(&mut self, line: &mut Line, cheap: usize, another: bool) -> u64 {
        line.count(self.running.values().map(|running| &running.live));
        let tried = self.suspect(self.next(line, cheap, &BTreeSet::new()));
        let clear = match tried {
            Some(id) => self.is_alone(id),
            None => another && self.in_flight.is_empty(),
        };
        let others = self
            .running
            .iter()
            .filter(|&(&id, running)| clear && running.live.runs_code() && Some(id) != tried);
        let others: Vec<_> = others.map(|(&id, _)| id).collect();
        for &id in &others {
            self.preempt(id, line);
            if let Some(live) = line.get_mut(id) {
                live.make_way();
            }
        }
        others.len() as u64
    }

    /// Plans the next part of a suspect that is alone, admitting it if it waits. False if it had
    /// to make room itself.
    pub(super) fn try_alone(
        &mut self,
        id: SequenceId,
        batch: &mut Batch,
        line: &mut Line,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
        preempted: &mut u64,
    ) -> bool {
        if !self.running.contains_key(&id)
            && let Some(admitted) = self.admit(id, line, reserve)
        {
            batch.opens.push((admitted.slot, id));
        }
        *preempted += self.make_room(line, |other| other == id);
        let Some(running) = self.running.get(&id) else {
            return false;
        };
        let count = running
            .remaining()
            .min(self.limits.max_step_tokens as usize);
        if running.parked || count > 0 && !running.is_ahead() {
            batch.rows.push((id, count));
        }
        true
    }
}
