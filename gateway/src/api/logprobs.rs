//! Log-probabilities as the two endpoints write them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::choice::Scored;
use crate::batching::sequence::TokenLogprobs;
use crate::text::Tokenizer;

/// Stands for a log-probability of minus infinity, which JSON cannot say. OpenAI does the same.
const IMPOSSIBLE: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() {
        logprob
    } else {
        IMPOSSIBLE
    }
}

/// `logprobs` of a chat choice.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatToken>,
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct ChatToken {
    #[serde(flatten)]
    token: ScoredToken,
    top_logprobs: Vec<ScoredToken>,
}

#[derive(Debug, Serialize)]
struct ScoredToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn new(tokens: &[Scored], tokenizer: &Tokenizer) -> Self {
        let scored = |id: u32, logprob: f32| {
            let bytes = tokenizer.token_bytes(id);
            ScoredToken {
                token: String::from_utf8_lossy(&bytes).into_owned(),
                logprob: finite(logprob),
                bytes,
            }
        };
        let content = tokens.iter().filter_map(|t| {
            let TokenLogprobs { logprob, top } = t.logprobs.as_ref()?;
            Some(ChatToken {
                token: scored(t.token, *logprob),
                top_logprobs: top.iter().map(|&(id, p)| scored(id, p)).collect(),
            })
        });
        ChatLogprobs {
            content: content.collect(),
            refusal: None,
        }
    }
}

/// `logprobs` of a choice of `/v1/completions`: four lists of the same length.
#[derive(Debug, Serialize)]
pub(super) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// `top`: how many alternatives were asked for. The token itself is always among them.
    pub(super) fn new(tokens: &[Scored], tokenizer: &Tokenizer, top: u32) -> Self {
        let name = |id: u32| token_name(&tokenizer.token_bytes(id));
        let alternatives = |t: &Scored| {
            let TokenLogprobs { logprob, top } = t.logprobs.as_ref()?;
            let mut map: BTreeMap<_, _> =
                top.iter().map(|&(id, p)| (name(id), finite(p))).collect();
            map.insert(name(t.token), finite(*logprob));
            Some(map)
        };
        CompletionLogprobs {
            tokens: tokens.iter().map(|t| name(t.token)).collect(),
            token_logprobs: tokens
                .iter()
                .map(|t| t.logprobs.as_ref().map(|l| finite(l.logprob)))
                .collect(),
            top_logprobs: (top > 0).then(|| tokens.iter().map(alternatives).collect()),
            text_offset: tokens.iter().map(|t| t.start).collect(),
        }
    }
}

/// A token as text. One that holds only part of a character is written `bytes:\xe2\x82`, so that
/// different tokens keep different names.
fn token_name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |mut name, byte| {
            name.push_str(&format!("\\x{byte:02x}"));
            name
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::testing::logprobs;
    use crate::text::testing::chat_text;

    fn tokens() -> Vec<Scored> {
        vec![
            Scored {
                token: u32::from(b'a'),
                start: 0,
                logprobs: None,
            },
            Scored {
                token: 0xE2,
                start: 1,
                logprobs: Some(logprobs(
                    f32::NEG_INFINITY,
                    &[(u32::from(b'b'), -0.1), (0xE2, -2.5)],
                )),
            },
        ]
    }

    #[test]
    fn chat_tokens_have_text_and_bytes() {
        let text = chat_text();
        let value = serde_json::to_value(ChatLogprobs::new(&tokens()[1..], &text.tokenizer));
        assert_eq!(
            serde_json::to_string(&value.expect("serializes")).expect("serializes"),
            json!({"content": [{"token": "\u{FFFD}", "logprob": -9999.0, "bytes": [226],
                    "top_logprobs": [{"token": "b", "logprob": -0.1f32, "bytes": [98]},
                                     {"token": "\u{FFFD}", "logprob": -2.5, "bytes": [226]}]}],
                   "refusal": null})
            .to_string()
        );
    }

    #[test]
    fn completion_tokens_come_in_lists() {
        let text = chat_text();
        let json = |top| {
            serde_json::to_value(CompletionLogprobs::new(&tokens(), &text.tokenizer, top))
                .expect("serializes")
        };
        assert_eq!(
            json(2),
            json!({"tokens": ["a", "bytes:\\xe2"], "token_logprobs": [null, -9999.0],
                   "top_logprobs": [null, {"b": -0.1f32, "bytes:\\xe2": -9999.0}],
                   "text_offset": [0, 1]})
        );
        assert_eq!(json(0)["top_logprobs"], json!(null));
    }
}
