//! What `config.json` says a model is, reduced to the data that drives the decoder.
//!
//! A family is nothing but defaults and switches: the decoder never asks for its name.

use std::fmt;

use serde_json::{Map, Value};

/// Types that a forward pass can run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32 bits; reproducible bit by bit.
    F32,
    /// 16 bits with the exponent range of `F32`.
    BF16,
    /// 16 bits of IEEE 754.
    F16,
}

impl DType {
    /// Bytes of a value.
    pub fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// What matrices are held in instead of the type of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// e4m3 with a scale for each output, for all but the embedding and the head; what they are multiplied with is
    /// rounded to e4m3 too, with a scale for each row.
    Fp8,
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quantization::Fp8 => "fp8",
        })
    }
}

/// Frequencies of the rotary embedding beyond the plain `theta^(-2i/d)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// All divided by the factor.
    Linear {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth passage between.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original / high` are high frequencies.
        high: f64,
        /// Context before the extension.
        original: f64,
    },
}

/// A decoder, in full.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// As named in `config.json`, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// The checkpoint's type, if stated.
    pub dtype: Option<DType>,
    /// Rows of the embedding and of the head.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward part.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Most positions.
    pub max_context: usize,
    /// Added to the mean square before its root is taken.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// What is done to them.
    pub rope_scaling: RopeScaling,
    /// The head is the embedding.
    pub tied: bool,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// So has the output of attention.
    pub output_bias: bool,
    /// So have the three feed-forward projections.
    pub mlp_bias: bool,
    /// Each head of queries and keys is normalized before rotation.
    pub qk_norm: bool,
    /// For every layer: how many last tokens it sees, or all.
    pub windows: Vec<Option<usize>>,
}

/// What is wrong with a `config.json`.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum ConfigError {
    /// It is no JSON object.
    #[error("config.json is not a JSON object: {0}")]
    Json(String),
    /// A field is needed.
    #[error("config.json has no `{0}`")]
    Missing(&'static str),
    /// A field has a value that makes no sense.
    #[error("config.json: `{field}` is {found}, but must be {expected}")]
    Invalid {
        /// Its name.
        field: String,
        /// Its value.
        found: String,
        /// What it should have been.
        expected: String,
    },
    /// The model is valid, but not one that this worker runs.
    #[error("config.json: `{field}` is {found}, which is not supported; supported: {supported}")]
    Unsupported {
        /// Its name.
        field: String,
        /// Its value.
        found: String,
        /// What would have been.
        supported: String,
    },
}

/// What families differ in beyond the values of their fields.
struct Family {
    architecture: &'static str,
    model_type: &'static str,
    /// Whether queries, keys and values have biases whatever the config says.
    qkv_bias: bool,
    /// Whether `attention_bias` and `mlp_bias` are honoured.
    bias_switches: (bool, bool),
    qk_norm: bool,
    /// Used where `head_dim` is missing; otherwise `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    /// Used where `num_key_value_heads` is missing; otherwise `num_attention_heads`.
    kv_heads: Option<usize>,
    window: Window,
    max_context: usize,
}

/// How a family states its sliding window.
#[derive(PartialEq)]
enum Window {
    /// It has none.
    Never,
    /// `sliding_window` counts for all layers; if the field is missing it is 4096.
    Always,
    /// Only with `use_sliding_window`, from layer `max_window_layers` on.
    Switched,
}

const FAMILIES: [Family; 4] = [
    Family {
        architecture: "LlamaForCausalLM",
        model_type: "llama",
        qkv_bias: false,
        bias_switches: (true, true),
        qk_norm: false,
        head_dim: None,
        kv_heads: None,
        window: Window::Never,
        max_context: 2048,
    },
    Family {
        architecture: "MistralForCausalLM",
        model_type: "mistral",
        qkv_bias: false,
        bias_switches: (false, false),
        qk_norm: false,
        head_dim: None,
        kv_heads: Some(8),
        window: Window::Always,
        max_context: 131_072,
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        model_type: "qwen2",
        qkv_bias: true,
        bias_switches: (false, false),
        qk_norm: false,
        head_dim: None,
        kv_heads: Some(32),
        window: Window::Switched,
        max_context: 32_768,
    },
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        qkv_bias: false,
        bias_switches: (true, false),
        qk_norm: true,
        head_dim: Some(128),
        kv_heads: Some(32),
        window: Window::Switched,
        max_context: 32_768,
    },
];

