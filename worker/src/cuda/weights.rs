//! Weights in the memory of a device.

use std::ops::Range;

use bytemuck::cast_slice;
use half::{bf16, f16};
use realm_cuda::quantize::QuantizeRows;
use realm_cuda::{Device, DeviceError, LaunchError, Memory};

use crate::config::{DType, DecoderConfig, Quantization};
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
    /// If they are e4m3, what each row is to be multiplied by, `[outputs]` of `f32`.
    pub scales: Option<Memory>,
    /// `[outputs]`, in the type of the pass.
    pub bias: Option<Memory>,
    /// How many rows.
    pub outputs: usize,
    /// Numbers of a row.
    pub inputs: usize,
}

impl Matrix {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let more = self.scales.into_iter().chain(self.bias);
        self.weight.bytes() + more.map(Memory::bytes).sum::<usize>()
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

impl From<LaunchError> for UploadError {
    fn from(error: LaunchError) -> UploadError {
        UploadError::Device(error.into())
    }
}

/// Copies all weights to a device: matrices as values of `dtype`, or quantized there from bf16; vectors as `f32`. What
/// the checkpoint holds in that type is not touched on its way. `progress` is called with the bytes read so far.
///
/// # Errors
/// If a tensor is missing, has another shape than the config asks for, or would be ignored; or if the device has no
/// room for it, or fails.
pub fn upload<D: Device>(
    device: &D,
    dtype: DType,
    quantization: Option<Quantization>,
    config: &DecoderConfig,
    checkpoint: &Weights,
    progress: &mut dyn FnMut(u64),
) -> Result<DecoderWeights<Matrix, Memory>, UploadError> {
    // Before minutes of copying.
    let all = usize::try_from(checkpoint.parameters()).unwrap_or(usize::MAX);
    let wanted = match quantization {
        None => all.saturating_mul(dtype.size()),
        Some(Quantization::Fp8) => {
            let table = config.vocab.saturating_mul(config.hidden);
            let tables = table.saturating_mul(if config.tied { 1 } else { 2 });
            all.saturating_add(tables.saturating_mul(dtype.size() - 1))
        }
    };
    let (free, total) = device.memory()?;
    if wanted > free {
        let full = DeviceError::Full {
            wanted,
            free,
            total,
        };
        return Err(full.into());
    }
    let staging = quantization.map(|Quantization::Fp8| {
        let row = config.hidden.max(config.intermediate);
        let row = row.max(config.heads * config.head_dim);
        device.allocate(row.max(CHUNK) * DType::BF16.size())
    });
    let mut upload = Upload {
        device,
        dtype,
        staging: staging.transpose()?,
    };
    DecoderWeights::load(config, checkpoint, &mut upload, progress)
}

struct Upload<'a, D> {
    device: &'a D,
    dtype: DType,
    /// If matrices are quantized: room for some of their rows, at least one, as they are before.
    staging: Option<Memory>,
}

impl<D: Device> Hold for Upload<'_, D> {
    type Matrix = Matrix;
    type Vector = Memory;
    type Error = UploadError;

    fn matrix(&mut self, stack: &Stack<'_>) -> Result<Matrix, UploadError> {
        let Stack {
            outputs, inputs, ..
        } = *stack;
        let (weight, scales) = match self.staging {
            None => (self.write(&stack.parts, outputs, inputs, self.dtype)?, None),
            Some(staging) => {
                let (weight, scales) = self.quantize(stack, staging)?;
                (weight, Some(scales))
            }
        };
        let bias = match stack.bias.as_slice() {
            [] => None,
            parts => Some(self.write(parts, outputs, 1, self.dtype)?),
        };
        Ok(Matrix {
            weight,
            scales,
            bias,
            outputs,
            inputs,
        })
    }

    fn table(&mut self, stack: &Stack<'_>) -> Result<Matrix, UploadError> {
        let Stack {
            outputs, inputs, ..
        } = *stack;
        Ok(Matrix {
            weight: self.write(&stack.parts, outputs, inputs, self.dtype)?,
            scales: None,
            bias: None,
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
            let (first, all) = (first * width, 0..view.count());
            self.copy(view, all, dtype, memory, first)?;
        }
        Ok(memory)
    }

    /// A matrix as e4m3, with its scales: a few rows after the other are copied to `staging`, and quantized from there.
    fn quantize(
        &self,
        stack: &Stack<'_>,
        staging: Memory,
    ) -> Result<(Memory, Memory), UploadError> {
        let width = stack.inputs;
        let weight = self.device.allocate(stack.outputs * width)?;
        let scales = self.device.allocate(stack.outputs * size_of::<f32>())?;
        let most = staging.bytes() / (width * DType::BF16.size());
        for (first, view) in &stack.parts {
            let rows = view.count() / width;
            for from in (0..rows).step_by(most) {
                let rows = most.min(rows - from);
                let values = from * width..(from + rows) * width;
                self.copy(view, values, DType::BF16, staging, 0)?;
                let row = first + from;
                let quantize = QuantizeRows {
                    rows,
                    width,
                    x: staging,
                    out: part(weight, row * width, rows * width)?,
                    scales: part(scales, row * size_of::<f32>(), rows * size_of::<f32>())?,
                };
                quantize.launch(self.device)?;
            }
        }
        Ok((weight, scales))
    }

    /// Writes some values of a view to memory that holds values of `dtype`, from number `to` on.
    fn copy(
        &self,
        view: &View<'_>,
        values: Range<usize>,
        dtype: DType,
        memory: Memory,
        to: usize,
    ) -> Result<(), DeviceError> {
        let size = dtype.size();
        match (view.as_bytes(dtype), dtype) {
            (Some(bytes), _) => {
                let bytes = &bytes[values.start * size..values.end * size];
                self.device
                    .write(part(memory, to * size, bytes.len())?, bytes)
            }
            (None, DType::F32) => self.convert::<f32>(view, values, memory, to),
            (None, DType::BF16) => self.convert::<bf16>(view, values, memory, to),
            (None, DType::F16) => self.convert::<f16>(view, values, memory, to),
        }
    }

    /// The same where they are of another type than `T`, which the memory holds.
    fn convert<T: Element>(
        &self,
        view: &View<'_>,
        values: Range<usize>,
        memory: Memory,
        to: usize,
    ) -> Result<(), DeviceError> {
        let count = values.len();
        let mut chunk = vec![T::from_f32(0.0); CHUNK.min(count)];
        for from in (0..count).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(count - from)];
            view.read(values.start + from, chunk);
            let bytes: &[u8] = cast_slice(chunk);
            let at = (to + from) * size_of::<T>();
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
