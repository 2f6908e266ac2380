//! What a plan must be like to be carried out: checked where it comes in.

use super::contract::processor::realm::program::types::{Allowed, Draw};

/// Most tokens whose logits may be changed.
const MAX_BIASES: usize = 1024;

/// A token that there is.
pub(super) fn known(what: &str, token: u32, vocabulary: u32) -> Result<(), String> {
    match token < vocabulary {
        true => Ok(()),
        false => Err(format!(
            "{what} names token {token} in a vocabulary of {vocabulary}"
        )),
    }
}

/// A draw that there is something to draw from.
pub(super) fn drawable(draw: &Draw, vocabulary: u32) -> Result<(), String> {
    let known = |what, token| known(what, token, vocabulary);
    match &draw.allowed {
        Allowed::All => {}
        Allowed::Tokens(tokens) if tokens.is_empty() => {
            return Err("`allowed` has no tokens".into());
        }
        // Each is looked at in every step of the row, whether or not it is named twice.
        Allowed::Tokens(tokens) if tokens.len() > vocabulary as usize => {
            let len = tokens.len();
            return Err(format!(
                "`allowed` has {len} tokens in a vocabulary of {vocabulary}"
            ));
        }
        Allowed::Tokens(tokens) => {
            tokens.iter().try_for_each(|t| known("`allowed`", *t))?;
        }
        Allowed::Mask(words) => {
            let last = words.iter().rposition(|word| *word != 0);
            let last = last.ok_or("`allowed` has no tokens")?;
            let bit = 31 - words.get(last).map_or(31, |word| word.leading_zeros());
            let token = u32::try_from(last).ok().and_then(|l| l.checked_mul(32));
            known("`allowed`", token.map_or(u32::MAX, |t| t + bit))?;
        }
    }
    if draw.bias.len() > MAX_BIASES {
        let len = draw.bias.len();
        return Err(format!("`bias` has {len} tokens, more than {MAX_BIASES}"));
    }
    for (token, value) in &draw.bias {
        known("`bias`", *token)?;
        if !value.is_finite() {
            return Err(format!("`bias` adds {value} to token {token}"));
        }
    }
    match draw.temperature {
        Some(t) => temperature(t),
        None => Ok(()),
    }
}

/// A temperature that can be drawn at.
pub(super) fn temperature(t: f32) -> Result<(), String> {
    match (0.0..=f32::MAX).contains(&t) {
        true => Ok(()),
        false => Err(format!("`temperature` is {t}")),
    }
}
