//! One gateway's session: handshake, control messages, and the loop over the ring.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytemuck::AnyBitPattern;
use realm_shared::ABI_VERSION;
use realm_shared::causes::told;
use realm_shared::control::{Control, MAX_CONTROL_BYTES, Order};
use realm_shared::device::Device;
use realm_shared::grammar::Grammar;
use realm_shared::run::{Journal, Request};
use realm_shared::wire::{
    self, Allotment, CLOSE, END, FORGET, GUIDE, JOIN, KEPT, LISTEN, OPEN, RUN, STEP, STEP_DONE,
    Sampling,
};
use realm_shm::tensor::{TensorError, TensorReader, TensorWriter};
use realm_shm::{Inlet, Message, WorkerEnd, socket};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;

use crate::batch::Step;
use crate::cuda::Gpu;
use crate::engine::{Engine, ModelSource, Options, Outcome};
use crate::listen;
use crate::manager::Manager;
use crate::sandbox::{self, Confinement};
use crate::tenant::{Answer, Guide, Host, Outbox, Pool, Programs, Start, Steering, Vocabulary};

/// How long the gateway may take to say hello.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the ring is watched before the thread sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// How long it sleeps at most, so that it notices that its gateway is gone.
const NAP: Duration = Duration::from_millis(100);
/// How often the gateway is shown that this process runs.
const BEAT: Duration = Duration::from_millis(100);
/// How long a worker that was spawned may go on after its gateway is gone.
const GRACE: Duration = Duration::from_secs(2);
/// How often progress is reported.
const PROGRESS: Duration = Duration::from_millis(50);

/// Where gateways are.
#[derive(Debug, Clone)]
pub enum Gateway {
    /// One, at the other end of this process's standard input. The worker ends with it.
    Stdin,
    /// One after the other, connecting to this path.
    Listen {
        /// Where the socket's file is made.
        path: PathBuf,
        /// How long the weights are kept when a gateway has gone.
        grace: Duration,
    },
}

/// What is loaded, where, and how.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The model.
    pub model: ModelSource,
    /// Where it is computed.
    pub device: Device,
    /// How it is computed.
    pub options: Options,
    /// Whether nothing is loaded where the system cannot confine this process.
    pub require_sandbox: bool,
}

/// What must be there before a model is read.
pub(crate) struct Prepared {
    gpu: Option<Gpu>,
    confinement: Confinement,
}

/// Serves a model until there is nobody left to serve.
///
/// The process is confined before it reads the model, and before it starts threads but for those that a GPU needs. Where
/// the system cannot do that and it is required, the model is not loaded.
///
/// # Errors
/// Whatever made it impossible; the gateway has been told, if it could be.
pub fn serve(gateway: &Gateway, setup: &Setup, pool: Pool) -> anyhow::Result<()> {
    #[cfg(debug_assertions)]
    crate::crash::arm();
    if matches!(gateway, Gateway::Listen { .. }) {
        listen::prepare_last_word()?;
    }
    let host = Arc::new(Host::new(pool));
    if let Gateway::Listen { path, grace } = gateway {
        return listen::serve(path, *grace, setup, &host);
    }
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let socket = socket.context("standard input is not open; it must be the gateway's socket")?;
    // The gateway does not wait for a GPU to be opened before it is greeted.
    let prepared = (setup.device == Device::Cpu).then(|| setup.prepare());
    let mut session = Session::greet(socket)?;
    let watch = Watch::start(session.socket(), GRACE)?;
    let loaded = prepared
        .unwrap_or_else(|| setup.prepare())
        .and_then(|prepared| {
            setup.load(prepared, &|control| {
                // If the gateway is gone, the watch ends the process.
                let _ = tell(session.socket(), control);
            })
        });
    let result = loaded.and_then(|(mut engine, vocabulary)| {
        let manager = &mut Manager::absent();
        session.run(&mut engine, &host, &vocabulary, &watch, manager)
    });
    session.conclude(&watch, result)
}