impl DecoderConfig {
    /// Reads a `config.json` in the spelling of transformers 4 or 5.
    ///
    /// # Errors
    /// If it is malformed, or describes anything that the decoder does not compute exactly as
    /// the reference implementation does.
    pub fn parse(text: &str) -> Result<DecoderConfig, ConfigError> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| ConfigError::Json(e.to_string()))?;
        let Value::Object(map) = value else {
            return Err(ConfigError::Json("it is another kind of value".into()));
        };
        let fields = Fields {
            map: &map,
            prefix: "",
        };
        let family = family(&fields)?;
        refuse_variants(&fields)?;

        let hidden = fields
            .size("hidden_size")?
            .ok_or(ConfigError::Missing("hidden_size"))?;
        let heads = fields
            .size("num_attention_heads")?
            .ok_or(ConfigError::Missing("num_attention_heads"))?;
        let layers = fields
            .size("num_hidden_layers")?
            .ok_or(ConfigError::Missing("num_hidden_layers"))?;
        let kv_heads = fields
            .size("num_key_value_heads")?
            .unwrap_or(family.kv_heads.unwrap_or(heads));
        let head_dim = match fields.size("head_dim")?.or(family.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(invalid(
                    "hidden_size",
                    hidden,
                    "a multiple of num_attention_heads",
                ));
            }
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(invalid(
                "num_key_value_heads",
                kv_heads,
                "a divisor of num_attention_heads",
            ));
        }
        if !head_dim.is_multiple_of(2) || head_dim > 1024 {
            return Err(invalid("head_dim", head_dim, "even and at most 1024"));
        }
        if layers > 1024 {
            return Err(invalid("num_hidden_layers", layers, "at most 1024"));
        }
        let (rope_theta, rope_scaling) = rope(&fields)?;
        let (attention_bias, mlp_bias) = family.bias_switches;
        let attention_bias = attention_bias && fields.flag("attention_bias")?.unwrap_or(false);
        Ok(DecoderConfig {
            architecture: family.architecture.into(),
            dtype: dtype(&fields)?,
            vocab: fields
                .size("vocab_size")?
                .ok_or(ConfigError::Missing("vocab_size"))?,
            hidden,
            intermediate: fields
                .size("intermediate_size")?
                .ok_or(ConfigError::Missing("intermediate_size"))?,
            heads,
            kv_heads,
            head_dim,
            max_context: fields
                .size("max_position_embeddings")?
                .unwrap_or(family.max_context),
            norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta,
            rope_scaling,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: family.qkv_bias || attention_bias,
            output_bias: attention_bias,
            mlp_bias: mlp_bias && fields.flag("mlp_bias")?.unwrap_or(false),
            qk_norm: family.qk_norm,
            windows: windows(&fields, &family.window, layers)?,
        })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.windows.len()
    }

    /// Angle per position of each pair of a head's dimensions.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|i| {
                let plain = self.rope_theta.powf(-2.0 * i as f64 / self.head_dim as f64);
                let scaled = match self.rope_scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear { factor } => plain / factor,
                    RopeScaling::Llama3 {
                        factor,
                        low,
                        high,
                        original,
                    } => {
                        // Turns that the pair makes within the original context.
                        let turns = original * plain / std::f64::consts::TAU;
                        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        plain * (kept + (1.0 - kept) / factor)
                    }
                };
                scaled as f32
            })
            .collect()
    }
}

