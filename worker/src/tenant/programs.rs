//! The programs that a gateway has sent, and the instances that run.

use std::collections::HashMap;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use realm_shared::run::{Journal, Request, What};
use realm_shared::wire::{Allotment, Fault};
use wasmtime::Engine;

use super::answering::answer;
use super::code::{self, Code, INSTANCES, MEMORY};
use super::guest::{self, Guest, Meter, ProcessorPre, ProgramPre};
use super::lanes::Lanes;
use super::sequences::{Answerer, Audience, Desk, Leases, Means, Voice};
use super::steering::{Beginning, Bell, Mail, Steering, live};
use super::{Failure, Outbox, Vocabulary};

/// What runs programs: one for the process, made with the first of them.
struct Host {
    engine: Engine,
    lanes: Lanes,
}

static HOST: OnceLock<Result<Host, Failure>> = OnceLock::new();

fn host() -> Result<&'static Host, Failure> {
    let host = HOST.get_or_init(|| {
        let engine = code::engine()?;
        let lanes = Lanes::new(&engine).map_err(|e| {
            let message = format!("this worker cannot run programs: {e}");
            Failure::new(Fault::Unusable, message)
        })?;
        Ok(Host { engine, lanes })
    });
    host.as_ref().map_err(Clone::clone)
}

/// A program that was sent.
#[derive(Clone)]
struct Program {
    name: Arc<str>,
    code: Result<Code, Failure>,
}

impl Program {
    fn processor(self) -> Result<Arc<ProcessorPre<Guest>>, Failure> {
        match self.code? {
            Code::Processor(code) => Ok(code),
            Code::Program(_) => Err(Failure::new(
                Fault::Unusable,
                "it answers requests, and steers nothing",
            )),
        }
    }

    fn program(self) -> Result<Arc<ProgramPre<Answerer>>, Failure> {
        match self.code? {
            Code::Program(code) => Ok(code),
            Code::Processor(_) => Err(Failure::new(
                Fault::Unusable,
                "it is a processor, and answers no requests",
            )),
        }
    }
}

/// What a gateway has sent.
#[derive(Default)]
struct Sent {
    /// By the numbers that it gives them.
    programs: HashMap<u64, Program>,
    /// Of instances whose program is still on its way.
    waiting: Vec<Waker>,
    /// Nothing more will come: the gateway is gone.
    closed: bool,
}

impl Sent {
    fn wake(mut sent: MutexGuard<'_, Sent>) {
        let waiting = std::mem::take(&mut sent.waiting);
        drop(sent);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The programs of one gateway.
pub struct Programs {
    vocabulary: Arc<Vocabulary>,
    sent: Arc<Mutex<Sent>>,
    bell: Arc<Bell>,
    seats: Arc<Seats>,
    outbox: Arc<Outbox>,
    leases: Arc<Leases>,
    /// Who waits for which run. One that is over may still be there.
    audiences: Mutex<HashMap<u64, Weak<Audience>>>,
}

/// What the run of a program begins with.
pub struct Run {
    /// Its number.
    pub run: u64,
    /// Number of its program.
    pub program: u64,
    /// What it may take.
    pub allotment: Allotment,
    /// What is to be answered.
    pub request: Request,
    /// What was drawn for it before.
    pub journal: Journal,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
}

/// What an instance begins with.
pub struct Start<'a> {
    /// Number of its program.
    pub program: u64,
    /// What it may take.
    pub allotment: Allotment,
    /// Arguments, as JSON.
    pub args: String,
    /// Tokens that the model goes on from.
    pub prompt: &'a [i32],
    /// Tokens that followed already.
    pub generated: &'a [i32],
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Key of its random numbers.
    pub key: u64,
    /// Tokens that end an answer.
    pub end_tokens: &'a [u32],
}

impl Programs {
    /// None yet, for a model with this vocabulary. What they say goes out there.
    pub fn new(vocabulary: Arc<Vocabulary>, outbox: Outbox) -> Programs {
        Programs {
            vocabulary,
            sent: Arc::default(),
            bell: Arc::default(),
            seats: Arc::default(),
            outbox: Arc::new(outbox),
            leases: Arc::default(),
            audiences: Mutex::default(),
        }
    }

