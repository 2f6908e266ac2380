//! Programs and processors that crash their workers: they are found, and refused from then on; and nobody else is.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::attached::Kept;
use common::calls::Calls;
use common::client::{End, Failure};
use common::requests::{Request, continuation, kinds};
use common::shop::{Shop, code, content};
use common::{Raise, chat, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A line that a worker crashes of where a tenant's code logs it: the first word of `flood-log`.
const CRASH: (&str, &str) = ("REALM_TEST_CRASH_LOG", "flood");
/// A token that no innocent request holds or may draw.
const POISON: u64 = 1777;

fn answered(program: &str, args: Value) -> Value {
    let mut body = chat("Tell me a story.");
    for (field, value) in [
        ("model", json!(program)),
        ("program", json!({"args": args})),
        ("seed", json!(11)),
        ("max_tokens", json!(60)),
    ] {
        body[field] = value;
    }
    body
}

fn streamed(mut body: Value) -> Request {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (name, path) = (body["model"].to_string(), "/v1/chat/completions");
    Request { name, path, body }
}

fn steered(processor: &str, args: Value) -> Request {
    let request = kinds(3, 60).swap_remove(1);
    request.with("processor", json!({"name": processor, "args": args}))
}

fn crashed(end: End) {
    let End::Failed(Failure { code, .. }) = end else {
        panic!("{end:?}");
    };
    assert_eq!(code, "worker_crashed");
}

fn quarantined(shop: &Shop) -> f64 {
    shop.server.metric("realm_programs_quarantined")
}

fn deaths(shop: &Shop) -> f64 {
    shop.server.metric("realm_worker_ends_total")
}

/// Requests of models, programs and processors are answered as always while `crash` has workers crashed.
fn among_innocents(shop: &Shop, crash: impl FnOnce()) {
    let innocents = [
        streamed(answered("chat", Value::Null)),
        streamed(answered("best-of", json!({"n": 3}))),
        steered("guard", json!({"patterns": ["zz"]})),
        kinds(3, 60).swap_remove(0),
    ];
    let server = &shop.server;
    let alone: Vec<_> = innocents
        .iter()
        .map(|request| server.ask(request))
        .collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (request, alone) in innocents.iter().zip(&alone) {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Acquire) {
                    assert_eq!(&server.ask(request), alone, "{}", request.name);
                }
            });
        }
        let _over = Raise(&over);
        let running = || server.metric("vllm:num_requests_running") > 1.0;
        wait_until("they are under way", running);
        crash();
    });
}

#[test]
fn a_program_that_crashes_its_worker_is_not_run_again() {
    let shop = Shop::open_with(&["program-script", "chat", "best-of", "guard"], &[CRASH]);
    let ask = |steps: Value| {
        let body = answered("program-script", steps);
        shop.server.post("/v1/chat/completions", &body)
    };
    let crash = json!([{"new": {}}, {"speak": [0, 3]}, {"log": ["flood", 1]}]);
    among_innocents(&shop, || {
        let body = answered("program-script", crash.clone());
        crashed(shop.server.ask_with(&streamed(body), |_| {}));
        wait_until("it is in quarantine", || quarantined(&shop) == 1.0);
    });
    let ended = deaths(&shop);
    assert!((2.0..=4.0).contains(&ended), "{ended}");
    // No request for it comes near a worker any more, whatever it asks for.
    let refused = ask(json!([]));
    assert_eq!(code(&refused), (422, "program_quarantined".into()));
    assert!(
        refused.body.contains("push another version"),
        "{}",
        refused.body
    );
    assert_eq!(
        shop.server.logged(&["crashes workers", "program-script"]),
        1
    );
    // Nor under another name.
    assert_eq!(shop.push("again", "program-script").status, 200);
    let body = answered("again", json!([]));
    let refused = shop.server.post("/v1/chat/completions", &body);
    assert_eq!(code(&refused), (422, "program_quarantined".into()));
    // Another version is another program.
    assert_eq!(shop.push("program-script", "chat").status, 200);
    content(&ask(Value::Null));
    assert_eq!((deaths(&shop), quarantined(&shop)), (ended, 1.0));
    // Whoever runs the server sees which it was, and can have it run again.
    let held = || -> Value {
        let held = shop.server.admin("/admin/quarantine");
        serde_json::from_str(&held.body).expect("JSON")
    };
    let all = held();
    let [version] = all["programs"].as_array().expect("a list").as_slice() else {
        panic!("{all}");
    };
    assert_eq!(version["program"], "program-script", "{all}");
    let [tenant, sha256] = ["tenant", "sha256"].map(|part| version[part].as_str().expect("text"));
    let lift = |version: &str| {
        let path = format!("/admin/quarantine/{version}");
        shop.server.admin_delete(&path).status
    };
    assert_eq!(lift(&format!("{tenant}/{}", "0".repeat(64))), 404);
    assert_eq!(lift(&format!("{tenant}/{sha256}")), 200);
    assert_eq!(lift(&format!("{tenant}/{sha256}")), 404);
    assert_eq!((held(), quarantined(&shop)), (json!({"programs": []}), 0.0));
    let body = answered("again", json!([{"new": {}}, {"speak": [0, 3]}]));
    content(&shop.server.post("/v1/chat/completions", &body));
}

