//! Graphs: what was asked for once, to be done again by one call.

use std::sync::atomic::Ordering;

use cudarc::driver::{result, sys};

use super::{Driver, failed};
use crate::DeviceError;

/// What was captured, ready to be launched.
#[derive(Debug)]
pub struct Graph {
    context: sys::CUcontext,
    exec: sys::CUgraphExec,
}

// SAFETY: graphs of the driver belong to no thread; it is launched through a reference to its device, and dropped once.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the context is never released. A launch that is under way is completed before it is destroyed.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::graph::exec_destroy(self.exec);
        }
    }
}

impl Driver {
    /// Makes a graph of the launches that `work` asks for, on this thread. What a library launches on the same stream
    /// is part of it, too. Calls of other threads are not disturbed.
    ///
    /// # Errors
    /// Those of `work`, or if it did what cannot be captured.
    pub fn capture(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        use sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.unless_captured("cuStreamBeginCapture")?;
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::begin_capture(self.stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) }
            .map_err(failed("cuStreamBeginCapture"))?;
        self.capturing.store(true, Ordering::Relaxed);
        let worked = work();
        self.capturing.store(false, Ordering::Relaxed);
        // Also after work that failed: the stream could do nothing else otherwise.
        // SAFETY: as above.
        let captured = unsafe { result::stream::end_capture(self.stream) }.map(Template);
        // What went wrong there explains why nothing was captured.
        worked?;
        let graph = captured.map_err(failed("cuStreamEndCapture"))?;
        // SAFETY: there is a graph.
        let exec = unsafe { result::graph::instantiate(graph.0, sys::CUgraphInstantiate_flags(0)) };
        let graph = Graph {
            context: self.context,
            exec: exec.map_err(failed("cuGraphInstantiate"))?,
        };
        // All memory that it needs it takes now, and not when it is launched first.
        // SAFETY: graph and stream are there.
        unsafe { result::graph::upload(graph.exec, self.stream) }
            .map_err(failed("cuGraphUpload"))?;
        Ok(graph)
    }

    /// Launches a graph.
    ///
    /// # Errors
    /// If the device fails, or a graph is captured.
    pub fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.unless_captured("cuGraphLaunch")?;
        self.enter().map_err(failed("cuCtxSetCurrent"))?;
        // SAFETY: graph and stream are there.
        unsafe { result::graph::launch(graph.exec, self.stream) }.map_err(failed("cuGraphLaunch"))
    }
}

/// What a capture leaves. It is of no use once it is instantiated.
struct Template(sys::CUgraph);

impl Drop for Template {
    fn drop(&mut self) {
        // SAFETY: made by a capture, and used by nobody else.
        let _ = unsafe { result::graph::destroy(self.0) };
    }
}
