//! The world around a scheduler: its worker, its clients, and what they check.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::sample::Index;

use super::device::{Device, Message, Output, SlotState};
use super::model::{Reference, VOCAB, mix, reference};
use crate::batching::limits::{Config, Limits};
use crate::batching::plan::StepPlan;
use crate::batching::scheduler::attached::Attached;
use crate::batching::scheduler::batch::prefill_share;
use crate::batching::scheduler::{Refused, Scheduler};
use realm_shared::wire::Fault;
use realm_shared::wire::result::LATE;

use crate::batching::sequence::{Event, FailReason, FinishReason, Sequence, SequenceId, Steering};
use crate::programs::Kind;

/// How a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum End {
    Finished,
    Failed,
    Cancelled,
}

/// What a client knows of its sequence.
#[derive(Debug)]
pub(super) struct Track {
    sequence: Sequence,
    reference: Reference,
    scored: usize,
    tokens: Vec<u32>,
    /// Positions that were not computed for it when its first row was planned.
    found: Option<usize>,
    started: bool,
    end: Option<End>,
    /// Tokens, prompt included, after which it is no longer suspected of a worker's death. Or it is
    /// not once its plan is late with nothing in flight.
    suspect_until: Option<usize>,
    /// It was alone in a second death.
    condemned: bool,
    /// It was held once, or made way for a trial; so younger ones may have overtaken it.
    held: bool,
}

/// A scheduler, its worker and its clients. Every operation checks everything after itself.
pub(super) struct Simulation {
    scheduler: Scheduler,
    pub(super) device: Option<Device>,
    pub(super) tracks: BTreeMap<SequenceId, Track>,
    now: Instant,
    max_table: usize,
    /// Most sequences that may open with the steps in flight.
    max_opens: usize,
    /// Shortest context of any worker so far.
    min_context: usize,
    plans: u64,
    /// Rows whose program was late.
    late: u64,
}

impl Simulation {
    pub(super) fn new(steps_in_flight: usize, max_table: usize, max_opens: usize) -> Self {
        let mut scheduler = Scheduler::new(Config {
            max_waiting: 12,
            step_timeout: Duration::from_secs(10),
            max_table,
            surplus: 0.2,
        });
        scheduler.steps_in_flight = steps_in_flight;
        Self {
            scheduler,
            device: None,
            tracks: BTreeMap::new(),
            now: Instant::now(),
            max_table,
            max_opens,
            min_context: usize::MAX,
            plans: 0,
            late: 0,
        }
    }

    pub(super) fn ready(&mut self, limits: Limits) {
        let rubbish = mix(self.plans, 99);
        self.device = Some(Device::new(limits, rubbish));
        self.min_context = self.min_context.min(limits.max_context as usize);
        self.scheduler.worker_ready(limits).expect("good limits");
        self.settle();
    }

    pub(super) fn lose(&mut self) {
        let in_flight = self.device.take().map(|device| device.in_flight());
        let mut suspects: Vec<_> = in_flight.into_iter().flatten().collect();
        suspects.retain(|(id, _)| self.tracks[id].end.is_none());
        let alone = suspects.len() == 1;
        for (id, draws) in suspects {
            let track = self.tracks.get_mut(&id).expect("a known sequence");
            // Of a program's sequence the driver judges.
            let may = !matches!(track.sequence.steering, Some(Steering::Lease(_)));
            track.condemned = may && alone && track.suspect_until.is_some();
            track.suspect_until = Some(track.known() + draws.max(1));
        }
        self.scheduler.worker_lost(true);
        self.settle();
    }

    pub(super) fn gone(&mut self) {
        self.device = None;
        self.scheduler.worker_gone();
        self.settle();
        assert_eq!(self.live().count(), 0);
    }

