//! Programs that answer requests, from the push to the last word: components made from `programs/`, in
//! real workers, called as models behind the API.

mod common;

use std::collections::BTreeMap;

use common::client::Transcript;
use common::requests::Request;
use common::shop::{Shop, code, content};
use common::{chat, setting, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

fn call(model: &str, question: &str, args: Value) -> Value {
    let mut body = chat(question);
    body["model"] = json!(model);
    body["program"] = json!({"args": args});
    body["seed"] = json!(11);
    body["max_tokens"] = json!(24);
    body
}

fn request(body: Value) -> Request {
    let (name, path) = (body["model"].to_string(), "/v1/chat/completions");
    Request { name, path, body }
}

/// The yardstick: `chat` does what the model does without it. Everybody has it.
#[test]
fn a_program_answers_as_the_model_does() {
    let shop = Shop::open(&[]);
    let questions = ["Hello!", "What is 2 + 2?", "Tell me a story about a cat."];
    for (question, temperature) in questions.into_iter().zip([0.0, 0.9, 1.4]) {
        let with = |field: &str, value: Value| {
            ["realm-tiny", "chat"].map(|model| {
                let mut body = call(model, question, Value::Null);
                body["temperature"] = json!(temperature);
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": true});
                body[field] = value.clone();
                if model != "chat" {
                    body.as_object_mut().expect("an object").remove("program");
                }
                body
            })
        };
        for (field, value) in [
            ("user", json!("nobody")),
            ("max_tokens", json!(3)),
            ("max_tokens", json!(150)),
            ("stop", json!(["e"])),
            ("top_k", json!(5)),
        ] {
            let [native, program] = with(field, value.clone()).map(request);
            let native = shop.server.ask(&native);
            let answer = shop.server.ask(&program);
            assert_eq!(
                answer.choices, native.choices,
                "{question}, {field}: {value}"
            );
            if field != "stop" {
                // Behind a stop string more or fewer may be in flight.
                let tokens = |of: &Transcript| of.usage["completion_tokens"].clone();
                assert_eq!(tokens(&answer), tokens(&native), "{question}, {field}");
            }
            assert_eq!(
                answer.usage["prompt_tokens"], native.usage["prompt_tokens"],
                "{question}"
            );
            let [native, program] = with(field, value).map(|body| {
                let whole = request(body).with("stream", json!(false));
                whole.with("stream_options", None)
            });
            let whole = shop.server.ask(&program);
            assert_eq!(whole.choices, shop.server.ask(&native).choices);
        }
    }
    let shown = shop
        .server
        .post("/v1/chat/completions", &call("chat", "hi", Value::Null));
    assert_eq!(shown.json()["model"], "chat", "{}", shown.body);
}

#[test]
fn a_program_is_listed_as_a_model_with_its_base() {
    let shop = Shop::open(&["best-of", "choice"]);
    let listed = || shop.server.get("/v1/models").json()["data"].take();
    let ids = || -> Vec<Value> {
        let listed = listed();
        let models = listed.as_array().expect("a list").iter();
        models.map(|model| model["id"].clone()).collect()
    };
    assert_eq!(
        ids(),
        ["realm-tiny", "best-of", "chat"],
        "a processor is no model"
    );
    let one = shop.server.get("/v1/models/best-of").json();
    assert_eq!(one, listed()[1]);
    assert_eq!(one["base"], "realm-tiny");
    assert_eq!(one["max_model_len"], listed()[0]["max_model_len"]);
    assert_eq!(shop.server.delete("/v1/programs/best-of").status, 200);
    assert_eq!(shop.server.get("/v1/models/best-of").status, 404);
}

#[test]
fn what_everybody_has_gives_way_to_what_a_tenant_stores() {
    let shop = Shop::open(&[]);
    let says = || {
        let said = json!([{"emit": "our own"}]);
        let body = call("chat", "hi", said);
        content(&shop.server.post("/v1/chat/completions", &body))
    };
    let everybodys = says();
    assert_ne!(everybodys, "our own");
    assert_eq!(
        shop.server.get("/v1/programs/chat").status,
        404,
        "nobody stored it"
    );
    assert_eq!(shop.server.delete("/v1/programs/chat").status, 404);
    assert_eq!(shop.push("chat", "program-script").status, 200);
    assert_eq!(says(), "our own");
    assert_eq!(shop.server.delete("/v1/programs/chat").status, 200);
    assert_eq!(says(), everybodys);
}

#[test]
fn what_a_program_cannot_be_asked_is_refused_by_name() {
    let shop = Shop::open(&["chat", "choice"]);
    let ask = |body: &Value| shop.server.post("/v1/chat/completions", body);
    for (field, value) in [
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("logit_bias", json!({"5": 1})),
        ("presence_penalty", json!(1)),
        ("min_tokens", json!(1)),
        ("ignore_eos", json!(true)),
        ("processor", json!({"name": "choice"})),
    ] {
        let mut body = call("chat", "hi", Value::Null);
        body[field] = value;
        let answer = ask(&body);
        assert_eq!(answer.status, 400, "{field}: {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], field);
    }
    // Each of the two kinds has its own place.
    assert_eq!(ask(&call("choice", "hi", Value::Null)).status, 400);
    assert_eq!(ask(&call("realm-tiny", "hi", Value::Null)).status, 400);
    let mut body = chat("hi");
    body["processor"] = json!({"name": "chat"});
    assert_eq!(ask(&body).status, 400);
    let nobody = ask(&call("nobody", "hi", Value::Null));
    assert_eq!(code(&nobody), (404, "model_not_found".into()));
}

#[test]
fn the_best_of_several_is_drawn_side_by_side() {
    let shop = Shop::open(&["best-of"]);
    let body = call("best-of", "Tell me a story.", json!({"n": 4}));
    let ask = |body: &Value| shop.server.post("/v1/chat/completions", body);
    let answer = ask(&body);
    let text = content(&answer);
    assert!(!text.is_empty());
    let usage = &answer.json()["usage"];
    let drawn = usage["completion_tokens"].as_u64().expect("a number");
    assert!((5..=4 * 24).contains(&drawn), "{usage}");
    assert_eq!(content(&ask(&body)), text, "the same seed, the same answer");
    let wrong = ask(&call("best-of", "hi", json!({"n": 0})));
    assert_eq!(
        code(&wrong),
        (422, "program_error".into()),
        "{}",
        wrong.body
    );
}

/// The contract is not Rust's alone: a program that is written in JavaScript.
#[test]
fn a_form_is_filled_in_by_javascript() {
    let shop = Shop::open(&["fill"]);
    let server = &shop.server;
    let form = "Name: {{[A-Z][a-z]{2,8}}}\nAge: {{[0-9]{2}}}\nJob: {{[a-z]{3,9}}}, {{[a-z]{3,9}}}.";
    let body = call("fill", "Who are you?", json!({"form": form}));
    let ask = |body: &Value| server.post("/v1/chat/completions", body);
    let answer = ask(&body);
    let text = content(&answer);
    assert!(is_filled_in(&text), "{text}");
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    assert_eq!(content(&ask(&body)), text, "the same seed, the same answer");

    let mut few = body.clone();
    few["max_tokens"] = json!(2);
    let answer = ask(&few);
    assert!(content(&answer).len() < text.len());
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    assert_eq!(answer.json()["usage"]["completion_tokens"], 2);

    // More matchers than there may be at once, which are dropped one by one.
    let long = "{{[0-9]}}-".repeat(70);
    let mut body_of_long = call("fill", "Count!", json!({"form": long}));
    body_of_long["max_tokens"] = json!(200);
    assert_eq!(content(&ask(&body_of_long)).len(), 140);

    for (args, words) in [
        (Value::Null, "program.args.form"),
        (json!({"form": "{{(}}"}), "unclosed group"),
    ] {
        let wrong = ask(&call("fill", "hi", args));
        let expected = (422, "program_error".into());
        assert_eq!(code(&wrong), expected, "{}", wrong.body);
        assert!(wrong.body.contains(words), "{}", wrong.body);
    }
}

/// Whether a text has the form of [`a_form_is_filled_in_by_javascript`].
fn is_filled_in(text: &str) -> bool {
    let filled_in = || {
        let (name, rest) = text.strip_prefix("Name: ")?.split_once("\nAge: ")?;
        let (age, rest) = rest.split_once("\nJob: ")?;
        let (job, other) = rest.strip_suffix('.')?.split_once(", ")?;
        let is_word = |word: &str| {
            (3..=9).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase())
        };
        let mut letters = name.chars();
        Some(
            letters.next()?.is_ascii_uppercase()
                && (2..=8).contains(&letters.as_str().len())
                && letters.all(|c| c.is_ascii_lowercase())
                && age.len() == 2
                && age.bytes().all(|b| b.is_ascii_digit())
                && is_word(job)
                && is_word(other),
        )
    };
    filled_in().unwrap_or(false)
}

/// A form that the embedded model, which has never seen JSON, would not keep to by itself.
const FORM: &str = r#"{"type": "object", "additionalProperties": false, "required": ["animal", "legs"],
    "properties": {"animal": {"enum": ["cat", "dog", "hen"]}, "legs": {"type": "integer",
    "minimum": 0, "maximum": 99}}}"#;

