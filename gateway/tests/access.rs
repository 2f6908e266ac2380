//! Whose requests are answered, and how many of them.

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::place::{Place, Reply, api_key, ask, send};
use common::{Server, chat, completion, fail_to_start, setting, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn a_key_opens_what_its_tenant_may_use() {
    let place = Place::new(
        "[tenant_defaults]\nmodels = [\"realm-tiny\"]\n[[tenant]]\nid = \"other\"\nmodels = [\"x\"]\n\
         [[tenant]]\nid = \"limited\"\nmax_context = 60",
    );
    let (acme, other) = (place.key("acme"), place.key("other"));
    let server = place.serve();
    let models = |key: Option<&str>| ask(&server, key, "/v1/models", None);
    let complete =
        |key: Option<&str>| ask(&server, key, "/v1/completions", Some(&completion("The")));

    for reply in [models(None), complete(None)] {
        assert_eq!((reply.status, reply.code()), (401, ""));
        assert_eq!(reply.body["error"]["type"], "invalid_request_error");
    }
    let unknown = format!("{}{:x<23}", &acme[..20], "");
    for wrong in [
        "sk-nothing",
        "x",
        &format!("{acme}x"),
        &acme[..20],
        &unknown,
    ] {
        let reply = complete(Some(wrong));
        assert_eq!(
            (reply.status, reply.code()),
            (401, "invalid_api_key"),
            "{wrong}"
        );
    }
    let text = complete(Some(&unknown)).body.to_string();
    assert!(
        text.contains(&acme[..11]) && !text.contains(&acme[..20]),
        "{text}"
    );

    assert_eq!(models(Some(&acme)).body["data"][0]["id"], "realm-tiny");
    assert_eq!(complete(Some(&acme)).status, 200);
    let limited = place.key("limited");
    wait_until("the key is good", || models(Some(&limited)).status == 200);
    let shown = models(Some(&limited)).body["data"][0]["max_model_len"].take();
    assert_eq!(shown, 60, "what it may have");

    // To a tenant that may not use it, a model does not exist.
    assert_eq!(models(Some(&other)).body["data"], json!([]));
    let reply = complete(Some(&other));
    assert_eq!((reply.status, reply.code()), (404, "model_not_found"));
    let reply = ask(&server, Some(&other), "/v1/models/realm-tiny", None);
    assert_eq!((reply.status, reply.code()), (404, "model_not_found"));

    // A key that is disabled ends without a restart, and so does a new one begin.
    api_key(&place.keys(), &["disable", &acme[..11]]);
    wait_until("the key is disabled", || models(Some(&acme)).status == 401);
    let text = models(Some(&acme)).body.to_string();
    assert!(text.contains("disabled"), "{text}");
    api_key(&place.keys(), &["enable", &acme]);
    let new = place.key("acme");
    wait_until("both keys are good", || {
        models(Some(&acme)).status == 200 && models(Some(&new)).status == 200
    });
    let listed = api_key(&place.keys(), &["list"]);
    assert_eq!(listed.lines().count(), 5);
    assert!(
        listed.contains(&acme[..11]) && !listed.contains(&acme[..12]),
        "{listed}"
    );
}

#[test]
fn requests_above_a_limit_are_refused_in_the_words_of_openai() {
    let settings = |requests: u32| {
        format!(
            "[[tenant]]\nid = \"few\"\nrequests_per_minute = {requests}\n\
             [[tenant]]\nid = \"short\"\ntokens_per_minute = 50\n\
             [[tenant]]\nid = \"chatty\"\ntokens_per_minute = 500\n\
             [[tenant]]\nid = \"poor\"\ntokens_per_day = 40\nmax_context = 60\n"
        )
    };
    let place = Place::new(&settings(2));
    let [few, short, chatty, poor] = ["few", "short", "chatty", "poor"].map(|id| place.key(id));
    let server = place.serve();
    let complete = |key: &str, max_tokens: u32| {
        let mut body = completion("The");
        body["max_tokens"] = max_tokens.into();
        body["ignore_eos"] = true.into();
        ask(&server, Some(key), "/v1/completions", Some(&body))
    };

    let reply = complete(&few, 1);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "1");
    // Looking is free.
    assert_eq!(
        ask(&server, Some(&few), "/v1/models", None).header("x-ratelimit-remaining-requests"),
        "1"
    );
    assert_eq!(complete(&few, 1).status, 200);
    let reply = complete(&few, 1);
    assert_eq!((reply.status, reply.code()), (429, "rate_limit_exceeded"));
    assert_eq!(reply.body["error"]["type"], "requests");
    let wait: u64 = reply.header("retry-after").parse().expect("seconds");
    let precisely: u64 = reply
        .header("retry-after-ms")
        .parse()
        .expect("milliseconds");
    assert!(
        wait <= 30 && precisely.div_ceil(1000) == wait,
        "{wait} {precisely}"
    );
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "0");

    let used = |reply: &Reply| {
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.body["usage"]["total_tokens"]
            .as_u64()
            .expect("a number")
    };
    let first = complete(&short, 20);
    let left = 50 - used(&first);
    assert_eq!(
        first.header("x-ratelimit-remaining-tokens"),
        left.to_string()
    );
    let reply = complete(&short, 40);
    assert_eq!((reply.status, reply.code()), (429, "rate_limit_exceeded"));
    assert_eq!(reply.body["error"]["type"], "tokens");
    assert_eq!(
        reply.header("x-ratelimit-remaining-tokens"),
        left.to_string()
    );
    assert!(!reply.headers.contains_key("x-should-retry"));
    let reply = complete(&short, 51);
    assert_eq!(
        (reply.status, reply.header("x-should-retry")),
        (429, "false")
    );

    // An answer of no given length reserves no more than there is, and ends by itself before: it
    // is settled when the answer is there, and its head tells how it stands then.
    let mut open = chat("Hello");
    let fields = open.as_object_mut().expect("an object");
    fields.remove("max_tokens");
    let mut left = 500;
    for _ in 0..2 {
        let reply = ask(&server, Some(&chatty), "/v1/chat/completions", Some(&open));
        left -= used(&reply);
        assert_eq!(reply.body["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            reply.header("x-ratelimit-remaining-tokens"),
            left.to_string()
        );
    }

    used(&complete(&poor, 20));
    let reply = complete(&poor, 35);
    assert_eq!((reply.status, reply.code()), (429, "insufficient_quota"));
    assert_eq!(reply.header("x-should-retry"), "false");
    assert!(!reply.headers.contains_key("retry-after"));
    let reply = complete(&poor, 61);
    assert_eq!(
        (reply.status, reply.code()),
        (400, "context_length_exceeded")
    );

    // Limits are read again, and nothing is dropped for it.
    let mut stream = server_stream(&server, &chatty);
    place.configure(&settings(100));
    server.signal(Signal::SIGHUP);
    wait_until("more requests are allowed", || {
        complete(&few, 1).status == 200
    });
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("reads");
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    // With what cannot be read they stay as they are.
    place.configure("[[tenant]]\nid = 1\n");
    server.signal(Signal::SIGHUP);
    place.configure(&settings(3));
    for _ in 0..3 {
        assert_eq!(complete(&few, 1).status, 200);
    }
}

