//! A step as the gateway asked for it, checked.
//!
//! The worker trusts its gateway, but a gateway with a bug must end in a sentence, not in memory
//! that another sequence owns. Everything past [`Batch::new`] may index with what it holds.

use realm_shared::wire::step::{INPUT_SAMPLED, PARKED, SAMPLE, STEERED};

use crate::kernels::Attention;

/// What a worker can hold and run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Tokens of a sequence.
    pub max_context: usize,
    /// KV blocks.
    pub block_count: usize,
    /// Sequence slots.
    pub max_sequences: usize,
    /// Tokens of a step.
    pub max_step_tokens: usize,
}

/// The tensors of a step, as they lie in its slot; [`realm_shared::wire::step`] explains them.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// `[R]`
    pub slots: &'a [i32],
    /// `[R + 1]`
    pub starts: &'a [i32],
    /// `[R]`
    pub context: &'a [i32],
    /// `[R]`
    pub flags: &'a [i32],
    /// `[R]`
    pub index: &'a [i32],
    /// `[T]`
    pub tokens: &'a [i32],
    /// `[R, B]`
    pub blocks: &'a [i32],
    /// `[T]` or empty
    pub targets: &'a [i32],
    /// Most alternatives that a row asks for.
    pub top: usize,
}

/// What is wrong with a step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// Two tensors contradict each other, or a limit.
    #[error("step: {0}")]
    Shape(String),
    /// A row is impossible.
    #[error("step, row {row}: {reason}")]
    Row {
        /// Its number.
        row: usize,
        /// Why.
        reason: String,
    },
}

/// One sequence's part of a step.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Its sequence slot.
    pub slot: usize,
    /// First of its tokens in the step.
    pub first: usize,
    /// How many they are; none for a row that is parked, otherwise at least one.
    pub len: usize,
    /// Position of the first of them.
    pub context: usize,
    /// Whether a token is drawn from the logits of the last of them.
    pub sample: bool,
    /// Whether its only token is the one drawn last for this slot.
    pub input_sampled: bool,
    /// Whether a program steers its sequence.
    pub steered: bool,
    /// Whether it draws from the logits that were kept for it.
    pub parked: bool,
    /// Number of the token to be drawn.
    pub index: u32,
    /// KV blocks that hold its context and its tokens.
    pub blocks: &'a [i32],
}

/// A step whose every index is in range.
#[derive(Debug)]
pub struct Batch<'a> {
    rows: Vec<Row<'a>>,
    tokens: &'a [i32],
    targets: &'a [i32],
    top: usize,
}

impl<'a> Batch<'a> {
    /// Checks a step against what the worker can hold.
    ///
    /// # Errors
    /// Names the first thing that is wrong.
    pub fn new(step: Step<'a>, limits: &Limits) -> Result<Batch<'a>, BatchError> {
        let shape = |reason: String| Err(BatchError::Shape(reason));
        let (count, total) = (step.slots.len(), step.tokens.len());
        if count == 0 || count > limits.max_sequences {
            return shape(format!("{count} rows, of at most {}", limits.max_sequences));
        }
        if total > limits.max_step_tokens {
            return shape(format!(
                "{total} tokens, of at most {}",
                limits.max_step_tokens
            ));
        }
        for (name, len, expected) in [
            ("starts", step.starts.len(), count + 1),
            ("context", step.context.len(), count),
            ("flags", step.flags.len(), count),
            ("index", step.index.len(), count),
        ] {
            if len != expected {
                return shape(format!("`{name}` has {len} entries for {count} rows"));
            }
        }
        if !step.blocks.len().is_multiple_of(count) {
            return shape(format!(
                "{} block entries for {count} rows",
                step.blocks.len()
            ));
        }
        if step.starts.first() != Some(&0) || step.starts.last() != Some(&(total as i32)) {
            return shape(format!("`starts` does not run from 0 to {total}"));
        }
        if !(step.targets.is_empty() || step.targets.len() == total) {
            return shape(format!("{} targets for {total} tokens", step.targets.len()));
        }
        if let Some(bad) = step
            .targets
            .iter()
            .find(|t| **t < -1 || **t >= limits.vocab as i32)
        {
            return shape(format!("target {bad} in a vocabulary of {}", limits.vocab));
        }
        if step.top > realm_shared::wire::MAX_TOP_LOGPROBS {
            return shape(format!("{} alternatives asked for", step.top));
        }
        let width = step.blocks.len() / count;
        let rows = (0..count)
            .map(|i| {
                let blocks = &step.blocks[i * width..(i + 1) * width];
                row(&step, i, blocks, limits).map_err(|reason| BatchError::Row { row: i, reason })
            })
            .collect::<Result<Vec<_>, _>>()?;
        refuse_collisions(&rows, limits)?;
        Ok(Batch {
            rows,
            tokens: step.tokens,
            targets: step.targets,
            top: step.top,
        })
    }

    /// Its rows; there is at least one.
    pub fn rows(&self) -> &[Row<'a>] {
        &self.rows
    }

    /// Input tokens of all rows. Meaningless for a row whose input was sampled.
    pub fn tokens(&self) -> &'a [i32] {
        self.tokens
    }

