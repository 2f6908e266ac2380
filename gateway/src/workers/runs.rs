//! Requests that programs answer: what is kept of them here, so that they outlive their worker.
//!
//! A program runs in the worker; its sequences are the scheduler's, like any others. What was drawn
//! for them is written into a journal, and so is what it saw otherwise. What the program says counts
//! once all tokens that it had taken before are in there: so another worker, which runs it anew with
//! the journal, says the same up to there, and goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use realm_shared::run::{
    Drawn, Finish, Keep, MOST_KEPT, MOST_NAME, MOST_SECONDS, MOST_SEEN, Open, Part, Request, Said,
    What,
};
use realm_shared::wire::{Allotment, Fault};

use super::hearing::Hearing;
use super::link::Room;
use super::live::Live;
use super::saved::Saved;
use crate::batching::{
    Allowance, Event, FailReason, FinishReason, Loss, Priority, Scheduler, Sequence, SequenceId,
    Steering, TenantId,
};
use crate::metrics::ModelMetrics;
use crate::programs::{Kind, Program};
use crate::tenants::Outcome;

/// Most sequences that a program makes, one after the other. The worker refuses it before.
const MAX_SEQUENCES: u32 = 1 << 20;
/// How long nothing else is computed while a program that may have killed a worker does what it did before: the
/// first time, twice as long the second, and so on.
const QUIET: Duration = Duration::from_secs(1);
const MOST_DOUBLINGS: u32 = 6;
/// Sequences that the scheduler may hold for a program, as a multiple of those that it has at once:
/// some are over in the worker already.
const SLACK: usize = 4;

/// A program, and the request that it is to answer.
#[derive(Debug, Clone)]
pub struct Task {
    /// Whose it is.
    pub tenant: TenantId,
    /// What its tenant may have.
    pub allowance: Allowance,
    /// How urgent it is.
    pub priority: Priority,
    /// The program.
    pub program: Arc<Program>,
    /// What it may take. Whose it is, is filled in by the link.
    pub allotment: Allotment,
    /// Tokens that its tenant may save for later requests.
    pub saved: usize,
    /// How long it may take from when it is asked, in wall time.
    pub wall: Duration,
    /// What is to be answered.
    pub request: Request,
}

/// A request that a program answers.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) task: Task,
    live: Live,
    pub(super) hearing: Hearing,
    /// Tokens drawn that the request was not told of.
    untold: u32,
    /// What it asked for by a name, on the way to the worker.
    unanswered: Option<Vec<u32>>,
    /// How often it saved something, in all its lives and in the present one.
    saves: u64,
    resaves: u64,
    /// Bytes of the answer that the request has.
    sent: usize,
    /// Bytes of the answer that the program has said in its present life.
    repeated: usize,
    /// Its sequences in the scheduler.
    sequences: Vec<SequenceId>,
    /// A worker died that had it, and it has not gone on since to where it was.
    is_suspect: bool,
    /// It was on trial when a worker died.
    is_accused: bool,
    /// Workers that died with it, since it was cleared last.
    deaths: u32,
    /// Something of it was computed.
    has_started: bool,
    /// Tokens that its sequences have read on this worker, and the most of any.
    read: u64,
    most_read: u64,
    /// The request reads slowly: its sequences are held.
    is_held: bool,
    /// The worker has it.
    is_sent: bool,
}

/// All requests of a model that programs answer.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// By the number of the request, which is that of the run.
    runs: BTreeMap<u64, Run>,
    /// Their sequences: of which run, and which of it.
    sequences: HashMap<SequenceId, (u64, u32)>,
    /// Runs that the worker has and nobody waits for.
    ended: Vec<u64>,
    /// The suspect that the worker has, and until when nothing else is computed for its sake.
    trial: Option<(u64, Instant)>,
    saved: Saved,
}

/// What the driver lends, to act with.
pub(super) struct Hands<'a> {
    pub(super) scheduler: &'a mut Scheduler,
    pub(super) metrics: &'a ModelMetrics,
    /// The last id that a sequence was given.
    pub(super) last_id: &'a mut u64,
    /// Tokens of the vocabulary.
    pub(super) vocabulary: u32,
    /// Places in the scheduler's line that are kept for requests which were admitted.
    pub(super) kept: usize,
}

