//! How the strings of a vocabulary spell bytes, read off the tokenizer's decoder.
//!
//! Two families cover decoder-only language models: *byte-level* BPE, where every character of a
//! token stands for one byte, and *sentencepiece*, where `▁` stands for a space and `<0x41>` for
//! a byte outside the vocabulary. Decoding is then the same for both: concatenate the bytes of
//! all tokens, take off what the start of a text hides, and read the result as UTF-8. That can
//! be done one token at a time, which a general decoder cannot.

use serde_json::Value;

/// What the decoder hides at the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leading {
    /// Up to this many spaces.
    Spaces(usize),
    /// All spaces of the first token.
    FirstToken,
}

/// The rules by which a token's string becomes bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spelling {
    byte_level: bool,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    pub(crate) leading: Leading,
}

impl Spelling {
    /// Reads the `decoder` of a `tokenizer.json`. The error says what was found instead of
    /// something that can be followed.
    pub(crate) fn of(decoder: &Value) -> Result<Self, String> {
        let mut spelling = Spelling {
            byte_level: false,
            byte_fallback: false,
            replace: Vec::new(),
            leading: Leading::Spaces(0),
        };
        let mut fused = false;
        let steps = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default(),
            _ => std::slice::from_ref(decoder),
        };
        for step in steps {
            let kind = step["type"].as_str().unwrap_or("none");
            match kind {
                "ByteLevel" => spelling.byte_level = true,
                "ByteFallback" => spelling.byte_fallback = true,
                "Fuse" => fused = true,
                "Replace" => match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
                    (Some(from), Some(to)) if !from.is_empty() => {
                        spelling.replace.push((from.into(), to.into()));
                    }
                    _ => return Err("a `Replace` decoder by regular expression".into()),
                },
                "Metaspace" => {
                    let mark = step["replacement"].as_str().unwrap_or("▁");
                    spelling.replace.push((mark.into(), " ".into()));
                    if step["prepend_scheme"].as_str() != Some("never") {
                        spelling.leading = Leading::FirstToken;
                    }
                }
                // After `Fuse` the whole text is one piece, so only its start is stripped.
                "Strip" if fused && step["content"] == " " && step["stop"] == 0 => {
                    let spaces = step["start"].as_u64().unwrap_or(0);
                    spelling.leading = Leading::Spaces(usize::try_from(spaces).unwrap_or(0));
                }
                other => return Err(format!("a decoder of type `{other}`")),
            }
        }
        if spelling.byte_level && (spelling.byte_fallback || !spelling.replace.is_empty()) {
            return Err("a decoder that mixes `ByteLevel` with others".into());
        }
        Ok(spelling)
    }

    /// The bytes that a token's string stands for.
    pub(crate) fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            // Added tokens are spelled plainly and may hold characters outside the alphabet.
            return token
                .chars()
                .map(byte_of)
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        let mut text = token.to_owned();
        for (from, to) in &self.replace {
            text = text.replace(from, to);
        }
        text.into_bytes()
    }
}

/// The byte that a character of the byte-level alphabet stands for. Printable Latin-1 stands for
/// itself; the other 68 bytes follow in order from U+0100.
fn byte_of(c: char) -> Option<u8> {
    let byte = match u32::from(c) {
        n @ (33..=126 | 161..=172 | 174..=255) => n,
        n @ 256..=288 => n - 256,
        n @ 289..=322 => n - 289 + 127,
        323 => 173,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2)
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_byte_level_alphabet_has_every_byte_once() {
        let mut seen = [0; 256];
        for c in (0..400).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(c) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn fallback_bytes_are_two_hex_digits() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0xFFF>"), None);
        assert_eq!(fallback_byte("0x0A"), None);
    }

    #[test]
    fn decoders_that_cannot_be_streamed_are_named() {
        let err = Spelling::of(&json!({"type": "WordPiece", "prefix": "##"})).unwrap_err();
        assert_eq!(err, "a decoder of type `WordPiece`");
        assert_eq!(
            Spelling::of(&Value::Null).unwrap_err(),
            "a decoder of type `none`"
        );
    }
}
