//! Another version of a model takes the place of the one that is served, and nobody notices.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::census::{Census, children, is_running};
use common::requests::{Request, continuation, kinds};
use common::{Answer, Server, chat, completion, setting, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Swaps that an ordinary run makes under load.
const ROUNDS: u64 = 3;
/// Two versions are in memory at once, so neither may take much of it.
const SMALL: [&str; 2] = ["--kv-memory", "64MiB"];

fn swap(server: &Server, source: Option<&Path>) -> Answer {
    let body = source.map_or_else(|| json!({}), |source| json!({"source": source}));
    server.admin_post("/admin/models/realm-tiny/swap", &body)
}

/// What the admin API says of the model.
fn status(server: &Server) -> Value {
    server.admin("/admin/models").json()["models"][0].take()
}

/// Waits until the served version is the only one, and returns its worker.
fn settled(server: &Server) -> Pid {
    wait_until("one version is left", || {
        let status = status(server);
        status["incoming"].is_null() && status["draining"] == json!([])
    });
    // The worker of a version that was given up is killed at once, and reaped a moment later.
    wait_until("one worker is left", || children(server.pid()).len() == 1);
    server.worker_pid()
}

/// A directory with the embedded model, to be changed.
fn copy_of_the_model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    for file in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(from.join(file), dir.path().join(file)).expect("copied");
    }
    dir
}

fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(file);
    let mut json = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
    change(&mut json);
    std::fs::write(path, json.to_string()).expect("written");
}

/// A worker that does not start while a file is there.
struct Gate {
    dir: tempfile::TempDir,
}

impl Gate {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let gate = Gate { dir };
        let worker = Path::new(env!("CARGO_BIN_EXE_realm")).with_file_name("realm-worker");
        let script = format!(
            "#!/bin/sh\nwhile [ -e '{}' ]; do sleep 0.02; done\nexec '{}' \"$@\"\n",
            gate.bar().display(),
            worker.display()
        );
        std::fs::write(gate.worker(), script).expect("written");
        std::fs::set_permissions(gate.worker(), std::fs::Permissions::from_mode(0o755))
            .expect("made executable");
        gate
    }

    fn worker(&self) -> PathBuf {
        self.dir.path().join("worker")
    }

    fn bar(&self) -> PathBuf {
        self.dir.path().join("closed")
    }

    fn close(&self) {
        std::fs::write(self.bar(), "").expect("written");
    }

    fn open(&self) {
        std::fs::remove_file(self.bar()).expect("removed");
    }

    fn server(&self) -> Server {
        let worker = self.worker();
        let worker = worker.to_str().expect("UTF-8");
        Server::start(&[&SMALL[..], &["--worker", worker]].concat())
    }
}

/// `realm models …` for that server.
fn realm_models(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realm"));
    command.arg("models").args(args);
    command.args(["--admin-addr", server.admin_address()]);
    command.stdin(Stdio::null());
    command
}

