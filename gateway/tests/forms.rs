//! Answers of a form that the request asks for: `response_format` and `structured_outputs`, from the
//! socket to the last token.

mod common;

use common::client::Transcript;
use common::requests::{Request, kinds};
use common::shop::{Shop, code, content};
use common::{Answer, Server, chat, setting, wait_until};
use serde_json::{Value, json};

/// What the embedded model, which has never seen JSON, would not keep to by itself.
fn schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["animal", "legs", "names"],
        "properties": {
            "animal": {"enum": ["cat", "dog", "hen"]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 99},
            "names": {
                "type": "array",
                "items": {"type": "string", "pattern": "^[A-Z][a-z]{1,7}$"},
                "minItems": 2,
                "maxItems": 4,
            },
        },
    })
}

fn assert_fits(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(value.as_object().expect("an object").len(), 3, "{text}");
    assert!(["cat", "dog", "hen"].contains(&value["animal"].as_str().expect("a text")));
    assert!(value["legs"].as_u64().is_some_and(|legs| legs < 100));
    let names = value["names"].as_array().expect("a list");
    assert!((2..=4).contains(&names.len()), "{text}");
    for name in names {
        let name = name.as_str().expect("a text");
        assert!((2..=8).contains(&name.len()) && name.is_ascii(), "{text}");
    }
}

fn format(schema: Value) -> Value {
    let named = json!({"name": "animal", "strict": true, "schema": schema});
    json!({"type": "json_schema", "json_schema": named})
}

fn question(seed: u64) -> Value {
    let mut body = chat("Which animal is it?");
    body["response_format"] = format(schema());
    body["seed"] = json!(seed);
    body["max_tokens"] = json!(600);
    body
}

fn ask(server: &Server, body: &Value) -> Answer {
    server.post("/v1/chat/completions", body)
}

fn streamed(mut body: Value) -> Request {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (name, path) = ("a form".to_owned(), "/v1/chat/completions");
    Request { name, path, body }
}

#[test]
fn json_fits_its_schema_whatever_else_is_asked() {
    let server = Server::start(&[]);
    for (seed, field, value) in [
        (1, "temperature", json!(0)),
        (2, "temperature", json!(1.8)),
        (3, "n", json!(3)),
        (4, "logprobs", json!(true)),
        (5, "top_k", json!(1)),
        (6, "top_p", json!(0.01)),
        (7, "frequency_penalty", json!(2)),
        (8, "repetition_penalty", json!(3)),
        // Of what the form leaves only one token may come, whatever speaks against it.
        (9, "logit_bias", json!({"2": -100})),
        (10, "min_tokens", json!(590)),
        (11, "ignore_eos", json!(true)),
    ] {
        let mut body = question(seed);
        body[field] = value;
        let whole = ask(&server, &body);
        assert_eq!(whole.status, 200, "{field}: {}", whole.body);
        let whole = whole.json();
        let answer = server.ask(&streamed(body));
        for (choice, other) in whole["choices"]
            .as_array()
            .expect("choices")
            .iter()
            .zip(0..)
        {
            let text = choice["message"]["content"].as_str().expect("a text");
            assert_fits(text);
            assert_eq!(choice["finish_reason"], "stop", "{field}");
            assert_eq!(answer.choices[&other].text, text, "{field}");
            assert_eq!(answer.choices[&other].finish, "stop", "{field}");
        }
        assert_eq!(
            whole["usage"]["completion_tokens"],
            answer.usage["completion_tokens"]
        );
    }
    let three = server.ask(&streamed({
        let mut body = question(3);
        body["n"] = json!(3);
        body["temperature"] = json!(1.8);
        body
    }));
    let texts: Vec<_> = three.choices.values().map(|choice| &choice.text).collect();
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "{texts:?}");
    // What ends an answer of no form ends one that has one.
    for (field, value, finish) in [
        ("max_tokens", json!(5), "length"),
        ("stop", json!(["legs"]), "stop"),
    ] {
        let mut body = question(1);
        body[field] = value;
        let answer = ask(&server, &body);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], finish);
        assert!(content(&answer).starts_with('{'), "{}", answer.body);
    }
}

