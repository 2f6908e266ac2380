//! `/v1/chat/completions`.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use realm_shared::wire::MAX_TOP_LOGPROBS;
use serde::Serialize;
use serde_json::{Map, Value};

use super::answer::{Head, finish_name, limits, off_reactor, submit};
use super::body::{self, Body};
use super::calls::{Call, ChunkCall, ToolCall};
use super::choice::{Choice, Delta, Scored};
use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::ChatLogprobs;
use super::messages::{self, Message};
use super::params::{MAX_COUNT, Params, count};
use super::program::{self, Asked};
use super::run::{Events, Format, Run, Usage};
use super::template;
use super::tools::Tools;
use super::unsupported::{CHAT, refuse};
use crate::batching::sequence::{FinishReason, Sequence};
use crate::programs::Programs;
use crate::tenants::Caller;
use crate::text::{Detokenizer, Text};
use crate::workers::{ModelLimits, Models};

/// A request, each part of it valid by itself.
#[derive(Debug)]
struct Request {
    model: String,
    messages: Vec<Message>,
    tools: Tools,
    /// What the chat template is told beside these.
    variables: Map<String, Value>,
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
        let tools = Tools::take(&mut fields)?;
        let variables = template::take(&mut fields)?;
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
            tools,
            variables,
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

    /// What a model cannot be asked.
    fn check_for_model(&self) -> Result<(), ApiError> {
        if self.args.is_some() {
            return Err(ApiError::conflict(
                "program",
                format!("'{}' is a model, and no program.", self.model),
            ));
        }
        self.tools.check_for_model()?;
        messages::check_for_model(&self.messages)
    }

    /// What a program cannot be asked.
    fn check_for_program(&self) -> Result<(), ApiError> {
        self.params.check_for_program()?;
        self.tools.check_for_program()?;
        messages::check_for_program(&self.messages)
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
    match program {
        Some(_) => request.check_for_program()?,
        None => request.check_for_model()?,
    }

    let Request {
        messages,
        tools,
        variables,
        params,
        args,
        ..
    } = request;
    let tier = params.urgency.tier(caller.tenant.settings().priority());
    let text = model.text.clone();
    let encoding = move || {
        let prompt = encode(&text, &messages, &tools, &variables)?;
        Ok::<_, ApiError>((prompt, messages, tools))
    };
    let (prompt, messages, tools) = off_reactor(body.len(), encoding).await??;
    // What an answer may have by default: all that there is room for.
    let default = caller.tenant.most_output(prompt.len(), params.n);
    let name = program
        .as_ref()
        .map_or(&model.name, |program| &program.name);
    let head = Head::new("chatcmpl", name, tier);
    let id = head.id.clone();
    let text = model.text.clone();
    let has_tools = !tools.sent.is_empty();
    let (mut sequences, run) = prepare(head, &params, has_tools, text, prompt, limits, default)?;
    if let Some(program) = program
        && let Some(sequence) = sequences.pop()
    {
        let asked = Asked {
            program,
            model,
            messages,
            tools,
            args,
            limits,
            sequence,
            id,
        };
        return program::submit(asked, caller, run, &params).await;
    }
    submit(&model, caller, id, sequences, run, &params, programs).await
}

fn encode(
    text: &Text,
    messages: &[Message],
    tools: &Tools,
    variables: &Map<String, Value>,
) -> Result<Vec<u32>, ApiError> {
    let template = text.template.as_ref().ok_or_else(|| {
        ApiError::conflict(
            "model",
            "This model has no chat template; use /v1/completions.",
        )
    })?;
    let prompt = template
        .render(messages, &tools.sent, variables)
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
    has_tools: bool,
    text: Arc<Text>,
    prompt: Vec<u32>,
    limits: ModelLimits,
    default: u32,
) -> Result<(Vec<Sequence>, Run<ChatFormat>), ApiError> {
    let max_tokens = params.budget("messages", prompt.len(), limits.max_context, default)?;
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
        calls: vec![false; choices.len()],
        has_tools,
        logprobs: params.top_logprobs.is_some(),
        text,
    };
    Ok((
        sequences,
        Run::new(format, choices, params.n, params.stream_usage),
    ))
}