    /// Where they say what they say.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Takes in a program. One that cannot be used fails the sequences that want it.
    pub fn add(&self, number: u64, name: &str, compiled: OwnedFd) {
        let code = self.vocabulary.tokenizer().and_then(|_| {
            let engine = &host()?.engine;
            code::load(engine, compiled)
        });
        let name = name.into();
        let mut sent = lock(&self.sent);
        sent.programs.insert(number, Program { name, code });
        Sent::wake(sent);
    }

    /// Lets go of a program. Its instances go on.
    pub fn forget(&self, number: u64) {
        lock(&self.sent).programs.remove(&number);
    }

    /// Starts an instance, of a program that may be on its way still. If it cannot be started, its
    /// verdict says why.
    pub fn start(&self, start: Start<'_>) -> Steering {
        self.try_start(start).unwrap_or_else(Steering::failed)
    }

    fn try_start(&self, start: Start<'_>) -> Result<Steering, Failure> {
        let host = host()?;
        let seat = self.seats.clone().take(&start.allotment)?;
        let mail = Arc::new(Mail::new(self.bell.clone()));
        let mut guest = self.guest(&start.allotment, start.end_tokens, start.key, mail.closed());
        // Checked by the engine: none is negative.
        let tokens = |tokens: &[i32]| tokens.iter().map(|token| *token as u32).collect();
        let beginning = Beginning {
            prompt: tokens(start.prompt),
            generated: tokens(start.generated),
            args: start.args,
            vocabulary: u32::try_from(start.vocabulary).unwrap_or(u32::MAX),
            choice: start.allotment.choice,
        };
        let steering = Steering::new(mail.clone(), seat);
        let (engine, sent) = (host.engine.clone(), self.sent.clone());
        // Now, if it is there: it may be forgotten in a moment.
        let there = lock(&sent).programs.get(&start.program).cloned();
        host.lanes.spawn(start.allotment.tenant, async move {
            let program = match there {
                Some(program) => Some(program),
                None => {
                    let is_over = |waker: &Waker| mail.is_closed_or_will_wake(waker);
                    arrival(&sent, start.program, is_over).await
                }
            };
            drop(sent);
            let Some(program) = program else {
                return;
            };
            guest.name = program.name.clone();
            let store = guest::store(&engine, guest);
            live(mail, program.processor(), store, beginning).await;
        });
        Ok(steering)
    }

    /// Runs a program that answers a request. All else, it says itself.
    pub fn run(&self, run: Run) {
        let audience = Arc::new(Audience::default());
        let mut audiences = lock(&self.audiences);
        audiences.retain(|_, audience| audience.strong_count() > 0);
        audiences.insert(run.run, Arc::downgrade(&audience));
        drop(audiences);
        let voice = Arc::new(Voice {
            run: run.run,
            outbox: self.outbox.clone(),
            audience,
            taken: AtomicU64::new(0),
        });
        if let Err(Failure { fault, message }) = self.try_run(run, &voice) {
            voice.say(What::failed(fault, message));
        }
    }

    fn try_run(&self, run: Run, voice: &Arc<Voice>) -> Result<(), Failure> {
        let host = host()?;
        let seat = self.seats.clone().take(&run.allotment)?;
        let audience = voice.audience.clone();
        let request = run.request;
        let closed = audience.left();
        let mut guest = self.guest(&run.allotment, &request.end_tokens, request.key, closed);
        let means = Means {
            voice: voice.clone(),
            leases: self.leases.clone(),
            bell: self.bell.clone(),
            vocabulary: u32::try_from(run.vocabulary).unwrap_or(u32::MAX),
            most: run.allotment.sequences,
        };
        let desk = Desk::new(means, &request, run.journal);
        let (engine, sent) = (host.engine.clone(), self.sent.clone());
        let there = lock(&sent).programs.get(&run.program).cloned();
        host.lanes.spawn(run.allotment.tenant, async move {
            let _seat = seat;
            let program = match there {
                Some(program) => Some(program),
                None => {
                    let is_over = |waker: &Waker| audience.has_left_or_will_wake(waker);
                    arrival(&sent, run.program, is_over).await
                }
            };
            drop(sent);
            let Some(program) = program else {
                return;
            };
            guest.name = program.name.clone();
            answer(&engine, program.program(), guest, desk, request).await;
        });
        Ok(())
    }

