use realm_shared::run::Part;
use serde_json::{Value, json};

use super::*;
use crate::api::testing::{events, logprobs, token};
use crate::batching::sequence::{Event, FailReason, FinishReason};
use crate::text::testing::chat_text;

const LIMITS: ModelLimits = ModelLimits {
    block_size: 16,
    block_count: 1024,
    vocab_size: 280,
    max_context: 64,
};
/// The token "hello".
const HELLO: u32 = 259;
const END: u32 = 264;

fn request(extra: Value) -> Result<Request, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    Request::parse(body.to_string().as_bytes())
}

fn no_tools() -> Tools {
    Tools::take(&mut Fields::parse(b"{}").expect("an object")).expect("none")
}

fn start(extra: Value) -> (Vec<Sequence>, Run<ChatFormat>) {
    let request = request(extra).expect("valid");
    request.check(LIMITS).expect("agrees");
    let text = Arc::new(chat_text());
    let prompt =
        encode(&text, &request.messages, &request.tools, &request.variables).expect("encodes");
    let has_tools = !request.tools.sent.is_empty();
    let head = Head {
        id: "chatcmpl-1".into(),
        created: 7,
        model: "m".into(),
        service_tier: None,
    };
    let prepared = prepare(
        head,
        &request.params,
        has_tools,
        text,
        prompt,
        LIMITS,
        u32::MAX,
    );
    prepared.expect("fits")
}

fn whole(extra: Value, script: Vec<(usize, Event)>) -> Value {
    let (sequences, mut run) = start(extra);
    let mut deltas = vec![Delta::default(); sequences.len()];
    for (index, event) in script {
        let (delta, _) = run.push(index, event).expect("no failure");
        deltas[index].extend(delta);
    }
    serde_json::from_slice(&run.whole(deltas).expect("all over")).expect("is JSON")
}

fn chunk(choices: Value) -> Value {
    json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
           "system_fingerprint": Head::FINGERPRINT, "choices": choices})
}

fn choice(index: usize, delta: Value, finish: Value) -> Value {
    json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish})
}

fn usage(prompt: u64, completion: u64, cached: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
           "prompt_tokens_details": {"cached_tokens": cached}})
}

/// "hello", a third of a character, its rest, the end.
fn script() -> Vec<(usize, Event)> {
    let mut events = vec![
        (0, token(HELLO)),
        (0, token(0xE2)),
        (0, token(0x82)),
        (0, token(0xAC)),
    ];
    events.extend([(0, token(END)), (0, Event::Finished(FinishReason::Stop))]);
    events
}

#[test]
fn the_prompt_is_the_rendered_template() {
    let (sequences, _) = start(json!({"n": 2, "seed": 1}));
    let text = chat_text();
    let expected = text
        .tokenizer
        .encode("<|bos|><|user|>hello<|end|><|assistant|>", false);
    assert_eq!(*sequences[0].prompt, *expected.expect("encodes"));
    assert_eq!(
        sequences[0].max_tokens as usize,
        64 - sequences[0].prompt.len()
    );
    assert_eq!(sequences.len(), 2);
    assert_ne!(sequences[0].sampling.key, sequences[1].sampling.key);
}

#[test]
fn a_whole_answer() {
    assert_eq!(
        whole(json!({}), script()),
        json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
               "system_fingerprint": Head::FINGERPRINT,
               "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello€", "refusal": null},
                            "logprobs": null, "finish_reason": "stop"}],
               "usage": usage(5, 5, 0)})
    );
}

#[test]
fn a_stream_is_role_content_end_usage_done() {
    let (_, mut run) = start(json!({"stream": true}));
    let mut got = Vec::new();
    for (index, event) in script() {
        got.extend(events(&run.stream(index, event).expect("no failure").0));
    }
    got.extend(events(&run.stream_end().expect("all over")));
    let first = chunk(json!([choice(
        0,
        json!({"role": "assistant", "content": ""}),
        json!(null)
    )]));
    let last = chunk(json!([choice(0, json!({}), json!("stop"))]));
    let content = |text| chunk(json!([choice(0, json!({"content": text}), json!(null))]));
    assert_eq!(
        got,
        [first, content("hello"), content("€"), last, json!("[DONE]")]
    );
}

