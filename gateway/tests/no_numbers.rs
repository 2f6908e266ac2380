//! A model that gives no number for one token: the request that has it fails, and no other.

mod common;

use std::path::Path;

use common::{Server, completion, wait_until};
use serde_json::{Value, json};

/// The token: a byte that no English text has.
const BAD: usize = 250;

/// The embedded model with an embedding that is not a number, and an output head that is.
fn model(directory: &Path, token: usize) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(from.join(file), directory.join(file)).expect("copied");
    }
    let config = std::fs::read(from.join("config.json")).expect("there");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["tie_word_embeddings"] = json!(false);
    std::fs::write(directory.join("config.json"), config.to_string()).expect("written");

    // A safetensors file: length of the header, the header as JSON, and the tensors.
    let file = std::fs::read(from.join("model.safetensors")).expect("there");
    let (length, rest) = file.split_first_chunk().expect("long enough");
    let (header, tensors) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Value = serde_json::from_slice(header).expect("JSON");
    let mut tensors = tensors.to_vec();
    let embedding = header["model.embed_tokens.weight"].clone();
    assert_eq!(embedding["dtype"], "BF16");
    let at = |index: usize| embedding["data_offsets"][index].as_u64().expect("a number") as usize;
    let (start, end, total) = (at(0), at(1), tensors.len());
    let mut head = embedding.clone();
    head["data_offsets"] = json!([total, total + end - start]);
    header["lm_head.weight"] = head;
    tensors.extend_from_within(start..end);
    let width = 2 * embedding["shape"][1].as_u64().expect("a number") as usize;
    tensors[start + token * width..][..width].fill(0xff);
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length, header.as_bytes(), &tensors].concat();
    std::fs::write(directory.join("model.safetensors"), file).expect("written");
}

#[test]
fn only_the_request_without_a_number_fails() {
    let directory = tempfile::tempdir().expect("temporary directory");
    model(directory.path(), BAD);
    let spec = format!("realm-tiny={}", directory.path().display());
    let server = Server::start(&["--model", &spec]);
    let worker = server.worker_pid();
    let good = json!({
        "model": "realm-tiny", "prompt": "Once upon a time", "max_tokens": 100, "min_tokens": 100,
        "seed": 7, "stream": true
    });
    let (alone, _) = server.stream("/v1/completions", &good, |_| {});
    let failures: [(&str, Value); 3] = [
        (
            "in its prompt",
            json!({"prompt": [5, BAD, 6], "max_tokens": 5}),
        ),
        (
            "in a prompt to be scored",
            json!({"prompt": [5, BAD, 6, 7], "max_tokens": 0, "echo": true, "logprobs": 1}),
        ),
        (
            "drawn as its first token",
            json!({"prompt": [5], "max_tokens": 5, "min_tokens": 5, "logit_bias": {BAD.to_string(): 100}}),
        ),
    ];
    let (together, _) = server.stream("/v1/completions", &good, |chunks| {
        if let Some((what, fields)) = failures.get(chunks.wrapping_sub(10)) {
            let mut body = fields.clone();
            body["model"] = json!("realm-tiny");
            let answer = server.post("/v1/completions", &body);
            assert_eq!(answer.status, 500, "{what}: {}", answer.body);
            let error = &answer.json()["error"];
            assert_eq!(error["code"], "not_a_number", "{what}: {error}");
            assert_eq!(error["type"], "server_error", "{what}: {error}");

            body["stream"] = json!(true);
            let answer = server.post("/v1/completions", &body);
            assert_eq!(answer.status, 200, "{what}: {}", answer.body);
            let last = answer.body.trim_end().rsplit("data: ").next();
            let last: Value = serde_json::from_str(last.expect("an event")).expect("JSON");
            assert_eq!(
                last["error"]["code"], "not_a_number",
                "{what}: {}",
                answer.body
            );
        }
    });
    assert_eq!(together, alone, "its neighbour is as it is alone");
    // Streams as well, whose status was 200, each with the id of its request.
    wait_until("each failure is in the log", || {
        server.logged(&["request{id=", "a sequence failed", "not_a_number"]) == 2 * failures.len()
    });
    let answer = server.post("/v1/completions", &completion("Hi"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(server.worker_pid(), worker, "the worker was replaced");
}

#[test]
fn a_model_without_any_number_is_an_error_at_start() {
    let directory = tempfile::tempdir().expect("temporary directory");
    // The token that a new worker is probed with.
    model(directory.path(), 0);
    let spec = format!("realm-tiny={}", directory.path().display());
    let (status, stderr) = common::fail_to_start(&["--model", &spec]);
    assert!(!status.success());
    assert!(stderr.contains("--dtype"), "{stderr}");
}
