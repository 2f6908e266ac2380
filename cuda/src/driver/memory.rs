//! Memory of a device, and copies to and from it.

use std::ffi::c_void;
use std::ptr::NonNull;

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
            none => none.insert(Staging::new()?),
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
        // While the context is current.
        *lock(&self.staging) = None;
    }
}

/// Page-locked memory in which bytes wait to be sent. From ordinary memory the driver may read later than its call
/// returns, where the device reads such memory by itself.
#[derive(Debug)]
pub(super) struct Staging {
    halves: [Half; 2],
    /// Which of them is filled.
    current: usize,
    /// How far.
    filled: usize,
}

#[derive(Debug)]
struct Half {
    memory: NonNull<u8>,
    /// When all has been sent that was in it.
    sent: sys::CUevent,
}

// SAFETY: memory and events of the driver belong to no thread.
unsafe impl Send for Half {}

impl Staging {
    /// With the context current.
    fn new() -> Result<Staging, DeviceError> {
        Ok(Staging {
            halves: [Half::new()?, Half::new()?],
            current: 0,
            filled: 0,
        })
    }

    /// Copies the beginning of some bytes, as much as there is room for, and at least one.
    fn stage(&mut self, bytes: &[u8], stream: sys::CUstream) -> Result<&[u8], DeviceError> {
        if self.filled == HALF {
            // SAFETY: event and stream are there.
            unsafe { result::event::record(self.halves[self.current].sent, stream) }
                .map_err(failed("cuEventRecord"))?;
            self.current = 1 - self.current;
            self.filled = 0;
            // One that was never recorded has been reached.
            // SAFETY: the event is there.
            unsafe { result::event::synchronize(self.halves[self.current].sent) }
                .map_err(failed("cuEventSynchronize"))?;
        }
        let count = bytes.len().min(HALF - self.filled);
        // SAFETY: inside of the half. What of it was not filled since it was last waited for, nobody reads.
        let room = unsafe {
            let first = self.halves[self.current].memory.add(self.filled);
            std::slice::from_raw_parts_mut(first.as_ptr(), count)
        };
        room.copy_from_slice(&bytes[..count]);
        self.filled += count;
        Ok(room)
    }
}

impl Half {
    fn new() -> Result<Half, DeviceError> {
        use sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let sent =
            result::event::create(CU_EVENT_DISABLE_TIMING).map_err(failed("cuEventCreate"))?;
        // SAFETY: plain bytes, which are written before they are read.
        let memory = unsafe { result::malloc_host(HALF, 0) };
        let memory = memory.map_err(failed("cuMemHostAlloc")).and_then(|memory| {
            NonNull::new(memory.cast()).ok_or_else(|| DeviceError::Failed {
                what: "cuMemHostAlloc",
                why: "it gave none".into(),
            })
        });
        match memory {
            Ok(memory) => Ok(Half { memory, sent }),
            Err(error) => {
                // SAFETY: just made.
                let _ = unsafe { result::event::destroy(sent) };
                Err(error)
            }
        }
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        // SAFETY: both were made with this. The driver sees to what is still under way.
        unsafe {
            let _ = result::event::destroy(self.sent);
            let _ = result::free_host(self.memory.as_ptr().cast::<c_void>());
        }
    }
}
