//! What requests ask of a model: to start, to go on, to stop.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::error::TryRecvError;

use super::super::generation::{Cancel, Command};
use super::super::live::Live;
use super::Driver;
use crate::batching::{Event, FailReason, Sequence, Steering};
use crate::programs::Kind;
use crate::tenants::Outcome;

impl Driver {
    /// Takes the commands that are there. False: every handle is dropped.
    pub(super) fn apply_all(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.apply(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    pub(super) fn apply(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Start(mut start) => {
                let sequences = start.sequences.into_iter().zip(start.backlogs);
                let mut prompt = None;
                for (index, (mut sequence, backlog)) in sequences.enumerate() {
                    let before = prompt.replace(sequence.prompt.clone());
                    let id = self.new_id();
                    sequence.id = id;
                    let mut live = Live {
                        request: start.request,
                        index,
                        events: start.events.clone(),
                        backlog,
                        submitted: now,
                        last_token: None,
                        interrupted: None,
                        prompt_tokens: sequence.prompt.len(),
                        shares_prompt: before
                            .is_some_and(|before| Arc::ptr_eq(&before, &sequence.prompt)),
                        reservation: start.reservation.clone(),
                        place: start.places.split_one(),
                    };
                    if let Err(reason) = self.take_in(sequence) {
                        (live.reservation, live.place) = (None, None);
                        live.backlog.push();
                        let _ = live.events.send((index, Event::Failed(reason)));
                        continue;
                    }
                    self.metrics.admitted();
                    self.live.insert(id, live);
                    self.by_request.insert((start.request, index), id);
                }
            }
            Command::Run(start) => {
                let live = Live {
                    request: start.request,
                    index: 0,
                    events: start.events,
                    backlog: start.backlog,
                    submitted: now,
                    last_token: None,
                    interrupted: None,
                    prompt_tokens: start.task.request.prompt.len(),
                    shares_prompt: false,
                    reservation: start.reservation,
                    place: Some(start.places),
                };
                self.metrics.admitted();
                let is_quarantined = start.task.program.is_quarantined();
                let (runs, mut hands) = self.hands();
                runs.start(*start.task, live);
                if is_quarantined {
                    let kind = Kind::Program;
                    runs.fail(start.request, FailReason::Quarantined { kind }, &mut hands);
                }
            }
            Command::Cancel {
                request,
                index,
                why,
            } => {
                let outcome = match why {
                    Cancel::Satisfied => Outcome::Completed,
                    Cancel::Abandoned => Outcome::Cancelled,
                };
                let (runs, mut hands) = self.hands();
                if runs.cancel(request, outcome, &mut hands) {
                    return;
                }
                let Some(id) = self.by_request.remove(&(request, index)) else {
                    return;
                };
                let unheard = self.scheduler.cancel(id);
                let Some(mut live) = self.live.remove(&id) else {
                    return;
                };
                self.metrics.cancelled(outcome, now - live.submitted);
                if let Some(reservation) = live.reservation.take() {
                    reservation.generated(unheard as u64);
                    reservation.ended(outcome);
                }
                // Its request may wait for the end of `events`, and finds all given back then.
                live.place = None;
                drop(live);
            }
            Command::Resume { request, index } => {
                if let Some(&id) = self.by_request.get(&(request, index)) {
                    self.scheduler.resume(id);
                }
                self.runs.resume(request, &mut self.scheduler);
            }
        }
    }
    /// Has the scheduler take in a sequence. What steers it may have been put in quarantine since the request came,
    /// by this model or another.
    fn take_in(&mut self, sequence: Sequence) -> Result<(), FailReason> {
        if let Some(Steering::Instance(instance)) = &sequence.steering
            && instance.program.is_quarantined()
        {
            let kind = Kind::Processor;
            return Err(FailReason::Quarantined { kind });
        }
        self.scheduler.submit(sequence).map_err(|refused| {
            tracing::error!(%refused, "a sequence that was admitted is refused");
            FailReason::WorkerGone
        })
    }
}
