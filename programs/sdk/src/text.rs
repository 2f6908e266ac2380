//! The model's vocabulary.

use crate::Token;
use crate::bindings::realm::program::text;

/// Cuts a text into tokens, without the frame (such as a beginning-of-sequence token) that the
/// model's prompts have. Traps if the text is longer than 64 KiB.
#[must_use]
pub fn encode(text: &str) -> Vec<Token> {
    text::encode(text)
}

/// What tokens spell. They may end inside a character: see [`Decoder`]. A special token spells its
/// name, and an id outside of the vocabulary nothing. Traps for more than 65,536 tokens, or
/// if they spell more than 1 MiB.
#[must_use]
pub fn decode(tokens: &[Token]) -> Vec<u8> {
    text::decode(tokens)
}

/// Tokens that end an answer. There may be none.
#[must_use]
pub fn end_tokens() -> Vec<Token> {
    text::end_tokens()
}

/// Decodes a text that arrives token by token.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    /// The beginning of a character whose other bytes have not come yet.
    begun: Vec<u8>,
}

impl Decoder {
    /// The characters that these tokens complete. What is no UTF-8 becomes U+FFFD.
    pub fn push(&mut self, tokens: &[Token]) -> String {
        self.push_bytes(&decode(tokens))
    }

    /// [`push`](Self::push) for what tokens spell.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let mut characters = String::new();
        let mut rest = self.begun.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, other) = rest.split_at(error.valid_up_to());
            characters.push_str(&String::from_utf8_lossy(valid));
            match error.error_len() {
                Some(length) => {
                    characters.push(char::REPLACEMENT_CHARACTER);
                    rest = &other[length..];
                }
                None => {
                    self.begun = other.to_vec();
                    return characters;
                }
            }
        }
        characters.push_str(&String::from_utf8_lossy(rest));
        self.begun.clear();
        characters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_out_when_they_are_complete() {
        let text = "aé€𝄞z";
        for size in 1..=4 {
            let mut decoder = Decoder::default();
            let mut out = String::new();
            for bytes in text.as_bytes().chunks(size) {
                out.push_str(&decoder.push_bytes(bytes));
            }
            assert_eq!(out, text, "in portions of {size}");
        }
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push_bytes(b"a\xe2\x82"), "a");
        assert_eq!(decoder.push_bytes(b""), "");
        assert_eq!(decoder.push_bytes(b"\xacb"), "€b");
    }

    #[test]
    fn what_is_no_character_is_replaced_and_passed_over() {
        let mut decoder = Decoder::default();
        assert_eq!(
            decoder.push_bytes(b"\xffa\xe2\x82b\xc3"),
            "\u{fffd}a\u{fffd}b"
        );
        assert_eq!(decoder.push_bytes(b"c"), "\u{fffd}c");
    }
}
