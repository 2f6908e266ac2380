//! Token ids to text, one token at a time.

use crate::tokenizer::{Leading, Tokenizer};

/// Turns a sequence of tokens into text that is fit to send at every point: no character is ever
/// split, and the pieces together are the text of the whole sequence. Special tokens are silent.
///
/// Bytes that are not UTF-8 become U+FFFD, one per maximal ill-formed part as
/// [`String::from_utf8_lossy`] does it. (The byte-fallback decoder of the `tokenizers` crate
/// instead gives up a whole run of byte tokens when one of them is wrong, which nobody can know
/// before the run ends.)
#[derive(Debug, Clone)]
pub struct Detokenizer {
    /// Start of a character whose end has not come yet; at most three bytes.
    pending: Vec<u8>,
    /// What the start of the text still hides; `None` once it is behind us.
    leading: Option<Leading>,
}

impl Detokenizer {
    /// For tokens that begin a text: the space that sentencepiece puts there is hidden.
    pub fn at_start(tokenizer: &Tokenizer) -> Self {
        Detokenizer {
            pending: Vec::new(),
            leading: Some(tokenizer.leading()),
        }
    }

    /// For tokens that go on from other text: a leading space belongs between the two.
    pub fn within_text() -> Self {
        Detokenizer {
            pending: Vec::new(),
            leading: None,
        }
    }

    /// Appends to `text` what became certain with this token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        if !tokenizer.is_special(id) {
            self.push_visible(tokenizer, id, text);
        }
    }

    /// Like [`push`](Self::push), but a special token shows its name.
    pub fn push_visible(&mut self, tokenizer: &Tokenizer, id: u32, text: &mut String) {
        let mut bytes = tokenizer.token_bytes(id);
        if bytes.is_empty() {
            return; // not in the vocabulary, so it is not the first token of anything
        }
        self.hide_leading(&mut bytes);
        self.pending.extend_from_slice(&bytes);

        let mut rest = Vec::new();
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            // Only the last chunk can be a character that is merely incomplete.
            if chunks.peek().is_none() && is_incomplete(invalid) {
                rest = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending = rest;
    }

    /// Appends what is left when no token follows: an unfinished character as U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    fn hide_leading(&mut self, bytes: &mut Vec<u8>) {
        let spaces = bytes.iter().take_while(|&&b| b == b' ').count();
        match self.leading {
            None => {}
            Some(Leading::FirstToken) => {
                self.leading = None;
                bytes.retain(|&b| b != b' ');
            }
            Some(Leading::Spaces(most)) => {
                let hidden = spaces.min(most);
                self.leading = (hidden == bytes.len() && hidden < most)
                    .then(|| Leading::Spaces(most - hidden));
                bytes.drain(..hidden);
            }
        }
    }
}

/// Whether more bytes could complete these to a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}