    /// Submits a sequence under the next id.
    pub(super) fn submit(&mut self, mut sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.tracks.len() as u64);
        sequence.id = id;
        let room = self.scheduler.room();
        match self.scheduler.submit(sequence.clone()) {
            Ok(()) => {
                let track = Track {
                    reference: reference(&sequence),
                    sequence,
                    scored: 0,
                    tokens: Vec::new(),
                    found: None,
                    started: false,
                    end: None,
                    suspect_until: None,
                    condemned: false,
                    held: false,
                };
                self.tracks.insert(id, track);
            }
            Err(refused) => {
                assert!(matches!(refused, Refused::QueueFull(_)) && room == 0);
            }
        }
        self.settle();
        id
    }

    pub(super) fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        if let Some(track) = self.tracks.get_mut(&id) {
            track.end.get_or_insert(End::Cancelled);
        }
        self.settle();
    }

    /// One of all sequences so far.
    pub(super) fn pick(&self, index: Index) -> Option<SequenceId> {
        let count = self.tracks.len();
        (count > 0).then(|| self.tracks.keys().nth(index.index(count)).copied())?
    }

    pub(super) fn hold(&mut self, id: SequenceId) {
        self.scheduler.hold(id);
        if let Some(track) = self.tracks.get_mut(&id) {
            track.held = true;
        }
        self.settle();
    }

    pub(super) fn resume(&mut self, id: SequenceId) {
        self.scheduler.resume(id);
        self.settle();
    }

    /// Plans a step and puts it into the ring, as the driver does.
    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        self.now += Duration::from_millis(1);
        let mut room = match &self.device {
            Some(device) => self.max_opens - device.opens(),
            None => 0,
        };
        let running = |scheduler: &Scheduler| -> Vec<_> {
            let worker = scheduler.worker.iter();
            worker
                .flat_map(|worker| worker.running.keys().copied())
                .collect()
        };
        let before = running(&self.scheduler);
        self.scheduler.clear_for_trial(false);
        let after = running(&self.scheduler);
        for id in before.iter().filter(|id| !after.contains(id)) {
            self.tracks.get_mut(id).expect("a known sequence").held = true;
        }
        if let Some(device) = &mut self.device {
            let ring = &mut device.ring;
            self.scheduler.close_slots(|slot| {
                ring.push_back(Message::Close { slot });
                true
            });
        }
        let mut reserved = 0;
        let plan = self.scheduler.plan(self.now, |_| {
            let fits = room > 0;
            room -= usize::from(fits);
            reserved += usize::from(fits);
            fits
        });
        assert_eq!(plan.as_ref().map_or(0, |plan| plan.opens.len()), reserved);
        if let Some(plan) = &plan {
            self.plans += 1;
            let device = self.device.as_mut().expect("no plan without a worker");
            assert!(plan.ids.len() <= 2 || plan.blocks.len() <= self.max_table);
            for id in &plan.ids {
                let company = device.steps().chain([plan]).flat_map(|step| &step.ids);
                let is_suspect = self.tracks[id].suspect_until.is_some();
                assert!(!is_suspect || company.into_iter().all(|other| other == id));
                assert!(!self.scheduler.held.contains_key(id));
            }
            for (id, &context) in plan.ids.iter().zip(&plan.context) {
                let track = self.tracks.get_mut(id).expect("a known sequence");
                track.found.get_or_insert(context as usize);
            }
            for &(slot, id) in &plan.opens {
                let view = self.scheduler.sequence(id).expect("it is live");
                let mut history = Vec::new();
                if view.sampling.has_penalties() || view.steering.is_some() {
                    history = [view.prompt, view.generated].concat();
                }
                let state = SlotState {
                    sampling: *view.sampling,
                    bias: view.bias.to_vec(),
                    history,
                    drawn: None,
                    steered: view.steering.is_some(),
                    parked: None,
                };
                device.ring.push_back(Message::Open { slot, state });
            }
            device.ring.push_back(Message::Step(plan.clone()));
        }
        self.settle();
        plan
    }

    /// Lets the worker answer its oldest step. False if it has none.
    pub(super) fn complete(&mut self) -> bool {
        let step = self.device.as_ref().and_then(|d| d.steps().next().cloned());
        let (Some(step), Some(output)) = (step, self.answer()) else {
            return false;
        };
        self.now += Duration::from_millis(1);
        let rows = step.ids.iter().zip(&output.tokens);
        for (id, _) in rows.filter(|&(_, &token)| token == LATE) {
            self.late += 1;
            let mut others = self.device.iter().flat_map(Device::steps);
            let waiting = |(other, track): (&SequenceId, &Track)| {
                other != id
                    && track.suspect_until.is_some()
                    && !self.scheduler.held.contains_key(other)
            };
            let track = self.tracks.get(id).expect("a known sequence");
            if matches!(track.sequence.steering, Some(Steering::Lease(_)))
                && !others.any(|step| step.ids.contains(id))
                && self.tracks.iter().any(waiting)
            {
                let track = self.tracks.get_mut(id).expect("a known sequence");
                track.suspect_until = None;
            }
        }
        let busy = Duration::from_micros(mix(output.number, 7) % 5_000);
        let done = self.scheduler.complete(self.now, busy, output.view());
        done.expect("the answer is right");
        self.settle();
        true
    }

    /// The answer to the oldest step, still to be given.
    fn answer(&mut self) -> Option<Output> {
        self.device.as_mut().and_then(Device::answer)
    }

    /// Gives a wrong answer to the oldest step; the worker is replaced for it.
    pub(super) fn lie(&mut self, lie: Lie) {
        let step = self.device.as_ref().and_then(|d| d.steps().next().cloned());
        let (Some(step), Some(mut output)) = (step, self.answer()) else {
            return;
        };
        lie.tell(&mut output);
        let before = self.scheduler.stats();
        let told = self
            .scheduler
            .complete(self.now, Duration::ZERO, output.view());
        assert!(told.is_err(), "{lie:?} was believed");
        assert_eq!(self.scheduler.stats(), before);
        // The step is still in flight for the scheduler; so it must be for the device.
        let device = self.device.as_mut().expect("it answered");
        device.ring.push_front(Message::Step(step));
        self.lose();
    }

    fn live(&self) -> impl Iterator<Item = (SequenceId, &Track)> {
        let tracks = self.tracks.iter().filter(|(_, track)| track.end.is_none());
        tracks.map(|(&id, track)| (id, track))
    }

    /// Runs until nothing is live, within as many plans as that can take.
    ///
    /// The oldest live sequence is never preempted, so what it computes is never lost. While it
    /// is the oldest it computes a position in every plan, but where it decodes and not all
    /// decodes fit into a step: then each of the others goes first at most once. As many plans
    /// more as may be in flight can be made while its last results are.
    ///
    /// Trials come on top. A suspect may have to make room during its trial, but not before it
    /// drew a token, so it has as many trials at most as it has tokens to draw in them. And a
    /// sequence that was held may push out younger ones, once each. Where a program is late its
    /// sequence needs another row, and what was in flight of it must arrive first.
    pub(super) fn drain(&mut self) {
        let held: Vec<_> = self.scheduler.held.keys().copied().collect();
        for id in held {
            self.resume(id);
        }
        let limits = self.device.as_ref().expect("a worker").limits;
        let budget = limits.max_step_tokens as usize;
        let widest = limits.max_context.div_ceil(limits.block_size).max(1) as usize;
        let rows = (self.max_table / widest).max(2);
        let turns = (budget - prefill_share(budget)).min(rows - 1);
        let depth = self.scheduler.steps_in_flight;
        let gap = 1 + (limits.max_sequences as usize - 1) / turns;
        let bound: usize = self
            .live()
            .map(|(_, track)| {
                let tokens = track.sequence.prompt.len() + track.sequence.max_tokens as usize;
                let trials = track.suspect_until.map_or(0, |until| until - track.known());
                tokens.min(limits.max_context as usize) * (gap + trials) + depth * (1 + trials)
            })
            .sum();
        let overtaken = self.live().filter(|(_, track)| track.held).count();
        let bound = bound * (1 + overtaken);
        // Some steps do nothing but decode, so that it is known how long that takes.
        let bound = bound + bound / 32 + 2;
        let (start, late) = (self.plans, self.late);
        while self.live().next().is_some() {
            while self.plan().is_some() {}
            assert!(self.complete(), "live sequences, and nothing to do");
            let again = (self.late - late) * ((gap + depth) * (1 + overtaken)) as u64;
            assert!(
                self.plans - start <= bound as u64 + again,
                "more than {bound} plans, and {again} for what was late"
            );
        }
        while self.complete() {}
        let stats = self.scheduler.stats();
        assert_eq!((stats.blocks_used, stats.steps_in_flight), (0, 0));
        assert_eq!((stats.running, stats.waiting), (0, 0));
    }

    /// Takes all events and checks them against the reference, then checks the scheduler.
    fn settle(&mut self) {
        while let Some((id, event)) = self.scheduler.poll_event() {
            let limits = self.device.as_ref().map(|device| device.limits);
            let track = self.tracks.get_mut(&id).expect("a known sequence");
            track.take(&event, limits, self.scheduler.gone, self.min_context);
        }
        self.check();
    }

    fn check(&self) {
        self.check_stats();
        for (id, track) in self.live() {
            assert!(!track.condemned);
            let view = self.scheduler.sequence(id).expect("live");
            assert_eq!(view.generated, track.tokens);
            assert_eq!(view.sampling.prompt_len as usize, view.prompt.len());
        }
        let scheduler = &self.scheduler;
        let waiting = scheduler.line.iter().map(|(_, live)| live);
        for live in waiting.chain(scheduler.held.values()) {
            assert!(scheduler.worker.is_some() || !live.is_in_flight());
        }
        for id in scheduler.held.keys() {
            assert!(scheduler.line.get(*id).is_none(), "held and waiting");
        }
        assert_eq!(scheduler.worker.is_some(), self.device.is_some());
        if let Some(worker) = &scheduler.worker {
            self.check_worker(worker);
            assert!(worker.in_flight.len() <= scheduler.steps_in_flight);
        }
    }

    fn check_stats(&self) {
        let stats = self.scheduler.stats();
        let count = |end| {
            let tracks = self.tracks.values();
            tracks.filter(|track| track.end == Some(end)).count() as u64
        };
        let live = (stats.waiting + stats.running + stats.held) as u64;
        assert_eq!(stats.admitted, self.tracks.len() as u64);
        assert_eq!(live, self.live().count() as u64);
        assert_eq!(stats.completed, count(End::Finished));
        assert_eq!(stats.failed, count(End::Failed));
        assert_eq!(stats.cancelled, count(End::Cancelled));
        assert_eq!(
            stats.admitted,
            stats.completed + stats.failed + stats.cancelled + live
        );
        assert_eq!(stats.steps, self.plans);
    }

    /// What must hold of the worker's bookkeeping at any time.
    fn check_worker(&self, worker: &Attached) {
        let (line, held) = (&self.scheduler.line, &self.scheduler.held);
        let mut slots = BTreeSet::new();
        for (id, running) in &worker.running {
            assert!(line.get(*id).is_none(), "running and waiting");
            assert!(!held.contains_key(id), "running and held");
            assert!(running.slot < worker.limits.max_sequences);
            assert!(slots.insert(running.slot), "a slot has two owners");
            let live = &running.live;
            assert!(running.computed <= live.len().min(running.extent.positions));
            assert!(
                live.len() <= running.extent.tokens,
                "more tokens than may be"
            );
            assert!(worker.blocks.needed(running.computed) <= running.table.as_slice().len());
        }
        let tables = worker.running.values().map(|running| &running.table);
        worker.blocks.check(tables);
        assert_eq!(slots.len() + worker.slots.free(), worker.slots.total());
        let parties = worker.running.iter().map(|(id, r)| (r.live.party(), *id));
        let youngest: BTreeMap<_, _> = parties.collect();
        for (id, live) in line.iter().filter(|(id, _)| !self.tracks[id].held) {
            let younger = youngest
                .get(&live.party())
                .is_some_and(|&running| running > id);
            assert!(!younger, "{id:?} waits for a younger one of its party");
        }
        assert_eq!(worker.deadline.is_some(), !worker.in_flight.is_empty());
        let rows = worker.in_flight.iter().flat_map(|step| &step.rows);
        let running = worker
            .running
            .iter()
            .map(|(&id, running)| (id, &running.live));
        let held = held.iter().map(|(&id, live)| (id, live));
        for (id, live) in running.chain(line.iter()).chain(held) {
            let (mut all, mut draws) = (0, 0);
            for row in rows.clone().filter(|row| row.id == id) {
                all += 1;
                draws += usize::from(row.draws);
            }
            assert_eq!(live.flights(), (all, draws));
        }
    }
}