#[test]
fn every_kind_of_form_is_kept() {
    let server = Server::start(&[]);
    let outputs = |outputs: Value| ("structured_outputs", outputs);
    let lark = "start: \"<\" WORD \">\"\nWORD: /[a-z]{3}/\n";
    let is_object = |text: &str| {
        let value: Value = serde_json::from_str(text).expect("JSON");
        value.is_object()
    };
    let is_number = |text: &str| text.len() == 4 && text.parse::<u32>().is_ok();
    let is_choice = |text: &str| ["(yes)", "no. <b>", "€ 5"].contains(&text);
    let is_word = |text: &str| {
        let word = text
            .strip_prefix('<')
            .and_then(|rest| rest.strip_suffix('>'));
        word.is_some_and(|word| word.len() == 3)
    };
    type Fits<'a> = &'a dyn Fn(&str) -> bool;
    let cases: [((&str, Value), Fits<'_>); 6] = [
        (outputs(json!({"json": schema()})), &is_object),
        (outputs(json!({"json": schema().to_string()})), &is_object),
        (outputs(json!({"regex": "[0-9]{4}"})), &is_number),
        (
            outputs(json!({"choice": ["(yes)", "no. <b>", "€ 5"]})),
            &is_choice,
        ),
        (outputs(json!({"grammar": lark})), &is_word),
        (("response_format", format(schema())), &is_object),
    ];
    for ((field, value), fits) in cases {
        for seed in 0..3 {
            let mut body =
                json!({"model": "realm-tiny", "prompt": ["Once", "A dog"], "max_tokens": 600});
            body["seed"] = json!(seed);
            body["temperature"] = json!(1.3);
            body[field] = value.clone();
            let answer = server.post("/v1/completions", &body);
            assert_eq!(answer.status, 200, "{value}: {}", answer.body);
            for choice in answer.json()["choices"].as_array().expect("choices") {
                let text = choice["text"].as_str().expect("a text");
                assert!(fits(text), "{value}: {text}");
                assert_eq!(choice["finish_reason"], "stop");
            }
        }
    }
    // Of any object, a model that has never seen one may not find the end.
    let mut body = chat("Any object.");
    body["response_format"] = json!({"type": "json_object"});
    let answer = ask(&server, &body);
    assert!(
        content(&answer).trim_start().starts_with('{'),
        "{}",
        answer.body
    );
}

#[test]
fn what_is_no_form_is_told_before_a_stream_begins() {
    let server = Server::start(&[]);
    let deep = format!("{}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000));
    let twice = (0..24).map(|i| format!("T{i}: T{0} T{0}\n", i + 1));
    let twice = format!("start: T0\n{}T24: \"a\"\n", twice.collect::<String>());
    for (field, value, code, part) in [
        (
            "response_format",
            format(json!({"type": "thing"})),
            "invalid_grammar",
            "thing",
        ),
        (
            "structured_outputs",
            json!({"regex": "("}),
            "invalid_grammar",
            "regex",
        ),
        (
            "structured_outputs",
            json!({"grammar": "start: nobody"}),
            "invalid_grammar",
            "nobody",
        ),
        (
            "structured_outputs",
            json!({"grammar": format!("start: {deep}")}),
            "invalid_grammar",
            "",
        ),
        (
            "structured_outputs",
            json!({"grammar": twice}),
            "grammar_too_complex",
            "too big",
        ),
    ] {
        for stream in [false, true] {
            for n in [1, 3] {
                let mut body = chat("hi");
                body[field] = value.clone();
                body["stream"] = json!(stream);
                body["n"] = json!(n);
                let answer = ask(&server, &body);
                assert_eq!(answer.status, 400, "{}", answer.body);
                let error = &answer.json()["error"];
                assert_eq!(error["code"], code, "{error}");
                assert_eq!(error["param"], field);
                assert_eq!(error["type"], "invalid_request_error");
                assert!(error["message"].to_string().contains(part), "{error}");
            }
        }
    }
    for gauge in ["vllm:num_requests_running", "vllm:num_requests_waiting"] {
        wait_until("nothing runs", || server.metric(gauge) == 0.0);
    }
    assert_eq!(server.metric("realm_worker_ends_total"), 0.0);
}

#[test]
fn a_form_and_a_program_exclude_each_other() {
    let shop = Shop::open(&["choice", "chat"]);
    let mut both = question(1);
    both["processor"] = json!({"name": "choice", "args": {"choices": ["a", "b"]}});
    let mut program = question(1);
    program["model"] = json!("chat");
    for body in [both, program] {
        let answer = ask(&shop.server, &body);
        assert_eq!(
            code(&answer),
            (400, "invalid_value".into()),
            "{}",
            answer.body
        );
        assert_eq!(answer.json()["error"]["param"], "response_format");
    }
}

#[test]
fn a_form_survives_its_worker() {
    let server = Server::start(&[]);
    let mut body = question(12);
    body["n"] = json!(2);
    body["temperature"] = json!(1.5);
    let request = streamed(body);
    let undisturbed = server.ask(&request);
    let stride = setting("REALM_TEST_STRIDE", 9).max(1) as usize;
    server.ask_and_kill(&request, &undisturbed, stride, |answer| {
        for choice in answer.choices.values() {
            assert_fits(&choice.text);
        }
    });
    assert!(server.metric("realm_worker_ends_total") > 1.0);
}

/// What neighbours draw does not depend on who else is steered, and the other way round.
#[test]
fn forms_and_free_answers_share_steps() {
    let server = Server::start(&[]);
    let mut requests = kinds(17, 48);
    requests.extend((0..4).map(|seed| streamed(question(seed))));
    let alone: Vec<Transcript> = requests.iter().map(|r| server.ask(r)).collect();
    std::thread::scope(|scope| {
        let all: Vec<_> = requests
            .iter()
            .map(|r| scope.spawn(|| server.ask(r)))
            .collect();
        for (together, (alone, request)) in all.into_iter().zip(alone.iter().zip(&requests)) {
            let together = together.join().expect("answered");
            assert_eq!(&together, alone, "{}", request.name);
        }
    });
}
