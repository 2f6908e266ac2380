//! The scheduler: which sequence computes how much of itself in which step.

mod attached;
mod batch;
mod line;
mod live;
mod pace;
mod prefill;
mod results;
mod room;
mod shares;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod trial;
mod write;

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use realm_shared::wire::Sampling;

use super::limits::{Config, InvalidLimits, Limits};
use super::plan::StepPlan;
use super::sequence::{Event, FailReason, Instance, Sequence, SequenceId, Steering, TenantId};
use attached::Attached;
use line::Line;
use live::Live;

/// The worker computes one step while the next one waits in the ring.
const STEPS_IN_FLIGHT: usize = 2;

/// Schedules the sequences of one worker, through the deaths of that worker.
///
/// The driver's loop: [`plan`](Self::plan) until there is nothing to do, carry the result of the
/// oldest step to [`complete`](Self::complete), and after every call hand out what
/// [`poll_event`](Self::poll_event) has.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    /// Sequences that wait for a slot and blocks.
    line: Line,
    /// The worker with the sequences that run on it; everything in here is lost with it, but for
    /// the sequences' tokens. A sequence is in `line` or in here, never in both.
    worker: Option<Attached>,
    /// Sequences whose readers are slow. They are in neither of the other two.
    held: BTreeMap<SequenceId, Live>,
    /// No worker will come: sequences fail at once.
    gone: bool,
    /// Steps that may be in flight. Nothing but the worker's idle time rests on their number.
    steps_in_flight: usize,
    last_step: u64,
    events: VecDeque<(SequenceId, Event)>,
    stats: Stats,
}

/// Counters since the start, and how things stand.
///
/// Always `admitted == completed + failed + cancelled + waiting + running + held`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Sequences accepted by [`Scheduler::submit`].
    pub admitted: u64,
    /// Sequences that ended with [`Event::Finished`].
    pub completed: u64,
    /// Sequences that ended with [`Event::Failed`].
    pub failed: u64,
    /// Sequences that ended by [`Scheduler::cancel`].
    pub cancelled: u64,
    /// Times a sequence lost its slot and blocks to another one.
    pub preemptions: u64,
    /// Workers lost.
    pub workers_lost: u64,
    /// Steps planned.
    pub steps: u64,
    /// Input tokens over all steps.
    pub tokens_computed: u64,
    /// Tokens that sequences had when they were given blocks, each time they were.
    pub prefix_tokens: u64,
    /// Those of them that the arena held already, or that came into it by another sequence before
    /// it was their turn, so that they were not computed.
    pub prefix_tokens_found: u64,
    /// Tokens drawn and reported.
    pub tokens_generated: u64,
    /// Rows whose result came after their sequence had ended.
    pub rows_wasted: u64,
    /// Now: sequences without slot and blocks.
    pub waiting: usize,
    /// Now: sequences whose readers are slow.
    pub held: usize,
    /// Now: sequences with slot and blocks.
    pub running: usize,
    /// Now: steps sent and not answered.
    pub steps_in_flight: usize,
    /// Now: KV blocks of running sequences, one that several share counted once.
    pub blocks_used: usize,
    /// Now: KV blocks of the worker; 0 without one.
    pub blocks_total: usize,
}

/// What a worker took with it.
#[derive(Debug)]
pub struct Loss {
    /// Sequences that were in flight.
    pub in_flight: Vec<SequenceId>,
    /// One of them was on trial.
    pub on_trial: bool,
    /// The one that was in flight alone, and had been in flight before when a worker died.
    pub convicted: Option<Convicted>,
}

/// A sequence that was in flight in two deaths of workers, alone in the second.
#[derive(Debug)]
pub struct Convicted {
    /// Its tokens, those of the prompt first.
    pub tokens: Vec<u32>,
    /// What steered it, if something did.
    pub steering: Option<Steering>,
}

/// A sequence was not accepted. It leaves no trace in the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many sequences wait as may; try again later.
    #[error("{0} sequences are waiting already; try again later")]
    QueueFull(usize),
    /// There is nothing to go on from.
    #[error("the prompt has no tokens; give at least one")]
    EmptyPrompt,
    /// A sequence of this name is live.
    #[error("sequence {} is live already; use an id once", .0.0)]
    DuplicateId(SequenceId),
}

/// What an `OPEN` message must say of a sequence, see [`realm_shared::wire::open`].
#[derive(Debug, Clone, Copy)]
pub struct SequenceView<'a> {
    /// On whose account it is sent.
    pub tenant: TenantId,
    /// Tokens to go on from.
    pub prompt: &'a [u32],
    /// Tokens generated so far; with `prompt` the history for penalties.
    pub generated: &'a [u32],
    /// How tokens are drawn, `prompt_len` filled in.
    pub sampling: &'a Sampling,
    /// Tokens and what is added to their logits.
    pub bias: &'a [(u32, f32)],
    /// What steers it, if something does.
    pub steering: Option<&'a Steering>,
}

