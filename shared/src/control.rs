//! Control messages: JSON text, one per `SEQPACKET` datagram.
//!
//! They carry what happens once (loading, readiness, the reason of an end, the code of a program),
//! never tokens.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Longest control message in bytes. A longer one is a protocol violation.
pub const MAX_CONTROL_BYTES: usize = 16 * 1024;

/// What a line of a worker's standard error begins with that a tenant's code has logged.
pub const PROGRAM_LOG: &str = "program ";

/// What a gateway asks of `realm-worker compile --socket`: a process that compiles what comes to its
/// standard input. Three messages with that, each with a descriptor, are for the process's standard
/// input, output and errors. The answer, when it has ended, is its wait status: four bytes, the lowest first.
/// Any other message, or none any more, ends it.
pub const COMPILE: &[u8] = b"compile";
/// The same for one that says what compiled code depends on.
pub const FINGERPRINT: &[u8] = b"fingerprint";

/// Instances of programs at once that a worker may be told to have, and bytes of stack of each.
pub const INSTANCES: RangeInclusive<u32> = 1..=10_000;
/// See [`INSTANCES`].
pub const PROGRAM_STACK: RangeInclusive<u64> = 64 << 10..=4 << 20;
/// Part of what is free of a GPU's memory that a worker may be told to have for keys and values.
pub const GPU_MEMORY_FRACTION: RangeInclusive<f64> = 0.05..=0.98;
/// Seconds of processor time that a compiler may be told to take, and bytes of memory.
pub const COMPILE_SECONDS: RangeInclusive<u64> = 1..=3600;
/// See [`COMPILE_SECONDS`]: with less it does not start, and more is not to be had.
pub const COMPILE_MEMORY: RangeInclusive<u64> = 512 << 20..=1 << 40;
/// What it takes where nothing is said.
pub const USUAL_COMPILE_SECONDS: u64 = 30;
/// See [`USUAL_COMPILE_SECONDS`].
pub const USUAL_COMPILE_MEMORY: u64 = 4 << 30;

/// What a worker says about itself beside the rings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Weights are being read: `done` of `total` bytes.
    Loading {
        /// Bytes read so far.
        done: u64,
        /// Bytes to read.
        total: u64,
    },
    /// The model is loaded; the ring is served from now on.
    Ready(ModelInfo),
    /// The worker cannot go on and exits after this message.
    Failed {
        /// What was wrong, where, and what to do.
        message: String,
    },
    /// The worker ends by a fault of its own; the last message of one that the gateway did not start itself.
    Crashed {
        /// In words that follow "the worker ended".
        how: String,
    },
}

/// What a gateway tells a worker beside the rings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Order {
    /// The compiled code of a program. A descriptor of a sealed memfd that holds it comes with the
    /// message. [`OPEN`](crate::wire::OPEN)s that name it may follow at once: their sequences wait
    /// for this message, and nobody else does.
    Program {
        /// What [`OPEN`](crate::wire::OPEN) calls it; not 0, and no other program's.
        number: u64,
        /// What people call it, for logs.
        name: String,
    },
}

/// What the gateway must know of a loaded model to schedule it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Architecture as named in `config.json`, e.g. `LlamaForCausalLM`.
    pub architecture: String,
    /// Device the model runs on: `cpu` or `cuda:N`.
    pub device: String,
    /// Data type of the forward pass: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// Rows of the output head. Every sampled token is below it.
    pub vocab_size: u32,
    /// Most tokens that one sequence may hold.
    pub max_context: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks in the arena.
    pub block_count: u32,
    /// Sequence slots: most sequences that may be open at once.
    pub max_sequences: u32,
    /// Most tokens in one step.
    pub max_step_tokens: u32,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of weights held.
    pub weight_bytes: u64,
    /// Bytes of KV that one token takes.
    pub kv_bytes_per_token: u64,
    /// Compute threads.
    pub threads: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_message_survives_json() {
        let m = Control::Failed {
            message: "no such file".into(),
        };
        let text = serde_json::to_string(&m).expect("serializes");
        assert_eq!(text, r#"{"type":"failed","message":"no such file"}"#);
        assert_eq!(serde_json::from_str::<Control>(&text).expect("parses"), m);
    }
}