    /// The token that input token `t` is to be scored by, if any.
    pub fn target(&self, t: usize) -> Option<u32> {
        self.targets
            .get(t)
            .and_then(|target| u32::try_from(*target).ok())
    }

    /// Entries of the targets: none, or one per token.
    pub fn target_count(&self) -> usize {
        self.targets.len()
    }

    /// Most alternatives that a row asks for.
    pub fn top(&self) -> usize {
        self.top
    }
}

fn row<'a>(
    step: &Step<'_>,
    i: usize,
    blocks: &'a [i32],
    limits: &Limits,
) -> Result<Row<'a>, String> {
    let natural = |name: &str, x: i32| {
        usize::try_from(x).map_err(|_| format!("`{name}` is {x}, which is negative"))
    };
    let slot = natural("slots", step.slots[i])?;
    if slot >= limits.max_sequences {
        return Err(format!("slot {slot} of {}", limits.max_sequences));
    }
    let first = natural("starts", step.starts[i])?;
    let end = natural("starts", step.starts[i + 1])?;
    let flags = step.flags[i];
    if flags & !(SAMPLE | INPUT_SAMPLED | STEERED | PARKED) != 0 {
        return Err(format!("unknown flags {flags:#x}"));
    }
    let parked = flags & PARKED != 0;
    if parked && (flags != SAMPLE | STEERED | PARKED || end != first) {
        return Err(format!(
            "it is parked, with flags {flags:#x} and tokens from {first} to {end}"
        ));
    }
    if end < first || end == first && !parked || end > step.tokens.len() {
        return Err(format!(
            "its tokens run from {first} to {end} of {}",
            step.tokens.len()
        ));
    }
    let len = end - first;
    let context = natural("context", step.context[i])?;
    if context + len > limits.max_context {
        let max = limits.max_context;
        return Err(format!(
            "{context} + {len} tokens, in a context of at most {max}"
        ));
    }
    let needed = (context + len).div_ceil(Attention::BLOCK);
    let blocks = blocks
        .get(..needed)
        .ok_or_else(|| format!("needs {needed} KV blocks, has {}", blocks.len()))?;
    if let Some(bad) = blocks
        .iter()
        .find(|b| **b < 0 || **b as usize >= limits.block_count)
    {
        return Err(format!("KV block {bad} of {}", limits.block_count));
    }
    let input_sampled = flags & INPUT_SAMPLED != 0;
    if input_sampled && len != 1 {
        return Err(format!(
            "its input is the sampled token, but it has {len} tokens"
        ));
    }
    if !input_sampled {
        let tokens = &step.tokens[first..end];
        if let Some(bad) = tokens
            .iter()
            .find(|t| **t < 0 || **t as usize >= limits.vocab)
        {
            return Err(format!("token {bad} in a vocabulary of {}", limits.vocab));
        }
    }
    let sample = flags & SAMPLE != 0;
    let index = if sample {
        natural("index", step.index[i])? as u32
    } else {
        0
    };
    Ok(Row {
        slot,
        first,
        len,
        context,
        sample,
        input_sampled,
        steered: flags & STEERED != 0,
        parked,
        index,
        blocks,
    })
}

