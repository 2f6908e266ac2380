//! The prompts of `/v1/completions`: text or token ids, one or several.

use std::sync::Arc;

use serde_json::Value;

use super::choice::Echo;
use super::error::ApiError;
use super::fields::{Fields, as_integer};
use super::params::MAX_CHOICES;
use crate::text::{Detokenizer, Text};

const EXPECTED: &str =
    "a string, an array of strings, an array of token ids or an array of arrays of token ids";

/// One prompt as given.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// One prompt in tokens.
#[derive(Debug, PartialEq)]
pub(super) struct Encoded {
    pub(super) ids: Arc<[u32]>,
    /// What the answer repeats, if it does.
    pub(super) echo: Option<Echo>,
}

impl Encoded {
    /// Whether log-probabilities of the prompt are wanted.
    pub(super) fn is_scored(&self) -> bool {
        self.echo.as_ref().is_some_and(|e| !e.offsets.is_empty())
    }
}

/// Reads `prompt`.
pub(super) fn take(fields: &mut Fields) -> Result<Vec<Prompt>, ApiError> {
    let list = match fields.required("prompt")? {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(list) => list,
        other => return Err(ApiError::wrong_type("prompt", EXPECTED, &other)),
    };
    match list.first() {
        None => Err(ApiError::invalid("prompt", "at least one prompt")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(ids("prompt", list)?)]),
        Some(_) if list.len() > MAX_CHOICES => Err(ApiError::invalid(
            "prompt",
            format!("at most {MAX_CHOICES} prompts, but got {}", list.len()),
        )),
        Some(first) => {
            let texts = first.is_string();
            let prompts = list.into_iter().enumerate().map(|(i, value)| {
                let path = format!("prompt[{i}]");
                match value {
                    Value::String(text) if texts => Ok(Prompt::Text(text)),
                    Value::Array(list) if !texts && list.is_empty() => {
                        Err(ApiError::invalid(path, "at least one token id"))
                    }
                    Value::Array(list) if !texts => Ok(Prompt::Ids(ids(&path, list)?)),
                    other => Err(ApiError::wrong_type(path, EXPECTED, &other)),
                }
            });
            prompts.collect()
        }
    }
}

fn ids(path: &str, list: Vec<Value>) -> Result<Vec<u32>, ApiError> {
    let ids = list.iter().enumerate().map(|(i, value)| {
        let path = || format!("{path}[{i}]");
        if !value.is_number() {
            return Err(ApiError::wrong_type(path(), "a token id", value));
        }
        as_integer(value)
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| ApiError::invalid(path(), format!("a token id, but got {value}")))
    });
    ids.collect()
}

/// Refuses token ids that the model does not have.
pub(super) fn check(prompts: &[Prompt], vocab_size: u32) -> Result<(), ApiError> {
    let ids = prompts.iter().flat_map(|prompt| match prompt {
        Prompt::Text(_) => &[],
        Prompt::Ids(ids) => ids.as_slice(),
    });
    match ids.copied().find(|&id| id >= vocab_size) {
        None => Ok(()),
        Some(id) => Err(ApiError::invalid(
            "prompt",
            format!("token ids below {vocab_size}, but got {id}"),
        )),
    }
}

/// Cuts all prompts into tokens. With `offsets`, an echo knows where its tokens begin.
pub(super) fn encode(
    text: &Text,
    prompts: Vec<Prompt>,
    echo: bool,
    offsets: bool,
) -> Result<Vec<Encoded>, ApiError> {
    let prompts = prompts.into_iter().map(|prompt| {
        // With each token, whether it is silent: not part of the prompt's text.
        let (tokens, given) = match prompt {
            Prompt::Text(given) => {
                let tokens = text.tokenizer.encode_framed(&given);
                (
                    tokens.map_err(|e| ApiError::internal(e.to_string()))?,
                    Some(given),
                )
            }
            Prompt::Ids(ids) => {
                let silent = |id| (id, text.tokenizer.is_special(id));
                (ids.into_iter().map(silent).collect(), None)
            }
        };
        let tokens = if tokens.is_empty() {
            // An empty text begins where any text does.
            let id = text.bos_id.or_else(|| text.stop_ids.first().copied());
            vec![(
                id.ok_or_else(|| ApiError::invalid("prompt", "some text"))?,
                true,
            )]
        } else {
            tokens
        };
        let echo = echo.then(|| {
            let (shown, starts) = show(text, &tokens);
            Echo {
                text: given.unwrap_or(shown),
                offsets: if offsets { starts } else { Vec::new() },
            }
        });
        let ids = tokens.iter().map(|&(id, _)| id).collect();
        Ok(Encoded { ids, echo })
    });
    prompts.collect()
}

