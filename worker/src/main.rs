//! `realm-worker`: the command line of the worker.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use realm_cuda::check::Scale;
use realm_cuda::driver::Found;
use realm_shared::causes::told;
use realm_shared::control::{GPU_MEMORY_FRACTION, INSTANCES, PROGRAM_STACK};
use realm_shared::cpus::Cpus;
use realm_shared::device::Device;
use realm_worker::compilers::{self, Limits};
use realm_worker::config::{DType, Quantization};
use realm_worker::cuda;
use realm_worker::engine::{ModelSource, Options};
use realm_worker::kernels::cores;
use realm_worker::selfcheck::Gateway;
use realm_worker::serve::{self, Setup, serve};
use realm_worker::tenant::Pool;
use realm_worker::{sandbox, selfcheck, tenant};
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// Computes tokens for a Realm gateway, which starts it or attaches to it.
#[derive(Parser)]
#[command(name = "realm-worker", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve one model to a gateway.
    Serve(Serve),
    /// Compile a tenant's program: a component from standard input, code for workers to standard
    /// output.
    Compile {
        /// Only name what compiled code depends on beside the component.
        #[arg(long)]
        fingerprint: bool,
        /// Path to listen at, for gateways of this user that have no such program themselves
        /// (`realm serve --compiler`): each time one asks, another process does the above.
        #[arg(long, value_name = "PATH", conflicts_with = "fingerprint")]
        socket: Option<PathBuf>,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        sandbox: Sandbox,
    },
    /// Check that a GPU computes what it should, and measure it; takes some minutes.
    Selfcheck {
        /// Which: cuda, or cuda:N by the driver's number.
        #[arg(long, default_value = "cuda")]
        device: Device,
        /// The gateway's program, to measure the way through it, too [default: `realm` beside this one]
        #[arg(long, value_name = "PATH")]
        realm: Option<PathBuf>,
        /// As one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Say what this worker can run on.
    Info {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    gateway: GatewayArgs,
    /// With --socket: how long to keep the model for the next gateway when one has gone.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        conflicts_with = "fd"
    )]
    grace: u64,
    /// Directory of the model as the Hugging Face hub lays it out, or `embedded`.
    #[arg(long)]
    model: PathBuf,
    /// Compute with random numbers instead of the model's weights, which need not be there: to measure a shape.
    #[arg(long)]
    random_weights: bool,
    /// Name of the model, for the log.
    #[arg(long)]
    name: Option<String>,
    /// Where to compute: cpu, or an NVIDIA GPU: cuda, or cuda:N by the driver's number.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Part of what is free of a GPU's memory, once the model is loaded, that keys and values get where --kv-memory says
    /// nothing; from 0.05 to 0.98 [default: 0.9]
    #[arg(long, value_name = "PART", value_parser = gpu_memory_fraction)]
    gpu_memory_fraction: Option<f64>,
    /// Type of the forward pass; `auto` takes the checkpoint's.
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DTypeArg,
    /// On a GPU of compute capability 8.9 or later, hold the matrices of a bf16 model in fewer bits: fp8 takes half of
    /// the memory, see docs/performance.md for what it costs.
    #[arg(long, value_enum)]
    quantization: Option<QuantizationArg>,
    /// Compute threads; by default as many as there are cores.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// CPUs to compute on, such as 0-3,8; by default all that the system allows.
    #[arg(long, value_name = "LIST")]
    cpus: Option<Cpus>,
    /// Bytes for keys and values; `auto` takes up to a quarter of the memory available, but see
    /// --gpu-memory-fraction.
    #[arg(long, value_parser = bytes_or_auto, default_value = "auto")]
    kv_memory: Auto,
    /// Most tokens of a sequence; by default the model's own limit, or what the memory holds.
    #[arg(long)]
    max_context: Option<usize>,
    /// Instances of tenants' programs that run at once; some 200 MiB of address space, not of
    /// memory, for each.
    #[arg(long, value_name = "N", default_value_t = Pool::default().instances,
        value_parser = clap::value_parser!(u32).range(i64::from(*INSTANCES.start())..=i64::from(*INSTANCES.end())))]
    instances: u32,
    /// Bytes of stack of each of them.
    #[arg(long, value_name = "BYTES", default_value_t = Pool::default().stack as u64,
        value_parser = clap::value_parser!(u64).range(PROGRAM_STACK))]
    program_stack: u64,
    #[command(flatten)]
    sandbox: Sandbox,
}