impl Setup {
    /// Opens the device, confines the process to what it needs for the model, and says where it cannot.
    pub(crate) fn prepare(&self) -> anyhow::Result<Prepared> {
        let gpu = match self.device {
            Device::Cpu => None,
            Device::Cuda(number) => Some(
                Gpu::open(number).with_context(|| format!("cannot compute on {}", self.device))?,
            ),
        };
        let model = match &self.model {
            ModelSource::Embedded => None,
            ModelSource::Directory(folder) => Some(folder.as_path()),
        };
        let confinement = sandbox::confine(model, self.device);
        confinement.check(self.require_sandbox, |missing| {
            let _ = writeln!(io::stderr(), "warning: {missing}");
        })?;
        Ok(Prepared { gpu, confinement })
    }

    /// Loads the model, and says from time to time how far it is. No file can be opened after that.
    pub(crate) fn load(
        &self,
        prepared: Prepared,
        tell: &dyn Fn(&Control),
    ) -> anyhow::Result<(Engine, Arc<Vocabulary>)> {
        let mut last: Option<Instant> = None;
        let mut progress = |done: u64, total: u64| {
            if done == total || last.is_none_or(|at| at.elapsed() >= PROGRESS) {
                last = Some(Instant::now());
                tell(&Control::Loading { done, total });
            }
        };
        let Setup { model, options, .. } = self;
        let engine = match prepared.gpu {
            None => Engine::load(model, options, &mut progress),
            Some(gpu) => {
                let name = self.device.to_string();
                Engine::load_on(model, options, gpu, &name, &mut progress)
            }
        };
        let engine = engine.with_context(|| match model {
            ModelSource::Embedded => "cannot load the embedded model".to_string(),
            ModelSource::Directory(path) => format!("cannot load the model in {}", path.display()),
        })?;
        let vocabulary = Vocabulary::of(model);
        prepared.confinement.seal()?;
        Ok((engine, Arc::new(vocabulary)))
    }
}

/// A gateway that completed the handshake.
pub(crate) struct Session {
    socket: OwnedFd,
    inlet: Inlet,
    outbox: Arc<Outbox>,
    /// Dropped with the session, which is how the thread of its pulse learns of that.
    _alive: mpsc::Sender<()>,
}

