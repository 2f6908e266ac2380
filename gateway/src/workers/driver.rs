//! One model's loop: commands in, steps out, results in, events out; and the life of its workers.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use realm_shared::control::{Control, ModelInfo};
use realm_shared::wire::{Fault, Sampling};
use realm_shm::GatewayEnd;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::generation::Command;
use super::heartbeat::Heartbeat;
use super::link::{Answer, Link, LinkError, MAX_TABLE, Room};
use super::live::Live;
use super::process::{WorkerError, WorkerProcess};
use super::runs::{Hands, Runs};
use super::{Shared, State};
use crate::batching::{
    Allowance, Config, Event, FailReason, Limits, Priority, Scheduler, Sequence, SequenceId,
    TenantId,
};
use crate::config::{ModelSpec, Workers};
use crate::metrics::ModelMetrics;
use crate::programs::{Kind, Program};
use crate::readable::watch;

mod commands;
mod suspects;

/// Shortest and longest pause before a worker that ended is replaced.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));
/// Longest pause before a worker is looked for that somebody else starts: it costs next to
/// nothing, and the worker should not wait for us.
const LONGEST_ABSENCE: Duration = Duration::from_secs(1);
/// Workers in a row that may end without having produced a token.
const MAX_BARREN: u32 = 5;
/// The same where a worker of the model has served, if they say themselves that they cannot: with the pauses between
/// them half a minute, in which what they lack may be back.
const MAX_BARREN_SINCE: u32 = 9;
/// A worker that lived this long was of use even if nobody asked it for a token.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// What is wrong with a model whose first token is no number.
const NO_NUMBERS: &str =
    "the model computes no numbers; its weights are broken, or it needs another --dtype";

/// Places in the scheduler's queue beside those of requests: for the probe, and for tokens that are examined.
const PROBES: usize = 2;

/// Owns a model's scheduler and its current worker.
pub(super) struct Driver {
    spec: ModelSpec,
    settings: Arc<Workers>,
    shared: Arc<Shared>,
    inbox: mpsc::UnboundedReceiver<Command>,
    scheduler: Scheduler,
    /// Every sequence that the scheduler holds.
    live: HashMap<SequenceId, Live>,
    /// The same by request and index, for cancels.
    by_request: HashMap<(u64, usize), SequenceId>,
    next_id: u64,
    /// The last sequence that was submitted to see whether the worker computes.
    probe: Option<SequenceId>,
    /// Tokens that are computed without the program that was there when a worker died of them, or of it.
    examined: HashMap<SequenceId, Arc<Program>>,
    /// The current worker has produced no token yet.
    unproven: bool,
    /// Some worker of this model has.
    has_served: bool,
    /// The probe ended without a number: there is nothing to be had from this model.
    computes_nothing: bool,
    metrics: ModelMetrics,
    /// Requests that programs answer.
    runs: Runs,
    /// Tokens of the current worker's vocabulary.
    vocabulary: u32,
    /// What the worker said that no worker can say.
    wrong: Option<String>,
}

impl Driver {
    pub(super) fn new(
        spec: ModelSpec,
        settings: Arc<Workers>,
        shared: Arc<Shared>,
        inbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let metrics = ModelMetrics::new(&spec.name, &WorkerError::KINDS);
        Driver {
            spec,
            scheduler: Scheduler::new(Config {
                // As many again for sequences of programs, which have no places of their own.
                max_waiting: settings.max_queue.saturating_mul(2).saturating_add(PROBES),
                step_timeout: settings.step_timeout,
                max_table: MAX_TABLE,
                surplus: settings.surplus.get(),
            }),
            settings,
            shared,
            inbox,
            live: HashMap::new(),
            by_request: HashMap::new(),
            next_id: 0,
            probe: None,
            examined: HashMap::new(),
            unproven: true,
            has_served: false,
            computes_nothing: false,
            metrics,
            runs: Runs::default(),
            vocabulary: 0,
            wrong: None,
        }
    }

