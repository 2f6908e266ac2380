//! A `realm serve` process of one's own, and a small HTTP client for it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Far more than anything here takes on a busy machine; reached only by a fault.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running server. Ends with the value.
pub(crate) struct Server {
    child: std::sync::Mutex<Child>,
    pid: Pid,
    api: String,
    admin: String,
    agent: ureq::Agent,
}

/// A response, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

fn command(args: &[&str]) -> Command {
    let realm = PathBuf::from(env!("CARGO_BIN_EXE_realm"));
    let worker = realm.with_file_name("realm-worker");
    assert!(
        worker.exists(),
        "{} is missing: build it with `cargo build -p realm-worker`",
        worker.display()
    );
    let mut command = Command::new(realm);
    command
        .args(["serve", "--port", "0", "--admin-addr", "127.0.0.1:0"])
        .args(args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts a server on free ports and waits until it is ready.
    pub(crate) fn start(args: &[&str]) -> Self {
        let server = Server::launch(args);
        wait_until("the server is ready", || {
            server.admin("/ready").status == 200
        });
        server
    }

    /// Starts a server on free ports and waits until it listens.
    pub(crate) fn launch(args: &[&str]) -> Self {
        let mut child = command(args).spawn().expect("realm starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Shown by the test runner when a test fails.
                println!("realm: {line}");
                let _ = sender.send(line);
            }
        });
        let (mut api, mut admin) = (None, None);
        while api.is_none() || admin.is_none() {
            let line = lines
                .recv_timeout(PATIENCE)
                .expect("realm says where it listens");
            if let Some((_, addr)) = line.split_once("listening on ") {
                api = Some(addr.trim().to_owned());
            } else if let Some((_, addr)) = line.split_once("admin on ") {
                admin = Some(addr.trim().to_owned());
            }
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        Server {
            pid: Pid::from_raw(child.id() as i32),
            child: child.into(),
            api: api.expect("set"),
            admin: admin.expect("set"),
            agent,
        }
    }

    pub(crate) fn admin(&self, path: &str) -> Answer {
        read(self.agent.get(format!("{}{path}", self.admin)).call())
    }

    /// The value of a metric of the embedded model; 0 if it was never set.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.admin("/metrics").body;
        let prefix = format!("{name}{{model_name=\"realm-tiny\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&prefix));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Where the API listens, as `IP:PORT`.
    pub(crate) fn api_address(&self) -> &str {
        self.api.trim_start_matches("http://")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    pub(crate) fn post_text(&self, path: &str, body: &str) -> Answer {
        read(
            self.agent
                .post(format!("{}{path}", self.api))
                .content_type("application/json")
                .send(body),
        )
    }

    /// Streams a completion; calls `each` with the number of chunks so far. Returns the text, with
    /// log-probabilities if asked for, and the finish reason.
    pub(crate) fn stream(
        &self,
        path: &str,
        body: &Value,
        each: impl Fn(usize),
    ) -> (String, String) {
        let (mut text, finish) = (String::new(), RefCell::new(String::new()));
        let (mut chunks, mut done) = (0, false);
        for line in self.lines(path, body) {
            let line = line.expect("the stream goes on");
            let Some(data) = line.strip_prefix("data: ") else {
                continue;
            };
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(data).expect("a chunk is JSON");
            assert!(chunk.get("error").is_none(), "{chunk}");
            let choice = &chunk["choices"][0];
            text += choice["text"].as_str().unwrap_or("");
            if let Some(tokens) = choice["logprobs"]["tokens"].as_array() {
                text += &format!("{tokens:?}{}", choice["logprobs"]["token_logprobs"]);
            }
            if let Some(reason) = choice["finish_reason"].as_str() {
                reason.clone_into(&mut finish.borrow_mut());
            }
            chunks += 1;
            each(chunks);
        }
        assert!(done, "the stream ended without [DONE]");
        (text, finish.into_inner())
    }

    /// The lines of a streamed answer as they come.
    pub(crate) fn lines(
        &self,
        path: &str,
        body: &Value,
    ) -> impl Iterator<Item = std::io::Result<String>> + use<> {
        let response = self
            .agent
            .post(format!("{}{path}", self.api))
            .content_type("application/json")
            .send(body.to_string())
            .expect("the server answers");
        assert_eq!(response.status(), 200);
        BufReader::new(response.into_body().into_reader()).lines()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("signals realm");
    }

    /// The child processes of the server.
    pub(crate) fn children(&self) -> Vec<i32> {
        // They are listed by the thread that spawned them.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("realm runs");
        tasks
            .flatten()
            .filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok())
            .flat_map(|s| {
                s.split_whitespace()
                    .filter_map(|p| p.parse().ok())
                    .collect::<Vec<i32>>()
            })
            .collect()
    }

    /// The one child process of the server.
    pub(crate) fn worker_pid(&self) -> Pid {
        let mut pids = Vec::new();
        wait_until("there is a worker", || {
            pids = self.children();
            !pids.is_empty()
        });
        assert_eq!(pids.len(), 1, "{pids:?}");
        Pid::from_raw(pids[0])
    }

    pub(crate) fn kill_worker(&self, signal: Signal) {
        kill(self.worker_pid(), signal).expect("signals the worker");
    }

    /// Waits for the server to end.
    pub(crate) fn wait(&self) -> ExitStatus {
        let mut status = None;
        wait_until("realm has ended", || {
            status = self
                .child
                .lock()
                .expect("not poisoned")
                .try_wait()
                .expect("can wait");
            status.is_some()
        });
        status.expect("set")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap_or_else(|e| e.into_inner());
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn read(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answer {
    let mut response = response.expect("the server answers");
    Answer {
        status: response.status().as_u16(),
        body: response.body_mut().read_to_string().expect("a body"),
    }
}

/// Runs a server that cannot start, to its end.
pub(crate) fn fail_to_start(args: &[&str]) -> (ExitStatus, String) {
    let output = command(args).output().expect("realm runs");
    (
        output.status,
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

pub(crate) fn is_running(pid: Pid) -> bool {
    // A zombie of a dead parent is reaped by init; until then it has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty())
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "gave up waiting until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn chat(content: &str) -> Value {
    json!({"model": "realm-tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 64})
}

pub(crate) fn completion(prompt: &str) -> Value {
    json!({"model": "realm-tiny", "prompt": prompt, "max_tokens": 8})
}
