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
    /// When its worker ended, if its next token is to come from another.
    pub(super) interrupted: Option<Instant>,
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

    /// Its worker has ended. Until it goes on with another it is interrupted, unless it had not begun, or waits for
    /// its client.
    pub(super) fn interrupt(&mut self, now: Instant) {
        if self.last_token.is_some() && !self.backlog.is_held() {
            self.interrupted.get_or_insert(now);
        }
    }

    /// Measures the time to a token.
    pub(super) fn measure_token(&mut self, now: Instant, metrics: &ModelMetrics) {
        if let Some(since) = self.interrupted.take() {
            metrics.resumed(now - since);
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_stream_is_resumed_once_however_many_workers_end_meanwhile() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let metrics = ModelMetrics::new("resumed", &[]);
            let (events, _heard) = mpsc::unbounded_channel();
            let at = Instant::now();
            let after = |seconds| at + Duration::from_secs(seconds);
            let mut live = Live {
                request: 1,
                index: 0,
                events,
                backlog: Arc::default(),
                submitted: at,
                last_token: None,
                interrupted: None,
                prompt_tokens: 3,
                shares_prompt: false,
                reservation: None,
                place: None,
            };
            // Not begun: nobody sees a stream stand still.
            live.interrupt(after(1));
            live.measure_token(after(2), &metrics);
            live.interrupt(after(3));
            live.interrupt(after(5));
            live.measure_token(after(7), &metrics);
            live.measure_token(after(8), &metrics);
            // Its client is what it waits for.
            while !live.backlog.push() {}
            live.interrupt(after(9));
            live.measure_token(after(20), &metrics);
        });
        let text = handle.render();
        for line in [
            r#"realm_resume_seconds_sum{model_name="resumed"} 4"#,
            r#"realm_resume_seconds_count{model_name="resumed"} 1"#,
        ] {
            assert!(text.lines().any(|shown| shown == line), "{text}");
        }
    }
}
