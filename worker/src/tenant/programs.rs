//! The programs that a gateway has sent, and what runs: their instances, and grammars.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use realm_shared::grammar::Grammar;
use realm_shared::run::{Journal, Request, What};
use realm_shared::wire::{Allotment, Fault};
use wasmtime::Engine;

use super::answering::{self, Limits, Run};
use super::code::{self, Code, Pool};
use super::contract::GRAMMARS;
use super::follow::{self, Text};
use super::grammar_cache::GrammarCache;
use super::guest::{self, Guest, Meter};
use super::handles;
use super::lanes::{Lanes, take_turns};
use super::lease::Leases;
use super::life::Life;
use super::mail::{Handle, Mail};
use super::outbox::{Outbox, Voice};
use super::processor::{self, Beginning};
use super::runs::Runs;
use super::seats::Seats;
use super::steering::{Bell, Steering};
use super::{Failure, Vocabulary};

/// What runs programs, of one gateway after the other: made with the first of them.
pub struct Host {
    pool: Pool,
    running: OnceLock<Result<Running, Failure>>,
}

struct Running {
    engine: Engine,
    lanes: Lanes,
}

impl Host {
    /// With so much room for instances.
    pub fn new(pool: Pool) -> Host {
        Host {
            pool,
            running: OnceLock::new(),
        }
    }

    fn running(&self) -> Result<&Running, Failure> {
        let running = self.running.get_or_init(|| {
            let engine = code::engine(self.pool)?;
            let lanes = Lanes::new(&engine).map_err(|e| {
                let message = format!("this worker cannot run programs: {e}");
                Failure::new(Fault::Unusable, message)
            })?;
            Ok(Running { engine, lanes })
        });
        running.as_ref().map_err(Clone::clone)
    }
}

/// A program that was sent.
#[derive(Clone)]
struct Program {
    name: Arc<str>,
    code: Result<Code, Failure>,
}

/// A component is of the other kind than it is wanted for.
fn mistaken(name: &str, is: &str, not: &str) -> Failure {
    let message = format!("`{name}` is {is}, not {not}");
    Failure::new(Fault::Unusable, message)
}

const PROCESSOR: &str = "a processor, which steers a model's answer";
const PROGRAM: &str = "a program, which answers requests itself";

/// What a gateway has sent.
#[derive(Default)]
struct Sent {
    /// By the numbers that it gives them.
    programs: HashMap<u64, Program>,
    /// Those that it lets go of, and that are still on their way, or awaited.
    forgotten: HashSet<u64>,
    /// How many instances wait for a program.
    awaited: HashMap<u64, usize>,
    /// Of these instances.
    waiting: Vec<Waker>,
    /// Nothing more will come: the gateway is gone.
    closed: bool,
}

impl Sent {
    /// Drops a program that is not needed any more. Programs come by another way than the word that they can go: one
    /// that is loaded late is to be there for those that wait for it, and for nobody after them.
    fn drop_if_forgotten(&mut self, number: u64) {
        let is_here = self.programs.contains_key(&number);
        if is_here && !self.awaited.contains_key(&number) && self.forgotten.remove(&number) {
            self.programs.remove(&number);
        }
    }

