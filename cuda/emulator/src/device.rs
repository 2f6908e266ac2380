//! The emulator as a device: with memory of its own, products, and graphs.

use std::sync::PoisonError;

use half::{bf16, f16};
use realm_cuda::compile::Capability;
use realm_cuda::{Device, DeviceError, Element, Kernel, Launch, Launcher, Memory, Product};

use crate::{Buffer, Emulator};

/// As many multiprocessors as it claims to have: kernels share out their work over a few blocks.
const MULTIPROCESSORS: usize = 3;

/// What was captured.
#[derive(Debug, Default)]
pub struct Graph(Vec<Captured>);

#[derive(Debug)]
pub(crate) enum Captured {
    Launch {
        kernel: Kernel,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        params: Vec<u8>,
    },
    Product(Product),
}

impl Captured {
    pub(crate) fn of(launch: &Launch<'_>) -> Captured {
        Captured::Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            params: launch.params.to_vec(),
        }
    }
}

impl Emulator {
    /// Adds to what is captured, if something is.
    pub(crate) fn captures(&self, captured: impl FnOnce() -> Captured) -> bool {
        let mut capture = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *capture {
            Some(graph) => graph.0.push(captured()),
            None => return false,
        }
        true
    }

    fn unless_captured(&self, what: &'static str) -> Result<(), DeviceError> {
        let capture = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        match *capture {
            None => Ok(()),
            Some(_) => Err(DeviceError::Failed {
                what,
                why: "not while a graph is captured".into(),
            }),
        }
    }
}

impl Device for Emulator {
    type Graph = Graph;
    type Landing = Vec<u8>;

    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError> {
        self.unless_captured("allocating")?;
        let (free, total) = self.memory()?;
        if bytes > free {
            return Err(DeviceError::Full {
                wanted: bytes,
                free,
                total,
            });
        }
        let buffer = Buffer::<u8>::new(bytes);
        let memory = buffer.memory();
        let mut allocated = self
            .allocated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        allocated.push(buffer);
        Ok(memory)
    }

    fn memory(&self) -> Result<(usize, usize), DeviceError> {
        let allocated = self
            .allocated
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let taken = allocated.iter().map(|buffer| buffer.values().len());
        let free = self.memory.saturating_sub(taken.sum());
        Ok((free, self.memory))
    }

    fn write(&self, to: Memory, from: &[u8]) -> Result<(), DeviceError> {
        self.unless_captured("writing")?;
        to.must_hold(from.len())?;
        // SAFETY: whoever made the memory vouches for it; nothing else touches it during a call.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), to.address() as *mut u8, from.len());
        }
        Ok(())
    }

    fn read(&self, from: Memory, into: &mut [u8]) -> Result<(), DeviceError> {
        self.unless_captured("reading")?;
        from.must_hold(into.len())?;
        // SAFETY: as for writing.
        unsafe {
            std::ptr::copy_nonoverlapping(
                from.address() as *const u8,
                into.as_mut_ptr(),
                into.len(),
            );
        }
        Ok(())
    }

    fn landing(&self, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![0xff; bytes])
    }

    fn send(&self, from: Memory, landing: &mut Vec<u8>, at: usize) -> Result<(), DeviceError> {
        let wanted = from.bytes();
        let holds = landing.len().saturating_sub(at);
        let into = landing.get_mut(at..at.saturating_add(wanted));
        self.read(from, into.ok_or(DeviceError::Bounds { wanted, holds })?)
    }

    fn has_landed(&self, _: &Vec<u8>) -> Result<bool, DeviceError> {
        Ok(true)
    }

    fn landed<'a>(&self, landing: &'a mut Vec<u8>) -> Result<&'a [u8], DeviceError> {
        Ok(landing)
    }

    fn multiply(&self, product: &Product) -> Result<(), DeviceError> {
        product.check()?;
        if self.captures(|| Captured::Product(*product)) {
            return Ok(());
        }
        match (product.scales, product.element) {
            (Some(_), _) => multiply(product, e4m3_to_f32, bf16::to_f32, bf16::from_f32),
            (None, Element::F32) => multiply(product, |x: f32| x, |x: f32| x, |x| x),
            (None, Element::Bf16) => multiply(product, bf16::to_f32, bf16::to_f32, bf16::from_f32),
            (None, Element::F16) => multiply(product, f16::to_f32, f16::to_f32, f16::from_f32),
        }
        Ok(())
    }

    fn capability(&self) -> Capability {
        self.capability
    }

    fn multiprocessors(&self) -> usize {
        MULTIPROCESSORS
    }

    fn capture(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Graph, DeviceError> {
        self.unless_captured("capturing")?;
        let locked = || self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        *locked() = Some(Graph::default());
        let worked = work();
        let graph = locked().take().unwrap_or_default();
        worked.map(|()| graph)
    }

    fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        for captured in &graph.0 {
            match captured {
                Captured::Product(product) => self.multiply(product)?,
                Captured::Launch {
                    kernel,
                    grid,
                    threads,
                    shared,
                    params,
                } => {
                    let launch = Launch {
                        kernel: *kernel,
                        grid: *grid,
                        threads: *threads,
                        shared: *shared,
                        params,
                    };
                    // SAFETY: whoever asked for it during the capture vouched for its memory, as long as the
                    // device lives.
                    unsafe { self.launch(&launch) }?;
                }
            }
        }
        Ok(())
    }
}

/// Checked products of factors of `F` that come out as `T`, by plain loops in double precision.
fn multiply<F: Copy, T: Copy>(
    product: &Product,
    factor: fn(F) -> f32,
    to_f32: fn(T) -> f32,
    from_f32: fn(f32) -> T,
) {
    let Product {
        rows,
        inputs,
        outputs,
        scales,
        ..
    } = *product;
    // SAFETY: checked to hold as many; whoever made the memory vouches for it. `out` is no part of the others.
    let (x, weight, scales, bias, out) = unsafe {
        (
            numbers(slice(product.x, rows * inputs), factor),
            numbers(slice(product.weight, outputs * inputs), factor),
            scales.map(|scales| {
                let of_x = slice::<f32>(scales.x, rows);
                (of_x, slice::<f32>(scales.weight, outputs))
            }),
            product
                .bias
                .map(|bias| numbers(slice(bias, outputs), to_f32)),
            std::slice::from_raw_parts_mut(product.out.address() as *mut T, rows * outputs),
        )
    };
    let rows = x.chunks_exact(inputs).zip(out.chunks_exact_mut(outputs));
    for (row, (x, out)) in rows.enumerate() {
        for (o, (out, weight)) in out.iter_mut().zip(weight.chunks_exact(inputs)).enumerate() {
            let terms = x.iter().zip(weight);
            let sum: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let scale = scales.map_or(1.0, |(x, weight)| f64::from(x[row]) * f64::from(weight[o]));
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
            *out = from_f32((sum * scale + bias) as f32);
        }
    }
}

fn numbers<T: Copy>(values: &[T], to_f32: fn(T) -> f32) -> Vec<f32> {
    values.iter().map(|value| to_f32(*value)).collect()
}

/// What memory holds.
///
/// # Safety
/// It holds as many of `T`, and nothing else writes to it while the slice is there.
unsafe fn slice<'a, T>(memory: Memory, count: usize) -> &'a [T] {
    // SAFETY: the caller's word.
    unsafe { std::slice::from_raw_parts(memory.address() as *const T, count) }
}

/// What a byte of e4m3 stands for.
fn e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    size.copysign(if code < 128 { 1.0 } else { -1.0 })
}
