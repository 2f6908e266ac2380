//! A request's side of the driver: admission, and the stream of what happened.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::queue::Places;
use super::runs::Task;
use crate::batching::{Event, Sequence};
use crate::tenants::Reservation;

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
    /// It has more sequences than may ever run and wait: 400.
    #[error("a request may have at most {limit} sequences")]
    TooMany {
        /// That many.
        limit: usize,
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
    Run(StartRun),
    Cancel {
        request: u64,
        index: usize,
        why: Cancel,
    },
    /// A sequence that was held because nobody took its events may go on.
    Resume {
        request: u64,
        index: usize,
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
    /// Where their events go. Unbounded, but a sequence whose [`Backlog`] is full is held.
    pub(super) events: mpsc::UnboundedSender<(usize, Event)>,
    /// One of each sequence.
    pub(super) backlogs: Vec<Arc<Backlog>>,
    pub(super) places: Places,
    /// What their tokens are counted on.
    pub(super) reservation: Option<Arc<Reservation>>,
}

/// A request that a program answers, on its way to the driver.
#[derive(Debug)]
pub(super) struct StartRun {
    pub(super) request: u64,
    pub(super) task: Box<Task>,
    pub(super) events: mpsc::UnboundedSender<(usize, Event)>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) places: Places,
    pub(super) reservation: Option<Arc<Reservation>>,
}

/// Events of one sequence that its request has not taken yet. When there are too many of them the
/// driver holds the sequence, so that a client that reads slowly takes neither memory without
/// bound nor blocks and batch rows that others could use.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    events: AtomicUsize,
    held: AtomicBool,
}

impl Backlog {
    /// Events that make a sequence be held. What is in flight then still arrives on top.
    const FULL: usize = 256;
    /// Events that are left when it may go on: by the time it is back in the batch, its reader
    /// has had something to read.
    const LOW: usize = 64;

    /// Counts an event that is about to be sent. True if the sequence is to be held from now on.
    pub(super) fn push(&self) -> bool {
        if self.events.fetch_add(1, Ordering::SeqCst) + 1 < Self::FULL {
            return false;
        }
        let already = self.held.swap(true, Ordering::SeqCst);
        // If the reader caught up before it could see the flag, it will not ask for more.
        let caught_up = self.events.load(Ordering::SeqCst) <= Self::LOW;
        !(already || caught_up && self.held.swap(false, Ordering::SeqCst))
    }

    /// Whether the sequence is out of the batch until its reader has caught up.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Counts an event that was taken. True if the sequence was held and may go on.
    fn pop(&self) -> bool {
        self.events.fetch_sub(1, Ordering::SeqCst) <= Self::LOW + 1
            && self.held.swap(false, Ordering::SeqCst)
    }
}

/// Events of all sequences of one request, in the order in which they happened. Dropping it
/// cancels what still runs.
#[derive(Debug)]
pub struct Generation {
    request: u64,
    /// Whether the sequence of each index may still send events.
    live: Vec<bool>,
    backlogs: Vec<Arc<Backlog>>,
    events: mpsc::UnboundedReceiver<(usize, Event)>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Generation {
    pub(super) fn new(
        request: u64,
        backlogs: Vec<Arc<Backlog>>,
        events: mpsc::UnboundedReceiver<(usize, Event)>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Generation {
            request,
            live: vec![true; backlogs.len()],
            backlogs,
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
            if self.backlogs[index].pop() {
                let request = self.request;
                // A driver that is gone sends its last words by itself.
                let _ = self.commands.send(Command::Resume { request, index });
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

    /// Ends what still runs, and resolves when nothing is left of the request: all of it is counted,
    /// and given back.
    pub async fn settle(&mut self) {
        for index in 0..self.live.len() {
            self.end(index, Cancel::Abandoned);
        }
        // The driver lets go of its end with the last of the sequences.
        while self.events.recv().await.is_some() {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_holds_once_when_it_is_full_and_lets_go_once_when_it_is_low() {
        let backlog = Backlog::default();
        let pushed: Vec<_> = (0..Backlog::FULL + 2).map(|_| backlog.push()).collect();
        let holds: Vec<_> = (0..pushed.len()).filter(|&i| pushed[i]).collect();
        assert_eq!(holds, [Backlog::FULL - 1]);
        let popped: Vec<_> = (0..Backlog::FULL + 2).map(|_| backlog.pop()).collect();
        let resumes: Vec<_> = (0..popped.len()).filter(|&i| popped[i]).collect();
        assert_eq!(resumes, [Backlog::FULL + 1 - Backlog::LOW]);
    }

    /// However pushes and pops cross, a sequence that is held is let go when all is read.
    #[test]
    fn no_sequence_is_held_for_ever() {
        for _ in 0..200 {
            let backlog = Backlog::default();
            let (mut held, mut resumed) = (0, 0);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut resumed = 0;
                    for _ in 0..2 * Backlog::FULL {
                        while backlog.events.load(Ordering::SeqCst) == 0 {
                            std::thread::yield_now();
                        }
                        resumed += i32::from(backlog.pop());
                    }
                    resumed
                });
                for _ in 0..2 * Backlog::FULL {
                    held += i32::from(backlog.push());
                }
                resumed = reader.join().expect("does not panic");
            });
            assert!(!backlog.held.load(Ordering::SeqCst));
            assert_eq!(held, resumed);
        }
    }
}