/// Its exit code, standard output and standard error.
fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn swaps_under_load_fail_no_request() {
    let rounds = setting("REALM_TEST_ROUNDS", ROUNDS);
    let server = Server::start(&SMALL);
    let requests: Vec<Request> = kinds(3, 60)
        .into_iter()
        .flat_map(|request| [request.clone(), request.whole()])
        .collect();
    let expected: Vec<_> = requests.iter().map(|r| server.ask(r)).collect();
    let before = Census::of(server.pid());
    let first = server.worker_pid();

    let (over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut drained = 0;
    std::thread::scope(|scope| {
        for (request, expected) in requests.iter().zip(&expected) {
            let (server, over, answers) = (&server, &over, &answers);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(server.ask(request), *expected, "{}", request.name);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Clients that wait for ever would hide a panic in this thread.
        let over = Over(&over);
        for round in 0..rounds {
            let answer = swap(&server, None);
            assert_eq!(answer.status, 200, "round {round}: {}", answer.body);
            let now = answer.json();
            assert_eq!(now["state"], "ready", "{now}");
            let draining = now["draining"].as_array().expect("a list").iter();
            let live = draining.filter_map(|version| version["live_sequences"].as_u64());
            drained += live.sum::<u64>();
        }
        drop(over);
    });
    let answers = answers.into_inner();
    println!(
        "swap: {rounds} swaps, {answers} requests, 0 failed; sequences that met a swap: {drained}"
    );
    assert!(drained > 0, "no request met a swap");

    assert_ne!(settled(&server), first);
    assert!(!is_running(first), "the first worker still runs");
    wait_until("nothing is held of the versions before", || {
        Census::of(server.pid()).is_within(&before)
    });
    for gauge in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
    ] {
        assert_eq!(server.metric(gauge), 0.0, "{gauge}");
    }
    assert_eq!(server.metric("vllm:cache_config_info"), 1.0, "one series");
    for counter in [
        "realm_worker_ends_total",
        "realm_sequences_failed_total",
        "realm_sequences_cancelled_total",
    ] {
        assert_eq!(server.metric(counter), 0.0, "{counter}");
    }
    assert_eq!(
        server.metric("realm_sequences_admitted_total"),
        server.metric("vllm:request_success_total")
    );
}

/// Says so when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_request_keeps_the_text_side_that_it_began_with() {
    // The same weights spell every ordinary token otherwise, and its chats begin otherwise.
    let other = copy_of_the_model();
    edit(other.path(), "tokenizer.json", |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().expect("a map");
        let (low, high) = (300, vocab.len() as u64);
        for id in vocab.values_mut() {
            match id.as_u64().expect("an id") {
                old if old >= low => *id = json!(low + (old - low + 1) % (high - low)),
                _ => {}
            }
        }
    });
    edit(other.path(), "tokenizer_config.json", |config| {
        config["chat_template"] = json!("{{ bos_token }}{{ messages[0]['content'] }}");
    });

    let server = Server::start(&[&SMALL[..], &["--step-timeout", "600"]].concat());
    let request = continuation("over a swap", &[500, 600, 700], 200)
        .with("temperature", json!(0))
        .with("logprobs", json!(1));
    let undisturbed = server.ask(&request);
    let chat_tokens = || {
        let answer = server.post("/v1/chat/completions", &chat("Hello!"));
        answer.json()["usage"]["prompt_tokens"]
            .as_u64()
            .expect("a count")
    };
    let as_before = chat_tokens();

    let old = server.worker_pid();
    let during = server.ask_with(&request, |chunks| {
        if chunks == 20 {
            // So that the stream is not over before the swap is.
            kill(old, Signal::SIGSTOP).expect("stops the worker");
            let answer = swap(&server, Some(other.path()));
            assert_eq!(answer.status, 200, "{}", answer.body);
            let now = answer.json();
            assert_eq!(now["source"], json!(other.path()));
            assert_eq!(now["draining"][0]["live_sequences"], 1, "{now}");
            assert_eq!(now["draining"][0]["source"], "embedded");
            assert_ne!(chat_tokens(), as_before);
            assert!(is_running(old));
            kill(old, Signal::SIGCONT).expect("continues the worker");
        }
    });
    assert_eq!(during.finished(), undisturbed);
    assert_ne!(settled(&server), old);
    let tokens = |answer: &common::client::Transcript| answer.choices[&0].text.clone();
    assert_ne!(tokens(&server.ask(&request)), tokens(&undisturbed));

    let answer = swap(&server, Some(Path::new("embedded")));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(server.ask(&request), undisturbed);
    assert_eq!(chat_tokens(), as_before);
}

