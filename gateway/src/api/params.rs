//! Parameters that chat and completions share: how tokens are drawn and when to stop.

use std::collections::BTreeMap;
use std::sync::Arc;

use realm_shared::wire::{MAX_TOP_LOGPROBS, Sampling};
use serde_json::Value;

use super::error::ApiError;
use super::fields::Fields;
use super::form::Form;
use super::priority::Urgency;
use super::processor::Processor;
use super::random;
use super::run::StreamUsage;
use super::unsupported::{STREAM_OPTIONS, refuse};
use crate::batching::sequence::{Allowance, Priority, Sequence, SequenceId, TenantId};
use crate::text::Text;

/// Most choices that one request may ask for, over all its prompts.
pub(super) const MAX_CHOICES: usize = 128;
/// Highest count of tokens that a request may name.
pub(super) const MAX_COUNT: i64 = i32::MAX as i64;
/// Most entries of `logit_bias`.
const MAX_BIAS: usize = 1024;
/// Most stop strings.
const MAX_STOPS: usize = 16;
/// Longest stop string in characters.
const MAX_STOP_LENGTH: usize = 1024;
/// Below this, a temperature divides logits beyond what the device can tell apart.
const GREEDY_BELOW: f32 = 1e-5;
/// Most pairs of `metadata`, longest key, longest value, in characters.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// The shared parameters of one request, each valid by itself.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Params {
    pub(super) n: usize,
    pub(super) max_tokens: Option<u32>,
    pub(super) min_tokens: u32,
    pub(super) ignore_eos: bool,
    pub(super) stop: Vec<String>,
    pub(super) seed: Option<i64>,
    pub(super) stream: bool,
    pub(super) urgency: Urgency,
    pub(super) processor: Option<Processor>,
    pub(super) form: Option<Form>,
    pub(super) stream_usage: StreamUsage,
    /// Alternatives to report per token; `None` for no log-probabilities at all.
    pub(super) top_logprobs: Option<u32>,
    stream_options: bool,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u32>,
    min_p: Option<f64>,
    presence_penalty: f64,
    frequency_penalty: f64,
    repetition_penalty: Option<f64>,
    bias: Arc<[(u32, f32)]>,
}

