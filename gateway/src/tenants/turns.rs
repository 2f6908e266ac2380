//! When those who were refused for what others use are to ask again: each at a time of its own. Told the
//! same time, all but one would be refused again, and clients give up after a few times.

use std::time::{Duration, Instant};

use super::account::MINUTE;

/// How long a request lasts, before one was seen.
const AT_FIRST: Duration = Duration::from_secs(1);
/// How many of the requests before it a request counts as much as, in the mean.
const INERTIA: u32 = 7;

/// Turns of one tenant.
#[derive(Debug)]
pub(super) struct Turns {
    /// How long a request lasts, as a mean of the last ones.
    lasts: Duration,
    /// The turn of the last one that was told to wait.
    last: Option<Instant>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Turns {
            lasts: AT_FIRST,
            last: None,
        }
    }

    /// A request that ran is over.
    pub(super) fn ended(&mut self, lasted: Duration) {
        self.lasts = (self.lasts * INERTIA + lasted) / (INERTIA + 1);
    }

    /// A request was let in beside so many. It may be one that was told to wait.
    pub(super) fn taken(&mut self, running: usize) {
        let each = self.each(running);
        self.last = self.last.and_then(|last| last.checked_sub(each));
    }

    /// When to ask again for what the end of one of so many requests frees, and not before `wait` has
    /// passed: behind all others that were told to, and in a minute at most.
    pub(super) fn next(&mut self, now: Instant, wait: Duration, running: usize) -> Duration {
        let each = self.each(running);
        let behind = self.last.map_or(now, |last| last + each);
        let turn = behind.max(now + wait.max(each)).min(now + MINUTE);
        self.last = Some(turn);
        turn - now
    }

    /// Time in which one of so many requests ends.
    fn each(&self, running: usize) -> Duration {
        self.lasts / u32::try_from(running).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_turn_of_its_own_as_requests_end() {
        let (mut turns, now) = (Turns::new(), Instant::now());
        let seconds = |seconds| Duration::from_secs_f32(seconds);
        // Four run, each for a second: one ends each quarter of it.
        let mut next = |wait| turns.next(now, wait, 4);
        assert_eq!(next(Duration::ZERO), seconds(0.25));
        assert_eq!(next(Duration::ZERO), seconds(0.5));
        assert_eq!(next(seconds(30.0)), seconds(30.0), "what it waits for");
        assert_eq!(next(Duration::ZERO), seconds(30.25));
        assert_eq!(next(seconds(90.0)), seconds(60.0), "a minute at most");
        turns.taken(4);
        turns.taken(4);
        assert_eq!(turns.next(now, Duration::ZERO, 4), seconds(59.75));
        for _ in 0..100 {
            turns.ended(seconds(20.0));
        }
        let mut turns = Turns {
            last: None,
            ..turns
        };
        let wait = turns.next(now, Duration::ZERO, 4);
        assert!(wait > seconds(4.9) && wait <= seconds(5.0), "{wait:?}");
    }
}
