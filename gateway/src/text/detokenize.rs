//! Token ids to text, one token at a time.

use realm_shared::tokenizer::{Leading, Tokenizer};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::testing::{byte_level_json, metaspace_json, sentencepiece_json};

    fn tokenizer(json: serde_json::Value) -> Tokenizer {
        Tokenizer::from_bytes(json.to_string().as_bytes()).expect("a valid tokenizer")
    }

    /// All of it at once, by the library that vocabularies are made with.
    fn whole(json: &serde_json::Value, ids: &[u32]) -> String {
        let inner = tokenizers::Tokenizer::from_bytes(json.to_string().as_bytes());
        let inner = inner.expect("a valid tokenizer");
        inner.decode(ids, true).expect("decodes")
    }

    fn pieces(t: &Tokenizer, mut d: Detokenizer, ids: &[u32]) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for &id in ids {
            out.push(String::new());
            d.push(t, id, out.last_mut().expect("just pushed"));
        }
        out.push(String::new());
        d.finish(out.last_mut().expect("just pushed"));
        out
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let t = tokenizer(byte_level_json());
        let ids = t.encode("a€", false).expect("encodes");
        let out = pieces(&t, Detokenizer::at_start(&t), &ids);
        assert_eq!(out, ["a", "", "", "€", ""]);
        let out = pieces(&t, Detokenizer::at_start(&t), &ids[..3]);
        assert_eq!(out, ["a", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn a_leading_space_is_hidden_only_at_the_start_of_a_text() {
        let t = tokenizer(sentencepiece_json());
        let ids = t.encode("he", false).expect("encodes");
        let bos = t.id("<s>").expect("is there");
        let with_bos: Vec<u32> = [bos].into_iter().chain(ids).collect();
        let start = pieces(&t, Detokenizer::at_start(&t), &with_bos).concat();
        assert_eq!(start, "he");
        let within = pieces(&t, Detokenizer::within_text(), &with_bos).concat();
        assert_eq!(within, " he");
    }

    proptest! {
        /// Any ids at all, byte level: equal to decoding everything at once.
        #[test]
        fn byte_level_deltas_make_the_whole(ids in prop::collection::vec(0u32..280, 0..60)) {
            let t = tokenizer(byte_level_json());
            let whole = whole(&byte_level_json(), &ids);
            prop_assert_eq!(pieces(&t, Detokenizer::at_start(&t), &ids).concat(), whole);
        }

        /// Any text, sentencepiece with byte fallback and the older metaspace kind.
        #[test]
        fn sentencepiece_deltas_make_the_whole(text in "[ a-eé世🙂\n]{0,40}|\\PC{0,30}") {
            for json in [sentencepiece_json(), metaspace_json()] {
                let t = tokenizer(json.clone());
                let ids = t.encode(&text, true).expect("encodes");
                let whole = whole(&json, &ids);
                prop_assert_eq!(pieces(&t, Detokenizer::at_start(&t), &ids).concat(), whole);
            }
        }

        /// Any ids, sentencepiece: the bytes of all tokens read as UTF-8, less one leading space.
        #[test]
        fn arbitrary_byte_tokens_are_read_as_utf8(ids in prop::collection::vec(0u32..300, 0..60)) {
            let t = tokenizer(sentencepiece_json());
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|&&id| !t.is_special(id))
                .flat_map(|&id| t.token_bytes(id))
                .collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let whole = text.strip_prefix(' ').unwrap_or(&text);
            prop_assert_eq!(pieces(&t, Detokenizer::at_start(&t), &ids).concat(), whole);
        }
    }
}
