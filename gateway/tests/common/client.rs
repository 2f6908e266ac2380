//! A client that takes nothing for granted: what it is answered is either complete, or an error
//! that says so, or the test fails.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::TcpStream;
use std::ops::ControlFlow;

use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use super::requests::Request;
use super::{Server, wait_until};

/// Everything that an answer promises, however it was cut into chunks; ids and times are not among it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Transcript {
    /// By index.
    pub(crate) choices: BTreeMap<u64, Choice>,
    pub(crate) usage: Value,
}

/// One choice of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    /// Tools that it calls, and with what.
    pub(crate) calls: Vec<(String, String)>,
    /// What was told of each token.
    pub(crate) scores: Vec<Value>,
    pub(crate) finish: String,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// With a complete answer.
    Finished(Transcript),
    /// With an error, as a response or as the last event of a stream.
    Failed(Failure),
    /// The caller broke off.
    Left,
    /// Before any of an answer, by a server that has ceased to listen.
    Cut,
}

/// An error that the server told of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    /// Of the response; 200 for a stream that failed half-way.
    pub(crate) status: u16,
    pub(crate) code: String,
    /// `x-should-retry`, where the response has it.
    pub(crate) should_retry: Option<String>,
}

impl End {
    pub(crate) fn finished(self) -> Transcript {
        match self {
            End::Finished(answer) => answer,
            other => panic!("not finished: {other:?}"),
        }
    }
}

impl Server {
    /// Sends a request and reads its answer to the end. `None`: nobody listens.
    ///
    /// `each` is called with the number of chunks seen: 0 when the head of a streamed response is
    /// there, then for every chunk. It may break off.
    pub(crate) fn try_ask(
        &self,
        request: &Request,
        each: impl FnMut(usize) -> ControlFlow<()>,
    ) -> Option<End> {
        let response = self
            .agent
            .post(format!("{}{}", self.api, request.path))
            .content_type("application/json")
            .send(request.body.to_string());
        let mut response = match response {
            Ok(response) => response,
            Err(ureq::Error::Io(e)) if e.kind() == ErrorKind::ConnectionRefused => {
                return None;
            }
            Err(ureq::Error::Io(e)) if e.kind() == ErrorKind::ConnectionReset => {
                let again = TcpStream::connect(self.api_address()).map_err(|e| e.kind());
                assert_eq!(again.err(), Some(ErrorKind::ConnectionRefused), "{e}");
                return Some(End::Cut);
            }
            Err(error) => panic!("{}: no answer: {error}", request.name),
        };
        let status = response.status().as_u16();
        if status != 200 || !request.is_streamed() {
            let header = response.headers().get("x-should-retry");
            let should_retry = header.map(|v| v.to_str().expect("ASCII").to_owned());
            let body = response.body_mut().read_to_string().expect("a whole body");
            let body: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
            return Some(if status == 200 {
                let mut answer = Transcript::default();
                answer.take(&body);
                End::Finished(answer.checked(request))
            } else {
                End::Failed(Failure {
                    status,
                    code: code(&body),
                    should_retry,
                })
            });
        }
        Some(read_stream(
            BufReader::new(response.into_body().into_reader()),
            request,
            each,
        ))
    }

    /// Like [`try_ask`](Self::try_ask), of a server that listens and a caller that stays.
    pub(crate) fn ask_with(&self, request: &Request, mut each: impl FnMut(usize)) -> End {
        let end = self.try_ask(request, |chunks| {
            each(chunks);
            ControlFlow::Continue(())
        });
        end.expect("the server listens")
    }

    /// The whole answer to a request that nothing disturbs.
    pub(crate) fn ask(&self, request: &Request) -> Transcript {
        self.ask_with(request, |_| {}).finished()
    }

    /// Sends a request again and again, whose worker is killed each time at another token, so many apart:
    /// the answer is what it is undisturbed, and `check` looks at it.
    pub(crate) fn ask_and_kill(
        &self,
        request: &Request,
        undisturbed: &Transcript,
        stride: usize,
        check: impl Fn(&Transcript),
    ) {
        for point in (1..undisturbed.tokens()).step_by(stride) {
            let (ended, worker) = (self.metric("realm_worker_ends_total"), self.worker_pid());
            let answer = self.ask_with(request, |chunks| {
                if chunks == point {
                    kill(worker, Signal::SIGKILL).expect("the worker runs");
                }
            });
            let End::Finished(answer) = answer else {
                panic!("killed at {point}: {answer:?}");
            };
            assert_eq!(&answer, undisturbed, "killed at token {point}");
            check(&answer);
            // A token without text of its own makes no chunk: then nobody was killed.
            if self.worker_pid() != worker {
                wait_until("the worker is replaced", || {
                    self.metric("realm_worker_ends_total") == ended + 1.0
                        && self.admin("/ready").status == 200
                });
            }
        }
    }
}

