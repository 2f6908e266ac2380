//! What a tenant has used of what it may use.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use super::window::{Full, Window};
use crate::config::TenantSettings;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// When to ask again for what the end of a running request frees.
const SOON: Duration = Duration::from_secs(1);

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

    fn start(&mut self, now: Instant) -> Result<(), OverLimit> {
        if let Some(most) = self.settings.max_concurrent
            && self.concurrent >= most.get()
        {
            return Err(OverLimit {
                limit: Limit::Concurrency,
                most: most.get() as u64,
                retry_after: Some(SOON),
            });
        }
        if let Some(requests) = &mut self.requests {
            requests.check(now)?;
        }
        self.concurrent += 1;
        Ok(())
    }

    fn reserve(&mut self, now: Instant, sequences: usize, tokens: u64) -> Result<(), OverLimit> {
        if let Some(most) = self.settings.max_queue
            && self.sequences.saturating_add(sequences) > most.get()
        {
            return Err(OverLimit {
                limit: Limit::Queue,
                most: most.get() as u64,
                retry_after: (sequences <= most.get()).then_some(SOON),
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
            let retry_after = (full == Full::Reserved).then_some(SOON);
            over(Limit::DailyTokens(tokens), most, retry_after)
        })?;
        let most = self.settings.tokens_per_minute.map_or(u64::MAX, u64::from);
        if let Err(full) = self.minute.reserve(now, most, tokens) {
            self.day.release(tokens);
            let retry_after = match full {
                Full::Never => None,
                Full::Reserved => Some(SOON),
                Full::Spent(wait) => Some(wait),
            };
            return Err(over(Limit::Tokens(tokens), most, retry_after));
        }
        self.sequences += sequences;
        Ok(())
    }
}

/// A request of a tenant that runs. It counts as running until this is dropped.
#[derive(Debug)]
pub struct Permit {
    account: Arc<Mutex<Account>>,
}

impl Permit {
    pub(super) fn new(account: &Arc<Mutex<Account>>) -> Result<Self, OverLimit> {
        lock(account).start(Instant::now())?;
        let account = account.clone();
        Ok(Permit { account })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        lock(&self.account).concurrent -= 1;
    }
}

/// What a running request may use. What it has not taken is given back when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Mutex<Account>>,
    sequences: usize,
    /// Tokens reserved and not taken.
    left: Mutex<u64>,
}

impl Reservation {
    pub(super) fn new(
        account: &Arc<Mutex<Account>>,
        sequences: usize,
        tokens: u64,
    ) -> Result<Self, OverLimit> {
        lock(account).reserve(Instant::now(), sequences, tokens)?;
        Ok(Reservation {
            account: account.clone(),
            sequences,
            left: Mutex::new(tokens),
        })
    }

    /// Counts tokens that were computed, or found, for the request.
    pub fn take(&self, tokens: u64) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = tokens.min(*left);
        *left -= tokens;
        let (now, mut account) = (Instant::now(), lock(&self.account));
        account.minute.take(now, tokens);
        account.day.take(now, tokens);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let left = *self.left.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut account = lock(&self.account);
        account.minute.release(left);
        account.day.release(left);
        account.sequences -= self.sequences;
    }
}

pub(super) fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(settings: &str) -> Arc<Mutex<Account>> {
        let settings = toml::from_str(settings).expect("valid");
        Arc::new(Mutex::new(Account::new(settings)))
    }

    #[test]
    fn what_is_reserved_is_settled_by_what_is_taken() {
        let account = account("tokens_per_minute = 100\ntokens_per_day = 150");
        let reserve = |tokens| Reservation::new(&account, 1, tokens);
        let left = || lock(&account).tokens_left(Instant::now()).expect("limited");
        let first = reserve(80).expect("fits");
        assert_eq!(left().remaining, 20);
        let over = reserve(30).expect_err("does not fit");
        assert_eq!((over.limit, over.most), (Limit::Tokens(30), 100));
        first.take(10);
        drop(first);
        assert_eq!(
            left().remaining,
            90,
            "70 were given back, by an end of any kind"
        );
        assert!(left().reset > Duration::from_secs(59));

        let over = reserve(101).expect_err("never fits");
        assert_eq!((over.limit, over.retry_after), (Limit::Tokens(101), None));
        assert_eq!(left().remaining, 90, "who is refused takes nothing");
        assert_eq!(lock(&account).concurrent, 0);

        let second = reserve(90).expect("fits");
        second.take(90);
        second.take(1); // no more than was reserved
        drop(second);
        assert_eq!(left().remaining, 0);
        lock(&account).configure(toml::from_str("tokens_per_day = 150").expect("valid"));
        let over = reserve(51).expect_err("100 of 150 are taken");
        assert_eq!((over.limit, over.most), (Limit::DailyTokens(51), 150));
        assert_eq!(over.retry_after, None);
        let third = reserve(50).expect("fits");
        let over = reserve(50).expect_err("50 of 150 are reserved");
        assert_eq!(
            (over.limit, over.retry_after),
            (Limit::DailyTokens(50), Some(SOON))
        );
        drop(third);
    }

    #[test]
    fn requests_are_limited_by_the_minute_and_at_once() {
        let account = account("requests_per_minute = 2\nmax_concurrent = 1\nmax_queue = 3");
        let permit = Permit::new(&account).expect("the first");
        let over = Permit::new(&account).expect_err("two at once");
        assert_eq!((over.limit, over.most), (Limit::Concurrency, 1));
        let left = || {
            lock(&account)
                .requests_left(Instant::now())
                .expect("limited")
        };
        assert_eq!((left().limit, left().remaining), (2, 1));
        drop(permit);
        let over = Reservation::new(&account, 4, 0).expect_err("four sequences");
        assert_eq!((over.limit, over.retry_after), (Limit::Queue, None));
        drop(Reservation::new(&account, 3, 0).expect("three sequences"));
        drop(Permit::new(&account).expect("the first is over"));
        let over = Permit::new(&account).expect_err("the third in a minute");
        assert_eq!((over.limit, over.most), (Limit::Requests, 2));
        let wait = over.retry_after.expect("soon");
        assert!(
            wait > Duration::from_secs(25) && wait <= Duration::from_secs(30),
            "{wait:?}"
        );
        // The next one is to come when that one has had its turn, and nobody later than in a minute.
        let waits = [(); 3].map(|()| {
            let over = Permit::new(&account).expect_err("the third in a minute");
            over.retry_after.expect("some day")
        });
        assert!(waits[0] > wait + Duration::from_secs(25), "{waits:?}");
        assert!(waits[1..].iter().all(|&wait| wait <= MINUTE), "{waits:?}");
        assert_eq!((left().remaining, lock(&account).sequences), (0, 0));
    }
}