    /// Runs until every handle to the model is dropped, or its workers cannot be run.
    pub(super) async fn run(mut self) {
        let mut barren = 0;
        for epoch in 1.. {
            let started = Instant::now();
            self.unproven = true;
            self.computes_nothing = false;
            let Some(error) = self.incarnation(epoch).await else {
                return;
            };
            let loss = self.scheduler.worker_lost(error.is_its_own());
            let on_trial = loss.on_trial;
            let suspect = self.convict(loss, error.is_its_own());
            self.deliver();
            let now = Instant::now();
            for live in self.live.values_mut() {
                live.interrupt(now);
            }
            self.runs.detach(&mut self.scheduler, now);
            if let Some((program, tokens)) = suspect.filter(|_| error.is_crash()) {
                match tokens {
                    Some(tokens) => self.examine(program, tokens),
                    None => self.put_in_quarantine(&program),
                }
            }
            // Other models that use a program may have found out what it does.
            self.fail_quarantined();
            self.wrong = None;
            // Of those that are attached, only the ones that served.
            if self.spec.attach.is_none() || !self.unproven {
                self.metrics.worker_ended(error.kind());
            }
            let was_of_use = started.elapsed() > LONG_LIFE || !self.unproven;
            barren = match was_of_use {
                true => 0,
                // It found out whom its predecessor died of, and could show nothing for itself. But a model that never
                // served may be what they die of.
                false if on_trial && self.has_served => barren,
                false => barren + 1,
            };
            let reason = error.to_string();
            // What loaded once may load again, and what served may serve: then it is the machine that changed.
            let never_loaded = self.shared.info().is_none();
            let hopeless = match self.has_served {
                true => error.is_permanent() && barren >= MAX_BARREN_SINCE,
                false => error.is_permanent() && never_loaded || barren >= MAX_BARREN,
            };
            // Whoever starts the workers that we attach to may mend what is wrong with them.
            if hopeless && self.spec.attach.is_none() {
                tracing::error!(model = self.spec.name, reason, "the model cannot be served");
                self.set_state(State::Failed { reason });
                self.fail_all();
                return self.refuse_all().await;
            }
            let longest = match self.spec.attach {
                None => BACKOFF.1,
                Some(_) => LONGEST_ABSENCE,
            };
            let pause = BACKOFF.0.saturating_mul(1 << barren.min(16)).min(longest);
            let state = State::Restarting { reason };
            // One that is absent is looked for time and again, and reported once.
            if self.spec.attach.is_none() || *self.shared.state.borrow() != state {
                let reason = error.to_string();
                tracing::warn!(
                    model = self.spec.name,
                    reason,
                    ?pause,
                    "the model has no worker; trying again"
                );
            }
            self.set_state(state);
            if !self.pause(pause).await {
                return;
            }
        }
    }

    /// Starts a worker and serves through it until it ends. `None`: every handle is dropped.
    async fn incarnation(&mut self, epoch: u32) -> Option<WorkerError> {
        let start = start_worker(
            self.spec.clone(),
            self.settings.clone(),
            self.shared.clone(),
            epoch,
        );
        let mut start = std::pin::pin!(start);
        let (mut process, gate, info) = loop {
            tokio::select! {
                started = &mut start => match started {
                    Ok(started) => break started,
                    Err(error) => return Some(error),
                },
                command = self.inbox.recv() => self.apply(command?),
                () = until(self.runs.deadline()) => {}
            }
            self.deliver();
        };
        tracing::info!(
            model = self.spec.name,
            pid = process.pid(),
            device = info.device,
            dtype = info.dtype,
            context = info.max_context,
            kv_tokens = u64::from(info.block_count) * u64::from(info.block_size),
            threads = info.threads,
            "the worker has loaded the model"
        );
        if let Err(error) = self.scheduler.worker_ready(Limits::from(&info)) {
            let error = WorkerError::Violation(error.to_string());
            process.end(Some(&error)).await;
            return Some(error);
        }
        self.vocabulary = info.vocab_size;
        self.shared.set_info(info);
        self.probe();
        let wake = gate.wake_fd().try_clone_to_owned();
        let orders = match process.orders() {
            Ok(orders) => orders,
            Err(error) => {
                let error = error.into();
                process.end(Some(&error)).await;
                return Some(error);
            }
        };
        let mut link = Link::new(gate, orders);
        let mut error = match wake.and_then(watch) {
            Ok(wake) => self.serve(&mut process, &mut link, &wake).await,
            Err(error) => Some(error.into()),
        };
        if let Some(WorkerError::Unreached(_)) = error
            && let Some(why) = process.why_gone().await
        {
            error = Some(why);
        }
        process.end(error.as_ref()).await;
        if !matches!(error, Some(WorkerError::Violation(_)))
            && let Err(error) = self.collect(&mut link)
        {
            tracing::warn!(model = self.spec.name, %error, "the last results of a worker are void");
        }
        error
    }

