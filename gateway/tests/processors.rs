//! Programs of tenants, from the push to the last token: components made from `programs/`, in real
//! workers, behind the API.
//!
//! `cargo xtask programs` makes them; `REALM_PROGRAMS` says where they are.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::requests::{Request, kinds};
use common::shop::{Shop, code, content};
use common::{Answer, Server, chat, setting, wait_until};
use serde_json::{Value, json};

fn ask(shop: &Shop, content: &str, processor: Value) -> Answer {
    let mut body = chat(content);
    body["processor"] = processor;
    shop.server.post("/v1/chat/completions", &body)
}

fn processor(name: &str, args: Value) -> Value {
    json!({"name": name, "args": args})
}

#[test]
fn an_answer_is_one_of_the_choices() {
    let shop = Shop::open(&["choice"]);
    let choices = ["yes", "no", "perhaps not"];
    let args = json!({"choices": choices});
    for question in ["Is the sky blue?", "Tell me a story.", "What is 2 + 2?"] {
        let answer = ask(&shop, question, processor("choice", args.clone()));
        let text = content(&answer);
        assert!(choices.contains(&text.trim()), "{text}");
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
    // Several choices of a request are steered one by one, streamed and scored like any others.
    let mut body = chat("Is the sky green?");
    body["processor"] = processor("choice", args);
    for (field, value) in [
        ("n", json!(4)),
        ("temperature", json!(1.5)),
        ("stream", json!(true)),
        ("stream_options", json!({"include_usage": true})),
        ("logprobs", json!(true)),
    ] {
        body[field] = value;
    }
    let (name, path) = ("four".to_owned(), "/v1/chat/completions");
    let answer = shop.server.ask(&Request { name, path, body });
    for choice in answer.choices.values() {
        assert!(choices.contains(&choice.text.trim()), "{}", choice.text);
        assert!(!choice.scores.is_empty());
    }
}

/// The same processor in Rust and in JavaScript.
#[test]
fn the_language_of_a_processor_makes_no_difference() {
    let shop = Shop::open(&["choice", "pick"]);
    let choices = ["yes, of course", "yes", "no", "no, not at all", "perhaps"];
    for (question, temperature) in [("Is the sky blue?", 0.0), ("Tell me a story.", 1.5)] {
        let [rust, javascript] = ["choice", "pick"].map(|name| {
            let mut body = chat(question);
            for (field, value) in [
                ("processor", processor(name, json!({"choices": choices}))),
                ("n", json!(4)),
                ("seed", json!(5)),
                ("temperature", json!(temperature)),
                ("stream", json!(true)),
                ("stream_options", json!({"include_usage": true})),
                ("logprobs", json!(true)),
            ] {
                body[field] = value;
            }
            let (name, path) = (name.to_owned(), "/v1/chat/completions");
            shop.server.ask(&Request { name, path, body })
        });
        for choice in javascript.choices.values() {
            assert!(choices.contains(&choice.text.trim()), "{}", choice.text);
        }
        assert_eq!(javascript.choices, rust.choices, "{question}");
    }
    let wrong = ask(&shop, "hi", processor("pick", json!({"choices": [""]})));
    assert_eq!(code(&wrong), (422, "processor_error".into()));
}

#[test]
fn what_cannot_be_used_is_told_before_anything_is_done() {
    let shop = Shop::open(&["choice"]);
    let missing = ask(&shop, "hi", processor("nobody", json!(null)));
    assert_eq!(code(&missing), (404, "program_not_found".into()));
    for wrong in [
        json!("choice"),
        json!({}),
        json!({"name": 5}),
        json!({"name": "choice", "arg": 1}),
    ] {
        assert_eq!(ask(&shop, "hi", wrong.clone()).status, 400, "{wrong}");
    }
    // Arguments of 64 KiB, quotation marks and all, are what the processor refuses, and longer ones the gateway.
    for (bytes, status) in [(64 << 10, 422), (64 << 10 | 1, 400)] {
        let args = json!("x".repeat(bytes - 2));
        assert_eq!(ask(&shop, "hi", processor("choice", args)).status, status);
    }
    let mut other = chat("hi");
    other["processor"] = processor("choice", json!({"choices": ["a", "b"]}));
    let pushed = shop.server.post_component(
        "/v1/programs?name=made-for&base=another",
        b"\0asm\x0d\0\x01\0",
    );
    assert_eq!(pushed.status, 404, "{}", pushed.body);
    // Without a folder there are none.
    let server = Server::start(&[]);
    let off = server.post("/v1/chat/completions", &other);
    assert_eq!(
        off.json()["error"]["code"],
        "programs_disabled",
        "{}",
        off.body
    );
}

#[test]
fn every_attack_ends_alone_and_neighbours_keep_their_tokens() {
    let attacks = [
        ("spin", "processor_time_limit"),
        ("spin-start", "processor_time_limit"),
        ("grow", "processor_memory_limit"),
        ("table-grow", "processor_memory_limit"),
        ("recurse", "processor_stack_limit"),
        ("trap", "processor_trap"),
        ("trap-start", "processor_trap"),
        ("many-args", "processor_host_call_limit"),
        ("bad-token", "processor_invalid_plan"),
        ("bad-force", "processor_invalid_plan"),
        ("empty-force", "processor_invalid_plan"),
        ("empty-allow", "processor_invalid_plan"),
        ("force-flood", "processor_invalid_plan"),
        ("bad-bias", "processor_invalid_plan"),
        ("bias-flood", "processor_invalid_plan"),
        ("bad-temperature", "processor_invalid_plan"),
        ("errors", "processor_error"),
    ];
    let names: Vec<_> = attacks.iter().map(|attack| attack.0).collect();
    let shop = Shop::open(&names);
    shop.attacked(3, || {
        for (name, code) in attacks {
            let answer = ask(&shop, "hi", processor(name, Value::Null));
            let error = &answer.json()["error"];
            assert_eq!(error["code"], code, "{name}: {}", answer.body);
            assert_eq!(
                (answer.status, &error["type"]),
                (422, &json!("processor_error"))
            );
        }
    });
}

/// Both are alike, but for how deep they are: one is just within what a compiler may take, by the same measure
/// as the other is beyond it.
#[test]
fn a_component_that_takes_too_much_to_compile_is_refused_at_nobody_elses_cost() {
    let shop = Shop::open(&["compile-heavy"]);
    shop.attacked(5, || {
        let refused = shop.push("compile-bomb", "compile-bomb");
        let expected = (400, "program_compile_limit".to_owned());
        assert_eq!(code(&refused), expected, "{}", refused.body);
        assert!(refused.body.contains("memory"), "{}", refused.body);
    });
    let missing = ask(&shop, "hi", processor("compile-bomb", Value::Null));
    assert_eq!(code(&missing), (404, "program_not_found".into()));
    content(&ask(&shop, "hi", processor("compile-heavy", Value::Null)));
}

/// What is within the usual limits is beyond those of a server that has less to give; and what has more memory
/// runs out of time.
#[test]
fn a_compilation_ends_at_the_limits_of_its_server() {
    let (seconds, memory) = ("REALM_COMPILE_SECONDS", "REALM_COMPILE_MEMORY");
    for (component, limits, parts) in [
        (
            "compile-heavy",
            &[(memory, "512MiB")][..],
            ["memory", "memory"],
        ),
        (
            "compile-bomb",
            &[(seconds, "1"), (memory, "16GiB")],
            // Or of wall time, of which there is twice as much.
            ["processor time", "after 2 s"],
        ),
    ] {
        let shop = Shop::open_with(&["choice"], limits);
        let refused = shop.push(component, component);
        let expected = (400, "program_compile_limit".to_owned());
        assert_eq!(code(&refused), expected, "{}", refused.body);
        let said = parts.iter().any(|part| refused.body.contains(part));
        assert!(said, "{}", refused.body);
    }
}

/// What is logged beyond 64 KiB is dropped, and the answer is what it would be.
#[test]
fn a_flood_of_log_lines_is_cut_off() {
    let shop = Shop::open(&["flood-log"]);
    let request = kinds(3, 8).swap_remove(1);
    let plain = shop.server.ask(&request);
    let attacks = AtomicUsize::new(0);
    shop.attacked(6, || {
        attacks.fetch_add(1, Ordering::Relaxed);
        let flooding = processor("flood-log", json!({"lines": 4}));
        let flooding = request.clone().with("processor", flooding);
        assert_eq!(shop.server.ask(&flooding), plain, "it only draws freely");
    });
    // 3 KiB of each line are logged, and nothing after 64 KiB.
    let expected = 21 * attacks.into_inner();
    let lines = || shop.server.logged(&["flood-log", "flood flood"]);
    wait_until("it is logged", || lines() >= expected);
    assert_eq!(lines(), expected);
}

/// `echo-state` forces text that depends on all tokens so far and on how they came, and fails if it
/// is told other ones than it drew.
#[test]
fn a_steered_stream_survives_its_worker() {
    let shop = Shop::open(&["echo-state", "choice"]);
    let server = &shop.server;
    let request = kinds(5, 40).swap_remove(1);
    let request = request.with("processor", processor("echo-state", json!({"every": 7})));
    let undisturbed = server.ask(&request);
    assert_ne!(
        undisturbed,
        server.ask(&request.clone().with("processor", None))
    );
    let stride = setting("REALM_TEST_STRIDE", 6).max(1) as usize;
    server.ask_and_kill(&request, &undisturbed, stride, |_| {});
    assert!(server.metric("realm_worker_ends_total") > 0.0);
}

#[test]
fn a_slow_processor_delays_itself_alone_and_loses_nothing() {
    let shop = Shop::open(&["slow"]);
    let request = kinds(9, 24).swap_remove(1);
    let plain = shop.server.ask(&request);
    // Long enough that each plan is late for its step.
    let steered = request.with("processor", processor("slow", json!({"loops": 4_000_000})));
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| shop.server.ask(&steered)))
            .collect();
        for slow in slow {
            assert_eq!(
                slow.join().expect("answered"),
                plain,
                "it only draws freely"
            );
        }
    });
}