    fn wake(mut sent: MutexGuard<'_, Sent>) {
        let waiting = std::mem::take(&mut sent.waiting);
        drop(sent);
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The programs of one gateway.
pub struct Programs {
    host: Arc<Host>,
    vocabulary: Arc<Vocabulary>,
    grammars: Arc<GrammarCache>,
    sent: Arc<Mutex<Sent>>,
    bell: Arc<Bell>,
    seats: Arc<Seats>,
    leases: Arc<Leases>,
    runs: Arc<Runs>,
}

/// What is to steer a sequence.
#[derive(Debug, Clone)]
pub enum Guide {
    /// An instance of a processor.
    Processor {
        /// Number of its program.
        program: u64,
        /// Arguments, as JSON.
        args: String,
    },
    /// A grammar.
    Grammar(Grammar),
}

/// What steering a sequence begins with.
pub struct Start<'a> {
    /// What is to steer it.
    pub guide: Guide,
    /// What that may take.
    pub allotment: Allotment,
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
    /// While fewer tokens than this follow, none of those is drawn.
    pub min_tokens: u32,
}

/// What a program that answers a request begins with.
pub struct Answer {
    /// Number of the run.
    pub run: u64,
    /// Number of the program.
    pub program: u64,
    /// What it may take.
    pub allotment: Allotment,
    /// What it is to answer.
    pub request: Request,
    /// What was drawn for it in an earlier life.
    pub journal: Journal,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Tokens that a sequence may have here. It may be told of more, where it began on a worker that had more memory.
    pub context: usize,
    /// Numbers of a hidden state.
    pub hidden_size: usize,
}

impl Programs {
    /// None yet, for a model with this vocabulary.
    pub fn new(host: Arc<Host>, vocabulary: Arc<Vocabulary>) -> Programs {
        let bell = Arc::<Bell>::default();
        Programs {
            seats: Arc::new(Seats::new(host.pool.instances)),
            host,
            vocabulary,
            grammars: Arc::default(),
            sent: Arc::default(),
            bell: bell.clone(),
            leases: Arc::new(Leases::new(bell)),
            runs: Arc::default(),
        }
    }

    /// Takes in a program. One that cannot be used fails the sequences that want it.
    pub fn add(&self, number: u64, name: &str, compiled: OwnedFd) {
        let code = self.load(compiled);
        let name = name.into();
        let mut sent = lock(&self.sent);
        sent.programs.insert(number, Program { name, code });
        sent.drop_if_forgotten(number);
        Sent::wake(sent);
    }

    /// Loads a program, and makes what its instances need of the vocabulary: none is to wait for that
    /// while it runs.
    fn load(&self, compiled: OwnedFd) -> Result<Code, Failure> {
        self.vocabulary.tokenizer()?;
        let code = code::load(&self.host.running()?.engine, compiled)?;
        if code.imports(GRAMMARS) {
            self.vocabulary.grammars()?;
        }
        Ok(code)
    }

    /// Lets go of a program. Its instances go on.
    pub fn forget(&self, number: u64) {
        let mut sent = lock(&self.sent);
        sent.forgotten.insert(number);
        sent.drop_if_forgotten(number);
    }

    /// Has something steer a sequence; a processor may be on its way still. If it cannot, its verdict
    /// says why.
    pub fn start(&self, start: Start<'_>) -> Steering {
        match self.try_start(&start) {
            Ok(handle) => Steering::by_mail(handle, self.bell.clone()),
            Err(failure) => Steering::failed(failure, self.bell.clone()),
        }
    }

    fn try_start(&self, start: &Start<'_>) -> Result<Handle, Failure> {
        match &start.guide {
            Guide::Processor { program, args } => self.start_processor(*program, args, start),
            Guide::Grammar(grammar) => self.start_grammar(grammar, start),
        }
    }

    fn start_grammar(&self, grammar: &Grammar, start: &Start<'_>) -> Result<Handle, Failure> {
        let mail = Arc::new(Mail::new(self.bell.clone()));
        let text = Text {
            tenant: start.allotment.tenant,
            grammar: grammar.clone(),
            generated: tokens(start.generated),
            end_tokens: start.end_tokens.to_vec(),
            min_tokens: start.min_tokens,
            memory: usize::try_from(start.allotment.memory).unwrap_or(usize::MAX),
        };
        let (vocabulary, grammars) = (self.vocabulary.clone(), self.grammars.clone());
        let handle = Handle::new(mail.clone(), patience(&start.allotment), None);
        let work = follow::live(mail, vocabulary, grammars, text);
        let lanes = &self.host.running()?.lanes;
        lanes.spawn(start.allotment.tenant, work);
        Ok(handle)
    }