fn family(fields: &Fields<'_>) -> Result<&'static Family, ConfigError> {
    let named = match fields.get("architectures") {
        Some(Value::Array(names)) => names.first(),
        Some(other) => return Err(invalid("architectures", other, "a list of names")),
        None => None,
    };
    let model_type = fields.get("model_type");
    let found = FAMILIES.iter().find(|family| match named {
        Some(name) => name == family.architecture,
        None => model_type.is_some_and(|name| name == family.model_type),
    });
    found.ok_or_else(|| match (named, model_type) {
        (None, None) => ConfigError::Missing("architectures"),
        (Some(name), _) => unsupported("architectures", name, &supported(|f| f.architecture)),
        (None, Some(name)) => unsupported("model_type", name, &supported(|f| f.model_type)),
    })
}

fn supported(name: impl Fn(&Family) -> &'static str) -> String {
    FAMILIES.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Refuses what would change the computation without being looked at elsewhere.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ConfigError> {
    if let Some(quantization) = fields.get("quantization_config") {
        let method = quantization.get("quant_method").unwrap_or(quantization);
        let hint = "weights in f32, f16 or bf16 (choose the unquantized checkpoint)";
        return Err(unsupported("quantization_config", method, hint));
    }
    if let Some(activation) = fields.get("hidden_act")
        && activation != "silu"
        && activation != "swish"
    {
        return Err(unsupported("hidden_act", activation, "silu"));
    }
    if let Some(part) = fields.number("partial_rotary_factor")?
        && part != 1.0
    {
        return Err(unsupported("partial_rotary_factor", part, "1"));
    }
    Ok(())
}

fn dtype(fields: &Fields<'_>) -> Result<Option<DType>, ConfigError> {
    let (name, value) = match fields.get("dtype") {
        Some(value) => ("dtype", value),
        None => match fields.get("torch_dtype") {
            Some(value) => ("torch_dtype", value),
            None => return Ok(None),
        },
    };
    match value.as_str().map(|s| s.trim_start_matches("torch.")) {
        Some("float32") => Ok(Some(DType::F32)),
        Some("bfloat16") => Ok(Some(DType::BF16)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("auto") => Ok(None),
        _ => Err(unsupported(name, value, "float32, bfloat16, float16")),
    }
}

/// Transformers 5 has everything in `rope_parameters`; before it, `rope_theta` stood beside
/// `rope_scaling`, whose kind was first called `type`.
fn rope(fields: &Fields<'_>) -> Result<(f64, RopeScaling), ConfigError> {
    let name = if fields.get("rope_parameters").is_some() {
        "rope_parameters"
    } else {
        "rope_scaling"
    };
    let empty = Map::new();
    let map = match fields.get(name) {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(other) => return Err(invalid(name, other, "an object")),
    };
    let inner = Fields { map, prefix: name };
    let theta = match inner.positive("rope_theta")? {
        Some(theta) => theta,
        None => fields.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    if let Some(part) = inner.number("partial_rotary_factor")?
        && part != 1.0
    {
        return Err(unsupported(&inner.path("partial_rotary_factor"), part, "1"));
    }
    let need = |field: &'static str| inner.positive(field)?.ok_or(ConfigError::Missing(field));
    let scaling = match inner.get("rope_type").or(inner.get("type")) {
        None if map.values().any(Value::is_object) => {
            return Err(unsupported(
                name,
                "given per kind of layer",
                "one for all layers",
            ));
        }
        None => RopeScaling::None,
        Some(kind) if kind == "default" => RopeScaling::None,
        Some(kind) if kind == "linear" => RopeScaling::Linear {
            factor: need("factor")?,
        },
        Some(kind) if kind == "llama3" => {
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            if low >= high {
                let field = inner.path("low_freq_factor");
                return Err(invalid(&field, low, "below high_freq_factor"));
            }
            let original = need("original_max_position_embeddings")?;
            RopeScaling::Llama3 {
                factor: need("factor")?,
                low,
                high,
                original,
            }
        }
        Some(kind) => {
            return Err(unsupported(
                &inner.path("rope_type"),
                kind,
                "default, linear, llama3",
            ));
        }
    };
    Ok((theta, scaling))
}

fn windows(
    fields: &Fields<'_>,
    rule: &Window,
    layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let stated = match rule {
        Window::Never => None,
        Window::Always if !fields.map.contains_key("sliding_window") => Some(4096),
        Window::Always => fields.size("sliding_window")?,
        Window::Switched if fields.flag("use_sliding_window")?.unwrap_or(false) => {
            fields.size("sliding_window")?
        }
        Window::Switched => None,
    };
    if let Some(value) = fields.get("layer_types")
        && *rule != Window::Never
    {
        let kinds = value.as_array().map(Vec::as_slice).unwrap_or_default();
        if kinds.len() != layers {
            return Err(invalid(
                "layer_types",
                value,
                "a list with an entry per layer",
            ));
        }
        return kinds
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => stated
                    .ok_or(ConfigError::Missing("sliding_window"))
                    .map(Some),
                _ => {
                    let known = "full_attention, sliding_attention";
                    Err(unsupported("layer_types", kind, known))
                }
            })
            .collect();
    }
    let first = match rule {
        Window::Switched => fields.count("max_window_layers")?.unwrap_or(28),
        _ => 0,
    };
    Ok((0..layers)
        .map(|layer| stated.filter(|_| layer >= first))
        .collect())
}

fn invalid(field: &str, found: impl fmt::Display, expected: &str) -> ConfigError {
    ConfigError::Invalid {
        field: field.into(),
        found: found.to_string(),
        expected: expected.into(),
    }
}

fn unsupported(field: &str, found: impl fmt::Display, supported: &str) -> ConfigError {
    ConfigError::Unsupported {
        field: field.into(),
        found: found.to_string(),
        supported: supported.into(),
    }
}

/// Typed access to a JSON object; a field that is `null` counts as missing.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    prefix: &'a str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.into()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    fn count(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        /// Far above any model, and small enough that products of three sizes do not overflow.
        const LIMIT: u64 = 1 << 20;
        self.get(name)
            .map(|value| match value.as_u64() {
                Some(n) if n <= 4 * LIMIT => Ok(n as usize),
                _ => Err(invalid(
                    &self.path(name),
                    value,
                    "a whole number up to 4194304",
                )),
            })
            .transpose()
    }

    fn size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        match self.count(name)? {
            Some(0) => Err(invalid(&self.path(name), 0, "at least 1")),
            other => Ok(other),
        }
    }

    fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.get(name)
            .map(|value| {
                let number = value.as_f64().filter(|x| x.is_finite());
                number.ok_or_else(|| invalid(&self.path(name), value, "a number"))
            })
            .transpose()
    }

    fn positive(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        match self.number(name)? {
            Some(x) if x <= 0.0 => Err(invalid(&self.path(name), x, "above 0")),
            other => Ok(other),
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.get(name)
            .map(|value| {
                value
                    .as_bool()
                    .ok_or_else(|| invalid(&self.path(name), value, "true or false"))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
            "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100,
            "num_key_value_heads": 2, "max_position_embeddings": 512,
        })
    }

    fn with(changes: Value) -> Result<DecoderConfig, ConfigError> {
        let mut config = base();
        for (key, value) in changes.as_object().expect("an object") {
            config[key] = value.clone();
        }
        DecoderConfig::parse(&config.to_string())
    }

    #[test]
    fn both_spellings_mean_the_same() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        });
        let mut parameters = scaling.clone();
        parameters["rope_theta"] = json!(5e5);
        let old =
            with(json!({"torch_dtype": "bfloat16", "rope_theta": 5e5, "rope_scaling": scaling}));
        let new = with(json!({"dtype": "bfloat16", "rope_parameters": parameters}));
        assert_eq!(old, new);
        let config = new.expect("valid");
        assert_eq!((config.rope_theta, config.dtype), (5e5, Some(DType::BF16)));
        assert!(matches!(
            config.rope_scaling,
            RopeScaling::Llama3 { factor: 8.0, .. }
        ));
    }

    #[test]
    fn llama3_frequencies_are_kept_high_and_divided_low() {
        let parameters = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "rope_theta": 5e5,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        });
        let config = with(json!({"rope_parameters": parameters, "head_dim": 128})).expect("valid");
        let frequencies = config.rope_frequencies();
        assert_eq!(frequencies[0], 1.0);
        let last = 5e5f64.powf(-126.0 / 128.0) / 8.0;
        assert!((f64::from(frequencies[63]) / last - 1.0).abs() < 1e-6);
        assert!(frequencies.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (changes, message) in [
            (
                json!({"architectures": ["GPT2LMHeadModel"]}),
                "`architectures` is \"GPT2LMHeadModel\"",
            ),
            (json!({"hidden_act": "gelu"}), "`hidden_act` is \"gelu\""),
            (
                json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}),
                "`rope_scaling.rope_type` is \"yarn\"",
            ),
            (
                json!({"quantization_config": {"quant_method": "gptq"}}),
                "`quantization_config` is \"gptq\"",
            ),
            (
                json!({"torch_dtype": "float64"}),
                "`torch_dtype` is \"float64\"",
            ),
            (
                json!({"partial_rotary_factor": 0.5}),
                "`partial_rotary_factor` is 0.5",
            ),
        ] {
            let error = with(changes).expect_err("unsupported").to_string();
            assert!(error.contains(message), "{error}");
            assert!(error.contains("not supported; supported: "), "{error}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (changes, message) in [
            (
                json!({"num_attention_heads": 0}),
                "`num_attention_heads` is 0",
            ),
            (
                json!({"num_key_value_heads": 3}),
                "`num_key_value_heads` is 3",
            ),
            (json!({"hidden_size": "big"}), "`hidden_size` is \"big\""),
            (
                json!({"hidden_size": 1u64 << 40}),
                "`hidden_size` is 1099511627776",
            ),
            (json!({"head_dim": 15}), "`head_dim` is 15"),
            (json!({"vocab_size": null}), "has no `vocab_size`"),
            (json!({"rope_theta": -1.0}), "`rope_theta` is -1"),
            (
                json!({"rope_scaling": {"rope_type": "llama3"}}),
                "has no `low_freq_factor`",
            ),
            (
                json!({"tie_word_embeddings": 1}),
                "`tie_word_embeddings` is 1",
            ),
        ] {
            let error = with(changes).expect_err("invalid").to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(matches!(
            DecoderConfig::parse("[]"),
            Err(ConfigError::Json(_))
        ));
        assert!(matches!(
            DecoderConfig::parse("{"),
            Err(ConfigError::Json(_))
        ));
    }

    #[test]
    fn windows_follow_the_family() {
        let mistral = json!({"architectures": ["MistralForCausalLM"]});
        assert_eq!(with(mistral).expect("valid").windows, [Some(4096); 2]);
        let mistral = json!({"architectures": ["MistralForCausalLM"], "sliding_window": null});
        assert_eq!(with(mistral).expect("valid").windows, [None; 2]);
        let qwen = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32});
        assert_eq!(with(qwen).expect("valid").windows, [None; 2]);
        let qwen = json!({
            "architectures": ["Qwen2ForCausalLM"], "sliding_window": 32,
            "use_sliding_window": true, "max_window_layers": 1,
        });
        assert_eq!(with(qwen).expect("valid").windows, [None, Some(32)]);
        let qwen = json!({
            "architectures": ["Qwen3ForCausalLM"], "sliding_window": 32,
            "use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"],
        });
        let qwen = with(qwen).expect("valid");
        assert_eq!(
            (qwen.windows, qwen.head_dim, qwen.qk_norm),
            (vec![Some(32), None], 128, true)
        );
    }

    #[test]
    fn biases_follow_the_family() {
        let llama = with(json!({"attention_bias": true, "mlp_bias": true})).expect("valid");
        assert_eq!(
            (llama.qkv_bias, llama.output_bias, llama.mlp_bias),
            (true, true, true)
        );
        let qwen = with(json!({"architectures": ["Qwen2ForCausalLM"]})).expect("valid");
        assert_eq!(
            (qwen.qkv_bias, qwen.output_bias, qwen.mlp_bias),
            (true, false, false)
        );
    }
}
