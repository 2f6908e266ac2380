//! The vocabulary, on those that this crate's tests are made with.

use realm_shared::tokenizer::Tokenizer;

use super::testing::{byte_level_json, sentencepiece_json};

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
