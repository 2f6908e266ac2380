//! Text to token ids, and what each id stands for.

use std::collections::HashSet;

use crate::spelling::Spelling;

pub use crate::spelling::Leading;

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// What the file holds makes no sense.
    #[error("tokenizer.json cannot be used: {0}")]
    Invalid(String),
    /// A text cannot be cut into it.
    #[error("the text could not be cut into tokens: {0}")]
    Encode(String),
}

/// A model's vocabulary and how text is cut into it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    spelling: Spelling,
    special: HashSet<u32>,
    vocab_size: u32,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let invalid = TokenizerError::Invalid;
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
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.inner
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    /// Like [`encode`](Self::encode) with the tokenizer's frame; also tells which tokens are it.
    pub fn encode_framed(&self, text: &str) -> Result<Vec<(u32, bool)>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|e| TokenizerError::Encode(e.to_string()))?;
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

    /// What decoding hides at the start of a text.
    pub fn leading(&self) -> Leading {
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
