//! Weights in the memory of a device.

use bytemuck::cast_slice;
use half::{bf16, f16};
use realm_cuda::{Device, DeviceError, Memory};

use crate::config::{DType, DecoderConfig};
use crate::kernels::Element;
use crate::parameters::{DecoderWeights, Hold, Stack};
use crate::weights::{View, Weights, WeightsError};

/// Values that are converted at once.
const CHUNK: usize = 1 << 20;

/// A matrix `[outputs, inputs]` on a device.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Its rows, one after the other.
    pub weight: Memory,
    /// `[outputs]`, of the same type.
    pub bias: Option<Memory>,
    /// How many rows.
    pub outputs: usize,
    /// Numbers of a row.
    pub inputs: usize,
}

impl Matrix {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.map_or(0, Memory::bytes)
    }
}

/// Why weights do not get onto a device.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// They are not what they should be.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device has no room for them, or fails.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Copies all weights to a device: matrices as values of `dtype`, vectors as `f32`. What the checkpoint holds in that
/// type is not touched on its way. `progress` is called with the bytes read so far.
///
/// # Errors
/// If a tensor is missing, has another shape than the config asks for, or would be ignored; or if the device has no
/// room for it, or fails.
pub fn upload<D: Device>(
    device: &D,
    dtype: DType,
    config: &DecoderConfig,
    checkpoint: &Weights,
    progress: &mut dyn FnMut(u64),
) -> Result<DecoderWeights<Matrix, Memory>, UploadError> {
    // Before minutes of copying.
    let wanted = usize::try_from(checkpoint.parameters()).unwrap_or(usize::MAX);
    let wanted = wanted.saturating_mul(dtype.size());
    let (free, total) = device.memory()?;
    if wanted > free {
        let full = DeviceError::Full {
            wanted,
            free,
            total,
        };
        return Err(full.into());
    }
    DecoderWeights::load(config, checkpoint, &mut Upload { device, dtype }, progress)
}

struct Upload<'a, D> {
    device: &'a D,
    dtype: DType,
}

impl<D: Device> Hold for Upload<'_, D> {
    type Matrix = Matrix;
    type Vector = Memory;
    type Error = UploadError;

    fn matrix(&mut self, stack: &Stack<'_>) -> Result<Matrix, UploadError> {
        let Stack {
            outputs, inputs, ..
        } = *stack;
        let weight = self.write(&stack.parts, outputs, inputs, self.dtype)?;
        let bias = match stack.bias.as_slice() {
            [] => None,
            parts => Some(self.write(parts, outputs, 1, self.dtype)?),
        };
        Ok(Matrix {
            weight,
            bias,
            outputs,
            inputs,
        })
    }

    fn vector(&mut self, values: View<'_>) -> Result<Memory, UploadError> {
        Ok(self.write(&[(0, values)], values.count(), 1, DType::F32)?)
    }
}

impl<D: Device> Upload<'_, D> {
    /// Memory of `rows` rows of so many values of `dtype`, filled with `parts` from the rows of their numbers on.
    fn write(
        &self,
        parts: &[(usize, View<'_>)],
        rows: usize,
        width: usize,
        dtype: DType,
    ) -> Result<Memory, DeviceError> {
        let memory = self.device.allocate(rows * width * dtype.size())?;
        for (first, view) in parts {
            let first = first * width;
            match (view.as_bytes(dtype), dtype) {
                (Some(bytes), _) => {
                    let at = first * dtype.size();
                    self.device.write(part(memory, at, bytes.len())?, bytes)?;
                }
                (None, DType::F32) => self.convert::<f32>(view, memory, first)?,
                (None, DType::BF16) => self.convert::<bf16>(view, memory, first)?,
                (None, DType::F16) => self.convert::<f16>(view, memory, first)?,
            }
        }
        Ok(memory)
    }

    /// Writes the values of a view to memory that holds values of `T`, from number `first` on.
    fn convert<T: Element>(
        &self,
        view: &View<'_>,
        memory: Memory,
        first: usize,
    ) -> Result<(), DeviceError> {
        let mut chunk = vec![T::from_f32(0.0); CHUNK.min(view.count())];
        for from in (0..view.count()).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(view.count() - from)];
            view.read(from, chunk);
            let bytes: &[u8] = cast_slice(chunk);
            let at = (first + from) * size_of::<T>();
            self.device.write(part(memory, at, bytes.len())?, bytes)?;
        }
        Ok(())
    }
}

/// `bytes` of memory from byte `at` on.
pub(super) fn part(memory: Memory, at: usize, bytes: usize) -> Result<Memory, DeviceError> {
    memory.part(at, bytes).ok_or(DeviceError::Bounds {
        wanted: at.saturating_add(bytes),
        holds: memory.bytes(),
    })
}
