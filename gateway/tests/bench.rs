//! `realm bench`, against a model that it serves itself and against a server that runs.

mod common;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Server;
use serde_json::Value;

fn bench(args: &[&str]) -> Output {
    let realm = PathBuf::from(env!("CARGO_BIN_EXE_realm"));
    let output = Command::new(realm).arg("bench").args(args).output();
    output.expect("the program runs")
}

fn runs(output: &Output) -> Vec<Value> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&report["prompt_tokens"], &report["output_tokens"]),
        (&20.into(), &7.into())
    );
    report["runs"].as_array().expect("a list").clone()
}

const WORK: [&str; 5] = ["--json", "--prompt", "20", "--output", "7"];

/// What must hold of every run on every machine.
fn check(run: &Value, requests: u64) {
    assert_eq!(
        (&run["completed"], &run["failed"]),
        (&requests.into(), &0.into()),
        "{run}"
    );
    let number = |value: &Value| value.as_f64().expect("a number");
    let rate = number(&run["output_tokens_per_second"]);
    let expected = (requests * 7) as f64 / number(&run["seconds"]);
    assert!((rate / expected - 1.0).abs() < 1e-6, "{run}");
    let prompt = number(&run["prompt_tokens_per_second"]);
    assert!((prompt / rate - 20.0 / 7.0).abs() < 1e-6, "{run}");
    for times in ["first_token", "next_token", "whole"] {
        let [p50, p90, p99] = ["p50", "p90", "p99"].map(|p| number(&run[times][p]));
        assert!(0.0 <= p50 && p50 <= p90 && p90 <= p99, "{run}");
    }
    assert!(number(&run["first_token"]["p50"]) <= number(&run["whole"]["p50"]));
}

#[test]
fn a_model_is_served_and_measured() {
    let output = bench(&[&WORK[..], &["--concurrency", "1,3", "--requests", "6"]].concat());
    let runs = runs(&output);
    assert_eq!(runs.len(), 2);
    for (run, concurrency) in runs.iter().zip([1, 3]) {
        assert_eq!(run["concurrency"], concurrency);
        check(run, 6);
    }
    let table = bench(&["--concurrency", "2", "--requests", "2", "--output", "3"]);
    let table = String::from_utf8(table.stdout).expect("UTF-8");
    assert_eq!(table.lines().count(), 4, "{table}");
}

#[test]
fn a_shape_is_measured_without_weights() {
    let folder = tempfile::tempdir().expect("a directory");
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(file), folder.path().join(file)).expect("copied");
    }
    let model = folder.path().to_str().expect("UTF-8");
    let work = [
        &WORK[..],
        &["--model", model, "--concurrency", "2", "--requests", "4"],
    ]
    .concat();
    let output = bench(&[&work[..], &["--random-weights"]].concat());
    check(&runs(&output)[0], 4);
    let output = bench(&work);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("has neither model.safetensors"),
        "{stderr}"
    );
}

#[test]
fn a_server_is_loaded() {
    let server = Server::start(&[]);
    let url = format!("http://{}/v1", server.api_address());
    let output = bench(
        &[
            &WORK[..],
            &["--url", &url, "--rate", "200", "--requests", "9"],
        ]
        .concat(),
    );
    let runs = runs(&output);
    assert_eq!(runs[0]["rate"], 200.0);
    check(&runs[0], 9);
    // Ten with the one to warm up, as the server counted them.
    let metrics = server.admin("/metrics").body;
    let count = metrics.lines().find_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        name.starts_with("vllm:generation_tokens_total")
            .then(|| value.parse::<f64>())
    });
    assert_eq!(count, Some(Ok(70.0)));
}

#[test]
fn mistakes_are_told() {
    for (args, told) in [
        (
            &["--url", "https://127.0.0.1/v1"][..],
            "http://HOST:PORT/v1",
        ),
        (
            &["--url", "http://127.0.0.1:1/v1"],
            "cannot reach 127.0.0.1:1",
        ),
        (&["--output", "0"], "must be above zero"),
        (&["--rate", "nan"], "must be above zero"),
        (&["--concurrency", "0"], "must be above zero"),
    ] {
        let output = bench(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(told),
            "{args:?}: {stderr}"
        );
    }
    let server = Server::start(&[]);
    let url = format!("http://{}/v1", server.api_address());
    let output = bench(&["--url", &url, "--model", "nobody"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("nobody") && stderr.contains("404") && !output.status.success(),
        "{stderr}"
    );
}

#[test]
fn a_server_that_keeps_no_connections_is_loaded() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let stream = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":7}}\n\n\
        data: [DONE]\n\n";
    let length = stream.len();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{stream}");
    // Each connection ends after one answer that says nothing of it.
    let server = std::thread::spawn(move || {
        let mut answered = 0;
        for connection in listener.incoming() {
            let mut connection = connection.expect("a client");
            let mut request = Vec::new();
            let mut piece = [0; 4096];
            while !request.ends_with(b"}") {
                match connection.read(&mut piece).expect("reads") {
                    0 => break,
                    count => request.extend_from_slice(&piece[..count]),
                }
            }
            connection.write_all(answer.as_bytes()).expect("writes");
            answered += 1;
            // One to warm up.
            if answered == 5 {
                break;
            }
        }
    });
    let args = [
        "--url",
        &url,
        "--model",
        "any",
        "--concurrency",
        "1",
        "--requests",
        "4",
    ];
    let output = bench(&[&WORK[..], &args].concat());
    check(&runs(&output)[0], 4);
    server.join().expect("it ends well");
}
