//! A device that fails under a gateway, over the memory and the socket that they would have as processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use realm_cuda_emulator::{Asked, Emulator, Watched};
use realm_shared::wire::step::{INPUT_SAMPLED, SAMPLE};
use realm_shm::tensor::{DType, required};
use realm_shm::{GatewayEnd, Geometry, Owner, SlotRef};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde_json::json;

use super::*;
use crate::config;
use crate::selfcheck::random;

/// Far longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Loads a small model, and lets the device fail from the first request on that `fails` says.
fn engine(fails: fn(Asked) -> bool) -> Engine {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 64,
    });
    let folder = tempfile::tempdir().expect("a directory");
    random::write(folder.path(), &config, config::DType::F32, 5).expect("written");
    let loaded = Arc::new(AtomicBool::new(false));
    let failed = AtomicBool::new(false);
    let armed = loaded.clone();
    let watch = move |asked| {
        let fails = armed.load(Ordering::Relaxed) && fails(asked);
        match failed.fetch_or(fails, Ordering::Relaxed) || fails {
            false => Ok(()),
            true => Err("it fell off the bus".to_string()),
        }
    };
    let options = Options {
        threads: Some(1),
        kv_memory: Some(1 << 20),
        max_sequences: Some(2),
        ..Options::default()
    };
    let model = ModelSource::Directory(folder.path().to_owned());
    let device = Watched::new(Emulator::new(), watch);
    let engine = Engine::load_on(&model, &options, device, "cuda:0", &mut |_, _| {});
    loaded.store(true, Ordering::Relaxed);
    engine.expect("loads")
}

/// The loop as `serve` runs it, and then what a worker that listens does between two gateways: their errors.
fn serve_on(mut engine: Engine, socket: OwnedFd) -> anyhow::Result<[Option<String>; 2]> {
    let host = Arc::new(Host::new(Pool {
        instances: 1,
        ..Pool::default()
    }));
    let vocabulary = Arc::new(Vocabulary::of(&ModelSource::Embedded));
    let mut session = Session::greet(socket)?;
    let watch = Watch::start(session.socket(), PATIENCE)?;
    let manager = &mut Manager::absent();
    let result = session.run(&mut engine, &host, &vocabulary, &watch, manager);
    let served = session.conclude(&watch, result);
    let error = served.err().map(|error| told(error.as_ref()));
    Ok([error, engine.reset().err().map(|error| error.to_string())])
}

/// Opens the first slot.
fn open_slot(ring: &mut GatewayEnd) {
    let sampling = Sampling::default();
    let bytes = bytemuck::bytes_of(&sampling);
    let none = |dtype| (dtype, 0);
    let sizes = [
        (DType::U8, bytes.len()),
        none(DType::I32),
        none(DType::F32),
        none(DType::I32),
    ];
    let input = ring.alloc_input(required(&sizes), Owner::GATEWAY);
    let input = input.expect("room");
    let slab = ring.input_mut(input).expect("ours");
    let mut tensors = TensorWriter::new(slab, sizes.len()).expect("room");
    let into = tensors.tensor(&[bytes.len()]).expect("room");
    into.copy_from_slice(bytes);
    tensors.tensor::<i32>(&[0]).expect("room");
    tensors.tensor::<f32>(&[0]).expect("room");
    tensors.tensor::<i32>(&[0]).expect("room");
    tensors.finish();
    submit(ring, OPEN, [0, 0], input, SlotRef::NONE);
}

/// Submits a step of one row.
fn step(ring: &mut GatewayEnd, number: u64, flags: i32, context: i32, tokens: &[i32]) {
    let (starts, index) = ([0, tokens.len() as i32], [number as i32 - 1]);
    let parts: [&[i32]; 8] = [
        &[0],
        &starts,
        &[context],
        &[flags],
        &index,
        tokens,
        &[0],
        &[],
    ];
    let sizes = parts.map(|part| (DType::I32, part.len()));
    let input = ring.alloc_input(required(&sizes), Owner::GATEWAY);
    let input = input.expect("room");
    let slab = ring.input_mut(input).expect("ours");
    let mut tensors = TensorWriter::new(slab, parts.len()).expect("room");
    for part in parts {
        let into = tensors.tensor(&[part.len()]).expect("room");
        into.copy_from_slice(part);
    }
    tensors.finish();
    let output = ring.alloc_output(4096, Owner::GATEWAY).expect("room");
    submit(ring, STEP, [number, 0], input, output);
}

