//! Requests of every kind that a worker's end must not show in, as data.

use serde_json::{Value, json};

/// A request and what to call it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) path: &'static str,
    pub(crate) body: Value,
}

impl Request {
    pub(crate) fn is_streamed(&self) -> bool {
        self.body["stream"] == true
    }

    /// Choices that the answer has.
    pub(crate) fn choices(&self) -> usize {
        self.body["n"].as_u64().unwrap_or(1) as usize
    }

    /// The same with another value for a field; none takes it away.
    pub(crate) fn with(mut self, field: &str, value: impl Into<Option<Value>>) -> Self {
        let body = self.body.as_object_mut().expect("an object");
        match value.into() {
            Some(value) => body.insert(field.to_owned(), value),
            None => body.shift_remove(field),
        };
        self
    }

    fn chat(name: &str, content: &str) -> Self {
        let body = json!({"messages": [{"role": "user", "content": content}]});
        Self::of(name, "/v1/chat/completions", body)
    }

    fn completion(name: &str, prompt: impl Into<Value>) -> Self {
        let body = json!({"prompt": prompt.into()});
        Self::of(name, "/v1/completions", body)
    }

    /// Streamed, with usage, and never over before its time.
    fn of(name: &str, path: &'static str, body: Value) -> Self {
        let name = name.to_owned();
        let request = Request { name, path, body };
        request
            .with("model", json!("realm-tiny"))
            .with("ignore_eos", json!(true))
            .with("stream", json!(true))
            .with("stream_options", json!({"include_usage": true}))
    }

    /// The same, answered as a whole.
    pub(crate) fn whole(mut self) -> Self {
        self.name += ", whole";
        self.with("stream", json!(false))
            .with("stream_options", None)
    }

    /// The same, stopping inside of `text`, which is what it is answered without a stop string.
    /// The string is long: while the text could still become it, nothing of it is sent.
    pub(crate) fn stopping_in(mut self, text: &str) -> Self {
        self.name += ", stop";
        let chars: Vec<char> = text.chars().collect();
        let stop: String = chars[chars.len() / 2..chars.len() * 5 / 6].iter().collect();
        self.with("stop", json!(["no such words", stop]))
    }
}

/// Goes on from token ids for `count` tokens.
pub(crate) fn continuation(name: &str, prompt: &[u64], count: usize) -> Request {
    Request::completion(name, prompt).with("max_tokens", json!(count))
}

/// One request of each kind, with `tokens` tokens a choice. Another seed makes other requests.
pub(crate) fn kinds(seed: u64, tokens: usize) -> Vec<Request> {
    let long = format!("Number {seed}. ") + &"The cat sat on the mat. ".repeat(40);
    let requests = [
        Request::chat("greedy chat", &format!("What is {seed} + {seed}?"))
            .with("temperature", json!(0)),
        Request::completion("seeded", "Once upon a time")
            .with("temperature", json!(0.9))
            .with("top_p", json!(0.95)),
        Request::chat("two choices", "Tell me a story.")
            .with("temperature", json!(1))
            .with("n", json!(2)),
        Request::chat("chat with logprobs", "Name three animals.")
            .with("temperature", json!(0.8))
            .with("logprobs", json!(true))
            .with("top_logprobs", json!(5)),
        Request::completion("echo with logprobs", "A dog and a cat")
            .with("temperature", json!(0.8))
            .with("logprobs", json!(3))
            .with("echo", json!(true)),
        Request::completion("penalties and bias", "One, two, three")
            .with("temperature", json!(0.7))
            .with("frequency_penalty", json!(0.8))
            .with("presence_penalty", json!(0.4))
            .with("repetition_penalty", json!(1.2))
            .with("logit_bias", json!({"100": 2, "200": -100, "300": 1.5})),
        Request::completion("long prompt", long).with("temperature", json!(0.9)),
    ];
    let requests = requests.into_iter().map(|request| {
        request
            .with("seed", json!(seed))
            .with("max_tokens", json!(tokens))
    });
    requests.collect()
}