impl Session {
    /// Shakes hands with the gateway at the other end of a socket.
    pub(crate) fn greet(socket: OwnedFd) -> anyhow::Result<Session> {
        let ring = WorkerEnd::accept(socket.as_fd(), ABI_VERSION, HANDSHAKE)
            .context("the gateway and this worker did not agree")?;
        let (_alive, over) = mpsc::channel();
        let pulse = ring.pulse();
        pulse.beat();
        let body = move || {
            while over.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                pulse.beat();
            }
        };
        let thread = std::thread::Builder::new().name("pulse".into());
        thread.spawn(body).context("cannot start a thread")?;
        let (inlet, outlet) = ring.split();
        Ok(Session {
            socket,
            inlet,
            outbox: Arc::new(Outbox::new(outlet)),
            _alive,
        })
    }

    /// For control messages.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Says that the model is loaded, and executes messages in the order of the ring until the
    /// gateway is gone.
    pub(crate) fn run(
        &mut self,
        engine: &mut Engine,
        host: &Arc<Host>,
        vocabulary: &Arc<Vocabulary>,
        watch: &Watch,
        manager: &mut Manager,
    ) -> anyhow::Result<()> {
        let programs = Arc::new(Programs::new(host.clone(), vocabulary.clone()));
        take_orders(self.socket(), programs.clone())?;
        tell(self.socket(), &Control::Ready(engine.info().clone()))?;
        let result = self.take_turns(engine, &programs, watch, manager);
        // The thread of the orders may have the programs a moment longer.
        programs.end_all();
        result
    }

    fn take_turns(
        &mut self,
        engine: &mut Engine,
        programs: &Programs,
        watch: &Watch,
        manager: &mut Manager,
    ) -> anyhow::Result<()> {
        let outbox = &self.outbox;
        let mut steps = Steps::default();
        while !watch.gone() {
            manager.alive();
            outbox.check()?;
            if steps.finish(engine, outbox)? {
                continue;
            }
            // While a step is under way, its end is watched for, too.
            let nap = match steps.launched.is_empty() {
                true => NAP,
                false => SPIN,
            };
            let Some(message) = self.inlet.recv_timeout(SPIN, nap)? else {
                continue;
            };
            let tensors = || anyhow::Ok(TensorReader::new(self.inlet.input(message.input)?)?);
            let [first, second] = message.args;
            match message.kind {
                OPEN => open(&tensors()?, engine, programs, first, second)?,
                GUIDE => guide(&tensors()?, engine, programs, first)?,
                STEP => steps.launch(&tensors()?, engine, &message)?,
                CLOSE => engine.close(first)?,
                FORGET => programs.forget(first),
                RUN => run(&tensors()?, engine, programs, outbox, message.args)?,
                JOIN => set(&tensors()?, engine, first, Some(programs.join(second)))?,
                END => programs.end(first, outbox),
                LISTEN => outbox.lend(message.output)?,
                KEPT => programs.tell(first, tensors()?.tensor::<u32>(0)?.0.to_vec()),
                kind => bail!("message of unknown kind {kind}"),
            }
        }
        Ok(())
    }

    /// Tells the gateway what went wrong, if something did.
    pub(crate) fn conclude(&self, watch: &Watch, result: anyhow::Result<()>) -> anyhow::Result<()> {
        match result {
            // Whatever failed, it failed because there is nobody left to serve.
            Err(_) if watch.gone() => Ok(()),
            Err(error) => {
                let failed = Control::Failed {
                    message: told(error.as_ref()),
                };
                // The error is also returned; nothing is lost if the gateway no longer listens.
                let _ = tell(self.socket(), &failed);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Closes the connection, whoever else holds the socket.
    pub(crate) fn hang_up(self) {
        // It fails where the other side was faster.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

/// Notices that a gateway hangs up.
pub(crate) struct Watch {
    gone: Arc<AtomicBool>,
    /// Dropped with the watch, which is how its thread learns of that.
    _kept: mpsc::Sender<()>,
}

impl Watch {
    /// Watches from now on. When the gateway has hung up, the process is killed unless the watch
    /// is dropped within `patience`: nobody would end one that hangs.
    pub(crate) fn start(socket: BorrowedFd<'_>, patience: Duration) -> anyhow::Result<Watch> {
        let socket = socket.try_clone_to_owned()?;
        let gone = Arc::new(AtomicBool::new(false));
        let flag = gone.clone();
        let (kept, dropped) = mpsc::channel();
        let body = move || {
            loop {
                let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
                match poll(&mut fds, None) {
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => break,
                    Ok(_) if !fds[0].revents().is_empty() => break,
                    Ok(_) => {}
                }
            }
            flag.store(true, Ordering::Relaxed);
            drop(socket);
            if dropped.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                use rustix::process::{Signal, getpid, kill_process};
                // Not `exit`, which would run libtorch's destructors under a running step.
                let _ = kill_process(getpid(), Signal::KILL);
            }
        };
        let thread = std::thread::Builder::new().name("watch".into());
        thread.spawn(body).context("cannot start a thread")?;
        Ok(Watch { gone, _kept: kept })
    }

    /// Whether it has.
    pub(crate) fn gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

/// Sends a control message.
pub(crate) fn tell(socket: BorrowedFd<'_>, control: &Control) -> anyhow::Result<()> {
    let text = serde_json::to_string(control)?;
    if text.len() <= MAX_CONTROL_BYTES {
        return Ok(socket::send(socket, text.as_bytes())?);
    }
    // Only a message of failure can be this long, by repeating what a file says.
    let message = "the worker failed, with a message that is too long; see its log".into();
    tell(socket, &Control::Failed { message })
}

/// Takes in programs that the gateway sends, until it is gone.
fn take_orders(socket: BorrowedFd<'_>, programs: Arc<Programs>) -> anyhow::Result<()> {
    let socket = socket.try_clone_to_owned()?;
    let body = move || {
        let mut buffer = vec![0; MAX_CONTROL_BYTES];
        // Errors and the end of the connection are the watch's concern.
        while let Ok((len @ 1.., carried)) = socket::recv_with(socket.as_fd(), &mut buffer) {
            match (serde_json::from_slice(&buffer[..len]), carried) {
                (Ok(Order::Program { number, name }), Some(compiled)) => {
                    programs.add(number, &name, compiled);
                }
                // Whoever needs it says that it has not come.
                _ => drop(writeln!(
                    io::stderr(),
                    "an order of the gateway was not understood"
                )),
            }
        }
    };
    let thread = std::thread::Builder::new().name("orders".into());
    thread.spawn(body).context("cannot start a thread")?;
    Ok(())
}

fn open(
    tensors: &TensorReader<'_>,
    engine: &mut Engine,
    programs: &Programs,
    slot: u64,
    program: u64,
) -> anyhow::Result<()> {
    if program == 0 {
        // Whoever was there is over, and gives its place to the next.
        engine.close(slot)?;
        return set(tensors, engine, slot, None);
    }
    let (args, _) = tensors.tensor::<u8>(wire::open::ARGS)?;
    let args = String::from_utf8_lossy(args).into_owned();
    steer(
        tensors,
        engine,
        programs,
        slot,
        Guide::Processor { program, args },
    )
}

fn guide(
    tensors: &TensorReader<'_>,
    engine: &mut Engine,
    programs: &Programs,
    slot: u64,
) -> anyhow::Result<()> {
    let (grammar, _) = tensors.tensor::<u8>(wire::open::ARGS)?;
    let grammar: Grammar = serde_json::from_slice(grammar).context("GUIDE: the grammar")?;
    steer(tensors, engine, programs, slot, Guide::Grammar(grammar))
}

/// Sets the state of a slot that something steers.
fn steer(
    tensors: &TensorReader<'_>,
    engine: &mut Engine,
    programs: &Programs,
    slot: u64,
    guide: Guide,
) -> anyhow::Result<()> {
    engine.close(slot)?;
    let sampling: Sampling = pod(tensors, wire::open::SAMPLING, "sampling parameters")?;
    let (history, _) = tensors.tensor::<i32>(wire::open::HISTORY)?;
    let vocabulary = engine.limits().vocab;
    let prompt = sampling.prompt_len as usize;
    let (prompt, generated) = history
        .split_at_checked(prompt)
        .with_context(|| format!("OPEN: {} tokens, with a prompt of {prompt}", history.len()))?;
    let known = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < vocabulary);
    if let Some(bad) = history.iter().find(|token| !known(token)) {
        bail!("OPEN: token {bad} in a vocabulary of {vocabulary}");
    }
    let end_tokens = sampling.stop_ids.get(..sampling.stop_count as usize);
    let steering = programs.start(Start {
        guide,
        allotment: pod::<Allotment>(tensors, wire::open::ALLOTMENT, "an allotment")?,
        prompt,
        generated,
        vocabulary,
        key: sampling.key,
        end_tokens: end_tokens.unwrap_or_default(),
        min_tokens: sampling.min_tokens,
    });
    set(tensors, engine, slot, Some(steering))
}

/// Sets the state of a slot.
fn set(
    tensors: &TensorReader<'_>,
    engine: &mut Engine,
    slot: u64,
    steering: Option<Steering>,
) -> anyhow::Result<()> {
    let sampling: Sampling = pod(tensors, wire::open::SAMPLING, "sampling parameters")?;
    let (ids, _) = tensors.tensor::<i32>(wire::open::BIAS_IDS)?;
    let (values, _) = tensors.tensor::<f32>(wire::open::BIAS_VALUES)?;
    if ids.len() != values.len() {
        bail!(
            "a slot with {} biased tokens, but {} values for them",
            ids.len(),
            values.len()
        );
    }
    let bias = ids.iter().copied().zip(values.iter().copied());
    let (history, _) = tensors.tensor::<i32>(wire::open::HISTORY)?;
    Ok(engine.open(slot, sampling, bias, history, steering)?)
}

fn run(
    tensors: &TensorReader<'_>,
    engine: &Engine,
    programs: &Programs,
    outbox: &Arc<Outbox>,
    [run, program]: [u64; 2],
) -> anyhow::Result<()> {
    let (request, _) = tensors.tensor::<u8>(wire::run::REQUEST)?;
    let (drawn, _) = tensors.tensor::<u8>(wire::run::DRAWN)?;
    let (seen, _) = tensors.tensor::<u32>(wire::run::SEEN)?;
    let request: Request = serde_json::from_slice(request).context("RUN: the request")?;
    let journal = Journal {
        drawn: serde_json::from_slice(drawn).context("RUN: the journal")?,
        seen: seen.to_vec(),
    };
    let vocabulary = engine.limits().vocab;
    let drawn = journal.drawn.iter().flatten().map(|drawn| drawn.token);
    let mut tokens = request.prompt.iter().copied().chain(drawn);
    if let Some(bad) = tokens.find(|token| *token as usize >= vocabulary) {
        bail!("RUN: token {bad} in a vocabulary of {vocabulary}");
    }
    let answer = Answer {
        run,
        program,
        allotment: pod::<Allotment>(tensors, wire::run::ALLOTMENT, "an allotment")?,
        request,
        journal,
        vocabulary,
        context: engine.limits().max_context,
        hidden_size: engine.hidden_size(),
    };
    programs.answer(answer, outbox);
    Ok(())
}

/// A tensor that holds the bytes of one value.
fn pod<T: AnyBitPattern>(
    tensors: &TensorReader<'_>,
    index: usize,
    what: &str,
) -> anyhow::Result<T> {
    let (bytes, _) = tensors.tensor::<u8>(index)?;
    bytemuck::try_pod_read_unaligned(bytes)
        .map_err(|e| anyhow!("{what} of {} bytes: {e}", bytes.len()))
}

/// Steps that are launched and not answered, the oldest first.
#[derive(Default)]
struct Steps {
    launched: VecDeque<Launched>,
    /// When the last one was finished: none computes while another does.
    finished: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Launched {
    message: Message,
    started: Instant,
    targets: usize,
}

impl Steps {
    fn launch(
        &mut self,
        tensors: &TensorReader<'_>,
        engine: &mut Engine,
        message: &Message,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        let [number, top] = message.args;
        let i32s = |index| tensors.tensor::<i32>(index).map(|(values, _)| values);
        let request = Step {
            slots: i32s(wire::step::SLOTS)?,
            starts: i32s(wire::step::STARTS)?,
            context: i32s(wire::step::CONTEXT)?,
            flags: i32s(wire::step::FLAGS)?,
            index: i32s(wire::step::INDEX)?,
            tokens: i32s(wire::step::TOKENS)?,
            blocks: i32s(wire::step::BLOCKS)?,
            targets: i32s(wire::step::TARGETS)?,
            top: usize::try_from(top).unwrap_or(usize::MAX),
        };
        let targets = request.targets.len();
        engine
            .launch(request)
            .with_context(|| format!("step {number}"))?;
        self.launched.push_back(Launched {
            message: *message,
            started,
            targets,
        });
        Ok(())
    }

    /// Answers the oldest one, if there is one and it is over. Whether that was so.
    fn finish(&mut self, engine: &mut Engine, outbox: &Outbox) -> anyhow::Result<bool> {
        let Some(launched) = self.launched.front() else {
            return Ok(false);
        };
        let Launched {
            message,
            started,
            targets,
        } = *launched;
        let [number, top] = message.args;
        let step = || format!("step {number}");
        if !engine.has_finished().with_context(step)? {
            return Ok(false);
        }
        self.launched.pop_front();
        let outcome = engine.finish().with_context(step)?;
        let now = Instant::now();
        let began = self.finished.map_or(started, |last| last.max(started));
        self.finished = Some(now);
        let took = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
        let done = Message {
            kind: STEP_DONE,
            input: message.input,
            output: message.output,
            args: [number, took],
        };
        outbox.answer(&done, |into| {
            write(outcome, targets, top as usize, into)
                .with_context(|| format!("results of step {number}"))
        })?;
        Ok(true)
    }
}

fn write(out: &Outcome, targets: usize, top: usize, into: &mut [u8]) -> Result<(), TensorError> {
    let rows = out.tokens.len();
    let mut tensors = TensorWriter::new(into, wire::result::COUNT)?;
    tensors.tensor::<i32>(&[rows])?.copy_from_slice(&out.tokens);
    tensors
        .tensor::<f32>(&[rows])?
        .copy_from_slice(&out.logprobs);
    tensors
        .tensor::<i32>(&[rows, top])?
        .copy_from_slice(&out.top_ids);
    tensors
        .tensor::<f32>(&[rows, top])?
        .copy_from_slice(&out.top_logprobs);
    tensors
        .tensor::<f32>(&[targets])?
        .copy_from_slice(&out.prompt_logprobs);
    tensors
        .tensor::<i32>(&[targets, top])?
        .copy_from_slice(&out.prompt_top_ids);
    tensors
        .tensor::<f32>(&[targets, top])?
        .copy_from_slice(&out.prompt_top_logprobs);
    let note = out.notes.len().checked_div(rows).unwrap_or(0);
    tensors
        .tensor::<u8>(&[rows, note])?
        .copy_from_slice(&out.notes);
    tensors.finish();
    Ok(())
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