fn submit(ring: &mut GatewayEnd, kind: u16, args: [u64; 2], input: SlotRef, output: SlotRef) {
    let message = Message {
        kind,
        input,
        output,
        args,
    };
    ring.submit(&message).expect("room");
}

/// Submits a prompt of three tokens, and a token after it. What the gateway was told at the end, how many steps were
/// answered until then, and what the worker's loop returned.
fn gateway(ours: &OwnedFd, worker: thread::JoinHandle<anyhow::Result<[Option<String>; 2]>>) -> End {
    let ring = GatewayEnd::create(7, &Geometry::default(), ABI_VERSION);
    let mut ring = ring.expect("memory");
    ring.offer(ours.as_fd(), PATIENCE).expect("it answers");
    set_socket_timeout(ours, Timeout::Recv, Some(PATIENCE)).expect("a socket");
    open_slot(&mut ring);
    step(&mut ring, 1, SAMPLE, 0, &[5, 6, 7]);
    step(&mut ring, 2, SAMPLE | INPUT_SAMPLED, 3, &[-1]);
    let mut bytes = vec![0; MAX_CONTROL_BYTES];
    let told = loop {
        let len = socket::recv(ours.as_fd(), &mut bytes).expect("a message in time");
        match serde_json::from_slice(&bytes[..len]).expect("a control message") {
            Control::Failed { message } => break message,
            Control::Ready(_) | Control::Loading { .. } => {}
            Control::Crashed { .. } => panic!("nothing crashes"),
        }
    };
    let mut answered = 0;
    while let Some(message) = ring.poll().expect("a sound worker") {
        answered += 1;
        assert_eq!((message.kind, message.args[0]), (STEP_DONE, answered));
    }
    let [served, reset] = worker.join().expect("no panic").expect("shakes hands");
    End {
        told,
        answered,
        served: served.expect("the loop ends with an error"),
        reset: reset.expect("the device stays as it is"),
    }
}

struct End {
    told: String,
    answered: u64,
    served: String,
    reset: String,
}

#[test]
fn a_device_that_fails_ends_the_worker_with_a_sentence() {
    type Fails = fn(Asked) -> bool;
    let cases: [(Fails, u64, &str); 6] = [
        (
            |asked| matches!(asked, Asked::Write(_)),
            0,
            "step 1: the device failed in a forward pass: writing: it fell off the bus",
        ),
        (
            |asked| matches!(asked, Asked::Launch(kernel) if kernel.name.contains("silu")),
            0,
            "step 1: the device failed in a forward pass: cannot run activation/f32/silu_multiply: \
             it fell off the bus",
        ),
        (
            |asked| asked == Asked::Multiply,
            0,
            "step 1: the device failed in a forward pass: multiplying: it fell off the bus",
        ),
        (
            |asked| matches!(asked, Asked::Send(_)),
            0,
            "step 1: the device failed in a forward pass: sending: it fell off the bus",
        ),
        (
            |asked| asked == Asked::HasLanded,
            0,
            "step 1: the device failed in a forward pass: landing: it fell off the bus",
        ),
        (
            |asked| asked == Asked::Replay,
            1,
            "step 2: the device failed in a forward pass: replaying: it fell off the bus",
        ),
    ];
    for (fails, answered, error) in cases {
        let (ours, theirs) = socket::pair().expect("sockets");
        let engine = engine(fails);
        let worker = thread::spawn(move || serve_on(engine, theirs));
        let end = gateway(&ours, worker);
        assert_eq!(end.served, error);
        assert_eq!(end.told, error);
        assert_eq!(end.answered, answered, "{error}");
        // So a worker that listens is not kept for the next gateway.
        assert!(end.reset.contains("it fell off the bus"), "{}", end.reset);
    }
}