#[derive(Args)]
struct Sandbox {
    /// Refuse to start where the system cannot confine this process by Landlock and seccomp.
    #[arg(long)]
    require_sandbox: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct GatewayArgs {
    /// Descriptor of the socket to the gateway; it must be 0, standard input.
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=0))]
    fd: Option<u32>,
    /// Path to listen at, for gateways that attach to this worker: one at a time, of this user.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum DTypeArg {
    Auto,
    F32,
    Bf16,
    F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum QuantizationArg {
    Fp8,
}

/// A number of bytes, if it is not left to the program.
#[derive(Clone, Copy)]
struct Auto(Option<u64>);

fn bytes_or_auto(text: &str) -> Result<Auto, String> {
    if text == "auto" {
        return Ok(Auto(None));
    }
    let bytes = text
        .parse()
        .map_err(|_| "neither a number of bytes nor `auto`".to_string())?;
    Ok(Auto(Some(bytes)))
}

fn gpu_memory_fraction(text: &str) -> Result<f64, String> {
    let part = text.parse().ok();
    let part = part.filter(|part| GPU_MEMORY_FRACTION.contains(part));
    let (least, most) = GPU_MEMORY_FRACTION.into_inner();
    part.ok_or_else(|| format!("no number from {least} to {most}"))
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => {
            let name = args
                .name
                .clone()
                .unwrap_or_else(|| args.model.display().to_string());
            match run(args) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("realm-worker {name}: {}", told(error.as_ref()));
                    ExitCode::FAILURE
                }
            }
        }
        Command::Compile {
            socket: Some(path),
            limits,
            sandbox,
            ..
        } => match compilers::serve(&path, limits, sandbox.require_sandbox) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("realm-worker compile: {}", told(error.as_ref()));
                ExitCode::FAILURE
            }
        },
        Command::Compile {
            fingerprint,
            limits,
            sandbox,
            ..
        } => {
            if let Err(error) = shut_in(limits, sandbox.require_sandbox) {
                eprintln!("{}", told(error.as_ref()));
                // Not as for a component that is refused: it has no part in this.
                return ExitCode::from(2);
            }
            match compile(fingerprint) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{}", told(error.as_ref()));
                    ExitCode::FAILURE
                }
            }
        }
        Command::Selfcheck {
            device,
            realm,
            json,
        } => match selfcheck(device, realm, json) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("realm-worker selfcheck: {}", told(error.as_ref()));
                ExitCode::FAILURE
            }
        },
        Command::Info { json } => {
            info(json);
            ExitCode::SUCCESS
        }
    }
}

fn run(args: Serve) -> anyhow::Result<()> {
    if let Some(cpus) = args.cpus {
        pin(&cpus).with_context(|| format!("cannot compute on the CPUs {cpus}"))?;
    }
    let gateway = match args.gateway.socket {
        None => serve::Gateway::Stdin,
        Some(path) => serve::Gateway::Listen {
            path,
            grace: Duration::from_secs(args.grace),
        },
    };
    let model = if args.model.as_os_str() == "embedded" {
        ModelSource::Embedded
    } else {
        ModelSource::Directory(args.model)
    };
    let options = Options {
        random_weights: args.random_weights,
        dtype: match args.dtype {
            DTypeArg::Auto => None,
            DTypeArg::F32 => Some(DType::F32),
            DTypeArg::Bf16 => Some(DType::BF16),
            DTypeArg::F16 => Some(DType::F16),
        },
        quantization: args
            .quantization
            .map(|QuantizationArg::Fp8| Quantization::Fp8),
        threads: args.threads,
        kv_memory: args.kv_memory.0,
        gpu_memory_fraction: args.gpu_memory_fraction,
        max_context: args.max_context,
        max_sequences: None,
    };
    let pool = Pool {
        instances: args.instances,
        stack: usize::try_from(args.program_stack)?,
    };
    let setup = Setup {
        model,
        device: args.device,
        options,
        require_sandbox: args.sandbox.require_sandbox,
    };
    serve(&gateway, &setup, pool)
}

/// Longest component, in bytes.
const MAX_COMPONENT: u64 = 64 << 20;

