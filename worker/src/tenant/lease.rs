//! Leases: what stands between a program's sequence and the slot in which it is computed.
//!
//! A program's sequence has a lease while it is computed. The gateway opens it in a slot like any
//! sequence, may take the slot away and give it another one, and ends it when the lease says so. The
//! program makes a new lease where it goes on from other tokens, or later.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use realm_shared::run::Drawn;

use super::Failure;
use super::life::Life;
use super::outbox::Voice;
use super::steering::{Bell, Draw, Verdict};
use crate::sampler::Scored;

/// How long a sequence is kept ready while nothing is asked of it. A slot and blocks are worth more
/// than what it costs to go on from the prefix cache. But a program that draws from several side by side
/// takes the last before it asks the first again, which may be some steps later: those that were let go
/// of meanwhile would never be in one step again.
const IDLE: Duration = Duration::from_secs(1);

/// A sequence that is computed for a program.
#[derive(Debug)]
pub(super) struct Lease {
    state: Mutex<State>,
    /// Draws that were made for the same sequence before this lease.
    drawn_before: u32,
    /// Of the program.
    life: Arc<Life>,
    /// Rung whenever the engine's question has an answer.
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct State {
    turn: Turn,
    /// When the last token was drawn.
    since: Instant,
    /// The engine is to end it, or has.
    over: bool,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    /// The program's, which asks for nothing.
    Idle,
    /// The engine's.
    Asked(Question),
    /// The program's, which is to take this, or to hear that there is nothing.
    Answered(Result<Answer, Failure>),
}

/// What a program asks of its sequence.
#[derive(Debug, Clone)]
pub(super) enum Question {
    /// A token, drawn like this.
    Draw(Arc<Draw>),
    /// The same, from these logits.
    DrawFrom(Arc<Draw>, Arc<[f32]>),
    /// What the model computed for the next token.
    Show(Sight),
}

/// What a program may see of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// A number for each token of the vocabulary.
    Logits,
    /// What these follow from.
    Hidden,
}

/// What it gets.
#[derive(Debug)]
pub(super) enum Answer {
    Drawn(Drawn),
    Shown(Vec<f32>),
}

impl Lease {
    /// What the engine is to do now. Whoever asks for nothing for too long loses the lease, though
    /// not a token that was drawn.
    pub(super) fn verdict(&self) -> Verdict {
        let mut state = self.lock();
        if let Turn::Idle | Turn::Answered(Ok(_)) = &state.turn {
            state.over |= state.since.elapsed() > IDLE;
        }
        match &state.turn {
            _ if state.over => Verdict::Stop,
            Turn::Idle | Turn::Answered(Ok(_)) => Verdict::Late,
            Turn::Asked(Question::Draw(draw)) => Verdict::Draw(draw.clone()),
            Turn::Asked(Question::DrawFrom(draw, logits)) => {
                Verdict::DrawFrom(draw.clone(), logits.clone())
            }
            Turn::Asked(Question::Show(_)) => Verdict::Show,
            Turn::Answered(Err(failure)) => Verdict::Failed(failure.clone()),
        }
    }

    /// See [`Steering::drawn_before`](super::Steering::drawn_before).
    pub(super) fn drawn_before(&self) -> u32 {
        self.drawn_before
    }

    /// What was drawn.
    pub(super) fn give(&self, token: u32, logprob: f32, alternatives: &[Scored]) {
        let alternatives = alternatives.iter().map(|a| (a.token, a.logprob));
        self.answer(Ok(Answer::Drawn(Drawn {
            token,
            logprob,
            alternatives: alternatives.collect(),
        })));
    }

    /// What was asked for is one of these.
    pub(super) fn show(&self, logits: &[f32], hidden: &[f32]) {
        let asked = match &self.lock().turn {
            Turn::Asked(Question::Show(sight)) => *sight,
            // It was taken back.
            _ => return,
        };
        let shown = match asked {
            Sight::Logits => logits,
            Sight::Hidden => hidden,
        };
        self.answer(Ok(Answer::Shown(shown.to_vec())));
    }

    /// No token can be drawn as the program asks.
    pub(super) fn fail(&self, failure: Failure) {
        self.answer(Err(failure));
    }

    /// Answers a question, unless it was taken back.
    fn answer(&self, answer: Result<Answer, Failure>) {
        let mut state = self.lock();
        if let Turn::Asked(_) = &state.turn {
            state.turn = Turn::Answered(answer);
            state.since = Instant::now();
            drop(state);
            self.life.wake();
        }
    }

    /// Asks. False if the lease is over.
    fn ask(&self, question: &Question) -> bool {
        let mut state = self.lock();
        if state.over || !matches!(&state.turn, Turn::Idle) {
            return false;
        }
        state.turn = Turn::Asked(question.clone());
        drop(state);
        self.bell.ring();
        true
    }

