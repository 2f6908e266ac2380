//! Compiling units for devices, by NVRTC, and keeping what it makes on the disk.

use std::error::Error;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use sha2::{Digest, Sha256};

use crate::catalogue::HEADERS;
use crate::{LaunchError, Unit};

/// The release of NVRTC that kernels are checked with; any of the same major version does.
pub const NVRTC_VERSION: (i32, i32) = (13, 0);

const LIBRARIES: [&str; 2] = ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"];

/// What a device can do, as `10 * major + minor`: 80 is an A100, 90 an H100 or H200.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(pub u32);

/// What is compiled without a device at hand, to see that it can be.
pub const CAPABILITIES: [Capability; 2] = [Capability(80), Capability(90)];

/// The least that kernels need: bf16, and asynchronous copies.
pub const LEAST: Capability = Capability(80);

/// The least that multiplies matrices of e4m3.
pub const FP8: Capability = Capability(89);

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}", self.0)
    }
}

/// NVRTC, loaded.
#[derive(Debug, Clone, Copy)]
pub struct Nvrtc {
    version: (i32, i32),
}

/// What became of a unit.
#[derive(Debug)]
pub struct Compiled {
    /// Machine code for one kind of device.
    pub cubin: Vec<u8>,
    /// What the compiler said: what each kernel takes of a device.
    pub log: String,
}

impl Nvrtc {
    /// Loads it from a folder, or from where the system finds it. It stays loaded.
    ///
    /// # Errors
    /// What is missing, or not as expected.
    pub fn load(folder: Option<&Path>) -> Result<Nvrtc, String> {
        if let Some(folder) = folder {
            for name in LIBRARIES {
                let path = folder.join(name);
                // SAFETY: its initializers do nothing but initialize it.
                let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
                // Never unloaded: from now on it is found by its name.
                std::mem::forget(library.map_err(|e| {
                    let why = e
                        .source()
                        .map_or_else(|| e.to_string(), |why| why.to_string());
                    format!("cannot load NVRTC: {}: {why}", path.display())
                })?);
            }
        }
        // What follows would end the process if the library were not there.
        // SAFETY: as above.
        if !unsafe { sys::is_culib_present() } {
            return Err("NVRTC is missing: install nvidia-cuda-nvrtc 13 beside libtorch".into());
        }
        let mut version = (0, 0);
        // SAFETY: writes two integers.
        check(unsafe { sys::nvrtcVersion(&mut version.0, &mut version.1) })?;
        if version.0 != NVRTC_VERSION.0 {
            return Err(format!(
                "NVRTC is of CUDA {}.{}, and kernels are for {}",
                version.0, version.1, NVRTC_VERSION.0
            ));
        }
        Ok(Nvrtc { version })
    }

    /// Its version, major and minor.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Compiles a unit.
    ///
    /// # Errors
    /// What the compiler says.
    pub fn compile(&self, unit: Unit, capability: Capability) -> Result<Compiled, LaunchError> {
        compile(unit, capability).map_err(|why| LaunchError::Compile { unit, why })
    }
}

fn options(unit: Unit, capability: Capability) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={capability}"),
        "--std=c++17".into(),
        // As in the emulator: contracted only where a kernel says so.
        "--fmad=false".into(),
        "--ptxas-options=-v".into(),
    ];
    options.extend(unit.defines());
    options
}

/// Deletes the program at the end.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `nvrtcCreateProgram`, and not used from here on.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn compile(unit: Unit, capability: Capability) -> Result<Compiled, String> {
    let text = |s: &str| CString::new(s).map_err(|e| e.to_string());
    let texts = |strings: Vec<&str>| strings.into_iter().map(text).collect::<Result<Vec<_>, _>>();
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .collect::<Vec<*const c_char>>()
    };
    let (source, name) = (text(unit.source.text)?, text(unit.source.name)?);
    let headers = texts(HEADERS.iter().map(|h| h.text).collect())?;
    let names = texts(HEADERS.iter().map(|h| h.name).collect())?;
    let options = options(unit, capability);
    let options = texts(options.iter().map(String::as_str).collect())?;
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all strings end with a zero, the arrays are as long as is said, and both outlive the call.
    check(unsafe {
        sys::nvrtcCreateProgram(
            &mut program.0,
            source.as_ptr(),
            name.as_ptr(),
            headers.len() as i32,
            pointers(&headers).as_ptr(),
            pointers(&names).as_ptr(),
        )
    })?;
    // SAFETY: as above.
    let result = unsafe {
        sys::nvrtcCompileProgram(program.0, options.len() as i32, pointers(&options).as_ptr())
    };
    let mut size = 0;
    // SAFETY: writes an integer.
    check(unsafe { sys::nvrtcGetProgramLogSize(program.0, &mut size) })?;
    let mut log = vec![0u8; size];
    // SAFETY: writes as many bytes as it just said.
    check(unsafe { sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()) })?;
    let log = String::from_utf8_lossy(&log)
        .trim_end_matches('\0')
        .to_owned();
    check(result).map_err(|why| format!("{why}\n{log}"))?;
    // SAFETY: writes an integer.
    check(unsafe { sys::nvrtcGetCUBINSize(program.0, &mut size) })?;
    let mut cubin = vec![0u8; size];
    // SAFETY: writes as many bytes as it just said.
    check(unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) })?;
    Ok(Compiled { cubin, log })
}

