//! What a forward pass needs of a device, whichever that is.

use crate::compile::Capability;
use crate::launch::Check;
use crate::{Element, LaunchError, Launcher, Memory};

/// A device: its memory, kernels, products of matrices, and graphs of both.
///
/// What it is asked for happens in that order, one after the other.
pub trait Device: Launcher + Send {
    /// What a capture makes.
    type Graph: Send;

    /// Memory of the host that the device copies to.
    type Landing: Send;

    /// Memory that begins at a multiple of 16 and lives as long as the device. Nothing is known of its content.
    ///
    /// # Errors
    /// If there is not as much left.
    fn allocate(&self, bytes: usize) -> Result<Memory, DeviceError>;

    /// Bytes that could be allocated now, and all that the device has.
    ///
    /// # Errors
    /// If the device fails.
    fn memory(&self) -> Result<(usize, usize), DeviceError>;

    /// Copies bytes of ordinary memory to the beginning of `to`. They may change as soon as this returns.
    ///
    /// # Errors
    /// If they are more than `to` holds, or the device fails.
    fn write(&self, to: Memory, from: &[u8]) -> Result<(), DeviceError>;

    /// Copies the beginning of `from`, as everything before leaves it: this waits.
    ///
    /// # Errors
    /// If `from` is shorter, or the device fails, or has failed at what it was asked for before.
    fn read(&self, from: Memory, into: &mut [u8]) -> Result<(), DeviceError>;

    /// Memory for so many bytes that come from the device.
    ///
    /// # Errors
    /// If the system has none.
    fn landing(&self, bytes: usize) -> Result<Self::Landing, DeviceError>;

    /// Begins to copy `from` to byte `at` of a landing, as everything before leaves it, and returns.
    ///
    /// # Errors
    /// If the landing is shorter, or the device fails.
    fn send(&self, from: Memory, landing: &mut Self::Landing, at: usize)
    -> Result<(), DeviceError>;

    /// Whether all that was sent to a landing is there.
    ///
    /// # Errors
    /// As for [`landed`](Self::landed).
    fn has_landed(&self, landing: &Self::Landing) -> Result<bool, DeviceError>;

    /// What was sent to a landing: this waits for the last of it, but not for what was asked for since.
    ///
    /// # Errors
    /// If the device fails, or has failed at what it was asked for before.
    fn landed<'a>(&self, landing: &'a mut Self::Landing) -> Result<&'a [u8], DeviceError>;

    /// Multiplies matrices.
    ///
    /// # Errors
    /// If the shapes do not fit, or the device fails.
    fn multiply(&self, product: &Product) -> Result<(), DeviceError>;

    /// What it can do.
    fn capability(&self) -> Capability;

    /// How many multiprocessors it has, over which kernels spread.
    fn multiprocessors(&self) -> usize;

    /// Makes a graph of the launches and products that `work` asks for, none of which is carried out. Only they may
    /// be asked for, and each kernel and each shape of product must have run once before.
    ///
    /// # Errors
    /// Those of `work`, or if it asks for something else.
    fn capture(
        &self,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<Self::Graph, DeviceError>;

    /// Does again what was captured: with the same addresses, shapes and parameters, and with what the memory there
    /// holds by now.
    ///
    /// # Errors
    /// If the device fails.
    fn replay(&self, graph: &Self::Graph) -> Result<(), DeviceError>;
}

/// `out = x · weightᵀ + bias`. Sums are accumulated in `f32`, or more precisely, and rounded once.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Type of all of them, but for `x` and `weight` with scales.
    pub element: Element,
    /// Rows of `x` and `out`.
    pub rows: usize,
    /// Numbers of a row of `x`.
    pub inputs: usize,
    /// Numbers of a row of `out`.
    pub outputs: usize,
    /// `[rows, inputs]`.
    pub x: Memory,
    /// `[outputs, inputs]`.
    pub weight: Memory,
    /// If `x` and `weight` are e4m3, a byte each, what they are to be multiplied by.
    pub scales: Option<Scales>,
    /// `[outputs]`.
    pub bias: Option<Memory>,
    /// `[rows, outputs]`; no part of the others.
    pub out: Memory,
}

/// Scales of both factors of a product, in `f32`. With them `out` is bf16, on a device from
/// [`FP8`](crate::compile::FP8) on, and inputs and outputs are multiples of 16.
#[derive(Debug, Clone, Copy)]
pub struct Scales {
    /// Of each row of `x`, `[rows]`.
    pub x: Memory,
    /// Of each row of `weight`, `[outputs]`.
    pub weight: Memory,
}

impl Product {
    /// Checks that the memory holds what the shapes say: whoever multiplies may rely on it then.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn check(&self) -> Result<(), DeviceError> {
        let check = Check("product");
        let Product {
            rows,
            inputs,
            outputs,
            ..
        } = *self;
        let size = self.element.size();
        for (name, n) in [("rows", rows), ("inputs", inputs), ("outputs", outputs)] {
            check.width(name, n, 1)?;
        }
        let factor = match self.scales {
            None => size,
            Some(scales) => {
                check.that(self.element == Element::Bf16, || {
                    format!("e4m3 is multiplied to bf16, not {}", self.element.name())
                })?;
                check.width("inputs", inputs, 16)?;
                check.width("outputs", outputs, 16)?;
                check.holds("scales of x", scales.x, &[rows], 4, 16)?;
                check.holds("scales of weight", scales.weight, &[outputs], 4, 16)?;
                1
            }
        };
        check.holds("x", self.x, &[rows, inputs], factor, 16)?;
        check.holds("weight", self.weight, &[outputs, inputs], factor, 16)?;
        if let Some(bias) = self.bias {
            check.holds("bias", bias, &[outputs], size, 16)?;
        }
        check.holds("out", self.out, &[rows, outputs], size, 16)?;
        Ok(())
    }
}

/// Why a device cannot be used, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no driver.
    #[error("there is no driver for NVIDIA GPUs: libcuda.so.1 cannot be loaded")]
    NoDriver,
    /// There is no such device.
    #[error("there is no device {device}: the driver has {count}")]
    NoDevice {
        /// Its number.
        device: usize,
        /// How many there are.
        count: usize,
    },
    /// It cannot run the kernels.
    #[error("device {device} is of {capability}, and kernels need {least} or later")]
    TooOld {
        /// Its number.
        device: usize,
        /// What it is.
        capability: Capability,
        /// What it should be.
        least: Capability,
    },
    /// Its memory is taken.
    #[error(
        "{wanted} bytes of memory are wanted of the device, and {free} of its {total} are free"
    )]
    Full {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that are free.
        free: usize,
        /// Bytes that it has.
        total: usize,
    },
    /// More is to be copied than there is.
    #[error("{wanted} bytes are to be copied, to or from memory that holds {holds}")]
    Bounds {
        /// Bytes to be copied.
        wanted: usize,
        /// Bytes that there are.
        holds: usize,
    },
    /// A kernel cannot be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The driver, or libtorch, failed.
    #[error("{what}: {why}")]
    Failed {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        why: String,
    },
}

impl Memory {
    /// That it holds as many bytes as are to be copied to or from it.
    ///
    /// # Errors
    /// If it does not.
    pub fn must_hold(self, wanted: usize) -> Result<(), DeviceError> {
        let holds = self.bytes();
        match wanted <= holds {
            true => Ok(()),
            false => Err(DeviceError::Bounds { wanted, holds }),
        }
    }
}