fn form() -> Value {
    serde_json::from_str(FORM).expect("JSON")
}

fn assert_has_form(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(value.as_object().expect("an object").len(), 2, "{text}");
    assert!(["cat", "dog", "hen"].contains(&value["animal"].as_str().expect("a text")));
    assert!(value["legs"].as_u64().is_some_and(|legs| legs < 100));
}

#[test]
fn json_has_the_form_that_was_asked_for() {
    let shop = Shop::open(&["json-extract", "grammar"]);
    for (seed, temperature) in [(1, 0.0), (2, 0.7), (3, 1.5)] {
        let args = json!({"schema": form(), "attempts": 8});
        let mut program = call("json-extract", "What animal is this?", args);
        let mut processor = chat("What animal is this?");
        processor["processor"] = json!({"name": "grammar", "args": {"json_schema": form()}});
        for body in [&mut program, &mut processor] {
            body["seed"] = json!(seed);
            body["temperature"] = json!(temperature);
            body["max_tokens"] = json!(64);
            let answer = shop.server.post("/v1/chat/completions", body);
            assert_has_form(&content(&answer));
            assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
        }
    }
    let wrong = call("json-extract", "hi", json!({"schema": {"type": "thing"}}));
    let wrong = shop.server.post("/v1/chat/completions", &wrong);
    assert_eq!(code(&wrong), (422, "program_error".into()));
    let message = wrong.json()["error"]["message"].to_string();
    assert!(message.contains("program.args.schema"), "{message}");
}