fn check(result: sys::nvrtcResult) -> Result<(), String> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: a constant string for every result.
    let why = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    Err(why.to_string_lossy().into_owned())
}

/// Cubins by what they are made of. NVRTC is loaded when the first is missing.
#[derive(Debug)]
pub struct Cubins {
    folder: Option<PathBuf>,
    nvrtc_folder: Option<PathBuf>,
    nvrtc: OnceLock<Result<Nvrtc, String>>,
}

/// Bytes of the hash that a kept cubin begins with.
const HASH: usize = 32;

impl Cubins {
    /// Keeps them in `folder`; compiles with the NVRTC in `nvrtc_folder`, or with what the system finds. Where the
    /// folder cannot be written, each start compiles anew.
    pub fn new(folder: Option<PathBuf>, nvrtc_folder: Option<PathBuf>) -> Cubins {
        Cubins {
            folder,
            nvrtc_folder,
            nvrtc: OnceLock::new(),
        }
    }

    /// The cubin of a unit.
    ///
    /// # Errors
    /// If it is not there yet and cannot be compiled.
    pub fn get(&self, unit: Unit, capability: Capability) -> Result<Vec<u8>, LaunchError> {
        let path = self
            .folder
            .as_ref()
            .map(|folder| folder.join(file_name(unit, capability)));
        if let Some(cubin) = path.as_deref().and_then(read) {
            return Ok(cubin);
        }
        let nvrtc = self
            .nvrtc
            .get_or_init(|| Nvrtc::load(self.nvrtc_folder.as_deref()));
        let nvrtc = nvrtc.as_ref().map_err(|why| LaunchError::Compile {
            unit,
            why: why.clone(),
        })?;
        let cubin = nvrtc.compile(unit, capability)?.cubin;
        if let Some(path) = path {
            // What cannot be kept is compiled again next time.
            let _ = write(&path, &cubin);
        }
        Ok(cubin)
    }
}

/// Names everything that a cubin depends on.
fn file_name(unit: Unit, capability: Capability) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(unit.source.text);
    for header in HEADERS {
        add(header.name);
        add(header.text);
    }
    for option in options(unit, capability) {
        add(&option);
    }
    add(&format!("{NVRTC_VERSION:?}"));
    let hash = hash.finalize();
    let digits: String = hash[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let unit = unit.to_string().replace('/', "-");
    format!("{unit}-{capability}-{digits}.cubin")
}

/// A cubin that was kept, unless it was damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    let kept = fs::read(path).ok()?;
    let (hash, cubin) = kept.split_at_checked(HASH)?;
    (Sha256::digest(cubin).as_slice() == hash).then(|| cubin.to_vec())
}

/// In one step, so that two processes that start together do not disturb each other.
fn write(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_added_extension(std::process::id().to_string());
    let kept = [Sha256::digest(cubin).as_slice(), cubin].concat();
    let written = fs::write(&partial, kept).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        let _ = fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;

    #[test]
    fn damaged_cubins_are_not_read() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("new/x.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"some machine code").expect("written");
        assert_eq!(read(&path).as_deref(), Some(&b"some machine code"[..]));
        let names = fs::read_dir(folder.path().join("new")).expect("listed");
        assert_eq!(names.count(), 1, "nothing else is left");
        let mut bytes = fs::read(&path).expect("read");
        bytes.pop();
        fs::write(&path, &bytes).expect("written");
        assert_eq!(read(&path), None);
        fs::write(&path, b"short").expect("written");
        assert_eq!(read(&path), None);
    }

    #[test]
    fn kept_cubins_need_no_compiler() {
        let folder = tempfile::tempdir().expect("folder");
        let unit = catalogue::units()[0];
        let nowhere = folder.path().join("nowhere");
        let cubins = Cubins::new(Some(folder.path().into()), Some(nowhere));
        let why = cubins
            .get(unit, LEAST)
            .expect_err("no compiler")
            .to_string();
        assert!(
            why.contains("cannot load NVRTC") && why.contains("nowhere"),
            "{why}"
        );
        let path = folder.path().join(file_name(unit, LEAST));
        write(&path, b"cubin").expect("written");
        assert_eq!(cubins.get(unit, LEAST).expect("kept"), b"cubin");
        cubins.get(unit, Capability(90)).expect_err("another one");
    }

    #[test]
    fn names_differ_where_code_may() {
        let units = catalogue::units();
        let names = units
            .iter()
            .flat_map(|unit| CAPABILITIES.map(|c| file_name(*unit, c)));
        let names: std::collections::HashSet<String> = names.collect();
        assert_eq!(names.len(), units.len() * CAPABILITIES.len());
    }
}