    fn start_processor(
        &self,
        program: u64,
        args: &str,
        start: &Start<'_>,
    ) -> Result<Handle, Failure> {
        let Running { engine, lanes } = self.host.running()?;
        let engine = engine.clone();
        let seat = self.seats.clone().take(&start.allotment)?;
        let mail = Arc::new(Mail::new(self.bell.clone()));
        let end_tokens = start.end_tokens.to_vec();
        let mut guest = self.guest(&start.allotment, mail.life(), start.key, end_tokens);
        let beginning = Beginning {
            prompt: tokens(start.prompt),
            generated: tokens(start.generated),
            args: args.to_owned(),
            vocabulary: u32::try_from(start.vocabulary).unwrap_or(u32::MAX),
            choice: start.allotment.choice,
        };
        let handle = Handle::new(mail.clone(), patience(&start.allotment), Some(seat));
        let program = self.look_for(program);
        lanes.spawn(start.allotment.tenant, async move {
            let program = match program {
                Ok(program) => Some(program),
                Err(awaited) => awaited.arrival(mail.life()).await,
            };
            let Some(Program { name, code }) = program else {
                return;
            };
            let code = code.and_then(|code| match code {
                Code::Processor(code) => Ok(code),
                Code::Program(_) => Err(mistaken(&name, PROGRAM, PROCESSOR)),
            });
            guest.name = name;
            let store = guest::store(&engine, guest);
            processor::live(mail, code, store, beginning).await;
        });
        Ok(handle)
    }

    /// Has a program answer a request. It may be on its way still. What it says, and if it cannot be
    /// started why, goes into the outbox.
    pub fn answer(&self, answer: Answer, outbox: &Arc<Outbox>) {
        let voice = Voice::new(answer.run, outbox.clone());
        if let Err(failure) = self.try_answer(answer, voice.clone()) {
            voice.say(Vec::new(), What::failed(failure.fault, failure.message));
        }
    }

    fn try_answer(&self, answer: Answer, voice: Voice) -> Result<(), Failure> {
        let Running { engine, lanes } = self.host.running()?;
        let engine = engine.clone();
        let Answer {
            program,
            allotment,
            mut request,
            journal,
            vocabulary,
            context,
            hidden_size,
            ..
        } = answer;
        let seat = self.seats.clone().take(&allotment)?;
        let end_tokens = std::mem::take(&mut request.end_tokens);
        let mut guest = self.guest(&allotment, &voice.life(), request.key, end_tokens);
        let limits = Limits {
            vocabulary: u32::try_from(vocabulary).unwrap_or(u32::MAX),
            hidden_size: u32::try_from(hidden_size).unwrap_or(u32::MAX),
            context: request
                .context
                .min(u32::try_from(context).unwrap_or(u32::MAX)),
            budget: request.budget,
            sequences: allotment.sequences,
            handles: held(&allotment),
            tensors: allotment.tensors,
            output: usize::try_from(allotment.output).unwrap_or(usize::MAX),
        };
        let mut last = self.runs.begin(voice.clone(), seat);
        let leases = self.leases.clone();
        let program = self.look_for(program);
        lanes.spawn(allotment.tenant, async move {
            let program = match program {
                Ok(program) => Some(program),
                Err(awaited) => awaited.arrival(&voice.life()).await,
            };
            let Some(Program { name, code }) = program else {
                return;
            };
            let code = code.and_then(|code| match code {
                Code::Program(code) => Ok(code),
                Code::Processor(_) => Err(mistaken(&name, PROCESSOR, PROGRAM)),
            });
            guest.name = name;
            let tools = request.tools.offered.iter().map(|tool| tool.name.clone());
            let run = Run::new(guest, voice, leases, limits, tools.collect(), journal);
            last.say(match code {
                Ok(code) => answering::live(&engine, &code, run, request).await,
                Err(failure) => (Vec::new(), What::failed(failure.fault, failure.message)),
            });
        });
        Ok(())
    }

    /// Tells a run the tokens that it asked for by their name.
    pub fn tell(&self, run: u64, tokens: Vec<u32>) {
        self.runs.tell(run, tokens);
    }

    /// Nobody waits for this run any more. What it has not said yet is not said.
    pub fn end(&self, run: u64, outbox: &Outbox) {
        self.runs.end(run);
        outbox.forget(run);
    }

    /// Nobody waits for anything any more.
    pub fn end_all(&self) {
        self.runs.end_all();
    }

    /// What steers a sequence of a program, by the name of its lease.
    pub fn join(&self, lease: u64) -> Steering {
        match self.leases.get(lease) {
            Some(lease) => Steering::by_program(lease, self.bell.clone()),
            None => Steering::over(self.bell.clone()),
        }
    }

