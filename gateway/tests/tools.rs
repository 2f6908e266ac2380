//! Calls of the client's tools, from the request to the last chunk, by programs in real workers.

mod common;

use std::collections::BTreeSet;

use common::chat;
use common::client::{Choice, End};
use common::requests::Request;
use common::shop::{Shop, code};
use common::wait_until;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

fn tools() -> Value {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "description": "Looks.", "parameters": {
            "type": "object", "additionalProperties": false, "required": ["where", "far"],
            "properties": {"where": {"enum": ["sea", "sky"]}, "far": {"type": "boolean"}},
        }}})
    };
    json!([tool("look"), tool("look_up")])
}

/// A request that a program is to answer, with these arguments.
fn call(model: &str, args: Value) -> Value {
    let mut body = chat("What is there?");
    body["model"] = json!(model);
    body["program"] = json!({"args": args});
    body["tools"] = tools();
    body["seed"] = json!(5);
    body
}

fn request(body: Value) -> Request {
    let (name, path) = (body["model"].to_string(), "/v1/chat/completions");
    Request { name, path, body }
}

fn streamed(mut body: Value) -> Request {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    request(body)
}

fn assert_fits((name, arguments): &(String, String)) {
    assert!(["look", "look_up"].contains(&name.as_str()), "{name}");
    let arguments: Value = serde_json::from_str(arguments).expect("JSON");
    let place = arguments["where"].as_str().expect("a text");
    assert!(["sea", "sky"].contains(&place), "{arguments}");
    assert!(arguments["far"].is_boolean(), "{arguments}");
}

/// What `program-script` is to do: speak, and call between that.
fn script() -> Value {
    json!([
        {"new": {}}, {"speak": [0, 5]}, {"call": "look"}, {"arguments": "["}, {"speak-arguments": [0, 5]},
        {"arguments": "0]"}, {"speak": [0, 3]}, {"call": "look_up"}, {"speak-arguments": [0, 3]},
        {"call": "look"}, {"arguments": "{}"}, {"speak": [0, 2]},
    ])
}

#[test]
fn any_model_calls_tools() {
    let shop = Shop::open(&["tools"]);
    let mut names = BTreeSet::new();
    for (seed, temperature) in [(1, 0.0), (2, 0.7), (3, 1.5), (4, 2.0)] {
        for choice in [
            json!("required"),
            json!({"type": "function", "function": {"name": "look_up"}}),
        ] {
            let mut body = call("tools", Value::Null);
            body["seed"] = json!(seed);
            body["temperature"] = json!(temperature);
            body["max_tokens"] = json!(600);
            body["tool_choice"] = choice.clone();
            body["parallel_tool_calls"] = json!(false);
            let whole = shop.server.ask(&request(body.clone()));
            let answer = &whole.choices[&0];
            assert_eq!((answer.calls.len(), &*answer.text), (1, ""), "{answer:?}");
            assert_fits(&answer.calls[0]);
            assert_eq!(answer.finish, "tool_calls");
            names.insert(answer.calls[0].0.clone());
            if choice.is_object() {
                assert_eq!(answer.calls[0].0, "look_up");
            }
            let chunks = shop.server.ask(&streamed(body));
            assert_eq!(chunks.choices, whole.choices);
        }
        // One that may speak does so.
        let mut body = call("tools", Value::Null);
        body["seed"] = json!(seed);
        let answer = shop.server.ask(&request(body)).choices.remove(&0);
        let answer = answer.expect("a choice");
        assert!(!answer.text.is_empty() || !answer.calls.is_empty());
    }
    assert!(!names.is_empty());
    // Of too few tokens, a call is cut off.
    let mut few = call("tools", Value::Null);
    few["tool_choice"] = json!("required");
    few["max_tokens"] = json!(2);
    assert_eq!(shop.server.ask(&request(few)).choices[&0].finish, "length");
}

/// What a client does with an answer: it sends it back as it was, with what came of the calls.
#[test]
fn a_conversation_goes_on_behind_a_call() {
    let shop = Shop::open(&["tools", "program-script"]);
    let mut body = call("tools", Value::Null);
    body["tool_choice"] = json!("required");
    body["parallel_tool_calls"] = json!(false);
    body["max_tokens"] = json!(600);
    let answer = shop.server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let message = answer.json()["choices"][0]["message"].take();
    assert_eq!(message["content"], Value::Null);
    let id = message["tool_calls"][0]["id"].clone();
    let result = json!({"role": "tool", "tool_call_id": id, "content": "A whale."});
    let mut body = call("program-script", json!(["describe"]));
    body["messages"] = json!([body["messages"][0], message, result]);
    let answer = shop.server.post("/v1/chat/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let told = answer.json()["choices"][0]["message"]["content"].to_string();
    for part in [
        "Role::Tool",
        "A whale.",
        id.as_str().expect("a text"),
        "look_up",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    body["messages"][2]["tool_call_id"] = json!("call_other");
    let wrong = shop.server.post("/v1/chat/completions", &body);
    assert_eq!(code(&wrong), (400, "invalid_value".into()));
    assert_eq!(wrong.json()["error"]["param"], "messages[2].tool_call_id");
}

#[test]
fn what_nobody_calls_is_refused_by_name() {
    let shop = Shop::open(&["tools", "program-script"]);
    let mut body = call("realm-tiny", Value::Null);
    body.as_object_mut().expect("an object").remove("program");
    let refused = shop.server.post("/v1/chat/completions", &body);
    assert_eq!(code(&refused), (400, "unsupported_parameter".into()));
    assert_eq!(refused.json()["error"]["param"], "tools");
    let mut body = call("tools", Value::Null);
    body["tool_choice"] = json!({"type": "function", "function": {"name": "listen"}});
    let refused = shop.server.post("/v1/chat/completions", &body);
    assert_eq!(code(&refused), (400, "invalid_value".into()));
    let param = &refused.json()["error"]["param"];
    assert_eq!(param, "tool_choice.function.name");
    for step in [json!({"call": "listen"}), json!({"arguments": "{}"})] {
        let body = call("program-script", json!([step]));
        let refused = shop.server.post("/v1/chat/completions", &body);
        assert_eq!(code(&refused), (422, "program_invalid_call".into()));
    }
}

/// No part of a call is said twice, and none is lost.
#[test]
fn a_call_survives_its_worker() {
    let shop = Shop::open(&["program-script", "tools"]);
    let server = &shop.server;
    let mut required = call("tools", Value::Null);
    required["tool_choice"] = json!("required");
    required["parallel_tool_calls"] = json!(false);
    required["max_tokens"] = json!(600);
    for body in [call("program-script", script()), required] {
        let request = streamed(body);
        let mut chunks = 0;
        let undisturbed = server.ask_with(&request, |seen| chunks = seen).finished();
        let Choice { calls, finish, .. } = &undisturbed.choices[&0];
        assert!(!calls.is_empty());
        assert_eq!(finish, "tool_calls");
        for point in 0..chunks {
            let (ended, worker) = (
                server.metric("realm_worker_ends_total"),
                server.worker_pid(),
            );
            let answer = server.ask_with(&request, |chunks| {
                if chunks == point {
                    kill(worker, Signal::SIGKILL).expect("the worker runs");
                }
            });
            let End::Finished(answer) = answer else {
                panic!("killed at {point}: {answer:?}");
            };
            assert_eq!(answer, undisturbed, "killed at chunk {point}");
            wait_until("the worker is replaced", || {
                server.metric("realm_worker_ends_total") == ended + 1.0
                    && server.admin("/ready").status == 200
            });
        }
    }
}
