//! Weights that never were on the host: rows of a few patterns, which a device copies into place by itself.

use std::collections::BTreeMap;

use half::bf16;
use realm_cuda::quantize::QuantizeRows;
use realm_cuda::rows::GatherRows;
use realm_cuda::{Device, DeviceError, Element, Memory};

use crate::config::{DecoderConfig, Quantization};
use crate::cuda::Matrix;
use crate::parameters::{DecoderWeights, LayerWeights};
use crate::weights::random::Random;

/// Rows of a pattern.
const PATTERN: usize = 509;

/// Fills memory of a device with random numbers in `bf16`.
pub(super) struct Fill<'a, D> {
    device: &'a D,
    random: Random,
    /// By the width of their rows.
    patterns: BTreeMap<usize, Memory>,
    /// Which row of a pattern becomes which of a matrix.
    order: Memory,
    /// Where matrices are before they are quantized.
    staging: Option<Memory>,
}

impl<'a, D: Device> Fill<'a, D> {
    /// For matrices of up to so many rows.
    pub(super) fn new(device: &'a D, rows: usize) -> Result<Fill<'a, D>, DeviceError> {
        Ok(Fill {
            device,
            random: Random(1),
            patterns: BTreeMap::new(),
            order: device.allocate(rows * size_of::<i32>())?,
            staging: None,
        })
    }

    /// A matrix of numbers about 0, whose products keep the size of what they multiply.
    pub(super) fn matrix(&mut self, rows: usize, width: usize) -> Result<Memory, DeviceError> {
        let to = self.device.allocate(bytes(rows, width))?;
        self.fill(rows, width, to)?;
        Ok(to)
    }

    /// The same in e4m3, and the scales of its rows.
    pub(super) fn quantized(
        &mut self,
        rows: usize,
        width: usize,
    ) -> Result<(Memory, Memory), DeviceError> {
        let bytes = bytes(rows, width);
        let staging = match self.staging.filter(|staging| staging.bytes() >= bytes) {
            Some(staging) => staging,
            None => *self.staging.insert(self.device.allocate(bytes)?),
        };
        self.fill(rows, width, staging)?;
        let quantize = QuantizeRows {
            rows,
            width,
            x: staging,
            out: self.device.allocate(rows * width)?,
            scales: self.device.allocate(rows * size_of::<f32>())?,
        };
        quantize.launch(self.device)?;
        Ok((quantize.out, quantize.scales))
    }

    fn fill(&mut self, rows: usize, width: usize, to: Memory) -> Result<(), DeviceError> {
        let element = Element::Bf16;
        let from = match self.patterns.get(&width) {
            Some(pattern) => *pattern,
            None => {
                let deviation = 1.0 / (width as f32).sqrt();
                let value = |random: &mut Random| bf16::from_f32(deviation * random.normal());
                let values = (0..PATTERN * width).map(|_| value(&mut self.random));
                let values: Vec<bf16> = values.collect();
                let pattern = self.device.allocate(bytes(PATTERN, width))?;
                self.device.write(pattern, bytemuck::cast_slice(&values))?;
                self.patterns.insert(width, pattern);
                pattern
            }
        };
        let order = (0..rows).map(|_| self.random.below(PATTERN) as i32);
        let order: Vec<i32> = order.collect();
        self.device
            .write(self.order, bytemuck::cast_slice(&order))?;
        let gather = GatherRows {
            element,
            wanted: rows,
            count: PATTERN,
            width,
            from,
            rows: self.order,
            to,
        };
        Ok(gather.launch(self.device)?)
    }

    /// The weights of a decoder without biases and norms of heads.
    pub(super) fn weights(
        &mut self,
        c: &DecoderConfig,
        quantization: Option<Quantization>,
    ) -> Result<DecoderWeights<Matrix, Memory>, DeviceError> {
        let ones = self.device.allocate(c.hidden * size_of::<f32>())?;
        self.device
            .write(ones, bytemuck::cast_slice(&vec![1f32; c.hidden]))?;
        let query = c.heads * c.head_dim;
        let mut matrix = |outputs, inputs, quantization| {
            let (weight, scales) = match quantization {
                None => (self.matrix(outputs, inputs)?, None),
                Some(Quantization::Fp8) => {
                    let (weight, scales) = self.quantized(outputs, inputs)?;
                    (weight, Some(scales))
                }
            };
            Ok::<_, DeviceError>(Matrix {
                weight,
                scales,
                bias: None,
                outputs,
                inputs,
            })
        };
        let layer = |_| {
            Ok(LayerWeights {
                attention_norm: ones,
                qkv: matrix(query + 2 * c.kv_heads * c.head_dim, c.hidden, quantization)?,
                query_key_norms: None,
                output: matrix(c.hidden, query, quantization)?,
                mlp_norm: ones,
                gate_up: matrix(2 * c.intermediate, c.hidden, quantization)?,
                down: matrix(c.hidden, c.intermediate, quantization)?,
            })
        };
        let layers = (0..c.layers())
            .map(layer)
            .collect::<Result<_, DeviceError>>()?;
        Ok(DecoderWeights {
            layers,
            embedding: matrix(c.vocab, c.hidden, None)?,
            head: Some(matrix(c.vocab, c.hidden, None)?),
            norm: ones,
        })
    }
}

/// Bytes of a matrix in `bf16`.
fn bytes(rows: usize, width: usize) -> usize {
    rows * width * Element::Bf16.size()
}