    /// Plans, submits and collects steps until the worker ends.
    async fn serve(
        &mut self,
        process: &mut WorkerProcess,
        link: &mut Link,
        wake: &AsyncFd<OwnedFd>,
    ) -> Option<WorkerError> {
        let mut heartbeat = Heartbeat::new();
        loop {
            if let Err(error) = self.turn(link) {
                return Some(error);
            }
            while self.deliver() {
                if let Err(error) = self.submit(link) {
                    return Some(error);
                }
            }
            if let Some(wrong) = self.wrong.take() {
                return Some(WorkerError::Violation(wrong));
            }
            if self.computes_nothing {
                return Some(WorkerError::Failed(NO_NUMBERS.to_owned()));
            }
            match link.gate().arm() {
                Ok(true) => {}
                Ok(false) => {
                    // Results come faster than they are taken in. Commands have their turn all
                    // the same, and so has whatever else runs on this thread.
                    if !self.apply_all() {
                        return None;
                    }
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(violation) => return Some(WorkerError::Violation(violation.to_string())),
            }
            let overdue = until(self.scheduler.next_deadline());
            let expired = until(self.runs.deadline());
            tokio::select! {
                ready = wake.readable() => match ready {
                    Ok(mut guard) => {
                        guard.clear_ready();
                        if let Err(violation) = link.gate().woken() {
                            return Some(WorkerError::Violation(violation.to_string()));
                        }
                    }
                    Err(error) => return Some(error.into()),
                },
                command = self.inbox.recv() => {
                    self.apply(command?);
                    if !self.apply_all() {
                        return None;
                    }
                }
                control = process.next_control() => match control {
                    Ok(Control::Failed { message }) => return Some(WorkerError::Crashed(message)),
                    Ok(Control::Crashed { how }) => return Some(WorkerError::Crashed(how)),
                    Ok(other) => {
                        let what = format!("unexpected control message {other:?}");
                        return Some(WorkerError::Violation(what));
                    }
                    Err(error) => return Some(error),
                },
                () = heartbeat.due() => {
                    if let Err(error) = heartbeat.look(link.gate().heartbeat()) {
                        return Some(error);
                    }
                }
                () = overdue => return Some(WorkerError::Hung(self.settings.step_timeout)),
                () = expired => {}
            }
        }
    }

    /// Takes every result that is there and submits every step that can be planned.
    fn turn(&mut self, link: &mut Link) -> Result<(), WorkerError> {
        self.collect(link)?;
        self.submit(link)
    }

    /// Takes every result that is there. After a worker's end these are the steps that it
    /// finished: what is still in flight then is what it may have died of.
    fn collect(&mut self, link: &mut Link) -> Result<(), WorkerError> {
        let now = Instant::now();
        while let Some(answer) = link.poll()? {
            let (result, busy) = match answer {
                Answer::Step(result, busy) => (result, busy),
                Answer::Heard(said) => {
                    let (runs, mut hands) = self.hands();
                    runs.hear(said, &mut hands);
                    continue;
                }
            };
            let number = result.number;
            let parts = self.scheduler.complete(now, busy, result);
            let parts = parts
                .map_err(|e| WorkerError::Violation(format!("result of step {number}: {e}")))?;
            for (id, part) in parts {
                let live = self.live.get(&id).or_else(|| self.runs.live(id));
                if let Some(reservation) = live.and_then(|live| live.reservation.as_ref()) {
                    reservation.computed(part);
                }
            }
            self.metrics.step(busy);
        }
        Ok(())
    }

    fn submit(&mut self, link: &mut Link) -> Result<(), WorkerError> {
        let now = Instant::now();
        let quiet = self.runs.is_on_trial(&self.scheduler) && !self.unproven;
        self.scheduler.clear_for_trial(quiet);
        self.scheduler.close_slots(|slot| link.close(slot));
        self.submit_runs(link, now)?;
        let quiet = self.runs.is_on_trial(&self.scheduler) && !self.unproven;
        if quiet && !self.scheduler.tries_suspects() {
            return Ok(());
        }
        while let Some(plan) = self.scheduler.plan(now, |sequence| link.reserve(sequence)) {
            for (_, id) in &plan.opens {
                // One that had tokens waited for blocks or a new worker, not for its turn.
                if let Some(live) = self.live.get(id)
                    && live.last_token.is_none()
                {
                    self.metrics.queued(now - live.submitted);
                }
            }
            let scheduler = &self.scheduler;
            let opens = plan
                .opens
                .iter()
                .filter_map(|&(slot, id)| Some((slot, scheduler.sequence(id)?)));
            link.submit(&plan, opens)?;
        }
        Ok(())
    }

    /// Hands requests to the worker that programs answer: when it has shown that it computes, so that what kills
    /// it later is no reason to give the model up, and not while sequences are on trial.
    fn submit_runs(&mut self, link: &mut Link, now: Instant) -> Result<(), WorkerError> {
        self.runs.end(|run| link.end(run));
        let mut hopeless = Vec::new();
        if self.runs.any_waits() && !self.unproven && !self.scheduler.tries_suspects() {
            let idle = self.scheduler.stats().steps_in_flight == 0;
            self.runs.send(now, idle, |number, run| {
                let room = link.run(number, &run.task, run.hearing.journal())?;
                if room == Room::Never {
                    hopeless.push(number);
                }
                Ok::<_, LinkError>(room)
            })?;
        }
        for number in hopeless {
            let reason = FailReason::Program {
                kind: Kind::Program,
                fault: Fault::Output,
                message: "what it has seen is too long for another worker".into(),
            };
            let (runs, mut hands) = self.hands();
            runs.fail(number, reason, &mut hands);
        }
        self.runs
            .answer(|number, tenant, tokens| link.kept(number, tenant, tokens))?;
        if !self.runs.is_empty() {
            link.listen()?;
        }
        Ok(())
    }

    /// The runs, and what they act with.
    fn hands(&mut self) -> (&mut Runs, Hands<'_>) {
        let hands = Hands {
            scheduler: &mut self.scheduler,
            metrics: &self.metrics,
            last_id: &mut self.next_id,
            vocabulary: self.vocabulary,
            kept: self.settings.max_queue.saturating_add(PROBES),
        };
        (&mut self.runs, hands)
    }

    /// Asks a new worker for one token. Only a worker that computes is ready, and the first
    /// request does not pay for what is set up by the first step.
    fn probe(&mut self) {
        if let Some(unanswered) = self.probe.take() {
            self.scheduler.cancel(unanswered);
        }
        let id = self.new_id();
        self.probe = Some(id);
        if let Err(refused) = self.scheduler.submit(plain(id, Arc::new([0]))) {
            tracing::debug!(%refused, "no probe: the requests that wait will do");
        }
    }

    fn new_id(&mut self) -> SequenceId {
        self.next_id += 1;
        SequenceId(self.next_id)
    }

    /// Sends what happened to the requests it happened to, and does what programs said. True if that
    /// left something to plan.
    fn deliver(&mut self) -> bool {
        // Programs wait for a worker that computes, and for a suspect to be cleared.
        let awaited = (self.unproven, self.runs.suspect());
        let (runs, mut hands) = self.hands();
        let mut acted = runs.expire(Instant::now(), &mut hands);
        loop {
            self.deliver_events();
            let (runs, mut hands) = self.hands();
            match runs.advance(&mut hands) {
                Ok(true) => acted = true,
                Ok(false) => break,
                Err(wrong) => {
                    self.wrong = Some(wrong);
                    break;
                }
            }
        }
        let saved = self.runs.saved_tokens();
        self.metrics.record(&self.scheduler.stats(), saved);
        acted || awaited != (self.unproven, self.runs.suspect())
    }

    fn deliver_events(&mut self) {
        let now = Instant::now();
        while let Some((id, event)) = self.scheduler.poll_event() {
            if self.unproven && matches!(event, Event::Token { .. }) {
                self.unproven = false;
                self.has_served = true;
                self.set_state(State::Ready);
                tracing::info!(model = self.spec.name, "ready");
            }
            if self.probe == Some(id) && event == Event::Failed(FailReason::NotANumber) {
                self.computes_nothing = true;
            }
            if matches!(event, Event::Token { .. })
                && let Some(program) = self.examined.remove(&id)
            {
                self.put_in_quarantine(&program);
            } else if event.is_last() {
                self.examined.remove(&id);
            }
            let (runs, mut hands) = self.hands();
            let Some(event) = runs.event(id, event, &mut hands) else {
                continue;
            };
            let Some(live) = self.live.get_mut(&id) else {
                continue;
            };
            if matches!(event, Event::Token { .. }) {
                live.measure_token(now, &self.metrics);
            }
            live.settle(&event, now);
            if !event.is_last() {
                if live.send(event) {
                    self.scheduler.hold(id);
                }
            } else if let Some(mut live) = self.live.remove(&id) {
                self.by_request.remove(&(live.request, live.index));
                self.metrics.ended(&event, now - live.submitted);
                // Whoever hears that it is over finds all given back.
                live.reservation = None;
                live.place = None;
                live.backlog.push();
                let _ = live.events.send((live.index, event));
            }
        }
    }

    /// Takes commands for a while without a worker. False: every handle is dropped.
    async fn pause(&mut self, pause: Duration) -> bool {
        let end = tokio::time::sleep(pause);
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return true,
                command = self.inbox.recv() => match command {
                    Some(command) => self.apply(command),
                    None => return false,
                },
                () = until(self.runs.deadline()) => {}
            }
            self.deliver();
        }
    }

    /// Fails what still arrives after the last worker.
    async fn refuse_all(mut self) {
        while let Some(command) = self.inbox.recv().await {
            self.apply(command);
            self.fail_all();
        }
    }

    /// No worker will come.
    fn fail_all(&mut self) {
        self.scheduler.worker_gone();
        self.deliver();
        let (runs, mut hands) = self.hands();
        runs.fail_all(&mut hands);
    }

    fn set_state(&self, state: State) {
        self.shared.state.send_replace(state);
    }
}

