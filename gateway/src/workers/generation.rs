//! A request's side of the driver: admission, and the stream of what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::batching::{Event, Sequence};

/// Why no generation could be started. Nothing was done yet.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// No worker can take it: 503.
    #[error("the model is not ready: {reason}")]
    NotReady {
        /// When to try again.
        retry_after: Duration,
        /// What it is waiting for.
        reason: String,
    },
    /// Too many sequences are running and waiting: 429.
    #[error("too many requests are waiting for this model")]
    QueueFull {
        /// When to try again.
        retry_after: Duration,
    },
}

/// What requests tell a model's driver.
#[derive(Debug)]
pub(super) enum Command {
    Start(Start),
    Cancel {
        request: u64,
        index: usize,
        why: Cancel,
    },
}

/// Why a sequence ends before the scheduler ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancel {
    /// Its request has all it wants.
    Satisfied,
    /// Nobody waits for it any more.
    Abandoned,
}

/// Sequences of one request, on their way to the scheduler.
#[derive(Debug)]
pub(super) struct Start {
    /// Names the request in `Command::Cancel`.
    pub(super) request: u64,
    pub(super) sequences: Vec<Sequence>,
    /// Where their events go. Unbounded, but a sequence sends at most `max_tokens` + a few.
    pub(super) events: mpsc::UnboundedSender<(usize, Event)>,
    pub(super) places: Places,
}

/// Places in a model's queue: one per live sequence, given back when dropped.
#[derive(Debug)]
pub(super) struct Places {
    live: Arc<AtomicUsize>,
    count: usize,
}

impl Places {
    /// Takes `count` places of `limit`, or none.
    pub(super) fn take(live: &Arc<AtomicUsize>, count: usize, limit: usize) -> Option<Self> {
        live.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            n.checked_add(count).filter(|&n| n <= limit)
        })
        .ok()?;
        Some(Places {
            live: live.clone(),
            count,
        })
    }

    /// Takes one place out of these, to be given back on its own.
    pub(super) fn split_one(&mut self) -> Option<Self> {
        self.count = self.count.checked_sub(1)?;
        Some(Places {
            live: self.live.clone(),
            count: 1,
        })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.live.fetch_sub(self.count, Ordering::AcqRel);
    }
}

/// Events of all sequences of one request, in the order in which they happened. Dropping it
/// cancels what still runs.
#[derive(Debug)]
pub struct Generation {
    request: u64,
    /// Whether the sequence of each index may still send events.
    live: Vec<bool>,
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Generation {
    pub(super) fn new(
        request: u64,
        sequences: usize,
        events: mpsc::UnboundedReceiver<(usize, Event)>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Generation {
            request,
            live: vec![true; sequences],
            events,
            commands,
        }
    }

    /// The next event and the index of its sequence; `None` after every sequence's last event.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        while self.live.contains(&true) {
            let Some((index, event)) = self.events.recv().await else {
                // The driver ended without a last word (the process is going down).
                let index = self.live.iter().position(|&l| l)?;
                self.live[index] = false;
                return Some((
                    index,
                    Event::Failed(crate::batching::FailReason::WorkerGone),
                ));
            };
            if !self.live.get(index).copied().unwrap_or(false) {
                continue;
            }
            if event.is_last() {
                self.live[index] = false;
            }
            return Some((index, event));
        }
        None
    }

    /// Ends one sequence early because its request has all it wants, for example since a stop
    /// string matched. It sends nothing more.
    pub fn cancel(&mut self, index: usize) {
        self.end(index, Cancel::Satisfied);
    }

    fn end(&mut self, index: usize, why: Cancel) {
        if let Some(live) = self.live.get_mut(index)
            && std::mem::take(live)
        {
            // A driver that is gone has nothing left to cancel.
            let _ = self.commands.send(Command::Cancel {
                request: self.request,
                index,
                why,
            });
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        for index in 0..self.live.len() {
            self.end(index, Cancel::Abandoned);
        }
    }
}
