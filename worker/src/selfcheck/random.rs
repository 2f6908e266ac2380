//! Models of random numbers.

use std::path::Path;

use anyhow::Context;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::config::{DType, DecoderConfig};
use crate::weights::random::{Random, bytes, stored, tensors};

/// Fills a folder with a model as the Hugging Face hub lays it out: matrices keep the size of what they multiply, and
/// norms weigh about 1.
pub(crate) fn write(folder: &Path, config: &Value, dtype: DType, seed: u64) -> anyhow::Result<()> {
    let text = config.to_string();
    let decoder = DecoderConfig::parse(&text)?;
    let mut random = Random(seed);
    anyhow::ensure!(dtype != DType::F16, "no models of f16 are made");
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
        let numbers = (0..count).map(|_| middle + deviation * random.normal());
        made.push((name, shape, bytes(numbers, dtype)));
    }
    let views = made.iter().map(|(name, shape, bytes)| {
        Ok((
            name.as_str(),
            TensorView::new(stored(dtype), shape.clone(), bytes)?,
        ))
    });
    let views = views.collect::<anyhow::Result<Vec<_>>>()?;
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    let file = folder.join("config.json");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}
