//! A worker is killed at every token of requests of every kind, and nothing shows of it.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::client::Transcript;
use common::requests::{Request, kinds};
use common::{Server, setting, wait_until};
use nix::sys::signal::{Signal, kill};

/// Tokens of each choice.
const TOKENS: usize = 24;
/// Of so many tokens, an ordinary run takes one; which one differs from kind to kind.
const STRIDE: u64 = 5;

#[test]
fn a_worker_may_die_at_any_token() {
    let stride = setting("REALM_TEST_STRIDE", STRIDE).max(1) as usize;
    let trial = Trial::start();
    let (mut kills, mut late) = (0_u32, 0_u32);
    for (number, request) in trial.requests().iter().enumerate() {
        let undisturbed = trial.server.ask(request);
        let points = (number % stride..undisturbed.tokens()).step_by(stride);
        for point in points {
            let (disturbed, in_time) = trial.ask_and_kill(request, point);
            assert_eq!(
                disturbed, undisturbed,
                "{}, killed at token {point}",
                request.name
            );
            kills += 1;
            late += u32::from(!in_time);
        }
        println!("resume: {}: {kills} kills so far", request.name);
    }
    let resumed = trial.server.metric("realm_resume_seconds_count");
    println!(
        "resume: {kills} kills, {late} of them after the last token; all answers as without, {resumed} times of a \
         sequence that went on"
    );
    assert!(late * 4 < kills, "{late} of {kills} kills came too late");
    // Of those in time some were before the first token, and some between the last one and its way to the client.
    assert!(resumed * 2.0 > f64::from(kills - late), "{resumed}");
}

/// A server whose worker is killed again and again.
struct Trial {
    server: Server,
}

impl Trial {
    fn start() -> Self {
        let server = Server::start(&[]);
        Trial { server }
    }

    /// Each kind streamed and, for some, as a whole; then those that stop at a string.
    fn requests(&self) -> Vec<Request> {
        let mut requests = kinds(7, TOKENS);
        for request in [requests[2].clone(), requests[3].clone()] {
            requests.push(request.whole());
        }
        for request in [requests[0].clone(), requests[3].clone()] {
            let text = self.server.ask(&request).choices[&0].text.clone();
            let request = request.stopping_in(&text);
            assert_eq!(self.server.ask(&request).choices[&0].finish, "stop");
            requests.push(request);
        }
        requests
    }

    /// The answer to a request whose worker is killed when `point` tokens were generated, and
    /// whether it was not over by then.
    fn ask_and_kill(&self, request: &Request, point: usize) -> (Transcript, bool) {
        let ended = self.server.metric("realm_worker_ends_total");
        let worker = self.server.worker_pid();
        let strike = || kill(worker, Signal::SIGKILL).expect("the worker runs");
        // Text that could become a stop string is held back: then chunks do not tell of tokens.
        let told = request.is_streamed() && request.body.get("stop").is_none();
        let (answer, in_time) = if told {
            // A chat's choice begins with a chunk that says who speaks, which comes with its first token.
            let first = if point > 0 && request.path.contains("chat") {
                request.choices()
            } else {
                0
            };
            let (mut struck, mut seen) = (None, 0);
            let answer = self.server.ask_with(request, |chunks| {
                if chunks == point + first {
                    strike();
                    struck = Some(chunks);
                }
                seen = chunks;
            });
            // A token without text of its own makes no chunk, so there may be fewer of them.
            let in_time = struck.is_some_and(|at| at < seen);
            if struck.is_none() {
                strike();
            }
            (answer.finished(), in_time)
        } else {
            let over = AtomicBool::new(false);
            let before = self.server.metric("vllm:generation_tokens_total");
            std::thread::scope(|scope| {
                let killer = scope.spawn(|| {
                    let generated = || self.server.metric("vllm:generation_tokens_total") - before;
                    while generated() < point as f64 && !over.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    strike();
                    !over.load(Ordering::Acquire)
                });
                let answer = self.server.ask(request);
                over.store(true, Ordering::Release);
                (answer, killer.join().expect("the killer ends"))
            })
        };
        wait_until("the worker is replaced", || {
            self.server.metric("realm_worker_ends_total") == ended + 1.0
                && self.server.worker_pid() != worker
                && self.server.admin("/ready").status == 200
        });
        (answer, in_time)
    }
}
