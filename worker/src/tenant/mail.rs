//! The mail between the engine and what steers a sequence beside it: a processor's instance, or a
//! grammar.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use realm_shared::wire::Fault;

use super::Failure;
use super::life::Life;
use super::seats::Seat;
use super::steering::{Bell, Draw, Verdict};

/// What is to happen to a sequence next.
#[derive(Debug, Clone)]
pub(super) enum Next {
    /// It has not been said yet.
    Unknown,
    Draw(Arc<Draw>),
    /// These, the one with this number first.
    Force(Arc<[u32]>, usize),
    Stop,
    Failed(Failure),
}

/// The engine's side. The other one goes with it.
#[derive(Debug)]
pub(super) struct Handle {
    mail: Arc<Mail>,
    next: Next,
    /// [`Mail::calls`] when it was looked last, and when that number was new.
    sign: (u64, Instant),
    /// How long a plan may be awaited while no call ends. Processor time has a tighter limit; this is
    /// for a machine that has none to give, so that no client waits for ever.
    patience: Duration,
    /// Of an instance. Given back when its sequence is over, whenever the instance is.
    _seat: Option<Seat>,
}

impl Handle {
    /// That of this mail.
    pub(super) fn new(mail: Arc<Mail>, patience: Duration, seat: Option<Seat>) -> Handle {
        Handle {
            mail,
            next: Next::Unknown,
            sign: (0, Instant::now()),
            patience,
            _seat: seat,
        }
    }

    /// What to do with the sequence's next token, if that is known by now.
    pub(super) fn verdict(&mut self) -> Verdict {
        if let Next::Unknown = self.next {
            let calls = self.mail.calls.load(Ordering::Relaxed);
            if calls != self.sign.0 {
                self.sign = (calls, Instant::now());
            }
            match self.mail.take_next() {
                Some(next) => self.next = next,
                None if self.sign.1.elapsed() > self.patience => {
                    let message = format!(
                        "it did not answer within {:?}, for want of processor time",
                        self.patience
                    );
                    self.next = Next::Failed(Failure::new(Fault::Late, message));
                }
                None => {}
            }
        }
        match &self.next {
            Next::Unknown => Verdict::Late,
            Next::Draw(draw) => Verdict::Draw(draw.clone()),
            Next::Force(tokens, at) => match tokens.get(*at) {
                Some(token) => Verdict::Force(*token),
                None => Verdict::Stop,
            },
            Next::Stop => Verdict::Stop,
            Next::Failed(failure) => Verdict::Failed(failure.clone()),
        }
    }

    /// The token that followed. The other side is told, unless more is forced before it is asked.
    pub(super) fn accept(&mut self, token: u32) {
        let accepted = match &mut self.next {
            Next::Force(tokens, at) if *at + 1 < tokens.len() => {
                *at += 1;
                return;
            }
            Next::Force(tokens, _) => tokens.to_vec(),
            _ => vec![token],
        };
        self.next = Next::Unknown;
        self.sign.1 = Instant::now();
        self.mail.give(accepted);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.mail.life.end();
    }
}

/// At most one message each way.
#[derive(Debug)]
pub(super) struct Mail {
    state: Mutex<State>,
    /// Of the sequence.
    life: Life,
    /// How often the other side has begun with something.
    calls: AtomicU64,
    /// Rung with each answer.
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct State {
    accepted: Option<Vec<u32>>,
    next: Option<Next>,
}

impl Mail {
    pub(super) fn new(bell: Arc<Bell>) -> Mail {
        Mail {
            state: Mutex::default(),
            life: Life::default(),
            calls: AtomicU64::new(0),
            bell,
        }
    }

    /// Lasts as long as the sequence.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    fn give(&self, accepted: Vec<u32>) {
        self.lock().accepted = Some(accepted);
        self.life.wake();
    }

    fn take_next(&self) -> Option<Next> {
        self.lock().next.take()
    }

    /// The other side begins with something.
    pub(super) fn begin(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Says what is to happen next.
    pub(super) fn answer(&self, next: Next) {
        self.lock().next = Some(next);
        self.bell.ring();
    }

    /// The tokens that were accepted; None once the sequence is over.
    pub(super) async fn accepted(&self) -> Option<Vec<u32>> {
        self.life.wait_for(|| self.lock().accepted.take()).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_does_not_answer_is_waited_for_as_long_as_calls_end() {
        let mail = Arc::new(Mail::new(Arc::default()));
        const PATIENCE: Duration = Duration::from_secs(30);
        let mut handle = Handle::new(mail.clone(), PATIENCE, None);
        let age = |handle: &mut Handle, age| {
            handle.sign.1 = Instant::now().checked_sub(age).expect("a time");
            handle.verdict()
        };
        let almost = PATIENCE - Duration::from_secs(1);
        assert!(matches!(age(&mut handle, almost), Verdict::Late));
        // Another call has begun since.
        mail.begin();
        assert!(matches!(age(&mut handle, 2 * PATIENCE), Verdict::Late));
        assert!(matches!(
            age(&mut handle, PATIENCE),
            Verdict::Failed(Failure {
                fault: Fault::Late,
                ..
            })
        ));
    }
}
