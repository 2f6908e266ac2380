//! Memory of a device, memory of the host that it reaches by itself, and copies between them.

use std::ptr::NonNull;
use std::slice;

use cudarc::driver::{result, sys};

use super::{Driver, failed, lock};
use crate::{DeviceError, Memory};

/// Bytes of a half of [`Staging`]: enough that copies of weights wait for the bus alone.
const HALF: usize = 8 << 20;

impl Driver {
    /// Memory that lives as long as this, and begins where the driver lets memory begin: at a multiple of 256.
    ///
    /// # Errors
    /// If there is not as much left, or a graph is captured.
    pub fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        self.unless_captured("cuMemAlloc")?;
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        // The driver refuses to allocate nothing.
        // SAFETY: nobody takes what is there for values.
        let address = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = self.memory()?;
                return Err(DeviceError::Full {
                    wanted: bytes,
                    free,
                    total,
                });
            }
            allocated => allocated.map_err(failed("cuMemAlloc"))?,
        };
        lock(&self.allocated).push(address);
        // SAFETY: just allocated, and freed with this.
        Ok(unsafe { Memory::new(address, bytes) })
    }

    /// Bytes that are free, whoever could take them, and all that the device has.
    ///
    /// # Errors
    /// If the device fails.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        result::mem_get_info().map_err(failed("cuMemGetInfo"))
    }

    /// Copies bytes to the beginning of `to`. They may change when this returns: by then they lie in memory of this,
    /// from which the device takes them in its own time.
    ///
    /// # Errors
    /// If they are more than `to` holds, the device fails, or a graph is captured.
    pub fn write(&self, to: Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.unless_captured("cuMemcpyHtoDAsync")?;
        to.must_hold(from.len())?;
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        let mut staging = lock(&self.staging);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => none.insert(Staging::new(self)?),
        };
        let mut address = to.address();
        let mut left = from;
        while !left.is_empty() {
            let staged = staging.stage(left, self.stream)?;
            // SAFETY: whoever made the memory vouches for it. What is staged stays until it has been sent.
            unsafe { result::memcpy_htod_async(address, staged, self.stream) }
                .map_err(failed("cuMemcpyHtoDAsync"))?;
            address += staged.len() as u64;
            left = &left[staged.len()..];
        }
        Ok(())
    }

    /// Copies the beginning of `from` when all that was asked for before has been done.
    ///
    /// # Errors
    /// If `from` is shorter, a graph is captured, or the device fails or has failed before.
    pub fn read(&self, from: Memory, into: &mut [u8]) -> Result<(), DeviceError> {
        self.unless_captured("cuMemcpyDtoHAsync")?;
        from.must_hold(into.len())?;
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        if !into.is_empty() {
            // SAFETY: whoever made the memory vouches for it. Nobody looks at `into` before the wait below is over.
            unsafe { result::memcpy_dtoh_async(into, from.address(), self.stream) }
                .map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        // Also after a copy that failed part of the way, `into` is nobody's but the caller's.
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // A device that failed refuses all of it, and gives back everything when the process ends.
        if self.enter().is_err() {
            return;
        }
        // SAFETY: the stream is still there. Nothing uses the memory after it has come to its end, and whoever has a
        // `Memory` of it was told that it lives as long as this.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for address in lock(&self.allocated).drain(..) {
                let _ = result::free_sync(address);
            }
        }
    }
}

/// Memory in which bytes wait to be sent. From ordinary memory the driver may read later than its call returns, where
/// the device reads such memory by itself.
#[derive(Debug)]
pub(super) struct Staging {
    halves: [PageLocked; 2],
    /// Which of them is filled.
    current: usize,
    /// How far.
    filled: usize,
}

impl Staging {
    fn new(driver: &Driver) -> Result<Staging, DeviceError> {
        Ok(Staging {
            halves: [driver.page_locked(HALF)?, driver.page_locked(HALF)?],
            current: 0,
            filled: 0,
        })
    }

    /// Copies the beginning of some bytes, as much as there is room for, and at least one.
    fn stage(&mut self, bytes: &[u8], stream: sys::CUstream) -> Result<&[u8], DeviceError> {
        if self.filled == HALF {
            self.halves[self.current].mark(stream)?;
            self.current = 1 - self.current;
            self.filled = 0;
            self.halves[self.current].wait()?;
        }
        let count = bytes.len().min(HALF - self.filled);
        // SAFETY: inside of the half. What of it was not filled since it was last waited for, nobody reads.
        let room = unsafe {
            let first = self.halves[self.current].memory.add(self.filled);
            slice::from_raw_parts_mut(first.as_ptr(), count)
        };
        room.copy_from_slice(&bytes[..count]);
        self.filled += count;
        Ok(room)
    }
}

