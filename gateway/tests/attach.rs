//! `realm serve` attached to a worker that somebody else started.

mod common;

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use common::attached::{Worker, place};
use common::{Server, completion, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn seeded(tokens: u32) -> Value {
    json!({
        "model": "realm-tiny", "prompt": "Once upon a time", "max_tokens": tokens,
        "min_tokens": tokens, "temperature": 0.9, "seed": 7, "logprobs": 1, "stream": true
    })
}

/// State and reason of the one model.
fn state(server: &Server) -> (String, String) {
    let ready = server.admin("/ready").json();
    let text = |key: &str| {
        ready["models"]["realm-tiny"][key]
            .as_str()
            .map(str::to_owned)
    };
    (
        text("state").unwrap_or_default(),
        text("reason").unwrap_or_default(),
    )
}

fn wait_for_reason(server: &Server, part: &str) {
    wait_until(&format!("the model is restarting: {part}"), || {
        let (state, reason) = state(server);
        state == "restarting" && reason.contains(part)
    });
}

#[test]
fn the_next_gateway_goes_on_with_the_same_worker() {
    let (_folder, socket, attach) = place();
    let worker = Worker::start(&socket, 600);
    let first = Server::start(&[&attach]);
    assert!(
        common::census::children(first.pid()).is_empty(),
        "it has spawned a worker"
    );
    common::confined::assert_confined(worker.pid());
    let mode = std::fs::metadata(&socket)
        .expect("there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let (undisturbed, _) = first.stream("/v1/completions", &seeded(200), |_| {});

    let chunks = first.lines("/v1/completions", &seeded(200));
    let chunks = chunks
        .map_while(Result::ok)
        .filter(|line| line.starts_with("data: "));
    assert_eq!(chunks.take(50).count(), 50);
    first.signal(Signal::SIGKILL);
    first.wait();

    let start = Instant::now();
    let second = Server::start(&[&attach]);
    println!(
        "ready {} ms after the start of a new gateway",
        start.elapsed().as_millis()
    );
    let (text, _) = second.stream("/v1/completions", &seeded(200), |_| {});
    assert_eq!(text, undisturbed);
    assert!(worker.has_ended().is_none());
    assert_eq!(worker.says("the model is loaded"), 1);

    // A gateway that is asked to end leaves it running too.
    second.signal(Signal::SIGTERM);
    assert!(second.wait().success());
    wait_until("the worker knows", || worker.says("is gone") == 2);
    assert!(worker.has_ended().is_none());
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.wait().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn a_worker_ends_when_no_gateway_comes_in_time() {
    let (_folder, socket, attach) = place();
    let worker = Worker::start(&socket, 1);
    let server = Server::start(&[&attach]);
    assert!(worker.has_ended().is_none());
    server.signal(Signal::SIGKILL);
    server.wait();
    assert!(worker.wait().success());
    // What it leaves is no hindrance to the next one.
    assert!(socket.exists(), "a confined worker deletes nothing");
    let _next = Worker::start(&socket, 600);
    Server::start(&[&attach]);
}

#[test]
fn streams_go_on_with_the_next_worker() {
    let (_folder, socket, attach) = place();
    // A gateway that is there first waits for its worker.
    let server = Server::launch(&[&attach, "--step-timeout", "10"], &[]);
    wait_for_reason(&server, "no worker listens at");
    let worker = RefCell::new(Worker::start(&socket, 600));
    wait_until("the server is ready", || state(&server).0 == "ready");
    let (undisturbed, _) = server.stream("/v1/completions", &seeded(200), |_| {});
    // It is killed; and one that does not move is ended, for somebody to start another.
    for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
        let (disturbed, finish) = server.stream("/v1/completions", &seeded(200), |chunks| {
            if chunks == 50 {
                worker.borrow().signal(signal);
                let status = worker.borrow().wait();
                assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
                wait_for_reason(&server, "no worker listens at");
                assert!(socket.exists(), "what a dead worker leaves is replaced");
                worker.replace(Worker::start(&socket, 600));
            }
        });
        assert_eq!(disturbed, undisturbed, "{signal}");
        assert_eq!(finish, "length", "{signal}");
    }
}

#[test]
fn one_gateway_is_served_at_a_time() {
    let (_folder, socket, attach) = place();
    let worker = Worker::start(&socket, 600);
    let first = Server::start(&[&attach]);
    let second = Server::launch(&[&attach], &[]);
    wait_for_reason(&second, "is attached to this worker already");
    let answer = first.post("/v1/completions", &completion("Hi"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    first.signal(Signal::SIGKILL);
    first.wait();
    wait_until("the second is ready", || state(&second).0 == "ready");
    let answer = second.post("/v1/completions", &completion("Hi"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(worker.has_ended().is_none());
}

#[test]
fn a_place_that_is_taken_is_left_alone() {
    let (folder, socket, _) = place();
    let worker = Worker::start(&socket, 600);
    wait_until("it listens", || socket.exists());
    let other = Worker::start(&socket, 600);
    assert_eq!(other.wait().code(), Some(1));
    wait_until("it has said why", || other.says("listens on") == 1);
    assert!(socket.exists() && worker.has_ended().is_none());

    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "keep").expect("written");
    let other = Worker::start(&file, 600);
    assert_eq!(other.wait().code(), Some(1));
    wait_until("it has said why", || other.says("is no socket") == 1);
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "keep");
}
