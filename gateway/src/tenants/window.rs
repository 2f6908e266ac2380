//! A limit on tokens in any stretch of time of one length.
//!
//! Tokens are reserved before they are produced, and become taken when they are; what was not
//! produced is given back. A reservation is made only while `taken + reserved` of the window that
//! ends now stays within the limit, and only reserving adds to that sum: so no window of the
//! length, wherever it begins, ever holds more, but for what was [overdrawn](Window::overdraw). A bucket that fills again while it is emptied (as
//! the generic cell rate algorithm has it) lets up to twice the limit through in its first window,
//! and has no way to give back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Entries of a window, at most: tokens taken within this part of its length are kept together,
/// and leave it together, the earliest of them that much too late.
const GRAINS: u32 = 1000;

/// What was taken lately, and what may yet be.
#[derive(Debug)]
pub(super) struct Window {
    length: Duration,
    /// When the first of some tokens were taken, and how many; oldest first.
    entries: VecDeque<(Instant, u64)>,
    /// The sum of all entries.
    taken: u64,
    reserved: u64,
}

/// Tokens could not be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// They are more than any window takes.
    Never,
    /// Others have reserved what is left, and may give it back.
    Reserved,
    /// So much is taken that they may be after so long; later, if others take what they reserved.
    Spent(Duration),
}

impl Window {
    pub(super) fn new(length: Duration) -> Self {
        Window {
            length,
            entries: VecDeque::new(),
            taken: 0,
            reserved: 0,
        }
    }

    /// Reserves tokens, if they may be taken now without a window above `limit`.
    pub(super) fn reserve(&mut self, now: Instant, limit: u64, tokens: u64) -> Result<(), Full> {
        if tokens > limit {
            return Err(Full::Never);
        }
        self.forget(now);
        let over = (self.taken + self.reserved + tokens).saturating_sub(limit);
        if over == 0 {
            self.reserved += tokens;
            return Ok(());
        }
        let over = (self.taken + tokens).saturating_sub(limit);
        if over == 0 {
            return Err(Full::Reserved);
        }
        let mut freed = 0;
        let enough = self.entries.iter().find(|(_, entry)| {
            freed += entry;
            freed >= over
        });
        // There is one, for the request alone is not above the limit.
        let wait = enough.map_or(self.length, |&(at, _)| self.leaves(at) - now);
        Err(Full::Spent(wait))
    }

    /// Turns tokens from reserved to taken.
    pub(super) fn take(&mut self, now: Instant, tokens: u64) {
        self.release(tokens);
        self.overdraw(now, tokens);
    }

    /// Takes tokens that nobody has reserved, and that are being computed all the same, though it may be above
    /// the limit: nothing is reserved then until enough have left.
    pub(super) fn overdraw(&mut self, now: Instant, tokens: u64) {
        if tokens == 0 {
            return;
        }
        self.taken += tokens;
        match self.entries.back_mut() {
            Some((at, entry)) if now.saturating_duration_since(*at) < self.length / GRAINS => {
                *entry += tokens;
            }
            _ => self.entries.push_back((now, tokens)),
        }
        self.forget(now);
    }

    /// Gives back what was reserved and not taken.
    pub(super) fn release(&mut self, tokens: u64) {
        debug_assert!(tokens <= self.reserved);
        self.reserved = self.reserved.saturating_sub(tokens);
    }

    /// Tokens that could be reserved now, and how long it takes until all of the limit can be if
    /// nobody takes any.
    pub(super) fn left(&mut self, now: Instant, limit: u64) -> (u64, Duration) {
        self.forget(now);
        let left = limit.saturating_sub(self.taken + self.reserved);
        let last = self
            .entries
            .back()
            .map_or(Duration::ZERO, |&(at, _)| self.leaves(at) - now);
        (left, last)
    }

    /// When an entry that began at a time leaves: its last token may be a little younger.
    fn leaves(&self, at: Instant) -> Instant {
        at + self.length + self.length / GRAINS
    }

    /// Lets go of what lies further back than the window.
    fn forget(&mut self, now: Instant) {
        while let Some(&(at, tokens)) = self.entries.front()
            && self.leaves(at) <= now
        {
            self.taken -= tokens;
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_second_window_holds_as_much_as_the_first() {
        let (start, mut window) = (Instant::now(), Window::new(MINUTE));
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        for i in 0..10 {
            window.reserve(at(0.0), 1000, 100).expect("fits");
            window.take(at(f64::from(i)), 100);
        }
        assert_eq!(
            window.reserve(at(10.0), 1000, 150),
            Err(Full::Spent(Duration::from_millis(51_060)))
        );
        assert_eq!(window.left(at(10.0), 1000).0, 0);
        assert_eq!(window.reserve(at(60.1), 1000, 100), Ok(()));
        assert_eq!(window.reserve(at(60.1), 1000, 1001), Err(Full::Never));
        assert_eq!(window.left(at(61.1), 1000).0, 100);
        window.release(100);
        assert_eq!(window.left(at(69.1), 1000), (1000, Duration::ZERO));
    }

    proptest! {
        /// Whatever is asked for when, and however much of it is taken: no stretch of a minute
        /// holds more than the limit, and what is left is what can be reserved.
        #[test]
        fn no_window_holds_more_than_the_limit(
            steps in prop::collection::vec((0u64..20_000, 1u64..400, 0u64..400), 1..200)
        ) {
            const LIMIT: u64 = 1000;
            let (mut now, mut window) = (Instant::now(), Window::new(MINUTE));
            let mut held = VecDeque::new();
            let mut taken: Vec<(Instant, u64)> = Vec::new();
            for (pause, wanted, produced) in steps {
                now += Duration::from_millis(pause);
                let (left, _) = window.left(now, LIMIT);
                match window.reserve(now, LIMIT, wanted) {
                    Ok(()) => {
                        prop_assert!(wanted <= left);
                        held.push_back(wanted);
                    }
                    Err(full) => {
                        prop_assert!(wanted > left);
                        let soon = match full {
                            Full::Spent(wait) => wait <= MINUTE * 2,
                            full => full == Full::Reserved,
                        };
                        prop_assert!(soon);
                        // Somebody else is done meanwhile.
                        if let Some(reserved) = held.pop_front() {
                            let used = produced.min(reserved);
                            window.take(now, used);
                            window.release(reserved - used);
                            taken.push((now, used));
                        }
                    }
                }
                let within = taken.iter().filter(|(at, _)| now.duration_since(*at) < MINUTE);
                prop_assert!(within.map(|(_, tokens)| tokens).sum::<u64>() <= LIMIT);
            }
            prop_assert!(window.entries.len() <= 2 * GRAINS as usize);
        }
    }
}
