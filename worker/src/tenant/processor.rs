//! A processor's instance, and the mail between it and the engine.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use realm_shared::wire::Fault;
use wasmtime::Store;

use super::Failure;
use super::contract::processor::exports::realm::program::steering::{Plan, Request};
use super::contract::processor::{Processor, ProcessorPre};
use super::guest::{self, Guest};
use super::lanes::take_turns;
use super::life::Life;
use super::plan::{drawable, known};
use super::seats::Seat;
use super::steering::{Bell, Draw, Verdict};

/// Most tokens that may be forced at once.
const MAX_FORCED: usize = 4096;
/// How long a plan may be awaited while no call ends. Processor time has a tighter limit; this is for
/// a machine that has none to give, so that no client waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to happen to a sequence next.
#[derive(Debug, Clone)]
enum Next {
    /// Its code has not said yet.
    Unknown,
    Draw(Arc<Draw>),
    /// These, the one with this number first.
    Force(Arc<[u32]>, usize),
    Stop,
    Failed(Failure),
}

/// The engine's side of an instance. The instance goes with it.
#[derive(Debug)]
pub(super) struct Handle {
    mail: Arc<Mail>,
    next: Next,
    /// Calls that had begun when it was looked last, and when that number was new.
    sign: (u64, Instant),
    /// Given back when its sequence is over, whenever the instance is.
    _seat: Seat,
}

impl Handle {
    /// One whose instance writes to this mail.
    pub(super) fn new(mail: Arc<Mail>, seat: Seat) -> Handle {
        Handle {
            mail,
            next: Next::Unknown,
            sign: (0, Instant::now()),
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

    /// The token that followed. The instance is told, unless more is forced before it is asked.
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

/// Between the engine and an instance: at most one message each way.
#[derive(Debug)]
pub(super) struct Mail {
    state: Mutex<State>,
    /// Of the sequence.
    life: Life,
    /// Calls of the instance that have begun.
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

    fn answer(&self, next: Next) {
        self.lock().next = Some(next);
        self.bell.ring();
    }

    /// The tokens that were accepted; None once the sequence is over.
    async fn accepted(&self) -> Option<Vec<u32>> {
        poll_fn(|context| {
            if self.life.is_over_or_will_wake(context.waker()) {
                return Poll::Ready(None);
            }
            match self.lock().accepted.take() {
                Some(accepted) => Poll::Ready(Some(accepted)),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        if mail.life.is_over() {
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
        said.map_err(|e| guest::failure(&e))?.map_err(guest::error)
    }

    async fn advance(&mut self, accepted: &[u32]) -> Result<Next, Failure> {
        self.begin_call();
        let steering = self.instance.realm_program_steering();
        let said = steering.call_advance(&mut self.store, accepted).await;
        let plan = said
            .map_err(|e| guest::failure(&e))?
            .map_err(guest::error)?;
        self.check(plan)
            .map_err(|message| Failure::new(Fault::Plan, message))
    }

    /// Takes a plan in that can be carried out.
    fn check(&self, plan: Plan) -> Result<Next, String> {
        match plan {
            Plan::Stop => Ok(Next::Stop),
            Plan::Force(tokens) => {
                if tokens.is_empty() || tokens.len() > MAX_FORCED {
                    let len = tokens.len();
                    return Err(format!("`force` has {len} tokens, not 1 to {MAX_FORCED}"));
                }
                tokens
                    .iter()
                    .try_for_each(|t| known("`force`", *t, self.vocabulary))?;
                Ok(Next::Force(tokens.into(), 0))
            }
            Plan::Draw(draw) => {
                drawable(&draw, self.vocabulary)?;
                Ok(Next::Draw(Arc::new(draw)))
            }
        }
    }
}
