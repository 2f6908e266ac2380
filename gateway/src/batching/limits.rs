//! What bounds a scheduler: its own settings, and the worker's size.

use std::time::Duration;

use realm_shared::control::ModelInfo;

/// Settings that outlive any worker.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Most sequences that may wait; one more is refused. Sequences that were running and wait
    /// again are never refused, so more may wait for a while.
    pub max_waiting: usize,
    /// How long the oldest step in flight may take before the worker counts as hung.
    pub step_timeout: Duration,
    /// Most entries of a step's block table, all rows padded to the widest. A step has at least
    /// two rows all the same, as it has two tokens.
    pub max_table: usize,
    /// How much longer than one that decodes one sequence a step may take for what tenants get
    /// beyond their shares, as a part of that.
    pub surplus: f64,
}

/// The size of a worker, as it told when it was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Positions per KV block.
    pub block_size: u32,
    /// KV blocks in the arena.
    pub block_count: u32,
    /// Sequence slots: most sequences running at once.
    pub max_sequences: u32,
    /// Most tokens in one step. At least two: a decode and some prefill.
    pub max_step_tokens: u32,
    /// Most tokens that one sequence may hold, prompt included.
    pub max_context: u32,
    /// Every token is below it.
    pub vocab_size: u32,
}

/// A worker described itself with a size that cannot be scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker says that its {name} is {value}; it must be at least {least} and fit an i32")]
pub struct InvalidLimits {
    /// The field of [`Limits`].
    pub name: &'static str,
    /// Its value.
    pub value: u32,
    /// The least value allowed.
    pub least: u32,
}

impl Limits {
    /// Checks that every value can be scheduled and written into the `i32` tensors of a step.
    pub(super) fn check(&self) -> Result<(), InvalidLimits> {
        let fields = [
            ("block_size", self.block_size, 1),
            ("block_count", self.block_count, 1),
            ("max_sequences", self.max_sequences, 1),
            ("max_step_tokens", self.max_step_tokens, 2),
            ("max_context", self.max_context, 1),
            ("vocab_size", self.vocab_size, 1),
        ];
        for (name, value, least) in fields {
            if value < least || i32::try_from(value).is_err() {
                return Err(InvalidLimits { name, value, least });
            }
        }
        Ok(())
    }
}

impl From<&ModelInfo> for Limits {
    fn from(info: &ModelInfo) -> Self {
        Self {
            block_size: info.block_size,
            block_count: info.block_count,
            max_sequences: info.max_sequences,
            max_step_tokens: info.max_step_tokens,
            max_context: info.max_context,
            vocab_size: info.vocab_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_scheduled_are_named() {
        let good = Limits {
            block_size: 16,
            block_count: 8,
            max_sequences: 4,
            max_step_tokens: 2,
            max_context: 128,
            vocab_size: 256,
        };
        assert_eq!(good.check(), Ok(()));
        let name = |limits: Limits| limits.check().expect_err("invalid").name;
        let zero = Limits {
            block_size: 0,
            ..good
        };
        assert_eq!(name(zero), "block_size");
        let one = Limits {
            max_step_tokens: 1,
            ..good
        };
        assert_eq!(name(one), "max_step_tokens");
        let huge = Limits {
            block_count: 1 << 31,
            ..good
        };
        assert_eq!(name(huge), "block_count");
    }
}