impl Runs {
    pub(super) fn start(&mut self, task: Task, live: Live) {
        let run = Run {
            task,
            hearing: Hearing::default(),
            untold: 0,
            unanswered: None,
            saves: 0,
            resaves: 0,
            sent: 0,
            repeated: 0,
            sequences: Vec::new(),
            is_suspect: false,
            is_accused: false,
            deaths: 0,
            has_started: false,
            read: 0,
            most_read: 0,
            is_held: false,
            is_sent: false,
            live,
        };
        self.runs.insert(run.live.request, run);
    }

    /// The way back from a sequence.
    pub(super) fn live(&self, id: SequenceId) -> Option<&Live> {
        let (number, _) = self.sequences.get(&id)?;
        self.runs.get(number).map(|run| &run.live)
    }

    /// Tokens that programs have saved for later requests.
    pub(super) fn saved_tokens(&self) -> usize {
        self.saved.tokens()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Hands out those that the worker does not have, until one cannot be sent now. Suspects are handed out one
    /// after the other, and only where the worker is `idle`; everybody else waits for them.
    pub(super) fn send<E>(
        &mut self,
        now: Instant,
        idle: bool,
        mut send: impl FnMut(u64, &Run) -> Result<Room, E>,
    ) -> Result<(), E> {
        let suspect = self.suspect();
        for (&number, run) in self.runs.iter_mut().filter(|(_, run)| !run.is_sent) {
            let waits = match suspect {
                Some(suspect) => number != suspect || !idle,
                None => run.is_suspect,
            };
            if waits {
                continue;
            }
            match send(number, run)? {
                Room::Taken => run.is_sent = true,
                Room::None => break,
                // Others need not wait for that.
                Room::Quota | Room::Never => continue,
            }
            if run.is_suspect {
                let quiet = QUIET * (1 << run.deaths.saturating_sub(1).min(MOST_DOUBLINGS));
                self.trial = Some((number, now + quiet));
            }
        }
        Ok(())
    }

    /// The suspect whose turn it is: one that was on trial when a worker died, or else the oldest. One whose
    /// request reads slowly does nothing for now.
    pub(super) fn suspect(&self) -> Option<u64> {
        let suspects = self.runs.iter();
        let suspects = suspects.filter(|(_, run)| run.is_suspect && !run.is_held);
        let first = suspects.min_by_key(|(number, run)| (!run.is_accused, **number));
        first.map(|(&number, _)| number)
    }

    /// Whether there is a suspect, for whose sake nothing else is computed.
    pub(super) fn is_on_trial(&mut self, scheduler: &Scheduler) -> bool {
        for run in self.runs.values_mut().filter(|run| run.is_suspect) {
            run.look_whether_cleared(scheduler);
        }
        self.suspect().is_some()
    }

    /// Whether there are any that the worker does not have.
    pub(super) fn any_waits(&self) -> bool {
        self.runs.values().any(|run| !run.is_sent)
    }

    /// Whether the worker has none of them.
    pub(super) fn none_is_sent(&self) -> bool {
        self.runs.values().all(|run| !run.is_sent)
    }

    /// The one that a worker died of: a suspect that was alone there, while nothing was computed that is not its
    /// own; where the worker did not end `by_itself`, one to which that happens again. To be asked before
    /// [`detach`](Self::detach).
    pub(super) fn convicted(&self, loss: &Loss, by_itself: bool) -> Option<(u64, Arc<Program>)> {
        let mut sent = self.runs.iter().filter(|(_, run)| run.is_sent);
        let (&number, run) = sent.next()?;
        let is_own = |id: &SequenceId| run.sequences.contains(id);
        let alone = sent.next().is_none() && loss.in_flight.iter().all(is_own);
        let known = by_itself || run.is_accused;
        (alone && run.is_suspect && known).then(|| (number, run.task.program.clone()))
    }

    /// Fails those whose programs are in quarantine.
    pub(super) fn fail_quarantined(&mut self, hands: &mut Hands<'_>) {
        let quarantined =
            |(&number, run): (&u64, &Run)| run.task.program.is_quarantined().then_some(number);
        let numbers: Vec<_> = self.runs.iter().filter_map(quarantined).collect();
        for number in numbers {
            let kind = Kind::Program;
            self.fail(number, FailReason::Quarantined { kind }, hands);
        }
    }

    /// Hands out what they asked for, until something cannot be sent now.
    pub(super) fn answer<E>(
        &mut self,
        mut send: impl FnMut(u64, TenantId, &[u32]) -> Result<Room, E>,
    ) -> Result<(), E> {
        for (number, run) in &mut self.runs {
            if let Some(tokens) = &run.unanswered {
                match send(*number, run.task.tenant, tokens)? {
                    // There is always room for a context, some day.
                    Room::Taken | Room::Never => run.unanswered = None,
                    Room::None => break,
                    Room::Quota => {}
                }
            }
        }
        Ok(())
    }

    /// Hands out those that are over before the worker said so, until one cannot be told now.
    pub(super) fn end(&mut self, mut end: impl FnMut(u64) -> bool) {
        while self.ended.last().is_some_and(|&run| end(run)) {
            self.ended.pop();
        }
    }

    /// Takes in what programs said. What is said of runs that are over is of no interest, and one that says more than
    /// can be carried out fails.
    pub(super) fn hear(&mut self, said: Vec<Said>, hands: &mut Hands<'_>) {
        for said in said {
            let number = said.run;
            let Some(run) = self.runs.get_mut(&number) else {
                continue;
            };
            run.hearing.hear(said);
            if run.hearing.unheard() > run.most_unheard() {
                let reason = FailReason::Program {
                    kind: Kind::Program,
                    fault: Fault::Output,
                    message: "it asks for more sequences than can be computed at once".into(),
                };
                self.fail(number, reason, hands);
            }
        }
    }

    /// Takes what happened to a sequence, if it is one of these; else gives it back.
    pub(super) fn event(
        &mut self,
        id: SequenceId,
        event: Event,
        hands: &mut Hands<'_>,
    ) -> Option<Event> {
        let Some(&(number, ordinal)) = self.sequences.get(&id) else {
            return Some(event);
        };
        let run = self.runs.get_mut(&number)?;
        let now = Instant::now();
        // One that is over is unknown there, and killed nobody.
        if matches!(event, Event::Token { .. }) && !hands.scheduler.is_suspect(id) {
            run.clear();
        }
        match event {
            Event::Started { cached } => {
                if let Err(more) = run.started(id, cached, now, hands.scheduler) {
                    let reason = FailReason::Program {
                        kind: Kind::Program,
                        fault: Fault::Tokens,
                        message: format!("it reads {more} tokens, and its tenant has fewer left")
                            .into(),
                    };
                    self.fail(number, reason, hands);
                }
            }
            Event::Token { token, logprobs } => {
                run.live.count_token(now, hands.metrics);
                let logprobs = logprobs.unwrap_or_default();
                run.write(
                    ordinal,
                    Drawn {
                        token,
                        logprob: logprobs.logprob,
                        alternatives: logprobs.top,
                    },
                );
            }
            // Its program let go of it, or it is as long as it may be.
            Event::Finished(_) => {
                self.sequences.remove(&id);
                run.sequences.retain(|&other| other != id);
            }
            Event::Failed(mut reason) => {
                self.sequences.remove(&id);
                if let FailReason::Program { kind, .. } = &mut reason {
                    // The worker knows only that it was steered.
                    *kind = Kind::Program;
                }
                self.fail(number, reason, hands);
            }
            Event::PromptLogprobs { .. } | Event::Emitted { .. } => {}
        }
        None
    }

    /// Carries out what counts by now of what was said. True: there may be more events.
    ///
    /// # Errors
    /// If a worker said what no program can say.
    pub(super) fn advance(&mut self, hands: &mut Hands<'_>) -> Result<bool, String> {
        let mut acted = false;
        for number in self.fewest_first() {
            while let Some(run) = self.runs.get_mut(&number) {
                let wrong = |what: String| format!("a program of run {number} {what}");
                let may_open = hands.scheduler.room() > hands.kept && run.may_open();
                let context = run.task.request.context as usize;
                let Some(what) = run.hearing.next(may_open, context).map_err(wrong)? else {
                    break;
                };
                acted |= match what {
                    What::Open(open) => {
                        let (ordinal, id) = run.open(open, hands).map_err(wrong)?;
                        self.sequences.insert(id, (number, ordinal));
                        true
                    }
                    What::Reopen(name) => {
                        run.reopen(&name, &mut self.saved).map_err(wrong)?;
                        true
                    }
                    What::Keep(keep) => {
                        run.keep(keep, &mut self.saved, hands.vocabulary)
                            .map_err(wrong)?;
                        false
                    }
                    What::Emit(part) => run.emit(part, hands.scheduler).map_err(wrong)?,
                    What::Finished(finish) => {
                        let reason = match finish {
                            Finish::Stop => FinishReason::Stop,
                            Finish::Length => FinishReason::Length,
                        };
                        run.is_sent = false;
                        self.finish(number, Event::Finished(reason), hands);
                        true
                    }
                    What::Failed(fault, message) => {
                        let fault = Fault::from_number(fault)
                            .ok_or_else(|| wrong("failed in a way that there is not".into()))?;
                        let reason = FailReason::Program {
                            kind: Kind::Program,
                            fault,
                            message: message.into(),
                        };
                        run.is_sent = false;
                        self.fail(number, reason, hands);
                        true
                    }
                    // These are pieces of others, or the journal's.
                    What::More(_) | What::Saw(_) | What::Redraw(_) => false,
                };
            }
        }
        Ok(acted)
    }

    /// The numbers of all, those of tenants with fewest sequences first: for them are the places that are free.
    fn fewest_first(&self) -> Vec<u64> {
        let mut held: HashMap<TenantId, usize> = HashMap::new();
        for run in self.runs.values() {
            *held.entry(run.task.tenant).or_default() += run.sequences.len();
        }
        let mut numbers: Vec<u64> = self.runs.keys().copied().collect();
        let of = |number: &u64| self.runs.get(number).map(|run| run.task.tenant);
        numbers.sort_by_key(|number| of(number).and_then(|tenant| held.get(&tenant)));
        numbers
    }

    /// When the first of them has taken as long as it may, or others have waited for it as long as they do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let trial = self.trial.map(|(_, until)| until);
        self.runs.values().map(Run::deadline).chain(trial).min()
    }

