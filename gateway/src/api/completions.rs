//! `/v1/completions`.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use realm_shared::wire::MAX_TOP_LOGPROBS;
use serde::Serialize;

use super::answer::{Head, finish_name, limits, off_reactor, submit};
use super::body::{self, Body};
use super::choice::{Choice, Delta};
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::CompletionLogprobs;
use super::models::find;
use super::params::{MAX_CHOICES, Params, count};
use super::prompts::{self, Encoded, Prompt};
use super::run::{Events, Format, Run, Usage};
use super::unsupported::{COMPLETIONS, refuse};
use crate::batching::sequence::Sequence;
use crate::programs::Programs;
use crate::tenants::Caller;
use crate::text::{Detokenizer, Text};
use crate::workers::{ModelLimits, Models};

/// Tokens to generate if the request does not say, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A request, each part of it valid by itself.
#[derive(Debug)]
struct Request {
    model: String,
    prompts: Vec<Prompt>,
    params: Params,
    echo: bool,
    best_of: Option<u32>,
}

impl Request {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let model = model.ok_or_else(|| ApiError::missing("model"))?;
        let prompts = prompts::take(&mut fields)?;
        refuse(&mut fields, COMPLETIONS)?;
        let mut params = Params::take(&mut fields, 0)?;
        params.top_logprobs = count(&mut fields, "logprobs", 0..=MAX_TOP_LOGPROBS as i64)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let best_of = count(&mut fields, "best_of", 1..=MAX_CHOICES as i64)?;
        fields.finish()?;
        Ok(Request {
            model,
            prompts,
            params,
            echo,
            best_of,
        })
    }

    /// What only the parameters together, or the model, can tell.
    fn check(&self, limits: ModelLimits) -> Result<(), ApiError> {
        self.params.check(limits.vocab_size)?;
        if self.best_of.is_some_and(|b| b as usize != self.params.n) {
            return Err(ApiError::unsupported("best_of", "the value of 'n'"));
        }
        let choices = self.prompts.len().saturating_mul(self.params.n);
        if choices > MAX_CHOICES {
            return Err(ApiError::invalid(
                "n",
                format!(
                    "at most {MAX_CHOICES} choices over all prompts, but got {choices} ({} prompts with {} choices each)",
                    self.prompts.len(),
                    self.params.n
                ),
            ));
        }
        prompts::check(&self.prompts, limits.vocab_size)
    }
}

/// Answers a request.
pub(super) async fn respond(
    models: &Models,
    programs: &Programs,
    caller: &Caller,
    body: &Bytes,
) -> Result<Response<Body>, ApiError> {
    let request = Request::parse(body)?;
    let model = find(models, caller, &request.model)?;
    let limits = limits(&model, caller)?;
    request.check(limits)?;

    let Request {
        prompts,
        params,
        echo,
        ..
    } = request;
    let text = model.text.clone();
    let offsets = echo && params.top_logprobs.is_some();
    let encode = move || prompts::encode(&text, prompts, echo, offsets);
    let encoded = off_reactor(body.len(), encode).await??;
    let head = Head::new("cmpl", &model.name, None);
    let id = head.id.clone();
    let (sequences, run) = prepare(head, &params, model.text.clone(), encoded, limits)?;
    submit(&model, caller, id, sequences, run, &params, programs).await
}

/// The sequences of all choices, and what becomes of their events.
fn prepare(
    head: Head,
    params: &Params,
    text: Arc<Text>,
    prompts: Vec<Encoded>,
    limits: ModelLimits,
) -> Result<(Vec<Sequence>, Run<CompletionFormat>), ApiError> {
    let mut sequences = Vec::new();
    let mut choices = Vec::new();
    let seed = params.seed();
    for prompt in prompts {
        let max_tokens = params.budget(
            "prompt",
            prompt.ids.len(),
            limits.max_context,
            DEFAULT_MAX_TOKENS,
        )?;
        // The text goes on from the prompt's, unless that has none.
        let starts = prompt.ids.iter().all(|&id| text.tokenizer.is_special(id));
        for _ in 0..params.n {
            let index = sequences.len();
            let sequence = Sequence {
                prompt_logprobs: prompt.is_scored(),
                ..params.sequence(&text, seed, index, prompt.ids.clone(), max_tokens)
            };
            let detokenizer = if starts {
                Detokenizer::at_start(&text.tokenizer)
            } else {
                Detokenizer::within_text()
            };
            choices.push(Choice::new(
                text.clone(),
                &sequence,
                detokenizer,
                params.stop.clone(),
                prompt.echo.clone(),
            ));
            sequences.push(sequence);
        }
    }
    let format = CompletionFormat {
        head,
        top_logprobs: params.top_logprobs,
        text,
    };
    Ok((
        sequences,
        Run::new(format, choices, params.n, params.stream_usage),
    ))
}

/// How completions are written.
#[derive(Debug)]
struct CompletionFormat {
    head: Head,
    text: Arc<Text>,
    top_logprobs: Option<u32>,
}

/// A whole completion or a part of one: the two look the same.
#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<CompletionChoice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

impl CompletionFormat {
    fn completion(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
    ) -> Completion<'_> {
        Completion {
            id: &self.head.id,
            object: "text_completion",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: Head::FINGERPRINT,
            choices,
            usage,
        }
    }

    fn choice(&self, index: usize, delta: Delta) -> CompletionChoice {
        let logprobs = self
            .top_logprobs
            .map(|top| CompletionLogprobs::new(&delta.tokens, &self.text.tokenizer, top));
        CompletionChoice {
            index,
            text: delta.text,
            logprobs,
            finish_reason: delta.finish.map(finish_name),
        }
    }
}

impl Format for CompletionFormat {
    fn chunks(
        &mut self,
        index: usize,
        delta: Delta,
        usage: Option<Option<Usage>>,
        out: &mut Events,
    ) {
        if delta != Delta::default() {
            let choice = self.choice(index, delta);
            out.data(&self.completion(vec![choice], usage));
        }
    }

    fn usage_chunk(&self, usage: Usage, out: &mut Events) {
        out.data(&self.completion(Vec::new(), Some(Some(usage))));
    }

    fn whole(self, choices: Vec<Delta>, usage: Usage) -> Vec<u8> {
        let choices = choices.into_iter().enumerate();
        let choices = choices.map(|(index, delta)| self.choice(index, delta));
        body::json(&self.completion(choices.collect(), Some(Some(usage))))
    }
}

#[cfg(test)]
#[path = "completions_tests.rs"]
mod tests;
