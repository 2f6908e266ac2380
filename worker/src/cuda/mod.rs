//! The forward pass on a device: an NVIDIA GPU, or whatever else implements [`Device`](realm_cuda::Device).

mod decoder;
mod draws;
mod gpu;
mod torch;
mod weights;
mod work;

use realm_cuda::{Element, HEAD_DIMS};

use crate::config::{ConfigError, DType, DecoderConfig, Quantization};

pub use decoder::Decoder;
pub use gpu::{Gpu, devices};
pub use weights::{Matrix, UploadError, upload};
pub use work::{Arena, Room, Work};

/// Positions whose angles the kernels compute exactly.
const MAX_POSITIONS: usize = 1 << 20;

/// What kernels call a type.
pub fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::F32,
        DType::BF16 => Element::Bf16,
        DType::F16 => Element::F16,
    }
}

/// Refuses models that the kernels are not made for, or products of fp8, with contexts of up to `longest` tokens.
///
/// # Errors
/// Names the field of the config, and what it could be.
pub fn check(
    config: &DecoderConfig,
    quantization: Option<Quantization>,
    longest: usize,
) -> Result<(), ConfigError> {
    let unsupported = |field: &str, found: usize, supported: String| ConfigError::Unsupported {
        field: field.into(),
        found: found.to_string(),
        supported: format!("{supported}, on a GPU"),
    };
    if !HEAD_DIMS.iter().any(|n| *n as usize == config.head_dim) {
        let names: Vec<String> = HEAD_DIMS.iter().map(u32::to_string).collect();
        return Err(unsupported("head_dim", config.head_dim, names.join(", ")));
    }
    let multiple = match quantization {
        None => 8,
        Some(Quantization::Fp8) => 16,
    };
    for (field, width) in [
        ("hidden_size", config.hidden),
        ("intermediate_size", config.intermediate),
    ] {
        if !width.is_multiple_of(multiple) {
            let how =
                quantization.map_or(String::new(), |how| format!(" with --quantization {how}"));
            let multiples = format!("multiples of {multiple}{how}");
            return Err(unsupported(field, width, multiples));
        }
    }
    if longest > MAX_POSITIONS {
        let most = format!("up to {MAX_POSITIONS}, or a --max-context of that");
        return Err(unsupported("max_position_embeddings", longest, most));
    }
    Ok(())
}
