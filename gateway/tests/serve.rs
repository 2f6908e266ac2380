//! `realm serve` with a real worker and the embedded model, over sockets.

mod common;

use common::census::is_running;
use common::{Server, chat, completion};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn answers_and_shows_its_health() {
    let server = Server::start(&[]);
    let answer = server.post("/v1/chat/completions", &chat("Hello!"));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert!(
        body["choices"][0]["message"]["content"]
            .as_str()
            .is_some_and(|s| !s.is_empty()),
        "{body}"
    );
    assert_eq!(server.admin("/health").status, 200);
    assert_eq!(server.admin("/ready").json()["ready"], true);
    let metrics = server.admin("/metrics").body;
    assert!(
        metrics.contains("vllm:generation_tokens_total{model_name=\"realm-tiny\"}"),
        "{metrics}"
    );
}

/// As models of the Hugging Face hub are called. Clients differ in how they write that into a path.
#[test]
fn a_models_name_may_have_a_slash() {
    let server = Server::start(&["--model", "org/name=embedded"]);
    for path in ["/v1/models/org/name", "/v1/models/org%2Fname"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        assert_eq!(answer.json()["id"], "org/name");
    }
    for path in [
        "/v1/models/org%252Fname",
        "/v1/models/org",
        "/v1/models/%FF",
    ] {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
        assert_eq!(answer.json()["error"]["code"], "model_not_found");
    }
}

#[test]
fn a_stream_survives_the_death_of_its_worker() {
    let server = Server::start(&[]);
    let request = json!({
        "model": "realm-tiny", "prompt": "Once upon a time", "max_tokens": 200, "min_tokens": 200,
        "temperature": 0.9, "seed": 7, "logprobs": 1, "stream": true
    });
    let (undisturbed, _) = server.stream("/v1/completions", &request, |_| {});
    let killed = std::cell::Cell::new(false);
    let (disturbed, finish) = server.stream("/v1/completions", &request, |chunks| {
        if chunks == 50 {
            server.kill_worker(Signal::SIGKILL);
            killed.set(true);
        }
    });
    assert!(killed.get(), "the stream was too short to be disturbed");
    assert_eq!(disturbed, undisturbed);
    assert_eq!(finish, "length");
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        200
    );
}

#[test]
fn a_worker_that_stands_still_is_replaced_though_nobody_asks_it_for_anything() {
    let server = Server::start(&[]);
    let stopped = server.worker_pid();
    server.kill_worker(Signal::SIGSTOP);
    common::wait_until("another worker is there", || {
        let workers = common::census::children(server.pid());
        !workers.is_empty() && !workers.contains(&stopped)
    });
    let answer = server.post("/v1/completions", &completion("Hi"));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn sixty_four_streams_are_each_what_they_are_alone() {
    let server = Server::start(&[]);
    let request = |i: usize| {
        json!({
            "model": "realm-tiny", "prompt": format!("Number {i} is"), "max_tokens": 20 + i, "min_tokens": 20,
            "temperature": 1.0, "seed": i, "stream": true
        })
    };
    let together: Vec<String> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..64)
            .map(|i| {
                let server = &server;
                scope.spawn(move || server.stream("/v1/completions", &request(i), |_| {}).0)
            })
            .collect();
        handles
            .into_iter()
            .map(|h| h.join().expect("a stream ends well"))
            .collect()
    });
    for (i, text) in together.iter().enumerate() {
        let (alone, _) = server.stream("/v1/completions", &request(i), |_| {});
        assert_eq!(&alone, text, "stream {i}");
    }
}

#[test]
fn sigterm_lets_running_requests_finish() {
    let server = Server::start(&[]);
    let request = json!({
        "model": "realm-tiny", "prompt": "One", "max_tokens": 300, "min_tokens": 300, "stream": true
    });
    let (text, finish) = server.stream("/v1/completions", &request, |chunks| {
        if chunks == 5 {
            server.signal(Signal::SIGTERM);
        }
    });
    assert!(!text.is_empty());
    assert_eq!(finish, "length");
    assert!(server.wait().success());
}

#[test]
fn the_worker_does_not_outlive_its_gateway() {
    let server = Server::start(&[]);
    let worker = server.worker_pid();
    server.signal(Signal::SIGKILL);
    server.wait();
    common::wait_until("the worker has ended", || !is_running(worker));
}

#[test]
fn a_broken_model_is_an_error_at_start() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let model = dir.path().join("empty");
    std::fs::create_dir(&model).expect("creates");
    let (status, stderr) = common::fail_to_start(&["--model", model.to_str().expect("UTF-8")]);
    assert!(!status.success());
    assert!(
        stderr.contains("empty") && stderr.contains("error:"),
        "{stderr}"
    );
}