/// Two sequences' logits are combined in the worker.
#[test]
fn an_answer_is_drawn_from_logits_that_a_program_made() {
    let shop = Shop::open(&["contrastive"]);
    let ask = |args: Value, temperature: f32| {
        let mut body = call("contrastive", "Tell me a story about a cat.", args);
        body["temperature"] = json!(temperature);
        content(&shop.server.post("/v1/chat/completions", &body))
    };
    let args = json!({"strength": 0.0, "cutoff": 1e-30});
    let mut plain = chat("Tell me a story about a cat.");
    plain["max_tokens"] = json!(24);
    plain["temperature"] = json!(0.0);
    let plain = content(&shop.server.post("/v1/chat/completions", &plain));
    assert_eq!(ask(args, 0.0), plain);
    let one = ask(json!({"strength": 2.0, "window": 1}), 0.9);
    assert!(!one.is_empty());
    assert_eq!(ask(json!({"strength": 2.0, "window": 1}), 0.9), one);
}

#[test]
fn every_attack_ends_alone_and_neighbours_keep_their_tokens() {
    let attacks = [
        ("answer-spin", "program_time_limit"),
        ("answer-flood", "program_output_limit"),
        ("answer-handles", "program_handle_limit"),
        ("answer-trap", "program_trap"),
        ("answer-error", "program_error"),
        ("answer-bad-token", "program_invalid_call"),
        ("answer-empty-prompt", "program_invalid_call"),
        ("answer-take-unasked", "program_invalid_call"),
        ("answer-impossible", "program_invalid_call"),
    ];
    let mut calls: Vec<_> = attacks
        .iter()
        .map(|(name, wanted)| (*name, Value::Null, *wanted))
        .collect();
    let deep = format!("start: {}", "(".repeat(30_000));
    let small = "start: \"a\"";
    calls.extend(
        [
            (json!({"lark": small, "forks": 64}), "program_handle_limit"),
            (
                json!({"lark": small, "tokens": 1, "rollback": 2}),
                "program_invalid_call",
            ),
            (json!({"lark": deep}), "program_error"),
            (
                json!({"lark": small, "compile": 100_000}),
                "program_time_limit",
            ),
        ]
        .map(|(args, wanted)| ("answer-matchers", args, wanted)),
    );
    let tensor = json!({"tensor": [[2], [1, 2]]});
    calls.extend(
        [
            (
                json!([tensor, {"gather": [0, vec![0; 4096]]}, {"matmul": [1, 1]}]),
                "program_invalid_call",
            ),
            (
                json!([tensor, {"gather": [0, [2]]}]),
                "program_invalid_call",
            ),
            (json!(vec![tensor.clone(); 1025]), "program_tensor_limit"),
            (
                json!([{"tensor": [[4_000_000_000_u32, 4_000_000_000_u32], [1]]}]),
                "program_invalid_call",
            ),
            (
                json!([{"new": {}}, tensor, {"ask-from": [0, 0]}]),
                "program_invalid_call",
            ),
        ]
        .map(|(args, wanted)| ("program-script", args, wanted)),
    );
    // Others hold such handles at the same time.
    let handles = [0, 2, 3, 1000, u32::MAX];
    calls.extend(handles.map(|handle| ("answer-foreign-handle", json!(handle), "program_trap")));
    let mut names: Vec<_> = calls.iter().map(|call| call.0).collect();
    names.dedup();
    let shop = Shop::open(&names);
    shop.attacked(4, || {
        for (name, args, wanted) in &calls {
            let body = call(name, "hi", args.clone());
            let answer = shop.server.post("/v1/chat/completions", &body);
            assert_eq!(
                code(&answer),
                (422, (*wanted).into()),
                "{name} {args}: {}",
                answer.body
            );
            assert_eq!(answer.json()["error"]["type"], "program_error");
        }
    });
}

