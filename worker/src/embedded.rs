//! The model inside the program: what a first start without a model answers with.

/// Its `config.json`.
pub const CONFIG: &str = include_str!("../../models/tiny/config.json");
/// Its weights.
pub const WEIGHTS: &[u8] = include_bytes!("../../models/tiny/model.safetensors");
/// Its `tokenizer.json`, for the code of tenants.
pub const TOKENIZER: &[u8] = include_bytes!("../../models/tiny/tokenizer.json");