#[test]
fn a_port_in_use_is_an_error_at_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = taken
        .local_addr()
        .expect("has an address")
        .port()
        .to_string();
    let (status, stderr) = common::fail_to_start(&["--port", &port]);
    assert!(!status.success());
    assert!(stderr.contains("--port"), "{stderr}");
}

#[test]
fn many_choices_with_many_biases_fit() {
    let server = Server::start(&[]);
    let bias: serde_json::Map<_, _> = (0..1024).map(|id| (id.to_string(), json!(0.5))).collect();
    let request = json!({
        "model": "realm-tiny", "prompt": [5], "max_tokens": 2, "n": 128, "logit_bias": bias
    });
    let worker = server.worker_pid();
    let answer = server.post("/v1/completions", &request);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["choices"].as_array().map(Vec::len), Some(128));
    assert_eq!(server.worker_pid(), worker, "the worker was replaced");
}

#[test]
fn a_prompt_that_was_read_before_is_not_read_again() {
    let server = Server::start(&[]);
    let text = "The quick brown fox jumps over the lazy dog. ".repeat(8);
    let ask = |text: &str, n: usize| {
        let answer = server.post(
            "/v1/completions",
            &json!({
                "model": "realm-tiny", "prompt": text, "max_tokens": 24, "min_tokens": 24,
                "temperature": 1.0, "seed": 3, "logprobs": 2, "n": n
            }),
        );
        let mut body = answer.json();
        let cached = body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        let tokens = body["usage"]["prompt_tokens"].as_u64().expect("a count");
        (body["choices"].take(), cached.expect("a count"), tokens)
    };
    let (cold, cached, tokens) = ask(&text, 3);
    assert_eq!(cached, 0, "nobody asked before");
    let computed = || server.metric("realm_step_tokens_total");
    let before = computed();
    let (warm, cached, _) = ask(&text, 3);
    assert_eq!(warm, cold);
    assert!(tokens - cached <= 16, "{cached} of {tokens}");
    // Of each choice what fills no block, and all but the last token that it generates.
    assert!(computed() - before <= (3 * (16 + 23)) as f64);
    let (other, cached, _) = ask(&format!("No. {text}"), 1);
    assert_eq!(cached, 0, "it begins with something else: {other}");
    assert!(server.metric("vllm:prefix_cache_hits_total") >= 2.0 * (tokens - 16) as f64);
    // Another worker starts with nothing.
    server.kill_worker(Signal::SIGKILL);
    common::wait_until("it is replaced", || {
        server.metric("realm_worker_ends_total") == 1.0 && server.admin("/ready").status == 200
    });
    let (again, cached, _) = ask(&text, 3);
    assert_eq!((again, cached), (cold, 0));
}

#[test]
fn a_request_that_can_never_be_admitted_is_told_so() {
    let server = Server::start(&["--max-queue", "4"]);
    let request = |n| json!({"model": "realm-tiny", "prompt": ["a", "b"], "max_tokens": 1, "n": n});
    assert_eq!(server.post("/v1/completions", &request(2)).status, 200);
    let refused = server.post("/v1/completions", &request(3));
    assert_eq!(
        (refused.status, refused.json()["error"]["param"].clone()),
        (400, "n".into())
    );
}

#[test]
fn bad_input_is_refused_and_the_server_goes_on() {
    let server = Server::start(&[]);
    for (body, status) in [
        ("{", 400),
        ("[]", 400),
        (r#"{"model":"realm-tiny"}"#, 400),
        (r#"{"model":"nobody","prompt":"x"}"#, 404),
        (
            r#"{"model":"realm-tiny","prompt":"x","temperature":1e999}"#,
            400,
        ),
        (
            r#"{"model":"realm-tiny","prompt":"x","max_tokens":-1}"#,
            400,
        ),
        (r#"{"model":"realm-tiny","prompt":[999999999]}"#, 400),
        (r#"{"model":"realm-tiny","prompt":"x","surprise":1}"#, 400),
    ] {
        let answer = server.post_text("/v1/completions", body);
        assert_eq!(answer.status, status, "{body}: {}", answer.body);
        let error = &answer.json()["error"];
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "{body}: {error}");
        }
    }
    let long = "word ".repeat(20_000);
    let answer = server.post("/v1/completions", &completion(&long));
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].clone()),
        (400, Value::from("context_length_exceeded"))
    );
    let huge = "x".repeat(17 << 20);
    assert_eq!(
        server.post("/v1/completions", &completion(&huge)).status,
        413
    );
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        200
    );
}
