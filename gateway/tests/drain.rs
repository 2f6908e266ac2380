//! SIGTERM at a random time under load: what was begun is finished, and the process ends well.

mod common;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::client::End;
use common::random::Random;
use common::requests::kinds;
use common::{Server, census, setting, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

/// Servers that an ordinary run starts.
const ROUNDS: u64 = 3;
/// Clients of each.
const CLIENTS: usize = 16;
/// Latest times in milliseconds after which a client calls, and after which the server is told to end.
const LATEST: (u64, u64) = (100, 300);

#[test]
fn sigterm_fails_no_request() {
    let rounds = setting("REALM_TEST_ROUNDS", ROUNDS);
    let mut random = Random::new(setting("REALM_TEST_SEED", 1));
    let [finished, refused, cut] = [const { AtomicU64::new(0) }; 3];
    for _ in 0..rounds {
        let server = Server::start(&[]);
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let mut random = Random::new(random.next());
                let (server, finished, refused, cut) = (&server, &finished, &refused, &cut);
                scope.spawn(move || {
                    // Each calls until nobody listens any more.
                    let kinds = kinds(number as u64, 16);
                    loop {
                        std::thread::sleep(Duration::from_millis(random.below(LATEST.0)));
                        let request = random.pick(&kinds);
                        match server.try_ask(request, |_| ControlFlow::Continue(())) {
                            Some(End::Finished(_)) => finished.fetch_add(1, Ordering::Relaxed),
                            Some(End::Cut) => break cut.fetch_add(1, Ordering::Relaxed),
                            None => break refused.fetch_add(1, Ordering::Relaxed),
                            Some(other) => panic!("{}: {other:?}", request.name),
                        };
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(random.below(LATEST.1)));
            server.signal(Signal::SIGTERM);
        });
        assert_eq!(server.wait().code(), Some(0));
    }
    let (finished, refused) = (finished.into_inner(), refused.into_inner());
    let cut = cut.into_inner();
    println!(
        "drain: {rounds} rounds: {finished} requests finished, 0 failed, {refused} refused, {cut} cut"
    );
    assert_eq!(refused + cut, rounds * CLIENTS as u64);
    // The kernel may complete a handshake between the last accept and the close of the listener.
    // That takes microseconds, so it is rare; clients see it as they see a refusal.
    assert!(
        cut <= rounds,
        "{cut} connections were cut in {rounds} rounds"
    );
    assert!(finished > 0);
}

#[test]
fn the_address_is_free_for_the_next_server_before_the_last_request_is_over() {
    let server = Server::start(&["--drain-timeout", "600"]);
    // More than what lies between a server and a client that does not read.
    let body = json!({
        "model": "realm-tiny", "prompt": "Once upon a time", "n": 16, "max_tokens": 600,
        "min_tokens": 600, "logprobs": 5, "stream": true
    });
    let mut lines = server.lines("/v1/completions", &body);
    assert!(lines.next().is_some());
    server.signal(Signal::SIGTERM);
    wait_until("the address is free", || {
        TcpListener::bind(server.api_address()).is_ok()
    });
    assert!(census::is_running(server.pid()), "it has cut its request");
    assert_eq!(server.admin("/health").status, 200);
    let rest: Vec<_> = lines.map(|line| line.expect("it is not cut")).collect();
    assert!(rest.iter().any(|line| line == "data: [DONE]"));
    assert_eq!(server.wait().code(), Some(0));
}
