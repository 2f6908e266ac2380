//! Small tokenizers for tests, of the kinds that real models use.

use serde_json::{Map, Value, json};

/// Spellings of the 256 bytes in the byte-level alphabet.
fn byte_alphabet() -> Vec<char> {
    let plain = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    (0..256u32)
        .filter_map(|b| {
            let n = if plain(b) {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(n)
        })
        .collect()
}

fn vocab_of(tokens: impl IntoIterator<Item = String>) -> Map<String, Value> {
    tokens.into_iter().zip((0u32..).map(Value::from)).collect()
}

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false,
           "rstrip": false, "normalized": false, "special": true})
}

fn bpe(vocab: Map<String, Value>, merges: &[(&str, &str)], fallback: bool) -> Value {
    json!({"type": "BPE", "dropout": null, "unk_token": if fallback { json!("<unk>") } else { Value::Null },
           "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
           "byte_fallback": fallback, "ignore_merges": false, "vocab": vocab,
           "merges": merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>()})
}

fn tokenizer_json(
    model: Value,
    added_tokens: Value,
    [normalizer, pre, post, decoder]: [Value; 4],
) -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens,
           "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post,
           "decoder": decoder, "model": model})
}

/// As Llama 3 and Qwen have it: 256 bytes (ids in byte order), seven merges, and `<|bos|>`,
/// `<|end|>`, `<|user|>`, `<|assistant|>` as ids 263 to 266. `<|bos|>` begins a prompt.
pub(crate) fn byte_level_json() -> Value {
    let merges = [
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ġ", "w"),
        ("Ã", "©"),
        ("ð", "Ł"),
    ];
    let alphabet = byte_alphabet().into_iter().map(String::from);
    let vocab = vocab_of(alphabet.chain(merges.iter().map(|(a, b)| format!("{a}{b}"))));
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                       "use_regex": true});
    let post = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [263], "tokens": ["<|bos|>"]}}});
    let specials = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"];
    let added_tokens: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(i, content)| added(263 + i, content))
        .collect();
    tokenizer_json(
        bpe(vocab, &merges, false),
        Value::from(added_tokens),
        [Value::Null, level.clone(), post, level],
    )
}

/// Pieces of the sentencepiece tokenizers: 3 special tokens, 256 byte tokens, a few letters.
fn sentencepiece_model() -> (Value, Value) {
    let merges = [("h", "e"), ("▁", "he"), ("l", "l")];
    let letters = "▁abcdehlo\u{e9}".chars().map(String::from);
    let vocab = vocab_of(
        ["<unk>", "<s>", "</s>"]
            .into_iter()
            .map(String::from)
            .chain((0..256).map(|b| format!("<0x{b:02X}>")))
            .chain(letters)
            .chain(merges.iter().map(|(a, b)| format!("{a}{b}"))),
    );
    let added_tokens = json!([added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]);
    (bpe(vocab, &merges, true), added_tokens)
}

/// As Llama 2 and Mistral have it: `▁` for spaces, bytes as a fallback.
pub(crate) fn sentencepiece_json() -> Value {
    let (model, added_tokens) = sentencepiece_model();
    let normalizer = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    tokenizer_json(
        model,
        added_tokens,
        [normalizer, Value::Null, Value::Null, decoder],
    )
}

/// The older kind, with a metaspace pre-tokenizer and decoder.
pub(crate) fn metaspace_json() -> Value {
    let (model, added_tokens) = sentencepiece_model();
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
                           "split": false});
    let decoder = json!({"type": "Sequence", "decoders": [metaspace, {"type": "ByteFallback"}]});
    tokenizer_json(
        model,
        added_tokens,
        [Value::Null, metaspace, Value::Null, decoder],
    )
}

/// The files of a chat model around [`byte_level_json`].
pub(crate) fn chat_text() -> super::Text {
    let template = "{% if messages[0].role == 'assistant' %}\
                    {{ raise_exception('The first message must not be an answer') }}{% endif %}\
                    {{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}<|end|>\
                    {% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}\
                    {% if enable_thinking is false %}<|end|>{% endif %}";
    let config = json!({"chat_template": template, "bos_token": "<|bos|>",
                        "eos_token": {"content": "<|end|>"}});
    super::Text::from_parts(&super::TextFiles {
        tokenizer_json: byte_level_json().to_string().as_bytes(),
        config: br#"{"vocab_size": 280, "max_position_embeddings": 64, "eos_token_id": 264}"#,
        tokenizer_config: Some(config.to_string().as_bytes()),
        generation_config: None,
        chat_template: None,
    })
    .expect("the files agree")
}
