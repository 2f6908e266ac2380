//! Noticing that a worker's process stands still: stopped, frozen, or swapped out for good.
//!
//! The worker beats from a thread of its own, also while it computes a step or loads a model; so
//! this says nothing of steps that never end, which is what their deadline is for.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::process::WorkerError;

/// How often the heartbeat is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row that may find it unchanged. They are counted rather than timed: when the whole
/// machine was asleep, worker and gateway wake up together.
const MISSED: u32 = 10;

/// Watches one worker's heartbeat.
#[derive(Debug)]
pub(super) struct Heartbeat {
    looks: Interval,
    last: u64,
    missed: u32,
}

impl Heartbeat {
    /// Watches from now on.
    pub(super) fn new() -> Self {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Heartbeat {
            looks,
            last: 0,
            missed: 0,
        }
    }

    /// Waits until it is time to look. Cancel-safe.
    pub(super) async fn due(&mut self) {
        self.looks.tick().await;
    }

    /// Takes what the counter shows when it is time to look.
    pub(super) fn look(&mut self, counter: u64) -> Result<(), WorkerError> {
        self.missed = match counter == self.last {
            true => self.missed + 1,
            false => 0,
        };
        self.last = counter;
        match self.missed < MISSED {
            true => Ok(()),
            false => Err(WorkerError::Still(LOOK * MISSED)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_heart_that_missed_too_many_beats_in_a_row_stands_still() {
        let mut heartbeat = Heartbeat::new();
        for counter in [1, 2, 3, 3, 3, 4] {
            assert!(heartbeat.look(counter).is_ok());
        }
        for _ in 1..MISSED {
            assert!(heartbeat.look(4).is_ok());
        }
        assert!(matches!(heartbeat.look(4), Err(WorkerError::Still(_))));
    }
}