/// Memory of the host that stays where it is, so that the device copies to and from it while the host goes on.
#[derive(Debug)]
pub struct PageLocked {
    context: sys::CUcontext,
    memory: NonNull<u8>,
    bytes: usize,
    /// Comes after the copies that were asked for until it was last marked.
    copied: sys::CUevent,
}

// SAFETY: memory and events of the driver belong to no thread.
unsafe impl Send for PageLocked {}

impl Driver {
    /// So many bytes, which are zero.
    ///
    /// # Errors
    /// If the system has none left that it could lock.
    pub fn page_locked(&self, bytes: usize) -> Result<PageLocked, DeviceError> {
        use sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        self.unless_captured("cuMemHostAlloc")?;
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        // The driver refuses to allocate nothing.
        // SAFETY: plain bytes, which are written before they are read.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) };
        let memory = memory.map_err(failed("cuMemHostAlloc"))?;
        let memory = NonNull::new(memory.cast::<u8>()).ok_or_else(|| DeviceError::Failed {
            what: "cuMemHostAlloc",
            why: "there is none".into(),
        })?;
        let copied = match result::event::create(CU_EVENT_DISABLE_TIMING) {
            Ok(event) => event,
            Err(error) => {
                // SAFETY: just allocated.
                let _ = unsafe { result::free_host(memory.as_ptr().cast()) };
                return Err(failed("cuEventCreate")(error));
            }
        };
        // SAFETY: just allocated, and nobody else's.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(PageLocked {
            context: self.context,
            memory,
            bytes,
            copied,
        })
    }

    /// Begins to copy `from` to byte `at` of `into`, when all that was asked for before has been done, and returns.
    ///
    /// # Errors
    /// If `into` is shorter, a graph is captured, or the device fails.
    pub fn send(&self, from: Memory, into: &mut PageLocked, at: usize) -> Result<(), DeviceError> {
        self.unless_captured("cuMemcpyDtoHAsync")?;
        let (wanted, holds) = (from.bytes(), into.bytes.saturating_sub(at));
        if wanted > holds {
            return Err(DeviceError::Bounds { wanted, holds });
        }
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        if wanted > 0 {
            // SAFETY: inside of both; whoever made `from` vouches for it. `into` stays until the copy is over, and
            // nobody looks at it before: whoever does waits.
            unsafe {
                let into = into.memory.as_ptr().add(at).cast();
                sys::cuMemcpyDtoHAsync_v2(into, from.address(), wanted, self.stream)
            }
            .result()
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        }
        into.mark(self.stream)
    }

    /// Whether all that was sent there has come.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn has_landed(&self, landing: &PageLocked) -> Result<bool, DeviceError> {
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the event is there.
        match unsafe { result::event::query(landing.copied) } {
            Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            result => result.map(|()| true).map_err(failed("cuEventQuery")),
        }
    }

    /// What was sent there, when all of it has come.
    ///
    /// # Errors
    /// If the device has failed.
    pub fn landed<'a>(&self, landing: &'a mut PageLocked) -> Result<&'a [u8], DeviceError> {
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        landing.wait()?;
        // SAFETY: as many bytes, which were zero at first. The device copies none there while they are borrowed.
        Ok(unsafe { slice::from_raw_parts(landing.memory.as_ptr(), landing.bytes) })
    }
}

impl PageLocked {
    /// With the context current, as in what follows.
    fn mark(&self, stream: sys::CUstream) -> Result<(), DeviceError> {
        // SAFETY: event and stream are there.
        unsafe { result::event::record(self.copied, stream) }.map_err(failed("cuEventRecord"))
    }

    /// Waits for the copies that were marked. An event that was never recorded is over.
    fn wait(&self) -> Result<(), DeviceError> {
        // SAFETY: the event is there.
        unsafe { result::event::synchronize(self.copied) }.map_err(failed("cuEventSynchronize"))
    }
}

impl Drop for PageLocked {
    fn drop(&mut self) {
        // SAFETY: the context is never released, and memory and event were made with this. No copy is under way: this
        // waits for those that were marked, and the driver for all before it drops its staging.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = self.wait();
            let _ = result::event::destroy(self.copied);
            let _ = result::free_host(self.memory.as_ptr().cast());
        }
    }
}
