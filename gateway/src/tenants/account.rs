//! What a tenant has used of what it may use.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::turns::Turns;
use super::window::{Full, Window};
use crate::config::TenantSettings;

pub(super) const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A request is above a limit of its tenant. Nothing was counted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} of {most}")]
pub struct OverLimit {
    /// Which one.
    pub limit: Limit,
    /// Its value.
    pub most: u64,
    /// When there may be room; `None` if never, for a request like this.
    pub retry_after: Option<Duration>,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute; so many were asked for.
    Tokens(u64),
    /// The same in a day.
    DailyTokens(u64),
    /// Requests at once.
    Concurrency,
    /// Sequences running or waiting.
    Queue,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::Requests => "requests per minute",
            Limit::Tokens(_) => "tokens per minute",
            Limit::DailyTokens(_) => "tokens per day",
            Limit::Concurrency => "concurrent requests",
            Limit::Queue => "queued sequences",
        })
    }
}

/// How much of a limit by the minute is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The limit.
    pub limit: u64,
    /// How much of it could be used now.
    pub remaining: u64,
    /// How long until all of it could be, if none is used meanwhile.
    pub reset: Duration,
}

type Requests = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// Requests by the minute: `limit` at once, and from then on evenly.
#[derive(Debug)]
struct RequestRate {
    limit: NonZeroU32,
    limiter: Requests,
    /// What was left when it was asked last, and when that was.
    last: (u32, Instant),
    /// When the last of those that were told to wait has had its turn.
    line: Instant,
}

impl RequestRate {
    fn new(limit: NonZeroU32, now: Instant) -> Self {
        RequestRate {
            limit,
            limiter: RateLimiter::direct(Quota::per_minute(limit)).with_middleware(),
            last: (limit.get(), now),
            line: now,
        }
    }

    fn check(&mut self, now: Instant) -> Result<(), OverLimit> {
        match self.limiter.check() {
            Ok(state) => {
                self.last = (state.remaining_burst_capacity(), now);
                // It may be one of those that were told to wait.
                self.line = self.line.checked_sub(self.each()).unwrap_or(now);
                Ok(())
            }
            Err(until) => {
                self.last = (0, now);
                // Each is given a turn of its own: told the same time, all but one would be refused
                // again, and clients give up after a few.
                let next = now + until.wait_time_from(DefaultClock::default().now());
                let turn = self.line.max(next).min(now + MINUTE);
                self.line = turn + self.each();
                Err(OverLimit {
                    limit: Limit::Requests,
                    most: self.limit.get().into(),
                    retry_after: Some(turn - now),
                })
            }
        }
    }

    /// Time in which one more is allowed.
    fn each(&self) -> Duration {
        MINUTE / self.limit.get()
    }

    fn left(&self, now: Instant) -> Left {
        let (left, then) = self.last;
        let each = self.each();
        let back = now.saturating_duration_since(then).as_nanos() / each.as_nanos().max(1);
        let back = u32::try_from(back).unwrap_or(u32::MAX);
        let remaining = left.saturating_add(back).min(self.limit.get());
        Left {
            limit: self.limit.get().into(),
            remaining: remaining.into(),
            reset: each * (self.limit.get() - remaining),
        }
    }
}

/// What a tenant uses, by what it may.
#[derive(Debug)]
pub(super) struct Account {
    settings: Arc<TenantSettings>,
    requests: Option<RequestRate>,
    minute: Window,
    day: Window,
    /// Requests that run.
    concurrent: usize,
    /// Sequences that run or wait.
    sequences: usize,
    /// Of those that were refused for what these use.
    turns: Turns,
}

impl Account {
    pub(super) fn new(settings: TenantSettings) -> Self {
        let limit = settings.requests_per_minute;
        Account {
            requests: limit.map(|limit| RequestRate::new(limit, Instant::now())),
            settings: Arc::new(settings),
            minute: Window::new(MINUTE),
            day: Window::new(DAY),
            concurrent: 0,
            sequences: 0,
            turns: Turns::new(),
        }
    }

    pub(super) fn settings(&self) -> &Arc<TenantSettings> {
        &self.settings
    }