// === Commands ===

impl Scheduler {
    /// A scheduler without a worker: sequences wait until there is one.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            line: Line::default(),
            worker: None,
            held: BTreeMap::new(),
            gone: false,
            steps_in_flight: STEPS_IN_FLIGHT,
            last_step: 0,
            events: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// A worker with an empty arena takes the place of the one before, if there was one. What
    /// ran starts again; what the new worker has no room for fails, or ends if it has generated
    /// as much as fits.
    ///
    /// # Errors
    /// If the worker cannot be scheduled. Nothing has changed then.
    pub fn worker_ready(&mut self, limits: Limits) -> Result<(), InvalidLimits> {
        limits.check()?;
        self.detach();
        self.gone = false;
        let waiting = self.line.iter_mut().map(|(_, live)| live);
        for live in waiting.chain(self.held.values_mut()) {
            live.name_blocks(limits.block_size as usize);
        }
        let worker = Attached::new(limits);
        let verdicts: Vec<_> = self
            .line
            .iter()
            .filter_map(|(id, live)| Some((id, worker.verdict(live)?)))
            .collect();
        self.worker = Some(worker);
        for (id, verdict) in verdicts {
            self.remove(id);
            self.end(id, verdict);
        }
        Ok(())
    }

    /// The worker died, hung or lied. What ran waits for another one with its tokens kept. What
    /// was in flight is suspected to be the cause, and a suspect that was in flight alone fails; but not one of a
    /// program, as others may have run meanwhile: that is for the driver to say. A worker that did not end `by_itself`
    /// may have been ended by somebody, or by the system for want of memory, so that takes two such ends.
    pub fn worker_lost(&mut self, by_itself: bool) -> Loss {
        self.stats.workers_lost += u64::from(self.worker.is_some());
        let in_flight = self.detach();
        let mut loss = Loss {
            in_flight: in_flight.iter().map(|&(id, _)| id).collect(),
            on_trial: in_flight.iter().any(|&(id, _)| self.is_suspect(id)),
            convicted: None,
        };
        if let [(id, _)] = in_flight[..]
            && let Some(live) = self.live_mut(id).filter(|live| live.is_suspect())
            && (live.accuse() || by_itself)
        {
            let view = live.view();
            loss.convicted = Some(Convicted {
                tokens: [view.prompt, view.generated].concat(),
                steering: view.steering.cloned(),
            });
            if !matches!(view.steering, Some(Steering::Lease(_))) {
                self.remove(id);
                self.end(id, Event::Failed(FailReason::WorkerCrashed));
                return loss;
            }
        }
        self.line.suspects = true;
        for (id, until) in in_flight {
            if let Some(live) = self.live_mut(id) {
                live.suspect(until);
            }
        }
        loss
    }

    /// The worker will not come back: everything fails, now and until a worker is ready.
    pub fn worker_gone(&mut self) {
        self.detach();
        self.gone = true;
        for (id, live) in std::mem::take(&mut self.held) {
            self.line.insert(id, live);
        }
        while let Some((id, _)) = self.line.pop_first() {
            self.end(id, Event::Failed(FailReason::WorkerGone));
        }
    }

    /// Accepts a sequence. Its events follow, if only the one that says why it failed.
    ///
    /// # Errors
    /// If it is refused; there are no events then.
    pub fn submit(&mut self, sequence: Sequence) -> Result<(), Refused> {
        let id = sequence.id;
        if self.room() == 0 {
            return Err(Refused::QueueFull(self.line.len()));
        }
        if sequence.prompt.is_empty() {
            return Err(Refused::EmptyPrompt);
        }
        if self.live(id).is_some() {
            return Err(Refused::DuplicateId(id));
        }
        self.stats.admitted += 1;
        self.line.shares.allow(sequence.tenant, sequence.allowance);
        let live = Live::new(sequence);
        if self.gone {
            self.end(id, Event::Failed(FailReason::WorkerGone));
        } else {
            self.wait(id, live);
        }
        Ok(())
    }

    /// Takes a sequence out of the batch until [`resume`](Self::resume): its reader is slow. It
    /// gives up its blocks and keeps its tokens. Those in flight are still reported.
    pub fn hold(&mut self, id: SequenceId) {
        let running = self.worker.as_mut().and_then(|worker| worker.evict(id));
        if let Some(live) = running.or_else(|| self.line.remove(id)) {
            self.held.insert(id, live);
        }
    }