/// Leaves this process what it needs to compile, and no more: what a tenant sends may be made to
/// take for ever, or to find a hole in the compiler. Nothing is read of it before.
fn shut_in(limits: Limits, require_sandbox: bool) -> anyhow::Result<()> {
    for (resource, most) in [
        (Resource::As, limits.memory),
        (Resource::Cpu, limits.seconds),
        (Resource::Core, 0),
    ] {
        // At the first of two limits of processor time it ends by a signal that says so.
        let spare = u64::from(resource == Resource::Cpu);
        let (current, maximum) = (Some(most), Some(most + spare));
        setrlimit(resource, Rlimit { current, maximum }).context("cannot limit the compiler")?;
    }
    // Nobody's stream should be slower for it. Where it is refused, it is as quick as others.
    let _ = setpriority_process(None, 10);
    let confinement = sandbox::confine(None, Device::Cpu);
    // No warning: whoever started this reads on standard error what is wrong with the component.
    confinement.check(require_sandbox, |_| {})?;
    confinement.seal()
}

/// Writes a line of JSON that says what the component is, and the compiled code.
fn compile(only_fingerprint: bool) -> anyhow::Result<()> {
    let fingerprint = tenant::fingerprint()?;
    let mut output = io::stdout().lock();
    if only_fingerprint {
        return Ok(writeln!(output, "{fingerprint}")?);
    }
    let mut component = Vec::new();
    let mut input = io::stdin().lock().take(MAX_COMPONENT + 1);
    input.read_to_end(&mut component)?;
    if component.len() as u64 > MAX_COMPONENT {
        bail!("the component has more than {MAX_COMPONENT} bytes");
    }
    let compiled = tenant::compile(&component)?;
    let kind = match compiled.kind {
        tenant::Kind::Processor => "processor",
        tenant::Kind::Program => "program",
    };
    let about = serde_json::json!({
        "kind": kind,
        "fingerprint": fingerprint,
        "imports": compiled.imports,
        "exports": compiled.exports,
    });
    writeln!(output, "{about}")?;
    output.write_all(&compiled.code)?;
    Ok(output.flush()?)
}

/// Keeps this thread, and those that it starts, on some CPUs.
fn pin(cpus: &Cpus) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus.numbers() {
        set.set(cpu);
    }
    sched_setaffinity(None, &set)
}

/// Checks and measures a GPU: whether it passed.
fn selfcheck(device: Device, realm: Option<PathBuf>, json: bool) -> anyhow::Result<bool> {
    let Device::Cuda(number) = device else {
        bail!("{device} is what GPUs are compared with; name one, such as --device cuda:0");
    };
    let open = || cuda::Gpu::open(number);
    let name = device.to_string();
    let worker = std::env::current_exe().context("cannot tell where this program is")?;
    let beside = Some(worker.with_file_name("realm")).filter(|path| path.is_file());
    let gateway = realm.or(beside).map(|program| Gateway {
        program,
        worker,
        device: name.clone(),
    });
    let within = selfcheck::WITHIN;
    let report = selfcheck::run(&open, &name, gateway.as_ref(), Scale::Full, within)?;
    match json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => print!("{report}"),
    }
    Ok(report.passed)
}

fn info(json: bool) {
    let libtorch = env!("REALM_LIBTORCH_VERSION");
    let cpu = realm_worker::kernels::capability();
    let cores = cores();
    let gpus = cuda::devices();
    // What the system can do is found out by having it done.
    let sandbox = sandbox::confine(None, Device::Cpu);
    let found = || gpus.iter().flatten();
    let name = |gpu: &Found| Device::Cuda(gpu.number).to_string();
    if json {
        let devices = [Device::Cpu.to_string()].into_iter();
        let devices: Vec<String> = devices.chain(found().map(name)).collect();
        let about = |gpu: &Found| {
            let about = serde_json::json!({
                "name": gpu.name,
                "memory": gpu.memory,
                "capability": gpu.capability.to_string(),
            });
            (name(gpu), about)
        };
        let gpus: serde_json::Value = match &gpus {
            Ok(gpus) => gpus.iter().map(about).collect(),
            Err(why) => why.to_string().into(),
        };
        let value = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "libtorch": libtorch,
            "cpu_capability": cpu,
            "cores": cores,
            "devices": devices,
            "gpus": gpus,
            "sandbox": { "landlock": sandbox.landlock(), "seccomp": sandbox.seccomp() },
        });
        println!("{value}");
    } else {
        println!("realm-worker {}", env!("CARGO_PKG_VERSION"));
        println!("libtorch     {libtorch}");
        println!("CPU          {cpu}");
        println!("cores        {cores}");
        println!("devices      cpu");
        for gpu in found() {
            let gib = gpu.memory >> 30;
            println!(
                "             {}: {}, {gib} GiB, {}",
                name(gpu),
                gpu.name,
                gpu.capability
            );
        }
        if let Err(why) = &gpus {
            println!("no GPU       {why}");
        }
        println!("sandbox      {sandbox}");
    }
}