#[test]
fn a_new_version_serves_new_requests_and_is_gone_when_removed() {
    let shop = Shop::open(&[]);
    assert_eq!(shop.push("mine", "errors").status, 200);
    let failed = ask(&shop, "hi", processor("mine", Value::Null));
    assert_eq!(
        failed.json()["error"]["code"],
        "processor_error",
        "{}",
        failed.body
    );
    assert!(failed.body.contains("no luck"), "{}", failed.body);
    assert_eq!(shop.push("mine", "choice").status, 200);
    let args = json!({"choices": ["one", "two"]});
    let text = content(&ask(&shop, "hi", processor("mine", args.clone())));
    assert!(["one", "two"].contains(&text.trim()), "{text}");
    assert_eq!(shop.server.delete("/v1/programs/mine").status, 200);
    assert_eq!(ask(&shop, "hi", processor("mine", args)).status, 404);
}

/// What somebody changed on the disk is not run: it is compiled anew.
#[test]
fn compiled_code_that_was_changed_is_not_run() {
    let shop = Shop::open(&["choice"]);
    let compiled = shop.folder.path().join("programs/compiled");
    let files = || std::fs::read_dir(&compiled).expect("a folder");
    for file in files() {
        let path = file.expect("an entry").path();
        let mut bytes = std::fs::read(&path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("written");
    }
    assert!(files().next().is_some());
    let store = shop.folder.path().join("programs").display().to_string();
    let second = Server::start(&["--programs", &store]);
    let mut body = chat("hi");
    body["processor"] = processor("choice", json!({"choices": ["left", "right"]}));
    let text = content(&second.post("/v1/chat/completions", &body));
    assert!(["left", "right"].contains(&text.trim()), "{text}");
}
