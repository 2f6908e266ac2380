//! The process itself, driven over shared memory as a gateway drives it.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use realm_shared::ABI_VERSION;
use realm_shared::control::{Control, MAX_CONTROL_BYTES, ModelInfo, Order};
use realm_shared::run::{self, Dials, Finish, Request, Said, Tools, What};
use realm_shared::wire::step::{INPUT_SAMPLED, PARKED, SAMPLE, STEERED};
use realm_shared::wire::{
    Allotment, END, HEARD, JOIN, KEPT, LISTEN, LISTEN_BYTES, OPEN, RUN, STEP, STEP_DONE, Sampling,
    result,
};
use realm_shm::tensor::{DType, Scalar, TensorReader, TensorWriter, required};
use realm_shm::{AlignedBuf, GatewayEnd, Geometry, Message, Owner, SlotRef, socket};
use realm_worker::tenant;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

/// Far longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker and the one gateway that it was started by.
struct Worker {
    child: Child,
    gateway: Gateway,
}

/// What a gateway has of a worker.
struct Gateway {
    socket: Option<OwnedFd>,
    ring: GatewayEnd,
    /// What programs said.
    said: Vec<Said>,
}

/// A tensor of a message.
enum Part<'a> {
    Bytes(&'a [u8]),
    Ints(&'a [i32]),
    Words(&'a [u32]),
    Floats(&'a [f32]),
}

impl Deref for Worker {
    type Target = Gateway;
    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

impl DerefMut for Worker {
    fn deref_mut(&mut self) -> &mut Gateway {
        &mut self.gateway
    }
}

impl Worker {
    fn start(model: &str, more: &[&str]) -> Worker {
        Worker::start_with(model, more, &[])
    }

    /// Starts one whose environment holds nothing but these variables.
    fn start_with(model: &str, more: &[&str], environment: &[(&str, &str)]) -> Worker {
        let (ours, theirs) = socket::pair().expect("sockets");
        let child = Command::new(env!("CARGO_BIN_EXE_realm-worker"))
            .args(["serve", "--fd", "0", "--model", model, "--threads", "1"])
            .args(more)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        Worker {
            child,
            gateway: Gateway::greet(ours),
        }
    }

    /// Waits for the process to end; its exit code and what it wrote to its log.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().expect("ends");
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut log).expect("text");
        (status.code(), log)
    }
}

/// A worker that was started by nobody in particular. Ends with the value.
struct Listening(Child);

impl Listening {
    fn start(path: &Path) -> Listening {
        Listening::start_with(path, &[])
    }

    /// Starts one whose environment holds nothing but these variables.
    fn start_with(path: &Path, environment: &[(&str, &str)]) -> Listening {
        let child = Command::new(env!("CARGO_BIN_EXE_realm-worker"))
            .args(["serve", "--model", "embedded", "--threads", "1"])
            .args(["--kv-memory", "4194304", "--grace", "600", "--socket"])
            .arg(path)
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .expect("starts");
        Listening(child)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Gateway {
    /// Ends as a process does that is killed. To close the socket is not enough: a child that
    /// another test starts at this moment has it too, until it executes its program.
    fn vanish(self) {
        let socket = self.socket.as_ref().expect("open");
        rustix::net::shutdown(socket, rustix::net::Shutdown::Both).expect("connected");
    }

    fn greet(socket: OwnedFd) -> Gateway {
        let ring = GatewayEnd::create(7, &Geometry::default(), ABI_VERSION).expect("memory");
        ring.offer(socket.as_fd(), PATIENCE)
            .expect("the worker answers");
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).expect("a socket");
        Gateway {
            socket: Some(socket),
            ring,
            said: Vec::new(),
        }
    }

    /// Attaches to a worker that listens, or is about to.
    fn attach(path: &Path) -> Gateway {
        let address = SocketAddrUnix::new(path).expect("short");
        let start = Instant::now();
        loop {
            let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
            let socket = rustix::net::socket(family, kind, None).expect("a socket");
            if rustix::net::connect(&socket, &address).is_ok() {
                return Gateway::greet(socket);
            }
            assert!(start.elapsed() < PATIENCE, "nobody listens");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn control(&self) -> Control {
        let mut bytes = [0; MAX_CONTROL_BYTES];
        let socket = self.socket.as_ref().expect("open");
        let len = socket::recv(socket.as_fd(), &mut bytes).expect("a message");
        assert!(len > 0, "the worker hung up");
        serde_json::from_slice(&bytes[..len]).expect("a control message")
    }

    fn ready(&self) -> ModelInfo {
        let mut seen = 0;
        loop {
            match self.control() {
                Control::Loading { done, total } => {
                    assert!(seen <= done && done <= total);
                    seen = done;
                }
                Control::Ready(info) => return info,
                Control::Failed { message } => panic!("{message}"),
                Control::Crashed { how } => panic!("{how}"),
            }
        }
    }

    fn failure(&self) -> String {
        loop {
            match self.control() {
                Control::Failed { message } => return message,
                Control::Crashed { how } => panic!("{how}"),
                Control::Ready(_) | Control::Loading { .. } => {}
            }
        }
    }

    fn open(&mut self, slot: u64, sampling: Sampling) -> SlotRef {
        self.open_as(OPEN, [slot, 0], sampling)
    }

    fn open_as(&mut self, kind: u16, args: [u64; 2], sampling: Sampling) -> SlotRef {
        use Part::{Bytes, Floats, Ints};
        let sampling = Bytes(bytemuck::bytes_of(&sampling));
        self.submit(kind, args, &[sampling, Ints(&[]), Floats(&[]), Ints(&[])])
    }

    /// Submits a message that has no answer of its own.
    fn submit(&mut self, kind: u16, args: [u64; 2], parts: &[Part<'_>]) -> SlotRef {
        let sizes = parts.iter().map(|part| match part {
            Part::Bytes(values) => (DType::U8, values.len()),
            Part::Ints(values) => (DType::I32, values.len()),
            Part::Words(values) => (DType::U32, values.len()),
            Part::Floats(values) => (DType::F32, values.len()),
        });
        let bytes = required(&sizes.collect::<Vec<_>>());
        let input = self.ring.alloc_input(bytes, Owner::GATEWAY).expect("room");
        let slab = self.ring.input_mut(input).expect("ours");
        let mut tensors = TensorWriter::new(slab, parts.len()).expect("room");
        for part in parts {
            match part {
                Part::Bytes(values) => copy(&mut tensors, values),
                Part::Ints(values) => copy(&mut tensors, values),
                Part::Words(values) => copy(&mut tensors, values),
                Part::Floats(values) => copy(&mut tensors, values),
            }
        }
        tensors.finish();
        let message = Message {
            kind,
            input,
            output: SlotRef::NONE,
            args,
        };
        self.ring.submit(&message).expect("room");
        input
    }

    /// Sends a program, compiled here.
    fn send_program(&self, number: u64, name: &str) {
        let folder = std::env::var("REALM_PROGRAMS");
        let folder = folder.expect("REALM_PROGRAMS is set: run `cargo xtask programs` first");
        let component = std::fs::read(Path::new(&folder).join(name).with_extension("wasm"));
        let compiled = tenant::compile(&component.expect("there")).expect("compiles");
        assert_eq!(compiled.kind, tenant::Kind::Program);
        let code = memfd_create("code", MemfdFlags::CLOEXEC).expect("a memfd");
        let mut file = File::from(code);
        file.write_all(&compiled.code).expect("written");
        let name = name.to_owned();
        let order = serde_json::to_vec(&Order::Program { number, name }).expect("JSON");
        let socket = self.socket.as_ref().expect("open");
        socket::send_with(socket.as_fd(), &order, file.as_fd()).expect("sent");
    }

    /// Lends a slot for what programs say.
    fn listen(&mut self) {
        let output = self.ring.alloc_output(LISTEN_BYTES, Owner::GATEWAY);
        let message = Message {
            kind: LISTEN,
            input: SlotRef::NONE,
            output: output.expect("room"),
            args: [0, 0],
        };
        self.ring.submit(&message).expect("room");
    }

    /// The worker's next message, if there is one now. What programs say is put aside.
    fn poll(&mut self) -> Option<Message> {
        let message = self.ring.poll().expect("a sound worker")?;
        if message.kind != HEARD {
            return Some(message);
        }
        let mut copy = AlignedBuf::new();
        let len = message.args[0] as usize;
        let copied = self.ring.copy_output(message.output, len, &mut copy);
        copied.expect("ours");
        let said: Vec<Said> = serde_json::from_slice(&copy).expect("JSON");
        self.said.extend(said);
        self.ring.free_output(message.output).expect("ours");
        self.listen();
        None
    }

    /// Submits a step of one row.
    fn step(&mut self, number: u64, flags: i32, context: i32, index: i32, tokens: &[i32]) {
        let count = tokens.len();
        let blocks: Vec<i32> = (0..8).collect();
        let starts = [0, count as i32];
        let parts: [&[i32]; 8] = [
            &[0],
            &starts,
            &[context],
            &[flags],
            &[index],
            tokens,
            &blocks,
            &[],
        ];
        let sizes: Vec<_> = parts.iter().map(|p| (DType::I32, p.len())).collect();
        let input = self
            .ring
            .alloc_input(required(&sizes), Owner::GATEWAY)
            .expect("room");
        let output = self.ring.alloc_output(4096, Owner::GATEWAY).expect("room");
        let slab = self.ring.input_mut(input).expect("ours");
        let mut tensors = TensorWriter::new(slab, parts.len()).expect("room");
        for part in parts {
            tensors
                .tensor(&[part.len()])
                .expect("room")
                .copy_from_slice(part);
        }
        tensors.finish();
        let message = Message {
            kind: STEP,
            input,
            output,
            args: [number, 2],
        };
        self.ring.submit(&message).expect("room");
    }

    /// Waits for the next step to be done; its number, token, and log-probabilities.
    fn done(&mut self) -> (u64, i32, f32, Vec<f32>) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no answer");
            let Some(message) = self.poll() else {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            };
            assert_eq!(message.kind, STEP_DONE);
            let mut copy = AlignedBuf::new();
            let len = message.output.len as usize;
            self.ring
                .copy_output(message.output, len, &mut copy)
                .expect("ours");
            let tensors = TensorReader::new(&copy).expect("tensors");
            assert_eq!(tensors.count(), result::COUNT);
            let (tokens, _) = tensors.tensor::<i32>(result::TOKENS).expect("there");
            let (logprobs, _) = tensors.tensor::<f32>(result::LOGPROBS).expect("there");
            let (top, dims) = tensors.tensor::<f32>(result::TOP_LOGPROBS).expect("there");
            assert_eq!(dims, [1, 2]);
            let answer = (message.args[0], tokens[0], logprobs[0], top.to_vec());
            self.ring.free_input(message.input).expect("ours");
            self.ring.free_output(message.output).expect("ours");
            return answer;
        }
    }
}

fn copy<T: Scalar>(tensors: &mut TensorWriter<'_>, values: &[T]) {
    let into = tensors.tensor::<T>(&[values.len()]).expect("room");
    into.copy_from_slice(values);
}

fn sampling(temperature: f32) -> Sampling {
    Sampling {
        key: 11,
        temperature,
        top_logprobs: 2,
        ..Sampling::default()
    }
}

#[test]
fn steps_are_answered_in_order_and_the_worker_ends_with_its_gateway() {
    let mut worker = Worker::start("embedded", &["--name", "tiny", "--kv-memory", "4194304"]);
    let info = worker.ready();
    assert_eq!(
        (info.architecture.as_str(), info.dtype.as_str()),
        ("LlamaForCausalLM", "f32")
    );
    assert!(info.block_count > 0 && info.max_context >= 128 && info.threads == 1);
    let prompt = [5, 6, 7, 8, 9, 10, 11];
    let mut runs = Vec::new();
    for _ in 0..2 {
        // Two steps are in flight: the second takes the token that the first draws.
        let opened = worker.open(0, sampling(1.0));
        worker.step(1, SAMPLE, 0, 0, &prompt);
        worker.step(2, SAMPLE | INPUT_SAMPLED, 7, 1, &[-1]);
        let answers = [worker.done(), worker.done()];
        worker.ring.free_input(opened).expect("ours");
        for (i, (number, token, logprob, top)) in answers.iter().enumerate() {
            assert_eq!(*number, i as u64 + 1);
            assert!((0..info.vocab_size as i32).contains(token));
            assert!(*logprob < 0.0 && top[0] >= top[1] && top[0] >= *logprob);
        }
        runs.push(answers);
    }
    assert_eq!(
        runs[0], runs[1],
        "a sequence that is opened again is replayed"
    );
    assert!(worker.ring.heartbeat() > 0);
    worker.socket = None;
    let (code, log) = worker.end();
    assert_eq!((code, log.as_str()), (Some(0), ""));
}

/// A program's answer, from `RUN` to the last thing that it says. It has looked for one sequence in an
/// earlier life, and looks for another one in this.
#[test]
fn a_program_answers_a_request() {
    let mut worker = Worker::start("embedded", &["--kv-memory", "4194304"]);
    worker.ready();
    worker.send_program(3, "program-script");
    worker.listen();
    let request = Request {
        messages: Vec::new(),
        prompt: vec![5, 6, 7],
        args: r#"[{"reopen": "a"}, {"reopen": "b"}, {"length": 0}, {"new": {"alternatives": 2}},
            {"ask": 1}, {"take": 1}, {"ask": 1}, {"take": 1}]"#
            .into(),
        dials: Dials {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
        },
        max_tokens: 9,
        budget: 9,
        key: 11,
        end_tokens: Vec::new(),
        context: 100,
        tools: Tools::default(),
    };
    let request = serde_json::to_vec(&request).expect("JSON");
    let allotment = Allotment::default();
    let parts = [
        Part::Bytes(bytemuck::bytes_of(&allotment)),
        Part::Bytes(&request),
        Part::Bytes(b"[]"),
        // It found none.
        Part::Words(&[0]),
    ];
    worker.submit(RUN, [8, 3], &parts);
    let start = Instant::now();
    let (mut tokens, mut drawn, mut flags) = (Vec::new(), 0, SAMPLE | STEERED);
    let (mut text, mut expected) = (String::new(), String::new());
    let mut finished = false;
    while !finished {
        assert!(start.elapsed() < PATIENCE, "no end");
        assert!(worker.poll().is_none(), "nothing is due");
        for said in std::mem::take(&mut worker.said) {
            assert_eq!(said.run, 8);
            match said.what {
                What::Open(open) => {
                    worker.open_as(JOIN, [0, open.lease], sampling(0.0));
                    tokens = open.prompt.iter().map(|token| *token as i32).collect();
                }
                What::Reopen(name) => {
                    assert_eq!(name, "b");
                    worker.submit(KEPT, [8, 0], &[Part::Words(&[5, 6, 7, 8])]);
                }
                What::Emit(run::Part::Text(more)) => text += &more,
                What::Finished(Finish::Stop) => finished = true,
                other => panic!("{other:?}"),
            }
        }
        if tokens.is_empty() || finished {
            continue;
        }
        let input = if flags & PARKED == 0 {
            &tokens[..]
        } else {
            &[]
        };
        worker.step(1, flags, 0, drawn, input);
        let (_, token, logprob, top) = worker.done();
        flags = SAMPLE | STEERED;
        match token {
            result::LATE => flags |= PARKED,
            result::STOPPED => tokens.clear(),
            token => {
                let start = format!("[none](4) {token}@{logprob}[({token}, {:?})", top[0]);
                expected = if drawn == 0 { start } else { expected };
                tokens.push(token);
                drawn += 1;
            }
        }
    }
    assert_eq!(drawn, 2);
    assert!(text.starts_with(&expected), "{text} is not {expected}");
    worker.submit(END, [8, 0], &[]);
    worker.socket = None;
    assert_eq!(worker.end(), (Some(0), String::new()));
}

#[test]
fn an_impossible_step_ends_the_worker_in_words() {
    let mut worker = Worker::start("embedded", &["--kv-memory", "4194304"]);
    worker.ready();
    worker.open(0, sampling(0.0));
    worker.step(9, SAMPLE, 0, 0, &[1, 1 << 30]);
    let message = worker.failure();
    assert!(
        message.contains("step 9: step, row 0: token 1073741824"),
        "{message}"
    );
    let (code, log) = worker.end();
    assert_eq!(code, Some(1));
    assert!(log.contains(&message), "{log}");
}

#[cfg(debug_assertions)]
#[test]
fn a_debug_build_crashes_on_the_token_it_is_told() {
    let kv = ["--kv-memory", "4194304"];
    let mut worker = Worker::start_with("embedded", &kv, &[("REALM_TEST_CRASH_TOKEN", "77")]);
    worker.ready();
    worker.open(0, sampling(0.0));
    worker.step(1, SAMPLE, 0, 0, &[76, 78]);
    assert_eq!(worker.done().0, 1);
    worker.step(2, SAMPLE, 0, 0, &[76, 77]);
    let (code, log) = worker.end();
    assert_eq!((code, log.as_str()), (None, ""), "no exit, but a signal");
}

#[cfg(debug_assertions)]
#[test]
fn a_gateway_that_attached_hears_of_a_crash() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("worker.sock");
    let mut worker = Listening::start_with(&path, &[("REALM_TEST_CRASH_TOKEN", "77")]);
    let mut gateway = Gateway::attach(&path);
    gateway.ready();
    gateway.open(0, sampling(0.0));
    gateway.step(1, SAMPLE, 0, 0, &[76, 77]);
    let Control::Crashed { how } = gateway.control() else {
        panic!("it says something else");
    };
    assert!(how.contains("SIGABRT"), "{how}");
    let status = worker.0.wait().expect("ends");
    assert_eq!(status.code(), None, "no exit, but a signal");
}

#[test]
fn gateways_that_attach_one_after_the_other_find_nothing_of_each_other() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("worker.sock");
    let _worker = Listening::start(&path);
    let mut first = Gateway::attach(&path);
    let info = first.ready();
    first.open(0, sampling(1.0));
    first.step(1, SAMPLE, 0, 0, &[5, 6, 7]);
    assert_eq!(first.done().0, 1);
    // One more is told that there is one; it would find its place by trying again.
    let message = Gateway::attach(&path).failure();
    assert!(
        message.contains("attached to this worker already"),
        "{message}"
    );

    // The first goes while a step of its own is on the way.
    first.step(2, SAMPLE | INPUT_SAMPLED, 3, 1, &[-1]);
    first.vanish();
    let mut second = Gateway::attach(&path);
    assert_eq!(second.ready(), info);
    // Slot 0 is not open for it. Its mistake costs it its connection, and nobody else anything.
    second.step(1, SAMPLE, 0, 0, &[5, 6, 7]);
    let message = second.failure();
    assert!(message.contains("slot 0 was never opened"), "{message}");
    second.vanish();
    let mut third = Gateway::attach(&path);
    third.ready();
    third.open(0, sampling(1.0));
    third.step(1, SAMPLE, 0, 0, &[5, 6, 7]);
    assert_eq!(third.done().0, 1);
}

#[test]
fn a_model_that_cannot_be_loaded_is_explained() {
    let empty = tempfile::tempdir().expect("a directory");
    let worker = Worker::start(empty.path().to_str().expect("text"), &[]);
    let message = worker.failure();
    let path = Path::new(empty.path()).join("config.json");
    assert!(
        message.contains(&format!("cannot read {}", path.display())),
        "{message}"
    );
    assert_eq!(worker.end().0, Some(1));
}

#[test]
fn a_device_that_is_not_there_is_explained() {
    // No machine has as many.
    let worker = Worker::start("embedded", &["--device", "cuda:63"]);
    let message = worker.failure();
    let why = message
        .strip_prefix("cannot compute on cuda:63: ")
        .expect(&message);
    assert!(
        why.contains("libcuda.so.1 cannot be loaded") || why.contains("no device 63"),
        "{why}"
    );
    assert_eq!(worker.end().0, Some(1));
}

#[test]
fn devices_are_listed_or_what_they_lack() {
    let info = |args: &[&str]| {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_realm-worker"));
        let output = worker.arg("info").args(args).output().expect("runs");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text")
    };
    let value: serde_json::Value = serde_json::from_str(&info(&["--json"])).expect("JSON");
    let devices = value["devices"].as_array().expect("a list");
    assert_eq!(devices[0], "cpu");
    let text = info(&[]);
    match &value["gpus"] {
        serde_json::Value::Object(gpus) => {
            let mut listed: Vec<&str> = devices[1..].iter().filter_map(|d| d.as_str()).collect();
            listed.sort_unstable();
            let known: Vec<&str> = gpus.keys().map(String::as_str).collect();
            assert_eq!(listed, known);
            assert!(gpus.values().all(|gpu| gpu["memory"].is_u64()), "{value}");
        }
        why => {
            assert_eq!(devices.len(), 1, "{value}");
            let why = why.as_str().expect("a list, or words");
            assert!(text.contains(why), "{text}");
        }
    }
}
