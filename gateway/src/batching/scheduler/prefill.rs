//! Prefill: whose prompts are read in a step, and how much of them.

use std::collections::BTreeSet;

use super::SequenceView;
use super::attached::{Attached, Running};
use super::batch::{Batch, Table};
use super::line::Line;
use super::live::Live;
use super::pace::LEAST;
use super::shares::{Party, Turn};
use crate::batching::limits::Config;
use crate::batching::sequence::SequenceId;

/// How many times as long as without prefill a step may take that also decodes, so that the time
/// between two tokens of a stream stays flat when a long prompt arrives.
const STRETCH: f64 = 1.8;

/// The same where many wait for their first token, and few for their next one.
const MOST_STRETCH: f64 = 16.0;

/// The same where others may come any moment, who would have to wait for two such steps; also of steps that
/// read alone, beside those that decode one sequence.
const POLITE_STRETCH: f64 = 5.0;

/// How many that wait for their next token each counts for that waits for its first, beyond one of
/// them. Where requests arrive together, the sooner all of them are read the better the batch; a
/// lone one is to disturb nobody.
const CROWD: f64 = 32.0;

/// How much of prompts a step reads.
struct Budget {
    /// Tokens in all.
    left: usize,
    /// Those of them that are kept for surplus, so that what is, is read slowly, but read.
    kept: usize,
    /// Tokens up to which surplus costs the others little, whoever's they are.
    spare: usize,
    /// Whether nobody is there to whom it would cost anything.
    harmless: bool,
    /// Tokens read within shares, and beyond them.
    sure: usize,
    surplus: usize,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.sure + self.surplus >= self.left
    }

    /// Tokens that may be read of a party's next prompt.
    fn most(&self, is_surplus: bool) -> usize {
        let most = match is_surplus {
            true if self.harmless && self.sure == 0 => self.left,
            true => {
                let beside = self.spare.saturating_sub(self.sure).max(self.kept);
                beside.min(self.left - self.sure)
            }
            false => (self.left - self.kept).saturating_sub(self.sure),
        };
        most.saturating_sub(self.surplus)
    }

    fn take(&mut self, is_surplus: bool, tokens: usize) {
        match is_surplus {
            true => self.surplus += tokens,
            false => self.sure += tokens,
        }
    }
}

/// What is read next.
enum Next<'a> {
    /// A sequence that runs, by its place in what is being read.
    Running(usize),
    /// One that waits.
    Waiting(SequenceId, &'a Live),
}

impl Attached {
    /// Adds chunks of prompts with what the decodes leave, of sequences that run and of those that
    /// wait, by whose turn it is.
    pub(super) fn add_prefill(
        &mut self,
        batch: &mut Batch,
        mut table: Table,
        line: &mut Line,
        config: &Config,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) {
        if batch.decodes > 0 && !table.prefills {
            return;
        }
        let reading = self.running.iter().filter(|(_, r)| r.remaining() > 1);
        let mut reading: Vec<SequenceId> = reading.map(|(&id, _)| id).collect();
        let mut budget = self.budget(batch.decodes, &reading, line, config);
        let mut shut = BTreeSet::new();
        let mut open = true;
        while !budget.is_spent() && batch.rows.len() < table.rows() {
            let next = match open {
                true => self.first(batch.cheap, &reading, line, &shut),
                false => self.first_running(&reading, line),
            };
            match next {
                None => return,
                Some(Next::Running(at)) => {
                    let id = reading.swap_remove(at);
                    self.add_chunk(batch, id, &mut budget, line);
                }
                Some(Next::Waiting(id, live)) => {
                    let party = live.party();
                    let most = budget.most(line.shares.is_surplus(party));
                    // Its opening needs a step to go with.
                    let comes =
                        batch.rows.is_empty() && self.is_coming(id, live, self.found(live).blocks);
                    if most == 0 || comes {
                        shut.insert(party);
                    } else if !live.is_suspect() // one joins nobody
                        && table.widen(self.blocks.needed(live.known()), batch.rows.len())
                        && let Some(running) = self.admit(id, line, reserve)
                    {
                        batch.opens.push((running.slot, id));
                        self.add_chunk(batch, id, &mut budget, line);
                    } else {
                        open = false;
                    }
                }
            }
        }
    }

