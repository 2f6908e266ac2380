//! The emulator with somebody beside it who sees what it is asked for.

use realm_cuda::compile::Capability;
use realm_cuda::{Device, DeviceError, Kernel, Launch, LaunchError, Launcher, Memory, Product};

use crate::{Emulator, Graph};

/// What a device is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// So many bytes of memory.
    Allocate(usize),
    /// To copy so many bytes there.
    Write(usize),
    /// To copy so many bytes back, and wait for them.
    Read(usize),
    /// Memory of the host, of so many bytes.
    Landing(usize),
    /// To begin to copy so many bytes to it.
    Send(usize),
    /// Whether they are there.
    HasLanded,
    /// To wait for them.
    Landed,
    /// A launch of a kernel.
    Launch(Kernel),
    /// A product.
    Multiply,
    /// To capture a graph; what is asked for meanwhile is told, too.
    Capture,
    /// To replay one.
    Replay,
}

/// An emulator that tells `watch` what it is asked for, before it does that. It does not, and fails, where `watch` says
/// why.
#[derive(Debug)]
pub struct Watched<F> {
    device: Emulator,
    watch: F,
}

impl<F: Fn(Asked) -> Result<(), String>> Watched<F> {
    /// Watches an emulator.
    pub fn new(device: Emulator, watch: F) -> Watched<F> {
        Watched { device, watch }
    }

    fn ask(&self, asked: Asked, what: &'static str) -> Result<&Emulator, DeviceError> {
        match (self.watch)(asked) {
            Ok(()) => Ok(&self.device),
            Err(why) => Err(DeviceError::Failed { what, why }),
        }
    }
}

impl<F: Fn(Asked) -> Result<(), String>> Launcher for Watched<F> {
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        let kernel = launch.kernel;
        (self.watch)(Asked::Launch(kernel)).map_err(|why| LaunchError::Run { kernel, why })?;
        // SAFETY: the caller's word.
        unsafe { self.device.launch(launch) }
    }
}

impl<F: Fn(Asked) -> Result<(), String> + Send> Device for Watched<F> {
    type Graph = Graph;
    type Landing = Vec<u8>;

    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        self.ask(Asked::Allocate(bytes), "allocating")?
            .allocate(bytes)
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.device.memory()
    }

    fn write(&self, to: Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.ask(Asked::Write(from.len()), "writing")?
            .write(to, from)
    }

    fn read(&self, from: Memory, into: &mut [u8]) -> Result<(), DeviceError> {
        self.ask(Asked::Read(into.len()), "reading")?
            .read(from, into)
    }

    fn landing(&self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        self.ask(Asked::Landing(bytes), "making a landing")?
            .landing(bytes)
    }

    fn send(&self, from: Memory, landing: &mut Vec<u8>, at: usize) -> Result<(), DeviceError> {
        self.ask(Asked::Send(from.bytes()), "sending")?
            .send(from, landing, at)
    }

    fn has_landed(&self, landing: &Vec<u8>) -> Result<bool, DeviceError> {
        self.ask(Asked::HasLanded, "landing")?.has_landed(landing)
    }

    fn landed<'a>(&self, landing: &'a mut Vec<u8>) -> Result<&'a [u8], DeviceError> {
        self.ask(Asked::Landed, "landing")?.landed(landing)
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        self.ask(Asked::Multiply, "multiplying")?.multiply(product)
    }

    fn capability(&self) -> Capability {
        self.device.capability()
    }

    fn multiprocessors(&self) -> usize {
        self.device.multiprocessors()
    }

    fn capture(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        self.ask(Asked::Capture, "capturing")?.capture(work)
    }

    fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.ask(Asked::Replay, "replaying")?.replay(graph)
    }
}
