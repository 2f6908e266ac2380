//! From a component to code that runs: compiled once, in a process of its own, by
//! `realm-worker compile`; loaded by workers, which have no compiler at hand.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use realm_shared::wire::Fault;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::Failure;
use super::answering::Run;
use super::contract::processor::ProcessorPre;
use super::contract::program::ProgramPre;
use super::contract::{ANSWERING, STEERING, offer_processor, offer_program};
use super::guest::Guest;

/// Most linear memory of an instance, in bytes: what a place in the pool has.
pub(super) const MEMORY: usize = 64 << 20;
/// Most entries of all tables of an instance.
pub(super) const TABLE_ENTRIES: usize = 20_000;
/// Places for instances beyond those that may be taken: for such that end a moment after their sequence.
const SPARE: u32 = 256;
/// Stack of the host functions that code calls, on top of its own.
const HOST_STACK: usize = 256 << 10;
/// What a component may be made of. One made from Rust has three or four modules, one memory and
/// two tables; one made from JavaScript with QuickJS has eleven modules, three memories, two of them
/// empty, and three tables.
const MODULES: u32 = 16;
const MEMORIES: u32 = 3;
const TABLES: u32 = 8;
/// Names that are told of what a component imports, and as many of what it exports; and how long they are
/// told. The gateway reads 4 KiB of them.
const MAX_NAMES: usize = 16;
const MAX_NAME: usize = 64;
/// Memory that stays with a place in the pool between two instances: writing zeros there is quicker
/// than having the system do it page by page.
const RESIDENT: usize = 64 << 10;

/// What a worker has for the instances of all tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Most of them at once. Address space is reserved for each, some 200 MiB.
    pub instances: u32,
    /// Bytes of stack for the code of each.
    pub stack: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Pool {
            instances: 1000,
            stack: 256 << 10,
        }
    }
}

/// Why a component cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// It is none, or one that the compiler refuses.
    #[error("it is no component that can be compiled: {0}")]
    Invalid(String),
    /// It wants or lacks something.
    #[error("it does not keep to the contract: {0}")]
    Contract(String),
    /// The compiler cannot be set up.
    #[error("the compiler cannot be set up: {0}")]
    Setup(String),
}

/// What a component is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To steer a sequence.
    Processor,
    /// To answer a request.
    Program,
}

/// What [`compile`] makes.
#[derive(Debug)]
pub struct Compiled {
    /// What it is for.
    pub kind: Kind,
    /// Names of the interfaces that it imports.
    pub imports: Vec<String>,
    /// Names of what it exports.
    pub exports: Vec<String>,
    /// For workers.
    pub code: Vec<u8>,
}

/// Code that can be run, with all that it imports.
#[derive(Clone)]
pub(super) enum Code {
    Processor(Arc<ProcessorPre<Guest>>),
    Program(Arc<ProgramPre<Run>>),
}

impl Code {
    /// Whether it imports an interface.
    pub(super) fn imports(&self, interface: &str) -> bool {
        let component = match self {
            Code::Processor(code) => code.instance_pre().component(),
            Code::Program(code) => code.instance_pre().component(),
        };
        let component_type = component.component_type();
        let mut imports = component_type.imports(component.engine());
        imports.any(|(name, _)| name == interface)
    }

    /// Links a component, as what it exports says.
    fn link(engine: &Engine, component: &Component) -> wasmtime::Result<Code> {
        let exports = |name| component.get_export_index(None, name).is_some();
        match (exports(STEERING), exports(ANSWERING)) {
            (true, false) => {
                let mut linker = Linker::new(engine);
                offer_processor(&mut linker)?;
                let ready = linker.instantiate_pre(component)?;
                Ok(Code::Processor(Arc::new(ProcessorPre::new(ready)?)))
            }
            (false, true) => {
                let mut linker = Linker::new(engine);
                offer_program(&mut linker)?;
                let ready = linker.instantiate_pre(component)?;
                Ok(Code::Program(Arc::new(ProgramPre::new(ready)?)))
            }
            (false, false) => Err(wasmtime::Error::msg(format!(
                "it exports neither `{STEERING}`, as a processor does, nor `{ANSWERING}`, as a \
                 program does that answers requests"
            ))),
            (true, true) => Err(wasmtime::Error::msg(format!(
                "it exports both `{STEERING}` and `{ANSWERING}`: it must be one thing or the other"
            ))),
        }
    }
}

