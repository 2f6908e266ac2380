//! All choices of one request, and how what happens to them becomes a response.
//!
//! A streamed response and a whole one come from the same [`Run`]: the one writes each delta as
//! it comes, the other adds them up.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Serialize;

use super::body::{self, Body};
use super::choice::{Choice, Delta};
use super::error::ApiError;
use crate::batching::sequence::{Event, FailReason};
use crate::workers::Generation;

/// Silence after which a comment tells client and proxies that the stream is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Tokens that a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct PromptTokens {
    cached_tokens: u64,
}

impl Usage {
    fn new(prompt: usize, generated: u64, cached: usize) -> Self {
        let prompt_tokens = prompt as u64;
        Usage {
            prompt_tokens,
            completion_tokens: generated,
            total_tokens: prompt_tokens + generated,
            prompt_tokens_details: PromptTokens {
                cached_tokens: cached as u64,
            },
        }
    }
}

/// Which chunks of a stream tell usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamUsage {
    /// None.
    Never,
    /// One of its own behind all others, which have `null` in its place.
    AtEnd,
    /// That one, and each of the others what its choice took so far.
    Throughout,
}

/// How an endpoint writes its answers.
pub(super) trait Format: Send + 'static {
    /// Writes what became certain about choice `index` as server-sent events. `usage` is what they have by
    /// that name, if anything.
    fn chunks(
        &mut self,
        index: usize,
        delta: Delta,
        usage: Option<Option<Usage>>,
        out: &mut Events,
    );
    /// Writes the event that tells the usage after all others.
    fn usage_chunk(&self, usage: Usage, out: &mut Events);
    /// The whole answer as JSON.
    fn whole(self, choices: Vec<Delta>, usage: Usage) -> Vec<u8>;
}

/// Server-sent events, written one behind the other.
#[derive(Debug, Default)]
pub(super) struct Events(Vec<u8>);

impl Events {
    /// Adds an event with a JSON value.
    pub(super) fn data(&mut self, value: &impl Serialize) {
        self.raw(&body::json(value));
    }

    fn raw(&mut self, data: &[u8]) {
        self.0.extend_from_slice(b"data: ");
        self.0.extend_from_slice(data);
        self.0.extend_from_slice(b"\n\n");
    }