    /// Other limits from here on; what is used stays used.
    pub(super) fn configure(&mut self, settings: TenantSettings) {
        let limit = settings.requests_per_minute;
        if limit != self.settings.requests_per_minute {
            self.requests = limit.map(|limit| RequestRate::new(limit, Instant::now()));
        }
        self.settings = Arc::new(settings);
    }

    pub(super) fn requests_left(&self, now: Instant) -> Option<Left> {
        self.requests.as_ref().map(|requests| requests.left(now))
    }

    pub(super) fn tokens_left(&mut self, now: Instant) -> Option<Left> {
        let limit = self.settings.tokens_per_minute?.get();
        let (remaining, reset) = self.minute.left(now, limit);
        Some(Left {
            limit,
            remaining,
            reset,
        })
    }

    /// Tokens that a request may take that does not say how many: what is left, but not so little
    /// that waiting for more is better.
    pub(super) fn share(&mut self, now: Instant) -> u64 {
        let mut share = u64::MAX;
        for (window, limit) in [
            (&mut self.minute, self.settings.tokens_per_minute),
            (&mut self.day, self.settings.tokens_per_day),
        ] {
            if let Some(limit) = limit {
                let (left, _) = window.left(now, limit.get());
                share = share.min(left.max(limit.get() / 2));
            }
        }
        share
    }

    pub(super) fn start(&mut self, now: Instant) -> Result<(), OverLimit> {
        if let Some(most) = self.settings.max_concurrent
            && self.concurrent >= most.get()
        {
            return Err(OverLimit {
                limit: Limit::Concurrency,
                most: most.get() as u64,
                retry_after: Some(self.turn(now, Duration::ZERO)),
            });
        }
        if let Some(requests) = &mut self.requests {
            requests.check(now)?;
        }
        self.turns.taken(self.concurrent);
        self.concurrent += 1;
        Ok(())
    }

    /// A request is over, that has lasted so long.
    pub(super) fn end(&mut self, lasted: Duration) {
        self.concurrent -= 1;
        self.turns.ended(lasted);
    }

    fn turn(&mut self, now: Instant, wait: Duration) -> Duration {
        self.turns.next(now, wait, self.concurrent)
    }

    pub(super) fn reserve(
        &mut self,
        now: Instant,
        sequences: usize,
        tokens: u64,
    ) -> Result<(), OverLimit> {
        if let Some(most) = self.settings.max_queue
            && self.sequences.saturating_add(sequences) > most.get()
        {
            return Err(OverLimit {
                limit: Limit::Queue,
                most: most.get() as u64,
                retry_after: (sequences <= most.get()).then(|| self.turn(now, Duration::ZERO)),
            });
        }
        let over = |limit, most, retry_after| OverLimit {
            limit,
            most,
            retry_after,
        };
        // What is not limited is counted all the same, as a limit may come while requests run.
        let most = self.settings.tokens_per_day.map_or(u64::MAX, u64::from);
        let day = self.day.reserve(now, most, tokens);
        day.map_err(|full| {
            // Who has spent what there is for a day is not to come back in a moment.
            let retry_after = (full == Full::Reserved).then(|| self.turn(now, Duration::ZERO));
            over(Limit::DailyTokens(tokens), most, retry_after)
        })?;
        let most = self.settings.tokens_per_minute.map_or(u64::MAX, u64::from);
        if let Err(full) = self.minute.reserve(now, most, tokens) {
            self.day.release(tokens);
            let retry_after = match full {
                Full::Never => None,
                Full::Reserved => Some(self.turn(now, Duration::ZERO)),
                Full::Spent(wait) => Some(self.turn(now, wait)),
            };
            return Err(over(Limit::Tokens(tokens), most, retry_after));
        }
        self.sequences += sequences;
        Ok(())
    }

    /// Counts tokens that were reserved as used.
    pub(super) fn take(&mut self, now: Instant, tokens: u64) {
        self.minute.take(now, tokens);
        self.day.take(now, tokens);
    }

    /// Takes tokens that were computed without a reservation.
    pub(super) fn overdraw(&mut self, now: Instant, tokens: u64) {
        self.minute.overdraw(now, tokens);
        self.day.overdraw(now, tokens);
    }

    /// Gives back what was reserved and not taken.
    pub(super) fn release(&mut self, sequences: usize, tokens: u64) {
        self.minute.release(tokens);
        self.day.release(tokens);
        self.sequences -= sequences;
    }
}

pub(super) fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}
