use serde_json::{Value, json};

use super::*;
use crate::api::testing::{events, logprobs, token};
use crate::batching::sequence::{Event, FinishReason};
use crate::text::testing::chat_text;

const LIMITS: ModelLimits = ModelLimits {
    block_size: 16,
    block_count: 1024,
    vocab_size: 280,
    max_context: 64,
};
/// The token "hello".
const HELLO: u32 = 259;

fn request(body: Value) -> Result<Request, ApiError> {
    let mut body = body;
    body["model"] = json!("m");
    Request::parse(body.to_string().as_bytes())
}

fn start(body: Value) -> (Vec<Sequence>, Run<CompletionFormat>) {
    let request = request(body).expect("valid");
    request.check(LIMITS).expect("agrees");
    let text = Arc::new(chat_text());
    let offsets = request.echo && request.params.top_logprobs.is_some();
    let prompts = prompts::encode(&text, request.prompts, request.echo, offsets);
    let head = Head {
        id: "cmpl-1".into(),
        created: 7,
        model: "m".into(),
        service_tier: None,
    };
    prepare(
        head,
        &request.params,
        text,
        prompts.expect("encodes"),
        LIMITS,
    )
    .expect("fits")
}

fn whole(body: Value, script: Vec<(usize, Event)>) -> Value {
    let (sequences, mut run) = start(body);
    let mut deltas = vec![Delta::default(); sequences.len()];
    for (index, event) in script {
        let (delta, _) = run.push(index, event).expect("no failure");
        deltas[index].extend(delta);
    }
    serde_json::from_slice(&run.whole(deltas).expect("all over")).expect("is JSON")
}

fn end(index: usize) -> (usize, Event) {
    (index, Event::Finished(FinishReason::Length))
}

#[test]
fn a_whole_completion() {
    assert_eq!(
        whole(json!({"prompt": "hello"}), vec![(0, token(HELLO)), end(0)]),
        json!({"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m",
               "system_fingerprint": Head::FINGERPRINT,
               "choices": [{"index": 0, "text": "hello", "logprobs": null, "finish_reason": "length"}],
               "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3,
                         "prompt_tokens_details": {"cached_tokens": 0}}})
    );
}

#[test]
fn a_stream_of_completions() {
    let (_, mut run) =
        start(json!({"prompt": "a", "stream": true, "stream_options": {"include_usage": true}}));
    let mut got = events(&run.stream(0, token(HELLO)).expect("no failure").0);
    assert!(run.stream(0, token(0xE2)).expect("no failure").0.is_empty());
    let (index, event) = end(0);
    got.extend(events(&run.stream(index, event).expect("no failure").0));
    got.extend(events(&run.stream_end().expect("all over")));
    let chunk = |choices: Value, usage: Value| {
        json!({"id": "cmpl-1", "object": "text_completion", "created": 7, "model": "m",
               "system_fingerprint": Head::FINGERPRINT, "choices": choices, "usage": usage})
    };
    let choice = |text, finish: Value| json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}]);
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4,
                       "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(
        got,
        [
            chunk(choice("hello", json!(null)), json!(null)),
            chunk(choice("\u{FFFD}", json!("length")), json!(null)),
            chunk(json!([]), usage),
            json!("[DONE]"),
        ]
    );
}

/// What stands in a chunk is of its choice and that one's prompt.
#[test]
fn every_chunk_may_have_the_usage_so_far() {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let (_, mut run) = start(json!({
        "prompt": [[97], [98, 99, 97]], "n": 2, "stream": true, "stream_options": options
    }));
    let mut got = Vec::new();
    let script = [
        (2, Event::Started { cached: 2 }),
        (2, token(HELLO)),
        (3, token(HELLO)),
    ];
    let ends = [end(3), end(0), end(2), end(1)];
    for (index, event) in script.into_iter().chain([(2, token(98))]).chain(ends) {
        got.extend(events(&run.stream(index, event).expect("no failure").0));
    }
    got.extend(events(&run.stream_end().expect("all over")));
    let told = got.iter().filter_map(|chunk| {
        let usage = chunk.get("usage")?;
        let count = |key: &str| usage[key].as_u64().expect("a count");
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(
            count("total_tokens"),
            count("prompt_tokens") + count("completion_tokens")
        );
        Some((
            count("prompt_tokens"),
            count("completion_tokens"),
            cached.as_u64().expect("a count"),
        ))
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (3, 1, 2),
            (3, 1, 2),
            (3, 2, 2),
            (3, 1, 2),
            (1, 0, 0),
            (3, 2, 2),
            (1, 0, 0),
            (4, 3, 2),
        ]
    );
}

