//! A device by its driver: launches, memory, copies and graphs. Products are the matter of a library.

mod graph;
mod memory;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{result, sys};

use crate::compile::{Capability, Cubins, LEAST};
use crate::{DeviceError, Kernel, Launch, LaunchError, Launcher, Unit};

pub use graph::Graph;
pub use memory::PageLocked;

/// Dynamic shared memory of a block that needs no permission, in bytes.
const SHARED_FREE: u32 = 48 << 10;

fn failed(what: &'static str) -> impl Fn(result::DriverError) -> DeviceError {
    move |error| DeviceError::Failed {
        what,
        why: error.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many devices the driver has.
///
/// # Errors
/// If there is no driver, or it cannot be initialized.
pub fn count() -> Result<usize, DeviceError> {
    // What follows would end the process if the library were not there.
    // SAFETY: its initializers do nothing but initialize it.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    result::init().map_err(failed("cuInit"))?;
    let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// A device that the driver has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub number: usize,
    /// What its maker calls it.
    pub name: String,
    /// Bytes of memory.
    pub memory: usize,
    /// What it can do.
    pub capability: Capability,
}

/// The devices that the driver has.
///
/// # Errors
/// As for [`count`], and if it does not know its devices.
pub fn devices() -> Result<Vec<Found>, DeviceError> {
    let found = |number| {
        let handle = result::device::get(number as c_int).map_err(failed("cuDeviceGet"))?;
        // SAFETY: the device is one of the driver's.
        let memory = unsafe { result::device::total_mem(handle) };
        Ok(Found {
            number,
            name: result::device::get_name(handle).map_err(failed("cuDeviceGetName"))?,
            memory: memory.map_err(failed("cuDeviceTotalMem"))?,
            capability: capability(handle)?,
        })
    };
    (0..count()?).map(found).collect()
}

fn attribute(device: sys::CUdevice, name: sys::CUdevice_attribute) -> Result<i32, DeviceError> {
    // SAFETY: the device is one of the driver's.
    unsafe { result::device::get_attribute(device, name) }.map_err(failed("cuDeviceGetAttribute"))
}

fn capability(device: sys::CUdevice) -> Result<Capability, DeviceError> {
    use sys::CUdevice_attribute as Attribute;
    let major = attribute(
        device,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
    )?;
    let minor = attribute(
        device,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    )?;
    Ok(Capability((10 * major + minor).cast_unsigned()))
}

/// A stream of a device, on which all happens that is asked for, one after the other.
///
/// Modules stay loaded as long as the process lives.
#[derive(Debug)]
pub struct Driver {
    context: sys::CUcontext,
    stream: sys::CUstream,
    capability: Capability,
    multiprocessors: usize,
    cubins: Cubins,
    loaded: Mutex<Loaded>,
    /// What was allocated, and is freed at the end.
    allocated: Mutex<Vec<sys::CUdeviceptr>>,
    /// None until something is written.
    staging: Mutex<Option<memory::Staging>>,
    /// A graph is captured.
    capturing: AtomicBool,
}

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<Unit, sys::CUmodule>,
    functions: HashMap<Kernel, Function>,
}

#[derive(Debug, Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that it may have, in bytes.
    shared: u32,
}

// SAFETY: contexts, streams, modules and memory of the driver belong to no thread.
unsafe impl Send for Driver {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Driver {}

impl Driver {
    /// For a stream of the primary context of a device, which libtorch uses too.
    ///
    /// # Errors
    /// If there is no such device, or it is too old.
    ///
    /// # Safety
    /// `stream` is a stream of that context, or null, and lives as long as this does.
    pub unsafe fn new(
        device: usize,
        stream: *mut c_void,
        cubins: Cubins,
    ) -> Result<Driver, DeviceError> {
        let count = count()?;
        if device >= count {
            return Err(DeviceError::NoDevice { device, count });
        }
        let handle = result::device::get(device as c_int).map_err(failed("cuDeviceGet"))?;
        let capability = capability(handle)?;
        if capability < LEAST {
            return Err(DeviceError::TooOld {
                device,
                capability,
                least: LEAST,
            });
        }
        let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = attribute(handle, count)?;
        // SAFETY: the device is one of the driver's.
        let context = unsafe { result::primary_ctx::retain(handle) };
        Ok(Driver {
            context: context.map_err(failed("cuDevicePrimaryCtxRetain"))?,
            stream: stream.cast(),
            capability,
            multiprocessors: usize::try_from(multiprocessors).unwrap_or(1).max(1),
            cubins,
            loaded: Mutex::default(),
            allocated: Mutex::default(),
            staging: Mutex::default(),
            capturing: AtomicBool::new(false),
        })
    }

