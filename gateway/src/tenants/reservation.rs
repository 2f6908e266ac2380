//! What a running request holds of its tenant's limits, and what it has used.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::account::{Account, OverLimit, lock};
use super::ledger::{self, Entry, Ledger, Outcome, Used};

/// A request of a tenant that runs. It counts as running until this is dropped.
#[derive(Debug)]
pub struct Permit {
    account: Arc<Mutex<Account>>,
    began: Instant,
}

impl Permit {
    pub(super) fn new(account: &Arc<Mutex<Account>>) -> Result<Self, OverLimit> {
        let began = Instant::now();
        lock(account).start(began)?;
        let account = account.clone();
        Ok(Permit { account, began })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        lock(&self.account).end(self.began.elapsed());
    }
}

/// What is asked for: by whom, how much at most.
#[derive(Debug)]
pub(super) struct Asked {
    /// The name that its answer has.
    pub(super) id: String,
    pub(super) account: ledger::Account,
    /// Of which program.
    pub(super) program: Option<String>,
    pub(super) sequences: usize,
    pub(super) tokens: u64,
}

/// What a running request may use, and what it has used. When this is dropped, what it has not
/// taken is given back, and its line is in the ledger.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Mutex<Account>>,
    ledger: Arc<Ledger>,
    asked: Asked,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Tokens reserved and not taken.
    left: u64,
    used: Used,
    /// Whether the model has taken it.
    begun: bool,
    /// Sequences that are not over.
    open: usize,
    outcome: Outcome,
}

impl Reservation {
    pub(super) fn new(
        account: &Arc<Mutex<Account>>,
        ledger: &Arc<Ledger>,
        asked: Asked,
    ) -> Result<Self, OverLimit> {
        let began = Instant::now();
        lock(account).reserve(began, asked.sequences, asked.tokens)?;
        Ok(Reservation {
            account: account.clone(),
            ledger: ledger.clone(),
            began,
            state: Mutex::new(State {
                left: asked.tokens,
                used: Used::default(),
                begun: false,
                open: asked.sequences,
                outcome: Outcome::Completed,
            }),
            asked,
        })
    }

    /// The model has taken the request: from here on it is one that was served.
    pub fn begin(&self) {
        self.lock().begun = true;
    }

    /// Counts a prompt, of which so many tokens were computed before.
    pub fn prompt(&self, tokens: u64, cached: u64) {
        let mut state = self.lock();
        state.used.prompt_tokens += tokens;
        state.used.cached_tokens += cached;
        self.take(state, tokens);
    }

    /// Counts tokens that were generated.
    pub fn generated(&self, tokens: u64) {
        let mut state = self.lock();
        state.used.completion_tokens += tokens;
        self.take(state, tokens);
    }

    /// Reserves so many tokens more, if the tenant may have them.
    pub fn extend(&self, tokens: u64) -> bool {
        let reserved = tokens == 0 || {
            let mut account = lock(&self.account);
            account.reserve(Instant::now(), 0, tokens).is_ok()
        };
        if reserved {
            self.lock().left += tokens;
        }
        reserved
    }

    /// More than was reserved are computed only where a program reads what could not be
    /// [reserved](Self::extend), for a step. They count all the same, against what is asked for next.
    fn take(&self, mut state: MutexGuard<'_, State>, tokens: u64) {
        let reserved = tokens.min(state.left);
        state.left -= reserved;
        drop(state);
        let (mut account, now) = (lock(&self.account), Instant::now());
        account.take(now, reserved);
        account.overdraw(now, tokens - reserved);
    }

    /// Counts time of the device.
    pub fn computed(&self, time: Duration) {
        self.lock().used.device += time;
    }

    /// A sequence has waited so long for its first tokens to be computed.
    pub fn queued(&self, time: Duration) {
        let used = &mut self.lock().used;
        used.queue = used.queue.max(time);
    }

    /// A sequence is over.
    pub fn ended(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.open = state.open.saturating_sub(1);
        state.outcome = state.outcome.max(outcome);
    }

