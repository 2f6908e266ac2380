//! Planning: who computes how much in a step.

use std::collections::{BTreeMap, BTreeSet};

use super::SequenceView;
use super::attached::{Attached, Running};
use super::line::Line;
use super::live::Live;
use super::pace::LEAST;
use super::shares::{Party, Turn};
use crate::batching::limits::Config;
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
    /// Rows that are cheap in all, so that tenants may have them beyond their quotas.
    pub(super) cheap: usize,
}

impl Batch {
    pub(super) fn add(&mut self, id: SequenceId, count: usize) -> usize {
        self.rows.push((id, count));
        count
    }

    /// Tokens of all rows that do not decode.
    fn prefill(&self) -> usize {
        self.rows[self.decodes..]
            .iter()
            .map(|(_, count)| count)
            .sum()
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
    fn new(worker: &Attached, next: Option<&Live>, most: usize) -> Self {
        let running = worker.running.values();
        let next = next.filter(|next| worker.has_room(next));
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
        line: &mut Line,
        number: u64,
        config: &Config,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) -> (Option<StepPlan>, u64) {
        let mut batch = Batch {
            cheap: self.pace.rows_within(1.0 + config.surplus),
            ..Batch::default()
        };
        let mut preempted = 0;
        loop {
            let before = preempted;
            self.fill(&mut batch, line, config, reserve, &mut preempted);
            // Those that gave way may have let somebody in who is to compute alone.
            if !batch.rows.is_empty() || preempted == before {
                break;
            }
        }
        let plan = (!batch.rows.is_empty()).then(|| self.write(batch, number));
        (plan, preempted)
    }

    fn fill(
        &mut self,
        batch: &mut Batch,
        line: &mut Line,
        config: &Config,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
        preempted: &mut u64,
    ) {
        line.count(self.running.values().map(|running| &running.live));
        let suspect = self.suspect(line, batch.cheap);
        if suspect.is_some_and(|id| !self.is_alone(id)) {
            // What is in flight of others must arrive first.
            return;
        }
        if suspect.is_some_and(|id| self.try_alone(id, batch, line, reserve, preempted)) {
            return;
        }
        *preempted += self.make_room(line, |_| true);
        *preempted += self.make_way(line, batch.cheap);
        let next = self.next(line, batch.cheap, &BTreeSet::new());
        let table = Table::new(self, next.map(|(_, live)| live), config.max_table);
        self.add_decodes(batch, &table, line);
        self.add_prefill(batch, table, line, config, reserve);
    }

    /// Whose turn it is to start: of the parties that may and are not `shut`.
    pub(super) fn next<'a>(
        &self,
        line: &'a Line,
        cheap: usize,
        shut: &BTreeSet<Party>,
    ) -> Option<(Turn, &'a Live)> {
        let shares = &line.shares;
        let parties = line
            .parties()
            .filter(|(party, _)| !shut.contains(party) && shares.may_start(*party, cheap) > 0);
        let firsts = parties.filter_map(|(party, mut sequences)| {
            let (id, live) = sequences.next()?;
            // Tokens in flight must arrive first: they are to be prefilled too.
            let may = !live.is_in_flight() && self.may_hold(live, shares);
            may.then(|| (shares.turn(party, id), live))
        });
        firsts.min_by_key(|(turn, _)| *turn)
    }

    /// Adds one token of the sequences that decode: of all of them, where nobody is harmed. Else of
    /// each party as many as it has for sure, and more as long as they are cheap. Those that were
    /// served longest ago go first, so that all take turns.
    fn add_decodes(&self, batch: &mut Batch, table: &Table, line: &mut Line) {
        let (mut tokens, mut rows) = (self.limits.max_step_tokens as usize, table.rows());
        if table.prefills {
            tokens -= prefill_share(tokens);
            rows -= 1;
        }
        let most = tokens.min(rows);
        let decodes = self.running.iter().filter(|(_, r)| r.remaining() == 1);
        let mut decodes: Vec<_> = decodes
            .map(|(&id, r)| (r.served, id, r.live.party()))
            .collect();
        if !line.shares.is_alone() {
            decodes = share_rows(decodes, batch.cheap, line);
        }
        if decodes.len() > most {
            decodes.sort_unstable();
            decodes.truncate(most);
        }
        let cost = self.pace.row_cost(decodes.len());
        for (_, id, party) in decodes {
            line.shares.charge(party.tenant, cost);
            batch.rows.push((id, 1));
        }
        batch.decodes = batch.rows.len();
    }

