//! What is written down of what tenants use, and what they can find out of each other.

mod common;

use std::io::{BufRead, BufReader, Read};

use common::place::{Place, Reply, ask, send};
use common::{Server, chat, completion, wait_until};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

fn post(server: &Server, key: &str, path: &str, body: &Value) -> Reply {
    ask(server, Some(key), path, Some(body))
}

/// Lines of the usage log.
fn lines(place: &Place) -> Vec<Value> {
    let log = std::fs::read_to_string(place.file("usage.jsonl")).expect("there is a log");
    assert!(log.is_empty() || log.ends_with('\n'), "no line is cut off");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    lines.collect()
}

#[test]
fn every_request_is_billed_before_its_connection_closes() {
    let place = Place::new("usage_log = \"usage.jsonl\"");
    let (acme, other) = (place.key("acme"), place.key("other"));
    let server = place.serve();

    // Whoever has the answer finds its line in the log.
    let answered = |body: &Value, path: &str, key: &str| {
        let reply = post(&server, key, path, body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let line = lines(&place).pop().expect("a line");
        assert_eq!(line["id"], reply.body["id"]);
        assert_eq!(
            (&line["outcome"], &line["model"]),
            (&"completed".into(), &"realm-tiny".into())
        );
        assert_eq!(line["key"], key[..11]);
        let usage = &reply.body["usage"];
        let cached = &usage["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(line["prompt_tokens"], usage["prompt_tokens"]);
        assert_eq!(&line["cached_tokens"], cached);
        (line, usage.clone())
    };
    let mut body = completion("Once upon a time");
    body["max_tokens"] = 12.into();
    body["n"] = 2.into();
    body["ignore_eos"] = true.into();
    let (line, usage) = answered(&body, "/v1/completions", &acme);
    assert_eq!(
        (&line["tenant"], &line["sequences"]),
        (&"acme".into(), &2.into())
    );
    assert_eq!(
        (&line["completion_tokens"], &usage["completion_tokens"]),
        (&24.into(), &24.into())
    );
    for time in ["device_seconds", "queue_seconds", "seconds"] {
        assert!(line[time].as_f64().expect("a number") > 0.0, "{line}");
    }
    let (line, _) = answered(&chat("Hello"), "/v1/chat/completions", &other);
    assert_eq!(line["tenant"], "other");
    // One that ends by a stop string, which the scheduler knows nothing of.
    body["n"] = 1.into();
    body["max_tokens"] = 300.into();
    body["stop"] = "e".into();
    let (line, usage) = answered(&body, "/v1/completions", &acme);
    let (billed, told) = (&line["completion_tokens"], &usage["completion_tokens"]);
    assert!(
        billed.as_u64() >= told.as_u64(),
        "what was drawn meanwhile is computed too"
    );

    // A stream, and one that is left.
    body["stop"] = Value::Null;
    body["max_tokens"] = 20.into();
    body["stream"] = true.into();
    let mut stream = send(&server, Some(&acme), "/v1/completions", Some(&body));
    let text = stream.body_mut().read_to_string().expect("reads");
    assert!(text.ends_with("data: [DONE]\n\n"));
    let line = lines(&place).pop().expect("a line");
    assert_eq!(
        (&line["completion_tokens"], &line["outcome"]),
        (&20.into(), &"completed".into())
    );
    body["max_tokens"] = 400.into();
    let left = send(&server, Some(&acme), "/v1/completions", Some(&body));
    let mut some = [0; 100];
    let _ = left
        .into_body()
        .into_reader()
        .read(&mut some)
        .expect("reads");
    wait_until("the client is missed", || lines(&place).len() == 5);
    let line = lines(&place).pop().expect("a line");
    assert_eq!(line["outcome"], "cancelled");
    assert!(line["completion_tokens"].as_u64().expect("a number") < 400);

    // Refused: not billed, but counted.
    let bad = post(
        &server,
        &acme,
        "/v1/completions",
        &json!({"model": "realm-tiny"}),
    );
    assert_eq!(bad.status, 400);
    // One that failed on the worker is counted once, as that.
    let mut form = completion("The");
    form["structured_outputs"] = json!({"regex": "("});
    let bad = post(&server, &acme, "/v1/completions", &form);
    assert_eq!(bad.status, 400, "{}", bad.body);
    let line = lines(&place).pop().expect("a line");
    assert_eq!(line["outcome"], "failed");
    check_sums(&server, &lines(&place));

    // What runs when the gateway is killed is lost, and nothing else.
    let running = send(&server, Some(&acme), "/v1/completions", Some(&body));
    let mut running = BufReader::new(running.into_body().into_reader());
    running.read_line(&mut String::new()).expect("reads");
    body["max_tokens"] = 3.into();
    body["stream"] = false.into();
    answered(&body, "/v1/completions", &acme);
    kill(server.pid(), Signal::SIGKILL).expect("signals realm");
    server.wait();
    assert_eq!(lines(&place).len(), 7);
}

/// Who bills has a price for a model, not for what a tenant calls its program.
#[test]
fn what_a_program_used_is_of_its_model() {
    let place = Place::new("programs = \"programs\"\nusage_log = \"usage.jsonl\"");
    let key = place.key("acme");
    let server = place.serve();
    let mut body = chat("Hello");
    body["model"] = "chat".into();
    let reply = post(&server, &key, "/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let line = lines(&place).pop().expect("a line");
    assert_eq!(line["model"], "realm-tiny", "{line}");
    assert_eq!(line["program"], "chat", "{line}");
    let usage = server.admin("/admin/usage").json();
    assert_eq!(usage["usage"][0]["model"], "realm-tiny", "{usage}");
}

/// `/admin/usage` and the metrics say what the lines say.
fn check_sums(server: &Server, lines: &[Value]) {
    let report: Value = serde_json::from_str(&server.admin("/admin/usage").body).expect("JSON");
    let accounts = report["usage"].as_array().expect("a list");
    assert_eq!(accounts.len(), 2, "{report}");
    for account in accounts {
        let of = lines
            .iter()
            .filter(|line| line["tenant"] == account["tenant"]);
        for field in ["prompt_tokens", "cached_tokens", "completion_tokens"] {
            let sum: u64 = of
                .clone()
                .map(|line| line[field].as_u64().expect("a number"))
                .sum();
            assert_eq!(account[field], sum, "{field} of {account}");
        }
    }
    assert_eq!(
        accounts[0]["requests"],
        json!({"completed": 3, "cancelled": 1, "failed": 1})
    );
    let metrics = server.admin("/metrics").body;
    for line in [
        r#"realm_tenant_requests_total{tenant="acme",outcome="completed"} 3"#,
        r#"realm_tenant_requests_total{tenant="acme",outcome="failed"} 1"#,
        r#"realm_tenant_requests_total{tenant="acme",outcome="refused"} 1"#,
        r#"realm_tenant_requests_total{tenant="other",outcome="completed"} 1"#,
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}");
    }
    // All of the device's time was somebody's, but for the probe's and for what nobody waited for.
    let steps = server.metric("realm_step_seconds_sum");
    let device = server.metric("realm_tenant_device_seconds_total");
    assert!(
        device > 0.5 * steps && device <= steps,
        "{device} of {steps} s"
    );
}

#[test]
fn a_log_that_cannot_be_written_is_seen_at_the_start() {
    let place = Place::new("usage_log = \"missing/usage.jsonl\"");
    place.key("acme");
    let config = place.config();
    let (_, said) = common::fail_to_start(&["--config", config.to_str().expect("UTF-8")]);
    assert!(said.contains("missing/usage.jsonl"), "{said}");
}

/// The tokens of a prompt that were computed for a request, which is what its time goes into, and
/// those that it was told were not.
#[test]
fn no_tenant_can_tell_what_another_one_has_asked() {
    let place = Place::new("");
    let (acme, other) = (place.key("acme"), place.key("other"));
    let server = place.serve();
    let prompt: Vec<u32> = (0..200).map(|token| 100 + token % 50).collect();
    let body = json!({"model": "realm-tiny", "prompt": prompt, "max_tokens": 1});
    let asked = |key: &str| {
        let before = server.metric("realm_step_tokens_total");
        let reply = post(&server, key, "/v1/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let cached = &reply.body["usage"]["prompt_tokens_details"]["cached_tokens"];
        let computed = server.metric("realm_step_tokens_total") - before;
        (cached.as_u64().expect("a number"), computed as u64)
    };
    assert_eq!(asked(&acme), (0, 200));
    let (cached, computed) = asked(&acme);
    assert!(
        cached >= 184 && computed == 200 - cached,
        "its own are found"
    );
    assert_eq!(asked(&other), (0, 200), "those of others are not");
    assert_eq!(asked(&other), (cached, computed));
}

#[test]
fn a_request_is_as_urgent_as_its_tenant_may_be() {
    let place = Place::new("[[tenant]]\nid = \"acme\"\npriority = \"high\"\nweight = 2");
    let (acme, other) = (place.key("acme"), place.key("other"));
    let server = place.serve();
    let tier = |key: &str, tier: &str| {
        let mut body = chat("Hello");
        body["service_tier"] = tier.into();
        let reply = post(&server, key, "/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["service_tier"]
            .as_str()
            .expect("a tier")
            .to_owned()
    };
    assert_eq!(tier(&acme, "auto"), "priority");
    assert_eq!(tier(&acme, "flex"), "flex");
    assert_eq!(tier(&other, "priority"), "default");
    assert_eq!(tier(&other, "auto"), "default");
    let mut body = completion("The");
    body["priority"] = "urgent".into();
    let reply = post(&server, &acme, "/v1/completions", &body);
    assert_eq!((reply.status, reply.code()), (400, "invalid_value"));
    body["priority"] = (-1).into();
    assert_eq!(post(&server, &acme, "/v1/completions", &body).status, 200);
}