/// Instances that end at once, as many and as quickly as can be.
#[test]
fn a_storm_of_traps_is_nobody_elses_trouble() {
    let shop = Shop::open(&["answer-trap"]);
    let body = call("answer-trap", "hi", Value::Null);
    let trap = || {
        for _ in 0..25 {
            let answer = shop.server.post("/v1/chat/completions", &body);
            assert_eq!(code(&answer), (422, "program_trap".into()));
        }
    };
    shop.attacked(7, || {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(trap);
            }
        });
    });
}

/// Sequences that are asked for a token and dropped are no way to have more of the worker.
#[test]
fn what_is_not_waited_for_ends_with_its_program() {
    let shop = Shop::open(&["answer-leases", "chat"]);
    let ask = |model: &str| {
        let body = call(model, "Tell me a story about a cat.", Value::Null);
        shop.server.post("/v1/chat/completions", &body)
    };
    let alone = content(&ask("chat"));
    std::thread::scope(|scope| {
        let floods: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| ask("answer-leases")))
            .collect();
        assert_eq!(content(&ask("chat")), alone);
        for flood in floods {
            let answer = flood.join().expect("answered");
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
        }
    });
    for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting"] {
        wait_until("nothing runs", || shop.server.metric(gauge) == 0.0);
    }
    assert_eq!(shop.server.metric("realm_worker_ends_total"), 0.0);
}

