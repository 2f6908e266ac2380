//! The way back from a sequence, or a run of a program, to its request.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use super::generation::Backlog;
use super::queue::Places;
use crate::batching::Event;
use crate::metrics::ModelMetrics;
use crate::tenants::{Outcome, Reservation};

/// A sequence's way back to its request.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) request: u64,
    pub(super) index: usize,
    pub(super) events: mpsc::UnboundedSender<(usize, Event)>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) submitted: Instant,
    pub(super) last_token: Option<Instant>,
    pub(super) prompt_tokens: usize,
    /// Whether another choice of the request has the same prompt, which counts once.
    pub(super) shares_prompt: bool,
    pub(super) reservation: Option<Arc<Reservation>>,
    /// Given back when the sequence ends.
    pub(super) place: Option<Places>,
}

impl Live {
    /// Counts what the request's tenant gets by an event.
    pub(super) fn settle(&self, event: &Event, now: Instant) {
        let Some(reservation) = &self.reservation else {
            return;
        };
        match event {
            Event::Started { cached } => {
                reservation.queued(now - self.submitted);
                if !self.shares_prompt {
                    reservation.prompt(self.prompt_tokens as u64, *cached as u64);
                }
            }
            Event::Token { .. } => reservation.generated(1),
            Event::Finished(_) => reservation.ended(Outcome::Completed),
            Event::Failed(_) => reservation.ended(Outcome::Failed),
            Event::PromptLogprobs { .. } | Event::Emitted { .. } => {}
        }
    }

    /// Sends an event that is not the last. True if so many are unread that what makes them is to
    /// be held.
    pub(super) fn send(&self, event: Event) -> bool {
        // Counted before it is sent: once there, it may be taken at any moment.
        let is_full = self.backlog.push();
        // A request that is gone cancels its sequences by itself.
        let _ = self.events.send((self.index, event));
        is_full
    }

    /// Measures the time to a token.
    pub(super) fn measure_token(&mut self, now: Instant, metrics: &ModelMetrics) {
        match self.last_token.replace(now) {
            None => metrics.first_token(now - self.submitted, self.prompt_tokens),
            Some(last) => metrics.next_token(now - last),
        }
    }
}

// === Of a run of a program ===

impl Live {
    /// A token was drawn for it.
    pub(super) fn count_token(&mut self, now: Instant, metrics: &ModelMetrics) {
        self.measure_token(now, metrics);
        if let Some(reservation) = &self.reservation {
            reservation.generated(1);
        }
    }

    /// It is over: all is given back, before its end of `events` goes, which its request may wait for.
    pub(super) fn over(mut self, outcome: Outcome) {
        if let Some(reservation) = self.reservation.take() {
            reservation.all_ended(outcome);
        }
        self.place = None;
    }
}