#[test]
fn usage_comes_in_a_chunk_of_its_own() {
    let (_, mut run) = start(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut got = Vec::new();
    for (index, event) in script() {
        got.extend(events(&run.stream(index, event).expect("no failure").0));
    }
    assert!(got.iter().all(|c| c.get("usage") == Some(&Value::Null)));
    let end = events(&run.stream_end().expect("all over"));
    let mut last = chunk(json!([]));
    last["usage"] = usage(5, 5, 0);
    assert_eq!(end, [last, json!("[DONE]")]);
}

/// As vLLM counts: what stands in a chunk is of its choice, and what stands in the last one of all.
#[test]
fn every_chunk_may_have_the_usage_so_far() {
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let (_, mut run) = start(json!({"n": 2, "stream": true, "stream_options": options}));
    let mut got = Vec::new();
    for (index, event) in [
        (0, Event::Started { cached: 4 }),
        (1, Event::Started { cached: 0 }),
        (0, token(HELLO)),
        (0, token(0xC3)),
        (1, token(HELLO)),
        (0, token(0xA9)),
        (0, Event::Finished(FinishReason::Length)),
        (1, Event::Finished(FinishReason::Length)),
    ] {
        got.extend(events(&run.stream(index, event).expect("no failure").0));
    }
    got.extend(events(&run.stream_end().expect("all over")));
    let told: Vec<_> = got.iter().filter_map(|chunk| chunk.get("usage")).collect();
    // The first chunk of a choice says who speaks, the second what.
    assert_eq!(
        told,
        [
            &usage(5, 1, 4),
            &usage(5, 1, 4),
            &usage(5, 1, 4),
            &usage(5, 1, 4),
            &usage(5, 3, 4),
            &usage(5, 3, 4),
            &usage(5, 1, 4),
            &usage(5, 4, 4),
        ]
    );
}

/// Clients that measure the time to the first token take the first chunk for it.
#[test]
fn who_speaks_is_said_with_what_is_said_first() {
    for (extra, script, first) in [
        (
            json!({}),
            vec![(0, token(HELLO))],
            json!({"content": "hello"}),
        ),
        (
            json!({}),
            vec![(0, token(END)), (0, Event::Finished(FinishReason::Stop))],
            json!({}),
        ),
        (
            with_tools(),
            script_with_calls("").drain(1..2).collect(),
            json!({"tool_calls": [{"index": 0, "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        ),
    ] {
        let mut extra = extra;
        extra["stream"] = json!(true);
        let (_, mut run) = start(extra);
        let mut pieces = Vec::new();
        let started = (0, Event::Started { cached: 0 });
        for (index, event) in std::iter::once(started).chain(script) {
            pieces.push(events(&run.stream(index, event).expect("no failure").0));
        }
        let last = pieces.pop().expect("some");
        assert!(pieces.iter().all(Vec::is_empty), "{pieces:?}");
        let mut deltas = last
            .iter()
            .map(|chunk| chunk["choices"][0]["delta"].clone());
        assert_eq!(deltas.next().expect("one")["role"], "assistant");
        let mut second = deltas.next().expect("two");
        if let Some(Value::Object(call)) = second.pointer_mut("/tool_calls/0") {
            call.shift_remove("id");
        }
        assert_eq!(second, first);
    }
}

#[test]
fn several_choices_share_a_prompt_and_keep_their_places() {
    let end = |i| (i, Event::Finished(FinishReason::Length));
    let script = vec![
        (1, token(97)),
        (0, token(98)),
        (1, token(99)),
        end(1),
        end(0),
    ];
    let answer = whole(json!({"n": 2}), script.clone());
    assert_eq!(answer["choices"][0]["message"]["content"], "b");
    assert_eq!(answer["choices"][1]["message"]["content"], "ac");
    assert_eq!(answer["choices"][1]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    assert_eq!(answer["usage"]["completion_tokens"], 3);

    let (_, mut run) = start(json!({"n": 2, "stream": true}));
    let mut got = Vec::new();
    for (index, event) in script {
        got.extend(events(&run.stream(index, event).expect("no failure").0));
    }
    let summary: Vec<_> = got
        .iter()
        .map(|c| {
            (
                c["choices"][0]["index"].as_u64(),
                c["choices"][0]["delta"]["content"].as_str(),
            )
        })
        .collect();
    let at = |i, text| (Some(i), text);
    assert_eq!(
        summary,
        [
            at(1, Some("")),
            at(1, Some("a")),
            at(0, Some("")),
            at(0, Some("b")),
            at(1, Some("c")),
            at(1, None),
            at(0, None)
        ]
    );
}

#[test]
fn a_stop_string_ends_a_choice_and_cancels_its_sequence() {
    let (_, mut run) = start(json!({"stop": "lo", "stream": true}));
    let (bytes, cancel) = run.stream(0, token(HELLO)).expect("no failure");
    assert!(cancel);
    let got = events(&bytes);
    assert_eq!(got[1]["choices"][0]["delta"], json!({"content": "hel"}));
    assert_eq!(got[2]["choices"][0]["finish_reason"], "stop");
    assert!(run.stream_end().is_ok());
}

#[test]
fn logprobs_go_with_their_text() {
    let (_, mut run) = start(json!({"logprobs": true, "top_logprobs": 1, "stream": true}));
    let half = Event::Token {
        token: 0xC3,
        logprobs: Some(logprobs(-1.0, &[(97, -0.25)])),
    };
    let (bytes, _) = run.stream(0, half).expect("no failure");
    assert_eq!(bytes, "", "no text yet");
    let (bytes, _) = run.stream(0, token(0xA9)).expect("no failure");
    let got = events(&bytes);
    assert_eq!(got[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(
        got[1]["choices"][0],
        json!({"index": 0, "delta": {"content": "é"}, "finish_reason": null, "logprobs": {"refusal": null, "content": [
            {"token": "\u{FFFD}", "logprob": -1.0, "bytes": [195], "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}]},
            {"token": "\u{FFFD}", "logprob": -0.5, "bytes": [169], "top_logprobs": [{"token": "\u{FFFD}", "logprob": -0.5, "bytes": [169]}]}]}})
    );
    let answer = whole(
        json!({"logprobs": true}),
        vec![(0, token(END)), (0, Event::Finished(FinishReason::Stop))],
    );
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({"content": [], "refusal": null})
    );
}

#[test]
fn a_failure_or_an_early_end_is_an_error() {
    let (_, mut run) = start(json!({}));
    let error = run
        .push(0, Event::Failed(FailReason::WorkerCrashed))
        .unwrap_err();
    let event = &events(&super::super::run::error_event(&error))[0];
    assert_eq!(event["error"]["code"], "worker_crashed");
    assert_eq!(event["error"]["type"], "server_error");
    assert!(run.stream_end().is_err());
    assert!(run.push(9, token(1)).is_err());
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let unsupported = |param, accepted| {
        format!("Unsupported value for '{param}': this server accepts only {accepted}.")
    };
    for (extra, expected) in [
        (
            json!({"functions": [{}]}),
            unsupported("functions", "null or an empty list"),
        ),
        (
            json!({"function_call": {"name": "f"}}),
            unsupported("function_call", "null, \"none\" or \"auto\""),
        ),
        (
            json!({"response_format": {"type": "structural_tag"}}),
            unsupported(
                "response_format.type",
                "\"text\", \"json_object\" and \"json_schema\"",
            ),
        ),
        (json!({"audio": {}}), unsupported("audio", "null")),
        (
            json!({"modalities": ["text", "audio"]}),
            unsupported("modalities", "null or [\"text\"]"),
        ),
        (json!({"prediction": {}}), unsupported("prediction", "null")),
        (
            json!({"store": true}),
            unsupported("store", "null or false"),
        ),
        (
            json!({"reasoning_effort": "high"}),
            unsupported("reasoning_effort", "null or \"none\""),
        ),
        (
            json!({"verbosity": "low"}),
            unsupported("verbosity", "null or \"medium\""),
        ),
        (
            json!({"web_search_options": {}}),
            unsupported("web_search_options", "null"),
        ),
        (
            json!({"prompt_cache_retention": "24h"}),
            unsupported("prompt_cache_retention", "null or \"in_memory\""),
        ),
        (
            json!({"prompt_cache_options": {}}),
            unsupported("prompt_cache_options", "null"),
        ),
        (
            json!({"foo": null}),
            "Unrecognized request argument supplied: foo".into(),
        ),
        (
            json!({"best_of": 1}),
            "Unrecognized request argument supplied: best_of".into(),
        ),
        (
            json!({"model": null}),
            "Missing required parameter: 'model'.".into(),
        ),
        (
            json!({"model": 1}),
            "Invalid type for 'model': expected a string, but got an integer.".into(),
        ),
        (
            json!({"logprobs": 1}),
            "Invalid type for 'logprobs': expected a boolean, but got an integer.".into(),
        ),
        (
            json!({"top_logprobs": 21}),
            "Invalid 'top_logprobs': expected an integer from 0 to 20, but got 21.".into(),
        ),
        (
            json!({"max_completion_tokens": 0}),
            "Invalid 'max_completion_tokens': expected an integer from 1 to 2147483647, but got 0."
                .into(),
        ),
    ] {
        let name = extra.to_string();
        assert_eq!(request(extra).expect_err(&name).to_string(), expected);
    }
}

#[test]
fn what_changes_nothing_is_accepted() {
    let request = request(json!({
        "tools": [], "tool_choice": "none", "functions": [], "function_call": "auto",
        "response_format": {"type": "text"}, "modalities": ["text"],
        "store": false, "parallel_tool_calls": true, "reasoning_effort": "none",
        "verbosity": "medium", "audio": null, "prediction": null, "web_search_options": null,
        "prompt_cache_retention": "in_memory", "prompt_cache_options": null,
    }));
    let checked = request.and_then(|request| request.check_for_model());
    assert_eq!(checked, Ok(()));
}

#[test]
fn a_model_is_asked_for_no_calls_and_a_program_for_those_that_there_are() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for (extra, model, program) in [
        (json!({}), None, None),
        (json!({"tools": tools}), Some("tools"), None),
        (
            json!({"tool_choice": "required"}),
            Some("tool_choice"),
            Some("tool_choice"),
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}),
            Some("messages[0].role"),
            Some("messages[0].role"),
        ),
        (json!({"program": {}}), Some("program"), None),
        (json!({"n": 2}), None, Some("n")),
    ] {
        let request = request(extra.clone()).expect("valid by itself");
        let param = |checked: Result<(), ApiError>| {
            let error: Value = serde_json::from_slice(&checked.err()?.to_json()).expect("JSON");
            Some(error["error"]["param"].as_str().expect("named").to_owned())
        };
        assert_eq!(
            param(request.check_for_model()).as_deref(),
            model,
            "{extra}"
        );
        assert_eq!(
            param(request.check_for_program()).as_deref(),
            program,
            "{extra}"
        );
    }
}

/// "Hm", two calls, and the end.
fn script_with_calls(text: &str) -> Vec<(usize, Event)> {
    let parts = [
        Part::Text(text.into()),
        Part::Call("f".into()),
        Part::Arguments("{\"a\":".into()),
        Part::Arguments("1}".into()),
        Part::Call("f".into()),
        Part::Arguments("{}".into()),
    ];
    let emitted = parts.map(|part| (0, Event::Emitted { part, tokens: 1 }));
    let end = (0, Event::Finished(FinishReason::Stop));
    emitted.into_iter().chain([end]).collect()
}

fn with_tools() -> Value {
    json!({"tools": [{"type": "function", "function": {"name": "f"}}], "stop": ["1}"]})
}

#[test]
fn a_whole_answer_has_its_calls() {
    for (text, content) in [("Hm", json!("Hm")), ("", Value::Null)] {
        let answer = whole(with_tools(), script_with_calls(text));
        let choice = &answer["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().expect("calls");
        let ids: Vec<_> = calls
            .iter()
            .map(|call| call["id"].as_str().expect("an id"))
            .collect();
        assert!(ids.iter().all(|id| id.starts_with("call_")) && ids[0] != ids[1]);
        let call = |id, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
        let calls = [call(ids[0], "{\"a\":1}"), call(ids[1], "{}")];
        assert_eq!(
            choice,
            &json!({"index": 0, "logprobs": null, "finish_reason": "tool_calls", "message":
                    {"role": "assistant", "content": content, "refusal": null, "tool_calls": calls}})
        );
        assert_eq!(answer["usage"]["completion_tokens"], 6);
    }
    let text = vec![(0, Event::Finished(FinishReason::Stop))];
    let answer = whole(with_tools(), text);
    assert_eq!(answer["choices"][0]["message"]["content"], "");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

/// Clients that add up chunks would say a name twice that came twice.
#[test]
fn a_stream_says_what_a_call_is_once() {
    let mut extra = with_tools();
    extra["stream"] = json!(true);
    let (_, mut run) = start(extra);
    let mut got = Vec::new();
    for (index, event) in script_with_calls("Hm") {
        got.extend(events(&run.stream(index, event).expect("no failure").0));
    }
    let ids = got.iter().filter_map(|chunk| {
        let id = &chunk["choices"][0]["delta"]["tool_calls"][0]["id"];
        Some(id.as_str()?.to_owned())
    });
    let ids: Vec<_> = ids.collect();
    assert_eq!(ids.len(), 2);
    let delta = |delta| chunk(json!([choice(0, delta, Value::Null)]));
    let begin = |index: usize| {
        let function = json!({"name": "f", "arguments": ""});
        delta(json!({"tool_calls": [
            {"index": index, "id": ids[index], "type": "function", "function": function}]}))
    };
    let more = |index: usize, arguments: &str| {
        delta(json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}))
    };
    assert_eq!(
        got,
        [
            delta(json!({"role": "assistant", "content": null})),
            delta(json!({"content": "Hm"})),
            begin(0),
            more(0, "{\"a\":"),
            more(0, "1}"),
            begin(1),
            more(1, "{}"),
            chunk(json!([choice(0, json!({}), json!("tool_calls"))])),
        ]
    );
}

#[test]
fn a_call_that_is_cut_off_has_no_other_reason() {
    let mut cut = script_with_calls("");
    cut.truncate(3);
    cut.push((0, Event::Finished(FinishReason::Length)));
    let answer = whole(with_tools(), cut);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(call["arguments"], "{\"a\":");
}

#[test]
fn alternatives_need_logprobs() {
    let request = request(json!({"top_logprobs": 2})).expect("valid by itself");
    assert_eq!(
        request.check(LIMITS).unwrap_err().to_string(),
        "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
    );
}

#[test]
fn both_names_of_the_limit_hold() {
    for (old, new) in [(2, 3), (3, 2)] {
        let (sequences, _) = start(json!({"max_tokens": old, "max_completion_tokens": new}));
        assert_eq!(sequences[0].max_tokens, 2);
    }
}

#[test]
fn a_template_is_told_what_is_not_its_own() {
    let prompt = |extra: Value| {
        let request = request(extra).expect("valid");
        encode(
            &chat_text(),
            &request.messages,
            &request.tools,
            &request.variables,
        )
    };
    let usual = prompt(json!({})).expect("encodes");
    let brief = [usual.as_slice(), &[END]].concat();
    let thinking = |on: bool| json!({"chat_template_kwargs": {"enable_thinking": on}});
    assert_eq!(prompt(thinking(true)), Ok(usual.clone()));
    assert_eq!(prompt(thinking(false)), Ok(brief.clone()));
    assert_eq!(prompt(json!({"reasoning_effort": "none"})), Ok(brief));
    let mut both = thinking(true);
    both["reasoning_effort"] = json!("none");
    assert_eq!(prompt(both), Ok(usual));
}

#[test]
fn the_templates_own_refusal_reaches_the_client() {
    let messages = [Message {
        role: messages::Role::Assistant,
        content: "x".into(),
        name: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
    }];
    let error = encode(&chat_text(), &messages, &no_tools(), &Map::new()).unwrap_err();
    assert_eq!(error.to_string(), "The first message must not be an answer");
    assert_eq!(error.status(), 400);
}