    /// Ends those that have taken as long as they may, and a trial that has. True: there are any.
    pub(super) fn expire(&mut self, now: Instant, hands: &mut Hands<'_>) -> bool {
        let trial = self.trial.take_if(|(_, until)| *until <= now);
        if let Some(run) = trial.and_then(|(number, _)| self.runs.get_mut(&number)) {
            run.is_suspect = false;
        }
        let late = self.runs.iter().filter(|(_, run)| run.deadline() <= now);
        let late: Vec<_> = late.map(|(&number, run)| (number, run.task.wall)).collect();
        let any = !late.is_empty() || trial.is_some();
        for (number, wall) in late {
            let reason = FailReason::Program {
                kind: Kind::Program,
                fault: Fault::Wall,
                message: format!("it is not done after {} s", wall.as_secs()).into(),
            };
            self.fail(number, reason, hands);
        }
        any
    }

    /// The worker is gone: what ran on it begins anew on the next one. Called when the scheduler knows,
    /// and all events are taken.
    pub(super) fn detach(&mut self, scheduler: &mut Scheduler, now: Instant) {
        self.ended.clear();
        self.trial = None;
        for run in self.runs.values_mut() {
            for id in run.sequences.drain(..) {
                scheduler.cancel(id);
            }
            run.live.interrupt(now);
            if run.is_sent {
                run.is_accused = run.is_suspect;
                run.is_suspect = true;
                run.deaths += 1;
            }
            run.hearing.restart();
            run.unanswered = None;
            run.resaves = 0;
            run.repeated = 0;
            run.read = 0;
            run.is_sent = false;
        }
        self.sequences.clear();
    }

