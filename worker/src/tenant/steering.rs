//! What steers a sequence: an instance of a processor, and the mail between it and the engine.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use realm_shared::wire::Fault;
use wasmtime::Store;

use super::Failure;
use super::guest::{self, Draw, Guest, Processor, ProcessorPre, Request};
use super::plan::Next;
use super::programs::Seat;
use crate::sampler::Scored;

/// Longest message of an error that a tenant's code gives, in bytes.
const MAX_MESSAGE: usize = 1024;
/// How long a plan may be awaited while no call ends. Processor time has a tighter limit; this is for
/// a machine that has none to give, so that no client waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a lease may have nothing to draw before it is over, so that a sequence that its program
/// does not go on with holds neither slot nor blocks. To open it again costs a few tokens.
const IDLE: Duration = Duration::from_millis(20);

/// What the engine is to do for a sequence.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Not known yet.
    Late,
    /// Draw a token like this.
    Draw(Arc<Draw>),
    /// Take this token.
    Force(u32),
    /// The sequence is over.
    Stop,
    /// Its code cannot go on.
    Failed(Failure),
}

/// The engine's side of an instance. The instance goes with it.
#[derive(Debug)]
pub struct Steering {
    mail: Arc<Mail>,
    next: Next,
    /// Calls that had begun when it was looked last, and when that number was new.
    sign: (u64, Instant),
    role: Role,
}

/// What an instance is to the sequence.
#[derive(Debug)]
enum Role {
    /// A processor, which lives for it.
    Processor {
        /// Given back when the sequence is over, whenever the instance is.
        _seat: Option<Seat>,
    },
    /// A program, which goes on without it, and had drawn so many tokens of it before this lease.
    Program { drawn: u32 },
}

impl Steering {
    /// That of a sequence whose code could not even be started.
    pub(super) fn failed(failure: Failure) -> Steering {
        Steering {
            mail: Arc::new(Mail::new(Arc::default())),
            next: Next::Failed(failure),
            sign: (0, Instant::now()),
            role: Role::Processor { _seat: None },
        }
    }

    /// One whose instance writes to this mail.
    pub(super) fn new(mail: Arc<Mail>, seat: Seat) -> Steering {
        Steering {
            mail,
            next: Next::Unknown,
            sign: (0, Instant::now()),
            role: Role::Processor { _seat: Some(seat) },
        }
    }

    /// That of a lease, of a sequence of which so many tokens had been drawn before it.
    pub(super) fn of_lease(mail: Arc<Mail>, drawn: u32) -> Steering {
        Steering {
            mail,
            next: Next::Unknown,
            sign: (0, Instant::now()),
            role: Role::Program { drawn },
        }
    }

    /// That of a lease that is over already.
    pub(super) fn stopped(bell: Arc<Bell>) -> Steering {
        let mut steering = Steering::of_lease(Arc::new(Mail::new(bell)), 0);
        steering.next = Next::Stop;
        steering
    }

    /// Tokens of the sequence that were drawn before it was opened here.
    pub(crate) fn drawn_before(&self) -> u32 {
        match self.role {
            Role::Program { drawn } => drawn,
            Role::Processor { .. } => 0,
        }
    }

