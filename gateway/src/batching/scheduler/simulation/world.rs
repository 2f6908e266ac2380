//! The world around a scheduler: its worker, its clients, and what they check.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::device::{Device, Message, Output, SlotState};
use super::model::{Reference, VOCAB, mix, reference};
use crate::batching::limits::{Config, Limits};
use crate::batching::plan::StepPlan;
use crate::batching::scheduler::attached::Attached;
use crate::batching::scheduler::batch::prefill_share;
use crate::batching::scheduler::live::Live;
use crate::batching::scheduler::{MAX_DEATHS, Refused, Scheduler};
use crate::batching::sequence::{Event, FailReason, FinishReason, Sequence, SequenceId};

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
    end: Option<End>,
    deaths: u32,
}

/// A scheduler, its worker and its clients. Every operation checks everything after itself.
pub(super) struct Simulation {
    scheduler: Scheduler,
    pub(super) device: Option<Device>,
    pub(super) tracks: BTreeMap<SequenceId, Track>,
    now: Instant,
    /// Shortest context of any worker so far.
    min_context: usize,
    plans: u64,
}

impl Simulation {
    pub(super) fn new(steps_in_flight: usize) -> Self {
        let mut scheduler = Scheduler::new(Config {
            max_waiting: 12,
            step_timeout: Duration::from_secs(10),
        });
        scheduler.steps_in_flight = steps_in_flight;
        Self {
            scheduler,
            device: None,
            tracks: BTreeMap::new(),
            now: Instant::now(),
            min_context: usize::MAX,
            plans: 0,
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
        for id in in_flight.into_iter().flatten() {
            if let Some(track) = self.tracks.get_mut(&id)
                && track.end.is_none()
            {
                track.deaths += 1;
            }
        }
        self.scheduler.worker_lost();
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
                    end: None,
                    deaths: 0,
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

    /// Plans a step and puts it into the ring, as the driver does.
    pub(super) fn plan(&mut self) -> Option<StepPlan> {
        self.now += Duration::from_millis(1);
        let plan = self.scheduler.plan(self.now);
        if let Some(plan) = &plan {
            self.plans += 1;
            let device = self.device.as_mut().expect("no plan without a worker");
            for &(slot, id) in &plan.opens {
                let view = self.scheduler.sequence(id).expect("it is live");
                let mut history = Vec::new();
                if view.sampling.has_penalties() {
                    history = [view.prompt, view.generated].concat();
                }
                let state = SlotState {
                    sampling: *view.sampling,
                    bias: view.bias.to_vec(),
                    history,
                    drawn: None,
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
        let Some(output) = self.device.as_mut().and_then(Device::answer) else {
            return false;
        };
        self.now += Duration::from_millis(1);
        let done = self.scheduler.complete(self.now, output.view());
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
        let in_flight = self.device.as_ref().map(Device::in_flight);
        let Some(mut output) = self.answer() else {
            return;
        };
        lie.tell(&mut output);
        let before = self.scheduler.stats();
        let told = self.scheduler.complete(self.now, output.view());
        assert!(told.is_err(), "{lie:?} was believed");
        assert_eq!(self.scheduler.stats(), before);
        // The step is still in flight for the scheduler; so it must be for the device.
        let ids = in_flight.into_iter().flatten().collect();
        let device = self.device.as_mut().expect("it answered");
        device.ring.push_front(Message::Step(StepPlan {
            ids,
            ..StepPlan::default()
        }));
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
    pub(super) fn drain(&mut self) {
        let limits = self.device.as_ref().expect("a worker").limits;
        let budget = limits.max_step_tokens as usize;
        let turns = budget - prefill_share(budget);
        let depth = self.scheduler.steps_in_flight;
        let gap = 1 + (limits.max_sequences as usize - 1) / turns;
        let bound: usize = self
            .live()
            .map(|(_, track)| {
                let tokens = track.sequence.prompt.len() + track.sequence.max_tokens as usize;
                tokens.min(limits.max_context as usize) * gap + depth
            })
            .sum();
        let start = self.plans;
        while self.live().next().is_some() {
            while self.plan().is_some() {}
            assert!(self.complete(), "live sequences, and nothing to do");
            assert!(
                self.plans - start <= bound as u64,
                "more than {bound} plans"
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
            assert!(track.deaths < MAX_DEATHS);
            let view = self.scheduler.sequence(id).expect("live");
            assert_eq!(view.generated, track.tokens);
            assert_eq!(view.sampling.prompt_len as usize, view.prompt.len());
        }
        let scheduler = &self.scheduler;
        for live in scheduler.waiting.values() {
            assert!(scheduler.worker.is_some() || !live.is_in_flight());
        }
        assert_eq!(scheduler.worker.is_some(), self.device.is_some());
        if let Some(worker) = &scheduler.worker {
            check_worker(worker, &scheduler.waiting);
            assert!(worker.in_flight.len() <= scheduler.steps_in_flight);
        }
    }

    fn check_stats(&self) {
        let stats = self.scheduler.stats();
        let count = |end| {
            let tracks = self.tracks.values();
            tracks.filter(|track| track.end == Some(end)).count() as u64
        };
        let live = (stats.waiting + stats.running) as u64;
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
}

/// What must hold of a worker's bookkeeping at any time.
fn check_worker(worker: &Attached, waiting: &BTreeMap<SequenceId, Live>) {
    let mut blocks = BTreeSet::new();
    let mut slots = BTreeSet::new();
    for (id, running) in &worker.running {
        assert!(!waiting.contains_key(id), "running and waiting");
        assert!(running.slot < worker.limits.max_sequences);
        assert!(slots.insert(running.slot), "a slot has two owners");
        for &block in running.table.as_slice() {
            assert!(block < worker.limits.block_count);
            assert!(blocks.insert(block), "a block has two owners");
        }
        let live = &running.live;
        assert!(running.computed <= live.len().min(running.extent.positions));
        assert!(
            live.len() <= running.extent.tokens,
            "more tokens than may be"
        );
        assert!(worker.blocks.needed(running.computed) <= running.table.as_slice().len());
    }
    assert_eq!(blocks.len() + worker.blocks.free(), worker.blocks.total());
    assert_eq!(slots.len() + worker.slots.free(), worker.slots.total());
    if let (Some((running, _)), Some((waiting, _))) =
        (worker.running.last_key_value(), waiting.first_key_value())
    {
        assert!(running < waiting, "a sequence waits for a younger one");
    }
    assert_eq!(worker.deadline.is_some(), !worker.in_flight.is_empty());
    let rows = worker.in_flight.iter().flat_map(|step| &step.rows);
    let running = worker
        .running
        .iter()
        .map(|(id, running)| (id, &running.live));
    for (id, live) in running.chain(waiting) {
        let (mut all, mut draws) = (0, 0);
        for row in rows.clone().filter(|row| row.id == *id) {
            all += 1;
            draws += usize::from(row.draws);
        }
        assert_eq!(live.flights(), (all, draws));
    }
}

impl Track {
    fn take(&mut self, event: &Event, limits: Option<Limits>, gone: bool, min_context: usize) {
        assert_eq!(self.end, None, "an event after the last one: {event:?}");
        let expected = &self.reference;
        match event {
            Event::PromptLogprobs { start, entries } => {
                assert!(!entries.is_empty());
                assert_eq!(*start, self.scored, "prompt scores missing or repeated");
                assert_eq!(entries[..], expected.prompt[*start..start + entries.len()]);
                self.scored += entries.len();
            }
            Event::Token { token, logprobs } => {
                assert_eq!(self.scored, expected.prompt.len());
                let (expected, scores) = &expected.tokens[self.tokens.len()];
                assert_eq!((token, logprobs), (expected, scores));
                self.tokens.push(*token);
            }
            Event::Finished(reason) => {
                let all = self.sequence.prompt.len() - 1;
                let scores = if self.sequence.prompt_logprobs {
                    all
                } else {
                    0
                };
                assert_eq!(self.scored, scores);
                let full = self.tokens.len() == expected.tokens.len() && !expected.overflows;
                let held = self.sequence.prompt.len() + self.tokens.len();
                match reason {
                    FinishReason::Stop => assert!(full && expected.stops),
                    FinishReason::Length if full => assert!(!expected.stops),
                    FinishReason::Length => assert!(held >= min_context),
                }
                self.end = Some(End::Finished);
            }
            Event::Failed(reason) => {
                match reason {
                    FailReason::WorkerCrashed => assert_eq!(self.deaths, MAX_DEATHS),
                    FailReason::WorkerGone => assert!(gone),
                    FailReason::NotANumber => {
                        assert!(expected.overflows);
                        assert_eq!(self.tokens.len(), expected.tokens.len());
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