/// Compiles a component, and checks that it keeps to the contract.
///
/// # Errors
/// If it does not, in words for the tenant.
pub fn compile(component: &[u8]) -> Result<Compiled, CompileError> {
    let engine = compiler()?;
    let component =
        Component::new(&engine, component).map_err(|e| CompileError::Invalid(words(&e)))?;
    let code = Code::link(&engine, &component).map_err(|e| CompileError::Contract(words(&e)))?;
    let kind = match code {
        Code::Processor(_) => Kind::Processor,
        Code::Program(_) => Kind::Program,
    };
    let code = component.serialize();
    let code = code.map_err(|e| CompileError::Invalid(words(&e)))?;
    let ty = component.component_type();
    Ok(Compiled {
        kind,
        imports: names(ty.imports(&engine).map(|(name, _)| name)),
        exports: names(ty.exports(&engine).map(|(name, _)| name)),
        code,
    })
}

/// Names to be shown, as many and as long as anybody reads.
fn names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let readable = |name: &'a str| name.chars().filter(char::is_ascii_graphic);
    let shown = names
        .take(MAX_NAMES)
        .map(|name| readable(name).take(MAX_NAME).collect());
    shown.collect()
}

/// What was wrong, and why, in one line.
fn words(error: &wasmtime::Error) -> String {
    let words = format!("{error:#}");
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Names all that compiled code depends on but the component: the compiler, its settings, and this
/// machine's processor.
///
/// # Errors
/// If the compiler cannot be set up.
pub fn fingerprint() -> Result<String, CompileError> {
    let engine = compiler()?;
    // Its result is the same in all processes of one build, and that is what it has to tell apart.
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn compiler() -> Result<Engine, CompileError> {
    let mut config = config();
    // The same numbers on every machine, as a sequence may go on on another one.
    config.cranelift_nan_canonicalization(true);
    Engine::new(&config).map_err(|e| CompileError::Setup(words(&e)))
}

/// What compiler and worker must agree on.
fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .memory_reservation(MEMORY as u64)
        .memory_reservation_for_growth(0)
        .memory_may_move(false)
        .concurrency_support(false)
        .wasm_backtrace_max_frames(None)
        // Both give different results on different processors, or sizes beyond any limit.
        .wasm_relaxed_simd(false)
        .wasm_memory64(false);
    config
}

/// An engine that runs what [`compile`] made. It reserves address space for all instances at once.
pub(super) fn engine(pool: Pool) -> Result<Engine, Failure> {
    let Pool { instances, stack } = pool;
    let places = instances + SPARE;
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(places)
        .total_core_instances(places * MODULES)
        .total_memories(places * MEMORIES)
        .total_tables(places * TABLES)
        .total_stacks(places)
        .max_core_instances_per_component(MODULES)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(TABLES)
        .max_memory_size(MEMORY)
        .table_elements(TABLE_ENTRIES)
        .linear_memory_keep_resident(RESIDENT)
        .table_keep_resident(RESIDENT);
    let mut config = config();
    config
        .enable_compiler(false)
        .max_wasm_stack(stack)
        .async_stack_size(stack + HOST_STACK)
        .force_memory_init_memfd(true)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config).map_err(|e| {
        let message = format!("this worker cannot run programs: {e:#}");
        Failure::new(Fault::Unusable, message)
    })
}

/// Reads a whole file from its start, wherever those who share it with us have read to.
pub(super) fn read(file: &File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Loads compiled code.
pub(super) fn load(engine: &Engine, compiled: OwnedFd) -> Result<Code, Failure> {
    let unusable = |e: wasmtime::Error| {
        let message = format!("this worker cannot load the program: {e:#}");
        Failure::new(Fault::Unusable, message)
    };
    let bytes = read(&File::from(compiled)).map_err(|e| unusable(e.into()))?;
    // SAFETY: The bytes must be what `Component::serialize` gave. They come from the gateway, which
    // the worker trusts: that has them from `realm-worker compile`, and checks the code that
    // authenticates them whenever it reads them from the disk.
    #[expect(unsafe_code, reason = "the one place where compiled code comes in")]
    let component = unsafe { Component::deserialize(engine, &bytes) };
    let component = component.map_err(unusable)?;
    Code::link(engine, &component).map_err(unusable)
}
