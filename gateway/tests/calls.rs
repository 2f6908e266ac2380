//! A worker is killed at every call that a program or a processor makes of its host, and nothing shows of it.

mod common;

use common::calls::Calls;
use common::client::Transcript;
use common::requests::Request;
use common::shop::Shop;
use common::{chat, setting, wait_until};
use serde_json::{Value, json};

/// Of so many calls, an ordinary run takes one; which one differs from case to case.
const STRIDE: u64 = 24;

/// Requests that are made one after the other. The number of the round is for names that are used once.
type Case = (&'static str, Box<dyn Fn(u64) -> Vec<Request>>);

fn request(name: &str, most: u32, body: Value) -> Request {
    let path = "/v1/chat/completions";
    let (name, mut all) = (name.to_owned(), chat("Tell me a story."));
    for (field, value) in [
        ("seed", json!(11)),
        ("max_tokens", json!(most)),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
    ] {
        all[field] = value;
    }
    let fields = body.as_object().expect("fields").clone();
    all.as_object_mut().expect("an object").extend(fields);
    Request {
        name,
        path,
        body: all,
    }
}

fn once(name: &'static str, most: u32, body: Value) -> Case {
    let request = request(name, most, body);
    (name, Box::new(move |_| vec![request.clone()]))
}

/// An answer of the model that a processor steers, in two choices.
fn steered(name: &'static str, args: Value) -> Case {
    let processor = json!({"name": name, "args": args});
    once(name, 12, json!({"processor": processor, "n": 2}))
}

/// An answer of a program.
fn answered(name: &'static str, most: u32, args: Value) -> Case {
    once(
        name,
        most,
        json!({"model": name, "program": {"args": args}}),
    )
}

/// A chat that a program goes on with, in two requests.
fn session(round: u64) -> Vec<Request> {
    let name = format!("round {round}");
    let say = |content: &str| {
        let messages = json!([{"role": "user", "content": content}]);
        let args = json!({"session": name});
        let body = json!({"model": "session", "messages": messages, "program": {"args": args}});
        request("session", 5, body)
    };
    vec![say("Tell me a story."), say("And then?")]
}

fn cases() -> Vec<Case> {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["animal"],
        "properties": {"animal": {"enum": ["cat", "dog", "hen"]}},
    });
    let choices = json!({"choices": ["yes, of course", "yes", "no"]});
    let script = json!([
        {"reopen": "s"}, {"new": {}}, {"speak": [0, 3]}, {"save": [0, "s", 60]}, {"ask-logits": 0}, {"take-logits": 0},
        {"top": [0, 2]}, {"ask-hidden": 0}, {"take-hidden": 0}, {"gather": [1, [0, 1]]}, {"peek": 2}, "random",
        {"speak": [0, 3]}, {"reopen": "s"}, {"length": 1}, {"speak": [1, 3]}, {"forget": "s"}, {"reopen": "s"},
    ]);
    vec![
        steered("choice", choices.clone()),
        steered("pick", choices),
        steered("grammar", json!({"json_schema": schema})),
        steered(
            "guard",
            json!({"patterns": ["zz", "."], "replacement": " [withheld]"}),
        ),
        answered("chat", 12, Value::Null),
        answered("best-of", 4, json!({"n": 3})),
        answered("contrastive", 4, json!({"window": 2})),
        answered("json-extract", 24, json!({"schema": schema, "attempts": 8})),
        answered(
            "fill",
            24,
            json!({"form": "Age: {{[0-9]{2}}}, job: {{[a-z]{3,6}}}."}),
        ),
        ("session", Box::new(session)),
        answered("answer-edit", 6, Value::Null),
        answered("program-script", 24, script),
    ]
}

#[test]
fn a_worker_may_die_at_any_call_of_its_host() {
    let stride = setting("REALM_TEST_STRIDE", STRIDE).max(1);
    let cases = cases();
    let names: Vec<_> = cases.iter().map(|(name, _)| *name).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("calls");
    let calls = Calls::new(&path);
    let path = path.to_str().expect("UTF-8");
    let shop = Shop::open_with(&names, &[("REALM_TEST_CRASH_CALL", path)]);
    let server = &shop.server;
    let (mut kills, mut late) = (0, 0);
    for (number, (name, requests)) in (0..).zip(&cases) {
        let ask = |round| -> Vec<Transcript> {
            requests(round)
                .iter()
                .map(|request| server.ask(request))
                .collect()
        };
        calls.set(Calls::ENDLESS);
        let undisturbed = ask(0);
        let made = Calls::ENDLESS - calls.set(0);
        assert!(made > 0, "{name} calls nothing");
        for call in (1 + number % stride.min(made)..=made).step_by(stride as usize) {
            let ended = server.metric("realm_worker_ends_total");
            calls.set(call);
            assert_eq!(
                ask(call),
                undisturbed,
                "{name}, killed at call {call} of {made}"
            );
            // What a processor plans after the last token may come after the answer.
            if calls.set(0) > 0 {
                late += 1;
                continue;
            }
            kills += 1;
            wait_until("the worker is replaced", || {
                server.metric("realm_worker_ends_total") == ended + 1.0
                    && server.admin("/ready").status == 200
            });
        }
        println!("calls: {name}: {made} calls, {kills} kills so far");
    }
    println!("calls: {kills} kills, {late} calls came after the answer; all answers as without");
    assert!(
        late * 8 < kills,
        "{late} calls were not made before the answer was over"
    );
}
