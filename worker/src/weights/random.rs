//! Random numbers in the place of weights.

use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::Dtype;

use super::{Entry, Source, Weights};
use crate::config::{DType, DecoderConfig};
use crate::sampler::{GOLDEN, mix};

/// How many numbers are drawn, at most; then they repeat. A prime, so that no two rows of a matrix are the same.
const PERIOD: usize = 1_000_003;

impl Weights {
    /// Weights that say nothing, for a config whose speed is to be measured: matrices of random numbers, small enough that
    /// activations stay finite, biases as small, and norms of 1.
    ///
    /// Every tensor is the beginning of the same numbers: they take no more memory than the largest.
    pub fn random(config: &DecoderConfig, dtype: DType) -> Weights {
        let tensors = tensors(config);
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let most = |dimensions| {
            let shapes = tensors.iter().map(|(_, shape)| shape.as_slice());
            let of = shapes.filter(|shape| shape.len() == dimensions);
            of.map(count).max().unwrap_or(0)
        };
        let (mut random, deviation) = (Random(1), 1.0 / (config.hidden as f32).sqrt());
        let period = most(2).min(PERIOD);
        let numbers = (0..period).map(|_| deviation * random.normal());
        let mut matrix = bytes(numbers, dtype);
        let whole = most(2) * dtype.size();
        matrix.reserve_exact(whole - matrix.len());
        while matrix.len() < whole {
            let more = (whole - matrix.len()).min(period * dtype.size());
            matrix.extend_from_within(..more);
        }
        let ones = bytes(std::iter::repeat_n(1.0, most(1)), dtype);
        let mut entries = BTreeMap::new();
        for (name, shape) in tensors {
            let is_norm = shape.len() == 1 && !name.ends_with(".bias");
            let entry = Entry {
                file: usize::from(is_norm),
                dtype: stored(dtype),
                data: 0..count(&shape) * dtype.size(),
                shape,
            };
            entries.insert(name, entry);
        }
        let made = |bytes| ("random numbers".to_owned(), Source::Made(bytes));
        Weights {
            files: vec![made(matrix), made(ones)],
            entries,
        }
    }
}

/// What a checkpoint calls a type.
pub(crate) fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
    }
}

/// Numbers as a checkpoint has them.
pub(crate) fn bytes(numbers: impl Iterator<Item = f32>, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
        DType::BF16 => numbers
            .flat_map(|x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        DType::F16 => numbers
            .flat_map(|x| f16::from_f32(x).to_le_bytes())
            .collect(),
    }
}

/// The same numbers for the same seed (Steele, Lea and Flood's SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normally distributed, about 0, with a deviation of 1.
    pub(crate) fn normal(&mut self) -> f32 {
        // Four sums of sixteen bits each have a variance of a third.
        let bits = self.bits();
        let sum: f32 = (0..4).map(|i| (bits >> (16 * i)) as u16 as f32).sum();
        (sum / 65_536.0 - 2.0) * 3f32.sqrt()
    }
}

/// Names and shapes of the tensors of a decoder.
pub(crate) fn tensors(c: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (query, key) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
    add("model.embed_tokens.weight".into(), &[c.vocab, c.hidden]);
    for i in 0..c.layers() {
        for (name, outputs, inputs, bias) in [
            ("self_attn.q_proj", query, c.hidden, c.qkv_bias),
            ("self_attn.k_proj", key, c.hidden, c.qkv_bias),
            ("self_attn.v_proj", key, c.hidden, c.qkv_bias),
            ("self_attn.o_proj", c.hidden, query, c.output_bias),
            ("mlp.gate_proj", c.intermediate, c.hidden, c.mlp_bias),
            ("mlp.up_proj", c.intermediate, c.hidden, c.mlp_bias),
            ("mlp.down_proj", c.hidden, c.intermediate, c.mlp_bias),
        ] {
            let name = format!("model.layers.{i}.{name}");
            add(format!("{name}.weight"), &[outputs, inputs]);
            if bias {
                add(format!("{name}.bias"), &[outputs]);
            }
        }
        let mut norms = vec![
            ("input_layernorm", c.hidden),
            ("post_attention_layernorm", c.hidden),
        ];
        if c.qk_norm {
            norms.extend([
                ("self_attn.q_norm", c.head_dim),
                ("self_attn.k_norm", c.head_dim),
            ]);
        }
        for (name, width) in norms {
            add(format!("model.layers.{i}.{name}.weight"), &[width]);
        }
    }
    add("model.norm.weight".into(), &[c.hidden]);
    if !c.tied {
        add("lm_head.weight".into(), &[c.vocab, c.hidden]);
    }
    tensors
}