    /// Nobody waits for a run: its program ends.
    pub fn end(&self, run: u64) {
        let audience = lock(&self.audiences).remove(&run);
        if let Some(audience) = audience.and_then(|audience| audience.upgrade()) {
            audience.leave();
        }
        self.outbox.forget(run);
    }

    /// What steers the sequence of a lease.
    pub fn join(&self, lease: u64) -> Steering {
        self.leases.join(lease, &self.bell)
    }

    fn guest(
        &self,
        allotment: &Allotment,
        end_tokens: &[u32],
        key: u64,
        closed: Arc<AtomicBool>,
    ) -> Guest {
        let memory = usize::try_from(allotment.memory).unwrap_or(usize::MAX);
        let time = Duration::from_micros(allotment.call_micros);
        Guest {
            vocabulary: self.vocabulary.clone(),
            end_tokens: end_tokens.to_vec(),
            key,
            taken: 0,
            name: "".into(),
            meter: Meter::new(memory.min(MEMORY), time, closed),
        }
    }

    /// What every instance has a hold on.
    #[cfg(test)]
    pub(super) fn vocabulary(&self) -> Arc<Vocabulary> {
        self.vocabulary.clone()
    }

    /// Whether a program is there.
    #[cfg(test)]
    pub(super) fn has(&self, number: u64) -> bool {
        lock(&self.sent).programs.contains_key(&number)
    }
}

impl Drop for Programs {
    /// What a gateway that is gone has not sent will not come: whoever waits for it goes too.
    fn drop(&mut self) {
        let mut sent = lock(&self.sent);
        sent.closed = true;
        Sent::wake(sent);
        // Nor is there anybody who waits for answers.
        for (_, audience) in lock(&self.audiences).drain() {
            if let Some(audience) = audience.upgrade() {
                audience.leave();
            }
        }
    }
}

/// Resolves once the gateway has sent the program with this number, or it is gone, or what the program
/// is for is over. The program is loaded by another thread, so that no step waits for that.
async fn arrival(
    sent: &Mutex<Sent>,
    number: u64,
    is_over: impl Fn(&Waker) -> bool,
) -> Option<Program> {
    poll_fn(|context| {
        if is_over(context.waker()) {
            return Poll::Ready(None);
        }
        let mut sent = lock(sent);
        let program = sent.programs.get(&number).cloned();
        if program.is_some() || sent.closed {
            return Poll::Ready(program);
        }
        sent.waiting.push(context.waker().clone());
        Poll::Pending
    })
    .await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sequences that are steered, by tenant.
#[derive(Debug, Default)]
struct Seats(Mutex<HashMap<u32, u32>>);

/// A sequence's place among those of its tenant.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    tenant: u32,
}

impl Seats {
    fn take(self: Arc<Self>, allotment: &Allotment) -> Result<Seat, Failure> {
        let tenant = allotment.tenant;
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = allotment.instances;
        let all: u32 = taken.values().sum();
        let count = taken.get(&tenant).map_or(0, |count| *count);
        if count >= most {
            let message = format!("{most} instances of its tenant run already; try again later");
            return Err(Failure::new(Fault::Instances, message));
        }
        if all >= INSTANCES {
            let message = format!("{INSTANCES} instances run in this worker; try again later");
            return Err(Failure::new(Fault::Instances, message));
        }
        taken.insert(tenant, count + 1);
        drop(taken);
        Ok(Seat {
            seats: self,
            tenant,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.tenant);
            }
        }
    }
}