    /// All sequences are over.
    pub fn all_ended(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.open = 0;
        state.outcome = state.outcome.max(outcome);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        lock(&self.account).release(self.asked.sequences, state.left);
        if !state.begun {
            return;
        }
        // A sequence that ended without a word did not end well.
        let outcome = match state.open {
            0 => state.outcome,
            _ => Outcome::Failed,
        };
        self.ledger.close(&Entry {
            time: Timestamp::now(),
            id: std::mem::take(&mut self.asked.id),
            account: self.asked.account.clone(),
            program: self.asked.program.take(),
            outcome,
            sequences: self.asked.sequences,
            used: state.used,
            lasted: self.began.elapsed(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::account::{Limit, MINUTE};

    fn account(settings: &str) -> Arc<Mutex<Account>> {
        let settings = toml::from_str(settings).expect("valid");
        Arc::new(Mutex::new(Account::new(settings)))
    }

    fn reserve(
        account: &Arc<Mutex<Account>>,
        sequences: usize,
        tokens: u64,
    ) -> Result<Reservation, OverLimit> {
        let ledger = Arc::new(Ledger::new(None).expect("nothing to write"));
        let asked = Asked {
            id: "cmpl-1".to_owned(),
            account: ledger::Account {
                tenant: "acme".to_owned(),
                key: None,
                model: "m".to_owned(),
            },
            program: None,
            sequences,
            tokens,
        };
        Reservation::new(account, &ledger, asked)
    }

    #[test]
    fn a_request_is_in_the_ledger_once_it_has_begun_and_is_over() {
        let account = account("");
        let begun = |sequences| {
            let reservation = reserve(&account, sequences, 100).expect("no limit");
            reservation.begin();
            (reservation.ledger.clone(), reservation)
        };
        let usage = |ledger: &Ledger| ledger.report()["usage"].clone();
        let (ledger, reservation) = begun(2);
        reservation.prompt(8, 4);
        reservation.queued(Duration::from_secs(2));
        reservation.queued(Duration::from_secs(1));
        reservation.generated(1);
        reservation.generated(2);
        reservation.computed(Duration::from_millis(250));
        reservation.ended(Outcome::Completed);
        reservation.ended(Outcome::Cancelled);
        assert_eq!(usage(&ledger), serde_json::json!([]));
        drop(reservation);
        let expected = serde_json::json!([{
            "tenant": "acme", "key": null, "model": "m",
            "requests": {"completed": 0, "cancelled": 1, "failed": 0}, "prompt_tokens": 8,
            "cached_tokens": 4, "completion_tokens": 3, "device_seconds": 0.25,
            "queue_seconds": 2.0,
        }]);
        assert_eq!(usage(&ledger), expected);

        let (ledger, reservation) = begun(2);
        reservation.ended(Outcome::Completed);
        drop(reservation);
        assert_eq!(
            usage(&ledger)[0]["requests"]["failed"],
            1,
            "one never ended"
        );

        let refused = reserve(&account, 1, 100).expect("no limit");
        let ledger = refused.ledger.clone();
        drop(refused);
        assert_eq!(usage(&ledger), serde_json::json!([]), "it never began");
    }

    #[test]
    fn what_is_reserved_is_settled_by_what_is_taken() {
        let account = account("tokens_per_minute = 100\ntokens_per_day = 150");
        let reserve = |tokens| reserve(&account, 1, tokens);
        let left = || lock(&account).tokens_left(Instant::now()).expect("limited");
        let first = reserve(80).expect("fits");
        assert_eq!(left().remaining, 20);
        let over = reserve(30).expect_err("does not fit");
        assert_eq!((over.limit, over.most), (Limit::Tokens(30), 100));
        first.generated(10);
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

        let second = reserve(90).expect("fits");
        second.generated(90);
        drop(second);
        assert_eq!(left().remaining, 0);
        lock(&account).configure(toml::from_str("tokens_per_day = 150").expect("valid"));
        let over = reserve(51).expect_err("100 of 150 are taken");
        assert_eq!((over.limit, over.most), (Limit::DailyTokens(51), 150));
        assert_eq!(over.retry_after, None);
        let third = reserve(50).expect("fits");
        let over = reserve(50).expect_err("50 of 150 are reserved");
        assert_eq!(over.limit, Limit::DailyTokens(50));
        assert!(over.retry_after.is_some_and(|wait| wait <= MINUTE));
        drop(third);
    }

    #[test]
    fn what_was_not_reserved_counts_against_what_comes_next() {
        let account = account("tokens_per_minute = 100");
        let reserve = |tokens| reserve(&account, 1, tokens);
        let first = reserve(20).expect("fits");
        first.prompt(10, 0);
        assert!(first.extend(60) && !first.extend(60));
        first.prompt(120, 0);
        assert_eq!(first.lock().used.prompt_tokens, 130);
        drop(first);
        let over = reserve(1).expect_err("130 of 100 are taken");
        assert!(over.retry_after.is_some_and(|wait| wait > MINUTE / 2));
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
        let over = reserve(&account, 4, 0).expect_err("four sequences");
        assert_eq!((over.limit, over.retry_after), (Limit::Queue, None));
        drop(reserve(&account, 3, 0).expect("three sequences"));
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
        assert_eq!(left().remaining, 0);
    }
}
