//! Programs and their tenants' settings: sequences that are saved for later requests, which a tenant finds
//! again and nobody else, and the time that an answer may take.

mod common;

use std::path::Path;
use std::process::Command;

use common::place::{Place, ask};
use common::shop::{Shop, content};
use common::{chat, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A request to play a script at temperature 0.
fn script(steps: &Value) -> Value {
    let mut body = chat("Tell me a story about a cat.");
    body["model"] = json!("program-script");
    body["program"] = json!({"args": steps});
    body["temperature"] = json!(0.0);
    body["max_tokens"] = json!(64);
    body
}

fn play(shop: &Shop, steps: &Value) -> String {
    content(&shop.server.post("/v1/chat/completions", &script(steps)))
}

#[test]
fn a_later_request_goes_on_from_what_was_saved_whatever_became_of_the_worker() {
    let shop = Shop::open(&["program-script"]);
    let whole = play(
        &shop,
        &json!([{"new": {}}, {"speak": [0, 8]}, {"emit": "|"}, {"length": 0}, {"speak": [0, 8]}]),
    );
    let (first, second) = whole.split_once('|').expect("two parts");
    let begin = json!([{"new": {}}, {"speak": [0, 8]}, {"save": [0, "cat", 600]}]);
    let find = json!([{"reopen": "cat"}]);
    let go_on = json!([{"reopen": "cat"}, {"length": 0}, {"speak": [0, 8]}]);
    assert_eq!(play(&shop, &find), "[none]");
    assert_eq!(play(&shop, &begin), first);
    assert!(shop.server.metric("realm_saved_tokens") > 8.0);
    assert_eq!(play(&shop, &go_on), second);
    shop.server.kill_worker(Signal::SIGKILL);
    wait_until("the worker is replaced", || {
        shop.server.metric("realm_worker_ends_total") == 1.0
    });
    assert_eq!(play(&shop, &go_on), second);
    assert_eq!(play(&shop, &json!([{"forget": "cat"}])), "");
    assert_eq!(play(&shop, &find), "[none]");
    assert_eq!(shop.server.metric("realm_saved_tokens"), 0.0);
}

/// A client sends what is new, and not the whole chat.
#[test]
fn a_session_has_what_was_said_before_in_its_context() {
    let shop = Shop::open(&["session"]);
    let say = |session: &str, content: &str| {
        let mut body = chat(content);
        body["model"] = json!("session");
        body["program"] = json!({"args": {"session": session}});
        (body["temperature"], body["max_tokens"]) = (json!(0.0), json!(24));
        let answer = shop.server.post("/v1/chat/completions", &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0]["message"]["content"].to_string()
    };
    let saved = || shop.server.metric("realm_saved_tokens");
    let alone = say("a", "What is two plus two?");
    let short = saved();
    assert_eq!(say("b", "What is two plus two?"), alone);
    assert_eq!(saved(), 2.0 * short);
    say("a", "Tell me a story about a cat.");
    let long = saved() - short;
    assert!(long > short, "{long} tokens, before {short}");
    say("a", "What is two plus two?");
    assert!(saved() - short > long);
}

fn push(file: &Path, folder: &Path, tenant: &str) {
    let mut realm = Command::new(env!("CARGO_BIN_EXE_realm"));
    realm.args(["program", "push"]).arg(file);
    realm.args(["--name", "program-script", "--tenant", tenant]);
    let output = realm.arg("--dir").arg(folder).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_tenant_has_names_room_and_time_of_its_own() {
    let place = Place::new(
        "programs = \"programs\"\n[[tenant]]\nid = \"few\"\nprogram_saved_tokens = 8\n\
         [[tenant]]\nid = \"hasty\"\nprogram_seconds = 1\nprogram_call_ms = 10000\n",
    );
    let folder = std::env::var("REALM_PROGRAMS").expect("set: run `cargo xtask programs` first");
    let file = Path::new(&folder).join("program-script.wasm");
    for tenant in ["acme", "other", "few", "hasty"] {
        push(&file, &place.file("programs"), tenant);
    }
    let tenants = ["acme", "other", "few", "hasty"];
    let [acme, other, few, hasty] = tenants.map(|tenant| place.key(tenant));
    let server = place.serve();
    let play = |key: &str, steps: &Value| {
        let path = "/v1/chat/completions";
        let reply = ask(&server, Some(key), path, Some(&script(steps)));
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["choices"][0]["message"]["content"].clone()
    };
    let save = |count: usize| {
        let prompt = vec![7; count];
        json!([{"new": {"prompt": prompt}}, {"save": [0, "mine", 600]}])
    };
    let seek = json!([{"reopen": "mine"}]);
    let find = json!([{"reopen": "mine"}, {"length": 0}]);
    play(&acme, &save(5));
    assert_eq!(play(&acme, &find), "(5)");
    assert_eq!(play(&other, &seek), "[none]");
    play(&other, &save(6));
    play(&other, &json!([{"forget": "theirs"}]));
    assert_eq!(
        (play(&acme, &find), play(&other, &find)),
        (json!("(5)"), json!("(6)"))
    );
    play(&few, &save(8));
    assert_eq!(play(&few, &find), "(8)");
    play(&few, &save(9));
    assert_eq!(play(&few, &seek), "[none]");

    // An answer ends when it has taken as long as it may, also where nothing is drawn.
    for steps in [
        json!([{"spin": 1_000_000_000_000_u64}]),
        json!([{"new": {}}, {"speak": [0, 1_000_000]}, {"spin": 1_000_000_000_000_u64}]),
    ] {
        let body = script(&steps);
        let reply = ask(&server, Some(&hasty), "/v1/chat/completions", Some(&body));
        assert_eq!(
            (reply.status, reply.code()),
            (422, "program_wall_time_limit")
        );
    }
    assert_eq!(play(&hasty, &json!([{"emit": "on time"}])), "on time");
    assert_eq!(server.metric("realm_worker_ends_total"), 0.0);
}
