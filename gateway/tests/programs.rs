//! Programs of tenants: stored, shown, removed, and loaded again.
//!
//! `cargo xtask programs` makes the components; `REALM_PROGRAMS` says where they are.

mod common;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::place::{Place, Reply, ask};
use common::{Server, chat, wait_until};
use realm_shared::control::COMPILE;
use serde_json::{Value, json};

fn component(name: &str) -> PathBuf {
    let folder = std::env::var("REALM_PROGRAMS");
    let folder = folder.expect("REALM_PROGRAMS is set: run `cargo xtask programs` first");
    Path::new(&folder).join(format!("{name}.wasm"))
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(component(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Sends a request without a key, or with one.
fn call(server: &Server, key: Option<&str>, request: &str, body: &[u8]) -> Reply {
    call_as(server, key, request, "application/wasm", body)
}

fn call_as(
    server: &Server,
    key: Option<&str>,
    request: &str,
    content_type: &str,
    body: &[u8],
) -> Reply {
    let (method, path) = request.split_once(' ').expect("a method and a path");
    let mut request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("http://{}/v1/programs{path}", server.api_address()))
        .header("content-type", content_type);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .build()
        .new_agent();
    let response = match body {
        [] => agent.run(request.body(()).expect("a request")),
        body => agent.run(request.body(body).expect("a request")),
    };
    let mut response = response.expect("the server answers");
    let text = response.body_mut().read_to_string().expect("a body");
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: serde_json::from_str(&text).unwrap_or_else(|_| text.into()),
    }
}

fn outcome(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.code())
}

fn names(list: &Value) -> Vec<&str> {
    assert_eq!(list["object"], "list");
    let programs = list["data"].as_array().expect("programs").iter();
    programs
        .map(|p| p["id"].as_str().expect("a name"))
        .collect()
}

fn realm(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_realm"));
    command.arg("program").args(args);
    command.output().expect("realm runs")
}