#[test]
fn a_worker_may_die_while_its_version_drains() {
    let server = Server::start(&[&SMALL[..], &["--step-timeout", "600"]].concat());
    let request = continuation("over a swap", &[500, 600, 700], 200).with("seed", json!(5));
    let undisturbed = server.ask(&request);
    let old = server.worker_pid();
    let during = server.ask_with(&request, |chunks| {
        if chunks == 20 {
            kill(old, Signal::SIGSTOP).expect("stops the worker");
            assert_eq!(swap(&server, None).status, 200);
            kill(old, Signal::SIGKILL).expect("kills the worker");
        }
    });
    assert_eq!(during.finished(), undisturbed);
    settled(&server);
    assert_eq!(
        server.metric("realm_worker_ends_total"),
        1.0,
        "unloading is no end"
    );
}

#[test]
fn gauges_tell_when_there_is_no_worker() {
    let gate = Gate::new();
    let server = gate.server();
    let request = continuation("over a death", &[500, 600, 700], 200);
    let gauges = || {
        let names = ["vllm:num_requests_running", "vllm:num_requests_waiting"];
        names.map(|name| server.metric(name))
    };
    server.ask_with(&request, |chunks| {
        if chunks == 20 {
            gate.close();
            server.kill_worker(Signal::SIGKILL);
            wait_until("the sequence waits", || gauges() == [0.0, 1.0]);
            assert_eq!(server.metric("vllm:kv_cache_usage_perc"), 0.0);
            gate.open();
        }
    });
    wait_until("nothing is left", || gauges() == [0.0, 0.0]);
}

#[test]
fn a_version_that_cannot_be_loaded_leaves_all_as_it_was() {
    let server = Server::start(&SMALL);
    let worker = server.worker_pid();
    let no_weights = copy_of_the_model();
    std::fs::write(no_weights.path().join("model.safetensors"), "nothing").expect("written");
    let no_tokenizer = copy_of_the_model();
    std::fs::remove_file(no_tokenizer.path().join("tokenizer.json")).expect("removed");
    for (source, words) in [
        (Path::new("/no/such/place"), "/no/such/place"),
        (no_weights.path(), "model.safetensors"),
        (no_tokenizer.path(), "tokenizer.json is missing"),
    ] {
        let answer = swap(&server, Some(source));
        assert_eq!(answer.status, 422, "{}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "model_not_loaded", "{error}");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains(words), "{message}");
        assert_eq!(status(&server)["source"], "embedded");
        assert_eq!(
            server.post("/v1/completions", &completion("Hi")).status,
            200
        );
    }
    assert_eq!(settled(&server), worker);
    assert_eq!(
        server.metric("realm_worker_ends_total"),
        1.0,
        "of the one without weights"
    );
}

#[test]
fn one_swap_at_a_time_and_it_ends_with_its_caller() {
    let gate = Gate::new();
    let server = gate.server();
    let worker = server.worker_pid();
    gate.close();
    let mut caller = realm_models(&server, &["swap", "realm-tiny"]);
    let mut caller = caller.stderr(Stdio::piped()).spawn().expect("realm starts");
    let mut stderr = BufReader::new(caller.stderr.take().expect("piped"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("readable");
    assert_eq!(line, "embedded: loading, 0 %\n");
    assert_eq!(status(&server)["incoming"]["state"], "loading");
    let second = swap(&server, None);
    assert_eq!(
        (second.status, second.json()["error"]["code"].clone()),
        (409, json!("swap_under_way"))
    );
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        200
    );

    caller.kill().expect("killed");
    caller.wait().expect("reaped");
    assert_eq!(settled(&server), worker);
    gate.open();
    let answer = swap(&server, None);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_ne!(settled(&server), worker);
}

#[test]
fn a_swap_repairs_a_model_that_failed() {
    let dir = copy_of_the_model();
    let model = format!("realm-tiny={}", dir.path().display());
    let server = Server::start(&[&SMALL[..], &["--model", &model]].concat());
    std::fs::remove_file(dir.path().join("model.safetensors")).expect("removed");
    server.kill_worker(Signal::SIGKILL);
    wait_until("the model has failed", || {
        status(&server)["state"] == "failed"
    });
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        503
    );
    assert_eq!(swap(&server, None).status, 422);
    assert_eq!(status(&server)["state"], "failed");

    let answer = swap(&server, Some(Path::new("embedded")));
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        server.post("/v1/completions", &completion("Hi")).status,
        200
    );
    assert_eq!(server.admin("/ready").status, 200);
    settled(&server);
}