impl Params {
    /// Takes the shared parameters out of a request. `least_tokens` is the lowest `max_tokens`.
    /// `top_logprobs` is left for the caller, as the endpoints ask for it differently.
    pub(super) fn take(fields: &mut Fields, least_tokens: i64) -> Result<Self, ApiError> {
        // Labels for the client's own use; they ask for nothing.
        fields.string("user")?;
        fields.string("safety_identifier")?;
        fields.string("prompt_cache_key")?;
        metadata(fields)?;

        let penalty = |v: f64| (-2.0..=2.0).contains(&v);
        let mut params = Params {
            n: count(fields, "n", 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize,
            max_tokens: count(fields, "max_tokens", least_tokens..=MAX_COUNT)?,
            min_tokens: count(fields, "min_tokens", 0..=MAX_COUNT)?.unwrap_or(0),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            stop: stop(fields)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            stream: fields.boolean("stream")?.unwrap_or(false),
            urgency: Urgency::take(fields)?,
            processor: Processor::take(fields)?,
            form: Form::take(fields)?,
            stream_usage: StreamUsage::Never,
            top_logprobs: None,
            stream_options: false,
            temperature: fields.number("temperature", "a number from 0 to 2", |v| {
                (0.0..=2.0).contains(&v)
            })?,
            top_p: fields.number("top_p", "a number above 0 and up to 1", |v| {
                v > 0.0 && v <= 1.0
            })?,
            top_k: fields
                .integer("top_k", -1..=MAX_COUNT)?
                .map(|k| u32::try_from(k).unwrap_or(0)),
            min_p: fields.number("min_p", "a number from 0 to 1", |v| {
                (0.0..=1.0).contains(&v)
            })?,
            presence_penalty: fields
                .number("presence_penalty", "a number from -2 to 2", penalty)?
                .unwrap_or(0.0),
            frequency_penalty: fields
                .number("frequency_penalty", "a number from -2 to 2", penalty)?
                .unwrap_or(0.0),
            repetition_penalty: fields.number(
                "repetition_penalty",
                "a number from 0.01 to 100",
                |v| (0.01..=100.0).contains(&v),
            )?,
            bias: bias(fields)?.into(),
        };
        if let Some(mut options) = fields.object("stream_options")? {
            params.stream_options = true;
            let at_end = options.boolean("include_usage")?.unwrap_or(false);
            let throughout = options.boolean("continuous_usage_stats")?.unwrap_or(false);
            params.stream_usage = match (at_end, throughout) {
                // As in vLLM, which has the second one, it asks for nothing without the first.
                (false, _) => StreamUsage::Never,
                (true, false) => StreamUsage::AtEnd,
                (true, true) => StreamUsage::Throughout,
            };
            refuse(&mut options, STREAM_OPTIONS)?;
            options.finish()?;
        }
        Ok(params)
    }

    /// Refuses parameters that contradict one another or the model.
    pub(super) fn check(&self, vocab_size: u32) -> Result<(), ApiError> {
        if self.stream_options && !self.stream {
            return Err(ApiError::conflict(
                "stream_options",
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            ));
        }
        if let (Some(form), Some(_)) = (&self.form, &self.processor) {
            return Err(ApiError::conflict(
                form.param,
                format!(
                    "A 'processor' steers alone: leave it out, or '{}'.",
                    form.param
                ),
            ));
        }
        if let Some((id, _)) = self.bias.iter().find(|(id, _)| *id >= vocab_size) {
            return Err(ApiError::invalid(
                "logit_bias",
                format!("token ids below {vocab_size}, but got {id}"),
            ));
        }
        Ok(())
    }

    /// Refuses what asks for something that a program does by itself, or not.
    pub(super) fn check_for_program(&self) -> Result<(), ApiError> {
        let without = [
            ("n", self.n > 1),
            ("logprobs", self.top_logprobs.is_some()),
            ("min_tokens", self.min_tokens > 0),
            ("ignore_eos", self.ignore_eos),
            ("presence_penalty", self.presence_penalty != 0.0),
            ("frequency_penalty", self.frequency_penalty != 0.0),
            (
                "repetition_penalty",
                self.repetition_penalty.is_some_and(|p| p != 1.0),
            ),
            ("logit_bias", !self.bias.is_empty()),
            ("processor", self.processor.is_some()),
            (
                self.form.as_ref().map_or("", |form| form.param),
                self.form.is_some(),
            ),
        ];
        match without.iter().find(|(_, is_there)| *is_there) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::conflict(
                *name,
                format!("A program answers this request by itself, which cannot be told '{name}'."),
            )),
        }
    }

    /// Tokens to generate at most after a prompt of `prompt` tokens. Without `max_tokens` it is
    /// `default`, or less where the context is full before.
    pub(super) fn budget(
        &self,
        prompt_param: &'static str,
        prompt: usize,
        max_context: u32,
        default: u32,
    ) -> Result<u32, ApiError> {
        let room = u32::try_from(prompt)
            .ok()
            .and_then(|prompt| max_context.checked_sub(prompt));
        let least = self.max_tokens.unwrap_or(1);
        let default = default.max(self.min_tokens);
        match room {
            Some(room) if least <= room => Ok(self.max_tokens.unwrap_or(default.min(room))),
            _ => Err(ApiError::context_length(
                prompt_param,
                max_context,
                prompt,
                least,
            )),
        }
    }

    /// The sequence of choice `index` after `prompt`. `seed` is the [request's](Self::seed).
    pub(super) fn sequence(
        &self,
        text: &Text,
        seed: u64,
        index: usize,
        prompt: Arc<[u32]>,
        max_tokens: u32,
    ) -> Sequence {
        Sequence {
            // These four are assigned on submission, and what steers it.
            id: SequenceId(0),
            tenant: TenantId::ANYONE,
            allowance: Allowance::default(),
            priority: Priority::default(),
            prompt,
            max_tokens,
            sampling: Sampling {
                key: random::key(seed, index),
                ..self.sampling(text)
            },
            bias: self.bias.clone(),
            prompt_logprobs: false,
            steering: None,
        }
    }

    /// How tokens are drawn, but for the key. What the request leaves out is the model's.
    fn sampling(&self, text: &Text) -> Sampling {
        let model = text.sampling();
        let or = |given: Option<f64>, otherwise: f32| given.map_or(otherwise, |v| v as f32);
        let temperature = or(self.temperature, model.temperature);
        Sampling {
            temperature: if temperature < GREEDY_BELOW {
                0.0
            } else {
                temperature
            },
            // A tiny double becomes 0 as a float, which would keep no token at all.
            top_p: or(self.top_p, model.top_p).max(f32::MIN_POSITIVE),
            min_p: or(self.min_p, model.min_p),
            top_k: self.top_k.unwrap_or(model.top_k),
            presence_penalty: self.presence_penalty as f32,
            frequency_penalty: self.frequency_penalty as f32,
            repetition_penalty: or(self.repetition_penalty, model.repetition_penalty),
            min_tokens: self.min_tokens,
            top_logprobs: self
                .top_logprobs
                .map_or(-1, |k| i32::try_from(k).unwrap_or(MAX_TOP_LOGPROBS as i32)),
            stop_count: if self.ignore_eos { 0 } else { model.stop_count },
            ..model
        }
    }

    /// The seed of the request: the one given, else one that nobody can foresee.
    pub(super) fn seed(&self) -> u64 {
        self.seed
            .map_or_else(random::unpredictable, |seed| seed as u64)
    }
}

