//! Planning: who computes how much in a step.

use std::collections::{BTreeMap, BTreeSet};

use super::SequenceView;
use super::attached::{Attached, Running};
use super::line::Line;
use super::live::Live;
use super::shares::{Party, Turn};
use crate::batching::limits::Config;
use crate::batching::plan::StepPlan;
use crate::batching::sequence::SequenceId;

/// A step that decodes keeps one part in so many of its tokens for prefill, so that a batch full of
/// decodes cannot keep a prompt from being read.
const PREFILL_SHARE: usize = 4;

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

/// The block table of a step: as many rows as it has sequences, as wide as the widest of them.
///
/// It counts with the widest of all that run and of the sequence next in line, whether or not
/// they are in this step: so they always find a row when it is their turn.
pub(super) struct Table {
    /// Most entries.
    most: usize,
    /// Blocks of the widest row that may come in.
    width: usize,
    /// Whether a prompt is to be read, for which a row must be left.
    pub(super) prefills: bool,
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
    pub(super) fn rows(&self) -> usize {
        (self.most / self.width.max(1)).max(2)
    }

    /// Makes room for one more row of this width. False if it does not fit beside `rows` others.
    pub(super) fn widen(&mut self, width: usize, rows: usize) -> bool {
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
            cheap: self.cheap_rows(config),
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

    /// Rows that are cheap in all.
    pub(super) fn cheap_rows(&self, config: &Config) -> usize {
        self.pace.rows_within(1.0 + config.surplus)
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
        let next = self.next(line, batch.cheap, &BTreeSet::new());
        let suspect = self.suspect(next);
        let next = next.map(|(turn, _)| turn.id);
        if suspect.is_some_and(|id| !self.is_alone(id)) {
            // What is in flight of others must arrive first.
            return;
        }
        if suspect.is_some_and(|id| self.try_alone(id, batch, line, reserve, preempted)) {
            return;
        }
        let evicted = self.make_room(line, |_| true);
        if evicted > 0 {
            line.count(self.running.values().map(|running| &running.live));
        }
        *preempted += evicted;
        *preempted += next.map_or(0, |next| self.make_way(next, line));
        let next = next.and_then(|next| line.get(next));
        let table = Table::new(self, next, config.max_table);
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
            .filter(|(party, _)| !shut.contains(party) && shares.may_start(*party, cheap));
        let firsts = parties.filter_map(|(_, mut sequences)| {
            // Who made way for a suspect does not come before it.
            let (id, live) = sequences.find(|(_, live)| !(line.suspects && live.has_made_way()))?;
            // Tokens in flight must arrive first: they are to be prefilled too.
            let may = !live.is_in_flight() && self.may_hold(live, shares);
            let mut turn = shares.turn(id, live);
            // Who has waited for too long takes what is free, and keeps nobody else from it.
            turn.patient |= !turn.patient && !self.has_room(live);
            may.then_some((turn, live))
        });
        firsts.min_by_key(|(turn, _)| *turn)
    }

    /// Adds one token (or none, of those that are parked) of the sequences that decode: of all of
    /// them, where nobody is harmed. Else of each party as many as it has for sure, and more as long
    /// as they are cheap. Those that were served longest ago go first, so that all take turns.
    fn add_decodes(&self, batch: &mut Batch, table: &Table, line: &mut Line) {
        let (mut tokens, mut rows) = (self.limits.max_step_tokens as usize, table.rows());
        if table.prefills {
            tokens -= prefill_share(tokens);
            rows -= 1;
        }
        let most = tokens.min(rows);
        let decodes = self.running.iter().filter(|(_, r)| r.decodes());
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
            let count = self.running.get(&id).map_or(0, Running::remaining);
            batch.rows.push((id, count));
        }
        batch.decodes = batch.rows.len();
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
    let (mut rows, mut surplus) = (Vec::new(), Vec::new());
    for decode in decodes {
        let party = decode.2;
        let quota = line.shares.quota(party);
        let count = counts.entry(party).or_default();
        let first_of_worse = quota == 0 && worse == 0;
        if *count < quota || first_of_worse {
            worse += usize::from(quota == 0);
            rows.push(decode);
        } else {
            let turn = (party.priority, *count, line.shares.rank(party.tenant));
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