    fn budget(
        &mut self,
        decodes: usize,
        reading: &[SequenceId],
        line: &Line,
        config: &Config,
    ) -> Budget {
        let mut left = self.limits.max_step_tokens as usize;
        let polite = line.shares.expects_company();
        let most_stretch = if polite { POLITE_STRETCH } else { MOST_STRETCH };
        if polite && decodes == 0 {
            left = left.min(self.pace.bears_alone(POLITE_STRETCH));
        }
        if decodes > 0 {
            let others = (self.crowd(decodes, line) - 1.0).max(0.0);
            let stretch = 1.0 + CROWD * others / decodes as f64;
            let stretch = stretch.clamp(STRETCH, most_stretch);
            left = self
                .pace
                .prefill_beside(decodes, stretch)
                .min(left - decodes);
        }
        let is_surplus = |id| {
            let live = self.live(id);
            live.is_some_and(|live| line.shares.is_surplus(live.party()))
        };
        Budget {
            left,
            kept: match reading.iter().any(|&id| is_surplus(id)) {
                true => LEAST.min(left / 2),
                false => 0,
            },
            spare: self.pace.spare(decodes, 1.0 + config.surplus),
            harmless: decodes == 0,
            sure: 0,
            surplus: 0,
        }
    }

    /// Whose turn it is, of those that are being read and of those that may start.
    fn first<'a>(
        &self,
        cheap: usize,
        reading: &[SequenceId],
        line: &'a Line,
        shut: &BTreeSet<Party>,
    ) -> Option<Next<'a>> {
        let Some((turn, live)) = self.next(line, cheap, shut) else {
            return self.first_running(reading, line);
        };
        let running = self.turns(reading, line).filter(|(other, _)| *other < turn);
        let running = running.min().map(|(_, at)| Next::Running(at));
        running.or(Some(Next::Waiting(turn.id, live)))
    }

    fn first_running<'a>(&self, reading: &[SequenceId], line: &Line) -> Option<Next<'a>> {
        let first = self.turns(reading, line).min();
        first.map(|(_, at)| Next::Running(at))
    }

    /// Whose turn it is to go on, and its place in what is being read.
    fn turns<'a>(
        &'a self,
        reading: &'a [SequenceId],
        line: &'a Line,
    ) -> impl Iterator<Item = (Turn, usize)> {
        let turns = reading.iter().enumerate();
        turns.filter_map(|(at, &id)| Some((line.shares.turn_to_go_on(id, self.live(id)?), at)))
    }

    /// How many wait for their first token, of those that there is a slot for. A prompt too long for
    /// any step beside so many decodes counts as the part of it that one reads: to hurry it would
    /// disturb the streams for long, and help but one. Nor is there any hurry for what puts a
    /// tenant ahead of the others.
    fn crowd(&self, decodes: usize, line: &Line) -> f64 {
        let most = self.pace.bears(decodes, MOST_STRETCH) as f64;
        let shares = &line.shares;
        let slots = self.slots.free();
        let running = self
            .running
            .values()
            .filter(|running| running.remaining() > 1);
        let running = running.filter(|running| shares.hurry(running.live.party()) > 0);
        let waiting = line.parties().flat_map(|(party, sequences)| {
            let mut hurry = shares.hurry(party);
            let known = sequences.take(slots).map(|(_, live)| live.known());
            known.take_while(move |&known| {
                let counts = hurry > 0;
                hurry = hurry.saturating_sub(known as u64);
                counts
            })
        });
        let unread = running.map(Running::remaining).chain(waiting.take(slots));
        unread.map(|left| (most / left as f64).min(1.0)).sum()
    }

    /// Adds what may be read of a prompt now, unless it is to wait for another one that begins alike.
    fn add_chunk(
        &mut self,
        batch: &mut Batch,
        id: SequenceId,
        budget: &mut Budget,
        line: &mut Line,
    ) {
        let waits = self.catch_up(id);
        let Some(running) = self.running.get(&id).filter(|_| !waits) else {
            return;
        };
        let party = running.live.party();
        let is_surplus = line.shares.is_surplus(party);
        let count = running.remaining().min(budget.most(is_surplus));
        if count > 0 {
            batch.rows.push((id, count));
            budget.take(is_surplus, count);
            line.shares.charge(party.tenant, count as f64);
        }
    }
}