/// How chat answers are written.
#[derive(Debug)]
struct ChatFormat {
    head: Head,
    text: Arc<Text>,
    logprobs: bool,
    /// Whether there may be calls, and perhaps no text.
    has_tools: bool,
    /// Choices whose first event is written.
    started: Vec<bool>,
    /// Choices of which a call is.
    calls: Vec<bool>,
}

/// A finish reason by its OpenAI name. One that stopped with calls did so to make them.
fn finish_reason(reason: FinishReason, has_calls: bool) -> &'static str {
    match reason {
        FinishReason::Stop if has_calls => "tool_calls",
        reason => finish_name(reason),
    }
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
    content: Option<String>,
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
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
    /// Only there, as `null` or a value, if the client asked for it.
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
    /// Only there, as `null` or a text, where there is one to follow, or none to be expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Option<String>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ChunkCall>,
}

impl ChunkChoice {
    /// With nothing in it.
    fn of(index: usize) -> Self {
        ChunkChoice {
            index,
            delta: ChunkDelta::default(),
            logprobs: None,
            finish_reason: None,
        }
    }
}

impl ChatFormat {
    fn chunk(&self, choices: &[ChunkChoice], usage: Option<Option<Usage>>, out: &mut Events) {
        out.data(&Chunk {
            id: &self.head.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: &self.head.model,
            system_fingerprint: Head::FINGERPRINT,
            service_tier: self.head.service_tier,
            choices,
            usage,
        });
    }

    /// Says who speaks, if that is not said yet. It comes with what is said first and not before: clients take the
    /// first chunk for the first token, whose time they measure.
    fn begin(&mut self, index: usize) -> Option<ChunkChoice> {
        let started = self.started.get_mut(index)?;
        if std::mem::replace(started, true) {
            return None;
        }
        Some(ChunkChoice {
            delta: ChunkDelta {
                role: Some("assistant"),
                content: Some((!self.has_tools).then(String::new)),
                tool_calls: Vec::new(),
            },
            ..ChunkChoice::of(index)
        })
    }

    fn content(&self, index: usize, text: String, tokens: &[Scored]) -> ChunkChoice {
        ChunkChoice {
            delta: ChunkDelta {
                content: Some(Some(text)),
                ..ChunkDelta::default()
            },
            logprobs: self
                .logprobs
                .then(|| ChatLogprobs::new(tokens, &self.text.tokenizer)),
            ..ChunkChoice::of(index)
        }
    }

    fn call(&mut self, index: usize, call: Call) -> ChunkChoice {
        if let Some(calls) = self.calls.get_mut(index) {
            *calls = true;
        }
        ChunkChoice {
            delta: ChunkDelta {
                tool_calls: vec![call.into()],
                ..ChunkDelta::default()
            },
            ..ChunkChoice::of(index)
        }
    }

    fn end(&self, index: usize, reason: FinishReason) -> ChunkChoice {
        let has_calls = self.calls.get(index).copied().unwrap_or(false);
        ChunkChoice {
            finish_reason: Some(finish_reason(reason, has_calls)),
            ..ChunkChoice::of(index)
        }
    }
}

impl Format for ChatFormat {
    fn chunks(
        &mut self,
        index: usize,
        delta: Delta,
        usage: Option<Option<Usage>>,
        out: &mut Events,
    ) {
        if delta == Delta::default() {
            return;
        }
        let mut chunks = Vec::from_iter(self.begin(index));
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            chunks.push(self.content(index, delta.text, &delta.tokens));
        }
        for call in delta.calls {
            chunks.push(self.call(index, call));
        }
        if let Some(reason) = delta.finish {
            chunks.push(self.end(index, reason));
        }
        for chunk in chunks {
            self.chunk(&[chunk], usage, out);
        }
    }

    fn usage_chunk(&self, usage: Usage, out: &mut Events) {
        self.chunk(&[], Some(Some(usage)), out);
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
                finish_reason: delta
                    .finish
                    .map(|reason| finish_reason(reason, !delta.calls.is_empty())),
                message: AnswerMessage {
                    role: "assistant",
                    content: Some(delta.text)
                        .filter(|text| !text.is_empty() || delta.calls.is_empty()),
                    refusal: None,
                    tool_calls: delta.calls.into_iter().map(ToolCall::from).collect(),
                },
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