/// What tells a terminal's end to other programs is no reason to end.
#[test]
fn a_server_without_settings_survives_sighup() {
    let server = Server::start(&[]);
    server.signal(Signal::SIGHUP);
    let answer = server.post("/v1/completions", &completion("The"));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn gateways_and_commands_share_a_file_of_keys() {
    let place = Place::new("");
    let first = place.key("acme");
    let servers = [place.serve(), place.serve()];
    let status = |server: &Server, key: &str| ask(server, Some(key), "/v1/models", None).status;
    // Commands at the same time lose nothing.
    let keys: Vec<String> = std::thread::scope(|scope| {
        let place = &place;
        let made: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || place.key(&format!("tenant-{number}"))))
            .collect();
        made.into_iter()
            .map(|key| key.join().expect("made"))
            .collect()
    });
    for server in &servers {
        wait_until("all keys are good", || {
            keys.iter().all(|key| status(server, key) == 200)
        });
    }
    api_key(&place.keys(), &["disable", &first]);
    for server in &servers {
        wait_until("the key is disabled", || status(server, &first) == 401);
    }
}

/// The body of a streamed answer that is still being written.
fn server_stream(server: &Server, key: &str) -> impl Read {
    let mut body = completion("The");
    body["max_tokens"] = 400.into();
    body["ignore_eos"] = true.into();
    body["stream"] = true.into();
    let response = send(server, Some(key), "/v1/completions", Some(&body));
    assert_eq!(response.status(), 200);
    response.into_body().into_reader()
}