/// A sequence of the gateway's own, which asks for what follows from some tokens.
fn plain(id: SequenceId, prompt: Arc<[u32]>) -> Sequence {
    Sequence {
        id,
        tenant: TenantId::ANYONE,
        prompt,
        max_tokens: 1,
        sampling: Sampling {
            temperature: 0.0,
            ..Sampling::default()
        },
        bias: Arc::new([]),
        allowance: Allowance::default(),
        priority: Priority::default(),
        prompt_logprobs: false,
        steering: None,
    }
}

/// Starts a worker and waits until it has loaded its model.
async fn start_worker(
    spec: ModelSpec,
    settings: Arc<Workers>,
    shared: Arc<Shared>,
    epoch: u32,
) -> Result<(WorkerProcess, GatewayEnd, ModelInfo), WorkerError> {
    let (mut process, gate) = WorkerProcess::start(&spec, &settings, epoch).await?;
    let progress = |done: u64, total: u64| {
        shared.state.send_if_modified(|state| match state {
            State::Loading { fraction } => {
                *fraction = done as f32 / total.max(1) as f32;
                true
            }
            // While a worker is replaced, the reason is worth more than the progress.
            _ => false,
        });
    };
    let mut heartbeat = Heartbeat::new();
    let ready = {
        let mut ready = std::pin::pin!(process.wait_ready(progress));
        loop {
            tokio::select! {
                ready = &mut ready => break ready,
                () = heartbeat.due() => if let Err(error) = heartbeat.look(gate.heartbeat()) {
                    break Err(error);
                }
            }
        }
    };
    match ready {
        Ok(info) => Ok((process, gate, info)),
        Err(error) => {
            process.end(Some(&error)).await;
            Err(error)
        }
    }
}

/// Waits for a moment, for ever if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

impl From<LinkError> for WorkerError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Submit(_) => WorkerError::Unreached(error.to_string()),
            LinkError::Ring(_) | LinkError::Answer(_) => WorkerError::Violation(error.to_string()),
        }
    }
}