    /// Adds chunks of prompts with what the decodes leave, of sequences that run and of those that
    /// wait, by whose turn it is.
    fn add_prefill(
        &mut self,
        batch: &mut Batch,
        mut table: Table,
        line: &mut Line,
        config: &Config,
        reserve: &mut dyn FnMut(&SequenceView<'_>) -> bool,
    ) {
        let budget = self.limits.max_step_tokens as usize;
        let reading = self.running.iter().filter(|(_, r)| r.remaining() > 1);
        let mut reading: Vec<_> = reading.map(|(&id, r)| (r.live.party(), id)).collect();
        let left = match batch.decodes {
            0 => budget,
            _ if !table.prefills => return,
            decodes => {
                let others = (self.crowd(decodes, batch.cheap, line) - 1.0).max(0.0);
                let stretch = 1.0 + CROWD * others / decodes as f64;
                let stretch = stretch.clamp(STRETCH, MOST_STRETCH);
                let bears = self.pace.prefill_beside(decodes, stretch);
                bears.min(budget - decodes)
            }
        };
        // What is surplus is read slowly, but it is read.
        let kept = match reading
            .iter()
            .any(|(party, _)| line.shares.is_surplus(*party))
        {
            true => LEAST.min(left / 2),
            false => 0,
        };
        let spare = self.pace.spare(batch.decodes, 1.0 + config.surplus);
        let most = |batch: &Batch, line: &Line, party| {
            let read = batch.prefill();
            match line.shares.is_surplus(party) {
                true if batch.rows.is_empty() => left,
                true => left.min(spare.max(read + kept)).saturating_sub(read),
                false => (left - kept).saturating_sub(read),
            }
        };
        let mut shut = BTreeSet::new();
        let mut open = true;
        while batch.prefill() < left && batch.rows.len() < table.rows() {
            let turns = reading.iter().enumerate();
            let turns = turns.map(|(at, &(party, id))| (line.shares.turn(party, id), at));
            let started = turns.min();
            let next = self.next(line, batch.cheap, &shut).filter(|_| open);
            let first = match (started, next) {
                (None, None) => return,
                (Some((turn, at)), next) if next.is_none_or(|(other, _)| turn < other) => Ok(at),
                (_, Some((turn, live))) => Err((turn.id, live)),
                (Some((_, at)), None) => Ok(at),
            };
            match first {
                Ok(at) => {
                    let (party, id) = reading.swap_remove(at);
                    let most = most(batch, line, party);
                    self.add_chunk(batch, id, most, line);
                }
                Err((id, live)) => {
                    let party = live.party();
                    let most = most(batch, line, party);
                    // Its opening needs a step to go with.
                    let comes =
                        batch.rows.is_empty() && self.is_coming(id, live, self.found(live).blocks);
                    if most == 0 || comes {
                        shut.insert(party);
                    } else if live.is_suspect() // joins nobody
                        || !table.widen(self.blocks.needed(live.known()), batch.rows.len())
                    {
                        open = false;
                    } else if let Some(running) = self.admit(id, line, reserve) {
                        batch.opens.push((running.slot, id));
                        self.add_chunk(batch, id, most, line);
                    } else {
                        open = false;
                    }
                }
            }
        }
    }

    /// How many wait for their first token, of those that may start and that there is a slot for. A
    /// prompt too long for any step beside so many decodes counts as the part of it that one reads:
    /// to hurry it would disturb the streams for long, and help but one. What is surplus is in no
    /// hurry.
    fn crowd(&self, decodes: usize, cheap: usize, line: &Line) -> f64 {
        let most = self.pace.bears(decodes, MOST_STRETCH) as f64;
        let shares = &line.shares;
        let slots = self.slots.free();
        let running = self
            .running
            .values()
            .filter(|running| running.remaining() > 1);
        let running = running.filter(|running| !shares.is_surplus(running.live.party()));
        let parties = line
            .parties()
            .filter(|(party, _)| !shares.is_surplus(*party));
        let waiting = parties.flat_map(|(party, sequences)| {
            let sequences = sequences.take(shares.may_start(party, cheap).min(slots));
            sequences.map(|(_, live)| live.known())
        });
        let unread = running.map(Running::remaining).chain(waiting.take(slots));
        unread.map(|left| (most / left as f64).min(1.0)).sum()
    }

    /// Adds at most so many tokens of a prompt, unless it is to wait for another one that begins
    /// alike.
    fn add_chunk(&mut self, batch: &mut Batch, id: SequenceId, most: usize, line: &mut Line) {
        let waits = self.catch_up(id);
        if let Some(running) = self.running.get(&id).filter(|_| !waits && most > 0) {
            let count = batch.add(id, running.remaining().min(most));
            let party = running.live.party();
            line.shares.charge(party.tenant, count as f64);
        }
    }
}

/// A sequence that decodes: its last row, its name, and whose it is.
type Decode = ((u64, usize), SequenceId, Party);

/// Those of the sequences that decode which have a row in the next step, if so many are cheap: the
/// quotas of all parties, one more so that no class stands still, and then one after the other of
/// the parties that have had least.
fn share_rows(mut decodes: Vec<Decode>, cheap: usize, line: &Line) -> Vec<Decode> {
    decodes.sort_unstable();
    let mut counts: BTreeMap<Party, usize> = BTreeMap::new();
    let mut worse = 0;
    let (sure, mut surplus) = (Vec::new(), Vec::new());
    let mut rows: Vec<Decode> = sure;
    for decode in decodes {
        let party = decode.2;
        let quota = line.shares.quota(party);
        let count = counts.entry(party).or_default();
        let first_of_worse = quota == 0 && worse == 0;
        if *count < quota || first_of_worse {
            worse += usize::from(quota == 0);
            rows.push(decode);
        } else {
            let turn = (party.priority, *count, line.shares.served(party.tenant));
            surplus.push((turn, decode));
        }
        *count += 1;
    }
    surplus.sort_unstable();
    let left = cheap.saturating_sub(rows.len());
    rows.extend(surplus.into_iter().take(left).map(|(_, decode)| decode));
    rows.sort_unstable_by_key(|&(_, id, _)| id);
    rows
}