/// Eager clients whose requests end in every way there is: what the worker computes for their
/// tenant in any minute is what it may use, and not more than one step above. By default for as
/// long as it takes to use up the first minute's.
#[test]
fn a_tenant_gets_its_tokens_and_no_more() {
    const MINUTE: Duration = Duration::from_secs(60);
    let clients = setting("REALM_CLIENTS", 16);
    let limit = setting("REALM_TOKENS_PER_MINUTE", 3000);
    let minutes = setting("REALM_MINUTES", 1);
    let place = Place::new(&format!(
        "[[tenant]]\nid = \"acme\"\ntokens_per_minute = {limit}"
    ));
    let key = place.key("acme");
    let server = place.serve();
    let before = served(&server);
    let mut samples = Vec::new();
    let (over, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (server, key, over, refused) = (&server, &key, &over, &refused);
            scope.spawn(move || {
                for round in client.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut body = completion("Once upon a time");
                    // Some end by themselves before, and give back what they reserved.
                    body["max_tokens"] = (4 + round % 5 * 4).into();
                    let status = match round % 4 {
                        0 => {
                            body["stream"] = true.into();
                            abandon(server, key, &body)
                        }
                        1 => {
                            body["temperature"] = "hot".into();
                            ask(server, Some(key), "/v1/completions", Some(&body)).status
                        }
                        _ => ask(server, Some(key), "/v1/completions", Some(&body)).status,
                    };
                    if status == 429 {
                        refused.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            });
        }
        let mut look = || {
            let now = Instant::now();
            samples.push((now, served(&server)));
            samples[samples.len() - 1].1 - before
        };
        for minute in 1..=minutes {
            // Less than the smallest request is left then.
            wait_until("a minute's tokens are used", || {
                look() >= (limit * minute) as f64 * 0.99
            });
        }
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(50));
            look();
        }
        over.store(true, Ordering::Relaxed);
    });
    wait_until("all is settled", || {
        server.metric("vllm:num_requests_running") == 0.0
    });
    let used = served(&server) - before;
    let all = limit * minutes;
    // What is in flight when a client goes may be counted a moment later.
    let most = (limit + clients) as f64;
    let mut first = 0;
    for &(now, after) in &samples {
        while now.duration_since(samples[first].0) > MINUTE {
            first += 1;
        }
        let minute = after - samples[first].1;
        assert!(minute <= most, "{minute} of {limit} in a minute");
    }
    println!("{used} of {all} tokens, by {clients} clients in {minutes} minutes");
    assert!(refused.into_inner() > 0);
}

/// Tokens that the worker has computed, or found, whether anybody heard of them or not: its inputs,
/// and of each answer the last one, which is no input.
fn served(server: &Server) -> f64 {
    let ends = server.metric("vllm:time_to_first_token_seconds_count");
    ends + server.metric("realm_step_tokens_total") + server.metric("vllm:prefix_cache_hits_total")
}

/// Reads the beginning of an answer and leaves.
fn abandon(server: &Server, key: &str, body: &Value) -> u16 {
    let response = send(server, Some(key), "/v1/completions", Some(body));
    let status = response.status().as_u16();
    let mut some = [0; 100];
    let _ = response.into_body().into_reader().read(&mut some);
    status
}

#[test]
fn settings_can_be_checked_without_serving() {
    let place = Place::new("[[tenant]]\nid = \"acme\"\nmodells = []");
    let config = place.config();
    let config = config.to_str().expect("UTF-8");
    let (status, said) = fail_to_start(&["--check", "--config", config]);
    assert!(!status.success());
    assert!(
        said.contains("line 4") && said.contains("modells"),
        "{said}"
    );
    place.configure("[[tenant]]\nid = \"acme\"");
    let (status, said) = fail_to_start(&["--check", "--config", config]);
    assert!(!status.success() && said.contains("keys.json"), "{said}");
    place.key("acme");
    let (status, said) = fail_to_start(&["--check", "--config", config]);
    assert!(status.success() && !said.contains("not served"), "{said}");
    place.configure("[[tenant]]\nid = \"acme\"\nmodels = [\"realm-tiny\", \"large\"]");
    let (status, said) = fail_to_start(&["--check", "--config", config]);
    assert!(status.success(), "{said}");
    let warned = said.lines().find(|line| line.contains("not served"));
    assert!(
        warned.is_some_and(|line| line.contains("acme") && line.contains("large")),
        "{said}"
    );
    // Whoever checks may be another user than the one who serves, and would own what is made.
    place.configure("usage_log = \"usage.jsonl\"");
    let (status, said) = fail_to_start(&["--check", "--config", config]);
    assert!(status.success(), "{said}");
    assert!(!place.file("usage.jsonl").exists());
    for (log, why) in [
        ("missing/usage.jsonl", "No such file"),
        ("keys.json/usage.jsonl", "Not a directory"),
        (".", "Is a directory"),
    ] {
        place.configure(&format!("usage_log = \"{log}\""));
        let (status, said) = fail_to_start(&["--check", "--config", config]);
        assert!(!status.success() && said.contains(why), "{said}");
    }
}