    /// Makes the context the one of the thread that calls, whichever that is.
    fn enter(&self) -> Result<(), result::DriverError> {
        // SAFETY: retained when this was made, and never released.
        unsafe { result::ctx::set_current(self.context) }
    }

    fn unless_captured(&self, what: &'static str) -> Result<(), DeviceError> {
        match self.capturing.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(DeviceError::Failed {
                what,
                why: "not while a graph is captured".into(),
            }),
        }
    }

    /// How many multiprocessors the device has.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// What the device can do.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// Loads kernels ahead of their launches, compiling what is not there yet: a launch while a graph is captured,
    /// or a step is waited for, must not.
    ///
    /// # Errors
    /// As for a launch.
    pub fn prepare(&self, kernels: &[Kernel]) -> Result<(), LaunchError> {
        kernels
            .iter()
            .try_for_each(|kernel| self.function(*kernel, 0).map(|_| ()))
    }

    /// The function of a kernel that may have `shared` bytes of dynamic shared memory.
    fn function(&self, kernel: Kernel, shared: u32) -> Result<sys::CUfunction, LaunchError> {
        self.enter()
            .map_err(driver_error(kernel, "cuCtxSetCurrent"))?;
        let mut loaded = lock(&self.loaded);
        let Loaded { modules, functions } = &mut *loaded;
        let mut function = match functions.get(&kernel) {
            Some(function) => *function,
            None => Function {
                handle: self.load(kernel, modules)?,
                shared: SHARED_FREE,
            },
        };
        if shared > function.shared {
            use sys::CUfunction_attribute_enum as Attribute;
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            // SAFETY: a function of a module that is never unloaded.
            unsafe { result::function::set_function_attribute(function.handle, attribute, bytes) }
                .map_err(driver_error(kernel, "cuFuncSetAttribute"))?;
            function.shared = shared;
        }
        functions.insert(kernel, function);
        Ok(function.handle)
    }

    /// The function of a kernel whose module is loaded if it is not yet. The context is current.
    fn load(
        &self,
        kernel: Kernel,
        modules: &mut HashMap<Unit, sys::CUmodule>,
    ) -> Result<sys::CUfunction, LaunchError> {
        let module = match modules.get(&kernel.unit) {
            Some(module) => *module,
            None => {
                let cubin = self.cubins.get(kernel.unit, self.capability)?;
                // SAFETY: what NVRTC made; the driver copies it.
                let module = unsafe { result::module::load_data(cubin.as_ptr().cast()) };
                let module = module.map_err(driver_error(kernel, "cuModuleLoadData"))?;
                modules.insert(kernel.unit, module);
                module
            }
        };
        let name = CString::new(kernel.name).map_err(|e| LaunchError::Run {
            kernel,
            why: e.to_string(),
        })?;
        // SAFETY: the module is never unloaded.
        let handle = unsafe { result::module::get_function(module, name) };
        handle.map_err(driver_error(kernel, "cuModuleGetFunction"))
    }
}

fn driver_error(kernel: Kernel, what: &'static str) -> impl Fn(result::DriverError) -> LaunchError {
    move |error| LaunchError::Run {
        kernel,
        why: format!("{what}: {error}"),
    }
}

impl Launcher for Driver {
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        let function = self.function(launch.kernel, launch.shared)?;
        let [x, y, z] = launch.grid;
        // The driver reads the struct, and copies it before it returns.
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the caller vouches for the parameters, whose one struct is all that the kernel takes.
        let launched = unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                self.stream,
                &mut params,
            )
        };
        launched.map_err(driver_error(launch.kernel, "cuLaunchKernel"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_told() {
        // SAFETY: no stream is named.
        let made = unsafe { Driver::new(1000, std::ptr::null_mut(), Cubins::new(None, None)) };
        let why = made.expect_err("no machine has as many devices");
        assert!(
            matches!(
                why,
                DeviceError::NoDriver | DeviceError::NoDevice { .. } | DeviceError::Failed { .. }
            ),
            "{why}"
        );
    }
}