/// Before it asks for a token: then no sequence is there to be suspected.
#[test]
fn a_program_that_crashes_its_worker_at_once_is_found_all_the_same() {
    let shop = Shop::open_with(&["program-script", "chat", "best-of", "guard"], &[CRASH]);
    among_innocents(&shop, || {
        let body = answered("program-script", json!([{"log": ["flood", 1]}]));
        crashed(shop.server.ask_with(&streamed(body), |_| {}));
        wait_until("it is in quarantine", || quarantined(&shop) == 1.0);
    });
    let ended = deaths(&shop);
    assert!((2.0..=4.0).contains(&ended), "{ended}");
}

#[test]
fn a_processor_that_crashes_its_worker_is_not_run_again() {
    a_processor_is_found(&[CRASH]);
}

/// While the worker answers steps that wait for it, one after the other.
#[test]
fn a_processor_that_crashes_its_worker_late_is_found_all_the_same() {
    a_processor_is_found(&[CRASH, ("REALM_TEST_CRASH_DELAY", "60")]);
}

fn a_processor_is_found(crash: &[(&str, &str)]) {
    let shop = Shop::open_with(&["flood-log", "chat", "best-of", "guard"], crash);
    let crash = steered("flood-log", json!({"lines": 1}));
    among_innocents(&shop, || {
        crashed(shop.server.ask_with(&crash, |_| {}));
        // Its tokens are computed without it, and the worker lives.
        wait_until("it is in quarantine", || quarantined(&shop) == 1.0);
    });
    let ended = deaths(&shop);
    assert!((2.0..=3.0).contains(&ended), "{ended}");
    let End::Failed(refused) = shop.server.ask_with(&crash, |_| {}) else {
        panic!("it is answered");
    };
    assert_eq!(
        (refused.status, &*refused.code),
        (422, "program_quarantined")
    );
    assert_eq!(deaths(&shop), ended);
}

/// Where the gateway sees no more of a worker's end than that it hangs up, the worker has said why.
#[test]
fn a_program_that_crashes_attached_workers_is_not_run_again() {
    let kept = Kept::start(&[CRASH]);
    let programs = ["program-script", "flood-log", "chat", "best-of", "guard"];
    let shop = Shop::serving(&programs, &[&kept.attach], &[]);
    among_innocents(&shop, || {
        let crash = json!([{"new": {}}, {"speak": [0, 3]}, {"log": ["flood", 1]}]);
        let body = answered("program-script", crash);
        crashed(shop.server.ask_with(&streamed(body), |_| {}));
        wait_until("it is in quarantine", || quarantined(&shop) == 1.0);
    });
    let refused = answered("program-script", json!([]));
    let refused = shop.server.post("/v1/chat/completions", &refused);
    assert_eq!(code(&refused), (422, "program_quarantined".into()));
    let flood = steered("flood-log", json!({"lines": 1}));
    crashed(shop.server.ask_with(&flood, |_| {}));
    wait_until("it is in quarantine", || quarantined(&shop) == 2.0);
}