    /// Lets a sequence that was held wait for its turn again.
    pub fn resume(&mut self, id: SequenceId) {
        if let Some(live) = self.held.remove(&id) {
            self.wait(id, live);
        }
    }

    /// Makes a sequence wait, unless it must end at once.
    fn wait(&mut self, id: SequenceId, mut live: Live) {
        if let Some(worker) = &self.worker {
            if let Some(verdict) = worker.verdict(&live) {
                return self.end(id, verdict);
            }
            // The choices of a request come one after the other.
            let before = id.0.checked_sub(1).map(SequenceId);
            if let Some(before) = before.and_then(|before| self.live(before)) {
                live.name_blocks_like(before);
            }
            live.name_blocks(worker.blocks.size());
        }
        let party = live.party();
        self.line.shares.meet(party.tenant, live.allowance());
        self.line.insert(id, live);
    }

    /// A worker may have died of what this sequence is made from: it computes alone at first.
    pub fn suspect(&mut self, id: SequenceId) {
        self.line.suspects = true;
        if let Some(live) = self.live_mut(id) {
            // As many as were in flight: the token that is computed with the prompt, and the next.
            live.suspect(live.known() + STEPS_IN_FLIGHT);
        }
    }

    /// Fails the sequences that such a processor steers.
    pub fn fail_steered(&mut self, by: impl Fn(&Instance) -> bool, reason: &FailReason) {
        let running = self.worker.iter().flat_map(|worker| &worker.running);
        let running = running.map(|(&id, running)| (id, &running.live));
        let held = self.held.iter().map(|(&id, live)| (id, live));
        let all = running.chain(self.line.iter()).chain(held);
        let is_steered = |live: &Live| match live.view().steering {
            Some(Steering::Instance(instance)) => by(instance),
            _ => false,
        };
        let ids: Vec<_> = all
            .filter_map(|(id, live)| is_steered(live).then_some(id))
            .collect();
        for id in ids {
            self.remove(id);
            self.end(id, Event::Failed(reason.clone()));
        }
    }

    /// Whether a suspect computes, or waits to: nobody else does, unless that has to wait for room.
    pub fn tries_suspects(&self) -> bool {
        let mut running = self
            .worker
            .iter()
            .flat_map(|worker| worker.running.values());
        running.any(|running| running.live.is_suspect())
            || self.line.suspects && self.line.iter().any(|(_, live)| live.is_suspect())
    }

    /// Whether a sequence that is late may be so because it waits for a token of a suspect, which waits for it to be
    /// cleared: those of a program wait for each other. What steers any other waits for nobody, and while it takes its
    /// time a worker may die of that.
    fn waits_for_a_suspect(&self, id: SequenceId) -> bool {
        let steering = self.live(id).and_then(|live| live.view().steering);
        let running = self.worker.iter().flat_map(|worker| &worker.running);
        let running = running.map(|(&id, running)| (id, &running.live));
        let mut all = running.chain(self.line.iter());
        matches!(steering, Some(Steering::Lease(_)))
            && all.any(|(other, live)| other != id && live.is_suspect())
    }

    /// Whether a worker may have died of a sequence.
    pub fn is_suspect(&self, id: SequenceId) -> bool {
        self.live(id).is_some_and(Live::is_suspect)
    }

    /// Ends a sequence wherever it is. No event of it follows. Unknown and ended sequences are
    /// no error: the end may have crossed the cancellation. Returns how many tokens nobody will hear
    /// of that the worker has drawn for it, or is drawing.
    pub fn cancel(&mut self, id: SequenceId) -> usize {
        let (_, drawing) = self.live(id).map_or((0, 0), Live::flights);
        if self.remove(id) {
            self.stats.cancelled += 1;
        }
        let is_token = |event: &Event| matches!(event, Event::Token { .. });
        let unheard = self
            .events
            .iter()
            .filter(|(of, event)| *of == id && is_token(event));
        let tokens = drawing + unheard.count();
        self.events.retain(|&(of, _)| of != id);
        tokens
    }

