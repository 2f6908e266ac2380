//! Launching kernels on a device, by its driver.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use crate::compile::{Capability, Cubins, LEAST};
use crate::{DeviceError, Kernel, Launch, LaunchError, Launcher, Unit};

/// Dynamic shared memory of a block that needs no permission, in bytes.
const SHARED_FREE: u32 = 48 << 10;

fn failed(what: &'static str) -> impl Fn(result::DriverError) -> DeviceError {
    move |error| DeviceError::Failed {
        what,
        why: error.to_string(),
    }
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

/// Launches kernels on a stream of a device.
///
/// Modules stay loaded as long as the process lives.
#[derive(Debug)]
pub struct Driver {
    context: sys::CUcontext,
    stream: sys::CUstream,
    capability: Capability,
    cubins: Cubins,
    loaded: Mutex<Loaded>,
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

// SAFETY: contexts, streams and modules of the driver belong to no thread.
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
        // SAFETY: the device is one of the driver's.
        let (major, minor, context) = unsafe {
            use sys::CUdevice_attribute as Attribute;
            let attribute = |name| {
                result::device::get_attribute(handle, name).map_err(failed("cuDeviceGetAttribute"))
            };
            (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
                result::primary_ctx::retain(handle).map_err(failed("cuDevicePrimaryCtxRetain"))?,
            )
        };
        let capability = Capability((10 * major + minor).cast_unsigned());
        if capability < LEAST {
            return Err(DeviceError::TooOld {
                device,
                capability,
                least: LEAST,
            });
        }
        Ok(Driver {
            context,
            stream: stream.cast(),
            capability,
            cubins,
            loaded: Mutex::default(),
        })
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
        // Whichever thread calls.
        // SAFETY: retained when this was made.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(driver_error(kernel, "cuCtxSetCurrent"))?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
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
