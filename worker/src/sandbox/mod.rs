//! What code in this process can do to the rest of the machine: as little as the system can see to.
//!
//! A worker reads files that strangers made (models) and runs code of tenants. Should either of
//! them break out of its own bounds, it is still inside these:
//!
//! ```text
//!   start     confine: no new privileges; [files] of the model and a few of the system can be
//!             read, none written; no [calls] that reach the network, programs, other processes
//!   loaded    seal: no file can be opened at all
//!   serving   what is left: memory, threads, and the descriptors that are open, which are the
//!             gateway's socket and memory, and the log
//! ```
//!
//! Both are kept in two ways where the system can: Landlock judges what a call would reach,
//! seccomp which calls there are. Each promise holds with one of them alone, but for one: without
//! Landlock any file of the user can be read until the process is sealed.
//!
//! A GPU's driver cannot begin inside of this: it names its threads in files of `/proc`, and makes
//! sockets, and gives up where it may not. So libraries, driver and kernels are loaded first, when
//! nothing has been read that a stranger made. Two things are less then. Threads that are there by
//! that time, the driver's and two of our own, have seccomp and not Landlock. And the driver opens
//! its devices anew whenever it maps memory, which seccomp cannot tell from other files that are
//! opened for reading and writing: once sealed, Landlock alone keeps those to be devices.

mod calls;
mod files;

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use anyhow::{Context, bail};
use files::Fence;
use realm_shared::device::Device;

/// What a process was confined by.
pub struct Confinement {
    device: Device,
    fence: Result<Fence, String>,
    calls: Result<(), String>,
}

/// Confines this process for good: it may read what is in the folder of a model, if there is one, and use a device
/// that is open by now.
///
/// Landlock binds the calling thread and those that it will start, so there must be no other yet, but for those that a
/// GPU has.
pub fn confine(model: Option<&Path>, device: Device) -> Confinement {
    // Landlock comes first, as its own calls are among those that are then no longer needed.
    let fence = files::fence(model, device).map_err(|e| format!("{e:#}"));
    let calls = calls::restrict(device).map_err(|e| format!("{e:#}"));
    Confinement {
        device,
        fence,
        calls,
    }
}

impl Confinement {
    /// Refuses to go on with less than all of it where that is required, or else warns.
    ///
    /// # Errors
    /// If it is required and something is missing.
    pub fn check(&self, required: bool, warn: impl FnOnce(&str)) -> anyhow::Result<()> {
        let mut missing = Vec::new();
        if let Err(why) = &self.fence {
            let reach = match self.device {
                Device::Cpu => "read every file of its user until the model is loaded",
                Device::Cuda(_) => "read and write every file of its user",
            };
            missing.push(format!(
                "without Landlock it can {reach} ({why}; Linux has it since 5.13, where `lsm=` names `landlock`)"
            ));
        }
        if let Err(why) = &self.calls {
            missing.push(format!(
                "without seccomp it can open sockets and start programs ({why})"
            ));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let missing = missing.join("; ");
        if required {
            bail!("--require-sandbox: the system cannot confine this worker: {missing}");
        }
        warn(&format!("the system cannot confine this worker: {missing}"));
        Ok(())
    }

    /// Keeps all threads of this process, old and new, from opening any file from now on, but for devices of a GPU.
    ///
    /// # Errors
    /// If the system can do that in general, and did not.
    pub fn seal(self) -> anyhow::Result<()> {
        match self.calls {
            Ok(()) => {
                calls::seal(self.device).context("cannot keep this worker from opening files")
            }
            // Whoever may go on without has been warned.
            Err(_) => Ok(()),
        }
    }

    /// The version of Landlock's interface, if it is in force.
    pub fn landlock(&self) -> Option<u32> {
        self.fence.as_ref().ok().map(Fence::version)
    }

    /// Whether seccomp is in force.
    pub fn seccomp(&self) -> bool {
        self.calls.is_ok()
    }
}

impl Display for Confinement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.fence {
            Ok(fence) => write!(f, "Landlock {}", fence.version())?,
            Err(why) => write!(f, "no Landlock ({why})")?,
        }
        match &self.calls {
            Ok(()) => f.write_str(", seccomp"),
            Err(why) => write!(f, ", no seccomp ({why})"),
        }
    }
}