    /// What to do with the sequence's next token, if that is known by now.
    pub fn verdict(&mut self) -> Verdict {
        if let Next::Unknown = self.next {
            let calls = self.mail.calls.load(Ordering::Relaxed);
            if calls != self.sign.0 {
                self.sign = (calls, Instant::now());
            }
            let is_lease = matches!(self.role, Role::Program { .. });
            match self.mail.take_next() {
                Some(next) => self.next = next,
                None if is_lease && self.sign.1.elapsed() > IDLE => {
                    self.next = self.mail.retire();
                }
                None if is_lease => {}
                None if self.sign.1.elapsed() > PATIENCE => {
                    let message = format!(
                        "it did not answer within {} s, for want of processor time",
                        PATIENCE.as_secs()
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

    /// What rings with each answer of this gateway's instances.
    pub(crate) fn bell(&self) -> Arc<Bell> {
        self.mail.bell.clone()
    }

    /// The token that followed, with its log-probability and the likeliest others where these are asked
    /// for. The instance is told, unless more is forced before it is asked.
    pub fn accept(&mut self, token: u32, logprob: Option<f32>, likeliest: &[Scored]) {
        let tokens = match &mut self.next {
            Next::Force(tokens, at) if *at + 1 < tokens.len() => {
                *at += 1;
                return;
            }
            Next::Force(tokens, _) => tokens.to_vec(),
            _ => vec![token],
        };
        self.next = Next::Unknown;
        self.sign.1 = Instant::now();
        self.mail.give(Accepted {
            tokens,
            logprob: logprob.unwrap_or(0.0),
            likeliest: likeliest.to_vec(),
        });
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        match self.role {
            Role::Processor { .. } => self.mail.close(),
            // The gateway may open the sequence again, once there is room for it.
            Role::Program { .. } => {
                if let Next::Draw(_) = self.next {
                    self.mail
                        .put_back(std::mem::replace(&mut self.next, Next::Stop));
                }
            }
        }
    }
}

/// What followed in a sequence.
#[derive(Debug)]
pub(super) struct Accepted {
    /// One, or all that were forced together.
    pub(super) tokens: Vec<u32>,
    /// Of the last one; 0 where it is not asked for.
    pub(super) logprob: f32,
    pub(super) likeliest: Vec<Scored>,
}

/// Between the engine and an instance: at most one message each way.
#[derive(Debug)]
pub(super) struct Mail {
    state: Mutex<State>,
    /// The sequence is over.
    closed: Arc<AtomicBool>,
    /// Calls of the instance that have begun.
    calls: AtomicU64,
    /// Rung with each answer.
    bell: Arc<Bell>,
}

#[derive(Debug, Default)]
struct State {
    accepted: Option<Accepted>,
    waker: Option<Waker>,
    next: Option<Next>,
    /// It is over, as a lease: nothing more can be asked for.
    retired: bool,
}

impl Mail {
    pub(super) fn new(bell: Arc<Bell>) -> Mail {
        Mail {
            state: Mutex::default(),
            closed: Arc::default(),
            calls: AtomicU64::new(0),
            bell,
        }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Wakes the task that asks when the sequence is over, which it may be already.
    pub(super) fn is_closed_or_will_wake(&self, waker: &Waker) -> bool {
        self.lock().waker = Some(waker.clone());
        self.is_closed()
    }

    /// True once the sequence is over.
    pub(super) fn closed(&self) -> Arc<AtomicBool> {
        self.closed.clone()
    }

    fn give(&self, accepted: Accepted) {
        let mut state = self.lock();
        state.accepted = Some(accepted);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take_next(&self) -> Option<Next> {
        self.lock().next.take()
    }

    fn answer(&self, next: Next) {
        self.lock().next = Some(next);
        self.bell.ring();
    }

    /// The tokens that were accepted; None once the sequence is over.
    async fn accepted(&self) -> Option<Vec<u32>> {
        poll_fn(|context| {
            let mut state = self.lock();
            if self.is_closed() {
                return Poll::Ready(None);
            }
            if let Some(accepted) = state.accepted.take() {
                return Poll::Ready(Some(accepted.tokens));
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// What was accepted, or who is woken then.
    pub(super) fn take_accepted(&self, waker: &Waker) -> Option<Accepted> {
        let mut state = self.lock();
        let accepted = state.accepted.take();
        if accepted.is_none() {
            state.waker = Some(waker.clone());
        }
        accepted
    }

    /// Asks for a token, of a lease. False: it is over.
    pub(super) fn ask(&self, draw: Arc<Draw>) -> bool {
        let mut state = self.lock();
        if state.retired {
            return false;
        }
        state.next = Some(Next::Draw(draw));
        drop(state);
        self.bell.ring();
        true
    }

    /// The lease is over, unless a token was asked for just now.
    fn retire(&self) -> Next {
        let mut state = self.lock();
        state.retired |= state.next.is_none();
        state.next.take().unwrap_or(Next::Stop)
    }

    /// The lease is over, whatever was asked for.
    pub(super) fn let_go(&self) {
        let mut state = self.lock();
        state.retired = true;
        state.next = Some(Next::Stop);
        drop(state);
        self.bell.ring();
    }

    /// What was taken and could not be done.
    fn put_back(&self, next: Next) {
        self.lock().next.get_or_insert(next);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the engine that some instance has answered.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.rung.notify_all();
    }

    /// How often it was rung.
    pub(crate) fn rings(&self) -> u64 {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it was rung more often than `rings`, at most so long.
    pub(crate) fn wait(&self, rings: u64, most: Duration) {
        let state = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.rung
                .wait_timeout_while(state, most, |now| *now == rings),
        );
    }
}

/// What an instance begins with.
pub(super) struct Beginning {
    pub(super) prompt: Vec<u32>,
    /// Tokens that it accepted in an earlier life, on another worker.
    pub(super) generated: Vec<u32>,
    pub(super) args: String,
    pub(super) vocabulary: u32,
    pub(super) choice: u32,
}

/// An instance's life. Whatever ends it early is what its sequence ends with.
pub(super) async fn live(
    mail: Arc<Mail>,
    code: Result<Arc<ProcessorPre<Guest>>, Failure>,
    store: Store<Guest>,
    beginning: Beginning,
) {
    let ended = match code {
        Ok(code) => converse(&mail, &code, store, beginning).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = ended {
        mail.answer(Next::Failed(failure));
    }
}

async fn converse(
    mail: &Mail,
    code: &ProcessorPre<Guest>,
    mut store: Store<Guest>,
    beginning: Beginning,
) -> Result<(), Failure> {
    let Beginning {
        prompt,
        generated,
        args,
        vocabulary,
        choice,
    } = beginning;
    guest::begin_call(&mut store);
    let instance = code.instantiate_async(&mut store).await;
    let mut instance = Instance {
        instance: instance.map_err(|e| guest::failure(&e))?,
        mail,
        store,
        vocabulary,
    };
    instance
        .start(Request {
            prompt,
            args,
            vocabulary,
            choice,
        })
        .await?;
    let mut next = instance.advance(&[]).await?;
    // What was said before is said again, in the same portions.
    let mut rest = &generated[..];
    while !rest.is_empty() {
        let portion = match &mut next {
            Next::Draw(_) => 1,
            Next::Force(tokens, _) if tokens.len() <= rest.len() => tokens.len(),
            Next::Force(_, at) => {
                *at = rest.len();
                break;
            }
            Next::Unknown | Next::Stop | Next::Failed(_) => break,
        };
        let (accepted, after) = rest.split_at(portion);
        next = instance.advance(accepted).await?;
        rest = after;
        // They may be thousands of calls, each of them short.
        take_turns().await;
        if mail.is_closed() {
            return Ok(());
        }
    }
    loop {
        mail.answer(next);
        let Some(accepted) = mail.accepted().await else {
            return Ok(());
        };
        next = instance.advance(&accepted).await?;
    }
}

/// Lets others go first, once.
async fn take_turns() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// An instance with its store.
struct Instance<'a> {
    instance: Processor,
    mail: &'a Mail,
    store: Store<Guest>,
    vocabulary: u32,
}

impl Instance<'_> {
    fn begin_call(&mut self) {
        self.mail.calls.fetch_add(1, Ordering::Relaxed);
        guest::begin_call(&mut self.store);
    }

    async fn start(&mut self, request: Request) -> Result<(), Failure> {
        self.begin_call();
        let steering = self.instance.realm_program_steering();
        let said = steering.call_start(&mut self.store, &request).await;
        said.map_err(|e| guest::failure(&e))?.map_err(error)
    }

    async fn advance(&mut self, accepted: &[u32]) -> Result<Next, Failure> {
        self.begin_call();
        let steering = self.instance.realm_program_steering();
        let said = steering.call_advance(&mut self.store, accepted).await;
        let plan = said.map_err(|e| guest::failure(&e))?.map_err(error)?;
        Next::of(plan, self.vocabulary).map_err(|message| Failure::new(Fault::Plan, message))
    }
}

/// What a tenant's code says of itself.
pub(super) fn error(mut message: String) -> Failure {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    Failure::new(Fault::Error, message)
}
