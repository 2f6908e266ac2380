//! Workers are confined, and serve.
//!
//! What code inside of them cannot do is tested with the worker.

mod common;

use std::process::Command;

use common::confined::assert_confined;
use common::shop::{Shop, content};
use common::{Server, chat, completion, fail_to_start};
use serde_json::{Value, json};

#[test]
fn whatever_a_worker_does_it_is_confined() {
    let shop = Shop::open(&["choice", "chat"]);
    let server = &shop.server;
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        200
    );
    let mut steered = chat("Is the sky blue?");
    steered["processor"] = json!({"name": "choice", "args": {"choices": ["yes", "no"]}});
    let text = content(&server.post("/v1/chat/completions", &steered));
    assert!(["yes", "no"].contains(&text.trim()), "{text}");
    let mut run = chat("Tell me a story.");
    run["model"] = json!("chat");
    assert!(!content(&server.post("/v1/chat/completions", &run)).is_empty());
    // With the threads that run tenants' code, which are there by now.
    assert_confined(server.worker_pid());
    assert_eq!(server.metric("realm_worker_ends_total"), 0.0);
}

#[test]
fn less_than_all_of_it_can_be_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_realm"))
        .args(["info", "--json"])
        .output()
        .expect("realm runs");
    let info: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sandbox = &info["worker"]["sandbox"];
    assert_eq!(sandbox["seccomp"], true, "{info}");
    if sandbox["landlock"].is_u64() {
        let server = Server::start(&["--require-sandbox"]);
        let command = std::fs::read(format!("/proc/{}/cmdline", server.worker_pid()));
        let command = String::from_utf8(command.expect("it runs")).expect("UTF-8");
        assert!(command.contains("--require-sandbox"), "{command}");
    } else {
        let (status, said) = fail_to_start(&["--require-sandbox"]);
        assert_eq!(status.code(), Some(1));
        assert!(said.contains("without Landlock"), "{said}");
    }
}
