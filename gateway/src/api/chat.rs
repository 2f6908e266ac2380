//! `/v1/chat/completions`.

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
use super::logprobs::ChatLogprobs;
use super::messages::{self, Message};
use super::params::{MAX_COUNT, Params, count};
use super::program::{self, Asked};
use super::run::{Events, Format, Run, Usage};
use super::unsupported::{CHAT, refuse};
use crate::batching::sequence::Sequence;
use crate::programs::Programs;
use crate::tenants::Caller;
use crate::text::{Detokenizer, Text};
use crate::workers::{ModelLimits, Models};

/// A request, each part of it valid by itself.
#[derive(Debug)]
struct Request {
    model: String,
    messages: Vec<Message>,
    params: Params,
    /// `top_logprobs` as given, which is an error unless `logprobs` is on.
    alternatives: Option<u32>,
    /// What it says to the program that it names as its model.
    args: Option<String>,
}

impl Request {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.string("model")?;
        let model = model.ok_or_else(|| ApiError::missing("model"))?;
        let messages = messages::take(&mut fields)?;
        refuse(&mut fields, CHAT)?;
        let mut params = Params::take(&mut fields, 1)?;
        let newer = count(&mut fields, "max_completion_tokens", 1..=MAX_COUNT)?;
        // Two names for the same limit: of both, the smaller counts.
        params.max_tokens = newer.into_iter().chain(params.max_tokens).min();
        let alternatives = count(&mut fields, "top_logprobs", 0..=MAX_TOP_LOGPROBS as i64)?;
        if fields.boolean("logprobs")?.unwrap_or(false) {
            params.top_logprobs = Some(alternatives.unwrap_or(0));
        }
        let args = program::take_args(&mut fields)?;
        fields.finish()?;
        Ok(Request {
            model,
            messages,
            params,
            alternatives,
            args,
        })
    }

    /// What only the parameters together, or the model, can tell.
    fn check(&self, limits: ModelLimits) -> Result<(), ApiError> {
        self.params.check(limits.vocab_size)?;
        if self.alternatives.is_some() && self.params.top_logprobs.is_none() {
            return Err(ApiError::conflict(
                "top_logprobs",
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            ));
        }
        Ok(())
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
    let (program, model) = program::find(models, programs, caller, &request.model).await?;
    let limits = limits(&model, caller)?;
    request.check(limits)?;
    if program.is_some() {
        request.params.check_for_program()?;
    } else if request.args.is_some() {
        return Err(ApiError::conflict(
            "program",
            format!("'{}' is a model, and no program.", request.model),
        ));
    }

    let Request {
        messages,
        params,
        args,
        ..
    } = request;
    let tier = params.urgency.tier(caller.tenant.settings().priority());
    let text = model.text.clone();
    let encoding = move || encode(&text, &messages).map(|prompt| (prompt, messages));
    let (prompt, messages) = off_reactor(body.len(), encoding).await??;
    // What an answer may have by default: all that there is room for.
    let default = caller.tenant.most_output(prompt.len(), params.n);
    let name = program
        .as_ref()
        .map_or(&model.name, |program| &program.name);
    let head = Head::new("chatcmpl", name, tier);
    let id = head.id.clone();
    let (mut sequences, run) = prepare(head, &params, model.text.clone(), prompt, limits, default)?;
    if let Some(program) = program
        && let Some(sequence) = sequences.pop()
    {
        let asked = Asked {
            program,
            model,
            messages,
            args,
            limits,
            sequence,
            id,
        };
        return program::submit(asked, caller, run, &params).await;
    }
    submit(&model, caller, id, sequences, run, &params, programs).await
}

fn encode(text: &Text, messages: &[Message]) -> Result<Vec<u32>, ApiError> {
    let template = text.template.as_ref().ok_or_else(|| {
        ApiError::conflict(
            "model",
            "This model has no chat template; use /v1/completions.",
        )
    })?;
    let prompt = template
        .render(messages)
        .map_err(|e| ApiError::conflict("messages", e.to_string()))?;
    let ids = text
        .tokenizer
        .encode(&prompt, false)
        .map_err(|e| ApiError::internal(e.to_string()))?;
    if ids.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "some text; the chat template made none of these",
        ));
    }
    Ok(ids)
}

