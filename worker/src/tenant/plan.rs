//! What the code of tenants wants to happen next, checked.

use std::sync::Arc;

use super::Failure;
use super::guest::{Allowed, Draw, Plan};

/// Most tokens that may be forced at once.
const MAX_FORCED: usize = 4096;
/// Most tokens whose logits may be changed.
const MAX_BIASES: usize = 1024;

/// What is to happen to a sequence next.
#[derive(Debug, Clone)]
pub(super) enum Next {
    /// Its code has not said yet.
    Unknown,
    Draw(Arc<Draw>),
    /// These, the one with this number first.
    Force(Arc<[u32]>, usize),
    Stop,
    Failed(Failure),
}

impl Next {
    /// Takes in a plan that can be carried out.
    pub(super) fn of(plan: Plan, vocabulary: u32) -> Result<Next, String> {
        match plan {
            Plan::Stop => Ok(Next::Stop),
            Plan::Force(tokens) => {
                if tokens.is_empty() || tokens.len() > MAX_FORCED {
                    let len = tokens.len();
                    return Err(format!("`force` has {len} tokens, not 1 to {MAX_FORCED}"));
                }
                are_known("`force`", &tokens, vocabulary)?;
                Ok(Next::Force(tokens.into(), 0))
            }
            Plan::Draw(draw) => {
                check(&draw, vocabulary)?;
                Ok(Next::Draw(Arc::new(draw)))
            }
        }
    }
}

/// Whether all tokens are in the vocabulary; says where one is not.
pub(super) fn are_known(what: &str, tokens: &[u32], vocabulary: u32) -> Result<(), String> {
    match tokens.iter().find(|token| **token >= vocabulary) {
        None => Ok(()),
        Some(token) => Err(format!(
            "{what} names token {token} in a vocabulary of {vocabulary}"
        )),
    }
}

/// Whether a token can be drawn like this; says why not.
pub(super) fn check(draw: &Draw, vocabulary: u32) -> Result<(), String> {
    match &draw.allowed {
        Allowed::All => {}
        Allowed::Tokens(tokens) if tokens.is_empty() => {
            return Err("`allowed` has no tokens".into());
        }
        Allowed::Tokens(tokens) => are_known("`allowed`", tokens, vocabulary)?,
        Allowed::Mask(words) => {
            let last = words.iter().rposition(|word| *word != 0);
            let last = last.ok_or("`allowed` has no tokens")?;
            let bit = 31 - words.get(last).map_or(31, |word| word.leading_zeros());
            let token = u32::try_from(last).ok().and_then(|l| l.checked_mul(32));
            let token = token.map_or(u32::MAX, |token| token + bit);
            are_known("`allowed`", &[token], vocabulary)?;
        }
    }
    if draw.bias.len() > MAX_BIASES {
        let len = draw.bias.len();
        return Err(format!("`bias` has {len} tokens, more than {MAX_BIASES}"));
    }
    for (token, value) in &draw.bias {
        are_known("`bias`", &[*token], vocabulary)?;
        if !value.is_finite() {
            return Err(format!("`bias` adds {value} to token {token}"));
        }
    }
    match draw.temperature {
        Some(t) if !(0.0..=f32::MAX).contains(&t) => Err(format!("`temperature` is {t}")),
        _ => Ok(()),
    }
}