/// No slot may appear twice, and no block may be written by two rows: blocks are shared between
/// sequences only once they are full.
fn refuse_collisions(rows: &[Row<'_>], limits: &Limits) -> Result<(), BatchError> {
    let mut slots = vec![false; limits.max_sequences];
    let mut written: Vec<(i32, usize)> = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        if std::mem::replace(&mut slots[row.slot], true) {
            let reason = format!("slot {} appears twice", row.slot);
            return Err(BatchError::Row { row: i, reason });
        }
        if row.len == 0 {
            continue;
        }
        let first = row.context / Attention::BLOCK;
        written.extend(row.blocks[first..].iter().map(|block| (*block, i)));
    }
    written.sort_unstable();
    for pair in written.windows(2) {
        if pair[0].0 == pair[1].0 {
            let reason = format!("KV block {} is written twice in one step", pair[0].0);
            return Err(BatchError::Row {
                row: pair[1].1,
                reason,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        vocab: 100,
        max_context: 64,
        block_count: 8,
        max_sequences: 4,
        max_step_tokens: 32,
    };

    /// Two rows: 3 tokens after 16, and the sampled token after 2.
    const GOOD: Step<'static> = Step {
        slots: &[3, 0],
        starts: &[0, 3, 4],
        context: &[16, 2],
        flags: &[SAMPLE, SAMPLE | INPUT_SAMPLED],
        index: &[0, 5],
        tokens: &[1, 2, 99, -7],
        blocks: &[5, 6, 7, 0],
        targets: &[],
        top: 0,
    };

    #[test]
    fn a_good_step_is_read_as_meant() {
        let batch = Batch::new(GOOD, &LIMITS).expect("valid");
        let [a, b] = batch.rows() else {
            panic!("two rows")
        };
        assert_eq!(
            (a.slot, a.first, a.len, a.context, a.blocks),
            (3, 0, 3, 16, &[5, 6][..])
        );
        assert_eq!(
            (b.slot, b.first, b.len, b.context, b.blocks),
            (0, 3, 1, 2, &[7][..])
        );
        assert_eq!((b.input_sampled, b.index), (true, 5));
    }

    #[test]
    fn a_parked_row_has_no_tokens_and_writes_nothing() {
        let parked = Step {
            starts: &[0, 4, 4],
            flags: &[SAMPLE, SAMPLE | STEERED | PARKED],
            context: &[16, 20],
            tokens: &[1, 2, 99, 7],
            blocks: &[5, 6, 5, 6],
            ..GOOD
        };
        let batch = Batch::new(parked, &LIMITS).expect("valid");
        let row = batch.rows()[1];
        assert!(row.parked && row.steered && row.sample);
        assert_eq!((row.len, row.blocks, row.index), (0, &[5, 6][..], 5));
    }

    #[test]
    fn every_contradiction_is_named() {
        let bad: [(Step<'_>, &str); 21] = [
            (Step { slots: &[], ..GOOD }, "0 rows"),
            (
                Step {
                    slots: &[3, 4],
                    ..GOOD
                },
                "row 1: slot 4 of 4",
            ),
            (
                Step {
                    slots: &[3, -1],
                    ..GOOD
                },
                "`slots` is -1",
            ),
            (
                Step {
                    slots: &[3, 3],
                    ..GOOD
                },
                "slot 3 appears twice",
            ),
            (
                Step {
                    starts: &[0, 4],
                    ..GOOD
                },
                "`starts` has 2 entries",
            ),
            (
                Step {
                    starts: &[1, 3, 4],
                    ..GOOD
                },
                "from 0 to 4",
            ),
            (
                Step {
                    starts: &[0, 0, 4],
                    ..GOOD
                },
                "row 0: its tokens run from 0 to 0",
            ),
            (
                Step {
                    starts: &[0, 9, 4],
                    ..GOOD
                },
                "row 0: its tokens run from 0 to 9",
            ),
            (
                Step {
                    context: &[62, 2],
                    ..GOOD
                },
                "62 + 3 tokens, in a context of at most 64",
            ),
            (
                Step {
                    context: &[-1, 2],
                    ..GOOD
                },
                "`context` is -1",
            ),
            (
                Step {
                    context: &[30, 2],
                    ..GOOD
                },
                "needs 3 KV blocks, has 2",
            ),
            (
                Step {
                    blocks: &[5, 8, 7, 0],
                    ..GOOD
                },
                "KV block 8 of 8",
            ),
            (
                Step {
                    blocks: &[5, 6, 6, 0],
                    ..GOOD
                },
                "row 1: KV block 6 is written twice",
            ),
            (
                Step {
                    flags: &[16, 1],
                    ..GOOD
                },
                "unknown flags 0x10",
            ),
            (
                Step {
                    flags: &[SAMPLE | STEERED | PARKED, SAMPLE],
                    ..GOOD
                },
                "row 0: it is parked",
            ),
            (
                Step {
                    starts: &[0, 4, 4],
                    flags: &[SAMPLE, SAMPLE | PARKED],
                    tokens: &[1, 2, 99, 7],
                    context: &[12, 2],
                    ..GOOD
                },
                "row 1: it is parked",
            ),
            (
                Step {
                    flags: &[2, 1],
                    ..GOOD
                },
                "but it has 3 tokens",
            ),
            (
                Step {
                    tokens: &[1, 2, 100, 0],
                    ..GOOD
                },
                "token 100 in a vocabulary of 100",
            ),
            (
                Step {
                    index: &[-1, 0],
                    ..GOOD
                },
                "`index` is -1",
            ),
            (
                Step {
                    targets: &[1, 2],
                    ..GOOD
                },
                "2 targets for 4 tokens",
            ),
            (
                Step {
                    targets: &[1, 2, 3, 100],
                    ..GOOD
                },
                "target 100",
            ),
        ];
        for (step, message) in bad {
            let error = Batch::new(step, &LIMITS).expect_err(message).to_string();
            assert!(error.contains(message), "{error} does not say {message}");
        }
        let shared_but_full = Step {
            blocks: &[5, 6, 5, 0],
            context: &[16, 2],
            ..GOOD
        };
        // Row 1 writes into block 5, which row 0 only reads: allowed here, for reading comes after.
        assert!(Batch::new(shared_but_full, &LIMITS).is_ok());
    }
}