/// The sequences of all choices, and what becomes of their events.
fn prepare(
    head: Head,
    params: &Params,
    text: Arc<Text>,
    prompt: Vec<u32>,
    limits: ModelLimits,
    default: u32,
) -> Result<(Vec<Sequence>, Run<ChatFormat>), ApiError> {
    let prompt_tokens = prompt.len();
    let max_tokens = params.budget("messages", prompt_tokens, limits.max_context, default)?;
    let prompt: Arc<[u32]> = prompt.into();
    let seed = params.seed();
    let sequences: Vec<Sequence> = (0..params.n)
        .map(|index| params.sequence(&text, seed, index, prompt.clone(), max_tokens))
        .collect();
    let choices = sequences.iter().map(|sequence| {
        let detokenizer = Detokenizer::at_start(&text.tokenizer);
        Choice::new(
            text.clone(),
            sequence,
            detokenizer,
            params.stop.clone(),
            None,
        )
    });
    let choices: Vec<Choice> = choices.collect();
    let format = ChatFormat {
        head,
        started: vec![false; choices.len()],
        logprobs: params.top_logprobs.is_some(),
        include_usage: params.include_usage,
        text,
    };
    Ok((
        sequences,
        Run::new(format, choices, params.n, prompt_tokens),
    ))
}

/// How chat answers are written.
#[derive(Debug)]
struct ChatFormat {
    head: Head,
    text: Arc<Text>,
    logprobs: bool,
    include_usage: bool,
    /// Choices whose first event is written.
    started: Vec<bool>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    choices: Vec<WholeChoice>,
    usage: Usage,
}

#[derive(Serialize)]
struct WholeChoice {
    index: usize,
    message: AnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct AnswerMessage {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    choices: &'a [ChunkChoice],
    /// Only there, as `null` or a value, if the client asked for usage.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl ChatFormat {
    fn chunk(&self, choices: &[ChunkChoice], usage: Option<Usage>, out: &mut Events) {
        out.data(&Chunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: Head::FINGERPRINT,
            service_tier: self.head.service_tier,
            choices,
            usage: self.include_usage.then_some(usage),
        });
    }

    fn choice_chunk(
        &self,
        index: usize,
        delta: ChunkDelta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
        out: &mut Events,
    ) {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        };
        self.chunk(&[choice], None, out);
    }
}

impl Format for ChatFormat {
    fn chunks(&mut self, index: usize, delta: Delta, out: &mut Events) {
        if let Some(started) = self.started.get_mut(index)
            && !*started
        {
            *started = true;
            let first = ChunkDelta {
                role: Some("assistant"),
                content: Some(String::new()),
            };
            self.choice_chunk(index, first, None, None, out);
        }
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            let logprobs = self
                .logprobs
                .then(|| ChatLogprobs::new(&delta.tokens, &self.text.tokenizer));
            let content = ChunkDelta {
                role: None,
                content: Some(delta.text),
            };
            self.choice_chunk(index, content, logprobs, None, out);
        }
        if let Some(reason) = delta.finish {
            let reason = Some(finish_name(reason));
            self.choice_chunk(index, ChunkDelta::default(), None, reason, out);
        }
    }

    fn usage_chunk(&self, usage: Usage, out: &mut Events) {
        self.chunk(&[], Some(usage), out);
    }

    fn whole(self, choices: Vec<Delta>, usage: Usage) -> Vec<u8> {
        let choices = choices
            .into_iter()
            .enumerate()
            .map(|(index, delta)| WholeChoice {
                index,
                logprobs: self
                    .logprobs
                    .then(|| ChatLogprobs::new(&delta.tokens, &self.text.tokenizer)),
                message: AnswerMessage {
                    role: "assistant",
                    content: delta.text,
                    refusal: None,
                },
                finish_reason: delta.finish.map(finish_name),
            });
        body::json(&Completion {
            id: &self.head.id,
            object: "chat.completion",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: Head::FINGERPRINT,
            service_tier: self.head.service_tier,
            choices: choices.collect(),
            usage,
        })
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