    /// No worker will come.
    pub(super) fn fail_all(&mut self, hands: &mut Hands<'_>) {
        while let Some(&number) = self.runs.keys().next() {
            self.fail(number, FailReason::WorkerGone, hands);
        }
    }

    /// Ends a run that cannot go on, or never could be handed to the worker.
    pub(super) fn fail(&mut self, number: u64, reason: FailReason, hands: &mut Hands<'_>) {
        self.finish(number, Event::Failed(reason), hands);
    }

    /// Ends the run of a request. False: it has none.
    pub(super) fn cancel(&mut self, request: u64, outcome: Outcome, hands: &mut Hands<'_>) -> bool {
        let Some(run) = self.take(request, hands.scheduler) else {
            return false;
        };
        hands
            .metrics
            .cancelled(outcome, run.live.submitted.elapsed());
        run.live.over(outcome);
        true
    }

    /// Lets the sequences of a request go on whose answer was read.
    pub(super) fn resume(&mut self, request: u64, scheduler: &mut Scheduler) {
        if let Some(run) = self.runs.get_mut(&request) {
            run.is_held = false;
            for &id in &run.sequences {
                scheduler.resume(id);
            }
        }
    }

    /// Ends a run, and tells its request why.
    fn finish(&mut self, number: u64, last: Event, hands: &mut Hands<'_>) {
        let Some(mut run) = self.take(number, hands.scheduler) else {
            return;
        };
        run.tell(Part::Text(String::new()));
        hands.metrics.ended(&last, run.live.submitted.elapsed());
        let outcome = match last {
            Event::Finished(_) => Outcome::Completed,
            _ => Outcome::Failed,
        };
        let (index, events) = (run.live.index, run.live.events.clone());
        run.live.backlog.push();
        // Whoever hears that it is over finds all given back.
        run.live.over(outcome);
        let _ = events.send((index, last));
    }