/// The text of tokens, and the character at which each begins in it.
fn show(text: &Text, tokens: &[(u32, bool)]) -> (String, Vec<usize>) {
    let mut detokenizer = Detokenizer::at_start(&text.tokenizer);
    let mut shown = String::new();
    let (mut starts, mut length, mut counted) = (Vec::with_capacity(tokens.len()), 0, 0);
    for &(id, silent) in tokens {
        starts.push(length);
        if !silent {
            detokenizer.push_visible(&text.tokenizer, id, &mut shown);
        }
        length += shown.get(counted..).map_or(0, |new| new.chars().count());
        counted = shown.len();
    }
    detokenizer.finish(&mut shown);
    (shown, starts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::testing::chat_text;

    fn read(prompt: Value) -> Result<Vec<Prompt>, ApiError> {
        take(&mut Fields::of(String::new(), json!({ "prompt": prompt }))?)
    }

    fn encoded(prompt: Value) -> Encoded {
        let prompts = read(prompt).expect("valid");
        let mut all = encode(&chat_text(), prompts, true, true).expect("encodes");
        all.remove(0)
    }

    #[test]
    fn all_four_shapes_are_read() {
        let text = |s: &str| Prompt::Text(s.into());
        for (prompt, expected) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", ""]), vec![text("a"), text("")]),
            (json!([1, 2.0]), vec![Prompt::Ids(vec![1, 2])]),
            (
                json!([[1], [2, 3]]),
                vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])],
            ),
        ] {
            assert_eq!(read(prompt), Ok(expected));
        }
    }

    #[test]
    fn faults_are_located() {
        let shapes = "expected a string, an array of strings, an array of token ids or an array of arrays of token ids";
        for (prompt, expected) in [
            (
                json!(null),
                "Missing required parameter: 'prompt'.".to_owned(),
            ),
            (
                json!(1),
                format!("Invalid type for 'prompt': {shapes}, but got an integer."),
            ),
            (
                json!([]),
                "Invalid 'prompt': expected at least one prompt.".into(),
            ),
            (
                json!(["a", 1]),
                format!("Invalid type for 'prompt[1]': {shapes}, but got an integer."),
            ),
            (
                json!([1, "a"]),
                "Invalid type for 'prompt[1]': expected a token id, but got a string.".into(),
            ),
            (
                json!([-1]),
                "Invalid 'prompt[0]': expected a token id, but got -1.".into(),
            ),
            (
                json!([[1], []]),
                "Invalid 'prompt[1]': expected at least one token id.".into(),
            ),
            (
                json!([[1], [0.5]]),
                "Invalid 'prompt[1][0]': expected a token id, but got 0.5.".into(),
            ),
            (
                json!([{}]),
                format!("Invalid type for 'prompt[0]': {shapes}, but got an object."),
            ),
            (
                json!(vec!["a"; 129]),
                "Invalid 'prompt': expected at most 128 prompts, but got 129.".into(),
            ),
        ] {
            assert_eq!(read(prompt).unwrap_err().to_string(), expected);
        }
        let ids = [Prompt::Ids(vec![1, 280])];
        assert_eq!(
            check(&ids, 280).unwrap_err().to_string(),
            "Invalid 'prompt': expected token ids below 280, but got 280."
        );
        assert_eq!(check(&ids, 281), Ok(()));
    }

    #[test]
    fn tokens_are_located_in_the_echo() {
        // "hello" and " w" are tokens; "€" is three.
        let prompt = encoded(json!("<|end|>hello w€x"));
        let echo = prompt.echo.expect("asked for");
        assert_eq!(echo.text, "<|end|>hello w€x");
        assert_eq!(prompt.ids[..2], [263, 264]);
        assert_eq!(echo.offsets, [0, 0, 7, 12, 14, 14, 14, 15]);

        let prompt = encoded(json!([263, 104, 0xE2]));
        let echo = prompt.echo.expect("asked for");
        assert_eq!(
            (echo.text.as_str(), echo.offsets),
            ("h\u{FFFD}", vec![0, 0, 1])
        );
    }

    #[test]
    fn an_empty_prompt_begins_a_text() {
        let prompt = encoded(json!(""));
        assert_eq!(*prompt.ids, [263]);
        assert_eq!(prompt.echo.expect("asked for").text, "");
    }
}
