//! Model directories that are broken, each in one way, and what is said about them.

use std::path::Path;

use realm_worker::engine::{Engine, ModelSource, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a fixture.
fn copy(name: &str) -> TempDir {
    let copy = tempfile::tempdir().expect("a directory");
    let from = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    for entry in std::fs::read_dir(from).expect("fixture") {
        let entry = entry.expect("fixture");
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("copied");
    }
    copy
}

fn load(directory: &Path) -> Result<Engine, String> {
    let options = Options {
        threads: Some(1),
        kv_memory: Some(1 << 20),
        ..Options::default()
    };
    let source = ModelSource::Directory(directory.into());
    Engine::load(&source, &options, &mut |_, _| {}).map_err(|e| e.to_string())
}

/// The error must contain all of these.
#[track_caller]
fn assert_says(directory: &TempDir, parts: &[&str]) {
    let Err(error) = load(directory.path()) else {
        panic!("it loads")
    };
    for part in parts {
        assert!(error.contains(part), "`{error}` does not say `{part}`");
    }
}

fn edit(directory: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
    let path = directory.path().join(file);
    let text = std::fs::read_to_string(&path).expect("there");
    let mut value = serde_json::from_str(&text).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("written");
}

#[test]
fn a_fixture_loads() {
    assert!(load(copy("llama-f16-sharded").path()).is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let model = copy("llama2");
    std::fs::remove_file(model.path().join("config.json")).expect("there");
    assert_says(&model, &["cannot read", "config.json"]);

    let model = copy("llama2");
    std::fs::remove_file(model.path().join("model.safetensors")).expect("there");
    assert_says(
        &model,
        &["neither model.safetensors nor model.safetensors.index.json"],
    );

    let model = copy("llama-f16-sharded");
    std::fs::remove_file(model.path().join("model-00002-of-00002.safetensors")).expect("there");
    assert_says(&model, &["cannot read", "model-00002-of-00002.safetensors"]);
}

#[test]
fn a_cut_file_is_named_with_its_size() {
    for keep in [0, 4, 100, 5000] {
        let model = copy("llama2");
        let path = model.path().join("model.safetensors");
        let bytes = std::fs::read(&path).expect("there");
        std::fs::write(&path, &bytes[..keep]).expect("written");
        let size = format!("model.safetensors ({keep} bytes)");
        assert_says(
            &model,
            &[&size, "not a complete safetensors file", "fetch it again"],
        );
    }
    let model = copy("llama2");
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("there");
    bytes.pop();
    std::fs::write(&path, bytes).expect("written");
    assert_says(&model, &["not a complete safetensors file"]);
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let model = copy("llama2");
    edit(&model, "config.json", |c| {
        c["intermediate_size"] = json!(96)
    });
    assert_says(
        &model,
        &[
            "`model.layers.0.mlp.gate_proj.weight`",
            "[80, 48]",
            "[96, 48]",
        ],
    );
    let model = copy("llama2");
    edit(&model, "config.json", |c| {
        c["num_key_value_heads"] = json!(4)
    });
    assert_says(
        &model,
        &[
            "`model.layers.0.self_attn.k_proj.weight`",
            "[24, 48]",
            "[48, 48]",
        ],
    );
    let model = copy("llama2");
    edit(&model, "config.json", |c| c["vocab_size"] = json!(200));
    assert_says(
        &model,
        &["`model.embed_tokens.weight`", "[192, 48]", "[200, 48]"],
    );
}

#[test]
fn missing_and_surplus_tensors_are_named() {
    let model = copy("llama2");
    edit(&model, "config.json", |c| c["num_hidden_layers"] = json!(3));
    assert_says(&model, &["no tensor `model.layers.2."]);
    let model = copy("llama2");
    edit(&model, "config.json", |c| c["num_hidden_layers"] = json!(1));
    assert_says(&model, &["`model.layers.1.", "does not use"]);
    // Weights with biases under a config without them would be computed wrongly.
    let model = copy("qwen2");
    edit(&model, "config.json", |c| {
        c["architectures"] = json!(["MistralForCausalLM"])
    });
    assert_says(
        &model,
        &["`model.layers.0.self_attn.k_proj.bias`", "does not use"],
    );
    let model = copy("llama-linear-tied");
    edit(&model, "config.json", |c| {
        c["tie_word_embeddings"] = json!(false)
    });
    assert_says(&model, &["no tensor `lm_head.weight`"]);
}

#[test]
fn an_index_that_lies_is_named() {
    let model = copy("llama-f16-sharded");
    edit(&model, "model.safetensors.index.json", |index| {
        index["weight_map"]["model.norm.weight"] = json!("model-00001-of-00002.safetensors");
    });
    assert_says(
        &model,
        &["model-00001-of-00002.safetensors does not hold tensor `model.norm.weight`"],
    );
    let model = copy("llama-f16-sharded");
    edit(&model, "model.safetensors.index.json", |index| {
        index["weight_map"]["model.norm.weight"] = json!("../outside.safetensors");
    });
    assert_says(
        &model,
        &["`../outside.safetensors` is not the name of a file beside it"],
    );
    let model = copy("llama-f16-sharded");
    std::fs::write(model.path().join("model.safetensors.index.json"), "{}").expect("written");
    assert_says(&model, &["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn unsupported_models_are_named() {
    for (field, value, parts) in [
        (
            "architectures",
            json!(["GPT2LMHeadModel"]),
            ["GPT2LMHeadModel", "LlamaForCausalLM"],
        ),
        (
            "hidden_act",
            json!("gelu"),
            ["`hidden_act` is \"gelu\"", "supported: silu"],
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0}),
            ["\"yarn\"", "llama3"],
        ),
        (
            "quantization_config",
            json!({"quant_method": "awq", "bits": 4}),
            [
                "`quantization_config` is \"awq\"",
                "choose the unquantized checkpoint",
            ],
        ),
    ] {
        let model = copy("llama2");
        edit(&model, "config.json", |config| config[field] = value);
        assert_says(&model, &parts);
    }
}

#[test]
fn a_type_that_is_not_read_is_named() {
    let model = copy("llama2");
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("there");
    let header = u64::from_le_bytes(*bytes.first_chunk().expect("a header")) as usize;
    let text = String::from_utf8(bytes[8..8 + header].to_vec()).expect("text");
    // Of the same width, so that nothing else is wrong.
    bytes[8..8 + header].copy_from_slice(text.replace("\"F32\"", "\"I32\"").as_bytes());
    std::fs::write(&path, bytes).expect("written");
    assert_says(
        &model,
        &["`model.embed_tokens.weight`", "I32", "F32, F16 and BF16"],
    );
}