/// Reads the body of a streamed response to its end. `each` is as of [`Server::try_ask`].
pub(crate) fn read_stream(
    body: impl BufRead,
    request: &Request,
    mut each: impl FnMut(usize) -> ControlFlow<()>,
) -> End {
    let mut chunks = 0;
    if each(chunks).is_break() {
        return End::Left;
    }
    let mut answer = Transcript::default();
    let mut end = None;
    for line in body.lines() {
        let line = line.unwrap_or_else(|e| panic!("{}: the stream broke: {e}", request.name));
        let Some(data) = line.strip_prefix("data: ") else {
            assert!(line.is_empty() || line.starts_with(':'), "{line}");
            continue;
        };
        assert_eq!(end, None, "something follows the end: {data}");
        if data == "[DONE]" {
            end = Some(End::Finished(std::mem::take(&mut answer).checked(request)));
            continue;
        }
        let chunk: Value = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}"));
        if chunk.get("error").is_some() {
            end = Some(End::Failed(Failure {
                status: 200,
                code: code(&chunk),
                should_retry: None,
            }));
            continue;
        }
        answer.take(&chunk);
        chunks += 1;
        if each(chunks).is_break() {
            return End::Left;
        }
    }
    end.unwrap_or_else(|| panic!("{}: the stream ended without a word", request.name))
}

fn code(body: &Value) -> String {
    let code = body["error"]["code"].as_str();
    code.unwrap_or_else(|| panic!("an error without a code: {body}"))
        .to_owned()
}

impl Transcript {
    /// Adds a chunk, or a whole answer.
    fn take(&mut self, body: &Value) {
        for part in body["choices"].as_array().expect("choices") {
            let index = part["index"].as_u64().expect("an index");
            let choice = self.choices.entry(index).or_default();
            assert_eq!(choice.finish, "", "something follows the finish: {body}");
            let text = [
                &part["text"],
                &part["delta"]["content"],
                &part["message"]["content"],
            ];
            choice
                .text
                .extend(text.into_iter().filter_map(Value::as_str));
            for calls in [&part["delta"]["tool_calls"], &part["message"]["tool_calls"]] {
                let calls = calls.as_array().into_iter().flatten();
                calls.for_each(|call| choice.call(call));
            }
            choice.score(&part["logprobs"]);
            if let Some(reason) = part["finish_reason"].as_str() {
                reason.clone_into(&mut choice.finish);
            }
        }
        if let Some(usage) = body.get("usage").filter(|usage| !usage.is_null()) {
            assert_eq!(self.usage, Value::Null, "a second usage: {body}");
            self.usage = usage.clone();
            // What was asked before, and of which worker, is not part of the answer.
            self.usage["prompt_tokens_details"]["cached_tokens"].take();
        }
    }

    fn checked(self, request: &Request) -> Self {
        let name = &request.name;
        assert_eq!(self.choices.len(), request.choices(), "{name}: {self:?}");
        assert!(
            self.choices.values().all(|c| !c.finish.is_empty()),
            "{name}: {self:?}"
        );
        let has_usage =
            !request.is_streamed() || request.body["stream_options"]["include_usage"] == true;
        assert_eq!(self.usage.is_object(), has_usage, "{name}: {self:?}");
        self
    }

    /// Tokens generated, over all choices.
    pub(crate) fn tokens(&self) -> usize {
        let tokens = self.usage["completion_tokens"].as_u64();
        tokens.expect("a count") as usize
    }
}

impl Choice {
    /// Adds a call, or a chunk of one: only the first chunk has an id, a type and a name.
    fn call(&mut self, call: &Value) {
        let function = &call["function"];
        let arguments = function["arguments"].as_str().expect("a text");
        match call["index"].as_u64() {
            Some(index) if index + 1 == self.calls.len() as u64 => {
                let said_twice = [&call["id"], &call["type"], &function["name"]];
                assert!(said_twice.iter().all(|said| said.is_null()), "{call}");
                let (_, so_far) = self.calls.last_mut().expect("one");
                so_far.push_str(arguments);
            }
            index => {
                let next = self.calls.len() as u64;
                assert_eq!(index.unwrap_or(next), next, "{call}");
                assert!(index.is_none() || arguments.is_empty(), "{call}");
                let id = call["id"].as_str().expect("an id");
                assert!(id.starts_with("call_"), "{call}");
                assert_eq!(call["type"], "function");
                let name = function["name"].as_str().expect("a name");
                self.calls.push((name.to_owned(), arguments.to_owned()));
            }
        }
    }

    fn score(&mut self, logprobs: &Value) {
        // Chat tells of one token after the other, completions of all in columns.
        if let Some(content) = logprobs["content"].as_array() {
            self.scores.extend(content.iter().cloned());
        } else if let Some(tokens) = logprobs["tokens"].as_array() {
            let columns = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
            let row = |i: usize| columns.iter().map(|c| logprobs[c][i].clone()).collect();
            self.scores.extend((0..tokens.len()).map(row));
        }
    }
}