#[test]
fn prompts_and_choices_multiply_in_order() {
    let (sequences, _) = start(json!({"prompt": [[97], [98]], "n": 2, "max_tokens": 3}));
    let prompts: Vec<u32> = sequences.iter().map(|s| s.prompt[0]).collect();
    assert_eq!(prompts, [97, 97, 98, 98]);
    assert!(sequences.iter().all(|s| s.max_tokens == 3));
    let (one, _) = start(json!({"prompt": [97], "seed": 3}));
    let (two, _) = start(json!({"prompt": [97], "seed": 3, "n": 2}));
    assert_eq!(one[0].sampling.key, two[0].sampling.key);
}

#[test]
fn an_echo_with_logprobs_scores_prompt_and_answer() {
    let body = json!({"prompt": "ab", "echo": true, "logprobs": 1, "max_tokens": 1});
    let (sequences, _) = start(body.clone());
    assert!(sequences[0].prompt_logprobs);
    let scores = Event::PromptLogprobs {
        start: 0,
        entries: vec![
            logprobs(-2.0, &[(98, -0.5)]),
            logprobs(-3.0, &[(97, -0.25)]),
        ],
    };
    let answer = whole(body, vec![(0, scores), (0, token(99)), end(0)]);
    assert_eq!(
        answer["choices"][0],
        json!({"index": 0, "text": "abc", "finish_reason": "length", "logprobs": {
            "tokens": ["<|bos|>", "a", "b", "c"],
            "token_logprobs": [null, -2.0, -3.0, -0.5],
            "top_logprobs": [null, {"a": -2.0, "b": -0.5}, {"a": -0.25, "b": -3.0}, {"c": -0.5}],
            "text_offset": [0, 0, 1, 2]}})
    );
}

#[test]
fn an_echo_alone_needs_no_scores() {
    let body = json!({"prompt": ["x", ""], "echo": true, "max_tokens": 0});
    let (sequences, _) = start(body.clone());
    assert!(
        sequences
            .iter()
            .all(|s| !s.prompt_logprobs && s.max_tokens == 0)
    );
    let answer = whole(body, vec![end(1), end(0)]);
    assert_eq!(answer["choices"][0]["text"], "x");
    assert_eq!(answer["choices"][1]["text"], "");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[test]
fn faults_are_named() {
    for (body, expected) in [
        (json!({}), "Missing required parameter: 'prompt'."),
        (
            json!({"prompt": "x", "suffix": "y"}),
            "Unsupported value for 'suffix': this server accepts only null.",
        ),
        (
            json!({"prompt": "x", "messages": []}),
            "Unrecognized request argument supplied: messages",
        ),
        (
            json!({"prompt": "x", "logprobs": true}),
            "Invalid type for 'logprobs': expected an integer, but got a boolean.",
        ),
        (
            json!({"prompt": "x", "logprobs": 21}),
            "Invalid 'logprobs': expected an integer from 0 to 20, but got 21.",
        ),
        (
            json!({"prompt": "x", "echo": 1}),
            "Invalid type for 'echo': expected a boolean, but got an integer.",
        ),
        (
            json!({"prompt": "x", "max_tokens": -1}),
            "Invalid 'max_tokens': expected an integer from 0 to 2147483647, but got -1.",
        ),
    ] {
        assert_eq!(request(body).unwrap_err().to_string(), expected);
    }
    for (body, expected) in [
        (
            json!({"prompt": "x", "best_of": 2}),
            "Unsupported value for 'best_of': this server accepts only the value of 'n'.",
        ),
        (
            json!({"prompt": ["x", "y"], "n": 65}),
            "Invalid 'n': expected at most 128 choices over all prompts, but got 130 (2 prompts with 65 choices each).",
        ),
        (
            json!({"prompt": [280]}),
            "Invalid 'prompt': expected token ids below 280, but got 280.",
        ),
    ] {
        let request = request(body).expect("each valid by itself");
        assert_eq!(request.check(LIMITS).unwrap_err().to_string(), expected);
    }
    assert!(
        request(json!({"prompt": "x", "best_of": 2, "n": 2}))
            .expect("valid")
            .check(LIMITS)
            .is_ok()
    );
}