    pub(super) fn into_bytes(self) -> Bytes {
        self.0.into()
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Run<F> {
    format: F,
    /// Prompt by prompt.
    choices: Vec<Choice>,
    choices_per_prompt: usize,
    stream_usage: StreamUsage,
    /// The parameter that says which form the answers are to have, if one does.
    form: Option<&'static str>,
}

impl<F: Format> Run<F> {
    /// `choices` are those of all prompts, prompt by prompt, as many for each.
    pub(super) fn new(
        format: F,
        choices: Vec<Choice>,
        choices_per_prompt: usize,
        stream_usage: StreamUsage,
    ) -> Self {
        Run {
            format,
            choices,
            choices_per_prompt: choices_per_prompt.max(1),
            stream_usage,
            form: None,
        }
    }

    /// The same, with answers of a form that this parameter asks for.
    pub(super) fn with_form(self, form: Option<&'static str>) -> Self {
        Run { form, ..self }
    }

    /// Takes what happened to choice `index`. Also tells whether its sequence must be cancelled,
    /// being over by a stop string that the scheduler knows nothing of.
    pub(super) fn push(&mut self, index: usize, event: Event) -> Result<(Delta, bool), ApiError> {
        let choice = self
            .choices
            .get_mut(index)
            .ok_or_else(|| ApiError::internal("an event of an unknown choice"))?;
        let runs_on = !event.is_last();
        let delta = choice.push(event).map_err(|reason| {
            let about = self
                .form
                .filter(|_| matches!(reason, FailReason::Grammar { .. }));
            let error = ApiError::from(reason);
            let error = match about {
                Some(param) => error.about(param),
                None => error,
            };
            // A stream that fails has answered with 200, and would leave no trace.
            tracing::warn!(code = error.code(), "a sequence failed");
            error
        })?;
        let cancel = runs_on && delta.finish.is_some();
        Ok((delta, cancel))
    }

    /// What happens until something is drawn, or for so long as a stream may be silent. What fails
    /// before that is an error of its own, as the response has no head yet.
    async fn begin(
        &mut self,
        generation: &mut Generation,
    ) -> Result<Vec<(usize, Event)>, ApiError> {
        let mut first = Vec::new();
        let mut silence = std::pin::pin!(tokio::time::sleep(KEEP_ALIVE));
        loop {
            let next = tokio::select! {
                biased;
                next = generation.next() => next,
                () = &mut silence => return Ok(first),
            };
            match next {
                Some((index, event @ Event::Failed(_))) => {
                    let failed = self.push(index, event).map(|_| first);
                    generation.settle().await;
                    return failed;
                }
                Some((index, event)) => {
                    let goes_on =
                        matches!(event, Event::Started { .. } | Event::PromptLogprobs { .. });
                    first.push((index, event));
                    if !goes_on {
                        return Ok(first);
                    }
                }
                None => return Ok(first),
            }
        }
    }

    /// Like [`push`](Self::push), as server-sent events.
    pub(super) fn stream(&mut self, index: usize, event: Event) -> Result<(Bytes, bool), ApiError> {
        let (delta, cancel) = self.push(index, event)?;
        let mut events = Events::default();
        let usage = match self.stream_usage {
            StreamUsage::Never => None,
            StreamUsage::AtEnd => Some(None),
            StreamUsage::Throughout => Some(self.usage_of(index)),
        };
        self.format.chunks(index, delta, usage, &mut events);
        Ok((events.into_bytes(), cancel))
    }

    /// What ends a stream; an error if a choice is not over.
    pub(super) fn stream_end(&self) -> Result<Bytes, ApiError> {
        self.check_over()?;
        let mut events = Events::default();
        if self.stream_usage != StreamUsage::Never {
            self.format.usage_chunk(self.usage(), &mut events);
        }
        events.raw(b"[DONE]");
        Ok(events.into_bytes())
    }

    /// The whole answer from the sums of all deltas; an error if a choice is not over.
    pub(super) fn whole(self, deltas: Vec<Delta>) -> Result<Vec<u8>, ApiError> {
        self.check_over()?;
        let usage = self.usage();
        Ok(self.format.whole(deltas, usage))
    }

    /// Tokens of all prompts, each once however many choices it has.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.first_choices().map(Choice::prompt_tokens).sum()
    }

    /// One of each prompt. The others share what it computes.
    fn first_choices(&self) -> impl Iterator<Item = &Choice> {
        self.choices.iter().step_by(self.choices_per_prompt)
    }

    fn is_over(&self) -> bool {
        self.choices.iter().all(Choice::is_over)
    }

    fn check_over(&self) -> Result<(), ApiError> {
        if self.is_over() {
            Ok(())
        } else {
            Err(ApiError::internal("The generation ended early"))
        }
    }

    fn usage(&self) -> Usage {
        let generated = self.choices.iter().map(|c| u64::from(c.generated()));
        let cached = self.first_choices().map(Choice::cached).sum();
        Usage::new(self.prompt_tokens(), generated.sum(), cached)
    }

    /// What choice `index` and its prompt took so far.
    fn usage_of(&self, index: usize) -> Option<Usage> {
        let choice = self.choices.get(index)?;
        let first = self.first_choices().nth(index / self.choices_per_prompt)?;
        Some(Usage::new(
            choice.prompt_tokens(),
            choice.generated().into(),
            first.cached(),
        ))
    }
}

/// Answers when everything is generated.
pub(super) async fn respond_whole<F: Format>(
    mut run: Run<F>,
    mut generation: Generation,
) -> Result<Response<Body>, ApiError> {
    let mut deltas = vec![Delta::default(); run.choices.len()];
    while !run.is_over() {
        let Some((index, event)) = generation.next().await else {
            break;
        };
        let (delta, cancel) = match run.push(index, event) {
            Ok(pushed) => pushed,
            Err(error) => {
                generation.settle().await;
                return Err(error);
            }
        };
        if cancel {
            generation.cancel(index);
        }
        if let Some(whole) = deltas.get_mut(index) {
            whole.extend(delta);
        }
    }
    generation.settle().await;
    let json = run.whole(deltas)?;
    Ok(body::json_response(StatusCode::OK, json.into()))
}

/// Answers with events as they come: at once, or where the answer is to have a form, when that is known
/// to be one. Dropping the response's body drops the generation, which ends what still runs. A failure
/// becomes an event with an error, after which the stream ends without `[DONE]`.
pub(super) async fn respond_stream<F: Format>(
    mut run: Run<F>,
    mut generation: Generation,
) -> Result<Response<Body>, ApiError> {
    let first = match run.form {
        Some(_) => run.begin(&mut generation).await?,
        None => Vec::new(),
    };
    Ok(body::event_stream(async_stream::stream! {
        let mut first = first.into_iter();
        while !run.is_over() {
            let next = match first.next() {
                Some(event) => Some(event),
                None => {
                    let mut next = std::pin::pin!(generation.next());
                    loop {
                        tokio::select! {
                            biased;
                            event = &mut next => break event,
                            () = tokio::time::sleep(KEEP_ALIVE) => {}
                        }
                        yield Bytes::from_static(b": keep-alive\n\n");
                    }
                }
            };
            let Some((index, event)) = next else {
                break;
            };
            match run.stream(index, event) {
                Ok((events, cancel)) => {
                    if cancel {
                        generation.cancel(index);
                    }
                    if !events.is_empty() {
                        yield events;
                    }
                }
                Err(error) => {
                    generation.settle().await;
                    yield error_event(&error);
                    return;
                }
            }
        }
        generation.settle().await;
        yield run.stream_end().unwrap_or_else(|error| error_event(&error));
    }))
}

/// A failure inside a stream.
pub(super) fn error_event(error: &ApiError) -> Bytes {
    let mut events = Events::default();
    events.raw(&error.to_json());
    events.into_bytes()
}