    /// Takes a run out, with all that the scheduler has of it.
    fn take(&mut self, number: u64, scheduler: &mut Scheduler) -> Option<Run> {
        let run = self.runs.remove(&number)?;
        for &id in &run.sequences {
            self.sequences.remove(&id);
            let unheard = scheduler.cancel(id);
            if let Some(reservation) = &run.live.reservation {
                reservation.generated(unheard as u64);
            }
        }
        if run.is_sent {
            self.ended.push(number);
        }
        Some(run)
    }
}

impl Run {
    fn deadline(&self) -> Instant {
        self.live.submitted + self.task.wall
    }

    /// It has gone on to where it was when a worker died.
    fn clear(&mut self) {
        (self.is_suspect, self.is_accused, self.deaths) = (false, false, 0);
    }

    /// Clears it if its sequences are: those whose plans are late are cleared without an event.
    fn look_whether_cleared(&mut self, scheduler: &Scheduler) {
        let is_suspect = |&id: &SequenceId| scheduler.is_suspect(id);
        if !self.sequences.is_empty() && !self.sequences.iter().any(is_suspect) {
            self.clear();
        }
    }

    /// A sequence is being computed.
    ///
    /// # Errors
    /// With the tokens that it reads beyond its request's prompt, if they are more than its tenant may use. The
    /// step that begins with them is under way.
    fn started(
        &mut self,
        id: SequenceId,
        cached: usize,
        now: Instant,
        scheduler: &Scheduler,
    ) -> Result<(), u64> {
        let length = scheduler.sequence(id).map_or(0, |view| view.prompt.len());
        let first = !std::mem::replace(&mut self.has_started, true);
        let (length, found) = (length as u64, cached as u64);
        // What the program's other sequences have read is not counted again, nor what a worker that
        // died had read already.
        self.read += if first {
            length
        } else {
            length.saturating_sub(found)
        };
        let more = self.read.saturating_sub(self.most_read);
        self.most_read += more;
        if let Some(reservation) = &self.live.reservation {
            if first {
                reservation.queued(now - self.live.submitted);
            }
            // The request's prompt is reserved, and so is all that may be drawn.
            let prompt = self.task.request.prompt.len() as u64;
            let beyond = more.min(self.most_read.saturating_sub(prompt));
            let reserved = reservation.extend(beyond);
            reservation.prompt(more, if first { found } else { 0 });
            if !reserved {
                return Err(beyond);
            }
        }
        if first {
            self.live.send(Event::Started { cached });
        }
        Ok(())
    }

    /// Writes down what was drawn.
    fn write(&mut self, ordinal: u32, drawn: Drawn) {
        self.hearing.write(ordinal, drawn);
        self.untold = self.untold.saturating_add(1);
    }

    /// How much it may have said that does not count yet: what it may see, save and give out, and its sequences.
    fn most_unheard(&self) -> usize {
        let Allotment {
            sequences, output, ..
        } = self.task.allotment;
        let sequences = (sequences as usize + 1) * SLACK * self.task.request.context as usize;
        let output = usize::try_from(output).unwrap_or(usize::MAX);
        (MOST_SEEN + MOST_KEPT)
            .saturating_add(sequences)
            .saturating_add(output)
    }

    /// Whether there may be one more of its sequences: those that its program let go of make room as they
    /// end.
    fn may_open(&self) -> bool {
        self.sequences.len() < self.task.allotment.sequences as usize * SLACK
    }

