//! Text to token ids, and what each id stands for.

use std::collections::HashSet;

use super::TextError;
use super::spelling::{Leading, Spelling};

const FILE: &str = "tokenizer.json";

/// A model's vocabulary and how text is cut into it.
pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    spelling: Spelling,
    special: HashSet<u32>,
    vocab_size: u32,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TextError> {
        let invalid = |message: String| TextError::Invalid {
            file: FILE,
            message,
        };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(json).map_err(|e| invalid(e.to_string()))?;
        // Both are for training batches: a prompt must be neither cut short nor filled up.
        inner
            .with_truncation(None)
            .map_err(|e| invalid(e.to_string()))?;
        inner.with_padding(None);

        let decoder =
            serde_json::to_value(inner.get_decoder()).map_err(|e| invalid(e.to_string()))?;
        let spelling = Spelling::of(&decoder).map_err(|found| {
            invalid(format!(
                "it has {found}; byte-level and sentencepiece tokenizers are supported"
            ))
        })?;
        let special = inner
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id)
            .collect();
        let vocab_size = inner
            .get_vocab(true)
            .values()
            .max()
            .map_or(0, |&id| id.saturating_add(1));
        if vocab_size == 0 {
            return Err(invalid("its vocabulary is empty".into()));
        }
        Ok(Tokenizer {
            inner,
            spelling,
            special,
            vocab_size,
        })
    }

    /// Cuts `text` into tokens. The text of special tokens is recognised inside it either way;
    /// `add_special` says whether the tokenizer's own frame (such as a beginning-of-sequence
    /// token) goes around it, which a rendered chat template already contains.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.inner
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| TextError::Encode(e.to_string()))
    }

    /// Like [`encode`](Self::encode) with the tokenizer's frame; also tells which tokens are it.
    pub fn encode_framed(&self, text: &str) -> Result<Vec<(u32, bool)>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| TextError::Encode(e.to_string()))?;
        let framed = encoding.get_special_tokens_mask().iter().map(|&m| m == 1);
        Ok(encoding.get_ids().iter().copied().zip(framed).collect())
    }

    /// The bytes that a token contributes to a text; empty for an id outside the vocabulary.
    /// They need not be whole UTF-8 characters.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.inner.id_to_token(id) {
            Some(token) if self.is_special(id) => token.into_bytes(),
            Some(token) => self.spelling.bytes(&token),
            None => Vec::new(),
        }
    }

    /// Whether the token controls the model instead of standing for text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The id of a token given by its string, such as `</s>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    pub(super) fn leading(&self) -> Leading {
        self.spelling.leading
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("spelling", &self.spelling)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{byte_level_json, sentencepiece_json};

    fn tokenizer(json: serde_json::Value) -> Tokenizer {
        Tokenizer::from_bytes(json.to_string().as_bytes()).expect("a valid tokenizer")
    }

    #[test]
    fn special_tokens_frame_a_prompt_but_not_a_rendered_template() {
        let t = tokenizer(byte_level_json());
        let bos = t.id("<|bos|>").expect("is in the vocabulary");
        let framed = t.encode("hi", true).expect("encodes");
        let plain = t.encode("hi", false).expect("encodes");
        assert_eq!(framed[0], bos);
        assert_eq!(framed[1..], plain);
        assert_eq!(t.encode("<|bos|>hi", false).expect("encodes"), framed);
    }

    #[test]
    fn the_bytes_of_tokens_spell_the_text() {
        for json in [byte_level_json(), sentencepiece_json()] {
            let t = tokenizer(json);
            let ids = t.encode("héllo 世界", false).expect("encodes");
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| t.token_bytes(id)).collect();
            let text = String::from_utf8(bytes).expect("whole characters in all");
            assert_eq!(text.trim_start(), "héllo 世界");
        }
    }

    #[test]
    fn an_unknown_id_has_no_bytes_and_a_special_one_its_name() {
        let t = tokenizer(sentencepiece_json());
        assert_eq!(t.token_bytes(t.vocab_size()), b"");
        assert_eq!(t.token_bytes(t.id("</s>").expect("is there")), b"</s>");
    }

    #[test]
    fn the_frame_is_told_from_special_tokens_in_the_text() {
        let t = tokenizer(byte_level_json());
        let bos = t.id("<|bos|>").expect("is in the vocabulary");
        let ids = t.encode_framed("a<|bos|>").expect("encodes");
        assert_eq!(ids, [(bos, true), (u32::from(b'a'), false), (bos, false)]);
    }

    #[test]
    fn a_broken_file_is_named() {
        let err = Tokenizer::from_bytes(b"{}").unwrap_err().to_string();
        assert!(err.starts_with("tokenizer.json"), "{err}");
    }
}