    /// The next step to send to the worker. None if there is nothing to do, no worker, or two
    /// steps are in flight.
    ///
    /// A sequence starts with this step only if `reserve` has taken the room that its `OPEN` needs
    /// on the way to the worker; the first one without room makes those behind it wait too.
    /// Reservations are made in the order of [`StepPlan::opens`]. With nothing in flight one must
    /// succeed, or nothing ever will.
    pub fn plan(
        &mut self,
        now: Instant,
        mut reserve: impl FnMut(&SequenceView<'_>) -> bool,
    ) -> Option<StepPlan> {
        let worker = self.worker.as_mut()?;
        if worker.in_flight.len() >= self.steps_in_flight {
            return None;
        }
        let number = self.last_step + 1;
        let (plan, preempted) = worker.plan(&mut self.line, number, &self.config, &mut reserve);
        self.stats.preemptions += preempted;
        let plan = plan?;
        self.stats.prefix_tokens_found += std::mem::take(&mut worker.found) as u64;
        for (_, id) in &plan.opens {
            let known = worker.live(*id).map_or(0, Live::known);
            self.stats.prefix_tokens += known as u64;
        }
        for (&id, &context) in plan.ids.iter().zip(&plan.context) {
            if worker.live_mut(id).is_some_and(Live::start) {
                let cached = context as usize;
                self.events.push_back((id, Event::Started { cached }));
            }
        }
        self.last_step = plan.number;
        self.stats.steps += 1;
        self.stats.tokens_computed += plan.tokens.len() as u64;
        worker.start_clock(now, self.config.step_timeout);
        Some(plan)
    }

    /// Sees to it that who is on trial is alone on the worker: a suspect of this scheduler's, or what `another` says is
    /// tried there. What is steered by code of its own makes way for it, as that code runs beside the steps.
    pub fn clear_for_trial(&mut self, another: bool) {
        let suspects = self.tries_suspects();
        self.line.suspects = suspects;
        if (another || suspects)
            && let Some(worker) = &mut self.worker
        {
            let cheap = worker.cheap_rows(&self.config);
            let another = another && !suspects;
            self.stats.preemptions += worker.clear_for_trial(&mut self.line, cheap, another);
        }
    }

    /// Hands out slots whose sequences were steered and run no longer, until one cannot be closed
    /// now. Those of a plan are opened after them.
    pub fn close_slots(&mut self, mut close: impl FnMut(u32) -> bool) {
        let Some(worker) = &mut self.worker else {
            return;
        };
        while worker.closed.front().is_some_and(|&slot| close(slot)) {
            worker.closed.pop_front();
        }
    }

    /// What happened next, to whom.
    pub fn poll_event(&mut self) -> Option<(SequenceId, Event)> {
        self.events.pop_front()
    }
}

// === How things stand ===

impl Scheduler {
    /// When the oldest step in flight is overdue: the worker hangs, and is to be replaced.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.worker.as_ref()?.deadline()
    }

    /// What an `OPEN` message must say of a live sequence.
    pub fn sequence(&self, id: SequenceId) -> Option<SequenceView<'_>> {
        self.live(id).map(Live::view)
    }

    /// How many more sequences would be accepted now.
    pub fn room(&self) -> usize {
        self.config.max_waiting.saturating_sub(self.line.len())
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.waiting = self.line.len();
        stats.held = self.held.len();
        if let Some(worker) = &self.worker {
            worker.measure(&mut stats);
        }
        stats
    }

    fn live(&self, id: SequenceId) -> Option<&Live> {
        let running = self.worker.as_ref().and_then(|worker| worker.live(id));
        running
            .or_else(|| self.line.get(id))
            .or_else(|| self.held.get(&id))
    }

    fn live_mut(&mut self, id: SequenceId) -> Option<&mut Live> {
        let running = self.worker.as_mut().and_then(|worker| worker.live_mut(id));
        running
            .or_else(|| self.line.get_mut(id))
            .or_else(|| self.held.get_mut(&id))
    }
}

// === Ends ===

impl Scheduler {
    /// Takes a sequence out and frees what it had. False if it was not there.
    fn remove(&mut self, id: SequenceId) -> bool {
        let worker = self.worker.as_mut();
        worker.is_some_and(|worker| worker.evict(id).is_some())
            || self.line.remove(id).is_some()
            || self.held.remove(&id).is_some()
    }

    /// Says that a sequence, already taken out, is over.
    fn end(&mut self, id: SequenceId, event: Event) {
        debug_assert!(event.is_last());
        match event {
            Event::Finished(_) => self.stats.completed += 1,
            _ => self.stats.failed += 1,
        }
        self.events.push_back((id, event));
    }

    /// Lets go of the worker: what ran waits again, steps in flight are forgotten. Returns the
    /// live sequences that were in them, see [`Live::forget_flights`].
    fn detach(&mut self) -> Vec<(SequenceId, usize)> {
        let Some(worker) = self.worker.take() else {
            return Vec::new();
        };
        for (id, live) in worker.into_sequences() {
            self.line.insert(id, live);
        }
        let all = self
            .line
            .iter_mut()
            .chain(self.held.iter_mut().map(|(&id, live)| (id, live)));
        all.filter_map(|(id, live)| Some((id, live.forget_flights()?)))
            .collect()
    }
}