    /// Looks up what is saved under a name, and has it sent to the program.
    fn reopen(&mut self, name: &str, saved: &mut Saved) -> Result<(), String> {
        if self.unanswered.is_some() {
            return Err("asks for more before it was answered".into());
        }
        let tokens = saved.find(self.task.tenant, name, Instant::now());
        // What it may not see any more, it refuses by itself.
        self.hearing.see(&tokens);
        self.unanswered = Some(tokens);
        Ok(())
    }

    /// Saves tokens, unless that was done in an earlier life.
    fn keep(&mut self, keep: Keep, saved: &mut Saved, vocabulary: u32) -> Result<(), String> {
        let right = keep.tokens.iter().all(|&token| token < vocabulary)
            && keep.tokens.len() <= self.task.request.context as usize
            && (1..=MOST_NAME).contains(&keep.name.len())
            && keep.seconds <= MOST_SECONDS;
        if !right {
            return Err("saves what cannot be saved".into());
        }
        self.resaves += 1;
        if self.resaves > self.saves {
            self.saves = self.resaves;
            let Task {
                tenant,
                saved: most,
                ..
            } = self.task;
            saved.keep(tenant, most, keep, Instant::now());
        }
        Ok(())
    }

    /// Has the scheduler compute a sequence.
    fn open(&mut self, open: Open, hands: &mut Hands<'_>) -> Result<(u32, SequenceId), String> {
        let Task {
            tenant,
            allowance,
            priority,
            ref request,
            ..
        } = self.task;
        let (prompt, dials) = (&open.prompt, open.dials);
        let right = (1..=request.context as usize).contains(&prompt.len())
            && prompt.iter().all(|&token| token < hands.vocabulary)
            && open.sequence < MAX_SEQUENCES
            && (0.0..=f32::MAX).contains(&dials.temperature)
            && dials.top_p > 0.0
            && dials.top_p <= 1.0
            && (0.0..=1.0).contains(&dials.min_p);
        if !right {
            return Err("opened a sequence that cannot be".into());
        }
        // At least one: the worker counts what it draws, and asks for no more than there is.
        let taken = self.hearing.taken() as u64;
        let left = request.budget.saturating_sub(taken).max(1);
        self.look_whether_cleared(hands.scheduler);
        *hands.last_id += 1;
        let id = SequenceId(*hands.last_id);
        let submitted = hands.scheduler.submit(Sequence {
            id,
            tenant,
            allowance,
            priority,
            prompt: prompt.as_slice().into(),
            max_tokens: u32::try_from(left).unwrap_or(u32::MAX),
            sampling: open.sampling(),
            bias: Arc::new([]),
            prompt_logprobs: false,
            steering: Some(Steering::Lease(open.lease)),
        });
        submitted.map_err(|e| format!("opened a sequence: {e}"))?;
        self.sequences.push(id);
        if self.is_suspect {
            hands.scheduler.suspect(id);
        }
        if self.is_held {
            hands.scheduler.hold(id);
        }
        Ok((open.sequence, id))
    }

    /// Sends what the request does not have yet of a part of the answer. True if its sequences were held for
    /// that.
    fn emit(&mut self, part: Part, scheduler: &mut Scheduler) -> Result<bool, String> {
        let mut tools = self.task.request.tools.offered.iter();
        if let Part::Call(name) = &part
            && !tools.any(|tool| tool.name == *name)
        {
            return Err("calls a tool that there is not".into());
        }
        let before = self.sent.saturating_sub(self.repeated);
        self.repeated += part.bytes();
        if self.repeated as u64 > self.task.allotment.output {
            return Err("gives out more than it may".into());
        }
        let Some(new) = part.behind(before) else {
            return Ok(false);
        };
        self.sent += new.bytes();
        if !self.tell(new) {
            return Ok(false);
        }
        self.is_held = true;
        for &id in &self.sequences {
            scheduler.hold(id);
        }
        Ok(true)
    }

    /// Tells the request of a part of the answer and of the tokens drawn since. True if it reads too slowly.
    fn tell(&mut self, part: Part) -> bool {
        let tokens = std::mem::take(&mut self.untold);
        if part.bytes() == 0 && tokens == 0 {
            return false;
        }
        self.live.send(Event::Emitted { part, tokens })
    }
}

#[cfg(test)]
#[path = "runs_tests.rs"]
pub(super) mod tests;
