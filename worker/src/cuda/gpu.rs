//! An NVIDIA GPU: launches, memory and graphs by its driver, products by libtorch, both on one stream.

// Loads the libraries, and passes on launches.
#![allow(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use realm_cuda::catalogue;
use realm_cuda::compile::{Capability, Cubins, FP8, LEAST};
use realm_cuda::driver::{self, Driver, Found, Graph, PageLocked};
use realm_cuda::{
    Device, DeviceError, Element, Launch, LaunchError, Launcher, Memory, Product, Scales,
};

use super::torch::{self, Place};

/// libtorch's part for CUDA, which brings NVIDIA's libraries along.
const TORCH: &str = "libtorch_cuda.so";

/// A GPU with everything loaded that it needs, so that from then on no file is opened but its devices.
#[derive(Debug)]
pub struct Gpu {
    driver: Driver,
    place: Place,
}

impl Gpu {
    /// Opens a GPU by the driver's number: loads libraries and kernels, of which those are compiled that have not been
    /// yet, which takes a quarter of a minute once for each kind of GPU.
    ///
    /// libtorch must not have been asked about CUDA before: it keeps to the answer that there is none.
    ///
    /// # Errors
    /// What is missing, and what to do about that.
    pub fn open(device: usize) -> Result<Gpu, DeviceError> {
        let count = driver::count()?;
        if device >= count {
            return Err(DeviceError::NoDevice { device, count });
        }
        load_torch()?;
        let (place, stream) = torch::stream(device)?;
        let cubins = Cubins::new(cache_folder(), nvrtc_folder());
        // SAFETY: libtorch's streams are of the primary context, and are never destroyed.
        let driver = unsafe { Driver::new(device, stream, cubins) }?;
        let gpu = Gpu { driver, place };
        gpu.driver.prepare(&catalogue::kernels())?;
        gpu.warm_up()?;
        Ok(gpu)
    }

    /// Multiplies once in each way that loads something: libtorch and cuBLAS load libraries and make their workspace
    /// when they are first used, and at another size without a file.
    fn warm_up(&self) -> Result<(), DeviceError> {
        const WIDTH: usize = 64;
        let zeros = [0u8; WIDTH * WIDTH * size_of::<f32>()];
        let [x, weight, out] = [(); 3].map(|()| self.allocate(zeros.len()));
        let (x, weight, out) = (x?, weight?, out?);
        self.write(x, &zeros)?;
        self.write(weight, &zeros)?;
        let mut kinds: Vec<_> = Element::ALL.map(|element| (element, None)).into();
        if self.capability() >= FP8 {
            kinds.push((Element::Bf16, Some(Scales { x, weight })));
        }
        for (element, scales) in kinds {
            for rows in [1, WIDTH] {
                for bias in [None, Some(x)] {
                    self.multiply(&Product {
                        element,
                        rows,
                        inputs: WIDTH,
                        outputs: WIDTH,
                        x,
                        weight,
                        scales,
                        bias,
                        out,
                    })?;
                }
            }
        }
        // Waits, so that what failed is known here.
        self.read(out, &mut [0; WIDTH])
    }
}

impl Launcher for Gpu {
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        // SAFETY: the caller's word.
        unsafe { self.driver.launch(launch) }
    }
}

impl Device for Gpu {
    type Graph = Graph;
    type Landing = PageLocked;

    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        self.driver.allocate(bytes)
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.driver.memory()
    }

    fn write(&self, to: Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.driver.write(to, from)
    }

    fn read(&self, from: Memory, into: &mut [u8]) -> Result<(), DeviceError> {
        self.driver.read(from, into)
    }

    fn landing(&self, bytes: usize) -> Result<PageLocked, DeviceError> {
        self.driver.page_locked(bytes)
    }

    fn send(&self, from: Memory, landing: &mut PageLocked, at: usize) -> Result<(), DeviceError> {
        self.driver.send(from, landing, at)
    }

    fn has_landed(&self, landing: &PageLocked) -> Result<bool, DeviceError> {
        self.driver.has_landed(landing)
    }

    fn landed<'a>(&self, landing: &'a mut PageLocked) -> Result<&'a [u8], DeviceError> {
        self.driver.landed(landing)
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        torch::multiply(self.place, product)
    }

    fn capability(&self) -> Capability {
        self.driver.capability()
    }

    fn multiprocessors(&self) -> usize {
        self.driver.multiprocessors()
    }

    /// The driver alone knows of the capture, not libtorch. That is enough: its products allocate nothing once their
    /// workspace is there, which belongs to thread and stream and is never given back, so that products must have run
    /// on the thread that captures.
    fn capture(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        self.driver.capture(work)
    }

    fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.driver.replay(graph)
    }
}

/// The GPUs that models can be computed on, by what the driver and libtorch say.
///
/// # Errors
/// Why there are none.
pub fn devices() -> Result<Vec<Found>, DeviceError> {
    let mut devices = driver::devices()?;
    devices.retain(|device| device.capability >= LEAST);
    load_torch()?;
    Ok(devices)
}

/// Loads libtorch's part for CUDA for good, from where the rest of libtorch is.
fn load_torch() -> Result<(), DeviceError> {
    // SAFETY: its initializers register what it can do, with a libtorch of the same build.
    let library = unsafe { Library::open(Some(TORCH), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|error| {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        DeviceError::Failed {
            what: "libtorch for CUDA",
            why: format!(
                "{why}; install the worker with `cargo xtask install --cuda`, or put libtorch {} of CUDA 13 with its \
                 libraries on LD_LIBRARY_PATH",
                env!("REALM_LIBTORCH_VERSION")
            ),
        }
    })?;
    std::mem::forget(library);
    Ok(())
}

/// Where compiled kernels are kept: of this user, and no relative path, as the XDG specification has it.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("realm/kernels"))
}

/// Where NVRTC is if it came with libtorch, which lies in `torch/lib` beside `nvidia`.
fn nvrtc_folder() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let torch = mapped(&maps, TORCH)?;
    let folder = torch.parent()?.join("../../nvidia/cu13/lib");
    folder.join("libnvrtc.so.13").is_file().then_some(folder)
}

/// The path of a library that is loaded, by what the system says is mapped.
fn mapped<'a>(maps: &'a str, name: &str) -> Option<&'a Path> {
    maps.lines()
        // The path comes last, and may contain spaces.
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .find(|path| path.file_name().is_some_and(|file| file == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_lacks_is_told() {
        // No machine has as many.
        let why = Gpu::open(1000).expect_err("none").to_string();
        assert!(
            why.contains("driver") || why.contains("no device 1000"),
            "{why}"
        );
    }

    #[test]
    fn loaded_libraries_are_found_among_what_is_mapped() {
        let maps = "\
7f00-7f01 r-xp 00000000 fe:00 42    /opt/a b/torch/lib/libtorch_cpu.so
7f01-7f02 rw-p 00000000 00:00 0
7f02-7f03 r--p 00000000 fe:00 43    /opt/a b/torch/lib/libtorch_cuda.so
7f04-7f05 r--p 00000000 00:00 0     [vdso]
";
        let torch = Path::new("/opt/a b/torch/lib/libtorch_cuda.so");
        assert_eq!(mapped(maps, TORCH), Some(torch));
        assert_eq!(mapped(maps, "libtorch"), None);
        // As this system writes it.
        let maps = fs::read_to_string("/proc/self/maps").expect("read");
        assert!(mapped(&maps, "libc10.so").is_some_and(Path::is_file));
    }
}