/// The program runs anew with what it has seen: nothing is said twice, and nothing is lost. Here its worker
/// is killed while it computes; `calls.rs` has it killed while the program runs.
#[test]
fn an_answer_survives_its_worker() {
    let shop = Shop::open(&["chat", "answer-edit", "program-script"]);
    let stride = setting("REALM_TEST_STRIDE", 6).max(1) as usize;
    let reads = json!([
        {"new": {}}, {"speak": [0, 6]}, {"ask-logits": 0}, {"take-logits": 0}, {"top": [0, 2]}, {"speak": [0, 6]},
    ]);
    for (model, args) in [
        ("program-script", reads),
        ("chat", Value::Null),
        ("answer-edit", Value::Null),
    ] {
        let mut body = call(model, "Tell me a story.", args);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let request = request(body);
        let undisturbed = shop.server.ask(&request);
        shop.server
            .ask_and_kill(&request, &undisturbed, stride, |_| {});
    }
    assert!(shop.server.metric("realm_worker_ends_total") > 6.0);
}

/// Tokens of each sequence of a race, in the order in which they were taken.
fn lanes(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut lanes = BTreeMap::<_, Vec<_>>::new();
    for turn in text.split('<').skip(1) {
        let (lane, token) = turn.split_once("> ").expect("a turn");
        let lane = lanes.entry(lane.to_owned()).or_default();
        lane.push(token.to_owned());
    }
    lanes
}

/// Which sequence is first may be another one each time, but what was said of that stays said.
#[test]
fn a_race_goes_on_when_its_worker_dies() {
    const TURNS: usize = 24;
    let shop = Shop::open(&["program-script"]);
    let server = &shop.server;
    let steps = json!([{"new": {}}, {"fork": 0}, {"fork": 0}, {"race": [[0, 1, 2], TURNS]}]);
    let mut body = call("program-script", "Tell me a story.", steps);
    body["max_tokens"] = json!(40);
    body["stream"] = json!(true);
    let request = request(body);
    let mut longest = lanes(&server.ask(&request).choices[&0].text);
    for point in (0..TURNS).step_by(3) {
        let (ended, worker) = (
            server.metric("realm_worker_ends_total"),
            server.worker_pid(),
        );
        let mut killed = false;
        let answer = server.ask_with(&request, |chunks| {
            if chunks >= point && !killed {
                kill(worker, Signal::SIGKILL).expect("the worker runs");
                killed = true;
            }
        });
        let answer = answer.finished();
        let raced = lanes(&answer.choices[&0].text);
        let turns = raced.values().map(Vec::len).sum::<usize>();
        assert_eq!(turns, TURNS, "killed at {point}");
        for (lane, tokens) in raced {
            let known = longest.entry(lane).or_default();
            let both = known.len().min(tokens.len());
            assert_eq!(known[..both], tokens[..both], "killed at {point}");
            if tokens.len() > known.len() {
                *known = tokens;
            }
        }
        wait_until("the worker is replaced", || {
            server.metric("realm_worker_ends_total") == ended + 1.0
                && server.admin("/ready").status == 200
        });
    }
}

#[test]
fn nothing_is_left_of_requests_that_went() {
    let shop = Shop::open(&["chat", "answer-spin"]);
    let server = &shop.server;
    for model in ["chat", "answer-spin"] {
        for _ in 0..5 {
            let mut body = call(model, "Tell me a story.", Value::Null);
            body["max_tokens"] = json!(200);
            body["stream"] = json!(true);
            let left = server.try_ask(&request(body), |chunks| match chunks {
                0 | 1 => std::ops::ControlFlow::Continue(()),
                _ => std::ops::ControlFlow::Break(()),
            });
            assert!(left.is_some());
        }
    }
    for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting"] {
        wait_until("nothing runs", || server.metric(gauge) == 0.0);
    }
    let body = call("chat", "hi", Value::Null);
    assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    assert_eq!(server.metric("realm_worker_ends_total"), 0.0);
}