/// A count in `range`, which must fit a `u32`.
pub(super) fn count(
    fields: &mut Fields,
    name: &str,
    range: std::ops::RangeInclusive<i64>,
) -> Result<Option<u32>, ApiError> {
    let count = fields.integer(name, range)?;
    Ok(count.and_then(|n| u32::try_from(n).ok()))
}

/// `stop`: a string or a list of them.
fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![(fields.path("stop"), Value::String(one))],
        Some(Value::Array(list)) if list.len() <= MAX_STOPS => list
            .into_iter()
            .enumerate()
            .map(|(i, value)| (fields.path(&format!("stop[{i}]")), value))
            .collect(),
        Some(Value::Array(list)) => {
            return Err(ApiError::invalid(
                "stop",
                format!("at most {MAX_STOPS} strings, but got {}", list.len()),
            ));
        }
        Some(other) => {
            return Err(ApiError::wrong_type(
                "stop",
                "a string or an array of strings",
                &other,
            ));
        }
    };
    stops
        .into_iter()
        .map(|(path, value)| match value {
            Value::String(s) if !s.is_empty() && is_within(&s, MAX_STOP_LENGTH) => Ok(s),
            Value::String(_) => Err(ApiError::invalid(
                path,
                format!("a string of 1 to {MAX_STOP_LENGTH} characters"),
            )),
            other => Err(ApiError::wrong_type(path, "a string", &other)),
        })
        .collect()
}

/// Whether a text has at most `most` characters.
fn is_within(text: &str, most: usize) -> bool {
    text.chars().nth(most).is_none()
}

/// `logit_bias`: token ids as strings, with numbers from -100 to 100.
fn bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let map = map.into_rest();
    if map.len() > MAX_BIAS {
        return Err(ApiError::invalid(
            "logit_bias",
            format!("at most {MAX_BIAS} entries, but got {}", map.len()),
        ));
    }
    let mut bias = BTreeMap::new();
    for (key, value) in &map {
        // Only the plain decimal form, so that no token can be named twice.
        let id = key.parse::<u32>().ok().filter(|id| id.to_string() == *key);
        let Some(id) = id else {
            return Err(ApiError::invalid(
                "logit_bias",
                "token ids (such as \"42\") as keys",
            ));
        };
        let path = format!("logit_bias.{id}");
        let added = value
            .as_f64()
            .ok_or_else(|| ApiError::wrong_type(path.as_str(), "a number", value))?;
        if !(-100.0..=100.0).contains(&added) {
            return Err(ApiError::invalid(
                path,
                format!("a number from -100 to 100, but got {value}"),
            ));
        }
        bias.insert(id, added as f32);
    }
    Ok(bias.into_iter().collect())
}

/// `metadata`: labels that OpenAI keeps with stored completions. None are stored here.
fn metadata(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(map) = fields.object("metadata")? else {
        return Ok(());
    };
    let (most, longest_key, longest_value) = METADATA;
    let map = map.into_rest();
    let valid = |(key, value): (&String, &Value)| {
        is_within(key, longest_key) && value.as_str().is_some_and(|v| is_within(v, longest_value))
    };
    if map.len() > most || !map.iter().all(valid) {
        return Err(ApiError::invalid(
            "metadata",
            format!(
                "at most {most} pairs of a key of up to {longest_key} and a string of up to {longest_value} characters"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "params_tests.rs"]
mod tests;
