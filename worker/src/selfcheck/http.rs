//! What the way through HTTP, text, scheduler and ring leaves of what an engine does alone: `realm bench` serves random
//! weights of the same shape on the same device, and loads them.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// How long it may take: loading is most of it.
const PATIENCE: Duration = Duration::from_secs(150);

/// The gateway's program, and the device that its worker is to compute on.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// `realm`.
    pub program: PathBuf,
    /// `realm-worker`.
    pub worker: PathBuf,
    /// As `--device` names it.
    pub device: String,
}

/// Streams that begin together.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// How many.
    pub count: usize,
    /// Tokens of the prompt of each, which are few, so that all soon decode.
    pub prompt: usize,
    /// Tokens of the answer of each.
    pub output: usize,
}

impl Gateway {
    /// Tokens that all streams together get in a second, while all run.
    ///
    /// # Errors
    /// If the model cannot be served, or a request fails.
    pub fn decode_rate(&self, config: &Value, streams: Streams) -> anyhow::Result<f64> {
        let folder = tempfile::tempdir()?;
        let write = |name: &str, value: Value| {
            let path = folder.path().join(name);
            std::fs::write(&path, value.to_string())
                .with_context(|| format!("cannot write {}", path.display()))
        };
        let vocab = config["vocab_size"].as_u64().context("no vocab_size")?;
        write("config.json", config.clone())?;
        write("tokenizer.json", tokenizer(vocab))?;
        write("tokenizer_config.json", json!({}))?;
        let program = self.program.display();
        let Streams {
            count,
            prompt,
            output,
        } = streams;
        let numbers = [
            ("--concurrency", count),
            ("--requests", count),
            ("--prompt", prompt),
            ("--output", output),
        ];
        let mut command = Command::new(&self.program);
        command
            .args(["bench", "--json", "--random-weights", "--dtype", "bf16"])
            .args(["--device", &self.device])
            .arg("--model")
            .arg(folder.path())
            .arg("--worker")
            .arg(&self.worker)
            .stdin(Stdio::null());
        for (name, number) in numbers {
            command.arg(name).arg(number.to_string());
        }
        // What this process was told of others is not for that one.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"REALM_") {
                command.env_remove(name);
            }
        }
        let done = output_within(&mut command, PATIENCE);
        let done = done.with_context(|| format!("cannot run {program}"))?;
        let Some(done) = done else {
            let seconds = PATIENCE.as_secs();
            bail!("{program} bench was not done after {seconds} seconds");
        };
        let report = serde_json::from_slice::<Value>(&done.stdout);
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            let why = report.ok().map(|report| report["runs"][0]["error"].clone());
            let why = why.as_ref().and_then(Value::as_str).unwrap_or_default();
            bail!("{program} bench failed: {}{why}", said.trim_end());
        }
        let report = report.with_context(|| format!("{program} bench printed no JSON"))?;
        let rate = report["runs"][0]["decode_tokens_per_second"].as_f64();
        rate.with_context(|| format!("{program} bench measured no decoding"))
    }
}

/// What a program that prints little gave, unless it was not done in time and was killed.
fn output_within(command: &mut Command, patience: Duration) -> io::Result<Option<Output>> {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    while child.try_wait()?.is_none() {
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.wait_with_output().map(Some)
}

/// A tokenizer of so many tokens, which no text is cut into: prompts are ids.
fn tokenizer(vocab: u64) -> Value {
    let ids: serde_json::Map<String, Value> = (0..vocab)
        .map(|id| (format!("<{id}>"), id.into()))
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": ids, "merges": [],
        },
    })
}
