//! Token ids to text, on the vocabularies that this crate's tests are made with.

use proptest::prelude::*;
use realm_shared::detokenize::Detokenizer;
use realm_shared::tokenizer::Tokenizer;

use super::testing::{byte_level_json, metaspace_json, sentencepiece_json};

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
