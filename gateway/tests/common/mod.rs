//! A `realm serve` process of one's own, and a small HTTP client for it.
#![allow(dead_code, reason = "each suite uses a part")]

pub(crate) mod attached;
pub(crate) mod calls;
pub(crate) mod census;
pub(crate) mod client;
pub(crate) mod confined;
pub(crate) mod place;
pub(crate) mod random;
pub(crate) mod requests;
pub(crate) mod shop;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use census::children;
use requests::Request;

/// Far more than anything here takes on a busy machine; reached only by a fault.
const PATIENCE: Duration = Duration::from_secs(120);

/// Lines of a server's log that are shown when its test fails.
const LOG_LINES: usize = 300;

/// A running server. Ends with the value.
pub(crate) struct Server {
    child: Mutex<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
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
        Self::start_with(args, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let server = Self::launch(args, env);
        wait_until("the server is ready", || {
            server.admin("/ready").status == 200
        });
        server
    }

    /// Starts a server on free ports and waits until it listens.
    pub(crate) fn launch(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = command(args);
        command.envs(env.iter().copied());
        let mut child = command.spawn().expect("realm starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, lines) = mpsc::channel();
        let log = Arc::<Mutex<VecDeque<_>>>::default();
        let kept = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut kept = kept.lock().expect("not poisoned");
                kept.push_back(line.clone());
                if kept.len() > LOG_LINES {
                    kept.pop_front();
                }
                let _ = sender.send(line);
            }
        });
        let (mut api, mut admin) = (None, None);
        while api.is_none() || admin.is_none() {
            let line = lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("realm does not say where it listens: {log:#?}"));
            if let Some((_, addr)) = line.split_once("listening on ") {
                api = Some(addr.trim().to_owned());
            } else if let Some((_, addr)) = line.split_once("admin on ") {
                admin = Some(addr.trim().to_owned());
            }
        }
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            // A connection for each request, so that none is held when nothing runs.
            .max_idle_connections(0)
            .build()
            .new_agent();
        Server {
            pid: Pid::from_raw(child.id() as i32),
            child: child.into(),
            log,
            api: api.expect("set"),
            admin: admin.expect("set"),
            agent,
        }
    }

    pub(crate) fn admin(&self, path: &str) -> Answer {
        read(self.agent.get(format!("{}{path}", self.admin)).call())
    }

    /// Where the API listens, as `IP:PORT`.
    pub(crate) fn api_address(&self) -> &str {
        self.api.trim_start_matches("http://")
    }

    pub(crate) fn admin_post(&self, path: &str, body: &Value) -> Answer {
        read(
            self.agent
                .post(format!("{}{path}", self.admin))
                .content_type("application/json")
                .send(body.to_string()),
        )
    }

    pub(crate) fn admin_delete(&self, path: &str) -> Answer {
        read(self.agent.delete(format!("{}{path}", self.admin)).call())
    }

    /// Where the admin listener is, as `IP:PORT`.
    pub(crate) fn admin_address(&self) -> &str {
        self.admin.trim_start_matches("http://")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        read(self.agent.get(format!("{}{path}", self.api)).call())
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        read(self.agent.delete(format!("{}{path}", self.api)).call())
    }

    /// Sends a component of a program.
    pub(crate) fn post_component(&self, path: &str, component: &[u8]) -> Answer {
        read(
            self.agent
                .post(format!("{}{path}", self.api))
                .content_type("application/wasm")
                .send(component),
        )
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
        path: &'static str,
        body: &Value,
        each: impl Fn(usize),
    ) -> (String, String) {
        let (name, body) = ("a stream".to_owned(), body.clone());
        let mut answer = self
            .ask_with(&Request { name, path, body }, each)
            .finished();
        let choice = answer.choices.remove(&0).expect("a choice");
        let scores: String = choice.scores.iter().map(Value::to_string).collect();
        (choice.text + &scores, choice.finish)
    }

    /// Lines of its log, of the last ones, that have all of these words.
    pub(crate) fn logged(&self, words: &[&str]) -> usize {
        let log = self.log.lock().expect("not poisoned");
        let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
        log.iter().filter(has_all).count()
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// The sum of a metric over all its labels; 0 if it was never set.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let metrics = self.admin("/metrics").body;
        let values = metrics.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let labelled = rest.starts_with(['{', ' ']);
            let value = rest.rsplit_once(' ').filter(|_| labelled)?.1;
            Some(value.parse::<f64>().expect("a number"))
        });
        values.sum()
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

    /// The one child process of the server.
    pub(crate) fn worker_pid(&self) -> Pid {
        let mut pids = Vec::new();
        wait_until("there is a worker", || {
            pids = children(self.pid);
            !pids.is_empty()
        });
        assert_eq!(pids.len(), 1, "{pids:?}");
        pids[0]
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
        if std::thread::panicking() {
            for line in &*self.log.lock().unwrap_or_else(|e| e.into_inner()) {
                println!("realm: {line}");
            }
        }
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

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "gave up waiting until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sets a flag when dropped, by a panic too.
pub(crate) struct Raise<'a>(pub(crate) &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A number that a longer run sets in the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is not a number")),
        Err(_) => default,
    }
}

pub(crate) fn chat(content: &str) -> Value {
    json!({"model": "realm-tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 64})
}

pub(crate) fn completion(prompt: &str) -> Value {
    json!({"model": "realm-tiny", "prompt": prompt, "max_tokens": 8})
}
