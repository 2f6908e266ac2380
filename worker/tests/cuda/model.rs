//! Small random models with heads that the kernels are made for.

use half::{bf16, f16};
use realm_worker::config::DType;
use realm_worker::engine::ModelSource;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(super) const VOCAB: usize = 200;
pub(super) const HIDDEN: usize = 128;
const INTERMEDIATE: usize = 192;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const LAYERS: usize = 2;

/// A model in a directory of its own.
pub(super) struct Model(TempDir);

/// The config of a family, with what `more` adds or changes.
pub(super) fn config(architecture: &str, more: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": 512,
    });
    if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
        config.extend(more);
    }
    config
}

/// One of each kind of layer that there is.
pub(super) fn variants() -> [(&'static str, Value); 4] {
    [
        (
            "biases",
            config(
                "LlamaForCausalLM",
                json!({"attention_bias": true, "mlp_bias": true}),
            ),
        ),
        (
            "a window",
            config("MistralForCausalLM", json!({"sliding_window": 24})),
        ),
        (
            "two windows",
            config(
                "Qwen2ForCausalLM",
                json!({"use_sliding_window": true, "sliding_window": 20, "max_window_layers": 1}),
            ),
        ),
        (
            "norms and a tied head",
            config("Qwen3ForCausalLM", json!({"tie_word_embeddings": true})),
        ),
    ]
}

impl Model {
    /// Random weights for a config, held in a type.
    pub(super) fn new(config: &Value, held: DType) -> Model {
        let is = |field: &str| config[field] == json!(true);
        let architecture = config["architectures"][0].as_str().expect("a name");
        let qkv_bias = is("attention_bias") || architecture == "Qwen2ForCausalLM";
        let (query, key) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let mut tensors: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]),
            ("model.norm.weight".into(), vec![HIDDEN]),
        ];
        if !is("tie_word_embeddings") {
            tensors.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
        }
        for layer in 0..LAYERS {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            for (name, outputs, inputs, bias) in [
                ("self_attn.q_proj", query, HIDDEN, qkv_bias),
                ("self_attn.k_proj", key, HIDDEN, qkv_bias),
                ("self_attn.v_proj", key, HIDDEN, qkv_bias),
                ("self_attn.o_proj", HIDDEN, query, is("attention_bias")),
                ("mlp.gate_proj", INTERMEDIATE, HIDDEN, is("mlp_bias")),
                ("mlp.up_proj", INTERMEDIATE, HIDDEN, is("mlp_bias")),
                ("mlp.down_proj", HIDDEN, INTERMEDIATE, is("mlp_bias")),
            ] {
                add(&format!("{name}.weight"), &[outputs, inputs]);
                if bias {
                    add(&format!("{name}.bias"), &[outputs]);
                }
            }
            add("input_layernorm.weight", &[HIDDEN]);
            add("post_attention_layernorm.weight", &[HIDDEN]);
            if architecture == "Qwen3ForCausalLM" {
                add("self_attn.q_norm.weight", &[HEAD_DIM]);
                add("self_attn.k_norm.weight", &[HEAD_DIM]);
            }
        }
        let dtype = match held {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
        };
        let mut random = Random(7);
        let held: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(name, shape)| {
                let count: usize = shape.iter().product();
                let values = (0..count).map(|_| match (name.as_str(), shape.as_slice()) {
                    (name, [_]) if name.contains("norm") => 1.0 + random.next() / 2.0,
                    ("model.embed_tokens.weight", _) => random.next(),
                    (_, [_]) => random.next() / 2.0,
                    (_, shape) => 2.0 * random.next() / (shape[1] as f32).sqrt(),
                });
                let bytes = values.flat_map(|value| match held {
                    DType::F32 => value.to_le_bytes().to_vec(),
                    DType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                    DType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
                });
                let bytes = bytes.collect();
                (name, shape, bytes)
            })
            .collect();
        Model::of(config, dtype, &held)
    }

    fn of(config: &Value, dtype: Dtype, held: &[(String, Vec<usize>, Vec<u8>)]) -> Model {
        let views = held.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(dtype, shape.clone(), bytes);
            (name, view.expect("as many bytes"))
        });
        let bytes = safetensors::serialize(views, None).expect("valid");
        let folder = tempfile::tempdir().expect("a directory");
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("written");
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        Model(folder)
    }

    /// The embedded model, which is trained, with heads of twice the size that compute the same: half of a head's
    /// dimensions are zero, and those of queries and keys are spread so that they have the angles they had.
    pub(super) fn trained() -> Model {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
        let text = std::fs::read_to_string(folder.join("config.json")).expect("there");
        let mut config: Value = serde_json::from_str(&text).expect("valid");
        let bytes = std::fs::read(folder.join("model.safetensors")).expect("there");
        let tensors = SafeTensors::deserialize(&bytes).expect("valid");
        let small = config["head_dim"].as_u64().expect("a number") as usize;
        config["head_dim"] = json!(2 * small);
        let spread = |i: usize| {
            let (head, d) = (i / small, i % small);
            let (half, pair) = (d / (small / 2), d % (small / 2));
            (2 * head + half) * small + 2 * pair
        };
        let beside = |i: usize| i / small * 2 * small + i % small;
        let held = tensors.iter().map(|(name, view)| {
            assert_eq!(view.dtype(), Dtype::BF16);
            let number = |x: &[u8; 2]| bf16::from_le_bytes(*x).to_f32();
            let values: Vec<f32> = view.data().as_chunks().0.iter().map(number).collect();
            let mut shape = view.shape().to_vec();
            let part = name.split('.').rev().nth(1).unwrap_or_default();
            let of_heads: Option<(usize, &dyn Fn(usize) -> usize)> = match part {
                "q_proj" | "k_proj" => Some((0, &spread)),
                "v_proj" => Some((0, &beside)),
                "o_proj" => Some((1, &beside)),
                _ => None,
            };
            // Scores are divided by the root of the size of heads.
            let by = if part == "q_proj" { 2f32.sqrt() } else { 1.0 };
            let before = shape[shape.len() - 1];
            if let Some((axis, _)) = of_heads {
                shape[axis] *= 2;
            }
            let width = shape[shape.len() - 1];
            let mut out = vec![0.0f32; shape.iter().product()];
            for (i, value) in values.into_iter().enumerate() {
                let mut at = [i / before, i % before];
                if let Some((axis, to)) = of_heads {
                    at[axis] = to(at[axis]);
                }
                out[at[0] * width + at[1]] = by * value;
            }
            let bytes = out.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.to_owned(), shape, bytes)
        });
        Model::of(&config, Dtype::F32, &held.collect::<Vec<_>>())
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.0.path()
    }

    pub(super) fn source(&self) -> ModelSource {
        ModelSource::Directory(self.path().into())
    }
}

/// Numbers between -1 and 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