impl Track {
    /// Tokens whose values its client knows.
    fn known(&self) -> usize {
        self.sequence.prompt.len() + self.tokens.len()
    }

    fn take(&mut self, event: &Event, limits: Option<Limits>, gone: bool, min_context: usize) {
        assert_eq!(self.end, None, "an event after the last one: {event:?}");
        let expected = &self.reference;
        match event {
            Event::Started { cached } => {
                assert!(!self.started && *cached < self.sequence.prompt.len());
                assert_eq!(Some(*cached), self.found);
                assert!(*cached == 0 || !self.sequence.prompt_logprobs);
                self.started = true;
            }
            Event::PromptLogprobs { start, entries } => {
                assert!(self.started && !entries.is_empty());
                assert_eq!(*start, self.scored, "prompt scores missing or repeated");
                assert_eq!(entries[..], expected.prompt[*start..start + entries.len()]);
                self.scored += entries.len();
            }
            Event::Emitted { .. } => panic!("the scheduler has no text"),
            Event::Token { token, logprobs } => {
                assert!(self.started);
                assert_eq!(self.scored, expected.prompt.len());
                let (expected, scores) = &expected.tokens[self.tokens.len()];
                assert_eq!((token, logprobs), (expected, scores));
                self.tokens.push(*token);
                self.suspect_until = self.suspect_until.filter(|&until| self.known() < until);
            }
            Event::Finished(reason) => {
                let all = self.sequence.prompt.len() - 1;
                let scores = if self.sequence.prompt_logprobs {
                    all
                } else {
                    0
                };
                assert_eq!(self.scored, scores);
                let full = self.tokens.len() == expected.tokens.len()
                    && !expected.overflows
                    && !expected.fails;
                let held = self.sequence.prompt.len() + self.tokens.len();
                match reason {
                    FinishReason::Stop => assert!(full && expected.stops),
                    // The context may be full where its program would have ended it.
                    FinishReason::Length if full && self.sequence.steering.is_some() => {
                        assert!(!expected.stops || held >= min_context);
                    }
                    FinishReason::Length if full => assert!(!expected.stops),
                    FinishReason::Length => assert!(held >= min_context),
                }
                self.end = Some(End::Finished);
            }
            Event::Failed(reason) => {
                match reason {
                    FailReason::WorkerCrashed => {
                        assert!(self.condemned);
                        self.condemned = false;
                    }
                    FailReason::WorkerGone => assert!(gone),
                    FailReason::Quarantined { .. } => panic!("nothing is in quarantine here"),
                    FailReason::NotANumber => {
                        assert!(expected.overflows);
                        assert_eq!(self.tokens.len(), expected.tokens.len());
                    }
                    FailReason::Program { fault, message, .. }
                    | FailReason::Grammar { fault, message } => {
                        assert!(expected.fails);
                        let by = match reason {
                            FailReason::Program { kind, .. } => Some(*kind),
                            _ => None,
                        };
                        let formed = matches!(self.sequence.steering, Some(Steering::Form(_)));
                        assert_eq!(by, (!formed).then_some(Kind::Processor));
                        assert_eq!(self.tokens.len(), expected.tokens.len());
                        assert_eq!((*fault, &**message), (Fault::Trap, "oh"));
                    }
                    FailReason::TooLong => {
                        assert!(!fits(&self.sequence, &limits.expect("of some worker")));
                    }
                }
                self.end = Some(End::Failed);
            }
        }
    }
}

/// Whether a worker can hold all but the last token that a sequence may come to.
fn fits(sequence: &Sequence, limits: &Limits) -> bool {
    let (prompt, context) = (sequence.prompt.len(), limits.max_context as usize);
    let tokens = (prompt + sequence.max_tokens as usize).min(context);
    let positions = prompt.max(tokens - 1);
    prompt <= context && positions <= (limits.block_size * limits.block_count) as usize
}

/// Ways of a worker to lie about a step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Lie {
    Number,
    Rows,
    TokenAboveVocabulary,
    ExtraScores,
    ExtraAlternative,
}

impl Lie {
    fn tell(self, output: &mut Output) {
        match self {
            Self::Number => output.number += 1,
            Self::Rows => {
                output.tokens.pop();
            }
            Self::TokenAboveVocabulary => output.tokens[0] = VOCAB as i32,
            Self::ExtraScores => output.prompt_logprobs.push(0.0),
            Self::ExtraAlternative => output.top_ids.push(0),
        }
    }
}
