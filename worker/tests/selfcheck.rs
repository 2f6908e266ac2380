//! That the self-check passes on a device that computes what it should, and not on others.

// Passes launches on.
#![allow(unsafe_code)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use realm_cuda::check::Scale;
use realm_cuda::compile::Capability;
use realm_cuda::{Device, DeviceError, Launch, LaunchError, Launcher, Memory, Product};
use realm_cuda_emulator::{Emulator, Graph};
use realm_worker::selfcheck::{Gateway, Streams, WITHIN, run};
use serde_json::json;

#[test]
fn the_emulator_passes_and_all_of_it_is_measured() {
    let open = || Ok(Emulator::new());
    let report = run(&open, "emulator", None, Scale::Small, WITHIN).expect("opened");
    assert!(report.passed, "{report}");
    for part in ["kernels", "models"] {
        let of_part = report.checks.iter().filter(|check| check.part == part);
        let least = of_part.map(|check| check.compared).min();
        assert!(least.is_some_and(|n| n > 0), "{report}");
    }
    let rows = &report.bench.rows;
    assert!(rows.iter().all(|row| row.value.is_finite()), "{report}");
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    // Three of the device, ten of a model and its three numbers of streams, seven of one in fp8 and two.
    assert_eq!(names.len(), 3 + 10 + 7, "{names:?}");
    assert_eq!(names[2], "product of matrices of 64, fp8");
    assert_eq!(names[3], "prefill, 90 tokens a step");
    assert_eq!(names[12], "decode, 5 at context 40: idle, or drawing");
    assert_eq!(names[13], "fp8, prefill, 90 tokens a step");
    assert_eq!(names[19], "fp8, decode, 2 at context 40: idle, or drawing");
    assert_eq!(
        report.bench.left_out,
        ["decode, 2 from context 16: through HTTP"]
    );
}

/// On the CPU, where the gateway can be had that a GPU's self-check runs.
#[test]
fn random_weights_are_served_and_measured_through_http() {
    let worker = PathBuf::from(env!("CARGO_BIN_EXE_realm-worker"));
    let gateway = Gateway {
        program: worker.with_file_name("realm"),
        worker,
        device: "cpu".into(),
    };
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 1000, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 4096,
    });
    let streams = Streams {
        count: 3,
        prompt: 16,
        output: 30,
    };
    let rate = gateway.decode_rate(&config, streams).expect("served");
    assert!(rate.is_finite() && rate > 0.0, "{rate}");
    let long = Streams {
        prompt: 5000,
        ..streams
    };
    let error = gateway.decode_rate(&config, long).expect_err("too long");
    assert!(error.to_string().contains("4096 tokens"), "{error}");
    let gateway = Gateway {
        device: "cuda:4096".into(),
        ..gateway
    };
    let error = gateway
        .decode_rate(&config, streams)
        .expect_err("no such GPU");
    assert!(error.to_string().contains("bench failed: "), "{error}");
}

#[test]
fn a_device_that_multiplies_no_fp8_is_not_asked_to() {
    let open = || Ok(Emulator::new().with_capability(Capability(80)));
    let report = run(&open, "emulator", None, Scale::Small, Duration::ZERO).expect("opened");
    assert!(report.passed, "{report}");
    let names = report.checks.iter().map(|check| &check.name);
    let names = names.chain(report.bench.rows.iter().map(|row| &row.name));
    let mut fp8 = names.filter(|name| name.contains("fp8"));
    assert_eq!(fp8.next(), None, "{report}");
    assert_eq!(
        report.bench.left_out,
        [
            "prefill and decode",
            "decode, 2 from context 16: through HTTP"
        ]
    );
}

/// A device that forgets biases.
struct Forgetful(Emulator);

impl Launcher for Forgetful {
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        // SAFETY: the caller's word.
        unsafe { self.0.launch(launch) }
    }
}

impl Device for Forgetful {
    type Graph = Graph;
    type Landing = Vec<u8>;

    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        self.0.allocate(bytes)
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.0.memory()
    }

    fn write(&self, to: Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.0.write(to, from)
    }

    fn read(&self, from: Memory, into: &mut [u8]) -> Result<(), DeviceError> {
        self.0.read(from, into)
    }

    fn landing(&self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        self.0.landing(bytes)
    }

    fn send(&self, from: Memory, landing: &mut Vec<u8>, at: usize) -> Result<(), DeviceError> {
        self.0.send(from, landing, at)
    }

    fn has_landed(&self, landing: &Vec<u8>) -> Result<bool, DeviceError> {
        self.0.has_landed(landing)
    }

    fn landed<'a>(&self, landing: &'a mut Vec<u8>) -> Result<&'a [u8], DeviceError> {
        self.0.landed(landing)
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.0.multiply(&Product {
            bias: None,
            ..*product
        })
    }

    fn capability(&self) -> Capability {
        self.0.capability()
    }

    fn multiprocessors(&self) -> usize {
        self.0.multiprocessors()
    }

    fn capture(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        self.0.capture(work)
    }

    fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.0.replay(graph)
    }
}

#[test]
fn what_computes_something_else_is_found() {
    let open = || Ok(Forgetful(Emulator::new()));
    let report = run(&open, "forgetful", None, Scale::Small, Duration::ZERO).expect("opened");
    assert!(!report.passed);
    let failed = report.checks.iter().filter(|check| check.fault.is_some());
    let failed: Vec<&str> = failed.map(|check| check.name.as_str()).collect();
    let whats = [
        "logits in f32",
        "logits in bf16",
        "logits in fp8",
        "64 tokens in f32",
    ];
    let qwen2 = whats.map(|what| format!("qwen2, biases, {what}"));
    let kernels = ["product", "scaled_product"].map(str::to_owned);
    assert_eq!(failed, [&kernels[..], &qwen2].concat(), "{report}");
}

#[test]
fn a_machine_without_that_gpu_is_told_in_a_sentence() {
    // No machine has as many.
    let output = Command::new(env!("CARGO_BIN_EXE_realm-worker"))
        .args(["selfcheck", "--device", "cuda:63", "--json"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let told = said.contains("no driver") || said.contains("no device 63");
    assert!(told, "{said}");
    assert!(output.stdout.is_empty());
}
