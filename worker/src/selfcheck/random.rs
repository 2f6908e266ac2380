//! Models of random numbers.

use std::path::Path;

use anyhow::Context;
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::config::{DType, DecoderConfig};
use crate::sampler::{GOLDEN, mix};

/// The same numbers for the same seed (Steele, Lea and Flood's SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// A number below `n`, which is not 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Roughly normally distributed, about 0, with a deviation of 1.
    pub(super) fn normal(&mut self) -> f32 {
        // Four sums of sixteen bits each have a variance of a third.
        let bits = self.bits();
        let sum: f32 = (0..4).map(|i| (bits >> (16 * i)) as u16 as f32).sum();
        (sum / 65_536.0 - 2.0) * 3f32.sqrt()
    }
}

/// Names and shapes of the tensors of a decoder.
fn tensors(c: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
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

/// Fills a folder with a model as the Hugging Face hub lays it out: matrices keep the size of what they multiply, and
/// norms weigh about 1.
pub(crate) fn write(folder: &Path, config: &Value, dtype: DType, seed: u64) -> anyhow::Result<()> {
    let text = config.to_string();
    let decoder = DecoderConfig::parse(&text)?;
    let mut random = Random(seed);
    let (safetensors_type, size) = match dtype {
        DType::F32 => (Dtype::F32, 4),
        DType::BF16 => (Dtype::BF16, 2),
        DType::F16 => anyhow::bail!("no models of f16 are made"),
    };
    let mut made = Vec::new();
    for (name, shape) in tensors(&decoder) {
        let count: usize = shape.iter().product();
        let (middle, deviation) = match shape.as_slice() {
            [_] if name.ends_with(".bias") => (0.0, 0.3),
            [_] => (1.0, 0.2),
            // Scores of tokens differ by a few, as those of models do.
            _ if name.starts_with("lm_head") => (0.0, 2.0 / (decoder.hidden as f32).sqrt()),
            _ if name.starts_with("model.embed") && decoder.tied => (0.0, 0.2),
            _ if name.starts_with("model.embed") => (0.0, 1.0),
            [_, inputs, ..] => (0.0, 1.0 / (*inputs as f32).sqrt()),
            [] => (0.0, 0.0),
        };
        let mut bytes = Vec::with_capacity(count * size);
        for _ in 0..count {
            let value = middle + deviation * random.normal();
            match dtype {
                DType::F32 => bytes.extend(value.to_le_bytes()),
                _ => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        made.push((name, shape, bytes));
    }
    let views = made.iter().map(|(name, shape, bytes)| {
        Ok((
            name.as_str(),
            TensorView::new(safetensors_type, shape.clone(), bytes)?,
        ))
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let file = folder.join("config.json");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