    /// How long it takes to make an instance of a processor with all that it may take, before any of its
    /// code runs: `count` times, on the threads that instances live on. For benchmarks.
    ///
    /// # Errors
    /// If the program is not there or cannot be used, or there is no place for an instance.
    pub fn time_starts(&self, program: u64, count: usize) -> Result<Vec<Duration>, Failure> {
        let Running { engine, lanes } = self.host.running()?;
        let missing = || Failure::new(Fault::Unusable, format!("there is no program {program}"));
        let Program { name, code } = self.look_for(program).map_err(|_| missing())?;
        let Code::Processor(code) = code? else {
            return Err(mistaken(&name, PROGRAM, PROCESSOR));
        };
        let allotment = Allotment::default();
        let guests = (0..count).map(|_| self.guest(&allotment, &Life::default(), 0, Vec::new()));
        let guests: Vec<Guest> = guests.collect();
        let (engine, (tell, told)) = (engine.clone(), mpsc::channel());
        lanes.spawn(allotment.tenant, async move {
            for guest in guests {
                let begun = Instant::now();
                let mut store = guest::store(&engine, guest);
                let made = code.instantiate_async(&mut store).await;
                let took = begun.elapsed();
                let made = made.map(|_| took);
                // Whoever asked waits until the last has come.
                let _ = tell.send(made.map_err(|e| guest::failure(&mut store, &e)));
                drop(store);
                take_turns().await;
            }
        });
        told.into_iter().collect()
    }

    /// What an instance has beside its memory. Its name comes with its code.
    fn guest(&self, allotment: &Allotment, life: &Life, key: u64, end_tokens: Vec<u32>) -> Guest {
        Guest {
            vocabulary: self.vocabulary.clone(),
            grammars: self.grammars.clone(),
            tenant: allotment.tenant,
            end_tokens,
            key,
            taken: 0,
            name: "".into(),
            meter: Meter::new(allotment, life.flag()),
            matchers: handles::table(held(allotment).div_ceil(TENSORS_TO_MATCHER)),
        }
    }

    /// A program, or what waits for it if it is on its way.
    fn look_for(&self, number: u64) -> Result<Program, Awaited> {
        let mut sent = lock(&self.sent);
        if let Some(program) = sent.programs.get(&number) {
            return Ok(program.clone());
        }
        *sent.awaited.entry(number).or_default() += 1;
        drop(sent);
        let sent = self.sent.clone();
        Err(Awaited { sent, number })
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
        self.end_all();
        let mut sent = lock(&self.sent);
        sent.closed = true;
        Sent::wake(sent);
    }
}

/// As many tensors as are held for each place in a text of a grammar that may be held: of its memory, which
/// is some 100 KiB, only what a text adds is counted.
const TENSORS_TO_MATCHER: usize = 16;

/// How long a plan may be awaited while no call ends.
fn patience(allotment: &Allotment) -> Duration {
    Duration::from_millis(allotment.patience_millis.into())
}

/// How many tensors an instance may hold at once.
fn held(allotment: &Allotment) -> usize {
    usize::try_from(allotment.handles).unwrap_or(usize::MAX)
}

/// Tokens that the engine has checked: none is negative.
fn tokens(tokens: &[i32]) -> Vec<u32> {
    tokens.iter().map(|token| *token as u32).collect()
}

/// An instance's hold on a program that is on its way. The program is loaded by another thread, so that no step
/// waits for that.
struct Awaited {
    sent: Arc<Mutex<Sent>>,
    number: u64,
}

impl Awaited {
    /// Resolves once the gateway has sent the program, or it is gone, or nobody waits for the instance any more.
    async fn arrival(self, life: &Life) -> Option<Program> {
        poll_fn(|context| {
            if life.is_over_or_will_wake(context.waker()) {
                return Poll::Ready(None);
            }
            let mut sent = lock(&self.sent);
            let program = sent.programs.get(&self.number).cloned();
            if program.is_some() || sent.closed {
                return Poll::Ready(program);
            }
            sent.waiting.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut sent = lock(&self.sent);
        if let Entry::Occupied(mut awaited) = sent.awaited.entry(self.number) {
            *awaited.get_mut() -= 1;
            if *awaited.get() == 0 {
                awaited.remove();
            }
        }
        sent.drop_if_forgotten(self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