#[test]
fn the_command_lists_and_swaps() {
    let server = Server::start(&SMALL);
    let run = |args: &[&str]| said(realm_models(&server, args).output().expect("realm runs"));
    let (code, out, _) = run(&["list"]);
    assert_eq!(code, Some(0));
    assert!(
        out.starts_with("realm-tiny: ready, from embedded, f32 on cpu"),
        "{out}"
    );
    let (code, out, _) = run(&["list", "--json"]);
    assert_eq!(code, Some(0));
    let listed: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(listed, server.admin("/admin/models").json());

    let dir = copy_of_the_model();
    let place = dir.path().to_str().expect("UTF-8");
    let (code, out, _) = run(&["swap", "realm-tiny", place]);
    assert_eq!(
        (code, out),
        (Some(0), format!("realm-tiny now comes from {place}\n"))
    );
    assert!(run(&["list"]).1.contains(place));
    // A relative path is the caller's.
    let mut from_inside = realm_models(&server, &["swap", "realm-tiny", "."]);
    let output = from_inside
        .current_dir(dir.path())
        .output()
        .expect("realm runs");
    assert_eq!(said(output).0, Some(0));
    assert_eq!(status(&server)["source"], place);

    let (code, out, error) = run(&["swap", "nobody"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        error.contains("error:") && error.contains("`nobody`"),
        "{error}"
    );
    let (code, _, error) = run(&["swap", "realm-tiny", "/no/such/place"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("/no/such/place"), "{error}");
    settled(&server);

    let address = server.admin_address().to_owned();
    drop(server);
    let mut command = Command::new(env!("CARGO_BIN_EXE_realm"));
    let output = command
        .args(["models", "list", "--admin-addr", &address])
        .output();
    let (code, _, error) = said(output.expect("realm runs"));
    assert_eq!(code, Some(1));
    assert!(
        error.contains(&address) && error.contains("realm serve"),
        "{error}"
    );
}

#[test]
fn only_what_a_program_sends_is_obeyed() {
    let server = Server::start(&SMALL);
    let worker = server.worker_pid();
    let address = server.admin_address();
    let json = "application/json";
    let cases = [
        ("127.0.0.1", json, "Origin: http://evil.example", 403),
        ("evil.example", json, "", 403),
        ("127.0.0.1", "text/plain", "", 415),
        ("localhost", json, "", 400),
    ];
    for (host, media_type, header, status) in cases {
        let mut stream = TcpStream::connect(address).expect("connects");
        // The body is no swap, for the case that nothing else refuses.
        write!(
            stream,
            "POST /admin/models/realm-tiny/swap HTTP/1.1\r\nHost: {host}\r\nContent-Type: {media_type}\r\n\
             Content-Length: 1\r\nConnection: close\r\n{header}{}\r\n{{",
            if header.is_empty() { "" } else { "\r\n" }
        )
        .expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
    }
    let post = |path: &str, body: Value| server.admin_post(path, &body).status;
    let path = "/admin/models/realm-tiny/swap";
    assert_eq!(post(path, json!({"surprise": 1})), 400);
    assert_eq!(post(path, json!({"source": "x".repeat(70_000)})), 413);
    assert_eq!(post("/admin/models/nobody/swap", json!({})), 404);
    assert_eq!(post("/admin/models/realm-tiny", json!({})), 404);
    assert_eq!(post("/admin/models", json!({})), 405);
    assert_eq!(server.admin(path).status, 405);
    assert_eq!(children(server.pid()), [worker]);
}