fn realm_says(args: &[&str]) -> String {
    let output = realm(args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn tenants_store_programs_of_their_own() {
    let place = Place::new(
        "programs = \"programs\"\nprogram_bytes = \"1MiB\"\n\
         [[tenant]]\nid = \"few\"\nprograms = 1\nrequests_per_minute = 3\n\
         [[tenant]]\nid = \"blind\"\nmodels = [\"x\"]\n",
    );
    let [acme, other, few, blind] = ["acme", "other", "few", "blind"].map(|id| place.key(id));
    let server = place.serve();
    let call = |key: &str, request: &str, body: &[u8]| call(&server, Some(key), request, body);
    let (choice, guard) = (bytes("choice"), bytes("guard"));

    assert_eq!(call("sk-wrong", "GET ", &[]).status, 401);
    let stored = call(&acme, "POST ?name=steer&base=realm-tiny", &choice);
    assert_eq!(stored.status, 200, "{}", stored.body);
    let digest = stored.body["digest"].as_str().expect("a digest").to_owned();
    assert!(digest.starts_with("sha256:") && digest.len() == 71);
    assert!(stored.body["created"].as_i64().expect("a time") > 1_700_000_000);
    let mut expected = json!({
        "id": "steer", "object": "program", "kind": "processor", "base": "realm-tiny",
        "digest": digest, "bytes": choice.len(),
    });
    expected["created"] = stored.body["created"].clone();
    assert_eq!(stored.body, expected);
    assert_eq!(call(&acme, "GET /steer", &[]).body, expected);

    // To others it does not exist.
    assert_eq!(names(&call(&acme, "GET ", &[]).body), ["steer"]);
    assert_eq!(names(&call(&other, "GET ", &[]).body), [""; 0]);
    for request in ["GET /steer", "DELETE /steer"] {
        let reply = call(&other, request, &[]);
        assert_eq!(outcome(&reply), (404, "program_not_found"), "{request}");
    }

    // Another version takes its place.
    let stored = call(&acme, "POST ?name=steer", &guard).body;
    assert_ne!(stored["digest"], digest);
    assert_eq!(stored["base"], Value::Null);
    call(&other, "POST ?name=steer", &choice);
    let deleted = call(&acme, "DELETE /steer", &[]).body;
    let expected = json!({"id": "steer", "object": "program", "deleted": true});
    assert_eq!(deleted, expected);
    let reply = call(&acme, "DELETE /steer", &[]);
    assert_eq!(outcome(&reply), (404, "program_not_found"));
    assert_eq!(call(&other, "GET /steer", &[]).body["digest"], digest);

    // What it may not use has no name that it could not take.
    let blind = call(&blind, "POST ?name=realm-tiny", &choice);
    assert_eq!(blind.status, 200, "{}", blind.body);

    // As many as it may, and as often.
    assert_eq!(call(&few, "POST ?name=a", &choice).status, 200);
    let reply = call(&few, "POST ?name=b", &choice);
    assert_eq!(outcome(&reply), (400, "too_many_programs"));
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(call(&few, "POST ?name=a", &guard).status, 200);
    let reply = call(&few, "POST ?name=a", &guard);
    assert_eq!(outcome(&reply), (429, "rate_limit_exceeded"));
}

#[test]
fn what_cannot_be_stored_is_refused_in_words() {
    let place = Place::new("programs = \"programs\"\nprogram_bytes = \"1MiB\"");
    let key = place.key("acme");
    let server = place.serve();
    let choice = bytes("choice");
    // A module is no component, and a component may lack what it has to export.
    let module = b"\0asm\x01\0\0\0";
    let empty = b"\0asm\x0d\0\x01\0";
    for (request, body, expected, words) in [
        (
            "POST ?name=a",
            &b"junk"[..],
            (400, "invalid_program"),
            "component",
        ),
        (
            "POST ?name=a",
            module,
            (400, "invalid_program"),
            "component",
        ),
        (
            "POST ?name=a",
            empty,
            (400, "invalid_program"),
            "realm:program",
        ),
        ("POST ?name=a", b"", (415, "unsupported_media_type"), "wasm"),
        (
            "POST ?name=a",
            &choice[..choice.len() / 2],
            (400, "invalid_program"),
            "",
        ),
        (
            "POST ?name=a",
            &vec![0; 1 << 20 | 1],
            (413, "program_too_large"),
            "1048576",
        ),
        (
            "POST ?name=a",
            &vec![0; 1 << 20],
            (400, "invalid_program"),
            "component",
        ),
        (
            "POST ",
            &choice,
            (400, "missing_required_parameter"),
            "name",
        ),
        ("POST ?name=..%2Fa", &choice, (400, "invalid_value"), "name"),
        (
            "POST ?name=realm-tiny",
            &choice,
            (400, "invalid_value"),
            "model",
        ),
        (
            "POST ?name=a&base=x",
            &choice,
            (404, "model_not_found"),
            "`x`",
        ),
        (
            "POST ?name=a&tenant=x",
            &choice,
            (400, "unknown_parameter"),
            "tenant",
        ),
        ("GET /..%2F..%2Fkey", b"", (404, "program_not_found"), ""),
        ("GET /a/b", b"", (404, "program_not_found"), "a/b"),
        ("PUT /a", &choice, (405, "method_not_allowed"), "DELETE"),
        ("DELETE ", b"", (405, "method_not_allowed"), "POST"),
    ] {
        let content_type = if body.is_empty() {
            ""
        } else {
            "application/wasm"
        };
        let reply = call_as(&server, Some(&key), request, content_type, body);
        assert_eq!(outcome(&reply), expected, "{request}: {}", reply.body);
        let message = reply.body["error"]["message"].as_str().expect("words");
        assert!(message.contains(words), "{request}: {message}");
    }
    let reply = call_as(
        &server,
        Some(&key),
        "POST ?name=a",
        "application/json",
        &choice,
    );
    assert_eq!(outcome(&reply), (415, "unsupported_media_type"));
    assert_eq!(names(&call(&server, Some(&key), "GET ", &[]).body), [""; 0]);
    for folder in ["components", "compiled"] {
        let left = std::fs::read_dir(place.file("programs").join(folder));
        assert_eq!(left.expect("a folder").count(), 0, "{folder}");
    }
}

#[test]
fn without_a_folder_there_are_no_programs() {
    let server = Server::start(&[]);
    for request in ["GET ", "GET /a", "DELETE /a", "POST ?name=a"] {
        let body: &[u8] = if request.starts_with("POST") {
            b"x"
        } else {
            b""
        };
        let reply = call(&server, None, request, body);
        assert_eq!(outcome(&reply), (404, "programs_disabled"), "{request}");
        let message = reply.body["error"]["message"].as_str().expect("words");
        assert!(message.contains("--programs"), "{message}");
    }
}

#[test]
fn a_folder_and_a_server_are_filled_by_the_same_commands() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let folder = dir.path().join("programs");
    let folder = folder.to_str().expect("UTF-8");
    let file = component("choice");
    let file = file.to_str().expect("UTF-8");

    let said = realm_says(&["push", file, "--name", "choice", "--dir", folder]);
    let digest = said.trim().strip_prefix("choice ").expect("a digest");
    // While a server runs, too: those without a key are the tenant that has no name.
    let server = Server::start(&["--programs", folder]);
    let url = format!("http://{}/v1", server.api_address());
    let listed = realm_says(&["list", "--url", &url]);
    assert!(listed.contains(digest), "{listed}");
    realm_says(&["push", file, "--name", "again", "--url", &url]);
    let listed = realm_says(&["list", "--json", "--dir", folder]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(listed[0]["id"], "again");
    assert_eq!(listed[0]["digest"], listed[1]["digest"]);
    assert_eq!(call(&server, None, "GET ", &[]).body["data"], listed);
    realm_says(&["rm", "choice", "--url", &url]);
    realm_says(&["rm", "again", "--dir", folder]);
    assert_eq!(names(&call(&server, None, "GET ", &[]).body), [""; 0]);
    realm_says(&[
        "push", file, "--name", "x", "--dir", folder, "--tenant", "acme",
    ]);
    assert_eq!(realm_says(&["list", "--url", &url]).lines().count(), 1);

    for (args, words) in [
        (&["check", "Cargo.toml"][..], "no component"),
        (&["rm", "none", "--dir", folder], "`none`"),
        (&["rm", "none", "--url", &url], "`none`"),
        (
            &["push", "Cargo.toml", "--name", "a", "--url", &url],
            "no component",
        ),
        (&["push", "Cargo.toml", "--name", "A", "--url", &url], "a-z"),
        (&["list"], "--dir"),
    ] {
        let output = realm(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn a_component_is_tried_before_it_is_pushed() {
    let file = |name: &str| component(name).to_str().expect("UTF-8").to_owned();
    let [choice, chat, script] = ["choice", "chat", "program-script"].map(file);
    let choices = r#"{"choices": ["quite so"]}"#;
    let said = realm_says(&["check", &choice, "--args", choices]);
    for words in [
        "a processor that can be stored",
        "imports: realm:program/types",
        "exports: realm:program/steering",
        "\nquite so\n",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let said = realm_says(&["check", &chat, "--max-tokens", "4", "--prompt", "Good day."]);
    assert!(
        said.contains("\"Good day.\"") && said.contains("/answering"),
        "{said}"
    );
    let answer = said.lines().last().expect("an answer");
    assert!(!answer.is_empty(), "{said}");
    assert_eq!(realm_says(&["check", &chat, "--no-try"]).lines().count(), 3);

    let fails = r#"[{"emit": "so far "}, {"fail": "no further"}]"#;
    for (args, words) in [
        (["--args", fails], "no further"),
        (["--args", "{"], "--args"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ] {
        let output = realm(&[&["check", &script][..], &args].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn what_was_compiled_is_believed_only_if_it_is_ours() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let folder = dir.path().join("programs");
    let programs = folder.to_str().expect("UTF-8");
    let mut request = chat("Hello");
    request["processor"] = json!({"name": "choice", "args": {"choices": ["yes", "no"]}});
    let answer = |server: &Server| {
        let reply = ask(server, None, "/v1/chat/completions", Some(&request));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let text = reply.body["choices"][0]["message"]["content"].as_str();
        assert!(
            ["yes", "no"].contains(&text.expect("an answer")),
            "{}",
            reply.body
        );
    };
    let compiled = || {
        let files = std::fs::read_dir(folder.join("compiled")).expect("a folder");
        let paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        assert_eq!(paths.len(), 1, "{paths:?}");
        paths[0].clone()
    };

    let server = Server::start(&["--programs", programs]);
    let reply = call(&server, None, "POST ?name=choice", &bytes("choice"));
    assert_eq!(reply.status, 200, "{}", reply.body);
    answer(&server);
    let (path, good) = (compiled(), std::fs::read(compiled()).expect("there"));
    drop(server);

    // A server that starts takes what is there, if it is whole, and makes it anew if it is not.
    answer(&Server::start(&["--programs", programs]));
    assert_eq!(std::fs::read(&path).expect("there"), good);
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&path, bad).expect("written");
    answer(&Server::start(&["--programs", programs]));
    assert_eq!(std::fs::read(&path).expect("there"), good);
    std::fs::remove_file(&path).expect("removed");
    answer(&Server::start(&["--programs", programs]));
    assert_eq!(std::fs::read(&path).expect("there"), good);

    // What is no component any more is nothing that runs.
    std::fs::remove_file(&path).expect("removed");
    let components = std::fs::read_dir(folder.join("components")).expect("a folder");
    for component in components {
        std::fs::write(component.expect("a file").path(), b"other").expect("written");
    }
    let server = Server::start(&["--programs", programs]);
    let reply = ask(&server, None, "/v1/chat/completions", Some(&request));
    assert_eq!(outcome(&reply), (500, "program_unavailable"));
    // Sent again, it is whole.
    call(&server, None, "POST ?name=choice", &bytes("choice"));
    answer(&server);
}

/// What a program adds to its sequences counts like prompts.
#[test]
fn a_program_reads_no_more_than_its_tenant_may() {
    let place = Place::new("programs = \"programs\"\n[tenant_defaults]\ntokens_per_minute = 900\n");
    let [key, other] = ["acme", "other"].map(|tenant| place.key(tenant));
    let server = place.serve();
    let script = bytes("program-script");
    for key in [&key, &other] {
        let pushed = call(&server, Some(key), "POST ?name=script", &script);
        assert_eq!(pushed.status, 200, "{}", pushed.body);
    }
    let read = |key: &str, first: u32, max_tokens: u32| {
        let tokens: Vec<u32> = (first..first + 500).map(|token| 10 + token % 200).collect();
        let mut request = chat("Hi");
        request["model"] = "script".into();
        request["max_tokens"] = max_tokens.into();
        let steps = json!([{"new": {}}, {"append": [0, tokens]}, {"speak": [0, 1]}]);
        request["program"] = json!({"args": steps});
        ask(&server, Some(key), "/v1/chat/completions", Some(&request))
    };
    let reply = read(&key, 1, 2);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = read(&key, 7, 2);
    assert_eq!(
        outcome(&reply),
        (429, "program_token_limit"),
        "{}",
        reply.body
    );
    // What it has read counts against what comes next.
    let reply = read(&key, 9, 2);
    assert_eq!(
        outcome(&reply),
        (429, "rate_limit_exceeded"),
        "{}",
        reply.body
    );
    // What it may draw stays reserved, however much it reads.
    let reply = read(&other, 1, 60);
    assert_eq!(
        outcome(&reply),
        (429, "program_token_limit"),
        "{}",
        reply.body
    );
}

/// `realm-worker compile --socket`. Ends with the value.
struct Listening(Child);

impl Listening {
    fn start(socket: &Path) -> Listening {
        let binary = Path::new(env!("CARGO_BIN_EXE_realm")).with_file_name("realm-worker");
        let mut command = Command::new(binary);
        command.args(["compile", "--socket"]).arg(socket);
        let child = command.stdin(Stdio::null()).spawn();
        let listening = Listening(child.expect("it starts; build the workspace first"));
        wait_until("it listens", || realm_shm::socket::connect(socket).is_ok());
        listening
    }

    /// Processes that it has started and that still run.
    fn children(&self) -> usize {
        let pid = self.0.id();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
        let children = tasks.filter_map(|task| {
            let path = task.ok()?.path().join("children");
            std::fs::read_to_string(path).ok()
        });
        children.map(|pids| pids.split_whitespace().count()).sum()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_compiler_may_run_elsewhere() {
    let place = Place::new("programs = \"programs\"\ncompiler = \"compiler.sock\"");
    let (key, socket) = (place.key("acme"), place.file("compiler.sock"));
    let server = place.serve();
    let push =
        |name: &str, body: &[u8]| call(&server, Some(&key), &format!("POST ?name={name}"), body);
    let choice = bytes("choice");

    let reply = push("choice", &choice);
    assert_eq!(
        outcome(&reply),
        (500, "program_unavailable"),
        "{}",
        reply.body
    );

    let listening = Listening::start(&socket);
    let reply = push("choice", &choice);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(outcome(&push("junk", b"junk")), (400, "invalid_program"));
    let mut request = chat("Hello");
    request["processor"] = json!({"name": "choice", "args": {"choices": ["yes"]}});
    let reply = ask(&server, Some(&key), "/v1/chat/completions", Some(&request));
    let said = &reply.body["choices"][0]["message"]["content"];
    assert_eq!(said, "yes", "{}", reply.body);

    // Whoever hangs up ends what works for them.
    let (socket_end, input) = (
        realm_shm::socket::connect(&socket).expect("connects"),
        std::os::unix::net::UnixStream::pair().expect("a pair"),
    );
    for _ in 0..3 {
        let (of, end) = (socket_end.as_fd(), input.0.as_fd());
        realm_shm::socket::send_with(of, COMPILE, end).expect("sent");
    }
    wait_until("it waits for a component", || listening.children() == 1);
    drop(socket_end);
    wait_until("nobody waits any more", || listening.children() == 0);

    // Another one takes its place.
    drop(listening);
    let reply = push("guard", &bytes("guard"));
    assert_eq!(
        outcome(&reply),
        (500, "program_unavailable"),
        "{}",
        reply.body
    );
    let _listening = Listening::start(&socket);
    let reply = push("guard", &bytes("guard"));
    assert_eq!(reply.status, 200, "{}", reply.body);
}
