//! Runs the kernels of `realm-cuda` on the CPU.
//!
//! Their sources are compiled against `emulator.h`, where every thread of a block is a fiber; what it finds is
//! listed there. The C++ compiler is that of `CXX`, or `c++`. What it makes is kept beside the tests.
// Loads compiled kernels, and hands them memory.
#![allow(unsafe_code)]

mod compile;
mod device;
mod memory;
mod watched;

use std::collections::HashMap;
use std::ffi::{c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libloading::Library;
use realm_cuda::compile::Capability;
use realm_cuda::{Launch, LaunchError, Launcher, Unit};

pub use device::Graph;
pub use memory::Buffer;
pub use watched::{Asked, Watched};

/// Bytes of memory that it claims to have, if it is not told otherwise.
const MEMORY: usize = 1 << 30;

/// What it claims to be, if it is not told otherwise.
const CAPABILITY: Capability = Capability(90);

/// A device that is none.
///
/// Each launch runs the threads of a block in another order, the same in every run of a test.
#[derive(Debug)]
pub struct Emulator {
    folder: PathBuf,
    libraries: Mutex<HashMap<Unit, Arc<Library>>>,
    launches: AtomicU64,
    /// Bytes of memory that it has.
    memory: usize,
    capability: Capability,
    allocated: Mutex<Vec<Buffer<u8>>>,
    /// What is captured, while something is.
    capture: Mutex<Option<Graph>>,
}

impl Emulator {
    /// One that keeps compiled kernels beside the running program.
    ///
    /// # Panics
    /// If there is no such folder.
    pub fn new() -> Emulator {
        let program = std::env::current_exe().expect("the path of this program");
        Emulator::within(&program.with_file_name("emulated"))
    }

    /// One that keeps compiled kernels in a folder, which it makes.
    pub fn within(folder: &Path) -> Emulator {
        Emulator {
            folder: folder.to_owned(),
            libraries: Mutex::default(),
            launches: AtomicU64::new(0),
            memory: MEMORY,
            capability: CAPABILITY,
            allocated: Mutex::default(),
            capture: Mutex::default(),
        }
    }

    /// The same with another amount of memory than a gibibyte.
    #[must_use]
    pub fn with_memory(self, bytes: usize) -> Emulator {
        Emulator {
            memory: bytes,
            ..self
        }
    }

    /// The same that claims to be of another kind than an H100 is.
    #[must_use]
    pub fn with_capability(self, capability: Capability) -> Emulator {
        Emulator { capability, ..self }
    }

    fn library(&self, unit: Unit) -> Result<Arc<Library>, LaunchError> {
        // Held while it compiles, so that one compiler runs at a time.
        let mut libraries = self
            .libraries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(library) = libraries.get(&unit) {
            return Ok(library.clone());
        }
        let error = |why| LaunchError::Compile { unit, why };
        let path = compile::library(&self.folder, unit).map_err(error)?;
        // SAFETY: what was compiled of the kernels runs no code when it is loaded.
        let library = unsafe { Library::new(&path) };
        let library = Arc::new(library.map_err(|e| error(e.to_string()))?);
        libraries.insert(unit, library.clone());
        Ok(library)
    }
}

impl Default for Emulator {
    fn default() -> Emulator {
        Emulator::new()
    }
}

/// `emulator::Launch` of `emulator.h`.
#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    params_bytes: u32,
    params: *const u8,
    seed: u64,
    error: *mut c_char,
    error_capacity: u64,
}

type Entry = unsafe extern "C" fn(*const RawLaunch) -> c_int;

impl Launcher for Emulator {
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        if self.captures(|| device::Captured::of(launch)) {
            return Ok(());
        }
        let failed = |why: String| LaunchError::Run {
            kernel: launch.kernel,
            why,
        };
        let library = self.library(launch.kernel.unit)?;
        let symbol = format!("{}_emulated", launch.kernel.name);
        // SAFETY: symbols of this name are made by the macro KERNEL alone, with this type.
        let entry = unsafe { library.get::<Entry>(symbol.as_bytes()) };
        let entry = entry.map_err(|e| failed(e.to_string()))?;
        // The struct has no alignment of its own as bytes.
        let params: Vec<u128> = launch.params.chunks(16).map(word).collect();
        let mut error = vec![0u8; 1000];
        let raw = RawLaunch {
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            params_bytes: launch.params.len() as u32,
            params: params.as_ptr().cast(),
            // The first launch runs threads by their numbers.
            seed: self.launches.fetch_add(1, Ordering::Relaxed),
            error: error.as_mut_ptr().cast(),
            error_capacity: error.len() as u64,
        };
        // SAFETY: the caller vouches for what the parameters name; their length is checked on the other side.
        let code = unsafe { entry(&raw) };
        if code == 0 {
            return Ok(());
        }
        let end = error.iter().position(|b| *b == 0).unwrap_or(error.len());
        Err(failed(String::from_utf8_lossy(&error[..end]).into_owned()))
    }
}

fn word(bytes: &[u8]) -> u128 {
    let mut word = [0; 16];
    word[..bytes.len()].copy_from_slice(bytes);
    u128::from_ne_bytes(word)
}