/// What kills workers is the prompt, which is computed once more, without the processor.
#[test]
fn a_processor_is_not_to_blame_for_the_tokens_that_it_steers() {
    let poison = POISON.to_string();
    let shop = Shop::open_with(&["choice"], &[("REALM_TEST_CRASH_TOKEN", &poison)]);
    let choices = json!({"name": "choice", "args": {"choices": ["one", "two"]}});
    let poisonous = continuation("poison", &[5, POISON, 6], 8).with("processor", choices.clone());
    crashed(shop.server.ask_with(&poisonous, |_| {}));
    wait_until("its tokens are found", || {
        deaths(&shop) == 3.0 && shop.server.admin("/ready").status == 200
    });
    assert_eq!(quarantined(&shop), 0.0);
    let harmless = continuation("harmless", &[5, 6], 8).with("processor", choices);
    let text = &shop.server.ask(&harmless).choices[&0].text;
    assert!(["one", "two"].contains(&text.trim()), "{text}");
}

/// Whoever ends workers from outside, a system without memory for one, shows nothing of what runs in them.
#[test]
fn a_program_is_not_to_blame_for_workers_that_others_end() {
    let calls = Deadly::new();
    let shop = Shop::open_with(&["chat"], &[calls.variable()]);
    is_not_to_blame(&shop, &calls);
}

#[test]
fn a_program_is_not_to_blame_for_attached_workers_that_others_end() {
    let calls = Deadly::new();
    let kept = Kept::start(&[calls.variable()]);
    let shop = Shop::serving(&["chat"], &[&kept.attach], &[]);
    is_not_to_blame(&shop, &calls);
    // A restart by whoever runs it, and what systemd does if a worker says nothing for too long.
    for signal in [Signal::SIGTERM, Signal::SIGABRT] {
        let chat = streamed(answered("chat", Value::Null));
        let undisturbed = shop.server.ask(&chat);
        let end = shop.server.ask_with(&chat, |chunks| {
            if chunks == 5 {
                kept.end(signal);
            }
        });
        assert_eq!(end.finished(), undisturbed);
    }
    assert_eq!(quarantined(&shop), 0.0);
}

/// Calls of its host that kill a worker.
struct Deadly {
    path: String,
    calls: Calls,
    _folder: tempfile::TempDir,
}

impl Deadly {
    fn new() -> Self {
        let _folder = tempfile::tempdir().expect("a folder");
        let path = _folder.path().join("calls");
        Deadly {
            path: path.to_str().expect("UTF-8").to_owned(),
            calls: Calls::new(&path),
            _folder,
        }
    }

    fn variable(&self) -> (&str, &str) {
        ("REALM_TEST_CRASH_CALL", &self.path)
    }
}

/// Has three workers killed where the program `chat` is.
fn is_not_to_blame(shop: &Shop, Deadly { calls, .. }: &Deadly) {
    let chat = streamed(answered("chat", Value::Null));
    let undisturbed = shop.server.ask(&chat);
    calls.set(4);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| shop.server.ask_with(&chat, |_| {}));
        // The next two are killed, too, where the program is alone and does again what it did.
        for _ in 0..2 {
            wait_until("a worker is killed", || calls.left() == 0);
            calls.set(4);
        }
        crashed(asked.join().expect("no panic"));
    });
    wait_until("all are replaced", || {
        deaths(shop) == 3.0 && shop.server.admin("/ready").status == 200
    });
    assert_eq!(quarantined(shop), 0.0);
    assert_eq!(shop.server.ask(&chat), undisturbed);
}