    /// Whether there is an answer, which may be that there is none.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(&self.lock().turn, Turn::Asked(_))
    }

    /// What was asked for; None when the program is to end instead.
    async fn answered(&self) -> Option<Result<Answer, Failure>> {
        let answer = self.life.wait_for(|| {
            let mut state = self.lock();
            if let Turn::Asked(_) = &state.turn {
                return None;
            }
            Some(match std::mem::replace(&mut state.turn, Turn::Idle) {
                Turn::Answered(answer) => Some(answer),
                // Only what was asked for is waited for.
                Turn::Idle | Turn::Asked(_) => None,
            })
        });
        answer.await.flatten()
    }

    /// The program lets go of it: a question that was not answered is taken back.
    fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.turn = Turn::Idle;
        drop(state);
        self.bell.ring();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The leases of all programs of a gateway, by the names that the gateway has for them.
#[derive(Debug)]
pub(super) struct Leases {
    bell: Arc<Bell>,
    named: AtomicU64,
    live: Mutex<HashMap<u64, Arc<Lease>>>,
}

impl Leases {
    pub(super) fn new(bell: Arc<Bell>) -> Leases {
        Leases {
            bell,
            named: AtomicU64::new(0),
            live: Mutex::default(),
        }
    }

    /// The lease of this name, unless its program let go of it.
    pub(super) fn get(&self, name: u64) -> Option<Arc<Lease>> {
        self.lock().get(&name).cloned()
    }

    /// Makes one of which this is asked first.
    pub(super) fn make(self: &Arc<Self>, voice: Voice, question: Question, before: u32) -> Held {
        let lease = Arc::new(Lease {
            state: Mutex::new(State {
                turn: Turn::Asked(question),
                since: Instant::now(),
                over: false,
            }),
            drawn_before: before,
            life: voice.life(),
            bell: self.bell.clone(),
        });
        let name = self.named.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().insert(name, lease.clone());
        Held {
            name,
            lease,
            leases: self.clone(),
            voice,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Lease>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lease in the hands of its program. Whoever drops it lets go of it.
pub(super) struct Held {
    name: u64,
    lease: Arc<Lease>,
    leases: Arc<Leases>,
    voice: Voice,
}

impl Held {
    pub(super) fn name(&self) -> u64 {
        self.name
    }

    /// See [`Lease::ask`].
    pub(super) fn ask(&self, question: &Question) -> bool {
        self.lease.ask(question)
    }

    pub(super) fn lease(&self) -> Arc<Lease> {
        self.lease.clone()
    }

    /// See [`Lease::answered`].
    pub(super) fn answered(&self) -> impl Future<Output = Option<Result<Answer, Failure>>> + use<> {
        let lease = self.lease.clone();
        async move { lease.answered().await }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lease.end();
        self.leases.lock().remove(&self.name);
        self.voice.withdraw(self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::steering::Allowed;
    use super::*;

    fn draw() -> Question {
        Question::Draw(Arc::new(Draw {
            allowed: Allowed::All,
            bias: Vec::new(),
            temperature: None,
        }))
    }

    /// One of which nothing was asked for so long.
    fn idle(time: Duration) -> Lease {
        let since = Instant::now().checked_sub(time).expect("up for longer");
        Lease {
            state: Mutex::new(State {
                turn: Turn::Idle,
                since,
                over: false,
            }),
            drawn_before: 0,
            life: Arc::default(),
            bell: Arc::default(),
        }
    }

    #[test]
    fn whoever_is_first_decides_whether_it_goes_on() {
        let long = 2 * IDLE;
        let lease = idle(long);
        assert!(lease.ask(&draw()));
        assert!(matches!(lease.verdict(), Verdict::Draw(_)));
        let lease = idle(long);
        assert!(matches!(lease.verdict(), Verdict::Stop));
        assert!(!lease.ask(&draw()));
        // One that is not idle for long yet may be asked.
        let lease = idle(Duration::ZERO);
        assert!(matches!(lease.verdict(), Verdict::Late | Verdict::Stop));
    }

    #[test]
    fn what_is_drawn_for_nobody_is_lost() {
        let lease = idle(Duration::ZERO);
        lease.give(7, 0.0, &[]);
        assert!(matches!(lease.lock().turn, Turn::Idle));
        assert!(lease.ask(&draw()));
        // The engine knows how to draw, and the program lets go before it has.
        assert!(matches!(lease.verdict(), Verdict::Draw(_)));
        lease.end();
        lease.give(7, 0.0, &[]);
        assert!(matches!(lease.lock().turn, Turn::Idle));
        assert!(matches!(lease.verdict(), Verdict::Stop));
    }
}
